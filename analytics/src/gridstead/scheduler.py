"""``python -m gridstead.scheduler --config FILE``: run batch, compaction and retention at their intervals.

A supervised loop, the same under every supervisor. Each task is a command of ``gridstead``, one at a time; that no two
batches run at once, also from elsewhere, is the control record's matter. A task that fails is tried again after a
tenth of its interval.
"""

from __future__ import annotations

import datetime as dt
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gridstead.collector.status import Answer
from gridstead.config import Config
from gridstead.daemon import work

RETRY_SHARE = 10
FIRST_S = 3600
KEPT_LINES = 20

log = logging.getLogger("gridstead.scheduler")


@dataclass
class Task:
    """One task: its command, made anew for each run, and how it went. Times in s since the epoch."""

    name: str
    interval_s: float
    command: Callable[[], Sequence[str]]
    due: float
    runs: int = 0
    failures: int = 0
    last: dict[str, Any] = field(default_factory=dict)

    def run(self, execute: Callable[[Sequence[str]], tuple[int, str]], now: Callable[[], float] = time.time) -> None:
        """Run it, note how it went, and when it is due again."""
        began = now()
        command = self.command()
        log.info("%s begins: %s", self.name, " ".join(command))
        code, tail = execute(command)
        self.runs += 1
        self.last = {"began": began, "seconds": round(now() - began, 1), "exit_code": code}
        if code == 0:
            log.info("%s done in %.0f s", self.name, self.last["seconds"])
            self.due = began + self.interval_s
        else:
            self.failures += 1
            self.last["error"] = tail
            log.error("%s failed with exit code %d: %s", self.name, code, tail)
            self.due = now() + self.interval_s / RETRY_SHARE


def tasks(config: Config, now: float) -> list[Task]:
    """The tasks that the configuration asks for; each is due one interval from now, daily ones within the first hour.

    Else a scheduler that is begun anew every day, on this gateway or the other, would never come to them.
    """
    schedule = config.schedule
    gridstead = [sys.executable, "-m", "gridstead.cli", "--config", str(config.path), "--json"]

    def batch() -> list[str]:
        today = dt.datetime.now(dt.UTC).date()
        first = today - dt.timedelta(days=schedule.batch_days - 1)
        return [*gridstead, "batch", "run", "--from", first.isoformat(), "--to", today.isoformat()]

    archive, daily = [*gridstead, "archive"], schedule.compact_interval_s
    gives_up = config.archive.retention_days or config.archive.malformed_retention_days
    forgets = config.elasticsearch.retention_months
    wanted = [
        Task("batch", schedule.batch_interval_s, batch, now + schedule.batch_interval_s),
        Task("compact", daily, lambda: [*archive, "compact"], now + min(daily, FIRST_S)),
        Task("retain", daily if gives_up else 0, lambda: [*archive, "retain"], now + min(daily, FIRST_S)),
        Task("forget", daily if forgets else 0, lambda: [*gridstead, "merge", "retain"], now + min(daily, FIRST_S)),
    ]
    return [task for task in wanted if task.interval_s > 0]


class Scheduler:
    """Runs what is due, one task at a time, until stopped."""

    def __init__(self, wanted: list[Task]) -> None:
        """Begin with these tasks."""
        self.tasks = wanted
        self.running = ""
        self._stop = threading.Event()
        self._child: subprocess.Popen[str] | None = None

    def stop(self) -> None:
        """End :meth:`run`; a task under way is told to end."""
        self._stop.set()
        child = self._child
        if child is not None:
            child.terminate()

    def run(self) -> None:
        """Work until :meth:`stop`."""
        log.info("scheduled: %s", ", ".join(f"{t.name} every {t.interval_s:.0f} s" for t in self.tasks) or "nothing")
        while not self._stop.wait(1.0):
            due = [task for task in self.tasks if task.due <= time.time()]
            if due:
                task = min(due, key=lambda t: t.due)
                self.running = task.name
                task.run(self.execute)
                self.running = ""

    def execute(self, command: Sequence[str]) -> tuple[int, str]:
        """Run a command; returns its exit code and the end of what it said."""
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as child:
            self._child = child
            lines: list[str] = []
            assert child.stdout is not None
            for line in child.stdout:
                lines = [*lines[-KEPT_LINES:], line.strip()]
            code = child.wait()
        self._child = None
        return code, " | ".join(line for line in lines[-3:] if line)

    def metrics(self) -> Answer:
        """Every task: when it is due (s since the epoch), how often it ran, how the last run went."""
        return 200, {
            "running": self.running,
            "tasks": {
                task.name: {"due": task.due, "interval_s": task.interval_s, "runs": task.runs,
                            "failures": task.failures, "last": task.last}
                for task in self.tasks
            },
        }  # fmt: skip

    def health(self) -> Answer:
        """200 while the loop runs; a failed task is in the metrics and in `gridstead doctor`."""
        return 200, {"status": "ok", "running": self.running}


def main() -> int:
    """Run the daemon; returns the exit code."""
    return work("scheduler", __doc__, "schedule", lambda config: Scheduler(tasks(config, time.time())))


if __name__ == "__main__":
    sys.exit(main())
