"""Seeded generator of realistic input, with its truth: the exact number of distinct events it made.

Two kinds: :class:`simulate` yields producers' JSON records (file-access events over STOMP), :class:`simulate_packets`
yields XRootD f-stream packets. The same arguments give the same output on every machine. No wall clock is read.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Iterator
from typing import Any

from gridstead.xrootd import (
    MAX_PACKET_BYTES,
    CloseRecord,
    DisconnectRecord,
    OpenRecord,
    Operations,
    Record,
    TimeRecord,
    TransferRecord,
    encode_packet,
    encode_record,
)

HOUR_MS = 3_600_000
DAY_MS = 86_400_000
_VOS = ("cms", "atlas", "lhcb", "alice", "dune", None, "unknown", "")
_DOMAINS = ("site-a.example", "site-b.example", "site-c.example", "site-d.example", "site-e.example", None)
_DATASETS = ("mc/MiniAOD", "mc/NanoAOD", "data/RAW", "data/AOD", "user/ntuples", "temp/skim")


class AccessSimulation:
    """Iterator over producers' records, in the order of their arrival.

    ``events`` distinct events end within ``[start_ms, start_ms + span_s]`` (ms since epoch UTC, s) and come, some of
    them several times, as bare or enveloped JSON objects with times in s or ms. Fractions (0 to 1) of the events:

    ``duplicates`` come again (same content: some with the same id, some with a new id, some in another form), ``late``
    come up to six hours late, ``future`` have a clock far ahead (about a year), ``missing_open`` have start = end or no
    start, ``idle`` moved no bytes, ``written`` were writes. ``invalid`` adds that fraction of records which no
    collector may accept.

    ``distinct`` is the number of distinct events (it equals ``events``); ``records`` and ``refused`` count what was
    yielded so far, of it the invalid ones. Raises ValueError for a negative number of events or a span below one
    second.
    """

    def __init__(
        self,
        seed: int,
        events: int,
        start_ms: int,
        span_s: int,
        *,
        duplicates: float = 0.05,
        late: float = 0.02,
        future: float = 0.002,
        missing_open: float = 0.03,
        idle: float = 0.05,
        written: float = 0.2,
        invalid: float = 0.0,
    ) -> None:
        """Prepare; nothing is made before the iteration."""
        if events < 0 or span_s < 1:
            raise ValueError("events must be 0 or more, and span_s at least 1")
        self.distinct = events
        self.records = 0
        self.refused = 0
        self._start_ms = start_ms
        self._span_ms = span_s * 1000
        self._random = random.Random(seed)
        self._fractions = {
            "duplicates": duplicates,
            "late": late,
            "future": future,
            "missing_open": missing_open,
            "idle": idle,
            "written": written,
            "invalid": invalid,
        }
        self._files = [self._file(number) for number in range(max(10, min(events // 20, 5000)))]
        self._stream = self._arrivals()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The iterator itself."""
        return self

    def __next__(self) -> dict[str, Any]:
        """The next record to arrive."""
        record, valid = next(self._stream)
        self.records += 1
        self.refused += not valid
        return record

    def _happens(self, what: str) -> bool:
        return self._random.random() < self._fractions[what]

    def _file(self, number: int) -> tuple[str, int]:
        dataset = self._random.choice(_DATASETS)
        return f"/store/{dataset}/{number // 100:04d}/file-{number:06d}.root", int(
            self._random.lognormvariate(20, 1.5)
        ) + 1

    def _arrivals(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """Merge on-time, late and repeated records by arrival; ends are made in order, so a heap of the delayed
        suffices.
        """
        waiting: list[tuple[int, int, dict[str, Any], bool]] = []
        serial = 0
        seen: set[bytes] = set()
        for number in range(self.distinct):
            on_time = self._start_ms + self._span_ms * (number + 1) // max(self.distinct, 1)
            event = self._event(on_time)
            while not _is_new(event, seen):
                event = self._event(on_time)
            arrival = on_time + self._random.randint(0, 2000)
            if self._happens("late"):
                arrival += self._random.randint(60_000, 6 * HOUR_MS)
            copies = [(arrival, self._spell(event), True)]
            while self._happens("duplicates") and len(copies) < 4:
                arrival += self._random.choice((0, 500, 30_000, HOUR_MS))
                copies.append((arrival, self._again(event, copies[-1][1]), True))
            if self._happens("invalid"):
                copies.append((arrival, self._spoil(self._spell(event)), False))
            for at, record, valid in copies:
                serial += 1
                heapq.heappush(waiting, (at, serial, record, valid))
            while waiting and waiting[0][0] <= on_time:
                _, _, record, valid = heapq.heappop(waiting)
                yield record, valid
        while waiting:
            _, _, record, valid = heapq.heappop(waiting)
            yield record, valid

    def _event(self, end_ms: int) -> dict[str, Any]:
        draw = self._random
        lfn, size = self._files[min(int(draw.paretovariate(0.7)) - 1, 10**9) % len(self._files)]
        whole_seconds = draw.random() < 0.8
        if whole_seconds:
            end_ms -= end_ms % 1000
        length = min(int(draw.lognormvariate(5.5, 2.0) * 1000), 30 * HOUR_MS)
        start_ms = end_ms - (length - length % 1000 if whole_seconds else length)
        if self._happens("future"):
            ahead = 365 * DAY_MS + draw.randint(0, DAY_MS) // 1000 * 1000
            start_ms, end_ms = start_ms + ahead, end_ms + ahead
        read = write = 0
        if not self._happens("idle"):
            moved = size if draw.random() < 0.6 else draw.randint(1, size)
            read, write = (0, moved) if self._happens("written") else (moved, 0)
        missing = self._happens("missing_open")
        client_domain = draw.choice(_DOMAINS)
        server_domain = draw.choice(_DOMAINS)
        return {
            "lfn": lfn,
            "size": size,
            "start_ms": end_ms if missing else start_ms,
            "end_ms": end_ms,
            "missing": missing and draw.random() < 0.5,
            "whole_seconds": whole_seconds,
            "read": read,
            "write": write,
            "single": read if draw.random() < 0.7 else read // 2,
            "client": f"wn{draw.randint(1, 400):03d}" if draw.random() < 0.97 else None,
            "client_domain": client_domain,
            "server": f"disk{draw.randint(1, 40):02d}",
            "server_domain": server_domain,
            "user": f"user{draw.randint(1, 90):02d}",
            "vo": draw.choice(_VOS),
            "at_close": draw.random() < 0.3,
        }

    def _spell(self, event: dict[str, Any]) -> dict[str, Any]:
        """Write an event as one of its producers would."""
        draw = self._random
        in_seconds = event["whole_seconds"] and draw.random() < 0.5
        unit = 1000 if in_seconds else 1
        start: int | None = event["start_ms"] // unit
        if event["missing"]:
            start = draw.choice((None, 0))
        data: dict[str, Any] = {
            "unique_id": f"{draw.getrandbits(64):016x}-{draw.getrandbits(24):06x}",
            "file_lfn": event["lfn"],
            "file_size": event["size"],
            "start_time": start,
            "end_time": event["end_ms"] // unit,
            "read_bytes": 0 if event["at_close"] else event["read"],
            "read_bytes_at_close": event["read"],
            "read_single_bytes": event["single"],
            "read_vector_bytes": event["read"] - event["single"],
            "read_average": event["read"] / 7 if draw.random() < 0.5 else event["read"] // 7,
            "write_bytes": event["write"],
            "write_bytes_at_close": event["write"],
            "client_host": event["client"] or draw.choice((None, "", "unknown")),
            "client_domain": event["client_domain"] or draw.choice((None, "", "unknown")),
            "server_host": event["server"],
            "server_domain": event["server_domain"] or draw.choice((None, "", "unknown")),
            "server_username": "xrootd",
            "user": event["user"],
            "user_dn": f"/DC=example/CN={event['user']}",
            "vo": event["vo"],
            "app_info": draw.choice((None, "", "job-runner/1.2")),
        }
        if draw.random() < 0.5:
            metadata = {
                "producer": "monitoring",
                "type": "access",
                "timestamp": event["end_ms"],
                "_id": data["unique_id"],
            }
            return {"data": data, "metadata": metadata}
        return data

    def _again(self, event: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
        if self._random.random() < 0.5:
            return before
        record = self._spell(event)
        if self._random.random() < 0.5:
            inner, old = record.get("data", record), before.get("data", before)
            inner["unique_id"] = old["unique_id"]
        return record

    def _spoil(self, record: dict[str, Any]) -> dict[str, Any]:
        data = record.get("data", record)
        field, value = self._random.choice(
            (("end_time", None), ("read_bytes", -1), ("file_size", "large"), ("file_lfn", 17), ("write_bytes", 2**80))
        )
        data[field] = value
        return record


def _is_new(event: dict[str, Any], seen: set[bytes]) -> bool:
    """Whether no earlier event has this identity (independent of ``events.event_id``, but of the same content)."""
    who = event["client"] or f"user:{event['user']}"
    content = (event["server"], event["lfn"], who, event["start_ms"], event["end_ms"], event["read"], event["write"])
    digest = hashlib.blake2b(repr(content).encode(), digest_size=12).digest()
    if digest in seen:
        return False
    seen.add(digest)
    return True


class PacketSimulation:
    """Iterator over f-stream packets of ``servers`` servers, in time order, with ``files`` files opened and closed in
    all.

    Files stay open from seconds to hours (within ``[start_ms, start_ms + span_s]``); each packet covers a window of a
    server and has at most ``max_packet_bytes``. Of the files, the fraction ``missing_open`` has a close without an
    open; ``repeat`` is the fraction of packets that come twice.

    ``distinct`` is the number of closes, each of which is one event; ``missing`` how many of them have no open;
    ``bytes`` what was read and written in all. ``packets`` counts what was yielded so far.
    """

    def __init__(
        self,
        seed: int,
        files: int,
        start_ms: int,
        span_s: int,
        *,
        servers: int = 3,
        window_s: int = 30,
        max_packet_bytes: int = MAX_PACKET_BYTES,
        missing_open: float = 0.02,
        repeat: float = 0.0,
    ) -> None:
        """Draw all files; packets are made during the iteration. Raises ValueError for arguments that make no sense."""
        if files < 0 or span_s < 1 or servers < 1 or window_s < 1 or not 1024 <= max_packet_bytes <= MAX_PACKET_BYTES:
            raise ValueError(
                "files must be 0 or more; span_s, servers and window_s at least 1; max_packet_bytes from 1024 to "
                f"{MAX_PACKET_BYTES}"
            )
        draw = random.Random(seed)
        self._random = draw
        self._repeat = repeat
        self._max_packet_bytes = max_packet_bytes
        self._window_s = window_s
        self.distinct = files
        self.missing = 0
        self.bytes = 0
        self.packets = 0
        start_s = start_ms // 1000
        self._servers = [(start_s - draw.randint(60, 10**6), draw.getrandbits(47)) for _ in range(servers)]
        # (window, server, order in the packet, record): sorted, these are the packets.
        self._records: list[tuple[int, int, int, int, Record]] = []
        for number in range(files):
            server = draw.randrange(servers)
            opened = draw.randint(0, span_s - 1)
            closed = min(span_s - 1, opened + int(draw.lognormvariate(5, 2)))
            self._draw_file(number, server, start_s, opened // window_s, closed // window_s, missing_open)
        self._records.sort(key=lambda item: item[:4])
        self._start_s = start_s
        self._stream = self._packets()

    def __iter__(self) -> Iterator[bytes]:
        """The iterator itself."""
        return self

    def __next__(self) -> bytes:
        """The next packet to be sent."""
        packet = next(self._stream)
        self.packets += 1
        return packet

    def _draw_file(self, number: int, server: int, start_s: int, opened: int, closed: int, missing_open: float) -> None:
        draw = self._random
        file_id = number + 1
        size = int(draw.lognormvariate(18, 2)) + 1
        written = draw.random() < 0.2
        moved = draw.choice((0, size, size, draw.randint(0, size)))
        vector = 0 if written else draw.choice((0, moved // 2))
        lfn = f"/store/{draw.choice(_DATASETS)}/{number // 1000:04d}/{draw.getrandbits(64):016x}.root"
        if draw.random() < missing_open:
            self.missing += 1
        else:
            record = OpenRecord(file_id, 0 if written else size, draw.randint(1, 5000), lfn, written)
            self._records.append((opened, server, 0, number, record))
        if closed - opened > 3:
            half = TransferRecord(file_id, 0 if written else moved // 2, 0, moved // 2 if written else 0)
            self._records.append(((opened + closed) // 2, server, 1, number, half))
        operations = None
        if draw.random() < 0.8:
            count = 1 if moved else 0
            request = min(moved, 2**31 - 1)
            operations = Operations(count, 0, 0, 0, 0, 0, request, request, 0, 0, 0, 0)
        read = 0 if written else moved - vector
        close = CloseRecord(file_id, read, vector, moved if written else 0, draw.random() < 0.02, operations)
        self._records.append((closed, server, 2, number, close))
        if draw.random() < 0.3:
            self._records.append((closed, server, 3, number, DisconnectRecord(draw.randint(1, 5000))))
        self.bytes += moved

    def _packets(self) -> Iterator[bytes]:
        sequence = [0] * len(self._servers)
        room = self._max_packet_bytes - 8 - 24
        at = 0
        while at < len(self._records):
            window, server = self._records[at][:2]
            chosen: list[Record] = []
            size = 0
            while at < len(self._records) and self._records[at][:2] == (window, server):
                record = self._records[at][4]
                size += len(encode_record(record))
                if size > room:
                    break
                chosen.append(record)
                at += 1
            server_start, server_id = self._servers[server]
            begin = self._start_s + window * self._window_s
            transfers = sum(isinstance(record, TransferRecord) for record in chosen)
            time = TimeRecord(begin, begin + self._window_s, server_id, transfers, len(chosen), 1)
            packet = encode_packet([time, *chosen], server_start_s=server_start, sequence=sequence[server])
            sequence[server] += 1
            yield packet
            if self._random.random() < self._repeat:
                yield packet


simulate = AccessSimulation
simulate_packets = PacketSimulation
