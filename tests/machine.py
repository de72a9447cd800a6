"""What a lab could leave behind on the machine: a snapshot to compare before and after."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

KINDS = "cgroup ipc mnt net pid uts".split()
# Counters and measurements below /proc/sys that change by themselves; the rest are settings.
CHANGING = re.compile(
    r"kernel/(random/|pty/nr|ns_last_pid|sched_|perf_event_max_sample_rate|keys/)|fs/(dentry-state|file-nr|inode-|aio-nr|quota/)"
    r"|vm/(stat_refresh|compact_memory|drop_caches)|fs/binfmt_misc/|net/.*(conntrack_count|flush|max_newidle)"
)

Snapshot = dict[str, set[str]]


def snapshot() -> Snapshot:
    """Mounts, namespaces, control groups, processes of labs, network devices, addresses, routes, packet filter and kernel settings."""
    return {
        "mounts": set(Path("/proc/1/mounts").read_text().splitlines()),
        "namespaces": {f"{kind} {inode}" for pid in _processes() for kind, inode in _namespaces(pid)},
        "named network namespaces": {path.name for path in Path("/run/netns").glob("*")},
        "control groups": {folder for folder, _, _ in os.walk("/sys/fs/cgroup") if "gridstead-lab" in folder},  # logins make others
        "processes": {command for pid in _processes() if "tests/lab/" in (command := _command(pid)) and "pytest" not in command},
        "devices": _lines("ip", "-o", "link") | _lines("ip", "-o", "address"),
        "routes": _lines("ip", "route", "show", "table", "all"),
        "packet filter": _lines("nft", "list", "ruleset"),
        "kernel settings": set(_settings()),
    }


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """What is there now that was not, and the other way round."""
    return [
        f"{kind}: {sign} {entry}"
        for kind in before
        for sign, entries in (("+", after[kind] - before[kind]), ("-", before[kind] - after[kind]))
        for entry in sorted(entries)
        if not (kind == "namespaces" and sign == "-")  # another's process may have ended meanwhile
    ]


def _processes() -> Iterator[int]:
    yield from (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _namespaces(pid: int) -> Iterator[tuple[str, str]]:
    for kind in KINDS:
        with suppress(OSError):
            yield kind, os.readlink(f"/proc/{pid}/ns/{kind}")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _lines(*command: str) -> set[str]:
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {re.sub(r"(valid_lft|preferred_lft|expires) \w+", "", line) for line in output.splitlines()}


def _settings() -> Iterator[str]:
    root = Path("/proc/sys")
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder, name)
            if not CHANGING.search(str(path.relative_to(root))):
                with suppress(OSError):  # some can only be written
                    yield f"{path} = {path.read_text(errors='replace').strip()}"
