"""Distinct events in the batch equal the oracle, whichever way they are found."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from pyspark.sql.types import StructType

from gridstead.identity.batch import signed_events
from gridstead.schema import EVENT, POSITION
from oracle import distinct

ROW = StructType([*EVENT.fields, *POSITION.fields])
T0 = 1_700_000_400_000


def row(access: int, version: int, producer: str | None, end: int, read: int, offset: int) -> dict[str, Any]:
    base: dict[str, Any] = dict.fromkeys(ROW.names)
    base.update(event_id=f"{access:016x}{version:016x}", source="access", producer_id=producer, start_ms=T0,
                end_ms=T0 + end, read_bytes=read, write_bytes=3, topic="events", partition=access % 3, offset=offset,
                timestamp=dt.datetime(2024, 1, 1) + dt.timedelta(seconds=offset))  # fmt: skip
    return base


def counted(spark: SparkSession, log: list[dict[str, Any]], **options: int) -> list[tuple[str, int]]:
    rows = spark.createDataFrame([tuple(e[name] for name in ROW.names) for e in log], ROW)
    result = signed_events(rows.repartition(3), **options)
    assert result.columns == [*ROW.names, "sign"]
    signs: Counter[tuple[str, int]] = Counter()
    for e in result.select("event_id", "offset", "sign").collect():
        signs[e["event_id"], e["offset"]] += e["sign"]
    assert set(signs.values()) <= {0, 1}
    return sorted(signs.elements())


def expected(log: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return sorted((e["event_id"], e["offset"]) for e in distinct(log))


def test_the_definition_by_hand(spark: SparkSession) -> None:
    log = [
        row(1, 1, "p", 10, 5, 0),
        row(1, 2, "p", 20, 5, 1),  # supersedes the first
        row(1, 1, "q", 10, 5, 2),  # the first again, under another id: stays superseded
        row(2, 2, "p", 10, 9, 3),
        row(2, 1, "p", 10, 5, 4),  # an older version that comes late: superseded at once
        row(3, 1, None, 10, 5, 5),
        row(3, 2, None, 20, 5, 6),  # without an id nothing is known of it: both count
        row(4, 1, "p", 10, 5, 7),
        row(4, 2, "q", 20, 5, 8),  # another producer's: both count
        row(5, 1, "p", 10, 5, 9),
        row(5, 1, "p", 99, 5, 10),  # the same with a clamped clock: the lower position counts
        row(6, 1, "p", 10, 5, 11),
        row(6, 1, "p", 10, 5, 11),  # one position read twice counts once
    ]  # fmt: skip
    counts = [(f"{a:016x}{v:016x}", offset) for a, v, offset in [
        (1, 2, 1), (2, 2, 3), (3, 1, 5), (3, 2, 6), (4, 1, 7), (4, 2, 8), (5, 1, 9), (6, 1, 11)]]  # fmt: skip
    assert expected(log) == counts
    assert counted(spark, log) == counts
    assert counted(spark, log, many=0) == counts


@st.composite
def logs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Few accesses with versions of few ages under few ids, so that all of them meet; and some accesses of one row."""
    log = []
    small = st.integers(0, 3)
    for offset in range(draw(st.integers(1, 60))):
        access = draw(st.one_of(st.integers(0, 4), st.just(1000 + offset)))
        version, producer = draw(small), draw(st.sampled_from([None, "a", "b", "c"]))
        clamped = draw(st.sampled_from([0, 0, 0, 7]))  # copies of one content may differ in a clamped end
        log.append(row(access, version, producer, version // 2 * 5 + clamped, version % 2 * 100, offset))
    return log


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(log=logs())
def test_random_logs_give_what_the_oracle_gives_by_both_ways(spark: SparkSession, log: list[dict[str, Any]]) -> None:
    assert counted(spark, log) == expected(log)
    assert counted(spark, log, many=0) == expected(log)
