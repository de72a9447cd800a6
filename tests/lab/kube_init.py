"""PID 1 of a node: `python3 kube_init.py FILE` does the steps of a file one after the other, keeps daemons running, and collects orphans.

A step is {"run": [command…], "tries": n} or {"start": name, "command": [command…]}. What a daemon says goes to /var/log/NAME.log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RETRY_S = 0.2
AGAIN_S = 1.0
PATIENCE_S = 10
PATH = "/opt/kube:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENDS = {signal.SIGRTMIN + 4: signal.SIGINT, signal.SIGRTMIN + 5: signal.SIGHUP}  # halt and reboot, asked for and reported as by systemd


def leave_root_group() -> None:
    """Go into a group of our own: a group whose children have controllers holds no process itself."""
    for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        if (root / "cgroup.procs").exists():
            (root / "system").mkdir(exist_ok=True)
            (root / "system/cgroup.procs").write_text("1")


def start(name: str, command: list[str]) -> int:
    """Start a daemon."""
    log = f"/var/log/{name}.log"
    files = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
    ]
    return os.posix_spawnp(command[0], command, os.environ, file_actions=[*files, (os.POSIX_SPAWN_DUP2, 1, 2)], setsid=True)


def attempt(command: list[str], tries: int) -> None:
    """Run a command until it succeeds."""
    for _ in range(tries):
        if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode == 0:
            return
        time.sleep(RETRY_S)
    print(f"gave up after {tries} tries: {' '.join(command)}", flush=True)


def end(number: int, _frame: object) -> None:
    """End what runs, first by asking, and with it the node."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.kill(-1, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and any(entry.isdigit() and entry != "1" for entry in os.listdir("/proc")):
        time.sleep(0.1)
    os._exit(128 + ENDS[number])


def main() -> None:
    """Do the steps, then wait for ever."""
    leave_root_group()
    os.environ["PATH"] = PATH
    for number in ENDS:
        signal.signal(number, end)
    daemons: dict[int, tuple[str, list[str]]] = {}
    for step in json.loads(Path(sys.argv[1]).read_text()):
        if "start" in step:
            daemons[start(step["start"], step["command"])] = (step["start"], step["command"])
        else:
            attempt(step["run"], step.get("tries", 1))
    print("every daemon was started", flush=True)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid in daemons:
            name, command = daemons.pop(pid)
            print(f"{name} ended with {os.waitstatus_to_exitcode(status)}", flush=True)
            time.sleep(AGAIN_S)
            daemons[start(name, command)] = (name, command)


if __name__ == "__main__":
    main()
