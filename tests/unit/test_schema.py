"""The parser of Kafka rows: what is an event, and what is kept as malformed."""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, Row, SparkSession

from gridstead import events, sources
from gridstead.schema import (
    EVENT,
    FIELDS,
    MAX_BYTES,
    MAX_TIME_MS,
    PARSED,
    SOURCE_RECORDS,
    parse_events,
    well_formed,
)
from gridstead.sources import SOURCES

ROOT = Path(__file__).resolve().parents[2]

KAFKA = "value binary, topic string, partition int, offset long, timestamp timestamp"
NOW = dt.datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=dt.UTC)
GOOD: dict[str, Any] = dict.fromkeys(EVENT.names) | {
    "event_id": "0" * 32, "source": "access", "start_ms": 1, "end_ms": 2, "read_bytes": 3, "write_bytes": 4,
}  # fmt: skip


def kafka(spark: SparkSession, values: list[bytes | None]) -> DataFrame:
    rows = [(None if v is None else bytearray(v), "t", 1, n, NOW) for n, v in enumerate(values)]
    return spark.createDataFrame(rows, KAFKA)


def parse(spark: SparkSession, *values: bytes | None) -> list[Row]:
    df = parse_events(kafka(spark, list(values)))
    assert df.columns == PARSED.names
    return sorted(df.collect(), key=lambda row: row["offset"])


def test_the_fields_are_those_of_the_collector() -> None:
    assert tuple(f.name for f in FIELDS) == events.FIELDS


def test_an_event_of_the_collector_arrives_field_by_field(spark: SparkSession) -> None:
    record = {"unique_id": "u-1", "file_lfn": "/störe/\n\"x", "server_host": "s", "end_time": 1_700_000_000,
              "start_time": 1_699_999_000,
              "read_bytes": 10, "file_size": 10, "vo": "cms", "user_dn": "/DC=org/CN=é"}  # fmt: skip
    event = sources.normalise(record, 1_700_000_001_000)
    (row,) = parse(spark, events.encode_event(event))
    assert {name: row[name] for name in EVENT.names} == event
    assert (row["topic"], row["partition"], row["offset"], row["malformed"], row["raw"]) == ("t", 1, 0, None, None)
    assert row["timestamp"].astimezone(dt.UTC) == NOW


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"event_id": None}, "event_id is missing"),
        ({"event_id": "short"}, "not 32 hex digits"),
        ({"event_id": "0" * 31 + "G"}, "not 32 hex digits"),
        ({"event_id": "0" * 32 + "\n"}, "not 32 hex digits"),
        ({"source": None}, "source is missing"),
        ({"start_ms": "soon"}, "start_ms is missing"),
        ({"end_ms": 1.5}, "end_ms is missing"),
        ({"start_ms": 3}, "start_ms is after end_ms"),
        ({"start_ms": -1}, "before 1970"),
        ({"end_ms": MAX_TIME_MS + 1}, "after 9999"),
        ({"read_bytes": -1}, "read_bytes is not from 0"),
        ({"write_bytes": MAX_BYTES + 1}, "write_bytes is not from 0"),
        ({"read_bytes": 1 << 70}, "read_bytes is missing"),
    ],
)
def test_what_is_no_event_says_why_and_keeps_its_bytes(
    spark: SparkSession, change: dict[str, Any], reason: str
) -> None:
    raw = json.dumps(GOOD | change).encode()
    good, bad = parse(spark, json.dumps(GOOD).encode(), raw)
    assert good["malformed"] is None and good["event_id"] == "0" * 32
    assert reason in bad["malformed"] and bytes(bad["raw"]) == raw
    assert bad["event_id"] is None and bad["source"] == "malformed"


@pytest.mark.parametrize(
    ("given_", "expected"), [("xrootd", "xrootd"), ("../x", "other"), ("malformed", "other"), ("A" * 9, "other")]
)
def test_a_source_that_cannot_be_a_directory_becomes_other(spark: SparkSession, given_: str, expected: str) -> None:
    (row,) = parse(spark, json.dumps(GOOD | {"source": given_}).encode())
    assert row["source"] == expected and row["malformed"] is None


def test_nothing_that_can_be_in_a_record_stops_the_stream(spark: SparkSession) -> None:
    values: list[bytes | None] = [
        None, b"", b"{", b"[]", b"[1]", b"null", b"1", b"\xff\xfe", b'{"a":' * 5000, b"[" * 100_000,
        b'{"start_ms":' + b"9" * 5000 + b"}",
        b"\x00" * 1000, b'{"vo": {"a": 1}}', b"x" * 2_000_000, json.dumps(GOOD).encode(),
    ]  # fmt: skip
    rows = parse(spark, *values)
    assert len(rows) == len(values)
    assert [row["malformed"] is None for row in rows] == [False] * (len(values) - 1) + [True]
    assert well_formed(parse_events(kafka(spark, values))).count() == 1


scalars = st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=20)
json_values = st.one_of(
    scalars, st.lists(scalars, max_size=2), st.dictionaries(st.text(max_size=3), scalars, max_size=2)
)


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(batch=st.lists(st.one_of(
    st.binary(), json_values.map(lambda v: json.dumps(v).encode()),
    st.dictionaries(st.sampled_from(EVENT.names), json_values, max_size=4).map(
        lambda d: json.dumps(GOOD | d).encode("utf-8", "replace")),
), min_size=5, max_size=20))  # fmt: skip
def test_every_row_is_either_an_event_or_malformed(spark: SparkSession, batch: list[bytes]) -> None:
    rows = parse(spark, *batch)
    assert len(rows) == len(batch)
    for value, row in zip(batch, rows, strict=True):
        if row["malformed"] is None:
            assert len(row["event_id"]) == 32 and 0 <= row["start_ms"] <= row["end_ms"] and row["raw"] is None
        else:
            assert row["event_id"] is None and bytes(row["raw"]) == value


def test_the_data_dictionary_is_fresh_and_a_stale_one_is_found(tmp_path: Path) -> None:
    tool = [sys.executable, ROOT / "tools" / "data_dictionary.py", "--check"]
    done = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = tmp_path / "data-dictionary.md"
    page.write_text((ROOT / "docs" / "reference" / "data-dictionary.md").read_text().replace("user name", "name"))
    done = subprocess.run([*tool, "--page", page], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"{page} is stale" in done.stderr


def test_what_a_source_gives_and_what_an_event_has_agree() -> None:
    for source in SOURCES.values():
        names = [field.name for field in source.fields]
        assert len(names) == len(set(names)) and source.signs <= set(names)
        given = {word for field in source.fields for word in re.findall(r"\w+", field.becomes)}
        assert set(source.personal) <= given
        assert all(source.signs.isdisjoint(other.signs) for other in SOURCES.values() if other is not source)
        assert {f.name for f in FIELDS if f.required} - given <= {"event_id", "source", "read_bytes", "write_bytes", "start_ms"}
        assert SOURCE_RECORDS[source.name].names == names
