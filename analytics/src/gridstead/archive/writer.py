"""The writer: micro-batches of one streaming query into the archive, each position of the log exactly once."""

from __future__ import annotations

import logging
import time
from typing import Final

from pyspark.sql import DataFrame, SparkSession

from gridstead.archive.checkpoint import CheckpointLog
from gridstead.archive.commits import Commits, Staging, new_token, sweep
from gridstead.archive.files import Files
from gridstead.archive.layout import COLUMNS, PARQUET, row_day
from gridstead.archive.manifest import BATCH, GAP, NO_TOKEN, ArchiveError, Manifest, Positions, Ranges
from gridstead.archive.positions import furthest, length, within
from gridstead.schema import PARSED

log = logging.getLogger("gridstead.archive")

KIND: Final = "write"
ROWS_PER_FILE: Final = 25_000
"""A micro-batch of so many rows or more is written by two tasks or more, each with files of its own."""
_WRITERS: Final = "writers"
_KEPT_WRITERS: Final = 100


class ArchiveWriter:
    """Writes the micro-batches of one streaming query.

    ``checkpoint`` is the query's checkpoint: its offset log says which positions a micro-batch reads. What the
    archive has already is left out, so a checkpoint that is lost, set back or copied neither fails nor doubles a row.
    Use ``write_batch`` as the function of foreachBatch.

    The first batch takes a number (an epoch) in writers/; a writer that finds a greater one there gives up, and what
    it may still commit does not count (:func:`gridstead.archive.manifest.live`).
    """

    def __init__(self, spark: SparkSession, root: str, checkpoint: str, codec: str = "zstd") -> None:
        self._files = Files(spark, root)
        self._log = CheckpointLog(spark, checkpoint)
        self._checkpoint = checkpoint
        self._codec = codec
        self._epoch = 0
        self._last: Manifest | None = None

    def write_batch(self, parsed: DataFrame, batch_id: int) -> Manifest:
        """Archive the rows of one micro-batch of schema.PARSED that the archive does not have, and commit them.

        Returns the commit's manifest; where there is nothing new, one without files and ranges that is not stored.
        Raises ArchiveError at a gap, and when another writer has taken over.
        """
        if not self._epoch:
            self._open()
        planned = self._log.ranges(batch_id)
        ranges = self._missing(planned)
        known = self._last.positions if self._last else {}
        if not ranges:
            return Manifest(self._last.token if self._last else NO_TOKEN, BATCH, _now_ms(), 0, (), {}, known)
        if ranges != planned:
            log.warning(
                "batch %d: %d positions are archived already, left out", batch_id, length(planned) - length(ranges)
            )
            parsed = parsed.where(within(ranges))
        number = self._last.token.last + 1 if self._last else 1
        token = new_token(number, number, self._epoch)
        staging = Staging(self._files, KIND, token)
        self._write(parsed, length(ranges), staging.data)
        files, names = staging.staged()
        manifest = Manifest(
            token=token,
            kind=BATCH,
            committed_ms=max(_now_ms(), self._last.committed_ms if self._last else 0),
            rows=sum(file.rows for file in files),
            files=files,
            ranges=ranges,
            positions=furthest(known, self._log.positions(batch_id)),
            columns=COLUMNS,
            source=f"{self._log.writer()}/{batch_id}",
        )
        self._check_epoch()
        staging.commit(manifest, names)
        self._last = manifest
        return manifest

    def accept_gap(self, topic: str, partition: int, upto: int) -> Manifest:
        """Give up the positions from what the archive has of a partition to before ``upto``, on record.

        Another writer that runs ends, and goes on behind the gap when it is started again. Raises ArchiveError where
        there is no such gap.
        """
        self._open()
        known = self._known(topic, partition, upto)
        if self._last is None or known >= upto:
            raise ArchiveError(
                f"the archive {self._files.root} has no gap before offset {upto} of partition {partition} of topic "
                f"{topic}: `gridstead archive status` shows what it has"
            )
        number = self._last.token.last + 1
        token = new_token(number, number, self._epoch)
        manifest = Manifest(
            token=token,
            kind=GAP,
            committed_ms=max(_now_ms(), self._last.committed_ms),
            rows=0,
            files=(),
            ranges={topic: {partition: (known, upto)}},
            positions=furthest(self._last.positions, {topic: {partition: upto}}),
            absent=upto - known,
        )
        Staging(self._files, KIND, token).commit(manifest, {})
        self._last = manifest
        return manifest

    def _open(self) -> None:
        self._files.mkdirs(_WRITERS)
        epochs = self._epochs()
        epoch = epochs[-1] + 1 if epochs else 1
        while not self._files.create(f"{_WRITERS}/{epoch:06d}", f"{self._checkpoint} {_now_ms()}\n"):
            epoch += 1
        for old in epochs[:-_KEPT_WRITERS]:
            self._files.delete(f"{_WRITERS}/{old:06d}")
        sweep(self._files, KIND)
        self._last = Commits(self._files).newest()
        self._epoch = epoch

    def _epochs(self) -> list[int]:
        return [int(name) for name in self._files.names(_WRITERS) if name.isdigit()]

    def _check_epoch(self) -> None:
        newest = max(self._epochs(), default=0)
        if newest != self._epoch:
            raise ArchiveError(
                f"another stream writes to the archive {self._files.root} (writer {newest}, this one is "
                f"{self._epoch}): only one may; see `gridstead status` on each host that runs a stream"
            )

    def _missing(self, planned: Ranges) -> Ranges:
        """What of these ranges the archive does not have; raises ArchiveError where they begin beyond what it has."""
        ranges: Ranges = {}
        for topic, partitions in planned.items():
            for partition, (first, end) in partitions.items():
                known = self._known(topic, partition, first)
                if first > known:
                    self._check_epoch()  # if another writer has gone on, then that is what is wrong
                    raise ArchiveError(self._gap(topic, partition, known, first))
                if end > known:
                    ranges.setdefault(topic, {})[partition] = (known, end)
        return ranges

    def _known(self, topic: str, partition: int, otherwise: int) -> int:
        positions: Positions = self._last.positions if self._last else {}
        return positions.get(topic, {}).get(partition, otherwise)

    def _gap(self, topic: str, partition: int, known: int, first: int) -> str:
        return (
            f"the archive {self._files.root} holds partition {partition} of topic {topic} up to offset {known}, but "
            f"the checkpoint {self._checkpoint} goes on at offset {first}: move the checkpoint away "
            f"(hadoop fs -mv {self._checkpoint} {self._checkpoint.rstrip('/')}.old) and the stream reads on where the "
            f"archive ends; if Kafka no longer has those records, `gridstead archive accept-gap {topic} {partition} "
            f"{first}` gives them up for good"
        )

    def _write(self, parsed: DataFrame, rows: int, staging: str) -> None:
        dated = parsed.select(*PARSED.names, row_day().alias("date")).coalesce(1 + rows // ROWS_PER_FILE)
        writer = dated.write.partitionBy("source", "date").mode("overwrite").options(**PARQUET)
        writer.option("compression", self._codec).parquet(self._files.url(staging))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
