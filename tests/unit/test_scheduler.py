"""The scheduler runs real commands: when they are due, one at a time, and tells how they went."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from appliance_files import write_appliance
from gridstead.config import load
from gridstead.scheduler import Scheduler, Task, tasks


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def task(name: str, code: str, due: float, interval_s: float = 3600.0) -> Task:
    return Task(name, interval_s, lambda: python(code), due)


def wait_until_ran(scheduler: Scheduler, runs: int) -> None:
    deadline = time.monotonic() + 20
    while sum(one.runs for one in scheduler.tasks) < runs:
        assert time.monotonic() < deadline, "the tasks did not run"
        time.sleep(0.05)


def test_what_is_due_runs_and_failures_are_told_and_tried_again(tmp_path: Path) -> None:
    now = time.time()
    good = task("good", f"open({str(tmp_path / 'good')!r}, 'a').write('x')", now)
    bad = task("bad", "import sys; print('the reason'); sys.exit(3)", now)
    later = task("later", "raise SystemExit(9)", now + 3600)
    scheduler = Scheduler([good, bad, later])
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    try:
        wait_until_ran(scheduler, 2)
    finally:
        scheduler.stop()
        thread.join(10)
    assert (tmp_path / "good").read_text() == "x"
    code, answer = scheduler.metrics()
    told = answer["tasks"]
    assert code == 200 and told["good"]["last"]["exit_code"] == 0 and told["good"]["failures"] == 0
    assert told["bad"]["last"]["exit_code"] == 3 and "the reason" in told["bad"]["last"]["error"]
    assert told["good"]["due"] == pytest.approx(now + 3600, abs=30)
    assert told["bad"]["due"] == pytest.approx(now + 360, abs=30), "a failed task is tried again sooner"
    assert told["later"]["runs"] == 0


def test_a_stop_ends_the_task_under_way() -> None:
    scheduler = Scheduler([task("long", "import time; time.sleep(600)", time.time())])
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not scheduler.running:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)  # until the child is there; what is tried is that the stop reaches it
    scheduler.stop()
    thread.join(10)
    assert not thread.is_alive() and scheduler.tasks[0].last["exit_code"] != 0


@pytest.mark.parametrize(
    ("section", "scheduled"),
    [
        ("", ["archive compact"]),
        ("[archive]\nretention_days = 30", ["archive compact", "archive retain"]),
        ("[elasticsearch]\nretention_months = 13", ["archive compact", "merge retain"]),
    ],
)
def test_what_is_configured_is_scheduled(tmp_path: Path, section: str, scheduled: list[str]) -> None:
    file = write_appliance(tmp_path)
    name = section.partition("\n")[0]
    text = file.read_text()
    file.write_text(text.replace(name, section) if name and name in text else f"{text}\n{section}\n")
    found = tasks(load(file), 1000.0)
    assert [" ".join(task.command()[-2:]) for task in found if task.name != "batch"] == scheduled
    assert found[0].name == "batch" and len({task.name for task in found}) == len(found)
    assert all(task.due <= 1000.0 + 3600 for task in found)
