"""The normalised event: from producers' JSON or joined XRootD records, validated, with an identity made of its content.

Everything here is pure; time comes in as an argument (``received_ms``). What producers leave unknown stays ``None``.

Fields of an event, in the order of :data:`FIELDS` (units: times in ms since epoch UTC, sizes in bytes):
``event_id``, ``source`` ("access" or "xrootd"), ``producer_id``, ``server_host``, ``server_domain``,
``server_username``, ``client_host``, ``client_domain``, ``user``, ``user_dn``, ``vo``, ``app_info``, ``file_lfn``,
``file_ref``, ``file_size``, ``start_ms``, ``end_ms``, ``read_bytes``, ``read_single_bytes``, ``read_vector_bytes``,
``write_bytes``, ``open_missing``, ``clock_clamped``, ``received_ms``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from gridstead.xrootd import CloseRecord, OpenRecord, Packet, TimeRecord

Event = dict[str, Any]

FIELDS = (
    "event_id", "source", "producer_id", "server_host", "server_domain", "server_username", "client_host",
    "client_domain", "user", "user_dn", "vo", "app_info", "file_lfn", "file_ref", "file_size", "start_ms", "end_ms",
    "read_bytes", "read_single_bytes", "read_vector_bytes", "write_bytes", "open_missing", "clock_clamped",
    "received_ms",
)  # fmt: skip

STRING_FIELDS = (
    "server_host", "server_domain", "server_username", "client_host", "client_domain", "user", "user_dn", "vo",
    "app_info", "file_lfn",
)  # fmt: skip

INT64_MAX = 2**63 - 1
DAY_MS = 86_400_000
MS_THRESHOLD = 100_000_000_000
"""A time above this is in ms, otherwise in s (1e11 s would be the year 5138, 1e11 ms is 1973)."""
TIME_MAX_MS = 253_402_300_799_999
"""The last ms of the year 9999: later times cannot be a date in the archive."""


class ValidationError(ValueError):
    """An event that cannot be normalised: ``field`` names what is wrong ("" for the whole), ``reason`` says why."""

    def __init__(self, reason: str, field: str = "") -> None:
        """Say why, and of which field."""
        super().__init__(f"{field}: {reason}" if field else reason)
        self.reason = reason
        self.field = field


def parse_json(raw: bytes) -> dict[str, Any]:
    """Parse one JSON object from UTF-8 bytes.

    Raises :class:`ValidationError` for invalid UTF-8 or JSON, NaN and Infinity, numbers too long to read, nesting too
    deep, and for anything that is not an object.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValidationError(f"invalid UTF-8 at byte {error.start}") from error
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except ValidationError:
        raise
    except RecursionError as error:
        raise ValidationError("the JSON is nested too deeply") from error
    except ValueError as error:
        raise ValidationError(f"invalid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValidationError(f"a JSON object is expected, not {_type_name(value)}")
    return value


def _refuse_constant(name: str) -> float:
    raise ValidationError(f"{name} is not a JSON number")


def normalise_json(raw: bytes, received_ms: int) -> Event:
    """Parse and normalise one producer message; see :func:`parse_json` and :func:`normalise`."""
    return normalise(parse_json(raw), received_ms)


def normalise(record: Mapping[str, Any], received_ms: int) -> Event:
    """Normalise a producer's file-access record, bare or enveloped as ``{"data": ..., "metadata": ...}``.

    ``end_time`` is required; times in s or ms (above 1e11: ms). Without ``start_time`` (absent, null or 0) start = end
    and ``open_missing`` is true. ``read_bytes`` is the larger of ``read_bytes`` and ``read_bytes_at_close``, or single
    + vector where neither is given; ``write_bytes`` likewise. null, "" and "unknown" all become None. An end (or start)
    more than a day after ``received_ms`` is clamped to it, after the identity was taken. Raises
    :class:`ValidationError` naming the field.
    """
    data: Mapping[str, Any] = record
    envelope = record.get("data")
    if isinstance(envelope, Mapping):
        data = envelope
    elif "data" in record and ("metadata" in record or len(record) == 1):
        raise ValidationError(f"the envelope must hold an object, not {_type_name(envelope)}", "data")

    event: Event = dict.fromkeys(FIELDS)
    event["source"] = "access"
    event["producer_id"] = _producer_id(data.get("unique_id"))
    for name in STRING_FIELDS:
        event[name] = _string(data.get(name), name)
    event["file_size"] = _count(data.get("file_size"), "file_size")

    end = _time(data.get("end_time"), "end_time")
    if end is None:
        raise ValidationError("is required", "end_time")
    start = _time(data.get("start_time"), "start_time")
    event["open_missing"] = start is None
    if start is None:
        start = end
    if start > end:
        raise ValidationError(f"{start} ms is after the end, {end} ms", "start_time")

    single = _count(data.get("read_single_bytes"), "read_single_bytes") or 0
    vector = _count(data.get("read_vector_bytes"), "read_vector_bytes") or 0
    read = _largest(data, "read_bytes", "read_bytes_at_close")
    if read is None:
        read = single + vector
        if read > INT64_MAX:
            raise ValidationError("read_single_bytes + read_vector_bytes exceeds 64 bits", "read_bytes")
    event["read_bytes"] = read
    event["read_single_bytes"] = single
    event["read_vector_bytes"] = vector
    event["write_bytes"] = _largest(data, "write_bytes", "write_bytes_at_close") or 0
    return _finish(event, start, end, received_ms)


def _finish(event: Event, start: int, end: int, received_ms: int) -> Event:
    """Set the times, the identity (of the times as they came), and then clamp a clock that is ahead."""
    event["start_ms"], event["end_ms"], event["received_ms"] = start, end, received_ms
    event["event_id"] = event_id(event)
    clamped = False
    if end > received_ms + DAY_MS:
        end, clamped = received_ms, True
    if start > end:
        start, clamped = end, True
    event["start_ms"], event["end_ms"], event["clock_clamped"] = start, end, clamped
    return event


def event_id(event: Mapping[str, Any]) -> str:
    """Identity of an event by its content: 32 hex digits of the SHA-256 over the canonical JSON of its identity fields.

    source "access": server_host, file_lfn, client_host or else user, start_ms, end_ms, read_bytes, write_bytes.
    source "xrootd": server_host, file_ref, end_ms, read_bytes, write_bytes. There ``file_ref`` names one open of one
    file in one run of one server, so that two closes of the same file in the same second stay two events, and an access
    whose open packet arrives or not, or comes again, stays the same event.
    The times are those before any clamping, so an event that is delivered again is the same event: do not recompute the
    identity of an event whose ``clock_clamped`` is true.
    """
    if event["source"] == "xrootd":
        identity = ["xrootd", event["server_host"], event["file_ref"], event["end_ms"]]
    else:
        who = event["client_host"]
        role = "client"
        if who is None:
            who, role = event["user"], "user"
        identity = [
            event["source"],
            event["server_host"],
            event["file_lfn"],
            role,
            who,
            event["start_ms"],
            event["end_ms"],
        ]
    identity += [event["read_bytes"], event["write_bytes"]]
    return hashlib.sha256(_ENCODER.encode(identity).encode("ascii")).hexdigest()[:32]


def encode_event(event: Mapping[str, Any]) -> bytes:
    """The wire form: one line of compact JSON (ASCII), fields in the order of :data:`FIELDS`."""
    return _ENCODER.encode(event).encode("ascii")


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)


def _type_name(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _string(value: object, name: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValidationError(f"a string is expected, not {_type_name(value)}", name)
    if value.strip().lower() in ("", "unknown"):
        return None
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair, UTF-8 cannot
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value


def _producer_id(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return _string(str(_in_int64(value, "unique_id")), "unique_id")
    return _string(value, "unique_id")


def _number(value: object, name: str) -> int | float | None:
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "unknown")):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValidationError(f"a number is expected, not {_type_name(value)}", name)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValidationError("the number is too large", name)
    return value


def _in_int64(value: int, name: str) -> int:
    if not -INT64_MAX - 1 <= value <= INT64_MAX:
        raise ValidationError("the number does not fit 64 bits", name)
    return value


def _count(value: object, name: str) -> int | None:
    number = _number(value, name)
    if number is None:
        return None
    if number < 0:
        raise ValidationError(f"{_shown(number)} is negative", name)
    if isinstance(number, float):
        if not number.is_integer():
            raise ValidationError(f"{number} is not a whole number of bytes", name)
        number = int(number)
    return _in_int64(number, name)


def _largest(data: Mapping[str, Any], *names: str) -> int | None:
    given = [count for count in (_count(data.get(name), name) for name in names) if count is not None]
    return max(given) if given else None


def _time(value: object, name: str) -> int | None:
    number = _number(value, name)
    if number is None or number == 0:
        return None
    if number < 0:
        raise ValidationError(f"{_shown(number)} is negative", name)
    if number <= MS_THRESHOLD:
        number = number * 1000
    if number > TIME_MAX_MS:
        raise ValidationError(f"{_shown(number)} is later than the year 9999", name)
    ms = math.floor(number + 0.5) if isinstance(number, float) else number
    if ms == 0:
        raise ValidationError("the time is less than a ms after 1970", name)
    return ms


def _shown(number: int | float) -> str:
    return str(number) if isinstance(number, float) or abs(number) < 10**30 else "the number"


# --- XRootD: join of opens and closes -------------------------------------------------------------------------------


class ServerKey(NamedTuple):
    """One run of one XRootD server, as far as the f-stream tells.

    ``host`` is the sender's address, ``start_s`` the server start of the packet header, ``server_id`` the id of the
    time record (0 if an old server sends none). All three are needed: several servers share an address (ports, or a
    replay), and file ids begin anew when a server restarts.
    """

    host: str
    start_s: int
    server_id: int


class FileState(NamedTuple):
    """What is known of one open file. ``open_ms`` is None if its close came without an open (that stays so)."""

    open_ms: int | None
    file_size: int | None
    lfn: str | None
    closed: bool
    seen_ms: int


class OpenTable(Protocol):
    """Where the joiner keeps open files; implementations decide when to forget them."""

    def load(self, server: ServerKey, file_ids: Iterable[int]) -> MutableMapping[int, FileState]:
        """The states of those of ``file_ids`` that are known."""

    def save(self, server: ServerKey, states: Mapping[int, FileState]) -> None:
        """Insert or overwrite these states."""


class MemoryOpenTable:
    """An :class:`OpenTable` in memory, for replays of a file and for tests; it never forgets."""

    def __init__(self) -> None:
        """Begin empty."""
        self.states: dict[tuple[ServerKey, int], FileState] = {}

    def load(self, server: ServerKey, file_ids: Iterable[int]) -> dict[int, FileState]:
        """The states of those of ``file_ids`` that are known."""
        found = ((file_id, self.states.get((server, file_id))) for file_id in file_ids)
        return {file_id: state for file_id, state in found if state is not None}

    def save(self, server: ServerKey, states: Mapping[int, FileState]) -> None:
        """Insert or overwrite these states."""
        self.states.update({(server, file_id): state for file_id, state in states.items()})


@dataclass
class Joined:
    """What one packet gave: its events, counts, and the records that were refused (``errors``)."""

    events: list[Event] = field(default_factory=list)
    errors: list[ValidationError] = field(default_factory=list)
    records: int = 0
    opens: int = 0
    opens_duplicate: int = 0
    closes: int = 0
    closes_duplicate: int = 0
    open_missing: int = 0


class XrootdJoiner:
    """Joins closes with opens by (server run, file id) over an :class:`OpenTable`.

    Processing a packet again gives the same events: an open is kept after its close (marked closed), and that a close
    found no open is kept too, so that an open which arrives late does not change an event already made.
    """

    def __init__(self, table: OpenTable) -> None:
        """Join over this table."""
        self.table = table

    def join(self, packet: Packet, sender_host: str, received_ms: int) -> Joined:
        """Process one packet in the order of its records.

        An event starts at the window begin of the packet with the open and ends at the window end of the packet with
        the close; without an open start = end. A record with a negative count or time is refused alone (``errors``).
        """
        result = Joined(records=len(packet.records))
        server = ServerKey(sender_host, packet.server_start_s, packet.time.server_id or 0)
        suffix = f"@{server.start_s}.{server.server_id}"
        ids = {record.file_id for record in packet.records if isinstance(record, CloseRecord | OpenRecord)}
        known = self.table.load(server, ids) if ids else {}
        changed: dict[int, FileState] = {}
        window: TimeRecord = packet.time
        for record in packet.records:
            if isinstance(record, CloseRecord):
                state = known.get(record.file_id)
                try:
                    event = _close_event(record, state, window, server.host, suffix, received_ms)
                except ValidationError as error:
                    result.errors.append(error)
                    continue
                result.closes += 1
                result.open_missing += event["open_missing"]
                result.events.append(event)
                if state is None:
                    changed[record.file_id] = known[record.file_id] = FileState(None, None, None, True, received_ms)
                elif state.closed:
                    result.closes_duplicate += 1
                else:
                    changed[record.file_id] = known[record.file_id] = state._replace(closed=True, seen_ms=received_ms)
            elif isinstance(record, OpenRecord):
                try:
                    begin = _window_ms(window.begin_s, "window begin")
                    if record.file_size < 0:
                        raise ValidationError(f"{record.file_size} is negative", f"file size of open {record.file_id}")
                except ValidationError as error:
                    result.errors.append(error)
                    continue
                result.opens += 1
                if record.file_id in known:
                    result.opens_duplicate += 1
                    continue
                lfn = _string(record.lfn, "file_lfn")
                state = FileState(begin, record.file_size, lfn, False, received_ms)
                changed[record.file_id] = known[record.file_id] = state
            elif isinstance(record, TimeRecord):
                window = record
        if changed:
            self.table.save(server, changed)
        return result


_COUNTS = ("read", "readv", "write")


def _window_ms(seconds: int, name: str) -> int:
    if seconds <= 0:
        raise ValidationError(f"{seconds} s is not a time", name)
    return seconds * 1000


def _close_event(
    record: CloseRecord, state: FileState | None, window: TimeRecord, host: str, suffix: str, received_ms: int
) -> Event:
    if record.read < 0 or record.readv < 0 or record.write < 0:
        name, value = next((name, getattr(record, name)) for name in _COUNTS if getattr(record, name) < 0)
        raise ValidationError(f"{value} is negative", f"{name} bytes of close {record.file_id}")
    read = record.read + record.readv
    if read > INT64_MAX:
        raise ValidationError("read + readv exceeds 64 bits", f"read bytes of close {record.file_id}")
    end = _window_ms(window.end_s, "window end")
    known = state is not None and state.open_ms is not None
    start = state.open_ms if state is not None and state.open_ms is not None else end
    event: Event = {
        "event_id": None,
        "source": "xrootd",
        "producer_id": None,
        "server_host": host,
        "server_domain": None,
        "server_username": None,
        "client_host": None,
        "client_domain": None,
        "user": None,
        "user_dn": None,
        "vo": None,
        "app_info": None,
        "file_lfn": state.lfn if state is not None else None,
        "file_ref": f"fileid:{record.file_id}{suffix}",
        "file_size": state.file_size if state is not None else None,
        "start_ms": start,
        "end_ms": end,
        "read_bytes": read,
        "read_single_bytes": record.read,
        "read_vector_bytes": record.readv,
        "write_bytes": record.write,
        "open_missing": not known,
        "clock_clamped": False,
        "received_ms": received_ms,
    }
    return _finish(event, start, end, received_ms)
