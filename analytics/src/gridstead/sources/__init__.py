"""The sources of events: a module each, with its fields, what in it is personal, and how a record is normalised.

Which source a JSON message is from is told, in this order, by

1. the STOMP header ``gridstead-source``,
2. ``source``, ``producer`` or ``type`` in the envelope's ``metadata``, if it is the name of a source,
3. the fields that only one source has (each module's ``SIGNS``).

A message that tells no source is refused, naming what was looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gridstead.events import Event, ValidationError
from gridstead.sources import access, fts, rucio, xrootd
from gridstead.sources.field import SourceField
from gridstead.sources.values import parse_json, type_name

SOURCE_HEADER: Final = "gridstead-source"
"""STOMP header by which a producer may say what it sends."""
PACKET_HEADER: Final = "gridstead-packet-from"
"""STOMP header of a message that is a packet of an f-stream, come a second time: the host that had sent it over UDP."""


@dataclass(frozen=True)
class Source:
    """One source. ``personal`` names the fields of the normalised event that may name a person or a person's machine;
    ``signs`` the fields of a record that tell it; ``normalise`` takes a record without its envelope and the time of
    arrival in ms (None: records are not JSON).
    """

    name: str
    title: str
    fields: tuple[SourceField, ...]
    personal: tuple[str, ...]
    signs: frozenset[str]
    normalise: Callable[[Mapping[str, Any], int], Event] | None


SOURCES: Final[dict[str, Source]] = {
    source.name: source
    for source in (
        Source(access.NAME, "File accesses, JSON", access.FIELDS, access.PERSONAL, access.SIGNS, access.normalise),
        Source(xrootd.NAME, "XRootD f-stream, UDP", xrootd.FIELDS, xrootd.PERSONAL, frozenset(), None),
        Source(fts.NAME, "FTS transfers, JSON", fts.FIELDS, fts.PERSONAL, fts.SIGNS, fts.normalise),
        Source(rucio.NAME, "Rucio traces, JSON", rucio.FIELDS, rucio.PERSONAL, rucio.SIGNS, rucio.normalise),
    )
}

JSON_SOURCES: Final = tuple(source for source in SOURCES.values() if source.normalise is not None)
_BY_SIGNS: Final = {  # of the widest source last
    sign: source
    for source in sorted(JSON_SOURCES, key=lambda source: source is SOURCES[access.NAME])
    for sign in sorted(source.signs)
}


def normalise_json(raw: bytes, received_ms: int, header: str | None = None) -> Event:
    """Parse and normalise one producer's message; see :func:`parse_json` and :func:`normalise`."""
    return normalise(parse_json(raw), received_ms, header)


def normalise(record: Mapping[str, Any], received_ms: int, header: str | None = None) -> Event:
    """Normalise a producer's record, bare or enveloped as ``{"data": ..., "metadata": ...}``.

    ``header`` is the message's :data:`SOURCE_HEADER`. An end (or start) more than a day after ``received_ms`` is
    clamped to it, after the identity was taken. Raises ValidationError naming the field.
    """
    data: Mapping[str, Any] = record
    envelope = record.get("data")
    if isinstance(envelope, Mapping):
        data = envelope
    elif "data" in record and ("metadata" in record or len(record) == 1):
        raise ValidationError(f"the envelope must hold an object, not {type_name(envelope)}", "data")
    source = _source(data, record.get("metadata") if data is envelope else None, header)
    assert source.normalise is not None
    return source.normalise(data, received_ms)


def _source(data: Mapping[str, Any], metadata: object, header: str | None) -> Source:
    if header is not None:
        named = SOURCES.get(header)
        if named is None or named.normalise is None:
            names = ", ".join(source.name for source in JSON_SOURCES)
            raise ValidationError(f"is none of {names}", f"header {SOURCE_HEADER}")
        return named
    if isinstance(metadata, Mapping):
        for key in ("source", "producer", "type"):
            said = metadata.get(key)
            named = SOURCES.get(said) if isinstance(said, str) else None
            if named is not None and named.normalise is not None:
                return named
    for sign, source in _BY_SIGNS.items():
        if sign in data:
            return source
    raise ValidationError(
        "tells no source: a file access has end_time, an FTS message tr_id and src_url, a Rucio trace eventType; "
        f"or name it in the header {SOURCE_HEADER} or the envelope's metadata"
    )


__all__ = [
    "JSON_SOURCES",
    "SOURCES",
    "PACKET_HEADER",
    "SOURCE_HEADER",
    "Source",
    "SourceField",
    "normalise",
    "normalise_json",
    "parse_json",
]
