"""kill -9 of any one server while events flow: it comes back by itself, and the counts are exact."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from appliance import (
    Appliance,
    Statistics,
    assert_served,
    command_line,
    descendants,
    statistics_of_packets,
    statistics_of_records,
    wait_until,
)
from gridstead.simulate import AccessSimulation, PacketSimulation

pytestmark = [pytest.mark.appliance, pytest.mark.fault]

DAY_MS = 86_400_000
FIRST_DAY_MS = 1_262_304_000_000  # 2010-01-01: each case has three days of its own
KILLED = ["activemq", "bridge", "kafka", "hdfs-namenode", "stream", "elasticsearch", "collector", "hdfs-datanode", "yarn-nodemanager"]
LONG = KILLED[6:]  # a killed collector has tests of its own below; the other two keep nothing that the stream needs for long


def simulated(appliance: Appliance, directory: Path, case: int) -> tuple[Path, Statistics, int, int]:
    """A file of records with duplicates, the statistics expected of them, and the range of their bins."""
    start_ms = FIRST_DAY_MS + 10 * case * DAY_MS
    records = list(AccessSimulation(seed=case, events=3000, start_ms=start_ms, span_s=86_400, future=0.0, duplicates=0.1))
    path = directory / "events.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path, statistics_of_records(appliance, records), start_ms - 8 * DAY_MS, start_ms + 2 * DAY_MS - 1


@pytest.mark.parametrize("service", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in KILLED])
def test_a_killed_server_comes_back_and_the_counts_are_exact(appliance: Appliance, tmp_path: Path, service: str) -> None:
    path, expected, from_ms, to_ms = simulated(appliance, tmp_path, KILLED.index(service) + 1)
    command = [str(appliance.root / "opt/gridstead/bin/gridstead"), "replay", str(path), "--rate", "400"]
    with subprocess.Popen(command, env=appliance.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as replay:
        try:
            time.sleep(3)  # the replay is under way; the kill is meant to fall in its middle
            killed = appliance.kill(service)
            output, _ = replay.communicate(timeout=300)
        finally:
            replay.kill()
    assert replay.returncode == 0, output
    assert_served(appliance, expected, from_ms, to_ms)
    wait_until(lambda: appliance.pid(service) not in (0, killed), f"{service} runs again", 60)
    wait_until(appliance.healthy, "every service is healthy again", 120)


def test_a_stream_that_ends_while_elasticsearch_is_away_waits_for_nobody(appliance: Appliance, tmp_path: Path) -> None:
    """Its statistics are in the middle of a write that is tried for many minutes; yet it ends, and is started again."""
    path, expected, from_ms, to_ms = simulated(appliance, tmp_path, 12)
    log = appliance.root / "var/log/stream.log"
    said = len(log.read_text())
    appliance.supervisorctl("stop", "elasticsearch")
    try:
        appliance.gridstead("replay", str(path))
        wait_until(lambda: "does not accept" in log.read_text()[said:], "the statistics wait", 60)
        before = appliance.pid("stream")
        (driver,) = [child for child in descendants(before)[1:] if b"jobs/stream.py" in command_line(child)]
        os.kill(driver, signal.SIGTERM)
        wait_until(lambda: appliance.pid("stream") not in (0, before), "the stream was started again", 90)
    finally:
        appliance.supervisorctl("start", "elasticsearch")
    assert_served(appliance, expected, from_ms, to_ms)
    wait_until(appliance.healthy, "every service is healthy again", 120)


@pytest.mark.parametrize("killed", ["parent", "worker"])
def test_a_killed_collector_loses_no_packet(appliance: Appliance, tmp_path: Path, killed: str) -> None:
    case = 20 + len(killed)
    start_ms = FIRST_DAY_MS + 10 * case * DAY_MS
    packets = [(data, "127.0.0.1") for data in PacketSimulation(case, 4000, start_ms, 86_400, missing_open=0.05, repeat=0.05)]
    path = tmp_path / "packets.jsonl"
    path.write_text("".join(json.dumps({"data": base64.b64encode(data).decode()}) + "\n" for data, _ in packets))
    rate = len(packets) / 12
    command = [str(appliance.root / "opt/gridstead/bin/gridstead"), "replay", str(path), "--rate", f"{rate:.0f}"]
    with subprocess.Popen(command, env=appliance.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as replay:
        try:
            time.sleep(4)  # the replay is under way; the kill is meant to fall in its middle
            parent = appliance.pid("collector")
            os.kill(parent if killed == "parent" else descendants(parent)[1], signal.SIGKILL)
            output, _ = replay.communicate(timeout=300)
        finally:
            replay.kill()
    assert replay.returncode == 0, output
    assert_served(appliance, statistics_of_packets(appliance, packets), start_ms - 8 * DAY_MS, start_ms + 2 * DAY_MS - 1)
