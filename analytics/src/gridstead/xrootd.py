"""Decoder and encoder of the XRootD f-stream (file-access monitoring over UDP).

The layout is the one of XRootD's public header ``XrdXrootdMonData.hh`` (structs ``XrdXrootdMonHeader`` and
``XrdXrootdMonFile*``); every number is big-endian. All functions are pure, except :func:`read_capture`, which reads a
file.

Packet header, 8 bytes: code ``f`` (u8), sequence (u8), length of the whole packet (u16), server start (u32, s since
epoch). Then records, each with a header of 8 bytes: type (u8), flags (u8), size of the whole record (u16), id (u32).
The first record of a packet is always a time record.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

CLOSE, OPEN, TIME, XFR, DISCONNECT = 0, 1, 2, 3, 4
"""Record types (``recTval``)."""

CLOSE_FORCED, CLOSE_HAS_OPS, CLOSE_HAS_SSQ = 0x01, 0x02, 0x04
OPEN_HAS_LFN, OPEN_READ_WRITE = 0x01, 0x02
TIME_HAS_SID = 0x01
"""Record flags (``recFval``)."""

OTHER_STREAMS = frozenset(b"=dgiprtux")
"""Codes of XRootD monitoring packets which are not f-stream: servers often send them to the same port."""

MAX_PACKET_BYTES = 65535

_PACKET_HEADER = struct.Struct(">BBHI")
_RECORD_HEADER = struct.Struct(">BBHI")
_XFR = struct.Struct(">qqq")
_OPS = struct.Struct(">iiihhqiiiiii")
_SSQ = struct.Struct(">dddd")
_SIZE = struct.Struct(">q")
_USER = struct.Struct(">I")
_TIME_OLD = struct.Struct(">ii")
_TIME = struct.Struct(">iiq")


class DecodeError(ValueError):
    """A packet that is not a well-formed f-stream packet: ``reason`` in words, ``offset`` in bytes from its start."""

    def __init__(self, reason: str, offset: int = 0) -> None:
        """Say what is wrong, and where."""
        super().__init__(f"{reason} (at byte {offset})")
        self.reason = reason
        self.offset = offset


class OtherStreamError(DecodeError):
    """A packet of another XRootD monitoring stream (user map, trace, ...): well formed as far as its header tells."""


class CaptureError(ValueError):
    """A line of a capture file that holds no packet; the message says file, line and reason."""


class TimeRecord(NamedTuple):
    """Window of the records that follow: ``begin_s``, ``end_s`` (i32, s since epoch, UTC); ``server_id`` None in old
    packets.

    ``transfers`` and ``total`` are the record counts the server claims (u16).
    """

    begin_s: int
    end_s: int
    server_id: int | None
    transfers: int = 0
    total: int = 0
    flags: int = 0


class OpenRecord(NamedTuple):
    """A file was opened: ``file_size`` in bytes at that time; ``user_id`` and ``lfn`` are None if the server sends no
    names.
    """

    file_id: int
    file_size: int
    user_id: int | None = None
    lfn: str | None = None
    read_write: bool = False


class Operations(NamedTuple):
    """Operation counts and request sizes in bytes (``XrdXrootdMonStatOPS``), in the order of the wire."""

    read: int
    readv: int
    write: int
    segments_min: int
    segments_max: int
    segments: int
    read_min: int
    read_max: int
    readv_min: int
    readv_max: int
    write_min: int
    write_max: int


class SumsOfSquares(NamedTuple):
    """Sums of squares of request sizes (``XrdXrootdMonStatSSQ``)."""

    read: float
    readv: float
    segments: float
    write: float


class CloseRecord(NamedTuple):
    """A file was closed: bytes by ``read``, by ``readv`` and by ``write`` since its open; ``forced`` if by a lost
    connection.
    """

    file_id: int
    read: int
    readv: int
    write: int
    forced: bool = False
    operations: Operations | None = None
    squares: SumsOfSquares | None = None


class TransferRecord(NamedTuple):
    """Bytes so far of a file that is still open."""

    file_id: int
    read: int
    readv: int
    write: int


class DisconnectRecord(NamedTuple):
    """A user's session ended."""

    user_id: int


Record = TimeRecord | OpenRecord | CloseRecord | TransferRecord | DisconnectRecord


class Packet(NamedTuple):
    """A decoded packet; ``server_start_s`` in s since epoch (with the server id it names one run of one server)."""

    sequence: int
    server_start_s: int
    records: tuple[Record, ...]

    @property
    def time(self) -> TimeRecord:
        """The first time record (the decoder guarantees that it is the first record)."""
        first = self.records[0]
        if not isinstance(first, TimeRecord):
            raise DecodeError("the first record is not a time record", _PACKET_HEADER.size)
        return first


def decode_packet(data: bytes) -> Packet:
    """Decode one f-stream packet, whole or not at all.

    Names are UTF-8; bytes that are not become ``\\xNN`` text, and control characters stay as data. Values are not
    judged here (a negative byte count decodes); lengths all are. Raises :class:`OtherStreamError` for the other XRootD
    streams and :class:`DecodeError` for everything else that is not an f-stream packet.
    """
    total = len(data)
    if total < _PACKET_HEADER.size:
        raise DecodeError(f"{total} bytes are too few for a packet header of {_PACKET_HEADER.size}")
    code, sequence, length, start = _PACKET_HEADER.unpack_from(data)
    if code != 0x66 and code not in OTHER_STREAMS:
        raise DecodeError(f"packet code 0x{code:02x} is not of any XRootD monitoring stream")
    if length != total:
        raise DecodeError(f"the header says {length} bytes, the packet has {total}", 2)
    if code != 0x66:
        raise OtherStreamError(f"packet code {chr(code)!r} is another XRootD stream, not the f-stream")
    records: list[Record] = []
    add = records.append
    header, unpack_xfr, unpack_ops = _RECORD_HEADER.unpack_from, _XFR.unpack_from, _OPS.unpack_from
    at = 8
    while at < total:
        if total - at < 8:
            raise DecodeError(f"{total - at} bytes are too few for a record header of 8", at)
        kind, flags, size, ident = header(data, at)
        if size < 8:
            raise DecodeError(f"record size {size} is smaller than its header of 8", at + 2)
        if at + size > total:
            raise DecodeError(f"record of {size} bytes exceeds the packet by {at + size - total}", at + 2)
        if at == 8 and kind != TIME:
            raise DecodeError(f"the first record is of type {kind}, not a time record", at)
        if kind == CLOSE:
            want = 32 + (48 if flags & CLOSE_HAS_OPS else 0) + (32 if flags & CLOSE_HAS_SSQ else 0)
            if size != want:
                raise DecodeError(f"close record with flags 0x{flags:02x} has {size} bytes, not {want}", at + 2)
            read, readv, write = unpack_xfr(data, at + 8)
            operations = Operations._make(unpack_ops(data, at + 32)) if flags & CLOSE_HAS_OPS else None
            squares = SumsOfSquares._make(_SSQ.unpack_from(data, at + size - 32)) if flags & CLOSE_HAS_SSQ else None
            add(CloseRecord(ident, read, readv, write, bool(flags & CLOSE_FORCED), operations, squares))
        elif kind == OPEN:
            add(_decode_open(data, at, flags, size, ident))
        elif kind == TIME:
            counts = (ident >> 16, ident & 0xFFFF)
            if size == 24:
                # Some servers leave the hasSID flag clear although the id is there: the size decides.
                begin, end, sid = _TIME.unpack_from(data, at + 8)
                add(TimeRecord(begin, end, sid, counts[0], counts[1], flags))
            elif size == 16 and not flags & TIME_HAS_SID:
                begin, end = _TIME_OLD.unpack_from(data, at + 8)
                add(TimeRecord(begin, end, None, counts[0], counts[1], flags))
            else:
                raise DecodeError(f"time record with flags 0x{flags:02x} has {size} bytes, not 24 or 16", at + 2)
        elif kind == XFR:
            if size != 32:
                raise DecodeError(f"transfer record has {size} bytes, not 32", at + 2)
            add(TransferRecord(ident, *unpack_xfr(data, at + 8)))
        elif kind == DISCONNECT:
            if size != 8:
                raise DecodeError(f"disconnect record has {size} bytes, not 8", at + 2)
            add(DisconnectRecord(ident))
        else:
            raise DecodeError(f"record type {kind} is unknown", at)
        at += size
    if not records:
        raise DecodeError("the packet has no records", 8)
    return Packet(sequence, start, tuple(records))


def _decode_open(data: bytes, at: int, flags: int, size: int, ident: int) -> OpenRecord:
    if not flags & OPEN_HAS_LFN:
        if size != 16:
            raise DecodeError(f"open record without a name has {size} bytes, not 16", at + 2)
        return OpenRecord(ident, _SIZE.unpack_from(data, at + 8)[0], None, None, bool(flags & OPEN_READ_WRITE))
    if size < 21:
        raise DecodeError(f"open record with a name has {size} bytes, at least 21 are needed", at + 2)
    name_end = data.find(b"\0", at + 20, at + size)
    if name_end < 0:
        raise DecodeError("the file name of the open record is not ended by a NUL", at + 20)
    name = data[at + 20 : name_end].decode("utf-8", "backslashreplace")
    file_size = _SIZE.unpack_from(data, at + 8)[0]
    return OpenRecord(ident, file_size, _USER.unpack_from(data, at + 16)[0], name, bool(flags & OPEN_READ_WRITE))


def encode_record(record: Record) -> bytes:
    """Encode one record as XRootD would, names padded with NULs to a multiple of 4. Raises ValueError if it does not
    fit.
    """
    try:
        return _encode_record(record)
    except struct.error as error:
        raise ValueError(f"a value of {record!r} does not fit its field: {error}") from error


def _encode_record(record: Record) -> bytes:
    if isinstance(record, CloseRecord):
        flags = CLOSE_FORCED if record.forced else 0
        body = _XFR.pack(record.read, record.readv, record.write)
        if record.operations is not None:
            flags |= CLOSE_HAS_OPS
            body += _OPS.pack(*record.operations)
        if record.squares is not None:
            flags |= CLOSE_HAS_SSQ
            body += _SSQ.pack(*record.squares)
        return _RECORD_HEADER.pack(CLOSE, flags, 8 + len(body), record.file_id) + body
    if isinstance(record, OpenRecord):
        flags = OPEN_READ_WRITE if record.read_write else 0
        body = _SIZE.pack(record.file_size)
        if record.lfn is not None:
            flags |= OPEN_HAS_LFN
            name = record.lfn.encode("utf-8")
            if b"\0" in name:
                raise ValueError("a file name cannot hold a NUL: it ends the name on the wire")
            body += _USER.pack(record.user_id or 0) + name + b"\0" * (4 - len(name) % 4)
        return _RECORD_HEADER.pack(OPEN, flags, 8 + len(body), record.file_id) + body
    if isinstance(record, TimeRecord):
        counts = (record.transfers << 16) | record.total
        if record.server_id is None:
            return _RECORD_HEADER.pack(TIME, record.flags, 16, counts) + _TIME_OLD.pack(record.begin_s, record.end_s)
        body = _TIME.pack(record.begin_s, record.end_s, record.server_id)
        return _RECORD_HEADER.pack(TIME, record.flags, 24, counts) + body
    if isinstance(record, TransferRecord):
        return _RECORD_HEADER.pack(XFR, 0, 32, record.file_id) + _XFR.pack(record.read, record.readv, record.write)
    return _RECORD_HEADER.pack(DISCONNECT, 0, 8, record.user_id)


def encode_packet(records: Sequence[Record], *, server_start_s: int, sequence: int = 0) -> bytes:
    """Encode an f-stream packet. The first record must be a time record; its record counts are sent as given.

    Raises ValueError if a value does not fit its field or the packet exceeds 65,535 bytes.
    """
    if not records or not isinstance(records[0], TimeRecord):
        raise ValueError("an f-stream packet begins with a time record")
    body = b"".join(map(encode_record, records))
    length = len(body) + _PACKET_HEADER.size
    if length > MAX_PACKET_BYTES:
        raise ValueError(f"the packet would have {length} bytes; {MAX_PACKET_BYTES} fit, send fewer records")
    return _PACKET_HEADER.pack(0x66, sequence & 0xFF, length, server_start_s) + body


class Captured(NamedTuple):
    """One packet of a capture: its bytes, and the sender's ``host`` and ``port`` (None where the capture does not
    say).
    """

    data: bytes
    host: str | None
    port: int | None


def read_capture(path: str | Path) -> Iterator[Captured]:
    """Read a capture: JSON lines with ``data`` (base64 of a packet) and ``remote`` (``host:port``); empty lines are
    skipped.

    The packets are not decoded, so that bad ones can be replayed too. Raises :class:`CaptureError` with file and line.
    """
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                data = base64.b64decode(record["data"], validate=True)
                remote = record.get("remote")
                host, port = _split_remote(remote) if remote else (None, None)
            except (ValueError, binascii.Error, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise CaptureError(
                    f"{path}, line {number}: no captured packet ({type(error).__name__}: {error}); each line must be a "
                    'JSON object with "data" (base64) and "remote" ("host:port")'
                ) from error
            yield Captured(data, host, port)


def _split_remote(remote: str) -> tuple[str, int | None]:
    host, colon, port = remote.rpartition(":")
    if not colon or not port.isdigit():
        return remote, None
    return host.strip("[]"), int(port)
