"""Action plug-in: render the templates of a role here, and let one module call put them in their places."""

from __future__ import annotations

import os

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

_ARGUMENTS = ("path", "content", "secret", "mode", "owner", "group")


class ActionModule(ActionBase):
    """Renders each entry of `files`, then runs the module gridstead_files once for all of them."""

    def run(self, tmp=None, task_vars=None):
        """Return the result of the module."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        files, secrets = [], {}
        for entry in arguments.pop("files", []):
            file = dict(entry)
            if "src" in file:
                file["content"] = self._render(file, dict(task_vars or {}))
            if file.get("secret"):
                secrets[file["path"]] = file.pop("content")  # an argument of its own is kept out of the host's log
            files.append({key: value for key, value in file.items() if key in _ARGUMENTS})
        arguments |= {"files": files, "secrets": secrets}
        return self._execute_module(module_name="gridstead_files", module_args=arguments, task_vars=task_vars)

    def _render(self, file, variables):
        """Render one template as ansible.builtin.template does; `item` is the entry."""
        source = self._find_needle("templates", file.pop("src"))
        folder = os.path.dirname(source)
        templar = self._templar.copy_with_new_env(searchpath=[folder], available_variables={**variables, "item": file})
        try:
            text = templar.template(
                trust_as_template(self._loader.get_text_file_contents(source)),
                escape_backslashes=False,
                overrides={"trim_blocks": True, "lstrip_blocks": False, "newline_sequence": "\n"},
            )
        except Exception as error:
            raise AnsibleActionFail(f"{source} for {file['path']}: {error}") from error
        return text or ""
