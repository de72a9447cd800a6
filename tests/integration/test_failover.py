"""Gateways that stand by for each other, with a real ZooKeeper on loopback and real processes in the place of services."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import ROOT, run, wait_until
from appliance_files import free_ports, write_appliance

BUNDLE = Path(os.environ.get("GRIDSTEAD_BUNDLE", ROOT / "bundle"))
SESSION_S = 4
TAKEOVER_S = SESSION_S + 6  # ZooKeeper looks for ended sessions once a tick, and Python has to start
SERVICE = """\
import os, signal, sys, time
from gridstead.collector.status import serve
name, port, fails = sys.argv[1], int(sys.argv[2]), len(sys.argv) > 3
notes = open("notes", "a", buffering=1)
def end(*_):
    print("end", name, time.time(), file=notes)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
serve("127.0.0.1", port, {"/health": lambda: (200, {"healthy": True}), "/metrics.json": lambda: (200, {"pid": os.getpid()})})
print("begin", name, time.time(), file=notes)
time.sleep(1 if fails else 600)
sys.exit(3)
"""


class ZooKeeper:
    """One server of ZooKeeper from the bundle."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (self.port,) = free_ports(socket.SOCK_STREAM, 1)
        (tarball,) = BUNDLE.glob("zookeeper-*.tar")
        run(["tar", "-xf", str(tarball), "-C", str(directory)])
        (directory / "zoo.cfg").write_text(
            f"tickTime=1000\ndataDir={directory}/data\nclientPort={self.port}\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n"
            "4lw.commands.whitelist=srvr\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        command = ["java", "-Xmx64m", "-XX:+UseSerialGC", "-cp", f"{self.directory}/lib/*", main, str(self.directory / "zoo.cfg")]
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self.serves, "ZooKeeper serves", 60)

    def serves(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(b"srvr")
                return b"Mode:" in connection.makefile("rb").read()
        except OSError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeper]:
    made = ZooKeeper(tmp_path_factory.mktemp("zookeeper"))
    made.start()
    yield made
    made.stop()


class Gateway:
    """A gateway's candidate for the stream."""

    def __init__(self, directory: Path, name: str, zookeeper: ZooKeeper, site: str) -> None:
        self.directory, self.name = directory, name
        self.config = write_appliance(directory / name)
        (self.port,) = free_ports(socket.SOCK_STREAM, 1)
        lines = self.config.read_text().replace('name = "test"', f'name = "{site}"', 1).splitlines()
        lines[lines.index("[stream]") + 1] = f"status_port = {self.port}"
        failover = ["[failover]", f'zookeeper = ["127.0.0.1:{zookeeper.port}"]', f"session_s = {SESSION_S}"]
        self.config.write_text("\n".join([*failover, *lines]))
        self.process: subprocess.Popen[str]

    def start(self, *, fails: bool = False) -> None:
        service = [sys.executable, "-c", SERVICE, self.name, str(self.port), *(["fails"] if fails else [])]
        command = [sys.executable, "-m", "gridstead.failover", "--config", str(self.config), "--section", "stream", "--", *service]
        env = {**os.environ, "PYTHONPATH": str(ROOT / "analytics/src")}
        with open(self.directory / f"{self.name}.log", "a") as log:
            self.process = subprocess.Popen(command, cwd=self.directory, env=env, stdin=subprocess.DEVNULL, stderr=log, text=True)

    def page(self, path: str) -> tuple[int, dict[str, Any]]:
        """A page of whichever answers at the service's port; (0, {}) where nobody does."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=5) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        except OSError:
            return 0, {}

    def leads(self) -> bool:
        return self.page("health") == (200, {"healthy": True})

    def stands_by(self) -> bool:
        return "standby" in self.page("health")[1]

    def log(self) -> str:
        return (self.directory / f"{self.name}.log").read_text()


@pytest.fixture
def gateways(tmp_path: Path, server: ZooKeeper, request: pytest.FixtureRequest) -> Iterator[list[Gateway]]:
    """Two gateways, the first elected and the second standing by."""
    made = [Gateway(tmp_path, name, server, f"site-{abs(hash(request.node.name))}") for name in ("one", "two")]
    made[0].start()
    wait_until(made[0].leads, "the first is elected", 30)
    made[1].start()
    wait_until(made[1].stands_by, "the second stands by", 30)
    yield made
    for gateway in made:
        if gateway.process.poll() is None:
            gateway.process.send_signal(signal.SIGCONT)
            gateway.process.terminate()
            gateway.process.wait(30)
    assert all(not gateway.page("health")[0] for gateway in made), "something was left"


def notes(gateways: list[Gateway]) -> list[tuple[str, str, float]]:
    """What the services noted: begin or end, of which gateway, when."""
    words = [line.split() for line in (gateways[0].directory / "notes").read_text().splitlines()]
    return [(what, name, float(at)) for what, name, at in words]


def test_a_standby_answers_for_itself_and_with_the_numbers_of_the_one_elected(gateways: list[Gateway]) -> None:
    one, two = gateways
    holder = f"127.0.0.1:{one.port}"
    assert two.page("health") == (200, {"healthy": True, "standby": holder})
    numbers = one.page("metrics.json")[1]
    assert two.page("metrics.json") == (200, {**numbers, "standby": holder})
    assert [entry[:2] for entry in notes(gateways)] == [("begin", "one")]


def test_one_that_is_stopped_ends_its_command_well_and_hands_over_at_once(gateways: list[Gateway]) -> None:
    one, two = gateways
    one.process.terminate()
    assert one.process.wait(10) == 0
    wait_until(two.leads, "the second is elected", 5)  # sooner than a session ends
    assert [entry[:2] for entry in notes(gateways)] == [("begin", "one"), ("end", "one"), ("begin", "two")]


def test_a_standby_that_is_stopped_ends(gateways: list[Gateway]) -> None:
    one, two = gateways
    two.process.terminate()
    assert two.process.wait(10) == 0 and one.leads()


def test_after_a_power_loss_the_standby_is_elected(gateways: list[Gateway]) -> None:
    one, two = gateways
    command = one.page("metrics.json")[1]["pid"]
    one.process.kill()
    os.kill(command, signal.SIGKILL)
    began = time.monotonic()
    wait_until(two.leads, "the second is elected", TAKEOVER_S)
    print(f"elected after {time.monotonic() - began:.1f} s")
    one.process.wait()


def test_a_command_does_not_outlive_the_one_that_holds_the_lock_for_it(gateways: list[Gateway]) -> None:
    one, two = gateways
    command = one.page("metrics.json")[1]["pid"]
    one.process.kill()
    one.process.wait()
    wait_until(lambda: not Path(f"/proc/{command}").exists(), "the command is gone", 2)
    wait_until(two.leads, "the second is elected", TAKEOVER_S)


def test_a_command_that_fails_moves_to_the_other_gateway(tmp_path: Path, server: ZooKeeper) -> None:
    one, two = (Gateway(tmp_path, name, server, "site-fails") for name in ("one", "two"))
    one.start(fails=True)
    wait_until(lambda: one.leads() or one.process.poll() is not None, "the first is elected", 30)
    two.start()
    try:
        assert one.process.wait(30) == 3
        assert "exit code 3: another gateway is elected" in one.log()
        wait_until(two.leads, "the second is elected", 10)
    finally:
        two.process.terminate()
        two.process.wait(10)


def test_one_that_was_frozen_kills_its_command_when_it_goes_on(gateways: list[Gateway]) -> None:
    one, two = gateways
    command = one.page("metrics.json")[1]["pid"]
    one.process.send_signal(signal.SIGSTOP)
    wait_until(two.leads, "the second is elected", TAKEOVER_S)
    one.process.send_signal(signal.SIGCONT)
    assert one.process.wait(15) == 1
    assert not Path(f"/proc/{command}").exists() and "ZooKeeper is out of reach" in one.log()
    assert two.leads()


def test_without_zookeeper_nobody_runs_it_and_afterwards_one_does(gateways: list[Gateway], server: ZooKeeper) -> None:
    one, two = gateways
    command = one.page("metrics.json")[1]["pid"]
    server.stop()
    began = time.monotonic()
    try:
        assert one.process.wait(SESSION_S + 4) == 1
        assert time.monotonic() - began > 0.7 * SESSION_S  # a server that is back by then makes nobody stop
        assert not Path(f"/proc/{command}").exists()
        assert two.page("health") == (503, {"healthy": False, "reason": "ZooKeeper is out of reach"})
        assert two.page("metrics.json")[0] == 503
        one.start()  # as its supervisor does
        wait_until(lambda: one.page("health")[0] == 503, "the first waits as well", 15)
        wait_until(lambda: "waiting for ZooKeeper" in one.log(), "it says so", 15)
        two.process.terminate()
        assert two.process.wait(15) == 0  # also while it waits
        two.start()
    finally:
        server.start()
    wait_until(lambda: sorted([one.leads(), two.leads()]) == [False, True], "one of them is elected", 40)
    wait_until(lambda: one.stands_by() or two.stands_by(), "the other stands by", 20)
    assert [what for what, _name, _at in notes(gateways)] == ["begin", "begin"]


def test_it_goes_on_while_zookeeper_restarts(gateways: list[Gateway], server: ZooKeeper) -> None:
    one, two = gateways
    command = one.page("metrics.json")[1]["pid"]
    server.stop()
    server.start()
    time.sleep(2 * SESSION_S)  # were the session at an end, all would be over by now
    assert one.leads() and one.page("metrics.json")[1]["pid"] == command and two.stands_by()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "failover.zookeeper names no server"),
        ('[failover]\nzookeeper = ["m1"]\n', "failover.zookeeper has 'm1': write each as host:port"),
        ("[failover]\nsession_s = 1\n", "failover.session_s is 1, out of range: use from 4 to 40"),
    ],
)
def test_a_configuration_that_cannot_be_used_ends_it_for_good(tmp_path: Path, line: str, message: str) -> None:
    config = write_appliance(tmp_path / "one")
    config.write_text(line + config.read_text())
    command = [sys.executable, "-m", "gridstead.failover", "--config", str(config), "--section", "stream", "--", "true"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "analytics/src")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78 and message in done.stderr, done.stderr
