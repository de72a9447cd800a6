"""Transfer statistics: hand-made cases, equality with the oracle, sums, and micro-batches."""

from __future__ import annotations

import datetime as dt
import json
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import LongType, StructField, StructType

from gridstead.jobs.stream import transfers
from gridstead.schema import EVENT, POSITION, parse_events, well_formed
from gridstead.statistics import LONG_MAX, TRANSFER_COLUMNS, transfer_statistics
from oracle import oracle_transfer_statistics

BIN = 600_000
T0 = 1_700_000_400_000  # the start of a bin
WIRE = StructType([*EVENT.fields, StructField("timestamp_ms", LongType())])


def event(number: int = 0, **fields: Any) -> dict[str, Any]:
    """An event that read 1000 bytes in one minute of one bin."""
    base: dict[str, Any] = dict.fromkeys(EVENT.names)
    base.update(event_id=f"{number:032x}", source="access", start_ms=T0, end_ms=T0 + 60_000, read_bytes=1000,
                write_bytes=0, timestamp_ms=T0 + 100_000 + number)  # fmt: skip
    return base | fields


def frame(spark: SparkSession, events: Iterable[dict[str, Any]]) -> DataFrame:
    rows = [tuple(e[name] for name in WIRE.names) for e in events]
    df = spark.createDataFrame(rows, WIRE)
    return df.withColumn("timestamp", F.timestamp_millis("timestamp_ms")).drop("timestamp_ms")


def statistics(spark: SparkSession, events: Iterable[dict[str, Any]], **options: int) -> list[dict[str, Any]]:
    result = transfer_statistics(frame(spark, events), **options)
    assert tuple(result.columns) == TRANSFER_COLUMNS
    return sorted((row.asDict() for row in result.collect()), key=lambda row: row["key"])


def by_bin(rows: list[dict[str, Any]], name: str) -> dict[int, Any]:
    return {(row["bin_end_ms"] - T0) // BIN - 1: row[name] for row in rows}


def test_an_event_over_three_bins_is_shared_out_in_integers_that_add_up(spark: SparkSession) -> None:
    rows = statistics(spark, [event(start_ms=T0 + 500_000, end_ms=T0 + 1_400_000, read_bytes=1_000_001)])
    assert by_bin(rows, "bytes") == {0: 111_111, 1: 666_667, 2: 222_223}
    assert sum(by_bin(rows, "bytes").values()) == 1_000_001
    assert by_bin(rows, "active_time") == {0: 100_000, 1: 600_000, 2: 200_000}
    assert by_bin(rows, "active") == {0: 1, 1: 1, 2: 1}
    assert by_bin(rows, "finished") == {0: 0, 1: 0, 2: 1}


def test_an_event_that_ends_on_an_edge_ends_in_the_bin_before_it(spark: SparkSession) -> None:
    rows = statistics(spark, [event(start_ms=T0, end_ms=T0 + BIN)])
    assert by_bin(rows, "finished") == {0: 1}


def test_a_zero_length_event_on_an_edge_is_whole_in_the_bin_that_begins_there(spark: SparkSession) -> None:
    rows = statistics(spark, [event(start_ms=T0 + BIN, end_ms=T0 + BIN, read_bytes=77)])
    assert [(r["bytes"], r["active_time"], r["finished"]) for r in rows] == [(77, 0, 1)]
    assert by_bin(rows, "active") == {1: 1}


def test_what_is_over_the_cap_is_booked_on_the_first_bin_kept_and_flagged(spark: SparkSession) -> None:
    rows = statistics(spark, [event(start_ms=T0, end_ms=T0 + 5 * BIN, read_bytes=500)], max_bins=2)
    assert by_bin(rows, "bytes") == {3: 400, 4: 100}
    assert by_bin(rows, "active_time") == {3: 4 * BIN, 4: BIN}
    assert by_bin(rows, "capped") == {3: 1, 4: 0}
    assert by_bin(rows, "finished") == {3: 0, 4: 1}


def test_key_direction_and_flags(spark: SparkSession) -> None:
    known = {"client_domain": "c.example", "server_domain": "s.example", "vo": "cms", "file_size": 1000}
    rows = statistics(spark, [
        event(1, **known),
        event(2, **known | {"read_bytes": 0, "write_bytes": 1000}),
        event(3, **known | {"read_bytes": 0, "client_domain": "s.example"}),
        event(4, server_host="10.0.0.1"),
        event(5, vo="a|b%", client_domain="c.example"),
    ])  # fmt: skip
    end = T0 + BIN
    assert [row["key"] for row in rows] == sorted([
        f"cms|s.example|c.example|true|true|r|{end}",
        f"cms|c.example|s.example|true|true|w|{end}",
        f"cms|s.example|s.example|false|false|u|{end}",
        f"unknown|10.0.0.1|unknown|false|false|r|{end}",
        f"a%7Cb%25|unknown|c.example|false|false|r|{end}",
    ])  # fmt: skip


def test_a_key_too_long_for_an_id_is_hashed(spark: SparkSession) -> None:
    (row,) = statistics(spark, [event(vo="é" * 300, client_domain="ü" * 200, server_domain="s")])
    assert row["key"].startswith("sha256-") and row["key"].endswith(f"|{T0 + BIN}") and len(row["key"]) < 100
    assert row["vo"] == "é" * 255


def test_sums_stop_at_the_largest_integer_instead_of_stopping_the_stream(spark: SparkSession) -> None:
    rows = statistics(spark, [event(i, read_bytes=1 << 60) for i in range(9)])
    assert [row["bytes"] for row in rows] == [LONG_MAX]


@pytest.mark.parametrize("options", [{"bin_ms": 0}, {"max_bins": 0}])
def test_senseless_bins_are_refused(spark: SparkSession, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        transfer_statistics(frame(spark, []), **options)


names = st.sampled_from([None, "a.example", "b.example", "x|y", "100%", "é" * 200, "日本" * 130])
lengths = st.one_of(
    st.just(0), st.integers(1, 3 * BIN), st.integers(0, 5).map(lambda k: k * BIN), st.integers(0, 40 * 86_400_000),
    st.integers(3_037_000_490, 3_037_000_510), st.just(1_600_000_000_000),
)  # fmt: skip
starts = st.one_of(st.integers(-3, 3).map(lambda k: T0 + k * BIN), st.integers(T0 - 5 * BIN, T0 + 5 * BIN), st.just(0))
sizes = st.one_of(st.just(0), st.integers(0, 5000), st.integers(0, 1 << 45), st.just(1 << 60))


@st.composite
def events_of_any_kind(draw: st.DrawFn) -> list[dict[str, Any]]:
    events = []
    for number in range(draw(st.integers(1, 40))):
        start, read, written = draw(starts), draw(sizes), draw(st.one_of(st.just(0), sizes))
        events.append(event(
            number, start_ms=start, end_ms=start + draw(lengths), read_bytes=read, write_bytes=written,
            file_size=draw(st.sampled_from([None, 0, read + written])), vo=draw(names), server_domain=draw(names),
            client_domain=draw(names), server_host=draw(names), client_host=draw(names),
        ))  # fmt: skip
    return events


slow = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


@slow
@given(
    events=events_of_any_kind(),
    bin_ms=st.sampled_from([BIN, 1000 * 3600, 86_400_000]),
    cap=st.sampled_from([1, 3, 1008]),
)
def test_equals_the_oracle_field_by_field(
    spark: SparkSession, events: list[dict[str, Any]], bin_ms: int, cap: int
) -> None:
    assert statistics(spark, events, bin_ms=bin_ms, max_bins=cap) == oracle_transfer_statistics(events, bin_ms, cap)


@slow
@given(events=events_of_any_kind(), cap=st.sampled_from([1, 7, 1008]))
def test_the_sum_over_bins_is_the_sum_over_events(spark: SparkSession, events: list[dict[str, Any]], cap: int) -> None:
    for e in events:  # so small that no sum reaches the limit
        e.update(read_bytes=e["read_bytes"] % (1 << 50), write_bytes=e["write_bytes"] % (1 << 50))
    rows = statistics(spark, events, max_bins=cap)
    assert sum(r["bytes"] for r in rows) == sum(e["read_bytes"] + e["write_bytes"] for e in events)
    assert sum(r["active_time"] for r in rows) == sum(e["end_ms"] - e["start_ms"] for e in events)
    assert sum(r["finished"] for r in rows) == len(events)
    over = sum(-(-e["end_ms"] // BIN) - e["start_ms"] // BIN > cap for e in events if e["end_ms"] > e["start_ms"])
    assert sum(r["capped"] for r in rows) == over
    assert all(r["bytes"] >= 0 and r["active"] >= r["finished"] for r in rows)


def stream_result(
    spark: SparkSession, directory: Path, batches: list[list[dict[str, Any]]], stop_after: int | None = None
) -> dict[str, dict[str, Any]]:
    """Run the product's statistics query over files, one a micro-batch; the last version of each document."""
    source, documents = directory / "in", {}
    source.mkdir()
    for number, batch in enumerate(batches):
        file = source / f"{number:05d}.json"
        lines = [
            {"value": json.dumps({k: v for k, v in e.items() if k != "timestamp_ms"}), "ms": e["timestamp_ms"]}
            for e in batch
        ]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        os.utime(file, (1_000_000 + number, 1_000_000 + number))
    kafka = (
        spark.readStream.schema("value string, ms long").option("maxFilesPerTrigger", 1).json(str(source))
        .select(F.col("value").cast("binary").alias("value"), F.lit("t").alias("topic"), F.lit(0).alias("partition"),
                F.col("ms").alias("offset"), F.timestamp_millis("ms").alias("timestamp"))
    )  # fmt: skip
    assert set(POSITION.names) <= set(kafka.columns)

    def keep(df: DataFrame, batch_id: int) -> None:
        if stop_after is not None and batch_id == stop_after and not (directory / "stopped").exists():
            (directory / "stopped").touch()
            for row in df.collect():
                documents[row["key"]] = row.asDict()
            raise RuntimeError("killed between sink and commit")
        for row in df.collect():
            old = documents.get(row["key"])
            assert old is None or old["active"] <= row["active"]
            documents[row["key"]] = row.asDict()

    for _ in range(2):
        query = (
            transfers(parse_events(kafka), 86_400, BIN, 1008).writeStream.outputMode("update").foreachBatch(keep)
            .option("checkpointLocation", str(directory / "checkpoint")).trigger(availableNow=True).start()
        )  # fmt: skip
        try:
            query.awaitTermination()
            break
        except Exception as error:
            if "killed between" not in str(error):
                raise
    return documents


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_split_into_micro_batches_gives_the_same_even_with_duplicates_and_a_kill(
    spark: SparkSession, tmp_path: Path, seed: int
) -> None:
    random_ = random.Random(seed)
    events = []
    for number in range(120):
        start = T0 + random_.randrange(-20 * BIN, 20 * BIN)
        events.append(event(number, start_ms=start, end_ms=start + random_.choice([0, 1, 90_000, 5 * BIN, 400 * BIN]),
                            read_bytes=random_.randrange(1 << 40), vo=random_.choice([None, "cms", "atlas"]),
                            server_host=random_.choice(["s1", "s2"])))  # fmt: skip
    log = events + [e | {"timestamp_ms": e["timestamp_ms"] + 5000} for e in random_.choices(events, k=40)]
    log.sort(key=lambda e: e["timestamp_ms"])
    cuts = sorted(random_.sample(range(1, len(log)), 4))
    batches = [log[a:b] for a, b in zip([0, *cuts], [*cuts, len(log)], strict=True)]
    documents = stream_result(spark, tmp_path, batches, stop_after=random_.randrange(4))
    streamed = [documents[key] for key in sorted(documents)]
    assert streamed == oracle_transfer_statistics(events)
    assert streamed == statistics(spark, events)


def test_events_go_through_json_unchanged(spark: SparkSession) -> None:
    e = event(9, vo="né|w\n", client_host='q"uote', file_size=3)
    kafka = spark.createDataFrame(
        [(bytearray(json.dumps(e).encode()), "t", 0, 5, dt.datetime(2024, 1, 1))],
        "value binary, topic string, partition int, offset long, timestamp timestamp",
    )
    (row,) = well_formed(parse_events(kafka)).collect()
    assert {name: row[name] for name in EVENT.names} == {name: e[name] for name in EVENT.names}
