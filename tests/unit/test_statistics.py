"""The statistics: hand-made cases, equality with the oracle, sums, changes, and micro-batches."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import LongType, StructField, StructType

from gridstead.schema import EVENT, parse_events, well_formed
from gridstead.statistic import STATISTICS
from gridstead.statistics import LONG_MAX, statistics, typed
from oracle import oracle_statistics

BIN = 600_000
T0 = 1_700_000_400_000  # the start of a bin
WIRE = StructType([*EVENT.fields, StructField("timestamp_ms", LongType())])

Values = dict[str, dict[str, tuple[int, ...]]]


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


def collected(table: DataFrame) -> Values:
    """The table as the oracle gives it: name -> key -> values; no key twice."""
    assert table.columns == ["statistic", "key", "bin_end_ms", "dimensions", "values"]
    found: Values = {}
    for row in table.collect():
        keys = found.setdefault(row["statistic"], {})
        assert row["key"] not in keys and row["key"].endswith(f"|{row['bin_end_ms']}")
        keys[row["key"]] = tuple(row["values"])
    return found


def flat(
    spark: SparkSession, name: str, events: Iterable[dict[str, Any]], max_bins: int = 1008
) -> list[dict[str, Any]]:
    """One statistic of the events as its flat table, by key."""
    table = typed(statistics(frame(spark, events), [name], BIN, max_bins), name, BIN)
    return sorted((row.asDict() for row in table.collect()), key=lambda row: row["key"])


def by_bin(rows: list[dict[str, Any]], name: str) -> dict[int, Any]:
    return {(row["bin_end_ms"] - T0) // BIN - 1: row[name] for row in rows}


def test_an_event_over_three_bins_is_shared_out_in_integers_that_add_up(spark: SparkSession) -> None:
    rows = flat(spark, "transfers", [event(start_ms=T0 + 500_000, end_ms=T0 + 1_400_000, read_bytes=1_000_001)])
    assert by_bin(rows, "bytes") == {0: 111_111, 1: 666_667, 2: 222_223}
    assert sum(by_bin(rows, "bytes").values()) == 1_000_001
    assert by_bin(rows, "active_time") == {0: 100_000, 1: 600_000, 2: 200_000}
    assert by_bin(rows, "active") == {0: 1, 1: 1, 2: 1}
    assert by_bin(rows, "finished") == {0: 0, 1: 0, 2: 1}


def test_an_event_that_ends_on_an_edge_ends_in_the_bin_before_it(spark: SparkSession) -> None:
    rows = flat(spark, "transfers", [event(start_ms=T0, end_ms=T0 + BIN)])
    assert by_bin(rows, "finished") == {0: 1}


def test_a_zero_length_event_on_an_edge_is_whole_in_the_bin_that_begins_there(spark: SparkSession) -> None:
    rows = flat(spark, "transfers", [event(start_ms=T0 + BIN, end_ms=T0 + BIN, read_bytes=77)])
    assert [(r["bytes"], r["active_time"], r["finished"]) for r in rows] == [(77, 0, 1)]
    assert by_bin(rows, "active") == {1: 1}


def test_what_is_over_the_cap_is_booked_on_the_first_bin_kept_and_flagged(spark: SparkSession) -> None:
    rows = flat(spark, "transfers", [event(start_ms=T0, end_ms=T0 + 5 * BIN, read_bytes=500)], max_bins=2)
    assert by_bin(rows, "bytes") == {3: 400, 4: 100}
    assert by_bin(rows, "active_time") == {3: 4 * BIN, 4: BIN}
    assert by_bin(rows, "capped") == {3: 1, 4: 0}
    assert by_bin(rows, "finished") == {3: 0, 4: 1}


def test_key_direction_and_flags(spark: SparkSession) -> None:
    known = {"client_domain": "c.example", "server_domain": "s.example", "vo": "cms", "file_size": 1000}
    rows = flat(spark, "transfers", [
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


def test_access_counts_reads_and_writes_of_a_file_each_with_its_bytes_and_time(spark: SparkSession) -> None:
    file = {"vo": "cms", "server_host": "s1", "file_lfn": "/a|b", "client_host": "node1", "server_username": "prod"}
    rows = flat(spark, "access", [
        event(1, **file, end_ms=T0 + BIN + 300_000, read_bytes=900, write_bytes=90, file_size=4000),
        event(2, **file, read_bytes=50, file_size=1001),
        event(3, **file, read_bytes=0),
    ])  # fmt: skip
    assert [row["key"] for row in rows] == [f"cms|s1|/a%7Cb|prod|false|false|{T0 + n * BIN}" for n in (1, 2)]
    first, second = rows
    assert list(first) == ["key", *STATISTICS["access"].dimensions, "bin_end_ms", "bin_ms",
                           *STATISTICS["access"].values, "average_file_size"]  # fmt: skip
    assert (first["file"], first["is_remote"], first["bin_ms"]) == ("/a|b", False, BIN)
    assert tuple(first[name] for name in STATISTICS["access"].values) == (
        3, 5001, 2, 2, 650, 660_000, 1, 60, 600_000, 0)  # fmt: skip
    assert tuple(second[name] for name in STATISTICS["access"].values) == (
        1, 4000, 1, 1, 300, 300_000, 1, 30, 300_000, 0)  # fmt: skip
    assert (first["average_file_size"], second["average_file_size"]) == (2500.5, 4000.0)


def test_an_average_of_no_known_size_is_null(spark: SparkSession) -> None:
    (row,) = flat(spark, "access", [event(client_domain="c.example", server_username="prod")])
    assert (row["average_file_size"], row["user_domain"]) == (None, "c.example")


def test_users_and_how_many_are_active(spark: SparkSession) -> None:
    events = [
        event(1, user="ann", vo="cms", read_single_bytes=11, read_vector_bytes=None, file_size=7),
        event(2, user="ann", vo="atlas", read_single_bytes=None, read_vector_bytes=5),
        event(3, user="bob", vo="cms", start_ms=T0 + BIN, end_ms=T0 + BIN),
        event(4, user=None, vo="cms", read_single_bytes=3),
    ]
    end = T0 + BIN
    found = collected(statistics(frame(spark, events), ["users", "presence"]))
    assert found["presence"] == {f"ann|{end}": (2,), f"bob|{end + BIN}": (1,)}
    assert found["users"] == {
        f"cms|ann|false|false|{end}": (1, 11, 0, 7, 0),
        f"atlas|ann|false|false|{end}": (1, 0, 5, 0, 0),
        f"cms|bob|false|false|{end + BIN}": (1, 0, 0, 0, 0),
        f"cms|unknown|false|false|{end}": (1, 3, 0, 0, 0),
    }


def test_a_key_too_long_for_an_id_is_hashed_and_its_names_stay_whole(spark: SparkSession) -> None:
    (row,) = flat(spark, "transfers", [event(vo="é" * 300, client_domain="ü" * 200, server_domain="s")])
    assert row["key"].startswith("sha256-") and row["key"].endswith(f"|{T0 + BIN}") and len(row["key"]) < 100
    assert row["vo"] == "é" * 255
    paths = ["/" + "d" * 600 + end for end in ("/one", "/two")]
    rows = flat(spark, "access", [event(number, file_lfn=path) for number, path in enumerate(paths)])
    assert sorted(row["file"] for row in rows) == paths
    assert all(row["key"].startswith("sha256-") for row in rows)


def test_sums_stop_at_the_largest_integer_instead_of_stopping_the_stream(spark: SparkSession) -> None:
    rows = flat(spark, "transfers", [event(i, read_bytes=1 << 60) for i in range(9)])
    assert [row["bytes"] for row in rows] == [LONG_MAX]


@pytest.mark.parametrize("options", [{"bin_ms": 0}, {"max_bins": 0}, {"which": []}, {"which": ["users", "sites"]}])
def test_senseless_arguments_are_refused(spark: SparkSession, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1|there are transfers, access, users, presence"):
        statistics(frame(spark, []), **options)


names = st.sampled_from([None, "a.example", "b.example", "x|y", "100%", "é" * 200, "日本" * 130, "", 'q"\\\n'])
lengths = st.one_of(
    st.just(0), st.integers(1, 3 * BIN), st.integers(0, 5).map(lambda k: k * BIN), st.integers(0, 40 * 86_400_000),
    st.integers(3_037_000_490, 3_037_000_510), st.just(1_600_000_000_000),
)  # fmt: skip
starts = st.one_of(st.integers(-3, 3).map(lambda k: T0 + k * BIN), st.integers(T0 - 5 * BIN, T0 + 5 * BIN), st.just(0))
sizes = st.one_of(st.just(0), st.integers(0, 5000), st.integers(0, 1 << 45), st.integers(0, 1 << 57))


@st.composite
def events_of_any_kind(draw: st.DrawFn) -> list[dict[str, Any]]:
    events = []
    for number in range(draw(st.integers(1, 50))):
        start, read, written = draw(starts), draw(sizes), draw(st.one_of(st.just(0), sizes))
        events.append(event(
            number, start_ms=start, end_ms=start + draw(lengths), read_bytes=read, write_bytes=written,
            file_size=draw(st.sampled_from([None, 0, read + written, 1 << 40])), vo=draw(names),
            server_domain=draw(names), client_domain=draw(names), server_host=draw(names), client_host=draw(names),
            server_username=draw(names), user=draw(names), file_lfn=draw(st.one_of(names, st.just("/f" * 3000))),
            read_single_bytes=draw(st.sampled_from([None, 0, read, read // 3])),
            read_vector_bytes=draw(st.sampled_from([None, 0, read - read // 3])),
        ))  # fmt: skip
    return events


def few(examples: int) -> settings:
    """Settings of properties that run Spark queries: few examples, each of many events, and no hour of shrinking."""
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), phases=phases)


@few(9)
@given(events=events_of_any_kind(), bins=st.sampled_from([(BIN, 1008), (BIN, 3), (86_400_000, 1)]))
def test_all_statistics_in_one_pass_equal_the_oracle(
    spark: SparkSession, events: list[dict[str, Any]], bins: tuple[int, int]
) -> None:
    found = collected(statistics(frame(spark, events), bin_ms=bins[0], max_bins=bins[1]))
    for name, expected in oracle_statistics(events, *bins).items():
        assert found.get(name, {}) == expected, name


@few(2)
@given(events=events_of_any_kind())
def test_one_pass_gives_what_each_alone_gives(spark: SparkSession, events: list[dict[str, Any]]) -> None:
    df = frame(spark, events)
    alone: Values = {}
    for name in STATISTICS:
        alone |= collected(statistics(df, [name]))
    assert collected(statistics(df)) == alone


@few(4)
@given(events=events_of_any_kind(), cap=st.sampled_from([7, 1008]))
def test_the_sum_over_bins_is_the_sum_over_events(spark: SparkSession, events: list[dict[str, Any]], cap: int) -> None:
    found = collected(statistics(frame(spark, events), max_bins=cap))

    def summed(name: str, value: str) -> int:
        index = STATISTICS[name].values.index(value)
        return sum(values[index] for values in found[name].values())

    def total(name: str) -> int:
        return sum(e[name] or 0 for e in events)

    time = [e["end_ms"] - e["start_ms"] for e in events]
    assert summed("transfers", "bytes") == total("read_bytes") + total("write_bytes")
    assert summed("transfers", "active_time") == sum(time)
    assert summed("transfers", "finished") == len(events)
    assert summed("access", "read_bytes") == total("read_bytes")
    assert summed("access", "write_bytes") == total("write_bytes")
    assert summed("access", "read_time") == sum(t for e, t in zip(events, time, strict=True) if e["read_bytes"] > 0)
    assert summed("users", "read_single_bytes") == total("read_single_bytes")
    assert summed("users", "read_vector_bytes") == total("read_vector_bytes")
    over = sum(-(-e["end_ms"] // BIN) - e["start_ms"] // BIN > cap for e in events if e["end_ms"] > e["start_ms"])
    assert {summed(name, "capped") for name in ("transfers", "access", "users")} == {over}
    assert {summed("transfers", "active"), summed("access", "events"), summed("users", "events")} == {
        summed("transfers", "active")
    }


@few(4)
@given(added=events_of_any_kind(), removed=events_of_any_kind(), both=events_of_any_kind())
def test_changes_give_the_difference(spark: SparkSession, added: Any, removed: Any, both: Any) -> None:
    sign = {1: [*added, *both], -1: [*removed, *both]}
    plus, minus = (frame(spark, events).withColumn("sign", F.lit(s)) for s, events in sign.items())
    found = collected(statistics(plus.union(minus)))
    after, before = oracle_statistics(sign[1]), oracle_statistics(sign[-1])
    for name, statistic in STATISTICS.items():
        nothing = (0,) * len(statistic.values)
        expected = {
            key: tuple(
                a - b for a, b in zip(after[name].get(key, nothing), before[name].get(key, nothing), strict=True)
            )
            for key in after[name].keys() | before[name].keys()
        }
        assert found.get(name, {}) == {key: values for key, values in expected.items() if any(values)}, name


def test_events_go_through_json_unchanged(spark: SparkSession) -> None:
    e = event(9, vo="né|w\n", client_host='q"uote', file_size=3)
    kafka = spark.createDataFrame(
        [(bytearray(json.dumps(e).encode()), "t", 0, 5, dt.datetime(2024, 1, 1))],
        "value binary, topic string, partition int, offset long, timestamp timestamp",
    )
    (row,) = well_formed(parse_events(kafka)).collect()
    assert {name: row[name] for name in EVENT.names} == {name: e[name] for name in EVENT.names}
