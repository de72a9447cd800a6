"""The archive on object storage, by the product's own settings against a real server: exact after kills, and without a copy."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pyspark.sql import SparkSession

from appliance_files import write_appliance
from archive_log import FIRST, LAST, Killed, Log, event, kill_at
from gridstead import config as configuration
from gridstead.archive.commits import manifests, sweep
from gridstead.archive.compaction import Compaction, Compactor
from gridstead.archive.files import Files
from gridstead.archive.lock import Lock
from gridstead.archive.manifest import ArchiveError
from gridstead.archive.reader import committed_files, committed_positions, read_events, read_malformed
from gridstead.archive.retention import Retention, retain
from gridstead.archive.verify import Verifier
from gridstead.cli.app import main
from s3server import Hadoop, Server

pytestmark = pytest.mark.long
NOW = Compaction(min_age_ms=-60_000, grace_ms=-60_000, lock_stale_s=-60)


class S3Log(Log):
    """A log whose archive is in the bucket, under a prefix of its own."""

    def __init__(self, spark: SparkSession, directory: Path) -> None:
        super().__init__(spark, directory)
        self.prefix = directory.name
        self.root = f"s3a://archive/{self.prefix}"

    def archived(self, kinds: Any = (False, True)) -> list[tuple[int, int]]:
        frames = [read(self.spark, self.root, FIRST, LAST) for read in (read_events, read_malformed)]
        return sorted((row["partition"], row["offset"]) for frame in frames for row in frame.select("partition", "offset").collect())


@pytest.fixture
def log(spark: SparkSession, tmp_path: Path) -> S3Log:
    return S3Log(spark, tmp_path)


def test_what_is_written_is_read_compacted_verified_and_given_up(log: S3Log, server: Server) -> None:
    for number in range(3):
        log.add(event(1, vo=f"vo{number}"), event(2), b"broken")
        manifest = log.write(event(4, end_ms=1_700_006_400_000), partition=1)
    client = server.client()
    for file in manifest.files:
        assert client.head_object(Bucket="archive", Key=f"{log.prefix}/{file.path}")["ContentLength"] == file.bytes
    assert {row["vo"] for row in read_events(log.spark, log.root, FIRST, LAST).collect()} == {"vo0", "vo1", "vo2", None}
    assert log.archived() == [(0, n) for n in range(9)] + [(1, n) for n in range(3)]
    again = log.writer().write_batch(log.frame(2), 2)
    assert (again.rows, again.files) == (0, ())
    ends = committed_positions(log.spark, log.root)
    assert Compactor(log.spark, log.root, NOW).run().merges == 1
    assert len(committed_files(log.spark, log.root, FIRST, LAST)) == 3
    assert Compactor(log.spark, log.root, NOW).run().deleted_files == 12
    assert committed_positions(log.spark, log.root) == ends
    found = Verifier(log.spark, log.root).run()
    assert (found.rows, found.findings, found.leftovers) == (12, [], [])
    keys = [key.removeprefix(f"{log.prefix}/") for key in server.keys("archive", f"{log.prefix}/") if not key.endswith("/")]
    kinds = sorted({key.split("/")[0] for key in keys})
    assert kinds == ["commits", "events", "writers"]
    assert len([key for key in keys if key.startswith("events/")]) == 4
    retain(log.spark, log.root, Retention(days=1, grace_ms=-60_000), dt.date(2023, 11, 16))
    assert {row["offset"] for row in read_events(log.spark, log.root, FIRST, LAST).collect()} == {0, 1, 2}
    requests = server.requests()
    assert "s3_CopyObject" not in requests
    assert "s3_CompleteMultipartUpload" in requests


def test_a_kill_at_any_call_neither_shows_half_a_batch_nor_loses_or_doubles_a_row(log: S3Log) -> None:
    log.write(event(1), event(2), event(3))
    step = killed = 1
    while killed:
        before = log.archived()
        log.add(event(1), b"broken")
        log.add(event(5), partition=1)
        batch = log.plan()
        with kill_at(step, whole=True) as left:
            try:
                log.writer().write_batch(log.frame(batch), batch)
            except Killed:
                pass
            killed = left[0] <= 0
        assert len(log.archived()) in (len(before), len(before) + 3)
        assert log.writer().write_batch(log.frame(batch), batch).positions == {"t": log.ends[-1]}
        assert log.archived() == [(p, o) for p, end in log.ends[-1].items() for o in range(end)]
        step += 1
    assert step > 5
    assert log.files() == sorted(f.path for m in manifests(log.spark, log.root) for f in m.files)


def test_data_of_an_attempt_that_never_committed_is_found_and_deleted(log: S3Log, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("gridstead.archive.commits.Staging.commit", killed)
        with pytest.raises(Killed):
            log.write(event(1), event(2))
    assert len(log.files()) == 2
    assert log.archived() == []
    assert len(sweep(Files(log.spark, log.root), "write")) == 2
    assert log.files() == []


def test_one_rearranges_at_a_time(log: S3Log) -> None:
    files = Files(log.spark, log.root)
    with Lock(files, "test") as held:
        with pytest.raises(ArchiveError, match=r'rearranged already, by \{"what": "test"'):
            Compactor(log.spark, log.root, Compaction()).run()
        held.check()
    assert files.names("locks") == []


def test_a_stream_goes_on_by_a_checkpoint_on_object_storage(spark: SparkSession, tmp_path: Path) -> None:
    source, seen = tmp_path / "in", []
    source.mkdir()

    def run() -> None:
        stream = spark.readStream.schema("n int").json(str(source))
        query = (
            stream.writeStream.foreachBatch(lambda batch, _: seen.extend(row["n"] for row in batch.collect()))
            .option("checkpointLocation", f"s3a://archive/{tmp_path.name}/checkpoint")
            .trigger(availableNow=True)
            .start()
        )
        assert query.awaitTermination(60)

    for number in range(3):
        (source / f"{number}.json").write_text(json.dumps({"n": number}))
        run()
    assert seen == [0, 1, 2]


def test_status_is_told_by_the_command_line_of_hadoop(log: S3Log, hadoop: Hadoop, tmp_path: Path) -> None:
    import pyspark

    log.add(event(2), b"broken")
    log.write(event(1))
    config = configuration.load(write_appliance(tmp_path))
    cli = Path(config.hadoop.cli)
    cli.parent.mkdir(parents=True)
    jars = Path(pyspark.__file__).resolve().parents[2] / "jars"
    path = f"{cli.parent}:{jars}/*:{hadoop.jars}"
    cli.write_text(f'#!/bin/sh\nshift\nexec java -XX:TieredStopAtLevel=1 -cp "{path}" org.apache.hadoop.fs.FsShell "$@"\n')
    cli.chmod(0o755)
    properties = "".join(f"<property><name>{k}</name><value>{v}</value></property>" for k, v in hadoop.site.items())
    (cli.parent / "core-site.xml").write_text(f"<configuration>{properties}</configuration>\n")
    config.path.write_text(config.path.read_text().replace("[stream]", f'[stream]\narchive = "{log.root}"'))
    result = CliRunner().invoke(main, ["--config", str(config.path), "--json", "archive", "status"])
    assert result.exit_code == 0, result.output
    status = json.loads(result.stdout)
    assert status["files"] == 3
    assert status["commits"] == status["not_compacted"] == 1
    assert status["positions"] == {"t": {"0": 3, "1": 0}}
    assert (status["unfinished"], status["locked"], status["faults"]) == ([], False, [])
