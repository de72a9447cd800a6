"""The follower: the speed layer. It takes what the archive has committed and adds it to what is served.

One step covers a range of the log. The identity index says which of its events count, and which earlier ones no longer
do; the statistics of both (sign +1 and -1) are the change, and one transaction adds it to the served documents. The
index is committed after the transaction: after a kill it is behind, and learns the missing range again.

So nothing here has a checkpoint of its own: where to go on stands in the serving layer beside the documents, and every
range can be computed again from the archive.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from gridstead.archive.increments import Increments
from gridstead.archive.manifest import Positions
from gridstead.identity import Changes, IdentityIndex
from gridstead.schema import EVENT
from gridstead.serving.documents import Delta
from gridstead.serving.transactions import Writer
from gridstead.statistic import STATISTICS
from gridstead.statistics import statistics

log = logging.getLogger("gridstead.follower")

ROWS_AT_ONCE: Final = 200_000
"""Rows of one transaction at the most: what a follower that is behind takes in one step."""


@dataclass
class Step:
    """What one step did. ``seconds`` by part; counters as in identity_index.Changes."""

    rows: int
    documents: int
    changes: dict[str, int]
    seconds: dict[str, float] = field(default_factory=dict)


class Follower:
    """Keeps the served documents equal to the statistics of the distinct events of the archive."""

    def __init__(
        self,
        spark: SparkSession,
        increments: Increments,
        writer: Writer,
        index_path: Path,
        horizon_ms: int,
        bin_ms: int,
        max_bins: int,
        which: Sequence[str] = tuple(STATISTICS),
    ) -> None:
        """Open the identity index and bring it to where the served documents are.

        ``horizon_ms``: for how long, by log timestamps, an event is known. Raises what the parts raise.
        """
        self._spark = spark
        self._increments = increments
        self._writer = writer
        self._bin_ms = bin_ms
        self._max_bins = max_bins
        self._which = tuple(which)
        self._index = IdentityIndex(index_path, horizon_ms)
        self._catch_up(horizon_ms)

    @property
    def positions(self) -> Positions:
        """Up to where the log is in the served documents."""
        return self._writer.control.done.positions

    def close(self) -> None:
        """Close the identity index."""
        self._index.close()

    def step(self, committed: Positions) -> Step | None:
        """Take the next range, up to what the archive has committed; None if there is nothing new."""
        after = self.positions
        upto = self._writer.pending or reachable(after, committed, ROWS_AT_ONCE)
        if not is_beyond(upto, after):
            return None
        clock = _Clock()
        if self._writer.pending is None:
            upto = self._increments.boundary(after, upto)
        events = self._increments.read(after, upto)
        rows = identity_rows(events)
        clock.note("read")
        changes = self._index.apply(rows)
        clock.note("identify")
        try:
            signed = self._signed(events, changes)
            deltas = collect_deltas(statistics(signed, self._which, self._bin_ms, self._max_bins))
            clock.note("compute")
            done = self._writer.transact(upto, deltas)
        except BaseException:
            self._index.rollback()
            raise
        self._index.commit(upto)
        clock.note("write")
        return Step(rows.num_rows, done.documents, _counters(changes), clock.parts)

    def _signed(self, events: DataFrame, changes: Changes) -> DataFrame:
        """The events of a range that count, and those that no longer do, told apart by ``sign``."""
        names = EVENT.names
        if changes.excluded:
            excluded = self._spark.createDataFrame(changes.excluded, "topic string, partition int, offset bigint")
            events = events.join(F.broadcast(excluded), ["topic", "partition", "offset"], "left_anti")
        signed = events.select(*names, F.lit(1).alias("sign"))
        if changes.retractions:
            payloads = self._spark.createDataFrame([(text,) for text in changes.retractions], "payload string")
            gone = payloads.select(F.from_json("payload", EVENT).alias("e")).select("e.*", F.lit(-1).alias("sign"))
            signed = signed.unionByName(gone)
        return signed

    def _catch_up(self, horizon_ms: int) -> None:
        done = self.positions
        if self._index.started_empty:
            log.warning("the identity index begins anew: %s", self._index.started_empty)
        if is_beyond(self._index.upto, done):
            log.info("the identity index is ahead of what is served: it is made anew from the archive")
            self._index.clear()
        start = self._index.upto
        if is_beyond(done, start):
            oldest = self._increments.reaching_back(done, horizon_ms)
            if start and is_beyond(oldest, start):  # of a gateway that has stood by for longer
                log.info("the identity index is older than its horizon: it is made anew from the archive")
                self._index.clear()
            start = self._index.upto or oldest
        began, rows = time.monotonic(), 0
        while is_beyond(done, start):
            upto = reachable(start, done, ROWS_AT_ONCE)
            found = identity_rows(self._increments.read(start, upto))
            self._index.learn(found)
            self._index.commit(upto)
            start, rows = upto, rows + found.num_rows
        if rows:
            log.info("the identity index learnt %d events of the archive in %.0f s", rows, time.monotonic() - began)


def _counters(changes: Changes) -> dict[str, int]:
    return {name: getattr(changes, name) for name in ("duplicates", "superseded", "retracted", "beyond_horizon")}


class _Clock:
    """Seconds by part of a step."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._last = time.monotonic()

    def note(self, part: str) -> None:
        now = time.monotonic()
        self.parts[part] = round(now - self._last, 3)
        self._last = now


def identity_rows(events: DataFrame) -> Any:
    """What the identity index wants to know of events: a pyarrow.Table, a row an event.

    Columns: event_id, producer_id, end_ms, bytes (read + written), topic, partition, offset, timestamp_ms (log), and
    payload: the event as JSON, for the case that a later version takes it back; XRootD's events have no versions.
    """
    payload = F.when(F.col("source") != "xrootd", F.to_json(F.struct(*EVENT.names)))
    return events.select(
        "event_id",
        "producer_id",
        "end_ms",
        (F.col("read_bytes") + F.col("write_bytes")).alias("bytes"),
        "topic",
        "partition",
        "offset",
        F.unix_millis("timestamp").alias("timestamp_ms"),
        payload.alias("payload"),
    ).toArrow()


def collect_deltas(computed: DataFrame) -> list[Delta]:
    """The rows of gridstead.statistics.statistics as deltas; those that change nothing are left out."""
    return deltas_of(computed.select("statistic", "key", "bin_end_ms", "dimensions", "values").toArrow())


def deltas_of(table: Any) -> list[Delta]:
    """The same of a pyarrow.Table."""
    statistic, key, bin_end_ms, dimensions = (
        table.column(name).to_pylist() for name in ("statistic", "key", "bin_end_ms", "dimensions")
    )
    values = [
        tuple(flat[begin:end])
        for chunk in table.column("values").chunks
        for flat, edges in [(chunk.values.to_pylist(), chunk.offsets.to_pylist())]
        for begin, end in pairwise(edges)
    ]
    return [delta for delta in map(Delta, statistic, key, bin_end_ms, dimensions, values) if any(delta.values)]


def is_beyond(upto: Positions, after: Positions) -> bool:
    """Whether positions have something that others do not."""
    return any(
        offset > after.get(topic, {}).get(partition, 0)
        for topic, parts in upto.items()
        for partition, offset in parts.items()
    )


def reachable(after: Positions, committed: Positions, rows: int) -> Positions:
    """How far a step of about so many rows goes: towards ``committed``, every partition with the same share of it."""
    missing = {
        (topic, partition): offset - after.get(topic, {}).get(partition, 0)
        for topic, parts in committed.items()
        for partition, offset in parts.items()
    }
    total = sum(missing.values())
    if total <= rows:
        return committed
    upto: Positions = {}
    for (topic, partition), count in missing.items():
        start = committed[topic][partition] - count
        upto.setdefault(topic, {})[partition] = start + -(-count * rows // total)
    return upto
