"""The archive's job and command: settings, answers, exit codes, and what a few listings tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyspark
import pytest
from click.testing import CliRunner
from pyspark.sql import SparkSession

from appliance_files import write_appliance
from archive_log import Log, QuickCompactor, event, local_files, quick_write
from gridstead import config as configuration
from gridstead.archive.compaction import Compaction
from gridstead.archive.manifest import ArchiveError
from gridstead.archive.reader import committed_positions
from gridstead.archive.writer import ArchiveWriter
from gridstead.cli.app import main
from gridstead.jobs import archive as job


@pytest.fixture
def local() -> Iterator[None]:
    with local_files():
        yield


@pytest.fixture
def log(spark: SparkSession, tmp_path: Path) -> Log:
    log = Log(spark, tmp_path)
    for number in range(3):
        log.add(event(number), event(number + 1))
        with local_files():
            quick_write(log, log.plan())
    return log


@pytest.fixture
def cfg(log: Log, tmp_path: Path) -> configuration.Config:
    cfg = configuration.load(write_appliance(tmp_path))
    return replace(cfg, stream=replace(cfg.stream, archive=log.root, checkpoint=f"file://{tmp_path}/checkpoints"))


@pytest.mark.usefixtures("local")
def test_a_gap_is_given_up_on_record_and_the_stream_goes_on_behind_it(log: Log, tmp_path: Path) -> None:
    log.add(event(7), event(8), event(9))
    log.start_query(tmp_path / "checkpoint-ffff0000", {0: 8, 1: 0})
    batch = log.plan()
    with pytest.raises(ArchiveError, match="accept-gap t 0 8"):
        quick_write(log, batch)
    writer = ArchiveWriter(log.spark, log.root, f"file://{log.checkpoint}")
    for partition, upto in ((0, 6), (1, 5), (0, 3)):
        with pytest.raises(ArchiveError, match="has no gap"):
            writer.accept_gap("t", partition + (partition == 1), upto)
    manifest = writer.accept_gap("t", 0, 8)
    assert manifest.ranges == {"t": {0: (6, 8)}} and manifest.absent == 2
    assert quick_write(log, batch).ranges == {"t": {0: (8, 9)}}
    QuickCompactor(log, Compaction(min_age_ms=-60_000, grace_ms=-60_000)).run()
    assert log.archived() == [(0, o) for o in (0, 1, 2, 3, 4, 5, 8)]
    assert committed_positions(log.spark, log.root) == {"t": {0: 9, 1: 0}}


@pytest.mark.usefixtures("local")
def test_settings_come_from_the_configuration(log: Log, cfg: configuration.Config) -> None:
    answer, status = job.compact(cfg, log.spark, None)
    assert (answer["merges"], status) == (0, 0)  # nothing is an hour old
    now = replace(cfg, archive=replace(cfg.archive, compact_after_h=0))
    answer, status = job.compact(now, log.spark, {"t": {0: 1, 1: 0}})
    assert (answer["merges"], status) == (0, 0)
    answer, status = job.keep(cfg, log.spark)
    assert (answer["events_from"], status) == ("", 0)
    answer, status = job.keep(replace(cfg, archive=replace(cfg.archive, retention_days=30)), log.spark)
    assert answer["events_from"] > "2024" and answer["deleted"] == [] and log.archived() == []


def test_the_job_prints_what_it_found_and_exits_with_1(log: Log, cfg: configuration.Config, tmp_path: Path) -> None:
    (log.directory / log.files()[0]).unlink()
    text = cfg.path.read_text().replace("[stream]", f'[stream]\narchive = "{log.root}"')
    cfg.path.write_text(text)
    environment = {**os.environ, "SPARK_CONF_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "gridstead.jobs.archive", "--config", str(cfg.path), "verify"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert "is missing" in answer["findings"][0] and answer["rows"] < 6 and answer["seconds"] > 0
    assert "reading 1 of 1: commits 1 to 3" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["compact", "--below", "5"], "is not like"),
        (["erase"], "invalid choice"),
        ([], "required"),
    ],
)
def test_wrong_use_is_exit_status_2(capsys: pytest.CaptureFixture[str], arguments: list[str], part: str) -> None:
    with pytest.raises(SystemExit) as raised:
        job.main(arguments)
    assert raised.value.code == 2 and part in capsys.readouterr().err


def test_giving_up_records_wants_a_yes(cfg: configuration.Config) -> None:
    result = CliRunner().invoke(main, ["--config", str(cfg.path), "archive", "accept-gap", "t", "0", "8"])
    assert result.exit_code == 1 and "next:  gridstead archive accept-gap t 0 8 --yes" in result.output


def test_status_is_told_by_listings_alone(log: Log, cfg: configuration.Config, tmp_path: Path) -> None:
    with local_files():
        QuickCompactor(log, Compaction(min_age_ms=-60_000)).run()
        log.add(event(9))
        quick_write(log, log.plan())
    (log.directory / "staging/write-x/data").mkdir(parents=True)
    (log.directory / "retention").mkdir()
    (log.directory / "retention/events-before-2020-01-01").touch()
    cli = Path(cfg.hadoop.cli)
    cli.parent.mkdir(parents=True)
    jars = Path(pyspark.__file__).resolve().parents[2] / "jars"
    cli.write_text(f'#!/bin/sh\nshift\nexec java -XX:TieredStopAtLevel=1 -cp "{cli.parent}:{jars}/*" org.apache.hadoop.fs.FsShell "$@"\n')
    cli.chmod(0o755)
    (cli.parent / "core-site.xml").write_text("<configuration/>\n")  # FsShell insists on one
    cfg.path.write_text(cfg.path.read_text().replace("[stream]", f'[stream]\narchive = "{log.root}"'))
    result = CliRunner().invoke(main, ["--config", str(cfg.path), "--json", "archive", "status"])
    assert result.exit_code == 0, result.output
    status = json.loads(result.stdout)
    assert status.pop("newest_ms") > 1_700_000_000_000 and status.pop("bytes") > 1000
    assert status == {
        "archive": log.root,
        "positions": {"t": {"0": 7, "1": 0}},
        "first_day": "2023-11-14",
        "last_day": "2023-11-14",
        "files": 9,
        "commits": 2,
        "not_compacted": 1,
        "awaiting_deletion": 3,
        "given_up_before": ["events-before-2020-01-01"],
        "unfinished": ["write-x"],
        "locked": False,
        "faults": [],
    }
