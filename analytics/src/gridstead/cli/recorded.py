"""Files that can be replayed: JSON lines of any source of events, or of captured packets; plain or gzip.

A file is read once to check and count it, before anything is sent, and once to send it; it is never held in memory.
"""

from __future__ import annotations

import base64
import binascii
import enum
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from gridstead.sources import SOURCES

GZIP_MAGIC = b"\x1f\x8b"
MAX_DATAGRAM_BYTES = 65_507
EVENT_FIELDS = frozenset().union(*(source.signs for source in SOURCES.values()))


class InputError(ValueError):
    """A file that cannot be replayed; the message begins with file:line."""


class Kind(enum.StrEnum):
    """What a file holds: events go to the broker's raw queue, packets to the collector's UDP port."""

    EVENTS = "events"
    PACKETS = "packets"


@dataclass(frozen=True)
class Recording:
    """A checked file: its kind, and how many messages of how many bytes it holds."""

    path: Path
    kind: Kind
    count: int
    total_bytes: int


def inspect(path: Path, kind: Kind | None = None) -> Recording:
    """Check every line of a file and count the messages.

    ``kind`` None finds the kind from the first line, and every further line must be of it. Given as EVENTS, lines are
    taken as they are, so that broken ones can be sent on purpose. Raises InputError with file:line.
    """
    forced = kind
    count = total = 0
    for number, line in _lines(path):
        where = f"{path}:{number}"
        if forced is Kind.EVENTS:
            message = line
        else:
            found = _kind_of(line, where)
            kind = kind or found
            if found is not kind:
                raise InputError(f"{where}: holds {found}, but the file began with {kind}: split it in two files")
            message = _message(line, kind, where)
        count += 1
        total += len(message)
    if count == 0:
        raise InputError(f"{path}:1: holds no message")
    return Recording(path, cast(Kind, kind), count, total)


def messages(recording: Recording) -> Iterator[bytes]:
    """Yield the messages of a checked file in order: an event's line as it stands, or a packet's bytes."""
    for number, line in _lines(recording.path):
        yield _message(line, recording.kind, f"{recording.path}:{number}")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                line = line.strip()
                if line:
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}:1: cannot be read ({error})") from error


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP_MAGIC
    return cast(IO[bytes], gzip.open(path, "rb")) if zipped else path.open("rb")


def _kind_of(line: bytes, where: str) -> Kind:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        hint = "one JSON object a line is needed; `jq -c . FILE` makes such lines of a JSON document"
        raise InputError(f"{where}: is not JSON ({error}): {hint}") from error
    if isinstance(record, dict):
        data = record.get("data")
        if isinstance(data, str):
            return Kind.PACKETS
        fields: Any = data if isinstance(data, dict) else record
        if EVENT_FIELDS & fields.keys():
            return Kind.EVENTS
    raise InputError(
        f'{where}: is neither a captured packet ("data" in base64) nor an event (a file access has end_time, an FTS '
        "message tr_id, a Rucio trace eventType): replay takes these"
    )


def _message(line: bytes, kind: Kind, where: str) -> bytes:
    if kind is Kind.EVENTS:
        return line
    try:
        data = base64.b64decode(json.loads(line)["data"], validate=True)
    except (binascii.Error, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{where}: holds no packet ("data" in base64: {error})') from error
    if len(data) > MAX_DATAGRAM_BYTES:
        raise InputError(f"{where}: {len(data)} bytes do not fit in a UDP datagram (at most {MAX_DATAGRAM_BYTES})")
    return data
