"""The archive's readers: days, cuts, increments by positions, files that do not count, and which commits do."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from archive_log import DAY, DAY_MS, FIRST, LAST, LocalFiles, Log, event, quick_write
from gridstead.archive.commits import Commits
from gridstead.archive.files import Files
from gridstead.archive.increments import Increments, increment
from gridstead.archive.manifest import ArchiveError, CommittedFile, Manifest, Token, live
from gridstead.archive.reader import days, read_events
from gridstead.schema import EVENT, POSITION


@pytest.fixture
def log(spark: SparkSession, tmp_path: Path) -> Log:
    return Log(spark, tmp_path)


def positions(frame: DataFrame) -> list[tuple[int, int]]:
    return sorted((row["partition"], row["offset"]) for row in frame.select("partition", "offset").collect())


def test_an_empty_archive_reads_as_no_events(log: Log) -> None:
    assert read_events(log.spark, log.root, FIRST, LAST).count() == 0 and days(log.spark, log.root) is None
    assert increment(log.spark, log.root, {}, {}).count() == 0


def test_days_and_cuts_choose_the_rows(log: Log) -> None:
    log.add(event(1), event(2, end_ms=DAY_MS + 86_400_000), b"{broken", event(4))
    log.write(event(5), event(6), partition=1)
    read = read_events(log.spark, log.root, DAY, DAY)
    assert read.columns == [*EVENT.names, *POSITION.names, "date"]
    assert positions(read) == [(0, 0), (0, 3), (1, 0), (1, 1)]
    cut = read_events(log.spark, log.root, FIRST, LAST, {"t": {0: 3, 1: 1}})
    assert positions(cut) == [(0, 0), (0, 1), (1, 0)]
    assert positions(read_events(log.spark, log.root, FIRST, LAST, {"t": {1: 2}})) == [(1, 0), (1, 1)]
    assert days(log.spark, log.root) == (DAY, DAY + dt.timedelta(days=1))
    with pytest.raises(ArchiveError, match=r"lacks \{'t': \{0: \(4, 5\)\}\}"):
        read_events(log.spark, log.root, FIRST, LAST, {"t": {0: 5}})


def test_increments_are_the_events_between_positions_and_read_few_manifests(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = Files.read

    def counting(files: Files, path: str) -> str:
        reads.extend([path] if path.startswith("commits/") else [])
        return read(files, path)

    increments = Increments(log.spark, log.root)
    ends = [{"t": {0: 0, 1: 0}}]
    for number in range(8):
        log.add(event(2 * number), b"broken", event(2 * number + 1, end_ms=DAY_MS + number * 86_400_000))
        log.add(event(99), partition=1)
        ends.append(quick_write(log, log.plan()).positions)
    monkeypatch.setattr(Files, "read", counting)
    whole = positions(increment(log.spark, log.root, {}, ends[8]))
    assert whole == sorted((p, o) for p, o in log.archived() if p == 1 or o % 3 != 1)
    for first, last in ((7, 8), (6, 8), (3, 5)):
        reads.clear()
        got = positions(increments.read(ends[first], ends[last]))
        assert got == [(p, o) for p, o in whole if ends[first]["t"][p] <= o < ends[last]["t"][p]]
        assert len(reads) == {7: 1, 6: 1, 3: 3}[first]
    reads.clear()
    log.add(event(50), event(51))
    manifest = quick_write(log, log.plan())
    increments.add(manifest)
    reads.clear()
    assert positions(increments.read(ends[8], {"t": {0: 25, 1: 8}})) == [(0, 24)] and reads == []
    assert positions(increments.read(manifest.positions, manifest.positions)) == []
    with pytest.raises(ArchiveError, match="gridstead rebuild"):
        increments.read(ends[8], {"t": {0: 27}})


def test_a_range_ends_between_commits_where_it_can_and_is_then_read_without_a_condition(log: Log) -> None:
    increments = Increments(log.spark, log.root)
    for number in range(3):
        log.add(event(2 * number), event(2 * number + 1))
        increments.add(quick_write(log, log.plan()))
    ends = [{"t": {0: 2 * number, 1: 0}} for number in range(4)]
    between = {"t": {0: 5, 1: 0}}
    assert increments.boundary(ends[0], between) == ends[2]
    assert increments.boundary(ends[1], ends[3]) == ends[3]
    assert increments.boundary(ends[2], between) == between, "less than a commit"
    for upto, conditions in ((ends[2], False), (between, True)):
        table = increments.read(ends[1], upto)
        assert positions(table) == [(0, offset) for offset in range(2, upto["t"][0])]
        assert ("Filter" in table._jdf.queryExecution().optimizedPlan().toString()) is conditions


def test_rows_of_an_increment_are_whole_events(log: Log) -> None:
    log.write(event(1, vo="cms", file_size=5), b"x")
    (row,) = increment(log.spark, log.root, {"t": {0: 0}}, {"t": {0: 2}}).collect()
    assert {name: row[name] for name in EVENT.names} == event(1, vo="cms", file_size=5)
    assert (row["topic"], row["partition"], row["offset"], row["date"]) == ("t", 0, 0, DAY)


def test_files_without_a_commit_are_not_read(log: Log) -> None:
    log.write(event(1))
    (name,) = log.files()
    stray = name.replace("0000000001-0000000001-", "0000000002-0000000002-")
    shutil.copy(log.directory / name, log.directory / stray)
    assert len(log.files()) == 2 and log.archived() == [(0, 0)]


def test_an_older_file_with_fewer_columns_is_readable(log: Log) -> None:
    log.write(event(1))
    (name,) = log.files()
    path = log.directory / name
    frame = log.spark.read.parquet(str(path)).select("offset", "end_ms", "event_id")
    frame.coalesce(1).write.parquet(str(path.parent / "old"))
    (part,) = (path.parent / "old").glob("part-*.parquet")
    part.replace(path)
    (path.parent / f".{path.name}.crc").unlink(missing_ok=True)
    (row,) = read_events(log.spark, log.root, DAY, DAY).collect()
    assert row["event_id"] == f"{1:032x}" and row["vo"] is None and row["partition"] is None


def test_a_manifest_survives_its_file_and_refuses_another() -> None:
    token = Token(3, 3, 1, "0123abcd")
    file = CommittedFile("events/x", 7, 99)
    manifest = Manifest(token, "batch", 5, 7, (file,), {"t": {0: (1, 8)}}, {"t": {0: 8}}, ("offset",), "ab/3", 2)
    assert Manifest.from_json(manifest.to_json()) == manifest and manifest.bytes == 99
    assert Token.of(f"{token}-0001.parquet") == token and Token.of("part-0.parquet") is None
    for other in ('{"writer": 1}', manifest.to_json().replace('"version": 2', '"version": 1')):
        with pytest.raises(ArchiveError, match="not a commit manifest"):
            Manifest.from_json(other)


def test_an_archive_of_an_older_layout_is_refused_by_name(tmp_path: Path) -> None:
    log = Log(None, tmp_path)
    (log.directory / "commits/2023-11-14").mkdir(parents=True)
    (log.directory / "commits/2023-11-14/0123abcd-0000000000.json").write_text("{}")
    with pytest.raises(ArchiveError, match="commits/2023-11-14/0123abcd-0000000000.json is no commit of this version"):
        Commits(LocalFiles(log.spark, log.root)).newest()


def token(first: int, last: int, epoch: int = 1, nonce: str = "00000000") -> Token:
    return Token(first, last, epoch, nonce)


@pytest.mark.parametrize(
    ("there", "counted"),
    [
        ([token(1, 1), token(2, 2), token(3, 3)], [0, 1, 2]),
        ([token(1, 1), token(2, 2), token(1, 2), token(3, 3)], [2, 3]),  # merged
        ([token(1, 2), token(1, 4), token(3, 3), token(4, 4), token(5, 5)], [1, 4]),  # merged twice
        ([token(1, 1), token(2, 2, 1), token(2, 2, 2), token(3, 3, 1), token(3, 3, 2)], [0, 2, 4]),  # taken over
        ([token(1, 1), token(2, 2, 1), token(3, 3, 1), token(2, 2, 2)], [0, 3]),
        ([token(1, 3, 2), token(2, 2, 1), token(3, 3, 2), token(4, 4, 2)], [0, 3]),
        ([token(1, 2, 1, "000000bb"), token(1, 2, 1, "000000aa")], [1]),  # the same was merged twice
    ],
)
def test_which_commits_count(there: list[Token], counted: list[int]) -> None:
    assert live(reversed(there)) == [there[index] for index in counted]


@pytest.mark.parametrize("there", [[token(1, 1), token(3, 3)], [token(1, 2), token(2, 3)]])
def test_a_missing_commit_or_an_overlap_is_no_archive(there: list[Token]) -> None:
    with pytest.raises(ArchiveError, match="gridstead archive verify"):
        live(there)


def test_commits_are_listed_backwards_and_a_late_one_of_an_older_writer_does_not_count(tmp_path: Path) -> None:
    log = Log(None, tmp_path)

    def put(day: str, *tokens: Any) -> None:
        (log.directory / f"commits/{day}").mkdir(parents=True, exist_ok=True)
        for t in tokens:
            (log.directory / f"commits/{day}/{t}.json").write_text("{}")

    put("2024-01-01", token(1, 1), token(2, 2, 2))
    put("2024-01-02", token(2, 2, 1), token(3, 3, 2))
    put("2024-01-03", token(4, 4, 2))
    lists = list(Commits(LocalFiles(log.spark, log.root)).backwards())
    assert lists == [
        [token(4, 4, 2)],
        [token(3, 3, 2), token(4, 4, 2)],
        [token(1, 1), token(2, 2, 2), token(3, 3, 2), token(4, 4, 2)],
    ]
