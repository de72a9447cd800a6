"""Three ways to ingest and the formats: the same statistics from all of them, and nothing changed by storing."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import random
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql.types import BooleanType, IntegerType, LongType, StringType, StructField, StructType

from gridstead import formats
from gridstead.events import ValidationError
from gridstead.formats import PAIRS, FormatError
from gridstead.jobs import ingest
from gridstead.jobs.ingest import RAW, Plan
from gridstead.simulate import simulate
from gridstead.sources import normalise_json
from gridstead.statistic import STATISTICS
from oracle import distinct, oracle_statistics

START = 1_748_736_000_000
RECEIVED = START + 3_600_000

NASTY = [
    "a,b", 'quote " and "" two', "line\nbreak\r\nand\rreturn", "percent %0A %25 %", " spaces ", "back\\slash\\", "\\N",
    "null", "tab\t", "é日本\U0001f600", "'", '"', ",", "#", "\u2028", "{}", "true", "-1", "NaN", "\x01\x7f",
]  # fmt: skip
"""Names that a text format may break."""


def lines() -> dict[str, list[bytes]]:
    """The input, by file: repeated, late, future and invalid records, nasty names, and lines that are no JSON."""
    records = list(simulate(3, 300, START, 3600, invalid=0.05, future=0.03, duplicates=0.2))
    assert len(records) > 350
    for number, name in enumerate(NASTY):
        records.append({
            "unique_id": name, "server_host": "s", "client_host": name, "file_lfn": f"/f/{name}", "vo": name,
            "server_domain": name, "client_domain": "c", "app_info": name, "user": name, "user_dn": name,
            "start_time": START + number, "end_time": START + 700_000, "read_bytes": 1000 + number, "file_size": None,
        })  # fmt: skip
    twice = {"server_host": "s", "file_lfn": "f", "user": "u", "end_time": START, "read_bytes": 5}
    records += [twice | {"vo": "first"}, twice | {"vo": "second"}]  # equal identity: the lower position counts
    encoded = [json.dumps(record, ensure_ascii=number % 2 == 0).encode() for number, record in enumerate(records)]
    half = len(encoded) // 2
    broken = b'{"end_time": 1748736000, "vo": "\xff\xfe"}'
    odd = [b"", b"{cut", broken, b"[]", b" ", b'{"end_time": NaN}']
    return {"a.jsonl": encoded[:half], "b.jsonl.gz": odd[:3] + encoded[half:] + odd[3:]}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("messages")
    paths = []
    for name, content in lines().items():
        data = b"".join(line + b"\n" for line in content)
        (directory / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        paths.append(f"file://{directory}/{name}")
    return paths


@pytest.fixture(scope="module")
def expected() -> tuple[int, int, dict[str, tuple[int, ...]]]:
    """Messages, refused ones, and the oracle's statistics."""
    events, count = [], 0
    for content in lines().values():
        for line in content:
            count += 1
            try:
                events.append(normalise_json(line, RECEIVED) | {"timestamp_ms": RECEIVED})
            except ValidationError:
                continue
    return count, count - len(events), oracle_statistics(distinct(events))["transfers"]


# Way 2 stores both raw and normalised rows, so it tries every format; every codec is tried below.
PLANS = [
    *(Plan(2, *pair) for pair in (("avro", "zstd"), ("csv", "snappy"), ("json", "none"), ("parquet", "zstd"))),
    Plan(1, "avro", "snappy"),
    Plan(3, "json", "snappy"),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.way}-{plan.format}-{plan.codec}")
def test_every_way_and_format_gives_the_oracles_statistics(
    spark: SparkSession, tmp_path: Path, inputs: list[str], expected: tuple[int, int, dict[str, tuple[int, ...]]], plan: Plan
) -> None:
    summary = ingest.run(spark, plan, inputs, f"file://{tmp_path}/out", RECEIVED)
    rows = [row.asDict() for row in spark.read.parquet(f"file://{tmp_path}/out/statistics").collect()]
    count, refused, statistics = expected
    assert {row["key"]: tuple(row[name] for name in STATISTICS["transfers"].values) for row in rows} == statistics
    assert (summary.messages, summary.refused, summary.documents) == (count, refused, len(statistics))
    steps = {1: ["store", "analyse"], 2: ["store", "transform", "analyse"], 3: ["store", "analyse"]}
    assert [stage.name for stage in summary.stages] == steps[plan.way]
    for stage in summary.stages:
        assert stage.seconds > 0 and stage.usage.tasks > 0 and stage.usage.cpu_s > 0 and stage.stored_bytes > 0
    assert {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")} == {
        "statistics", *({"raw"} if plan.way > 1 else ()), *({"normalised"} if plan.way < 3 else ())
    }  # fmt: skip


def test_messages_keep_their_bytes_and_order(spark: SparkSession, inputs: list[str], tmp_path: Path) -> None:
    formats.write(ingest.messages(spark, inputs, RECEIVED), f"file://{tmp_path}/raw", "csv", "none")
    rows = formats.read(spark, f"file://{tmp_path}/raw", RAW, "csv").collect()
    kept: dict[str, list[bytes]] = {}
    for row in sorted(rows, key=lambda row: (row["topic"], row["partition"], row["offset"])):
        value = row["value"].encode() if row["value"] is not None else base64.b64decode(row["value_base64"])
        kept.setdefault(row["topic"], []).append(value)
    assert kept == lines()
    assert {row["timestamp_ms"] for row in rows} == {RECEIVED}


def test_positions_follow_the_lines_of_a_file_that_is_read_in_parts(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("".join(f"{number:07d}{'x' * (number % 300)}\n" for number in range(5000)))
    settings = {"spark.sql.files.openCostInBytes": "1", "spark.sql.files.maxPartitionBytes": str(1 << 17)}
    before = {name: spark.conf.get(name) for name in settings}
    try:
        for name, value in settings.items():
            spark.conf.set(name, value)
        raw = ingest.messages(spark, [f"file://{tmp_path}/a"], RECEIVED)
        assert raw.rdd.getNumPartitions() > 4
        rows = raw.collect()
    finally:
        for name, kept in before.items():
            spark.conf.set(name, str(kept))
    positions = [(row["topic"], row["partition"], row["offset"]) for row in sorted(rows, key=lambda row: row["value"])]
    assert positions == sorted(set(positions)) and len(positions) == 5000


ANY = StructType([
    StructField("s", StringType()), StructField("t", StringType()), StructField("b", BooleanType()),
    StructField("i", IntegerType()), StructField("l", LongType()),
])  # fmt: skip


@pytest.mark.parametrize(("format_", "codec"), PAIRS)
def test_a_table_is_read_as_it_was_written(spark: SparkSession, tmp_path: Path, format_: str, codec: str) -> None:
    chance = random.Random(5)
    alphabet = ["%", "0A", "25", "\n", "\r", '"', ",", "\\", " ", "x", "é", "\U0001f600", "\t"]
    texts = [None, "", *NASTY, *("".join(chance.choices(alphabet, k=chance.randint(1, 6))) for _ in range(300))]
    rows = [
        (chance.choice(texts), text, chance.choice([None, True, False]), chance.choice([None, -(1 << 31), 0]),
         chance.choice([None, (1 << 63) - 1, -(1 << 63), 0]))
        for text in texts
    ]  # fmt: skip
    path = f"file://{tmp_path}/t"
    formats.write(spark.createDataFrame(rows, ANY), path, format_, codec)
    read = [tuple(row) for row in formats.read(spark, path, ANY, format_).collect()]
    assert sorted(read, key=repr) == sorted(rows, key=repr)


def test_a_csv_file_of_another_layout_is_an_error_and_not_a_shift(spark: SparkSession, tmp_path: Path) -> None:
    path = f"file://{tmp_path}/t"
    formats.write(spark.createDataFrame([("a", "b", True, 1, 2)], ANY), path, "csv", "none")
    turned = StructType([ANY["t"], ANY["s"], *ANY.fields[2:]])
    with pytest.raises(Exception, match="(?i)header"):
        formats.read(spark, path, turned, "csv").collect()


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ((1, "csv", "zstd"), "native code.*use none or snappy, or avro or parquet"),
        ((2, "json", "zstd"), "native code"),
        ((3, "orc", "none"), "use one of avro, csv, json, parquet"),
        ((3, "avro", "gzip"), "use one of none, snappy, zstd"),
        ((4, "avro", "none"), "use one of 1, 2, 3"),
    ],
)
def test_what_cannot_exist_is_refused_with_what_can(plan: tuple[int, str, str], reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        Plan(*plan)


def test_wrong_use_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--way", "1", "--format", "csv", "--codec", "zstd", "--input", "x", "--output", "y"]
    assert ingest.main(wrong) == 2
    assert "csv with zstd does not exist" in capsys.readouterr().err


def test_a_summary_is_json() -> None:
    assert json.loads(json.dumps(dataclasses.asdict(ingest.Summary(Plan(1, "csv", "none")))))["plan"]["way"] == 1
