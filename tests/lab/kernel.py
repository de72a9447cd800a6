"""The system calls that the lab needs and Python's standard library lacks (os.setns and os.unshare came with 3.12)."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid
_LIBC = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def leave_network() -> None:
    """Give this process a new, empty network namespace."""
    _checked(_LIBC.unshare(_CLONE_NEWNET), "unshare")


def enter_network(path: str | Path) -> None:
    """Move this process into the network namespace that a path below /proc names."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_LIBC.setns(descriptor, _CLONE_NEWNET), f"setns {path}")
    finally:
        os.close(descriptor)


def die_with_parent(parent: int, number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent ends, however that ends."""
    _checked(_LIBC.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0), "prctl")
    if os.getppid() != parent:  # it ended before we had asked
        os.kill(os.getpid(), number)


def claim(descriptor: int, byte: int) -> None:
    """Lock one byte of a file for as long as this process lives; BlockingIOError where another has it."""
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)


def claimant(path: Path, byte: int) -> int | None:
    """The process that has claimed the byte. The kernel says it, so no process id can be out of date."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        kind, *_, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else pid
