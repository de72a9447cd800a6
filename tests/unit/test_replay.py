"""replay and simulate: what files are taken, and that packets reach a real collector whatever happens to it."""

from __future__ import annotations

import base64
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance_files import free_ports, write_appliance
from gridstead import config as configuration
from gridstead import simulate
from gridstead.cli import main, metrics, recorded
from gridstead.cli.packets import PacketSender, SendError
from gridstead.cli.recorded import InputError, Kind
from gridstead.cli.sending import Pace

START_MS = 1_748_736_000_000
SOURCE = Path(configuration.__file__).resolve().parents[1]


def write_packets(path: Path, packets: list[bytes]) -> Path:
    lines = [json.dumps({"data": base64.b64encode(packet).decode(), "remote": "10.0.0.1:1"}) for packet in packets]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_kind_of_a_file_is_found_plain_and_zipped(tmp_path: Path) -> None:
    event = {"file_lfn": "/x", "end_time": 1, "read_bytes": 2}
    text = json.dumps(event) + "\n\n" + json.dumps({"data": event, "metadata": {}}) + "\n"
    (tmp_path / "plain").write_text(text)
    (tmp_path / "zipped").write_bytes(gzip.compress(text.encode()))
    for name in ("plain", "zipped"):
        recording = recorded.inspect(tmp_path / name)
        assert (recording.kind, recording.count) == (Kind.EVENTS, 2)
        assert [json.loads(message) for message in recorded.messages(recording)][0] == event
    packets = write_packets(tmp_path / "packets", [b"f\x00", bytes(65_507)])
    recording = recorded.inspect(packets)
    assert (recording.kind, recording.count, recording.total_bytes) == (Kind.PACKETS, 2, 65_509)
    assert list(recorded.messages(recording)) == [b"f\x00", bytes(65_507)]


@pytest.mark.parametrize(
    ("content", "line", "part"),
    [
        (b"", 1, "holds no message"),
        (b'{"end_time": 1}\n{broken\n', 2, "is not JSON"),
        (b'{"end_time": 1}\n\n{"data": "Zg=="}\n', 3, "holds packets, but the file began with events"),
        (b'{"colour": "red"}\n', 1, "neither a captured packet"),
        (b"[1, 2]\n", 1, "neither a captured packet"),
        (b'{"data": "not base64!"}\n', 1, "holds no packet"),
        (b"\xff\xfe binary \x00\n", 1, "is not JSON"),
        (gzip.compress(b'{"end_time": 1}\n' * 1000)[:-20], 1, "cannot be read"),
        (json.dumps({"data": base64.b64encode(bytes(65_508)).decode()}).encode(), 1, "do not fit in a UDP datagram"),
    ],
)
def test_unknown_formats_are_refused_with_file_and_line(tmp_path: Path, content: bytes, line: int, part: str) -> None:
    path = tmp_path / "input"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        recorded.inspect(path)
    assert str(raised.value).startswith(f"{path}:{line}: ")
    assert part in str(raised.value)
    result = CliRunner().invoke(main, ["replay", str(path), "--config", str(write_appliance(tmp_path / "appliance"))])
    assert result.exit_code == 2
    assert f"{path}:{line}: " in result.output and "next:" in result.output


def test_broken_lines_can_be_sent_on_purpose(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"{broken\n\xff\xff\n")
    recording = recorded.inspect(path, Kind.EVENTS)
    assert list(recorded.messages(recording)) == [b"{broken", b"\xff\xff"]


@contextmanager
def collector(file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real collector; its broker is away, so it keeps everything in its queue on disk."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-m", "gridstead.collector", "--config", str(file)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(20)
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def await_collector(config: configuration.Config) -> None:
    for _ in range(200):
        try:
            metrics.collector(config)
            return
        except metrics.MetricsError:
            time.sleep(0.1)
    raise AssertionError("the collector does not answer")


def test_packets_reach_a_real_collector_which_comes_late(tmp_path: Path) -> None:
    file = write_appliance(tmp_path)
    config = configuration.load(file)
    source = simulate.simulate_packets(5, 3000, START_MS, 3600, max_packet_bytes=4000)
    path = write_packets(tmp_path / "packets", list(source))
    outcome: list[object] = []

    def replay() -> None:
        arguments = ["replay", str(path), "--config", str(file), "--json", "--timeout", "60"]
        outcome.append(CliRunner().invoke(main, arguments))

    thread = threading.Thread(target=replay)
    thread.start()
    time.sleep(0.7)  # the port is still closed: the kernel says ECONNREFUSED, and replay waits
    with collector(file):
        thread.join(60)
        counters = metrics.collector(config)
    result = outcome[0]
    assert result.exit_code == 0, result.output  # type: ignore[attr-defined]
    summary = json.loads(result.stdout)  # type: ignore[attr-defined]
    assert summary["messages"] == source.packets and summary["resent"] >= 1
    assert 0.2 < summary["stalled_s"] <= summary["seconds"]
    assert "the port is closed, waiting" in result.stderr  # type: ignore[attr-defined]
    assert counters["packets"] >= source.packets
    assert counters["closes"] - counters["closes_duplicate"] == source.distinct
    assert counters["packets_bad"] == counters["kernel_drops"] == 0


def test_a_collector_killed_in_the_middle_loses_no_packet(tmp_path: Path) -> None:
    file = write_appliance(tmp_path)
    config = configuration.load(file)
    source = simulate.simulate_packets(6, 4000, START_MS, 7200, max_packet_bytes=3000)
    packets = list(source)
    with collector(file) as first:
        await_collector(config)
        sender = PacketSender(
            config.collector.bind, config.collector.xrootd_port, received=metrics.packets_counter(config), patience_s=60
        )
        with sender:
            for packet in packets[: len(packets) // 2]:
                sender.send(packet)
            os.killpg(first.pid, signal.SIGKILL)  # the parent with the socket, and its worker
            first.wait(10)
            with collector(file):
                for packet in packets[len(packets) // 2 :]:
                    sender.send(packet)
                sender.flush()
                counters = metrics.collector(config)
    assert counters["closes"] - counters["closes_duplicate"] == source.distinct


def test_a_port_that_stays_closed_is_an_error_with_its_name() -> None:
    (port,) = free_ports(socket.SOCK_DGRAM, 1)
    with PacketSender("127.0.0.1", port, patience_s=0.3) as sender:
        with pytest.raises(SendError, match=f"127.0.0.1:{port}/udp: the port is closed"):
            sender.send(b"f")


def test_the_window_keeps_a_slow_receiver_from_losing_packets() -> None:
    """A receiver with a small socket buffer that reads slowly: without the window, most would be dropped."""
    packets = [number.to_bytes(4, "big") * 1000 for number in range(300)]
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 512 << 10)
    receiver.bind(("127.0.0.1", 0))
    receiver.settimeout(15)
    got: list[bytes] = []

    def receive() -> None:
        while len(got) < len(packets):
            got.append(receiver.recv(65_536))
            time.sleep(0.001)

    thread = threading.Thread(target=receive)
    thread.start()
    with PacketSender("127.0.0.1", receiver.getsockname()[1], received=lambda: len(got), patience_s=30) as sender:
        for packet in packets:
            sender.send(packet)
        sender.flush()
    thread.join(10)
    receiver.close()
    assert got == packets and sender.resent == 0


def test_an_unreachable_broker_ends_with_what_where_and_next(tmp_path: Path) -> None:
    file = write_appliance(tmp_path)
    events = tmp_path / "events.jsonl"
    events.write_text('{"end_time": 1700000000, "read_bytes": 1}\n')
    result = CliRunner().invoke(main, ["replay", str(events), "--config", str(file), "--timeout", "0.5"])
    assert result.exit_code == 4
    assert "The broker does not answer" in result.stderr and "next:  gridstead doctor" in result.stderr


def test_the_rate_is_kept_on_average() -> None:
    pace = Pace(200)
    begun = time.monotonic()
    for _ in range(41):
        pace.wait()
    assert 0.19 < time.monotonic() - begun < 1.0


def test_simulated_files_are_reproducible_and_can_be_replayed(tmp_path: Path) -> None:
    common = ["--events", "500", "--seed", "3", "--start", "2025-06-01", "--span", "3600", "--json"]
    for name in ("one.jsonl", "two.jsonl", "three.jsonl.gz"):
        result = CliRunner().invoke(main, ["simulate", *common, "--output", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
        summary = json.loads(result.stdout)
        assert summary["distinct_events"] == 500 and summary["messages"] > 500
    one = (tmp_path / "one.jsonl").read_bytes()
    assert one == (tmp_path / "two.jsonl").read_bytes() == gzip.decompress((tmp_path / "three.jsonl.gz").read_bytes())
    recording = recorded.inspect(tmp_path / "one.jsonl")
    assert (recording.kind, recording.count) == (Kind.EVENTS, summary["messages"])
    for kind, found in (("packets", Kind.PACKETS), ("fts", Kind.EVENTS), ("rucio", Kind.EVENTS)):
        result = CliRunner().invoke(main, ["simulate", *common, "--kind", kind])
        (tmp_path / kind).write_bytes(result.stdout_bytes)
        assert recorded.inspect(tmp_path / kind).kind is found
