"""The writer: micro-batches of one streaming query into the archive, each position of the log exactly once."""

from __future__ import annotations

import logging
import random
import secrets
import time
from typing import Final

from pyspark.sql import DataFrame, SparkSession

from gridstead.archive.checkpoint import CheckpointLog
from gridstead.archive.commits import Commits, Staging, new_token, sweep
from gridstead.archive.files import Files
from gridstead.archive.layout import COLUMNS, row_day
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
        self._write(parsed, length(ranges), staging)
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
        epoch = self._claim()
        # first what is there, then the sweep: what a predecessor commits between them is kept, and does not count
        self._last = Commits(self._files).newest()
        sweep(self._files, KIND)
        self._epoch = epoch

    def _claim(self) -> int:
        """Take an epoch that nobody else has.

        Each claim is a file of its own, so that this needs no file system on which only one of two can create a file:
        of two who claim the same epoch, he who looks later sees the other, and goes on with a later one.
        """
        while True:
            epochs = self._epochs()
            epoch = max(epochs.values(), default=0) + 1
            mine = f"{epoch:06d}-{secrets.token_hex(4)}"
            self._files.write(f"{_WRITERS}/{mine}", f"{self._checkpoint} {_now_ms()}\n")
            others = {name: number for name, number in self._epochs().items() if name != mine}
            if max(others.values(), default=0) < epoch:
                for old in sorted(epochs)[:-_KEPT_WRITERS]:
                    self._files.delete(f"{_WRITERS}/{old}")
                return epoch
            time.sleep(random.random())

    def _epochs(self) -> dict[str, int]:
        """The claims by name: <epoch>-<nonce>, or only <epoch> as earlier versions wrote."""
        names = self._files.names(_WRITERS)
        return {name: int(epoch) for name in names if (epoch := name.partition("-")[0]).isdigit()}

    def _check_epoch(self) -> None:
        newest = max(self._epochs().values(), default=0)
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

    def _write(self, parsed: DataFrame, rows: int, staging: Staging) -> None:
        dated = parsed.select(*PARSED.names, row_day().alias("date")).coalesce(1 + rows // ROWS_PER_FILE)
        staging.write(dated, self._codec)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
