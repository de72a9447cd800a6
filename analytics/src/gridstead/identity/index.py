"""Which rows of an increment of the log count, and which that counted before no longer do.

The definition, row by row in the order of the log. A row whose event_id has a *record* that is known to the row is a
duplicate; otherwise the row makes the record, and counts. For each producer id of an access there is a *head*: the
latest record that the id carried, latest by (end, bytes, event_id). A row that carries a producer id sets its record
against the head, if that is known to the row: the earlier of the two is superseded and counts no longer, the later is
the head. A record is known to a row iff the row's log time - the log time of the row that made it <= the horizon.

Without a horizon this is the definition over the whole log: a version is superseded iff one of the producer ids that
carried it carried a later one too. For of the records that an id carried, each is superseded or the head, so that a new
one need be compared with the head alone; and what is superseded stays so, since more rows only add carriers and later
versions. So a row costs the same whether its access has one version or thousands.

Rows of an access that is neither known nor comes twice in the increment, nearly all, are found at once and make *alone*
records; :mod:`gridstead.identity.resolve` looks at the others one by one.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from gridstead.identity.increment import Increment, to_rows
from gridstead.identity.resolve import Resolver
from gridstead.identity.store import IdentityIndexError, Positions, Store, is_damage

T = TypeVar("T")


class Position(NamedTuple):
    """Where a row stands in the log."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True)
class Changes:
    """What an increment changes.

    ``excluded``: the rows of the increment that do not count. ``retractions``: the payloads of earlier rows that
    counted and no longer do. Of the rows, ``duplicates`` have an event_id that is known, ``superseded`` are versions of
    which a later one is known or in the increment. ``beyond_horizon``: rows that count, and whose event ended so long
    before that it may have been counted already and forgotten; the next batch puts that right.
    """

    rows: int = 0
    excluded: list[Position] = field(default_factory=list)
    retractions: list[str] = field(default_factory=list)
    duplicates: int = 0
    superseded: int = 0
    beyond_horizon: int = 0

    @property
    def retracted(self) -> int:
        """How many earlier rows no longer count."""
        return len(self.retractions)


class IdentityIndex:
    """The identities of the log within a horizon of log time, in a local file.

    Changes are in a transaction that is open until :meth:`commit`; after a crash the file is as at the last commit
    (after a power failure perhaps as at an earlier one: ``upto`` says it). Rows are to be given in increments, each row
    once; the result does not depend on how the log is cut, as long as no row is older than the newest before by more
    than a quarter of the horizon. Memory: 8 bytes for each access within the horizon. Not for several threads at once.
    """

    def __init__(self, path: str | Path, horizon_ms: int) -> None:
        """Open the file, which is made where it is missing.

        A file that is corrupt, of another format or of another horizon is begun anew: then ``started_empty`` says why
        and ``upto`` is {}. Raises IdentityIndexError where the file is in use or cannot be made, ValueError for a
        horizon below 1 ms.
        """
        if horizon_ms < 1:
            raise ValueError(f"the horizon must be at least 1 ms, not {horizon_ms}")
        self.horizon_ms = horizon_ms
        self._store = Store(Path(path), horizon_ms)
        self._next = self._store.upto

    @property
    def upto(self) -> Positions:
        """The positions up to which rows are committed: topic -> partition -> next offset."""
        return self._store.upto

    @property
    def started_empty(self) -> str:
        """Why a file that was there could not be used ("" if it could, or there was none)."""
        return self._store.started_empty

    @property
    def records(self) -> int:
        """How many accesses are kept, counted once for each chunk."""
        return sum(len(chunk.keys) for chunk in self._store.chunks.values())

    def __enter__(self) -> IdentityIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what is not committed is forgotten."""
        self._store.close()

    def commit(self, upto: Positions) -> None:
        """Make what was applied last; ``upto`` is what the index has seen then."""
        self._guarded(lambda: self._store.commit(upto))
        self._next = self._store.upto

    def clear(self) -> None:
        """Forget everything, at once and for good: ``upto`` is {} then."""
        self._store.clear()
        self._next = self._store.upto

    def rollback(self) -> None:
        """Forget what was applied since the last commit."""
        self._guarded(self._store.rollback)
        self._next = self._store.upto

    def learn(self, rows: pa.Table | Iterable[pa.RecordBatch]) -> None:
        """Take rows in without asking what they change: what the index missed while the served statistics went on."""
        self._guarded(lambda: self._apply(rows, wanted=False))

    def apply(self, rows: pa.Table | Iterable[pa.RecordBatch]) -> Changes:
        """Say which of the next rows of the log count, and which earlier ones no longer do.

        Columns as in :data:`gridstead.identity.increment.ROWS`, in any order of rows: ``bytes`` is read + written,
        ``timestamp_ms`` the log time. ``payload`` comes back as a retraction; it is needed where there is a producer
        id, and elsewhere too unless no row of the same event_id ever has one (a record without it is never superseded).
        Raises ValueError for rows that are not so, or that the index has seen (then also what was applied since the
        last commit is forgotten), and IdentityIndexError where the file cannot be read or written.
        """
        return self._guarded(lambda: self._apply(rows, wanted=True))

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except Exception as error:
            if is_damage(error):
                self._store.discard()
                raise IdentityIndexError(f"{error}: the file is deleted; open it and learn the log anew") from error
            with contextlib.suppress(sqlite3.Error):
                self._store.rollback()
                self._next = self._store.upto
            if isinstance(error, sqlite3.Error):
                raise IdentityIndexError(f"{error}: look at the file's directory and disk") from error
            raise

    def _apply(self, given: pa.Table | Iterable[pa.RecordBatch], wanted: bool) -> Changes:
        rows = to_rows(given)
        if not len(rows):
            return Changes()
        reached = self._reached(rows)
        increment = Increment(rows, self._store)
        resolver = Resolver(self._store, self.horizon_ms, increment.places)
        resolver.resolve(increment.slow_rows())
        changes = self._changes(rows, resolver) if wanted else Changes(rows=len(rows))
        increment.write(resolver)
        self._store.evict()
        self._next = reached
        return changes

    def _reached(self, rows: pa.Table) -> Positions:
        """The positions after these rows; advances the mark, see :meth:`Store.evict`."""
        aggregates = [("offset", "min"), ("offset", "max"), ("timestamp_ms", "max")]
        partitions = rows.group_by(["topic", "partition"], use_threads=False).aggregate(aggregates).to_pylist()
        reached = {topic: dict(offsets) for topic, offsets in self._next.items()}
        for found in partitions:
            offsets = reached.setdefault(found["topic"], {})
            after = offsets.get(found["partition"], 0)
            if found["offset_min"] < after:
                place = f"{found['topic']}/{found['partition']}/{found['offset_min']}"
                raise ValueError(f"row {place} was given before: the next of its partition is {after}")
            offsets[found["partition"]] = found["offset_max"] + 1
        self._store.mark_ms = max(self._store.mark_ms, min(found["timestamp_ms_max"] for found in partitions))
        return reached

    def _changes(self, rows: pa.Table, resolver: Resolver) -> Changes:
        excluded = sorted((*resolver.duplicates, *resolver.superseded))
        late = pc.less(rows["end_ms"], pc.subtract(rows["timestamp_ms"], self.horizon_ms))
        columns = rows.select(Position._fields).take(pa.array(excluded, pa.int64())).to_pydict().values()
        return Changes(
            rows=len(rows),
            excluded=[Position(*values) for values in zip(*columns, strict=True)],
            retractions=self._store.payloads(resolver.retracted),
            duplicates=len(resolver.duplicates),
            superseded=len(resolver.superseded),
            beyond_horizon=len(set(pc.indices_nonzero(late).to_pylist()).difference(excluded)),
        )
