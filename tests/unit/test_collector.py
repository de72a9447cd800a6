"""The collector with real processes, sockets and databases: what is lost or doubled when one is killed, or full.

No broker is needed, but for the test at the end, which uses the one of the appliance under test.
"""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance import Appliance
from appliance_files import write_appliance
from gridstead.cli.broker import Broker
from gridstead.collector.broker import Input, Sender, accept_messages, frame
from gridstead.collector.store import DEAD_LETTER, EVENT, Store
from gridstead.collector.udp import UdpReceiver, decode, process_packet
from gridstead.config import StompClient, load, stomp_client
from gridstead.simulate import simulate, simulate_packets
from gridstead.sources import PACKET_HEADER
from gridstead.sources.xrootd import MemoryOpenTable, ServerKey, XrootdJoiner
from gridstead.xrootd import CloseRecord, OpenRecord, TimeRecord, decode_packet, encode_packet

START = 1_700_000_000_000
NOW = START + 86_400_000


def until(condition: Callable[[], Any], what: str, timeout: float = 20) -> Any:
    """Wait for a true value and return it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.03)
    raise AssertionError(f"not within {timeout} s: {what}")


def running(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Daemon:
    """A collector in processes of its own, with its configuration in a directory."""

    def __init__(self, root: Path, **settings: int) -> None:
        self.file = write_appliance(root)
        text = self.file.read_text()
        for name, value in settings.items():
            text = text.replace("[collector]\n", f"[collector]\n{name} = {value}\n")
        self.file.write_text(text)
        self.config = load(self.file)
        self.data_dir = Path(self.config.collector.data_dir)
        self.address = (self.config.collector.bind, self.config.collector.xrootd_port)
        self.log = root / "collector.log"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.workers: set[int] = set()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def start(self, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start a parent and wait until its worker answers."""
        command = [*prefix, sys.executable, "-m", "gridstead.collector", "--config", str(self.file)]
        with open(self.log, "ab") as log:
            process = subprocess.Popen(command, stderr=log, stdout=log)
        self.processes.append(process)
        until(lambda: process.poll() is not None or self.worker_of(process.pid), f"the collector to start; {self.text()}")
        assert process.poll() is None, self.text()
        return process

    def worker_of(self, parent: int) -> int | None:
        """The pid of the worker of this parent, once it answers."""
        try:
            pid = int(self.metrics()["pid"])
        except OSError:
            return None
        self.workers.add(pid)
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        return pid if int(stat.rpartition(")")[2].split()[1]) == parent else None

    def get(self, page: str) -> tuple[int, Any]:
        """A page of the status port: code and body."""
        url = f"http://127.0.0.1:{self.config.collector.status_port}{page}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def metrics(self) -> dict[str, Any]:
        """The counters."""
        return self.get("/metrics.json")[1]

    def send(self, *packets: bytes) -> None:
        """Send packets to the collector."""
        for packet in packets:
            self._socket.sendto(packet, self.address)

    def received(self, packets: int) -> dict[str, Any]:
        """Wait until so many packets were counted."""

        def counted() -> dict[str, Any] | None:
            try:
                metrics = self.metrics()
            except OSError:
                return None
            return metrics if metrics["packets"] >= packets else None

        metrics: dict[str, Any] = until(counted, f"{packets} packets; {self.text()[-2000:]}")
        return metrics

    def rows(self) -> list[tuple[int, str, dict[str, Any]]]:
        """The queue: kind, event id, body."""
        db = sqlite3.connect(f"file:{self.data_dir / 'collector.sqlite'}?mode=ro", uri=True)
        try:
            rows = db.execute("SELECT kind, event_id, body FROM queue ORDER BY id").fetchall()
        finally:
            db.close()
        return [(kind, event_id, json.loads(body)) for kind, event_id, body in rows]

    def events(self) -> list[dict[str, Any]]:
        """The events of the queue."""
        return [body for kind, _, body in self.rows() if kind == EVENT]

    def text(self) -> str:
        """The log."""
        return self.log.read_text() if self.log.exists() else ""

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Stop in the ordinary way."""
        process.terminate()
        assert process.wait(30) == 0, self.text()

    def end(self) -> None:
        """Kill what is left."""
        self._socket.close()
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        for pid in self.workers:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if str(self.file).encode() in command:
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    made: list[Daemon] = []

    def make(**settings: int) -> Daemon:
        made.append(Daemon(tmp_path / f"appliance-{len(made)}", **settings))
        return made[-1]

    yield make
    for daemon in made:
        daemon.end()


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    return make_daemon()


def assert_exact(daemon: Daemon, simulation: Any, packets: int) -> None:
    """All packets counted once, each file one event, no byte lost."""
    metrics = daemon.received(packets)
    events = daemon.events()
    assert metrics["kernel_drops"] == 0
    assert metrics["packets"] == packets
    assert len(events) == metrics["events"] == metrics["queue_rows"] == simulation.distinct
    assert len({event["event_id"] for event in events}) == simulation.distinct
    assert sum(event["read_bytes"] + event["write_bytes"] for event in events) == simulation.bytes
    assert sum(event["open_missing"] for event in events) == metrics["open_missing"] == simulation.missing


def test_packets_become_events_and_counters_survive_a_restart(daemon: Daemon) -> None:
    process = daemon.start()
    simulation = simulate_packets(11, 1500, START, 3600, missing_open=0.05)
    packets = list(simulation)
    daemon.send(*packets)
    assert_exact(daemon, simulation, len(packets))
    until(lambda: "sender: no STOMP connection" in str(daemon.get("/health")), "the reason why nothing is sent")
    code, health = daemon.get("/health")
    assert (code, health["status"]) == (200, "degraded")  # there is no broker, but input is accepted
    before = daemon.metrics()
    daemon.stop(process)
    daemon.start()
    after = daemon.metrics()
    changing = {"pid", "uptime_s"}
    assert {key: after[key] for key in after.keys() - changing} == {key: before[key] for key in before.keys() - changing}
    # The log tells a change of state: once a start, not once an attempt.
    until(lambda: daemon.text().count("sender: no STOMP connection") == 2, "the sender's line")
    time.sleep(1.0)
    assert daemon.text().count("sender: no STOMP connection") == 2
    assert daemon.get("/nothing")[0] == 404


def test_an_open_is_remembered_over_a_restart(daemon: Daemon) -> None:
    time_record = TimeRecord(1_700_000_000, 1_700_000_030, 5)
    process = daemon.start()
    daemon.send(encode_packet([time_record, OpenRecord(9, 77, 1, "/store/x\ny")], server_start_s=1))
    daemon.received(1)
    daemon.stop(process)
    daemon.start()
    daemon.send(encode_packet([time_record, CloseRecord(9, 70, 7, 0)], server_start_s=1))
    daemon.received(2)
    (event,) = daemon.events()
    assert (event["file_lfn"], event["file_size"], event["read_bytes"]) == ("/store/x\ny", 77, 77)


def test_bad_packets_become_dead_letters_and_stop_nothing(daemon: Daemon) -> None:
    daemon.start()
    simulation = simulate_packets(2, 200, START, 600)
    good = list(simulation)
    dice = random.Random(4)
    bad = [
        good[0][:50],
        b"",
        b"f",
        dice.randbytes(900),
        good[1][:2] + b"\xff\xff" + good[1][4:],
        dice.randbytes(60_000),
    ]
    user_map = b"u\0\0\x0c\0\0\0\x01abcd"
    negative = encode_packet([TimeRecord(1, 2, 3), CloseRecord(1, -1, 0, 0)], server_start_s=1)
    mixed = [packet for pair in zip(good, [*bad, user_map, negative], strict=False) for packet in pair] + good[8:]
    assert len(good) >= 8
    daemon.send(*mixed)
    metrics = daemon.received(len(mixed))
    assert metrics["packets"] == len(good) + 8
    assert metrics["events"] == simulation.distinct
    assert (metrics["packets_other"], metrics["packets_bad"], metrics["dead_letters"]) == (1, 7, 7)
    letters = [body for kind, _, body in daemon.rows() if kind == DEAD_LETTER]
    assert {base64.b64decode(letter["raw_base64"]) for letter in letters} == {*bad, negative}
    for letter in letters:
        assert letter.keys() == {"reason", "source", "origin", "received_ms", "header", "raw_base64", "truncated", "partial"}
        assert (letter["source"], letter["origin"], letter["truncated"]) == ("xrootd-udp", "127.0.0.1", False)
    assert "the header says 65535 bytes" in " ".join(letter["reason"] for letter in letters)
    assert not any(letter["partial"] for letter in letters)
    assert letters[-1]["reason"].startswith("read bytes of close 1: -1 is negative (1 of 2 records refused")


def test_kill_9_of_the_worker_loses_and_doubles_nothing(daemon: Daemon) -> None:
    process = daemon.start()
    simulation = simulate_packets(5, 6000, START, 7200, window_s=5)
    packets = list(simulation)
    kills = 0
    for number, packet in enumerate(packets):
        daemon.send(packet)
        if number % (len(packets) // 4) == 50:
            worker = until(lambda: daemon.worker_of(process.pid), "a worker")
            os.kill(worker, signal.SIGKILL)
            kills += 1
    assert kills == 4
    assert_exact(daemon, simulation, len(packets))
    assert process.poll() is None
    assert daemon.text().count("ended with signal SIGKILL: starting another") == kills


def test_kill_9_of_the_parent_loses_and_doubles_nothing(daemon: Daemon) -> None:
    simulation = simulate_packets(6, 3000, START, 3600, window_s=5)
    packets = list(simulation)
    third = len(packets) // 3
    first = daemon.start()
    orphan = daemon.worker_of(first.pid)
    daemon.send(*packets[:third])
    first.kill()
    first.wait()
    daemon.send(*packets[third : 2 * third])  # nobody but the orphan has the socket
    second = daemon.start()
    daemon.send(*packets[2 * third :])
    assert_exact(daemon, simulation, len(packets))
    assert orphan is not None and not running(orphan)
    assert "took the socket over from the worker of a killed collector" in daemon.text()
    daemon.stop(second)


def test_a_stop_empties_the_socket_first(daemon: Daemon) -> None:
    process = daemon.start()
    simulation = simulate_packets(8, 2500, START, 3600)
    packets = list(simulation)
    daemon.send(*packets)
    daemon.stop(process)
    assert len(daemon.events()) == simulation.distinct
    assert "stopped" in daemon.text().splitlines()[-1]


def test_a_full_queue_drops_counts_and_says_so(make_daemon: Callable[..., Daemon]) -> None:
    bound = 1 << 20
    daemon = make_daemon(queue_max_bytes=bound)
    daemon.start()
    packets = list(simulate_packets(9, 4000, START, 3600))
    daemon.send(*packets)
    metrics = daemon.received(len(packets))
    assert 0 < metrics["dropped_full"] < len(packets)
    assert bound <= metrics["queue_bytes"] < bound + (64 << 10)  # exceeded by the events of one (small) packet at most
    rows = daemon.rows()
    assert metrics["queue_rows"] == len(rows) < 4000
    code, health = daemon.get("/health")
    assert (code, health["status"]) == (503, "failed")
    assert health["reasons"][0].startswith("the queue is full")
    assert daemon.text().count("the queue is full: dropping packets") == 1


def test_the_socket_of_systemd_is_used(daemon: Daemon, tmp_path: Path) -> None:
    passed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    passed.bind(("127.0.0.1", 0))
    script = tmp_path / "as-systemd.py"
    script.write_text(
        "import os, sys\n"
        f"os.dup2({passed.fileno()}, 3, inheritable=True)\n"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    simulation = simulate_packets(1, 100, START, 60)
    packets = list(simulation)
    daemon.address = passed.getsockname()
    daemon.send(*packets[:1])  # before the collector runs
    os.set_inheritable(passed.fileno(), True)
    command = [sys.executable, str(script), sys.executable, "-m", "gridstead.collector", "--config", str(daemon.file)]
    with open(daemon.log, "ab") as log:
        process = subprocess.Popen(command, pass_fds=[passed.fileno()], stderr=log)
    daemon.processes.append(process)
    until(lambda: daemon.worker_of(process.pid), "the collector to start")
    daemon.send(*packets[1:])
    assert_exact(daemon, simulation, len(packets))
    passed.close()


def test_a_taken_port_and_a_bad_configuration_end_with_one_sentence(daemon: Daemon, tmp_path: Path) -> None:
    daemon.file.write_text(daemon.file.read_text().replace("[collector]\n", "[collector]\nqueue_max_bytes = 5\n"))
    run = subprocess.run(
        [sys.executable, "-m", "gridstead.collector", "--config", str(daemon.file)],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert run.returncode == 78
    assert "collector.queue_max_bytes is 5, out of range" in run.stderr
    assert "Traceback" not in run.stderr


# --- the parts, in this process --------------------------------------------------------------------------------------


@pytest.fixture
def udp() -> Iterator[tuple[socket.socket, Callable[[bytes], None]]]:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    receiver.bind(("127.0.0.1", 0))
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    yield receiver, lambda packet: sender.sendto(packet, receiver.getsockname()) and None
    receiver.close()
    sender.close()


def _store(path: Path, **settings: int) -> Store:
    return Store(path / "s.sqlite", **{"queue_max_bytes": 1 << 30, "join_horizon_s": 3600, **settings})


def _queue(store: Store) -> list[tuple[str, dict[str, Any]]]:
    return [(row.event_id, json.loads(row.body)) for row in store.read_batch(100_000, 1 << 30)]


def _killed(action: Callable[[], object]) -> None:
    """Run an action in a child that dies by SIGKILL in it."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(3)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("taken", [0, 2])
def test_a_kill_between_commit_and_consume_is_exactly_once(tmp_path: Path, udp: Any, taken: int) -> None:
    sock, send = udp
    packets = list(simulate_packets(3, 300, START, 300))
    committed = packets[: len(packets) // 2]
    for packet in committed:
        send(packet)

    def die_before_consuming() -> None:
        def die() -> None:
            for _ in range(taken):
                sock.recv(65536)
            os.kill(os.getpid(), signal.SIGKILL)

        UdpReceiver(sock, _store(tmp_path)).receive(before_consume=die)

    _killed(die_before_consuming)
    store = _store(tmp_path)
    before = _queue(store)
    assert before and store.counters["packets"] == len(committed)
    for packet in packets[len(committed) :]:
        send(packet)
    receiver = UdpReceiver(sock, store, used=True)
    while receiver.receive():
        pass
    assert store.counters["packets"] == len(packets)
    after = _queue(store)
    assert after[: len(before)] == before
    assert len(after) == len({event_id for event_id, _ in after}) == 300
    store.close()


def test_a_packet_that_is_processed_again_gives_the_same_events(tmp_path: Path, udp: Any) -> None:
    sock, send = udp
    packets = list(simulate_packets(3, 200, START, 300, missing_open=0.3))
    store = _store(tmp_path)
    receiver = UdpReceiver(sock, store)
    rounds = []
    for _ in range(2):
        start = store.counters["queue_rows"]
        for packet in packets:
            send(packet)
        while receiver.receive():
            pass
        rounds.append([{**body, "received_ms": 0} for _, body in _queue(store)[start:]])
    assert len(rounds[0]) == 200
    assert rounds[0] == rounds[1]
    assert store.counters["closes_duplicate"] == 200
    store.close()


def test_a_full_disk_leaves_packets_in_the_socket(tmp_path: Path, udp: Any) -> None:
    sock, send = udp
    store = _store(tmp_path)
    receiver = UdpReceiver(sock, store)
    simulation = simulate_packets(3, 3000, START, 300)
    packets = list(simulation)
    pages = store._write.execute("PRAGMA page_count").fetchone()[0]
    store._write.execute(f"PRAGMA max_page_count={pages + 20}")  # SQLite's own way to have no more room
    for packet in packets:
        send(packet)
    while receiver.receive():
        pass
    assert "full" in receiver.failing
    assert store.counters["packets"] < len(packets)
    store._write.execute("PRAGMA max_page_count=1000000")
    while receiver.receive():
        pass
    assert receiver.failing == ""
    assert store.counters["packets"] == len(packets)
    assert store.counters["events"] == len(_queue(store)) == simulation.distinct
    store.close()


def test_empty_datagrams_do_not_block_the_socket(tmp_path: Path, udp: Any) -> None:
    sock, send = udp
    good = next(simulate_packets(3, 10, START, 10))
    for packet in (b"", b"", good, b""):
        send(packet)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    _killed(lambda: UdpReceiver(sock, _store(tmp_path)).receive(before_consume=die))
    store = _store(tmp_path)
    receiver = UdpReceiver(sock, store, used=True)
    send(good)
    for _ in range(10):
        receiver.receive()
    with pytest.raises(BlockingIOError):
        sock.recv(10)
    assert store.counters["events"] >= 1
    store.close()


def test_the_database_joins_as_memory_does(tmp_path: Path) -> None:
    store = _store(tmp_path)
    memory = XrootdJoiner(MemoryOpenTable())
    for raw in simulate_packets(12, 400, START, 3600, repeat=0.2, missing_open=0.2):
        packet = decode_packet(raw)
        with store.transaction() as change:
            joined = XrootdJoiner(change).join(packet, "h", NOW)
        assert joined == memory.join(packet, "h", NOW)
    assert store.counters["file_rows"] == 400
    store.close()


def test_files_are_forgotten_after_the_horizon_and_not_before(tmp_path: Path) -> None:
    store = _store(tmp_path, join_horizon_s=100)
    server = ServerKey("h", 1, 2)
    time_record = TimeRecord(1_700_000_000, 1_700_000_030, 2)
    packet = decode_packet(encode_packet([time_record, *(OpenRecord(n, 1, 1, "/f") for n in range(50))], server_start_s=1))
    late = decode_packet(encode_packet([time_record, CloseRecord(7, 1, 0, 0)], server_start_s=1))
    with store.transaction() as change:
        XrootdJoiner(change).join(packet, "h", NOW)
    with store.transaction() as change:
        XrootdJoiner(change).join(late, "h", NOW + 60_000)
    assert store.sweep(NOW + 100_000) == 0
    swept = [store.sweep(NOW + 100_001, limit=20) for _ in range(3)]
    assert swept == [19, 20, 10]  # all but the file seen again, in slices
    with store.transaction() as change:
        assert list(change.load(server, range(50))) == [7]
    assert store.counters["file_rows"] == 1
    assert store.counters["files_evicted"] == 49
    store.close()


def test_a_failed_transaction_changes_nothing(tmp_path: Path) -> None:
    store = _store(tmp_path)
    with pytest.raises(RuntimeError, match="in between"), store.transaction() as change:
        change.add_dead_letter("r", "stomp", "o", NOW, b"raw")
        change.load(ServerKey("h", 1, 2), [1])
        raise RuntimeError("in between")
    assert store.counters["dead_letters"] == store.counters["queue_rows"] == 0
    assert _queue(store) == []
    with store.transaction() as change:  # and it can go on, with no memory of the server row that was rolled back
        change.load(ServerKey("h", 1, 2), [1])
    assert store._write.execute("SELECT count(*) FROM servers").fetchone() == (1,)
    store.close()


def _messages(*bodies: bytes) -> list[Any]:
    return [SimpleNamespace(body=body, headers={}) for body in bodies]


def test_messages_become_events_or_dead_letters_in_order(tmp_path: Path) -> None:
    store = _store(tmp_path)
    simulation = simulate(4, 400, START, 3600, invalid=0.1, duplicates=0.1)
    bodies = [json.dumps(record).encode() for record in simulation]
    huge = b'{"end_time": 1, "vo": "' + b"x" * 10_000_000 + b'"}'
    beyond = b"y" * ((16 << 20) + 1)
    not_utf8 = b'{"end_time": 1700000000, "vo": "\xff"}'
    accept_messages(store, _messages(huge, *bodies, not_utf8, beyond), "gridstead.raw", 1 << 20, NOW)
    queue = store.read_batch(100_000, 1 << 30)
    letters = [json.loads(row.body) for row in queue if row.kind == DEAD_LETTER]
    events = [json.loads(row.body) for row in queue if row.kind == EVENT]
    assert len({event["event_id"] for event in events}) == simulation.distinct
    assert len(events) == simulation.records - simulation.refused
    assert len(letters) == simulation.refused + 3
    assert letters[0]["reason"] == f"message of {len(huge)} bytes exceeds max_message_bytes = 1048576"
    assert (base64.b64decode(letters[0]["raw_base64"]), letters[0]["truncated"]) == (huge, False)
    assert base64.b64decode(letters[-2]["raw_base64"]) == not_utf8
    assert (letters[-2]["source"], letters[-2]["origin"]) == ("stomp", "gridstead.raw")
    assert "invalid UTF-8" in letters[-2]["reason"]
    assert letters[-1]["truncated"] is True
    assert len(base64.b64decode(letters[-1]["raw_base64"])) == 16 << 20
    metrics = store.counters
    assert metrics["messages"] == len(bodies) + 3
    assert (metrics["events"], metrics["dead_letters"]) == (len(events), len(letters))
    store.close()


def test_a_packet_that_comes_again_counts_for_the_server_that_had_sent_it(tmp_path: Path) -> None:
    store = _store(tmp_path)
    packets = list(simulate_packets(3, 300, START, 600))
    refused = packets[0][:50]
    closes = [CloseRecord(1, 5, 0, 0), CloseRecord(2, -1, 0, 0)]
    partly = encode_packet([TimeRecord(1, START // 1000, START // 1000 + 5), *closes], server_start_s=1)
    with store.transaction() as change:
        for packet in packets:
            process_packet(change, packet, "192.0.2.9", decode(packet), NOW)
    first = _queue(store)
    assert first and {event["server_host"] for _, event in first} == {"192.0.2.9"}
    again = [SimpleNamespace(body=packet, headers={PACKET_HEADER: "192.0.2.9"}) for packet in [*packets, refused]]
    (tmp_path / "other").mkdir()
    other = _store(tmp_path / "other")
    accept_messages(other, again, "gridstead.raw", 1 << 20, NOW)
    *events, (_, letter) = _queue(other)
    assert events == first
    assert (letter["source"], letter["origin"], letter["partial"]) == ("xrootd-udp", "192.0.2.9", False)
    accept_messages(other, [SimpleNamespace(body=partly, headers={PACKET_HEADER: "192.0.2.9"})], "q", 1 << 20, NOW)
    assert _queue(other)[-1][1]["partial"], "one of its closes gave an event"
    store.close()
    other.close()


def test_the_queue_is_read_and_deleted_in_order_within_limits(tmp_path: Path) -> None:
    store = _store(tmp_path)
    bodies = [json.dumps(record).encode() for record in simulate(4, 100, START, 3600, duplicates=0)]
    accept_messages(store, _messages(*bodies), "q", 1 << 20, NOW)
    everything = [row.event_id for row in store.read_batch(1000, 1 << 30)]
    assert len(everything) == 100
    seen: list[str] = []
    assert len(store.read_batch(1000, 1)) == 1  # one at least, however large
    while batch := store.read_batch(30, 8000):
        assert len(batch) <= 30
        assert sum(len(row.body) for row in batch) <= 8000
        seen += [row.event_id for row in batch]
        store.delete_batch(batch)
    assert seen == everything
    assert (store.counters["queue_rows"], store.counters["queue_bytes"], store.counters["sent"]) == (0, 0, 100)
    store.close()


def test_frames_escape_their_headers() -> None:
    assert frame("SEND", {"a": "x:y\\z\nw"}, b"\0b") == b"SEND\na:x\\cy\\\\z\\nw\ncontent-length:2\n\n\0b\0"
    assert frame("BEGIN", {"transaction": "t1"}) == b"BEGIN\ntransaction:t1\n\n\0"


# --- with a broker ---------------------------------------------------------------------------------------------------


@pytest.fixture
def broker(appliance: Appliance) -> StompClient:
    return stomp_client(load(appliance.config))


@pytest.mark.appliance
def test_events_travel_through_a_broker_and_back_pressure_holds(tmp_path: Path, broker: StompClient) -> None:
    """Producer, raw queue, Input, store, Sender, events queue, Input of a second store as the consumer."""
    name = f"gridstead.unit-{os.getpid()}-{time.time_ns()}"
    store = _store(tmp_path)
    source = Input(broker, store, f"{name}.raw", 1 << 20, now_ms=lambda: NOW)
    sender = Sender(broker, store, f"{name}.events", f"{name}.deadletter")
    producer_dir = tmp_path / "producer"
    producer_dir.mkdir()
    producer_store = _store(producer_dir)
    producer = Sender(broker, producer_store, f"{name}.raw", f"{name}.raw")
    threads = [threading.Thread(target=link.run) for link in (source, sender, producer)]
    simulation = simulate(4, 2000, START, 3600, duplicates=0)
    wanted = []
    with producer_store.transaction() as change:
        for record in simulation:
            wanted.append(json.dumps(record).encode())
            change._add([(EVENT, "0" * 32, wanted[-1])])
    try:
        for thread in threads:
            thread.start()
        until(lambda: store.counters["sent"] == 2000, "2000 events sent", 60)
        assert store.counters["messages"] == 2000
        # A store that is full from the start takes nothing, and nothing is lost by that.
        full_dir = tmp_path / "full"
        full_dir.mkdir()
        full = _store(full_dir, queue_max_bytes=0)
        consumer = Input(broker, full, f"{name}.events", 1 << 20, now_ms=lambda: NOW)
        threads.append(threading.Thread(target=consumer.run))
        threads[-1].start()
        until(lambda: consumer.waiting, "the input to wait")
        time.sleep(0.5)
        assert full.counters["messages"] == 0
        full.queue_max_bytes = 1 << 30
        until(lambda: full.counters["messages"] == 2000, "the 2000 events", 60)
        source.stop()
        sender.stop()
        producer.stop()
        consumer.stop()
    finally:
        for link in (source, sender, producer):
            link.stop()
        for thread in threads:
            thread.join(10)
    for used in (store, producer_store, full):
        used.close()


@pytest.mark.appliance
def test_messages_stay_the_brokers_until_it_has_their_events(tmp_path: Path, broker: StompClient) -> None:
    """A collector that took messages and is lost before it sent their events: another one gets them all."""
    name = f"gridstead.unit-{os.getpid()}-{time.time_ns()}"
    stores = []
    for directory in ("producer", "lost", "other"):
        (tmp_path / directory).mkdir()
        stores.append(_store(tmp_path / directory))
    producer_store, lost_store, other_store = stores
    bodies = [json.dumps(record).encode() for record in simulate(7, 50, START, 3600, duplicates=0)]
    with producer_store.transaction() as change:
        change._add([(EVENT, "0" * 32, body) for body in bodies])
    producer = Sender(broker, producer_store, f"{name}.raw", f"{name}.raw")
    lost = Input(broker, lost_store, f"{name}.raw", 1 << 20, now_ms=lambda: NOW)
    other = Input(broker, other_store, f"{name}.raw", 1 << 20, now_ms=lambda: NOW)
    sender = Sender(broker, other_store, f"{name}.events", f"{name}.deadletter")
    threads = [threading.Thread(target=link.run) for link in (producer, lost)]
    try:
        for thread in threads:
            thread.start()
        until(lambda: lost_store.counters["messages"] == 50, "the 50 messages", 60)
        lost.stop()  # nobody sends its events
        threads[-1].join(10)
        threads += [threading.Thread(target=link.run) for link in (other, sender)]
        for thread in threads[2:]:
            thread.start()
        until(lambda: other_store.counters["sent"] == 50, "the other collector's 50 events", 60)
        other.stop()
        threads[2].join(10)
        with Broker(broker, timeout_s=10) as asked:
            until(lambda: asked.depth(f"{name}.raw") == 0, "all to be acknowledged")
            assert asked.depth(f"{name}.events") == 50
    finally:
        for link in (producer, lost, other, sender):
            link.stop()
        for thread in threads:
            thread.join(10)
    for used in stores:
        used.close()
