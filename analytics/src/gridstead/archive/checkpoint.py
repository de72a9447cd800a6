"""What Spark noted in the checkpoint of one streaming query."""

from __future__ import annotations

import json

from pyspark.sql import SparkSession

from gridstead.archive.files import Files
from gridstead.archive.manifest import Positions, Ranges, positions_of


class CheckpointLog:
    """The id of a streaming query, and the positions of each of its micro-batches."""

    def __init__(self, spark: SparkSession, checkpoint: str) -> None:
        self._files = Files(spark, checkpoint)

    def writer(self) -> str:
        """The first 8 hex digits of the query's id."""
        return str(json.loads(self._files.read("metadata"))["id"]).replace("-", "")[:8]

    def committed(self) -> Positions:
        """Up to where the log is read by the last micro-batch that is done; empty if none is."""
        done = [int(name) for name in self._files.names("commits") if name.isdigit()]
        return self.positions(max(done)) if done else {}

    def ranges(self, batch: int) -> Ranges:
        """The positions that a micro-batch reads, from the first to after the last, without the empty ones."""
        ends = self.positions(batch)
        starts = self._offsets(f"offsets/{batch - 1}") if batch > 0 else self._offsets("sources/0/0")
        ranges: Ranges = {}
        for topic, partitions in ends.items():
            for partition, end in partitions.items():
                start = starts.get(topic, {}).get(partition, 0)
                if start != end:
                    ranges.setdefault(topic, {})[partition] = (start, end)
        return ranges

    def positions(self, batch: int) -> Positions:
        """Up to where the log is read when this micro-batch is done."""
        return self._offsets(f"offsets/{batch}")

    def _offsets(self, path: str) -> Positions:
        last = self._files.read(path).strip().splitlines()[-1]
        start = last.find("{")
        return {} if start < 0 else positions_of(json.loads(last[start:]))
