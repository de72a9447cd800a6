"""The normalised event, with an identity made of its content; ``gridstead.sources`` makes it of producers' records.

Everything here is pure; time comes in as an argument (``received_ms``). What producers leave unknown stays ``None``.

Fields of an event, in the order of :data:`FIELDS` (units: times in ms since epoch UTC, sizes in bytes):
``event_id``, ``source`` (a name in ``gridstead.sources.SOURCES``), ``producer_id``, ``server_host``, ``server_domain``,
``server_username``, ``client_host``, ``client_domain``, ``user``, ``user_dn``, ``vo``, ``app_info``, ``file_lfn``,
``file_ref``, ``file_size``, ``start_ms``, ``end_ms``, ``read_bytes``, ``read_single_bytes``, ``read_vector_bytes``,
``write_bytes``, ``open_missing``, ``clock_clamped``, ``received_ms``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

Event = dict[str, Any]

FIELDS = (
    "event_id", "source", "producer_id", "server_host", "server_domain", "server_username", "client_host",
    "client_domain", "user", "user_dn", "vo", "app_info", "file_lfn", "file_ref", "file_size", "start_ms", "end_ms",
    "read_bytes", "read_single_bytes", "read_vector_bytes", "write_bytes", "open_missing", "clock_clamped",
    "received_ms",
)  # fmt: skip

EVENT_ID_DIGITS = 32
"""Hex digits of an identity; the first :data:`ACCESS_DIGITS` name the access, the rest the version."""
ACCESS_DIGITS = 16

INT64_MAX = 2**63 - 1
DAY_MS = 86_400_000
TIME_MAX_MS = 253_402_300_799_999
"""The last ms of the year 9999: later times cannot be a date in the archive."""


class ValidationError(ValueError):
    """An event that cannot be normalised: ``field`` names what is wrong ("" for the whole), ``reason`` says why."""

    def __init__(self, reason: str, field: str = "") -> None:
        """Say why, and of which field."""
        super().__init__(f"{field}: {reason}" if field else reason)
        self.reason = reason
        self.field = field


def finish(event: Event, start: int, end: int, received_ms: int) -> Event:
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
    """Identity of an event by its content: 16 hex digits that name its access, and 16 that name this version of it.

    The access is what :data:`ACCESS` takes of a source: what does not change while an access goes on. The version is
    the access with its end and bytes, so that equal identities mean equal content, and all reports of one access share
    the first half (:func:`access_of`). Both are beginnings of a SHA-256 over canonical JSON.
    The times are those before any clamping, so an event that is delivered again is the same event: do not recompute the
    identity of an event whose ``clock_clamped`` is true.
    """
    source = event["source"]
    digest = hashlib.sha256(_ENCODER.encode([source, *ACCESS[source](event)]).encode("ascii"))
    access = digest.hexdigest()[:ACCESS_DIGITS]
    digest.update(_ENCODER.encode([event["end_ms"], event["read_bytes"], event["write_bytes"]]).encode("ascii"))
    return access + digest.hexdigest()[: EVENT_ID_DIGITS - ACCESS_DIGITS]


def access_of(event_id: str) -> str:
    """The part of an event's identity that names its access; reports of one access share it (and a partition)."""
    return event_id[:ACCESS_DIGITS]


def _json_access(event: Mapping[str, Any]) -> list[Any]:
    """Server, file, client or else user, and start.

    Start = end is what producers write where the open was lost; then the start is unknown, and every further report of
    the access has another one: it is left out.
    """
    who, role = event["client_host"], "client"
    if who is None:
        who, role = event["user"], "user"
    start = event["start_ms"]
    return [event["server_host"], event["file_lfn"], role, who, None if start == event["end_ms"] else start]


def _single_access(event: Mapping[str, Any]) -> list[Any]:
    """Server, file, client or else user, and start; of sources that report an access once, however it ended."""
    who = event["client_host"] if event["client_host"] is not None else event["user"]
    return [event["server_host"], event["file_lfn"], event["client_host"] is not None, who, event["start_ms"]]


ACCESS: Mapping[str, Callable[[Mapping[str, Any]], list[Any]]] = {
    "access": _json_access,
    "xrootd": lambda event: [event["server_host"], event["file_ref"]],
    "fts": lambda event: [event["file_ref"], *_single_access(event)],
    "rucio": lambda event: [event["app_info"], *_single_access(event)],
}
"""What names an access, by source. XRootD: ``file_ref`` is one open of one file in one run of one server, so that two
closes of the same file in the same second stay two events, and an access whose open packet arrives or not, or comes
again, stays the same event. FTS: ``file_ref`` is the id of the attempt. Rucio: ``app_info`` is the kind of the trace,
so that a touch does not supersede a download."""


def encode_event(event: Mapping[str, Any]) -> bytes:
    """The wire form: one line of compact JSON (ASCII), fields in the order of :data:`FIELDS`."""
    return _ENCODER.encode(event).encode("ascii")


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)
