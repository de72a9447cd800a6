"""Requests to storage, put together from what a JVM's flight recorder saw of its sockets.

A request is what one thread writes to a server, and then reads from it until it writes again. So it is the same for an
object store (one HTTP request) and for HDFS (one operation of a DataNode, or a stretch of a stream of packets), and
needs no cooperation of either's client.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

READ: Final = "jdk.SocketRead"
WRITE: Final = "jdk.SocketWrite"
PERCENTILES: Final = (50, 95, 99, 100)

_EPOCH: Final = dt.datetime(1970, 1, 1)
_DURATION = re.compile(r"PT(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)(?:\.(\d+))?S)?")


@dataclass(frozen=True, order=True)
class Transfer:
    """One call of a socket: when it began (ns since the epoch), how long it took (ns), and how much went through."""

    begin_ns: int
    took_ns: int
    thread: int
    server: tuple[str, int]
    reads: bool
    bytes: int


@dataclass(frozen=True)
class Request:
    """One request: when it began, when its first byte and when its last came (ns), calls of read, and bytes read."""

    begin_ns: int
    first_ns: int
    end_ns: int
    reads: int
    bytes: int

    @property
    def first_byte_ms(self) -> float:
        """The time to its first byte."""
        return (self.first_ns - self.begin_ns) / 1e6

    @property
    def took_ms(self) -> float:
        """The time to its last byte."""
        return (self.end_ns - self.begin_ns) / 1e6


def time_ns(text: str) -> int:
    """An ISO 8601 time with any offset and up to nine decimals, in ns since the epoch."""
    whole, _, rest = text.partition(".")
    match = re.fullmatch(r"(\d*)(Z|[+-]\d\d:\d\d)", rest) if rest else re.search(r"()(Z|[+-]\d\d:\d\d)$", whole)
    if match is None:
        raise ValueError(f"not a time: {text!r}")
    if not rest:
        whole = whole[: -len(match[2])]
    offset_s = 0
    if match[2] != "Z":
        hours, minutes = match[2][1:].split(":")
        offset_s = (int(hours) * 3600 + int(minutes) * 60) * (-1 if match[2][0] == "-" else 1)
    seconds = (dt.datetime.fromisoformat(whole) - _EPOCH) // dt.timedelta(seconds=1) - offset_s
    return seconds * 10**9 + int(match[1].ljust(9, "0") or 0)


def duration_ns(text: str) -> int:
    """An ISO 8601 duration of hours, minutes and seconds, in ns."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"not a duration: {text!r}")
    hours, minutes, seconds = (int(part or 0) for part in match.groups()[:3])
    return ((hours * 60 + minutes) * 60 + seconds) * 10**9 + int((match[4] or "").ljust(9, "0"))


def transfers(document: Mapping[str, Any], servers: Iterable[tuple[str, int]]) -> list[Transfer]:
    """The transfers from and to these servers (name or address, port), of what ``jfr print --json`` printed."""
    wanted = set(servers)
    found = []
    for event in document["recording"]["events"]:
        values = event["values"]
        server = (values["address"] or values["host"], values["port"])
        if server in wanted or (values["host"], values["port"]) in wanted:
            reads = event["type"] == READ
            amount = int(values["bytesRead" if reads else "bytesWritten"])
            thread = int(values["eventThread"]["javaThreadId"])
            begin, took = time_ns(values["startTime"]), duration_ns(values["duration"])
            found.append(Transfer(begin, took, thread, server, reads, amount))
    return sorted(found)


def requests(found: Iterable[Transfer]) -> list[Request]:
    """Put transfers, in the order of their beginning, together into requests; those without an answer are left out."""
    begun: dict[tuple[int, tuple[str, int]], int] = {}
    running: dict[tuple[int, tuple[str, int]], Request] = {}
    done: list[Request] = []
    for transfer in found:
        key = (transfer.thread, transfer.server)
        if not transfer.reads:
            if key in running:
                done.append(running.pop(key))
            begun.setdefault(key, transfer.begin_ns)
        elif transfer.bytes > 0:
            end = transfer.begin_ns + transfer.took_ns
            known = running.get(key)
            if known is None:
                running[key] = Request(begun.pop(key, transfer.begin_ns), end, end, 1, transfer.bytes)
            else:
                reads, amount = known.reads + 1, known.bytes + transfer.bytes
                running[key] = Request(known.begin_ns, known.first_ns, end, reads, amount)
    return sorted([*done, *running.values()], key=lambda request: request.begin_ns)


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of the values that so many percent of them do not exceed. Raises ValueError where there is none."""
    if not values:
        raise ValueError("a percentile of nothing")
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def percentiles(values: Sequence[float], which: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """Percentiles by name; empty where there are no values."""
    return {f"p{percent:g}": round(percentile(values, percent), 3) for percent in which} if values else {}
