"""The rows that need a look at what is known: those of an access that is known, or that comes more than once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from gridstead.identity.keys import ACCESS_BYTES, NO_BLOCK
from gridstead.identity.store import Store, Version

NO_PLACE: Final = -1

Places = Sequence[tuple[int, int]]
"""Where an access may be known: chunk, and the block of its alone record or NO_BLOCK."""


class Row(NamedTuple):
    """A row of an increment, and which it is."""

    number: int
    event: bytes
    producer: bytes | None
    timestamp_ms: int
    end_ms: int
    size: int
    has_payload: bool


@dataclass(slots=True)
class _Head:
    """The latest version that a carrier carried, if its chunk is kept.

    ``floor``: the newest chunk that says something of this carrier. A new note must not be in an older one, which goes
    earlier: the older word would hold again.
    """

    version: Version | None
    floor: int
    moved_to: int | None = None


@dataclass
class Resolver:
    """The definition (see :mod:`gridstead.identity.index`), applied once to rows in the order of the log.

    ``places``: of each access that may be known. Afterwards ``duplicates`` and ``superseded`` are the rows (by index)
    that do not count, ``retracted`` the older records that no longer count, and ``made`` the new ones: give those with
    a payload (``block`` is NO_PLACE) a place in a block, then ``write``.
    """

    store: Store
    horizon_ms: int
    places: Mapping[bytes, Places]
    duplicates: list[int] = field(default_factory=list)
    superseded: list[int] = field(default_factory=list)
    retracted: list[Version] = field(default_factory=list)
    made: list[Version] = field(default_factory=list)

    def resolve(self, rows: Sequence[Row]) -> None:
        """Process rows, after a look at everything that is known of them."""
        self._load(rows)
        for row in rows:
            self._resolve(row)

    def _load(self, rows: Sequence[Row]) -> None:
        accesses = {row.event[:ACCESS_BYTES] for row in rows}
        alone = self._load_alone(accesses)
        events: dict[int, set[bytes]] = defaultdict(set)
        carriers: dict[int, set[bytes]] = defaultdict(set)
        for row in rows:
            for chunk, _ in self.places.get(row.event[:ACCESS_BYTES], ()):
                events[chunk].add(row.event)
                if row.producer is not None:
                    carriers[chunk].add(row.event[:ACCESS_BYTES] + row.producer)
        for record, _ in alone:
            events[record.chunk].add(record.event)
        notes = [(chunk, note) for chunk, some in carriers.items() for note in self.store.heads(chunk, some)]
        for _, (_, chunk, event) in notes:
            if chunk in self.store.chunks:
                events[chunk].add(event)
        self._records = {(record.chunk, record.event): record for record, _ in alone}
        for chunk, some in events.items():
            self._records.update(((chunk, record.event), record) for record in self.store.versions(chunk, some))
        self._latest: dict[bytes, Version] = {}
        for record in self._records.values():
            latest = self._latest.setdefault(record.event, record)
            if record.timestamp_ms > latest.timestamp_ms:
                self._latest[record.event] = record
        self._load_heads(alone, notes)
        self._changed: list[Version] = []

    def _load_alone(self, accesses: Iterable[bytes]) -> list[tuple[Version, bytes | None]]:
        """The alone records of accesses with the producer ids of their rows; an access has at most one."""
        wanted: dict[int, dict[int, list[bytes]]] = defaultdict(lambda: defaultdict(list))
        for access in accesses:
            for chunk, block in self.places.get(access, ()):
                if block != NO_BLOCK:
                    wanted[chunk][block].append(access)
        return [found for chunk, blocks in wanted.items() for found in self.store.alone(chunk, blocks)]

    def _load_heads(
        self, alone: Iterable[tuple[Version, bytes | None]], notes: Iterable[tuple[int, tuple[bytes, int, bytes]]]
    ) -> None:
        self._heads: dict[bytes, _Head] = defaultdict(lambda: _Head(None, -1))
        for record, producer in alone:
            if producer is not None:
                head = _Head(self._records[record.chunk, record.event], record.chunk)
                self._heads[record.event[:ACCESS_BYTES] + producer] = head
        for noted, (carrier, chunk, event) in sorted(notes):  # so that the newest holds; it is not before the alone one
            self._heads[carrier] = _Head(self._records.get((chunk, event)), noted)

    def _resolve(self, row: Row) -> None:
        record = self._latest.get(row.event)
        if record is not None and row.timestamp_ms - record.timestamp_ms <= self.horizon_ms:
            self.duplicates.append(row.number)
        else:
            record = self._make(row)
        if row.producer is not None and record.block != NO_BLOCK:
            self._carry(row, record, row.event[:ACCESS_BYTES] + row.producer)

    def _make(self, row: Row) -> Version:
        chunk = row.timestamp_ms // self.store.width_ms
        block = NO_PLACE if row.has_payload else NO_BLOCK
        made = Version(row.event, chunk, block, 0, row.timestamp_ms, row.end_ms, row.size, index=row.number)
        self._latest[row.event] = made
        self.made.append(made)
        return made

    def _carry(self, row: Row, record: Version, carrier: bytes) -> None:
        head = self._heads[carrier]
        latest = head.version
        if latest is record:
            return
        if latest is not None and row.timestamp_ms - latest.timestamp_ms <= self.horizon_ms:
            if record.order < latest.order:
                self._supersede(record)
                return
            self._supersede(latest)
        head.version = record
        head.floor = head.moved_to = max(head.floor, record.chunk, row.timestamp_ms // self.store.width_ms)

    def _supersede(self, version: Version) -> None:
        if not version.counted:
            return
        version.counted = False
        if version.index >= 0:
            self.superseded.append(version.index)
        else:
            self.retracted.append(version)
            self._changed.append(version)

    def write(self, first_chunk: int) -> dict[int, list[bytes]]:
        """Write what changed in the chunks that are kept; returns the accesses that are new to a chunk, by chunk."""
        versions = [version for version in (*self.made, *self._changed) if version.chunk >= first_chunk]
        self.store.put_versions(versions)
        touched = {(version.event[:ACCESS_BYTES], version.chunk) for version in versions}
        moved: dict[int, list[tuple[bytes, Version]]] = defaultdict(list)
        for carrier, head in self._heads.items():
            if head.moved_to is not None and head.version is not None and head.moved_to >= first_chunk:
                moved[head.moved_to].append((carrier, head.version))
                touched.add((carrier[:ACCESS_BYTES], head.moved_to))
        for chunk, heads in moved.items():
            self.store.put_heads(chunk, heads)
        new: dict[int, list[bytes]] = defaultdict(list)
        for access, chunk in touched:
            if all(place != chunk for place, _ in self.places.get(access, ())):
                new[chunk].append(access)
        return new
