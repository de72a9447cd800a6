"""Compaction and retention of the archive: the rows stay as they are, whatever is killed when, under readers."""

from __future__ import annotations

import datetime as dt
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from archive_log import (
    DAY,
    DAY_MS,
    FIRST,
    LAST,
    Killed,
    LocalFiles,
    LocalObjects,
    Log,
    QuickCompactor,
    event,
    kill_at,
    local_files,
    quick_write,
)  # fmt: skip
from gridstead.archive.commits import manifests
from gridstead.archive.compaction import Compaction, Compactor, group
from gridstead.archive.files import Files
from gridstead.archive.increments import increment
from gridstead.archive.lock import Lock
from gridstead.archive.manifest import ArchiveError, CommittedFile, Manifest, Token
from gridstead.archive.reader import committed_files, committed_positions, days, read_events, read_malformed
from gridstead.archive.retention import Retention, retain
from gridstead.schema import EVENT

NOW = Compaction(min_age_ms=-60_000, grace_ms=-60_000, lock_stale_s=-60)
"""Everything is old enough, what was replaced may go, and who holds the lock is dead."""
GRACE = Compaction(min_age_ms=-60_000, lock_stale_s=-60)
DAYS = (event(1), event(2), event(3, end_ms=DAY_MS + 86_400_000), b"broken")


@pytest.fixture(params=[LocalFiles, LocalObjects])
def quick(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    """A log whose archive is written and compacted without Spark."""
    with local_files(request.param):
        yield Log(None, tmp_path)


@pytest.fixture
def log(spark: SparkSession, tmp_path: Path) -> Log:
    return Log(spark, tmp_path)


def everything(log: Log) -> list[tuple[int, int]]:
    return sorted((p, o) for p, rows in log.rows.items() for o in range(len(rows)))


def test_small_files_become_one_a_day_and_source_and_the_rows_stay(log: Log) -> None:
    for number in range(4):
        log.add(event(1, vo=f"vo{number}"), event(2, file_lfn=f"/f{9 - number}"), b"broken")
        log.write(event(4, end_ms=DAY_MS + 86_400_000), partition=1)
    before = read_events(log.spark, log.root, FIRST, LAST).collect()
    ends = committed_positions(log.spark, log.root)
    done = Compactor(log.spark, log.root, GRACE).run()
    assert (done.merges, done.commits, done.files_before, done.files_after, done.refused) == (1, 4, 16, 4, [])
    assert len(committed_files(log.spark, log.root, FIRST, LAST)) == 3 and len(log.files()) == 20
    after = read_events(log.spark, log.root, FIRST, LAST).collect()
    assert sorted(after, key=str) == sorted(before, key=str) and len(after) == 12
    (merged,) = manifests(log.spark, log.root)
    assert merged.rows == 16 and merged.absent == 0 and merged.ranges == {"t": {0: (0, 12), 1: (0, 4)}}
    assert committed_positions(log.spark, log.root) == merged.positions == ends
    got = increment(log.spark, log.root, {"t": {0: 3, 1: 2}}, {"t": {0: 7, 1: 3}}).collect()
    assert sorted((r["partition"], r["offset"]) for r in got) == [(0, 3), (0, 4), (0, 6), (1, 2)]
    for file in merged.files:
        rows = duckdb.execute('select partition, "offset" from read_parquet(?)', [str(log.directory / file.path)])
        assert (got := rows.fetchall()) == sorted(got) and len(got) == 4
    assert Compactor(log.spark, log.root, NOW).run().deleted_files == 16
    assert sorted(f.path for f in merged.files) == log.files()
    assert log.write(event(1)).token.first == 5  # the writer goes on behind what was merged


def test_a_kill_at_any_call_of_compaction_leaves_every_row_once(quick: Log) -> None:
    step = killed = 1
    while killed:
        quick.add(*DAYS)
        quick_write(quick, quick.plan())
        quick.add(event(5), partition=1)
        quick_write(quick, quick.plan())
        with kill_at(step) as left:
            try:
                QuickCompactor(quick, NOW).run()
            except Killed:
                pass
            killed = left[0] <= 0
        assert quick.archived() == everything(quick)
        step += 1
    assert step > (10 if quick.on_objects else 25)  # without renames there are fewer calls
    QuickCompactor(quick, NOW).run()
    assert quick.archived() == everything(quick) and quick.names("staging") == []
    assert quick.files() == sorted(f.path for m in manifests(quick.spark, quick.root) for f in m.files)
    assert quick.names("locks") == []


STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 3), st.integers(0, 14)),
    st.tuples(st.just("compact"), st.booleans(), st.integers(0, 40)),
    st.tuples(st.just("checkpoint"), st.integers(0, 6), st.integers(0, 6)),
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])
@given(st.lists(STEPS, min_size=6, max_size=14), st.sampled_from([LocalFiles, LocalObjects]))
def test_any_interleaving_leaves_each_position_once(steps: list[tuple[Any, ...]], kind: type[LocalFiles]) -> None:
    with tempfile.TemporaryDirectory() as directory, local_files(kind):
        log = Log(None, Path(directory))
        behind: dict[int, int] = {0: 0, 1: 0}  # what the archive must have at the least
        for number, (what, first, second) in enumerate(steps):
            if what == "write":
                log.add(*DAYS[:first])
                log.add(event(number), partition=1)
                batch = log.plan()
                if not run_killed(second, lambda batch=batch: quick_write(log, batch)):
                    behind = dict(log.ends[-1])
            elif what == "compact":
                listed = [f.removeprefix("file:") for f in committed_files(log.spark, log.root, FIRST, LAST)]
                run_killed(second, lambda first=first: QuickCompactor(log, NOW if first else GRACE).run())
                if not first:
                    assert all(Path(path).exists() for path in listed)  # a reader that had listed them goes on
            else:
                begin = {0: max(0, behind[0] - first), 1: max(0, behind[1] - second)}
                log.start_query(Path(directory) / f"checkpoint-{number:08d}", begin)
            held = committed_positions(log.spark, log.root).get("t", {})
            assert log.archived() == [(p, o) for p in sorted(held) for o in range(held[p])]
            assert all(held.get(p, 0) >= behind[p] for p in behind)
            if what == "write":
                quick_write(log, batch)  # the query repeats the micro-batch until it is done
                behind = dict(log.ends[-1])
        assert log.archived() == [(p, o) for p in sorted(behind) for o in range(behind[p])]


def run_killed(step: int, function: Any) -> bool:
    """Run a function, killed at the so-manieth call of the file system (0: not at all); whether it was."""
    if step == 0:
        function()
        return False
    with kill_at(step) as left:
        try:
            function()
        except Killed:
            pass
        return left[0] <= 0


def test_a_reader_never_sees_a_row_twice_or_misses_one_while_compaction_runs(quick: Log) -> None:
    quick.add(*DAYS)
    quick_write(quick, quick.plan())
    over = threading.Event()
    wrong: list[Any] = []
    reads = [0]

    def reader() -> None:
        while not over.is_set():
            before = committed_positions(quick.spark, quick.root)["t"]
            malformed = reads[0] % 2 == 1
            rows = quick.archived([malformed])
            reads[0] += 1
            ends = {p: max([before[p], *(o + 1 for q, o in rows if q == p)]) for p in before}
            if rows != [(p, o) for p in sorted(ends) for o in range(ends[p]) if (quick.rows[p][o] == b"broken") == malformed]:
                wrong.append((malformed, before, rows))

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(reader)
        try:
            for number in range(4000):
                if (number >= 40 and reads[0] > 10) or reading.done():
                    break
                quick.add(*DAYS[: 1 + number % 4])
                quick.add(event(number), partition=1)
                quick_write(quick, quick.plan())
                if number % 4 == 3:
                    QuickCompactor(quick, GRACE).run()
        finally:
            over.set()
    reading.result()
    assert wrong == [] and reads[0] > 10 and quick.archived() == everything(quick)


def test_only_old_commits_below_the_position_are_touched(quick: Log) -> None:
    for _ in range(4):
        quick.add(event(1))
        quick_write(quick, quick.plan())
    assert QuickCompactor(quick, Compaction()).run().merges == 0  # none is an hour old
    below = Compaction(min_age_ms=-60_000, below={"t": {0: 3, 1: 0}})
    assert QuickCompactor(quick, below).run().commits == 3
    merged, last = manifests(quick.spark, quick.root)
    assert [(m.token.first, m.token.last) for m in (merged, last)] == [(1, 3), (4, 4)]
    assert merged.committed_ms <= last.committed_ms and merged.positions == {"t": {0: 3, 1: 0}}
    assert committed_positions(quick.spark, quick.root) == {"t": {0: 4, 1: 0}} and quick.archived() == everything(quick)


def sized(first: int, last: int, size: int) -> Manifest:
    file = CommittedFile(f"events/{first}", 1, size)
    kind = "batch" if first == last else "merged"
    return Manifest(Token(first, last, 1, "00000000"), kind, 0, 1, (file,), {}, {})


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([], []),
        ([(1, 1, 5)], []),
        ([(1, 1, 5), (2, 2, 1), (3, 3, 9)], [[1, 2, 3]]),
        ([(1, 9, 50), (10, 10, 5), (11, 11, 5)], [[10, 11]]),  # the large one is not written again for so little
        ([(1, 9, 50), (10, 10, 5), (11, 20, 5)], [[10, 11]]),
        ([(1, 9, 10), (10, 10, 5), (11, 11, 5)], [[1, 10, 11]]),
        ([(1, 1, 60), (2, 2, 60), (3, 3, 30)], [[2, 3]]),  # of 100 at the most
        ([(1, 1, 500), (2, 2, 3), (3, 3, 500)], []),
    ],
)
def test_how_commits_are_grouped(sizes: list[tuple[int, int, int]], groups: list[list[int]]) -> None:
    got = group([sized(*entry) for entry in sizes], 100)
    assert [[m.token.first for m in members] for members in got] == groups


def test_a_day_of_hours_is_rewritten_few_times() -> None:
    """Hour by hour, each of 100 micro-batches of a byte: how many bytes compaction writes for each that came."""
    commits: list[Manifest] = []
    written = number = 0
    for _ in range(24 * 7):
        commits += [sized(n, n, 1) for n in range(number, number + 100)]
        number += 100
        for members in group(commits, 1 << 30):
            merged = sized(members[0].token.first, members[-1].token.last, sum(m.bytes for m in members))
            written += merged.bytes
            at = commits.index(members[0])
            commits[at : at + len(members)] = [merged]
    assert len(commits) < 12 and written / number < 10


def test_columns_of_a_newer_version_are_not_compacted_away(quick: Log) -> None:
    for _ in range(2):
        quick.add(event(1))
        manifest = quick_write(quick, quick.plan())
    day = dt.datetime.fromtimestamp(manifest.committed_ms / 1000, dt.UTC).date()
    path = quick.directory / f"commits/{day}/{manifest.token}.json"
    path.write_text(path.read_text().replace('"vo"', '"virtual_organisation"'))
    done = QuickCompactor(quick, NOW).run()
    assert done.merges == 0 and "does not know (virtual_organisation)" in done.refused[0]
    assert quick.archived() == everything(quick)


def test_a_lost_row_is_noticed_before_the_old_files_go(quick: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        quick.add(event(1))
        quick_write(quick, quick.plan())
    write = QuickCompactor._write
    monkeypatch.setattr(QuickCompactor, "_write", lambda self, kept, staging: write(self, kept[1:], staging))
    done = QuickCompactor(quick, NOW).run()
    assert done.merges == 0 and "should have 2 rows but 1 were read" in done.refused[0]
    assert quick.archived() == everything(quick)


def test_one_at_a_time_and_a_dead_holder_is_taken_over(log: Log) -> None:
    files = Files(log.spark, log.root)
    with Lock(files, "test") as held:
        with pytest.raises(ArchiveError, match=r'rearranged already, by \{"what": "test".*taken over 300 s after'):
            Compactor(log.spark, log.root, Compaction()).run()
    assert not files.exists(held.path)
    with Lock(files, "dead") as dead:
        path = log.directory / dead.path
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 301))
        with Lock(files, "alive") as alive:
            alive.check()
            with pytest.raises(ArchiveError, match="taken over by another"):
                dead.check()
    assert files.names("locks") == []


def test_of_many_at_once_at_most_one_has_the_lock(tmp_path: Path) -> None:
    files = LocalObjects(None, f"file://{tmp_path}")  # type: ignore[arg-type]
    inside, most, had = [0], [0], [0]
    begin = threading.Barrier(8)

    def try_it() -> None:
        for _ in range(30):
            begin.wait()
            try:
                with Lock(files, "test"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    had[0] += 1
                    time.sleep(0.001)
                    inside[0] -= 1
            except ArchiveError:
                time.sleep(0.0001)

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and had[0] > 0 and files.names("locks") == []


def test_retention_gives_up_days_on_record_and_later_on_disk(quick: Log) -> None:
    quick.add(*DAYS)
    quick_write(quick, quick.plan())
    quick.add(event(4, end_ms=DAY_MS + 86_400_000), event(1))
    quick_write(quick, quick.plan())
    today = DAY + dt.timedelta(days=31)
    kept = retain(quick.spark, quick.root, Retention(), today)
    assert (kept.events_from, kept.deleted) == ("", []) and len(quick.archived()) == 6
    marked = retain(quick.spark, quick.root, Retention(days=30), today)
    assert (marked.events_from, marked.malformed_from, marked.deleted) == ("2023-11-15", "", [])
    assert quick.archived() == [(0, 2), (0, 3), (0, 4)] and len(quick.files()) == 6
    assert days(quick.spark, quick.root) == (DAY + dt.timedelta(days=1),) * 2
    merged = QuickCompactor(quick, GRACE).run()
    assert merged.files_after == 3 and quick.archived() == [(0, 2), (0, 3), (0, 4)]
    (manifest,) = manifests(quick.spark, quick.root)
    assert (manifest.rows, manifest.absent) == (3, 3)
    gone = retain(quick.spark, quick.root, Retention(days=30, malformed_days=25, grace_ms=-60_000), today)
    assert gone.malformed_from == "2023-11-20" and gone.deleted_files == 3
    assert gone.deleted == ["events/source=access/date=2023-11-14", "events/source=xrootd/date=2023-11-14"]
    QuickCompactor(quick, NOW).run()
    assert quick.archived() == [(0, 2), (0, 3), (0, 4)] and quick.files() == sorted(f.path for f in manifest.files)
    late = quick_write_late(quick)
    assert late.rows == 1 and quick.archived() == [(0, 2), (0, 3), (0, 4)]
    again = retain(quick.spark, quick.root, Retention(days=30, grace_ms=-60_000), today)
    assert again.deleted == ["events/source=xrootd/date=2023-11-14"] and len(quick.files()) == 3
    assert quick.names("retention") == [
        "events-before-2023-11-15", "malformed-before-2023-11-20",
    ]  # fmt: skip


def quick_write_late(log: Log) -> Manifest:
    """An event of a day that was given up comes after all."""
    log.add(event(1))
    return quick_write(log, log.plan())


def test_all_fields_survive_compaction(log: Log) -> None:
    wanted = event(1, vo="é|\n", user="u", file_size=7, open_missing=True, received_ms=9)
    log.write(wanted)
    log.write(event(2), b"\xff{broken")
    Compactor(log.spark, log.root, NOW).run()
    (row,) = read_events(log.spark, log.root, DAY, DAY).where("offset = 0").collect()
    assert {name: row[name] for name in EVENT.names} == wanted
    assert row["timestamp"].astimezone(dt.UTC) == dt.datetime(2023, 11, 20, 1, tzinfo=dt.UTC)
    (bad,) = read_malformed(log.spark, log.root, FIRST, LAST).collect()
    assert bytes(bad["raw"]) == b"\xff{broken" and "JSON" in bad["malformed"] and bad["offset"] == 2
