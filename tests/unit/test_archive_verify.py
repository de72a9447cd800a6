"""Verification of the archive: each kind of damage is found and named, and nothing else."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from pyspark.sql import SparkSession

from archive_log import DAY, DAY_MS, Log, event
from gridstead.archive.compaction import Compaction, Compactor
from gridstead.archive.increments import increment
from gridstead.archive.retention import Retention, retain
from gridstead.archive.verify import Verified, Verifier

OLD = Compaction(min_age_ms=-60_000)


@pytest.fixture(scope="module")
def sound(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Log:
    """Three commits: two that were merged, whose old files are still there, and one after them."""
    log = Log(spark, tmp_path_factory.mktemp("sound"))
    log.write(event(1), event(2), event(3), b"broken")
    log.add(event(9), partition=1)
    log.write(*(event(n, end_ms=DAY_MS + 86_400_000, file_lfn=f"/store/{n}") for n in range(4)))
    Compactor(spark, log.root, OLD).run()
    log.write(event(1), event(3))
    return log


@pytest.fixture
def log(sound: Log, tmp_path: Path) -> Log:
    """A copy of it to damage."""
    copy = Log(sound.spark, tmp_path)
    shutil.copytree(sound.directory, copy.directory)
    shutil.copytree(sound.checkpoint, copy.checkpoint, dirs_exist_ok=True)
    copy.rows, copy.ends = {p: list(rows) for p, rows in sound.rows.items()}, list(sound.ends)
    for crc in copy.directory.rglob(".*.crc"):  # the local file system's, which would find it all before us
        crc.unlink()
    return copy


def verified(log: Log) -> Verified:
    return Verifier(log.spark, log.root).run()


def data(log: Log, pattern: str) -> Path:
    (path,) = (log.directory / "events").glob(pattern)
    return path


def manifest(log: Log, first: int, last: int) -> Path:
    (path,) = (log.directory / "commits").glob(f"*/{first:010d}-{last:010d}-*.json")
    return path


def rewrite(path: Path, query: str) -> None:
    """Replace a Parquet file by a query over it (as t)."""
    new = path.with_name("new")
    duckdb.execute(f"copy (with t as (from read_parquet('{path}', hive_partitioning=false)) {query}) to '{new}' (format parquet)")
    new.replace(path)


def test_a_sound_archive_has_no_findings(log: Log) -> None:
    found = verified(log)
    assert (found.findings, found.leftovers) == ([], [])
    assert (found.commits, found.files, found.rows, found.absent, found.awaiting_deletion) == (2, 6, 11, 0, 6)
    assert found.positions == {"t": {0: 10, 1: 1}} and found.bytes > 1000


def test_what_retention_gave_up_is_no_finding(log: Log) -> None:
    retain(log.spark, log.root, Retention(days=30), DAY + dt.timedelta(days=31))
    before = verified(log)
    assert (before.findings, before.rows, before.absent) == ([], 5, 6)
    got = increment(log.spark, log.root, {}, {"t": {0: 9}}).sort("offset").collect()
    assert [row["offset"] for row in got] == [4, 5, 6, 7]
    retain(log.spark, log.root, Retention(days=30, grace_ms=-60_000), DAY + dt.timedelta(days=31))
    Compactor(log.spark, log.root, OLD).run()
    after = verified(log)
    assert (after.findings, after.leftovers, after.rows, after.absent) == ([], [], 5, 6)


def cut(log: Log) -> str:
    path = data(log, "source=access/date=2023-11-15/0000000001-0000000002-*.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    return f"events/source=access/date=2023-11-15/{path.name} cannot be read: "


def bit(log: Log) -> str:
    path = data(log, "source=xrootd/date=2023-11-15/0000000001-0000000002-*.parquet")
    content = bytearray(path.read_bytes())
    content[40] ^= 1  # in the page of event_id; the pages have checksums
    path.write_bytes(content)
    return f"{path.name} cannot be read: "


def lost(log: Log) -> str:
    path = data(log, "source=xrootd/date=2023-11-14/0000000003-*.parquet")
    path.unlink()
    return f"events/source=xrootd/date=2023-11-14/{path.name} is missing: its commit says that it has 2 rows"


def short(log: Log) -> str:
    path = data(log, "source=xrootd/date=2023-11-14/0000000003-*.parquet")
    rewrite(path, "from t limit 1")
    return f"{path.name} has 1 rows, its commit says 2"


def doubled(log: Log) -> str:
    path = data(log, "source=xrootd/date=2023-11-14/0000000003-*.parquet")
    rewrite(path, 'select * replace (8::bigint as "offset") from t')
    place = "events/source=xrootd/date=2023-11-14"
    return f"1 positions of partition 0 of topic t, between 8 and 8, are there more than once, in {place}/{path.name}"


def shifted(log: Log) -> str:
    path = data(log, "source=xrootd/date=2023-11-14/0000000003-*.parquet")
    rewrite(path, 'select * replace ("offset" + 1 as "offset") from t')
    return f"{path.name}: partition 0 of topic t has offsets 9 to 10, its commit has 8 to 9"


def moved(log: Log) -> str:
    path = data(log, "source=xrootd/date=2023-11-14/0000000003-*.parquet")
    target = log.directory / "events/source=xrootd/date=2023-11-15" / path.name
    path.rename(target)
    name = manifest(log, 3, 3)
    name.write_text(name.read_text().replace("date=2023-11-14", "date=2023-11-15"))
    return f"events/source=xrootd/date=2023-11-15/{path.name}: 2 rows do not belong to this source and day"


def extra(log: Log) -> str:
    path = data(log, "source=xrootd/date=2023-11-14/0000000003-*.parquet")
    shutil.copy(path, path.with_name(path.name.replace("-0000.", "-0007.")))
    return f"-0007.parquet is named as a file of commit {path.name[:-13]}, but its manifest does not have it"


def unreadable(log: Log) -> str:
    manifest(log, 3, 3).write_text("{")
    return f"{manifest(log, 3, 3).name} cannot be read: not a commit manifest"


def hole(log: Log) -> str:
    path = manifest(log, 3, 3)
    document = json.loads(path.read_text())
    document["ranges"]["t"]["0"] = [9, 10]
    path.write_text(json.dumps(document))
    return "partition 0 of topic t lacks the offsets 8 to 8, which no commit has"


def overlap(log: Log) -> str:
    path = manifest(log, 3, 3)
    document = json.loads(path.read_text())
    document["ranges"]["t"]["0"] = [7, 10]
    path.write_text(json.dumps(document))
    return "partition 0 of topic t has the offsets 7 to 7, as the one before it"


DAMAGES = (cut, bit, lost, short, doubled, shifted, moved, extra, unreadable, hole, overlap)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found_and_named(log: Log, damage: Callable[[Log], str]) -> None:
    expected = damage(log)
    found = verified(log).findings
    assert any(expected in text for text in found), f"{expected!r} is not in {found}"
    assert len(found) <= 3, found


def test_a_lost_manifest_is_a_number_left_out(log: Log) -> None:
    log.write(event(5))
    manifest(log, 3, 3).unlink()
    found = verified(log)
    assert "leave out a number" in found.findings[0] and "lacks the offsets 8 to 9" in found.findings[1]
    assert len(found.leftovers) == 1


def test_what_a_killed_attempt_left_is_named_and_harmless(log: Log) -> None:
    path = data(log, "source=xrootd/date=2023-11-14/0000000003-*.parquet")
    shutil.copy(path, path.with_name(path.name.replace("0000000003-0000000003", "0000000004-0000000004")))
    found = verified(log)
    assert found.findings == [] and [name.rpartition("/")[2][:10] for name in found.leftovers] == ["0000000004"]
