"""Which of the archived rows count: duplicates and superseded versions left out, in the batch.

The definition (the stream's index and the tests' oracle follow the same): of equal ``event_id`` only the row with the
lowest position in the log counts. The first 16 characters of an ``event_id`` name the access, and a version of an
access (an ``event_id``) is superseded where a ``producer_id`` that carried it also carried a later one of the same
access; later is the greater (end_ms, read_bytes + write_bytes, event_id), taken from the row that counts. Rows without
``producer_id`` supersede nothing and are not superseded by it.
"""

from __future__ import annotations

from typing import Final

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

ACCESS_DIGITS: Final = 16
"""How many digits of an ``event_id`` name the access."""

MANY: Final = 5_000_000
"""From so many accesses with several rows on, they are found by shuffling all rows instead of sending every worker a
list (8 bytes each, some 100 MB in a worker's memory)."""


def signed_events(rows: DataFrame, many: int = MANY) -> DataFrame:
    """Well-formed rows of schema.EVENT and schema.POSITION, with ``sign`` (int), which summed counts distinct events.

    All rows with 1, and once more with -1 those that do not count: so rows that count, nearly all, need not be told
    from others one by one. Nearly every access is one row, so the accesses of several rows are found first, by 64 bits
    of hash alone (an access too many does no harm), in a Spark job that runs at once and sorts the hashes, which is
    cheaper than counting them in a hash map; only the rows of these accesses are then shuffled and compared. A sum may
    leave 64 bits on the way to a smaller one (absurd amounts that come twice).
    Not for streams.
    """
    access = F.xxhash64(F.substring(F.col("event_id").cast("binary"), 1, ACCESS_DIGITS))  # bytes need no decoding
    hashes = rows.select(access.alias("_access")).repartition("_access").sortWithinPartitions("_access")
    counted = hashes.groupBy("_access").agg(F.count(F.lit(1)).alias("_rows"))
    several = counted.where(F.col("_rows") > 1).select("_access").localCheckpoint()
    suspected = rows
    if several.count() <= many:
        suspected = rows.join(F.broadcast(several), access == F.col("_access"), "left_semi")
    once = rows.withColumn("sign", F.lit(1))
    return once.unionByName(_not_counting(suspected).withColumn("sign", F.lit(-1)))


def _not_counting(rows: DataFrame) -> DataFrame:
    """The definition itself, by one shuffle of all rows: those left out."""
    version = F.struct("_age", "event_id")
    same = Window.partitionBy("_access", "event_id")
    carried = Window.partitionBy("_access", "producer_id")
    moved = F.col("read_bytes") + F.col("write_bytes")
    first = same.orderBy("topic", "partition", "offset")
    accesses = rows.withColumn("_access", F.substring("event_id", 1, ACCESS_DIGITS)).repartition("_access")
    ranked = accesses.withColumns({
        "_rank": F.row_number().over(first),
        "_age": F.first(F.struct("end_ms", moved.alias("moved"))).over(first),
    })  # fmt: skip
    overtaken = F.col("producer_id").isNotNull() & (version < F.max(version).over(carried))
    judged = ranked.withColumn("_overtaken", overtaken).withColumn("_superseded", F.max("_overtaken").over(same))
    return judged.where((F.col("_rank") > 1) | F.col("_superseded")).select(*rows.columns)
