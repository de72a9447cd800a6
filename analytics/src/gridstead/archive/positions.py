"""Positions in the log: what is below, within and beyond them, as plain values and as conditions on rows."""

from __future__ import annotations

from functools import reduce

from pyspark.sql import Column
from pyspark.sql import functions as F

from gridstead.archive.manifest import Positions, Ranges


def furthest(one: Positions, other: Positions) -> Positions:
    """Of each partition the greater position."""
    result = {topic: dict(partitions) for topic, partitions in one.items()}
    for topic, partitions in other.items():
        known = result.setdefault(topic, {})
        for partition, position in partitions.items():
            known[partition] = max(position, known.get(partition, position))
    return result


def beyond(one: Positions, other: Positions) -> Ranges:
    """Where ``one`` is further than ``other`` (0 where ``other`` does not know a partition), as ranges."""
    result: Ranges = {}
    for topic, partitions in one.items():
        for partition, position in partitions.items():
            start = other.get(topic, {}).get(partition, 0)
            if start < position:
                result.setdefault(topic, {})[partition] = (start, position)
    return result


def intersects(one: Ranges, other: Ranges) -> bool:
    """Whether two sets of ranges have a position in common."""
    return any(
        max(first, others[0]) < min(last, others[1])
        for topic, partitions in one.items()
        for partition, (first, last) in partitions.items()
        if (others := other.get(topic, {}).get(partition)) is not None
    )


def inside(one: Ranges, other: Ranges) -> bool:
    """Whether every position of ``one`` is in ``other`` too."""
    return all(
        (others := other.get(topic, {}).get(partition)) is not None and others[0] <= first and last <= others[1]
        for topic, partitions in one.items()
        for partition, (first, last) in partitions.items()
    )


def length(ranges: Ranges) -> int:
    """The number of positions in ranges."""
    return sum(last - first for partitions in ranges.values() for first, last in partitions.values())


def within(ranges: Ranges) -> Column:
    """The condition on a row of schema.POSITION that it stands in these ranges."""
    clauses = [
        (F.col("topic") == topic)
        & (F.col("partition") == partition)
        & (F.col("offset") >= first)
        & (F.col("offset") < last)
        for topic, partitions in ranges.items()
        for partition, (first, last) in partitions.items()
    ]
    return reduce(lambda a, b: a | b, clauses, F.lit(False)) if clauses else F.lit(False)


def below(positions: Positions) -> Column:
    """The condition on a row of schema.POSITION that it stands before these positions."""
    return within({topic: {p: (0, end) for p, end in partitions.items()} for topic, partitions in positions.items()})
