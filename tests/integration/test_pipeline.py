"""The running appliance: the real capture, bad input, the batch beside the stream, the dead letters."""

from __future__ import annotations

import base64
import json
import random
import socket
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from appliance import CAPTURE, Appliance, assert_served, bin_ends, statistics_of_packets, statistics_of_records, wait_until
from gridstead import xrootd
from gridstead.cli.broker import Broker
from gridstead.config import load, stomp_client
from gridstead.simulate import AccessSimulation, PacketSimulation
from gridstead.sources import SOURCE_HEADER

pytestmark = pytest.mark.appliance

DAY_MS = 86_400_000
Y2005_MS = 1_104_537_600_000


def test_the_real_capture_gives_what_duckdb_computes_from_its_packets(appliance: Appliance) -> None:
    if not CAPTURE.exists():
        pytest.skip(f"the capture is not at {CAPTURE}")
    packets = [(captured.data, "127.0.0.1") for captured in xrootd.read_capture(CAPTURE)]
    expected = statistics_of_packets(appliance, packets)
    ends = bin_ends(expected)
    of_capture = {"transfers": expected["transfers"]}  # other tests' documents differ in the source alone
    appliance.gridstead("replay", str(CAPTURE), "--wait")
    assert_served(appliance, of_capture, ends[0] - DAY_MS, ends[-1], only=lambda document: document["src"] == "127.0.0.1")
    report = appliance.json("report")
    moved = sum(values[2] for values in expected["transfers"].values())
    assert sum(row["bytes"] for row in report["matrix"]) >= moved == 3_661_934_732

    appliance.gridstead("replay", str(CAPTURE), "--wait")  # the same packets again are the same events
    assert_served(appliance, of_capture, ends[0] - DAY_MS, ends[-1], only=lambda document: document["src"] == "127.0.0.1")


def test_bad_input_never_stops_the_pipeline_and_is_kept_with_its_reason(appliance: Appliance, tmp_path: Path) -> None:
    draw = random.Random(1)
    good = next(iter(PacketSimulation(1, 10, Y2005_MS, 3600)))
    random_packets = (b"f" + draw.randbytes(draw.randint(1, 2000)) for _ in range(50))
    bad_packets = [b"", b"f", good[:5], b"f" + bytes(7), b"f\x01\xff\xff" + bytes(20), *random_packets]
    before = appliance.metrics(9941)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for packet in bad_packets:
            sender.sendto(packet, ("127.0.0.1", appliance.port(9940)))
    start_ms = Y2005_MS
    record = next(AccessSimulation(1, 1, start_ms, 3600, duplicates=0, late=0, future=0, missing_open=0, idle=0, written=0))
    bare = record.get("data", record)
    refused = [
        "[]", "null", "17", '"text"', "{", "{}", json.dumps({**bare, "read_bytes": "many"}), json.dumps({**bare, "end_time": []}),
        json.dumps({**bare, "file_lfn": 7}), json.dumps({**bare, "read_bytes_at_close": -1}), '{"data": null}', "x" * 10_000_000,
    ]  # fmt: skip
    odd = {**bare, "file_lfn": "/store/a\nb\u2028c/\ud800?.root".encode("utf-8", "replace").decode(), "app_info": "line\nbreak\ttab"}
    future = {**bare, "file_lfn": "/store/future.root", "end_time": 4_102_444_800_000}
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join([*refused, json.dumps(odd), json.dumps(future), json.dumps(record)]) + "\n")
    appliance.gridstead("replay", str(path), "--as", "events", "--wait")
    assert_served(appliance, statistics_of_records(appliance, [odd, record]), start_ms - 8 * DAY_MS, start_ms + 8 * DAY_MS)
    after = wait_until(
        lambda: (now := appliance.metrics(9941))["dead_letters"] - before["dead_letters"] >= len(refused) and now,
        "every refused message is a dead letter",
    )
    assert after["packets_bad"] > before["packets_bad"]
    listed = appliance.json("dlq", "list")
    assert listed["count"] >= len(refused)
    assert all(letter["reason"] for letter in listed["last"])


def test_a_dead_letter_is_replayed_as_it_came(appliance: Appliance) -> None:
    """Refused as the header says, so only with the same header is it refused for the same reason again."""
    config = load(appliance.config)
    marker = f"of {random.SystemRandom().getrandbits(64):016x}"
    with Broker(stomp_client(config)) as broker:
        broker.send(config.stomp.raw_queue, [json.dumps({"tr_id": marker}).encode()], {SOURCE_HEADER: "fts"})

    def letters() -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = appliance.json("dlq", "list", "--source", "stomp", "--last", "1000")["last"]
        return [letter for letter in listed if marker.encode() in base64.b64decode(letter["raw_base64"] or "")]

    first = wait_until(letters, "the message is a dead letter")[0]
    assert appliance.json("dlq", "replay", first["place"])["messages"] == 1
    again = wait_until(lambda: len(found := letters()) == 2 and found, "it is one again")
    assert {(letter["header"], letter["reason"]) for letter in again} == {("fts", first["reason"])}
    assert "tells no source" not in first["reason"]
    assert appliance.json("dlq", "replay", first["place"]) == {
        "packets": 0, "messages": 0, "replayed_before": 1, "not_replayable": 0, "dry_run": False, "places": []
    }  # fmt: skip


def test_the_smoke_tests_pass_and_write_junit(appliance: Appliance, tmp_path: Path) -> None:
    report = tmp_path / "smoke.xml"
    appliance.gridstead("smoke", "--junit", str(report), timeout=600)
    suite = ElementTree.parse(report).getroot()
    cases = list(suite.iter("testcase"))
    assert len(cases) >= 7
    assert not list(suite.iter("failure")) and not list(suite.iter("error")) and not list(suite.iter("skipped"))
