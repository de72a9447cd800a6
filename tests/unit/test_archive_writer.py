"""The archive's writer: commits, kills at every call of the file system, other checkpoints, other writers."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from archive_log import (
    DAY,
    DAY_MS,
    Killed,
    LocalFiles,
    LocalObjects,
    Log,
    QuickWriter,
    event,
    kill_at,
    local_files,
    quick_write,
)  # fmt: skip
from gridstead.archive.commits import manifests
from gridstead.archive.manifest import ArchiveError
from gridstead.archive.reader import committed_positions, read_events, read_malformed, starting_offsets
from gridstead.schema import EVENT


@pytest.fixture(params=[LocalFiles, LocalObjects])
def quick(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    """A log whose archive is written without Spark."""
    with local_files(request.param):
        yield Log(None, tmp_path)


@pytest.fixture
def log(spark: SparkSession, tmp_path: Path) -> Log:
    return Log(spark, tmp_path)


def test_a_batch_is_readable_once_committed_and_says_what_it_holds(log: Log) -> None:
    wanted = event(1, vo="é|\n", user="u", file_size=7, open_missing=True, received_ms=9)
    log.add(wanted, event(2), b"{broken", event(4, start_ms=DAY_MS - 1, end_ms=DAY_MS - 1))
    manifest = log.write(event(3, end_ms=DAY_MS + 86_400_000), partition=1)
    assert manifest.rows == 5 and sum(f.rows for f in manifest.files) == 5
    assert manifest.ranges == {"t": {0: (0, 4), 1: (0, 1)}} and manifest.positions == {"t": {0: 4, 1: 1}}
    assert [f.path.rsplit("/", 1)[0] for f in manifest.files] == [
        "events/source=access/date=2023-11-13", "events/source=access/date=2023-11-14",
        "events/source=malformed/date=2023-11-20",
        "events/source=xrootd/date=2023-11-14", "events/source=xrootd/date=2023-11-15",
    ]  # fmt: skip
    assert all((log.directory / f.path).stat().st_size == f.bytes for f in manifest.files)
    assert log.names("staging") == []
    assert list(manifests(log.spark, log.root)) == [manifest]
    (bad,) = read_malformed(log.spark, log.root, dt.date(2023, 11, 20), dt.date(2023, 11, 20)).collect()
    assert bytes(bad["raw"]) == b"{broken" and bad["offset"] == 2
    rows = {row["offset"]: row for row in read_events(log.spark, log.root, DAY, DAY).collect()}
    assert set(rows) == {0, 1} and {name: rows[0][name] for name in EVENT.names} == wanted
    assert (rows[0]["topic"], rows[0]["partition"], rows[0]["date"]) == ("t", 0, DAY)
    assert rows[0]["timestamp"].astimezone(dt.UTC) == dt.datetime(2023, 11, 20, 1, tzinfo=dt.UTC)


def test_a_kill_at_any_call_neither_shows_half_a_batch_nor_loses_or_doubles_a_row(quick: Log) -> None:
    quick.add(event(1), event(2), event(3))
    quick_write(quick, quick.plan())
    step = killed = 1
    while killed:
        before = quick.archived()
        quick.add(event(1), b"broken", event(3, end_ms=DAY_MS + 86_400_000))
        quick.add(event(5), partition=1)
        batch = quick.plan()
        with kill_at(step) as left:
            try:
                quick_write(quick, batch)
            except Killed:
                pass
            killed = left[0] <= 0
        assert len(quick.archived()) in (len(before), len(before) + 4)  # nothing, or the whole batch
        assert quick_write(quick, batch).positions == {"t": quick.ends[-1]}
        assert quick.archived() == [(p, o) for p, end in quick.ends[-1].items() for o in range(end)]
        step += 1
    assert step > (8 if quick.on_objects else 10)  # without renames there are fewer calls
    assert quick.files() == sorted(f.path for m in manifests(quick.spark, quick.root) for f in m.files)
    assert quick.names("staging") == []


def test_a_repeated_batch_and_one_without_rows_write_nothing(log: Log) -> None:
    first = log.write(event(1))
    again = log.writer().write_batch(log.frame(0), 0)
    assert (again.rows, again.files, again.ranges, again.positions) == (0, (), {}, first.positions)
    empty = log.writer().write_batch(log.frame(log.plan()), 1)
    assert (empty.rows, empty.files, empty.ranges, empty.positions) == (0, (), {}, first.positions)
    assert list(manifests(log.spark, log.root)) == [first]


def test_a_new_checkpoint_that_begins_earlier_adds_only_what_is_missing(log: Log, tmp_path: Path) -> None:
    log.add(event(9), event(9), partition=1)
    log.write(event(1), event(2))
    log.start_query(tmp_path / "checkpoint-ffff0000", {0: 0, 1: 1})
    manifest = log.write(event(3))
    assert manifest.ranges == {"t": {0: (2, 3)}} and manifest.rows == 1 and manifest.positions == {"t": {0: 3, 1: 2}}
    assert log.archived() == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_a_checkpoint_that_was_set_back_goes_on_where_the_archive_ends(log: Log) -> None:
    log.write(event(1))
    log.write(event(2))
    (log.checkpoint / "offsets/1").unlink()
    del log.ends[2:]
    manifest = log.write(event(3))  # batch 1 again, with more in it than before
    assert manifest.ranges == {"t": {0: (2, 3)}} and log.archived() == [(0, 0), (0, 1), (0, 2)]
    assert committed_positions(log.spark, log.root) == {"t": {0: 3, 1: 0}}


def test_a_gap_is_refused_with_the_offsets_and_the_next_command(quick: Log, tmp_path: Path) -> None:
    quick.add(event(1))
    quick_write(quick, quick.plan())
    quick.add(event(2), event(3))
    quick.start_query(tmp_path / "checkpoint-ffff0000", {0: 2, 1: 0})
    with pytest.raises(ArchiveError) as raised:
        quick_write(quick, quick.plan())
    text = str(raised.value)
    assert "partition 0 of topic t up to offset 1" in text and "at offset 2" in text
    assert f"hadoop fs -mv file://{quick.checkpoint}" in text and "accept-gap t 0 2" in text
    assert quick.archived() == [(0, 0)]


def test_a_partition_that_is_new_begins_where_its_log_does(quick: Log, tmp_path: Path) -> None:
    quick.add(event(1), event(1), event(1))
    quick.start_query(tmp_path / "checkpoint-ffff0000", {0: 2, 1: 0})
    assert quick_write(quick, quick.plan()).ranges == {"t": {0: (2, 3)}}
    assert quick.archived() == [(0, 2)]


def test_a_stream_without_checkpoint_is_told_where_to_begin(log: Log) -> None:
    assert starting_offsets(log.spark, log.root) is None and committed_positions(log.spark, log.root) == {}
    log.write(event(1), event(2))
    assert json.loads(starting_offsets(log.spark, log.root) or "") == {"t": {"0": 2, "1": 0}}
    known = starting_offsets(log.spark, log.root, {"t": [0, 2], "new": [0]})
    assert json.loads(known or "") == {"t": {"0": 2, "2": -2}, "new": {"0": -2}}


def test_of_two_writers_the_later_one_goes_on_and_the_other_ends(quick: Log) -> None:
    quick.add(event(1))
    old, new = QuickWriter(quick), QuickWriter(quick)
    quick_write(quick, quick.plan(), old)
    quick.add(event(2))
    quick_write(quick, quick.plan(), new)
    quick.add(event(3))
    batch = quick.plan()
    with pytest.raises(ArchiveError, match="another stream writes"):
        quick_write(quick, batch, old)
    quick_write(quick, batch, new)
    assert quick.archived() == [(0, 0), (0, 1), (0, 2)]


def test_what_an_older_writer_commits_after_a_newer_one_does_not_count(quick: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    quick.add(event(1))
    old, new = QuickWriter(quick), QuickWriter(quick)
    quick_write(quick, quick.plan(), old)
    quick.add(event(2))
    batch = quick.plan()

    def overtaken() -> None:
        quick_write(quick, batch, new)

    monkeypatch.setattr(old, "_check_epoch", overtaken)
    monkeypatch.setattr("gridstead.archive.writer.sweep", lambda files, kind: [])  # it does not even find the other
    quick_write(quick, batch, old)
    assert len(quick.files()) == 3 and quick.archived() == [(0, 0), (0, 1)]
    quick.add(event(3))
    quick_write(quick, quick.plan(), new)
    assert quick.archived() == [(0, 0), (0, 1), (0, 2)]
    assert committed_positions(quick.spark, quick.root) == {"t": {0: 3, 1: 0}}


def test_of_many_who_start_at_once_each_has_an_epoch_of_its_own(tmp_path: Path) -> None:
    with local_files(LocalObjects):
        log = Log(None, tmp_path)
        (log.directory / "writers").mkdir(parents=True)
        (log.directory / "writers/000006").touch()  # as earlier versions wrote them
        with ThreadPoolExecutor(6) as pool:
            epochs = list(pool.map(lambda _: QuickWriter(log)._claim(), range(18)))
    assert len(set(epochs)) == 18 and min(epochs) > 6  # numbers are left out where two claimed the same
