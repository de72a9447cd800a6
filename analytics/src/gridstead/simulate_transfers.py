"""Seeded records of FTS and of Rucio, with their truth: the exact number of distinct events and of the bytes moved.

Three in a hundred attempts fail; the same arguments give the same output on every machine. No wall clock is read.
"""

from __future__ import annotations

import heapq
import random
import uuid
from collections.abc import Iterator
from typing import Any

HOUR_MS = 3_600_000
_SITES = ("SITE-A", "SITE-B", "SITE-C", "SITE-D")
_SCOPES = ("mc20", "data25", "user.user07")
_FAILED = 0.03


class TransferSimulation:
    """Iterator over records in the order of their arrival; the way of one source is in :meth:`_record`.

    ``events`` distinct events end within ``[start_ms, start_ms + span_s]`` (ms since epoch UTC, s). Of them the
    fraction ``duplicates`` comes twice, ``late`` comes up to six hours late. ``distinct`` is the number of distinct
    events, ``bytes`` what those made so far moved, ``records`` counts what was yielded. Raises ValueError for a
    negative number of events or a span below one second.
    """

    def __init__(
        self, seed: int, events: int, start_ms: int, span_s: int, *, duplicates: float = 0.05, late: float = 0.02
    ) -> None:
        """Prepare; nothing is made before the iteration."""
        if events < 0 or span_s < 1:
            raise ValueError("events must be 0 or more, and span_s at least 1")
        self.distinct = events
        self.records = 0
        self.bytes = 0
        self._random = random.Random(f"{type(self).__name__}-{seed}")
        self._start_ms, self._span_ms = start_ms, span_s * 1000
        self._duplicates, self._late = duplicates, late
        self._stream = self._arrivals()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The iterator itself."""
        return self

    def __next__(self) -> dict[str, Any]:
        """The next record to arrive."""
        record = next(self._stream)
        self.records += 1
        return record

    def _arrivals(self) -> Iterator[dict[str, Any]]:
        draw = self._random
        waiting: list[tuple[int, int, dict[str, Any]]] = []
        for number in range(self.distinct):
            end = self._start_ms + self._span_ms * (number + 1) // self.distinct
            record = self._record(number, end)
            arrival = end + (draw.randint(60_000, 6 * HOUR_MS) if draw.random() < self._late else 0)
            heapq.heappush(waiting, (arrival, 2 * number, record))
            if draw.random() < self._duplicates:
                heapq.heappush(waiting, (arrival + draw.choice((0, 30_000, HOUR_MS)), 2 * number + 1, record))
            while waiting and waiting[0][0] <= end:
                yield heapq.heappop(waiting)[2]
        while waiting:
            yield heapq.heappop(waiting)[2]

    def _record(self, number: int, end_ms: int) -> dict[str, Any]:
        """Make the record of one event, and add what it moved to ``bytes``."""
        raise NotImplementedError

    def _draw_transfer(self) -> tuple[int, int, bool]:
        """Size in bytes, length in ms, and whether it failed."""
        draw = self._random
        return int(draw.lognormvariate(20, 1.5)) + 1, int(draw.lognormvariate(10, 1.5)) + 1, draw.random() < _FAILED


class FtsSimulation(TransferSimulation):
    """Completion messages of FTS, bare or enveloped; an attempt that fails has moved a part of its bytes."""

    def _record(self, number: int, end_ms: int) -> dict[str, Any]:
        draw = self._random
        size, length, failed = self._draw_transfer()
        moved = draw.randrange(size) if failed else size
        self.bytes += moved
        source, destination = (f"se.{site.lower()}.example" for site in draw.sample(_SITES, 2))
        scope, name, job = draw.choice(_SCOPES), f"file-{number // 3:06d}.root", uuid.UUID(int=draw.getrandbits(128))
        record = {
            "tr_id": f"2025-01-01-0000__{source}__{destination}__{number}__{job}",
            "job_id": str(job),
            "file_id": number,
            "vo": "atlas",
            "src_url": f"davs://{source}:443/{scope}/{name}",
            "dst_url": f"davs://{destination}:443/{scope}/{name}",
            "src_hostname": source,
            "dst_hostname": destination,
            "timestamp_tr_st": end_ms - length,
            "timestamp_tr_comp": 0 if failed else end_ms,
            "tr_timestamp_start": end_ms - length - 1500,
            "tr_timestamp_complete": end_ms,
            "tr_bt_transfered": moved,
            "f_size": size,
            "t_final_transfer_state": "Error" if failed else "Ok",
            "user_dn": f"/DC=example/CN=user{draw.randint(1, 20):02d}",
            "activity": draw.choice(("Production Output", "User Subscriptions")),
            "file_metadata": {"scope": scope, "name": name},
        }
        return {"data": record, "metadata": {"producer": "fts", "type": "complete"}} if draw.random() < 0.5 else record


class RucioSimulation(TransferSimulation):
    """Traces of downloads, uploads and touches; a few name several storage elements."""

    def _record(self, number: int, end_ms: int) -> dict[str, Any]:
        draw = self._random
        size, length, failed = self._draw_transfer()
        kind = draw.choice(("download", "get_sm", "get_sm_a", "upload", "put_sm", "touch"))
        self.bytes += 0 if failed or kind == "touch" else size
        user = f"user{draw.randint(1, 20):02d}"
        site = draw.choice(_SITES)
        elements = draw.sample(_SITES, 2 if draw.random() < 0.05 else 1)
        return {
            "eventType": kind,
            "eventVersion": "37.0.0",
            "uuid": uuid.UUID(int=draw.getrandbits(128)).hex,
            "scope": draw.choice(_SCOPES),
            "filename": f"file-{number // 3:06d}.root",
            "filesize": size,
            "remoteSite": ",".join(f"{element}_DATADISK" for element in elements),
            "localSite": site,
            "hostname": f"wn{draw.randint(1, 400):03d}.{site.lower()}.example",
            "transferStart": (end_ms - length) / 1000,
            "transferEnd": end_ms / 1000,
            "traceTimeentryUnix": end_ms / 1000 + 0.5,
            "clientState": "FAILED" if failed else "DONE",
            "account": user,
            "usrdn": f"/DC=example/CN={user}",
        }
