"""A complete gridstead.toml with its client files in a directory, for tests that need one."""

from __future__ import annotations

import json
import socket
from pathlib import Path

TEMPLATE = """\
[appliance]
name = "test"
log_dir = "{root}/log"
run_dir = "{root}/run"
data_dir = "{root}/data"
opt_dir = "{root}/opt"
supervisorctl = ["{root}/no-supervisorctl"]
[hadoop]
conf_dir = "{root}/etc/hadoop"
home = "{root}/opt/hadoop"
cli = "{root}/opt/hadoop/bin/hadoop"
[spark]
home = "{root}/opt/spark"
conf_dir = "{root}/etc/spark"
[kafka]
client = "{root}/kafka.properties"
[stomp]
client = "{root}/stomp.json"
[elasticsearch]
client = "{root}/elasticsearch.json"
[collector]
xrootd_port = {xrootd}
status_port = {status}
data_dir = "{root}/data/collector"
[bridge]
status_port = {bridge}
[stream]
status_port = {stream}
[[services]]
name = "collector"
role = "collector"
check = "http"
url = "http://127.0.0.1:{status}/health"
log = "{root}/log/collector.log"
[[services]]
name = "kafka"
check = "tcp"
url = "127.0.0.1:{kafka}"
log = "{root}/log/kafka.log"
"""


def free_ports(kind: socket.SocketKind, count: int) -> list[int]:
    """Ports of the loopback on which nothing listens now."""
    sockets = [socket.socket(socket.AF_INET, kind) for _ in range(count)]
    for opened in sockets:
        opened.bind(("127.0.0.1", 0))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def write_appliance(root: Path) -> Path:
    """Write the files and return the path of gridstead.toml; no server runs at its ports."""
    for directory in ("log", "run", "data/collector", "opt"):
        (root / directory).mkdir(parents=True)
    status, bridge, stream, kafka, stomp, elastic = free_ports(socket.SOCK_STREAM, 6)
    (xrootd,) = free_ports(socket.SOCK_DGRAM, 1)
    (root / "kafka.properties").write_text(
        f"# client\nbootstrap.servers=127.0.0.1:{kafka}\nsecurity.protocol = PLAINTEXT\n"
    )
    (root / "stomp.json").write_text(json.dumps({"hosts": [["127.0.0.1", stomp]], "username": "u", "password": "p"}))
    (root / "elasticsearch.json").write_text(json.dumps({"hosts": [f"http://127.0.0.1:{elastic}"]}))
    file = root / "gridstead.toml"
    ports = {"xrootd": xrootd, "status": status, "bridge": bridge, "stream": stream, "kafka": kafka}
    file.write_text(TEMPLATE.format(root=root, **ports))
    return file
