"""Ansible's own output, but a task that waits for a server says so, and the slowest tasks are told at the end."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from ansible import constants as C
from ansible.plugins.callback.default import CallbackModule as Default

DOCUMENTATION = """
name: gridstead
type: stdout
short_description: The default output, with a quiet word for a task that is tried again, and what took long
description:
  - A server needs seconds to be ready after its start, and tasks wait for it by trying again.
  - The first try of such a task, and every tenth, is told as waiting. A task that fails in the end is told as ever.
  - Last comes how long the run took, and which tasks took the most of it. All hosts do a task at the same time, so a task takes as long as
    its slowest host; tasks of the same name, as those that start a service, are counted together.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - C(stdout_callback = gridstead) in ansible.cfg
"""

EVERY = 10
SLOWEST = 5  # so many tasks are told
SLOW_S = 5.0  # that took so long


def said(seconds: float) -> str:
    """Write a time: 3 min 25 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class CallbackModule(Default):
    """The default callback but for the lines of tasks with ``until`` and the times at the end."""

    CALLBACK_NAME = "gridstead"

    def __init__(self) -> None:
        """Begin to count the time."""
        super().__init__()
        self._began = self._since = time.monotonic()
        self._task = ""
        self._took: Counter[str] = Counter()

    def _turn(self, name: str) -> None:
        """Account for the task that is over when another begins."""
        now = time.monotonic()
        self._took[self._task] += now - self._since
        self._task, self._since = name, now

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Take the time."""
        self._turn(task.get_name())
        super().v2_playbook_on_task_start(task, is_conditional)

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Take the time."""
        self._turn(task.get_name())
        super().v2_playbook_on_handler_task_start(task)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Tell after the recap how long it took, and the slowest tasks."""
        self._turn("")
        super().v2_playbook_on_stats(stats)
        self._display.display(f"It took {said(self._since - self._began)}.")
        slow = [(name, seconds) for name, seconds in self._took.most_common(SLOWEST) if name and seconds >= SLOW_S]
        for name, seconds in slow:
            self._display.display(f"{said(seconds):>12}  {name}")

    def v2_runner_retry(self, result: Any) -> None:
        """Tell on which host what is waited for, and how often it was tried."""
        tries = result.result["attempts"]
        if tries % EVERY == 1:
            line = f"waiting: [{self.host_label(result)}]: {result.task_name or result.task} (try {tries})"
            self._display.display(line, color=C.COLOR_DEBUG)
        if self._run_is_verbose(result, verbosity=2):
            self._display.display(self._dump_results(result.result), color=C.COLOR_DEBUG)
