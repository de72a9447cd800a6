"""The archive: commits, replays after a kill at every step, readers, and distinct events."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from gridstead import archive
from gridstead.archive import (
    ArchiveError,
    ArchiveWriter,
    Files,
    Manifest,
    committed_positions,
    distinct_events,
    read_events,
)
from gridstead.schema import EVENT, parse_events

DAY = dt.date(2023, 11, 14)
DAY_MS = 1_699_920_000_000  # midnight UTC of DAY
KAFKA = "value binary, topic string, partition int, offset long, timestamp timestamp"


class Killed(BaseException):
    """Stands for kill -9: no handler of the product catches it."""


class Log:
    """A log of one topic with two partitions and the checkpoint of a query that reads it, as Spark writes it."""

    def __init__(self, spark: SparkSession, directory: Path, writer: str = "0123abcd") -> None:
        self.spark = spark
        self.root = f"file://{directory}/archive"
        self.checkpoint = directory / f"checkpoint-{writer}"
        for name in ("offsets", "commits", "sources/0"):
            (self.checkpoint / name).mkdir(parents=True)
        (self.checkpoint / "metadata").write_text(json.dumps({"id": f"{writer}-0000-0000-0000-000000000000"}))
        (self.checkpoint / "sources/0/0").write_bytes(b'\x00v1\n{"t":{"0":0,"1":0}}')
        self.rows: dict[int, list[bytes]] = {0: [], 1: []}
        self.ends = [{0: 0, 1: 0}]

    def add(self, *events: dict[str, Any] | bytes, partition: int = 0) -> None:
        self.rows[partition] += [e if isinstance(e, bytes) else json.dumps(e).encode() for e in events]

    def end_batch(self) -> int:
        """Plan a micro-batch of all rows there are; returns its number."""
        batch = len(self.ends) - 1
        self.ends.append({partition: len(rows) for partition, rows in self.rows.items()})
        offsets = json.dumps({"t": {str(p): o for p, o in self.ends[-1].items()}})
        (self.checkpoint / "offsets" / str(batch)).write_text(f'v1\n{{"batchWatermarkMs":0}}\n{offsets}')
        return batch

    def frame(self, batch: int) -> DataFrame:
        start, end = self.ends[batch], self.ends[batch + 1]
        stamp = dt.datetime(2023, 11, 20, 1, tzinfo=dt.UTC)
        rows = [
            (bytearray(self.rows[p][o]), "t", p, o, stamp + dt.timedelta(seconds=o))
            for p in self.rows
            for o in range(start[p], end[p])
        ]
        return parse_events(self.spark.createDataFrame(rows, KAFKA))

    def writer(self) -> ArchiveWriter:
        return ArchiveWriter(self.spark, self.root, f"file://{self.checkpoint}")

    def read(self, first: dt.date = DAY, last: dt.date = DAY + dt.timedelta(days=30)) -> list[tuple[str, int, int]]:
        rows = read_events(self.spark, self.root, first, last).collect()
        return sorted((row["event_id"], row["partition"], row["offset"]) for row in rows)


def event(number: int, **fields: Any) -> dict[str, Any]:
    base: dict[str, Any] = dict.fromkeys(EVENT.names)
    base.update(
        event_id=f"{number:032x}",
        source="xrootd" if number % 2 else "access",
        start_ms=DAY_MS,
        end_ms=DAY_MS + 5,
        read_bytes=1,
        write_bytes=0,
    )
    return base | fields


@pytest.fixture
def log(spark: SparkSession, tmp_path: Path) -> Log:
    return Log(spark, tmp_path)


def files_of(log: Log) -> list[str]:
    return Files(log.spark, log.root).files("events")


def test_a_batch_is_readable_once_committed_and_says_what_it_holds(log: Log) -> None:
    log.add(event(1), event(2), b"{broken", event(4, start_ms=DAY_MS - 1, end_ms=DAY_MS - 1))
    log.add(event(3, end_ms=DAY_MS + 86_400_000), partition=1)
    manifest = log.writer().write_batch(log.frame(log.end_batch()), 0)
    assert manifest.rows == 5 and sum(f.rows for f in manifest.files) == 5
    assert manifest.ranges == {"t": {0: (0, 4), 1: (0, 1)}} and manifest.positions == {"t": {0: 4, 1: 1}}
    assert [f.path.rsplit("/", 1)[0] for f in manifest.files] == [
        "events/source=access/date=2023-11-13", "events/source=access/date=2023-11-14",
        "events/source=malformed/date=2023-11-20",
        "events/source=xrootd/date=2023-11-14", "events/source=xrootd/date=2023-11-15",
    ]  # fmt: skip
    assert [offset for _, _, offset in log.read(DAY, DAY)] == [0, 1]
    assert len(log.read(DAY - dt.timedelta(days=1))) == 4
    (bad,) = archive.read_malformed(log.spark, log.root, dt.date(2023, 11, 20), dt.date(2023, 11, 20)).collect()
    assert bytes(bad["raw"]) == b"{broken" and bad["offset"] == 2
    assert Files(log.spark, log.root).names("staging") == []
    assert list(archive.manifests(log.spark, log.root)) == [manifest]


def test_rows_carry_every_field_and_the_position(log: Log) -> None:
    wanted = event(1, vo="é|\n", user="u", file_size=7, open_missing=True, received_ms=9)
    log.add(wanted)
    log.writer().write_batch(log.frame(log.end_batch()), 0)
    (row,) = read_events(log.spark, log.root, DAY, DAY).collect()
    assert {name: row[name] for name in EVENT.names} == wanted
    assert (row["topic"], row["partition"], row["offset"], row["date"]) == ("t", 0, 0, DAY)
    assert row["timestamp"].astimezone(dt.UTC) == dt.datetime(2023, 11, 20, 1, tzinfo=dt.UTC)


def test_an_empty_archive_reads_as_no_events(log: Log) -> None:
    assert log.read() == [] and committed_positions(log.spark, log.root) == {}


OPERATIONS: dict[str, Callable[..., Any]] = {
    name: getattr(Files, name) for name in ("write", "rename", "delete", "mkdirs")
}


def test_a_kill_at_any_step_neither_shows_half_a_batch_nor_loses_or_doubles_a_row(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.add(event(1), event(2), event(3))
    log.writer().write_batch(log.frame(log.end_batch()), 0)
    before = log.read()
    step = 0
    while True:
        step += 1
        log.add(event(100 * step), event(100 * step + 1))
        log.add(event(100 * step + 2, end_ms=DAY_MS + 86_400_000), partition=1)
        batch = log.end_batch()
        frame = log.frame(batch)
        left = [step]

        def killing(name: str, left: list[int]) -> Callable[..., Any]:
            def operation(*arguments: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    if name == "write":  # killed while writing: the file is there, cut short
                        OPERATIONS[name](*arguments[:2], arguments[2][:7])
                    raise Killed
                return OPERATIONS[name](*arguments)

            return operation

        with monkeypatch.context() as patch:
            for name in OPERATIONS:
                patch.setattr(Files, name, killing(name, left))
            try:
                log.writer().write_batch(frame, batch)
                killed = False
            except Killed:
                killed = True
        seen = log.read()
        assert seen == before or len(seen) == len(before) + 3  # nothing, or the whole batch
        log.writer().write_batch(frame, batch)
        before = log.read()
        assert len(before) == 3 + 3 * step
        if not killed:
            break
    assert step > 8
    committed = {f.path for m in archive.manifests(log.spark, log.root) for f in m.files}
    assert {f"events/{path}" for path in files_of(log)} == committed
    assert committed_positions(log.spark, log.root) == {"t": log.ends[-1]}


def test_files_without_a_commit_are_not_read(log: Log) -> None:
    log.add(event(1))
    log.writer().write_batch(log.frame(log.end_batch()), 0)
    files = Files(log.spark, log.root)
    (name,) = files_of(log)
    stray = name.replace("-0000000000-", "-0000000001-")
    Path(log.root.removeprefix("file://"), "events", stray).write_bytes(
        Path(log.root.removeprefix("file://"), "events", name).read_bytes()
    )
    assert files.exists(f"events/{stray}") and len(log.read()) == 1


def test_a_new_checkpoint_archives_again_without_touching_what_is_there(log: Log, tmp_path: Path) -> None:
    log.add(event(1), event(2))
    log.writer().write_batch(log.frame(log.end_batch()), 0)
    again = Log(log.spark, tmp_path, "ffff0000")
    again.add(event(1), event(2), event(3))
    again.writer().write_batch(again.frame(again.end_batch()), 0)
    assert len(log.read()) == 5
    assert distinct_events(read_events(log.spark, log.root, DAY, DAY)).count() == 3
    assert committed_positions(log.spark, log.root) == {"t": {0: 3, 1: 0}}


def test_a_checkpoint_that_was_set_back_is_refused(log: Log) -> None:
    log.add(event(1))
    writer = log.writer()
    writer.write_batch(log.frame(log.end_batch()), 0)
    log.add(event(2))
    writer.write_batch(log.frame(log.end_batch()), 1)
    with pytest.raises(ArchiveError, match="set back or copied"):
        log.writer().write_batch(log.frame(0), 0)
    assert len(log.read()) == 2


def test_distinct_events_keeps_the_lowest_position(log: Log) -> None:
    log.add(event(1), event(2), event(1), event(2, received_ms=9))
    log.add(event(1), partition=1)
    log.writer().write_batch(log.frame(log.end_batch()), 0)
    rows = distinct_events(read_events(log.spark, log.root, DAY, DAY)).collect()
    assert sorted((r["event_id"][-1], r["partition"], r["offset"]) for r in rows) == [("1", 0, 0), ("2", 0, 1)]


def test_an_older_file_with_fewer_columns_is_readable(log: Log) -> None:
    log.add(event(1))
    writer = log.writer()
    batch = log.end_batch()
    writer.write_batch(log.frame(batch), batch)
    (name,) = files_of(log)
    path = Path(log.root.removeprefix("file://"), "events", name)
    frame = log.spark.read.parquet(str(path)).select("offset", "end_ms", "event_id")
    frame.coalesce(1).write.parquet(str(path.parent / "old"))
    (part,) = (path.parent / "old").glob("part-*.parquet")
    part.replace(path)
    (path.parent / f".{path.name}.crc").unlink(missing_ok=True)
    (row,) = read_events(log.spark, log.root, DAY, DAY).collect()
    assert row["event_id"] == f"{1:032x}" and row["vo"] is None and row["partition"] is None


def test_a_manifest_survives_its_file_and_refuses_another() -> None:
    manifest = Manifest("ab", 3, 5, 7, (archive.CommittedFile("events/x", 7),), {"t": {0: (1, 8)}}, {"t": {0: 8}})
    assert Manifest.from_json(manifest.to_json()) == manifest and manifest.token == "ab-0000000003"
    with pytest.raises(ArchiveError, match="not a commit manifest"):
        Manifest.from_json('{"writer": 1}')
