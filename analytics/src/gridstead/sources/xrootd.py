"""XRootD's f-stream: opens and closes of files, joined to one event a close."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from gridstead.events import INT64_MAX, Event, ValidationError, finish
from gridstead.sources.field import SourceField
from gridstead.sources.values import string
from gridstead.xrootd import CloseRecord, OpenRecord, Packet, TimeRecord

NAME: Final = "xrootd"

FIELDS: Final = (
    SourceField("sender", "string", "", "address that the packet came from", "UDP", "server_host"),
    SourceField("server_start", "bigint", "s since epoch", "when the server started", "packet header", "file_ref"),
    SourceField("server_id", "bigint", "", "the server's own id; 0 from old servers", "time record", "file_ref"),
    SourceField(
        "file_id",
        "bigint",
        "",
        "number of the open file in this run of the server",
        "open and close record",
        "file_ref",
    ),
    SourceField("lfn", "string", "", "logical file name", "open record", "file_lfn"),
    SourceField("file_size", "bigint", "bytes", "size of the file when opened", "open record", "file_size"),
    SourceField("user_id", "bigint", "", "number of the session; names come in another stream", "open record"),
    SourceField(
        "window_begin", "bigint", "s since epoch", "begin of the packet's window", "time record of the open", "start_ms"
    ),
    SourceField(
        "window_end",
        "bigint",
        "s since epoch",
        "end of the packet's window",
        "time record of the close",
        "end_ms",
        required=True,
    ),
    SourceField(
        "read",
        "bigint",
        "bytes",
        "bytes read by single reads",
        "close record",
        "read_single_bytes, read_bytes",
        required=True,
    ),
    SourceField(
        "readv",
        "bigint",
        "bytes",
        "bytes read by vector reads",
        "close record",
        "read_vector_bytes, read_bytes",
        required=True,
    ),
    SourceField("write", "bigint", "bytes", "bytes written", "close record", "write_bytes", required=True),
    SourceField("forced", "boolean", "", "the server closed the file, not the client", "close record"),
)

PERSONAL: Final = ()
"""The f-stream names neither user nor client."""


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
                lfn = string(record.lfn, "file_lfn")
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
        "source": NAME,
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
    return finish(event, start, end, received_ms)
