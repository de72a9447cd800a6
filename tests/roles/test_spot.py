"""A notice on a host with real daemons of YARN and HDFS, as the roles configure them: what the agent does to containers and blocks."""

from __future__ import annotations

import getpass
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from appliance import wait_until
from appliance_files import free_ports, write_appliance
from gridstead import config
from metadata_service import MetadataService, in_seconds, serving
from role_files import ROOT, Rendered

SOURCE = Path(config.__file__).resolve().parents[1]
SECONDS = "86397.5"  # by which the containers' processes are known
OPTIONS = ["-Xmx200m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "--add-opens=java.base/java.lang=ALL-UNNAMED"]
# Ends the process that this file names, and waits for it, as a supervisor does.
SUPERVISORCTL = """\
import os, pathlib, signal, sys, time
pid = int((pathlib.Path(__file__).parent / (sys.argv[2] + ".pid")).read_text())
os.kill(pid, signal.SIGTERM)
while pathlib.Path(f"/proc/{pid}/stat").exists() and pathlib.Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z":
    time.sleep(0.1)
"""


def settings(path: Path) -> dict[str, str]:
    """The properties of a file of Hadoop."""
    return {str(node.findtext("name")): str(node.findtext("value")) for node in ElementTree.parse(path).iter("property")}


def write(path: Path, properties: dict[str, str]) -> None:
    """Write a file of Hadoop."""
    root = ElementTree.Element("configuration")
    for name, value in properties.items():
        node = ElementTree.SubElement(root, "property")
        ElementTree.SubElement(node, "name").text, ElementTree.SubElement(node, "value").text = name, value
    ElementTree.ElementTree(root).write(path)


class Daemons:
    """Daemons of Hadoop on loopback, from the bundle and with the roles' configuration of a host that may be taken away."""

    def __init__(self, rendered: Rendered, work: Path) -> None:
        self.etc, self.work = rendered.etc / "hadoop", work
        (tarball,) = Path(os.environ.get("GRIDSTEAD_BUNDLE", ROOT / "bundle")).glob("hadoop-*.tar")
        with tarfile.open(tarball) as archive:
            archive.extractall(work / "hadoop")

    def configure(self, name: str, **sites: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        """Write the configuration of a daemon into a directory of its own; return how Java is called, and its environment."""
        home = self.work / name
        home.mkdir()
        for file in ("capacity-scheduler.xml", "log4j.properties"):
            shutil.copy(self.etc / file, home)
        write(home / "core-site.xml", {"fs.defaultFS": "file:///", "hadoop.tmp.dir": str(home / "tmp")} | sites.pop("core", {}))
        for site, more in sites.items():
            write(home / f"{site}-site.xml", settings(self.etc / f"{site}-site.xml") | more)
        java = Path(str(shutil.which("java"))).resolve().parents[1]
        command = ["java", *OPTIONS, "-cp", f"{home}:{self.work}/hadoop:{self.work}/hadoop/lib/*"]
        return command, {**os.environ, "HADOOP_CONF_DIR": str(home), "JAVA_HOME": str(java)}

    @contextmanager
    def daemon(self, name: str, of: str, **sites: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        """One daemon, of a class of Hadoop."""
        command, environment = self.configure(name, **sites)
        home = self.work / name
        with (home / "log").open("wb") as log:
            daemon = [*command, f"org.apache.hadoop.{of}"]
            process = subprocess.Popen(daemon, env=environment, cwd=home, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


class Yarn(Daemons):
    """A ResourceManager and NodeManagers."""

    def __init__(self, rendered: Rendered, work: Path) -> None:
        super().__init__(rendered, work)
        names = ["address", "admin.address", "scheduler.address", "resource-tracker.address", "webapp.address"]
        ports = free_ports(socket.SOCK_STREAM, len(names))
        self.shared = {f"yarn.resourcemanager.{name}": f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}
        self.shared |= {"yarn.resourcemanager.recovery.enabled": "false", "yarn.nodemanager.remote-app-log-dir": str(work / "logs")}
        self.ports: dict[str, int] = {}
        self.url = f"http://127.0.0.1:{ports[-1]}/ws/v1/cluster"

    @contextmanager
    def resourcemanager(self) -> Iterator[subprocess.Popen[bytes]]:
        """The ResourceManager."""
        with self.daemon("rm", "yarn.server.resourcemanager.ResourceManager", yarn=self.shared) as process:
            yield process

    @contextmanager
    def nodemanager(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """One NodeManager."""
        rpc, web, localizer = free_ports(socket.SOCK_STREAM, 3)
        home = self.work / name
        more = {
            "yarn.nodemanager.address": f"127.0.0.1:{rpc}",
            "yarn.nodemanager.webapp.address": f"127.0.0.1:{web}",
            "yarn.nodemanager.localizer.address": f"127.0.0.1:{localizer}",
            "yarn.nodemanager.local-dirs": str(home / "local"),
            "yarn.nodemanager.log-dirs": str(home / "containers"),
            "yarn.nodemanager.recovery.dir": str(home / "recovery"),
            "yarn.nodemanager.disk-health-checker.enable": "false",
        }
        sites = {"yarn": self.shared | more, "mapred": {"mapreduce.shuffle.port": "0"}}
        with self.daemon(name, "yarn.server.nodemanager.NodeManager", **sites) as process:
            wait_until(lambda: rpc in self.nodes("RUNNING"), f"{name} runs; {home}/log", 60)
            self.ports[name] = rpc
            yield process

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask the ResourceManager."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", "Accept": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read() or b"{}")

    def nodes(self, state: str) -> list[int]:
        """The nodes in a state, by their ports: how the host is called is a matter of the machine."""
        try:
            found = self.ask(f"/nodes?states={state}")["nodes"] or {"node": []}
        except OSError:
            return []
        return [int(node["id"].split(":")[1]) for node in found["node"]]

    def submit(self) -> str:
        """Submit an application whose one container sleeps; it may fail once."""
        identity = str(self.ask("/apps/new-application", {})["application-id"])
        self.ask(
            "/apps",
            {
                "application-id": identity,
                "application-name": "sleeper",
                "application-type": "TEST",
                "max-app-attempts": 2,
                "am-container-spec": {"commands": {"command": f"echo it sleeps; exec sleep {SECONDS}"}},
                "resource": {"memory": 128, "vCores": 1},
            },
        )
        return identity

    def attempts(self, application: str) -> list[int]:
        """The nodes on which it was started, one after another."""
        found = self.ask(f"/apps/{application}/appattempts")["appAttempts"]["appAttempt"]
        return [int(attempt["nodeId"].split(":")[1]) for attempt in sorted(found, key=lambda attempt: int(attempt["id"]))]


def sleepers() -> set[int]:
    """The processes of the containers."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == f"sleep\0{SECONDS}\0".encode():
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def yarn(rendered: Rendered, tmp_path: Path) -> Iterator[Yarn]:
    started = Yarn(rendered, tmp_path)
    with started.resourcemanager():
        yield started
    for pid in sleepers():
        os.kill(pid, signal.SIGKILL)


class Hdfs(Daemons):
    """A NameNode and a DataNode; files are to have two copies, of which there can be one only."""

    def __init__(self, rendered: Rendered, work: Path) -> None:
        super().__init__(rendered, work)
        self.rpc, self.web, data, ipc, self.datanode_web = free_ports(socket.SOCK_STREAM, 5)
        site = {
            "dfs.replication": "2",
            "dfs.namenode.rpc-address": f"127.0.0.1:{self.rpc}",
            "dfs.namenode.http-address": f"127.0.0.1:{self.web}",
            "dfs.namenode.name.dir": f"file://{work}/name",
            "dfs.datanode.data.dir": f"file://{work}/data",
            "dfs.datanode.address": f"127.0.0.1:{data}",
            "dfs.datanode.ipc.address": f"127.0.0.1:{ipc}",
            "dfs.datanode.http.address": f"127.0.0.1:{self.datanode_web}",
        }
        self.sites = {"core": {"fs.defaultFS": f"hdfs://127.0.0.1:{self.rpc}"}, "hdfs": site}
        self.url = f"http://127.0.0.1:{self.web}/webhdfs/v1/a-file"

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Both, with one file; the DataNode's process."""
        command, environment = self.configure("format", **self.sites)
        namenode = "hdfs.server.namenode.NameNode"
        done = subprocess.run(
            [*command, f"org.apache.hadoop.{namenode}", "-format", "-nonInteractive"], env=environment, capture_output=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        with self.daemon("nn", namenode, **self.sites), self.daemon("dn", "hdfs.server.datanode.DataNode", **self.sites) as datanode:
            wait_until(self.write, f"a file can be written; {self.work}/dn/log", 90)
            yield datanode

    def write(self) -> bool:
        """Write the file; whether that went well."""
        user = f"user.name={getpass.getuser()}"
        ask = urllib.request.Request(f"{self.url}?op=CREATE&overwrite=true&replication=2&noredirect=true&{user}", b"", method="PUT")
        try:
            with urllib.request.urlopen(ask, timeout=20) as answer:
                place = json.loads(answer.read())["Location"]
            with urllib.request.urlopen(urllib.request.Request(place, b"an event", method="PUT"), timeout=20):
                return True
        except OSError:
            return False

    def read(self) -> bytes:
        """Read the file, from the DataNode."""
        with urllib.request.urlopen(f"{self.url}?op=OPEN", timeout=20) as answer:
            return bytes(answer.read())


@contextmanager
def agent(
    root: Path, service: MetadataService, log: Path, dfsadmin: Sequence[str] = ("false",), **processes: subprocess.Popen[bytes]
) -> Iterator[None]:
    """The agent of a host that runs these processes, by the names of their services."""
    file = write_appliance(root)
    cli = root / "opt/hadoop/bin/hadoop"
    cli.parent.mkdir(parents=True)
    cli.write_text(f'#!/bin/sh\nshift\nexec {shlex.join(dfsadmin)} "$@"\n')
    cli.chmod(0o755)
    (root / "supervisorctl.py").write_text(SUPERVISORCTL)
    (port,) = free_ports(socket.SOCK_STREAM, 1)
    text = file.read_text().split("[[services]]")[0]
    text = text.replace(f'["{root}/no-supervisorctl"]', json.dumps([sys.executable, str(root / "supervisorctl.py")]))
    text += f'[spot]\nmetadata = "{service.url}"\nstatus_port = {port}\npoll_s = 1\nreserve_s = 1\n'
    for name, running in processes.items():
        name = name.replace("_", "-")
        (root / f"{name}.pid").write_text(str(running.pid))
        text += f'[[services]]\nname = "{name}"\ncheck = "tcp"\nurl = "127.0.0.1:1"\nlog = "{root}/log/{name}"\n'
    file.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "gridstead.spot", "--config", str(file)], env=environment, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(40) == 0


@pytest.mark.long
@pytest.mark.timeout(280)
def test_a_notice_moves_containers_at_once_and_counts_no_failure(yarn: Yarn, tmp_path: Path) -> None:
    with serving(MetadataService()) as service, yarn.nodemanager("going") as going:
        application = yarn.submit()
        first = wait_until(sleepers, "the container runs")
        with yarn.nodemanager("staying"), agent(tmp_path / "host", service, tmp_path / "agent", yarn_nodemanager=going):
            service.notice = in_seconds(120)
            wait_until(lambda: yarn.nodes("SHUTDOWN"), "YARN knows that the NodeManager is gone", 40)
            assert yarn.nodes("SHUTDOWN") == [yarn.ports["going"]]
            moved = wait_until(lambda: sleepers() - first, "the container runs elsewhere", 60)
            wait_until(lambda: sleepers() == moved, "the first one has ended", 20)
            assert yarn.attempts(application) == [yarn.ports["going"], yarn.ports["staying"]]
            going.wait(20)
            logs = [path for path in (tmp_path / "logs").rglob("*") if path.is_file()]
            assert any(b"it sleeps" in path.read_bytes() for path in logs), "the logs of the container are handed over"
            for pid in moved:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: sleepers() - moved, "it was not counted: of two attempts that may fail this is the first", 60)
            assert yarn.attempts(application) == [yarn.ports["going"], yarn.ports["staying"], yarn.ports["staying"]]


@pytest.mark.long
@pytest.mark.timeout(280)
def test_the_datanode_serves_until_the_end_is_near_and_lone_copies_are_told(rendered: Rendered, tmp_path: Path) -> None:
    hdfs, said = Hdfs(rendered, tmp_path), tmp_path / "agent"
    command, _ = hdfs.configure("client", **hdfs.sites)
    host = {"root": tmp_path / "host", "log": said, "dfsadmin": [*command, "org.apache.hadoop.hdfs.tools.DFSAdmin"]}
    with serving(MetadataService()) as service, hdfs.running() as datanode, agent(service=service, hdfs_datanode=datanode, **host):
        service.notice = in_seconds(25)
        wait_until(lambda: "1 blocks of HDFS have one copy only" in said.read_text(), "HDFS has said so to the agent", 24)
        assert hdfs.read() == b"an event"
        wait_until(lambda: " drained." in said.read_text(), "it is stopped", 60)
        assert datanode.wait(10) is not None
        with pytest.raises(OSError):
            hdfs.read()
    assert "SHUTDOWN_MSG: Shutting down DataNode" in (tmp_path / "dn/log").read_text(), "it ended by itself"
