"""Control groups: a lab has one, each of its hosts one below it. What is in a group can be ended without knowing its process ids."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from errors import LabError


def hierarchy() -> Path:
    """Where this machine has mounted the unified hierarchy."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _device, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise LabError("this machine has not mounted cgroup2", "run the lab on a machine with a unified or hybrid cgroup hierarchy")


def former_hierarchies() -> list[Path]:
    """Where a machine with hybrid control groups has mounted the hierarchies of single controllers."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(where) for _device, where, kind, *_ in mounts if kind == "cgroup"]


class Group:
    """One control group, known by its path below the hierarchy."""

    def __init__(self, *names: str) -> None:
        """Name the group; it need not exist."""
        self.path = hierarchy().joinpath(*names)
        self._twins = [where.joinpath(*names) for where in former_hierarchies()]

    def create(self) -> None:
        """Create the group; what controllers its parent has, hosts below it have too."""
        self.path.mkdir(exist_ok=True)

    def create_twins(self) -> None:
        """Create its twins in the hierarchies of single controllers, for what manages these itself."""
        for twin in self._twins:
            for folder in (twin.parent, twin):
                folder.mkdir(exist_ok=True)
                for name in ("cpuset.cpus", "cpuset.mems"):  # empty in a new group, which then takes no process
                    if (folder / name).exists() and not (folder / name).read_text().strip():
                        (folder / name).write_text((folder.parent / name).read_text())

    def share_controllers(self) -> None:
        """Let the groups below this one limit what this one may limit; a group that does so holds no process itself."""
        for controller in (self.path / "cgroup.controllers").read_text().split():
            with suppress(OSError):  # some are not to be had below the root; a host does without
                (self.path / "cgroup.subtree_control").write_text(f"+{controller}")

    def take(self, pid: int) -> None:
        """Move a process into the group."""
        (self.path / "cgroup.procs").write_text(str(pid))
        for twin in self._twins:
            if twin.is_dir():
                (twin / "cgroup.procs").write_text(str(pid))

    def remove(self, timeout_s: float = 20) -> None:
        """Kill whatever is in the group and below, and remove it."""
        if self.path.is_dir():
            (self.path / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + timeout_s
        while self._remove_tree():
            if time.monotonic() > deadline:
                raise LabError(f"processes in {self.path} do not end after SIGKILL", f"look at them: cat {self.path}/cgroup.procs")
            time.sleep(0.02)

    def _remove_tree(self) -> bool:
        """Remove the directories, innermost first; return whether any is left because a process is still going away."""
        left = False
        for path in (self.path, *self._twins):
            for folder, _folders, _files in os.walk(path, topdown=False):
                try:
                    os.rmdir(folder)
                except FileNotFoundError:
                    continue
                except OSError:
                    left = True
        return left
