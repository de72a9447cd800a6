"""Ansible's own output, but a task that waits for a server says so, and does not say FAILED."""

from __future__ import annotations

from typing import Any

from ansible import constants as C
from ansible.plugins.callback.default import CallbackModule as Default

DOCUMENTATION = """
name: gridstead
type: stdout
short_description: The default output, with a quiet word for a task that is tried again
description:
  - A server needs seconds to be ready after its start, and tasks wait for it by trying again.
  - The first try of such a task, and every tenth, is told as waiting. A task that fails in the end is told as ever.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - C(stdout_callback = gridstead) in ansible.cfg
"""

EVERY = 10


class CallbackModule(Default):
    """The default callback but for the lines of tasks with ``until``."""

    CALLBACK_NAME = "gridstead"

    def v2_runner_retry(self, result: Any) -> None:
        """Tell on which host what is waited for, and how often it was tried."""
        tries = result.result["attempts"]
        if tries % EVERY == 1:
            line = f"waiting: [{self.host_label(result)}]: {result.task_name or result.task} (try {tries})"
            self._display.display(line, color=C.COLOR_DEBUG)
        if self._run_is_verbose(result, verbosity=2):
            self._display.display(self._dump_results(result.result), color=C.COLOR_DEBUG)
