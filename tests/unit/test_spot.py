"""The agent of hosts that EC2 takes away. A server on loopback stands for the instance metadata service; the rest is real:
the agent's process, and the processes that it stops."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance_files import free_ports, write_appliance
from gridstead import config as configuration
from gridstead import spot
from gridstead.spot import Agent, Metadata, MetadataError, Notice
from metadata_service import MetadataService, in_seconds, serving

SOURCE = Path(configuration.__file__).resolve().parents[1]
SERVICES = ["hdfs-datanode", "yarn-nodemanager", "elasticsearch", "collector"]  # in the order in which they start
REPORT = """\
Configured Capacity: 10 (10 B)
Replicated Blocks:
	Under replicated blocks: 9
	Missing blocks (with replication factor 1): 0
	Low redundancy blocks with highest priority to recover: {count}
Erasure Coded Block Groups:
	Low redundancy blocks with highest priority to recover: 77
"""
# What the test's supervisor does: it ends the process of a service and notes when, as supervisorctl and systemctl do.
SUPERVISORCTL = """\
import os, pathlib, signal, sys, time
here, name = pathlib.Path(__file__).parent, sys.argv[2]
assert sys.argv[1] == "stop"
with open(here / "asked", "a") as asked:
    print(name, time.time(), file=asked)
if name in os.environ.get("HANGING", ""):
    time.sleep(60)
pid = here / (name + ".pid")
if not pid.exists():
    sys.exit(name + ": ERROR (not running)")
os.kill(int(pid.read_text()), signal.SIGTERM)
pid.unlink()
"""


@pytest.fixture
def imds() -> Iterator[MetadataService]:
    with serving(MetadataService()) as service:
        yield service


@dataclass
class Host:
    """A worker: its configuration, a process for each of its services, and the supervisor that stops them."""

    root: Path
    file: Path
    port: int
    processes: dict[str, subprocess.Popen[bytes]]
    log: Path

    def asked(self) -> list[str]:
        """The services that the supervisor was asked to stop, in that order."""
        path = self.root / "asked"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    def asked_at(self, name: str) -> float:
        """When that was, the first time: s since the epoch."""
        lines = [line.split() for line in (self.root / "asked").read_text().splitlines()]
        return next(float(when) for service, when in lines if service == name)

    def running(self) -> set[str]:
        """The services whose processes live."""
        return {name for name, process in self.processes.items() if process.poll() is None}

    def said(self, part: str) -> int:
        """How many lines of the agent's log have this part."""
        return sum(bool(re.search(part, line)) for line in self.log.read_text().splitlines())

    def health(self) -> int:
        """The status of the agent's health page."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    @contextmanager
    def agent(self, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """The agent as its launcher starts it."""
        command = [sys.executable, "-m", "gridstead.spot", "--config", str(self.file)]
        with self.log.open("ab") as log:
            process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(SOURCE), **environment}, stderr=log)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def write_host(root: Path, metadata: str, count: int = 0) -> Host:
    """Write what a worker has, with HDFS saying of how many blocks there is one copy only."""
    file = write_appliance(root)
    supervisor, hadoop = root / "supervisorctl.py", root / "opt/hadoop/bin/hadoop"
    supervisor.write_text(SUPERVISORCTL)
    hadoop.parent.mkdir(parents=True)
    hadoop.write_text(f'#!/bin/sh\n[ "$*" = "dfsadmin -report -live" ] || exit 2\ncat <<EOF\n{REPORT.format(count=count)}EOF\n')
    hadoop.chmod(0o755)
    (root / "etc/hadoop").mkdir(parents=True)
    write_copies(root, 3)
    (port,) = free_ports(socket.SOCK_STREAM, 1)
    text = file.read_text().split("[[services]]")[0]
    text = text.replace(f'["{root}/no-supervisorctl"]', json.dumps([sys.executable, str(supervisor)]))
    text += f'[spot]\nmetadata = "{metadata}"\nstatus_port = {port}\npoll_s = 1\nreserve_s = 1\n'
    for name in [*SERVICES, "spot"]:
        text += f'[[services]]\nname = "{name}"\ncheck = "tcp"\nurl = "127.0.0.1:1"\nlog = "{root}/log/{name}.log"\n'
    file.write_text(text)
    return Host(root, file, port, {}, root / "log" / "spot.log")


def write_copies(root: Path, copies: int) -> None:
    """Write how many copies HDFS gives a block."""
    one = f"<property><name>dfs.replication</name><value>{copies}</value></property>"
    (root / "etc/hadoop/hdfs-site.xml").write_text(f"<configuration>{one}</configuration>")


@pytest.fixture
def host(tmp_path: Path, imds: MetadataService) -> Iterator[Host]:
    worker = write_host(tmp_path, imds.url)
    for name in SERVICES:
        worker.processes[name] = subprocess.Popen(["sleep", "300"])
        (tmp_path / f"{name}.pid").write_text(str(worker.processes[name].pid))
    yield worker
    for process in worker.processes.values():
        process.kill()
        process.wait()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.mark.timeout(60)
def test_a_notice_stops_the_nodemanager_first_and_the_datanode_last_once(host: Host, imds: MetadataService) -> None:
    with host.agent():
        until(lambda: imds.asked > 2)
        assert host.asked() == [] and host.running() == set(SERVICES) and host.health() == 200
        imds.notice = in_seconds(8)
        until(lambda: host.said(r" drained\.") == 1)
        assert host.asked() == ["yarn-nodemanager", "collector", "elasticsearch", "hdfs-datanode"]
        until(lambda: host.running() == set())
        assert host.asked_at("hdfs-datanode") - host.asked_at("elasticsearch") > 2, "the DataNode serves until the end is near"
        assert host.said("EC2 takes this host away: terminate at 20..-..-..T..:..:..Z") == 1
        assert host.said("every block of HDFS that should have more copies has at least two") == 1
        seen = imds.asked
        until(lambda: imds.asked > seen + 4)
        assert len(host.asked()) == 4, "once"
        assert host.health() == 200
    assert imds.issued == 1, "one token does for all"


@pytest.mark.timeout(60)
def test_an_agent_that_restarts_after_the_notice_finds_nothing_to_do(host: Host, imds: MetadataService) -> None:
    imds.notice = in_seconds(1)
    for turn in (1, 2):
        with host.agent():
            until(lambda turn=turn: host.said(r" drained\.") == turn)
    assert host.running() == set()
    assert host.asked()[:4] == host.asked()[4:]
    assert host.said("ERROR") == 0


@pytest.mark.timeout(60)
def test_an_agent_that_is_told_to_end_leaves_the_datanode_to_its_next_start(host: Host, imds: MetadataService) -> None:
    imds.notice = in_seconds(60)
    with host.agent():
        until(lambda: host.said("serves for") == 1)
        until(lambda: host.running() == {"hdfs-datanode"})
    assert host.running() == {"hdfs-datanode"} and host.said("told to end before") == 1
    imds.notice = in_seconds(0)
    with host.agent():
        until(lambda: host.running() == set())


@pytest.mark.timeout(90)
def test_nothing_that_the_metadata_service_does_makes_the_agent_deaf(tmp_path: Path) -> None:
    (port,) = free_ports(socket.SOCK_STREAM, 1)
    host = write_host(tmp_path, f"http://127.0.0.1:{port}")
    service = MetadataService()
    with host.agent():
        until(lambda: host.said("no notice could be heard .*refused") == 1)
        assert host.health() == 503
        with serving(service, port):
            until(lambda: service.asked > 2)
            assert host.said("answers$") == 1 and host.health() == 200
            service.tokens.clear()  # as if they had expired
            until(lambda: service.issued == 2)
            until(lambda: service.asked > 4)
            assert service.refused == 1
            garbage = [(200, b"\xff\xfe{"), (200, b"[" * 60_000), (200, b"x" * 100_000), (500, b""), (401, b""), (204, b"")]
            for answer in garbage:
                service.answer = lambda path, answer=answer: answer
                before = host.said("no notice could be heard")
                until(lambda before=before: host.said("no notice could be heard") > before)
            service.answer, service.delay_s = None, 4.0
            until(lambda: host.said("timed out") == 1)
            service.delay_s, service.rebalance = 0.0, '{"noticeTime": "2026-11-26T08:22:00Z"}'
            until(lambda: host.said("EC2 expects to take this host away some time") == 1)
            assert host.asked() == [], "none of that was a notice"
            service.notice = in_seconds(1)
            until(lambda: host.said(r" drained\.") == 1)
    assert host.asked()[0] == "yarn-nodemanager" and host.asked()[-1] == "hdfs-datanode"
    assert host.said("EC2 expects") == 1


@pytest.mark.timeout(60)
def test_a_service_that_does_not_stop_keeps_the_others_from_nothing_and_is_told_again(host: Host, imds: MetadataService) -> None:
    imds.notice = in_seconds(1)
    with host.agent(HANGING="yarn-nodemanager"):
        until(lambda: host.said("not drained: yarn-nodemanager did not stop; tried again") == 1)
        assert host.said("yarn-nodemanager did not stop: .* not done after 5 s") == 1
        until(lambda: host.running() == {"yarn-nodemanager"})
        until(lambda: len(host.asked()) > 4)
    with host.agent():
        until(lambda: host.said(r" drained\.") == 1)
    until(lambda: host.running() == set())


@pytest.mark.timeout(60)
def test_a_notice_that_is_withdrawn_is_told_and_another_one_heeded(host: Host, imds: MetadataService) -> None:
    imds.notice = in_seconds(1)
    with host.agent():
        until(lambda: host.said(r" drained\.") == 1)
        imds.notice = None
        until(lambda: host.said("the notice is gone and this host is still here") == 1)
        imds.notice = in_seconds(1)
        until(lambda: host.said(r" drained\.") == 2)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "<html>", '{"time": "2026-11-26T08:22:00Z"}', '{"action": 7}', '{"action": ""}', "[" * 9999]
)
def test_what_is_no_notice_is_refused(text: str) -> None:
    with pytest.raises(MetadataError, match="no notice"):
        spot.read_notice(text)


@pytest.mark.parametrize("when", ["soon", "", None, 1764000000, "2026-13-45T99:00:00Z", "0001-01-01T00:00:00+02:00", {}])
def test_a_notice_whose_time_cannot_be_read_is_one_and_leaves_no_time(when: object) -> None:
    notice = spot.read_notice(json.dumps({"action": "terminate", "time": when}))
    assert notice == Notice("terminate", None)
    assert spot.serving_s(notice, time.time(), 30) == 0
    assert str(notice) == "terminate at a time that could not be read"


@pytest.mark.parametrize(
    ("left_s", "serves_s"),
    [
        (120, 90),
        (118, 88),
        (31, 1),
        (30, 0),
        (-500, 0),  # late, or this clock is fast
        (4000, 90),  # this clock is slow: never longer than the notice that came just now allows
    ],
)
def test_a_wrong_clock_never_makes_the_datanode_late(left_s: float, serves_s: float) -> None:
    assert spot.serving_s(Notice("stop", 1_800_000_000.0), 1_800_000_000.0 - left_s, 30) == serves_s


def test_times_are_utc_unless_they_say_otherwise() -> None:
    texts = ["2026-11-26T08:22:00Z", "2026-11-26T08:22:00", "2026-11-26T10:22:00+02:00"]
    assert len({spot.read_notice(json.dumps({"action": "hibernate", "time": text})).at for text in texts}) == 1


@pytest.mark.parametrize("token", [b"", b"two words", b"line\r\nHost: elsewhere", b"\xff", b"x" * 2000])
def test_a_token_that_is_none_is_not_sent(imds: MetadataService, token: bytes) -> None:
    imds.answer = lambda path: (200, token) if path == spot.TOKEN_PATH else pytest.fail("it was sent")
    with pytest.raises(MetadataError, match="PUT /latest/api/token"):
        Metadata(imds.url).get(spot.NOTICE)


def test_a_token_that_is_refused_when_it_is_new_is_not_asked_for_for_ever(imds: MetadataService) -> None:
    imds.answer = lambda path: (200, b"token") if path == spot.TOKEN_PATH else (401, b"")
    metadata = Metadata(imds.url)
    with pytest.raises(MetadataError, match="HTTP 401"):
        metadata.get(spot.NOTICE)
    imds.answer = None
    assert metadata.get(spot.NOTICE) is None


@pytest.mark.parametrize(
    ("copies", "count", "patience_s", "said"),
    [
        (3, 0, 9, "at least two"),
        (3, 12, 9, "12 blocks of HDFS have one copy only"),
        (1, 0, 9, "dfs.replication is 1: what is here has no other copy"),
        (3, 0, 0, "no time to ask HDFS"),
        (3, -1, 9, "HDFS does not say"),
    ],
)
def test_what_may_be_lost_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, copies: int, count: int, patience_s: float, said: str
) -> None:
    host = write_host(tmp_path, "http://127.0.0.1:1", count)
    write_copies(tmp_path, copies)
    if count < 0:
        (tmp_path / "opt/hadoop/bin/hadoop").write_text("#!/bin/sh\necho 'Call From w1 failed: Connection refused' >&2; exit 255\n")
    with caplog.at_level("INFO"):
        Agent(configuration.load(host.file)).tell_copies(patience_s)
    assert said in caplog.text


def test_systemd_is_asked_for_the_unit(tmp_path: Path) -> None:
    host = write_host(tmp_path, "http://127.0.0.1:1")
    host.file.write_text(host.file.read_text().replace('name = "test"', 'name = "test"\nsupervisor = "systemd"'))
    command = spot.stop_command(configuration.load(host.file), "hdfs-datanode")
    assert command == ["systemctl", "stop", "gridstead-hdfs-datanode.service"]
