#!/usr/bin/python
# All directories and files of one role's configuration, in one call.
"""Ansible module: put the directories and rendered files of a role in their places; one call instead of one a file."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gridstead_files
short_description: The directories and files of a role, in one call
description:
  - Creates directories and writes files, each with owner, group and mode, and reports a diff of what changed.
  - An entry of I(files) with C(src) is a template, rendered on the control machine with the entry as C(item).
  - It does what ansible.builtin.file and ansible.builtin.template do; one call for twenty files takes as long as one for one.
options:
  directories:
    description: Directories, parents first.
    type: list
    elements: dict
    default: []
    options:
      path: {description: Absolute path., type: path, required: true}
      mode: {description: Octal permission., type: str, default: "0755"}
      owner: {description: Owner; untouched if absent., type: str}
      group: {description: Group; untouched if absent., type: str}
  files:
    description: Files.
    type: list
    elements: dict
    default: []
    options:
      path: {description: Absolute path., type: path, required: true}
      content: {description: Content; or C(src), the name of a template of the role., type: str}
      mode: {description: Octal permission., type: str, default: "0644"}
      owner: {description: Owner; untouched if absent., type: str}
      group: {description: Group; untouched if absent., type: str}
      secret: {description: Whether neither the diff nor the host's log may show the content., type: bool, default: false}
  secrets: {description: Contents of the files that are secret, by path; taken from I(files), and never logged., type: dict, default: {}}
author: [Gridstead]
"""

EXAMPLES = r"""
- name: Write the configuration
  gridstead_files:
    directories: [{path: /etc/gridstead/kafka}]
    files: [{src: server.properties.j2, path: /etc/gridstead/kafka/server.properties, mode: "0640"}]
"""

RETURN = r"""
paths: {description: What was created or changed., type: list, elements: str, returned: always}
"""

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule


def attributes(module, entry):
    """Arguments of Ansible's own functions for owner, group and mode."""
    return module.load_file_common_arguments({**entry, "seuser": None, "serole": None, "setype": None, "selevel": None, "attributes": None})


def put_directory(module, entry):
    """Create or correct one directory; return whether anything changed."""
    path = entry["path"]
    if not os.path.isdir(path):
        if os.path.exists(path):
            module.fail_json(msg="%s is in the way: it is not a directory" % path)
        if module.check_mode:
            return True
        os.makedirs(path)
        module.set_fs_attributes_if_different(attributes(module, entry), True)
        return True
    return module.set_fs_attributes_if_different(attributes(module, entry), False)


def put_file(module, entry, diffs):
    """Write or correct one file, atomically; return whether anything changed."""
    path = entry["path"]
    content = module.params["secrets"][path] if entry["secret"] else entry["content"]
    before = None
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            before = stream.read()
    changed = before != content
    if changed:
        hidden = "(its content is secret)\n"
        shown = (hidden, hidden) if entry["secret"] else (before or "", content)
        diffs.append({"before_header": path, "after_header": path, "before": shown[0], "after": shown[1]})
        if module.check_mode:
            return True
        descriptor, partial = tempfile.mkstemp(dir=os.path.dirname(path))
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write(content)
        module.set_fs_attributes_if_different(attributes(module, {**entry, "path": partial}), True)
        os.rename(partial, path)
    return module.set_fs_attributes_if_different(attributes(module, entry), changed)


def main():
    """Entry point of the module."""
    common = {"path": {"type": "path", "required": True}, "owner": {"type": "str"}, "group": {"type": "str"}}
    module = AnsibleModule(
        argument_spec={
            "directories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {**common, "mode": {"type": "str", "default": "0755"}},
            },
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    **common,
                    "content": {"type": "str"},
                    "mode": {"type": "str", "default": "0644"},
                    "secret": {"type": "bool", "default": False},
                },
                "required_if": [("secret", False, ("content",))],
            },
            "secrets": {"type": "dict", "default": {}, "no_log": True},
        },
        supports_check_mode=True,
    )
    diffs = []
    paths = [entry["path"] for entry in module.params["directories"] if put_directory(module, entry)]
    paths += [entry["path"] for entry in module.params["files"] if put_file(module, entry, diffs)]
    module.exit_json(changed=bool(paths), paths=paths, diff=diffs)


if __name__ == "__main__":
    main()
