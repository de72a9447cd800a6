"""What every benchmark shares: the cost of a process, and a dated JSON file of the results beside the machine's."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

MIB = 1 << 20


class Usage(NamedTuple):
    """What a process has used: CPU seconds (user and system), and its largest resident size in bytes."""

    cpu_s: float
    rss_bytes: int


def usage(pid: int) -> Usage:
    """Read a running process's usage (proc(5)); raises FileNotFoundError once it has ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), int(status["VmHWM"].split()[0]) * 1024)


def family(pid: int) -> Iterator[int]:
    """A process and all below it, as far as they still run."""
    yield pid
    try:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from family(int(child))
    except OSError:
        return


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds of processes; one that has ended counts 0."""
    used = 0.0
    for pid in pids:
        try:
            used += usage(pid).cpu_s
        except (OSError, KeyError):
            continue
    return used


def result(name: str, events: int, seconds: float, cpu_s: float, rss_bytes: int, **more: Any) -> dict[str, Any]:
    """One measured candidate: events/s, CPU microseconds an event, resident MiB, and what else matters."""
    return {
        "name": name,
        "events": events,
        "seconds": round(seconds, 2),
        "events_per_s": round(events / seconds),
        "cpu_us_per_event": round(cpu_s / events * 1e6, 1),
        "rss_mib": round(rss_bytes / MIB),
        **more,
    }


def machine() -> dict[str, Any]:
    """Describe the machine without naming it: CPU, cores usable, memory, load before the run, kernel, Python."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(memory) // 1024,
        "load_1m": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def write(
    directory: Path,
    benchmark: str,
    described: Mapping[str, Any],
    parameters: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
) -> Path:
    """Write ``<benchmark>-<UTC time>.json`` into the directory and return its path.

    ``described`` is what ``machine`` gave before the run; the results of one run stand side by side.
    """
    now = datetime.now(UTC)
    document = {
        "benchmark": benchmark,
        "date": now.isoformat(timespec="seconds"),
        "machine": described,
        "parameters": parameters,
        "results": list(results),
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{benchmark}-{now:%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path
