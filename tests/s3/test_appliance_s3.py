"""A whole appliance whose archive and checkpoints are in a bucket: exact, also after the stream was killed; and HDFS beside S3."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from appliance import Appliance, assert_served, run, statistics_of_records, wait_until
from gridstead.simulate import AccessSimulation
from s3server import Server

pytestmark = [pytest.mark.long, pytest.mark.timeout(1700)]
DAY_MS = 86_400_000
START_MS = 1_104_537_600_000 // DAY_MS * DAY_MS


@pytest.fixture(scope="module")
def appliance(server: Server) -> Iterator[Appliance]:
    """The appliance, on ports of its own, removed at the end."""
    under_test = Appliance(Path(tempfile.mkdtemp(prefix="gridstead-s3-")), 3000)
    under_test.root.chmod(0o755)
    variables = under_test.root / "s3.json"
    variables.touch(0o600)
    settings = {
        "analytics_archive": "s3a://archive/appliance",
        "analytics_stream_checkpoint": "s3a://archive/checkpoints",
        "analytics_archive_compact_after_h": 0,
        "gridstead_s3_endpoint": server.url,
        "gridstead_s3_access_key": server.access,
        "gridstead_s3_secret_key": server.secret,
    }
    variables.write_text(json.dumps(settings))
    try:
        run(["ansible-playbook", "playbooks/site.yml", "-e", f"@{variables}"], env=under_test.environment, timeout=900)
        yield under_test
    finally:
        under_test.playbook("down")
        shutil.rmtree(under_test.root)


def test_keys_are_in_one_file_that_only_the_servers_user_may_read(appliance: Appliance, server: Server) -> None:
    (holder,) = [
        path for path in (appliance.root / "etc").rglob("*") if path.is_file() and server.secret in path.read_text(errors="replace")
    ]
    assert holder.name == "credentials"
    assert holder.stat().st_mode & 0o777 == 0o600


def test_statistics_are_exact_after_the_stream_was_killed(appliance: Appliance, server: Server, tmp_path: Path) -> None:
    records = list(AccessSimulation(3, 6_000, START_MS, 3 * 86_400, future=0))
    assert len(records) <= 7_500
    expected = statistics_of_records(appliance, records)
    path = tmp_path / "events.jsonl"
    for part in range(3):
        path.write_text("".join(json.dumps(record) + "\n" for record in records[part * 2500 : part * 2500 + 2500]))
        appliance.gridstead("replay", str(path), "--as", "events")
        if part < 2:
            appliance.kill("stream")
    assert_served(appliance, expected, START_MS - 8 * DAY_MS, START_MS + 8 * DAY_MS)
    first, last = ((dt.datetime(1970, 1, 1) + dt.timedelta(milliseconds=ms)).date().isoformat() for ms in (START_MS, START_MS + 4 * DAY_MS))
    assert appliance.json("batch", "run", "--from", first, "--to", last, timeout=600)["merged"]["computed"] > 0
    assert_served(appliance, expected, START_MS - 8 * DAY_MS, START_MS + 8 * DAY_MS)


def test_the_archive_is_sound_before_and_after_compaction(appliance: Appliance, server: Server) -> None:
    before = appliance.json("archive", "status")
    assert before["files"] > 3
    assert before["faults"] == []
    assert appliance.json("archive", "verify", timeout=600)["findings"] == []
    assert appliance.json("archive", "compact", timeout=600)["merges"] > 0
    verified = appliance.json("archive", "verify", timeout=600)
    assert verified["findings"] == verified["leftovers"] == []
    assert verified["rows"] >= 6_000
    assert "s3_CopyObject" not in server.requests()
    assert "gridstead" not in appliance.hdfs("-ls", "-C", "/").replace("/apps/gridstead", "")


def test_the_smoke_tests_pass(appliance: Appliance, tmp_path: Path) -> None:
    report = tmp_path / "smoke.xml"
    appliance.gridstead("smoke", "--junit", str(report), timeout=600)
    assert not [node for kind in ("failure", "error") for node in ElementTree.parse(report).getroot().iter(kind)]


def test_a_second_run_changes_nothing(appliance: Appliance) -> None:
    printed = appliance.playbook("site", "-e", f"@{appliance.root}/s3.json")
    assert "changed=0" in printed, printed[-3000:]


def test_reading_hdfs_and_s3_side_by_side(appliance: Appliance, tmp_path: Path) -> None:
    plot = tmp_path / "io.svg"
    places = ["--at", "hdfs:///tmp/io", "--at", "s3a://archive/io"]
    answer = appliance.json("io", *places, "--rows", "200000", "--repeat", "2", "--plot", str(plot), timeout=900)
    print(json.dumps([{k: v for k, v in entry.items() if k != "first_byte_steps_ms"} for entry in answer["results"]]))
    assert len(answer["results"]) == 16
    for entry in answer["results"]:
        least = 0 if entry["format"] in ("parquet", "avro") else entry["stored_bytes"]
        assert entry["bytes"] > least
        assert 0 < entry["first_byte_ms"]["p50"] <= entry["first_byte_ms"]["p99"] <= entry["first_byte_ms"]["p100"]
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    wait_until(appliance.healthy, "every service is healthy")
