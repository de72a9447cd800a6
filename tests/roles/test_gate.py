"""What the gate of the day-2 playbooks says of what servers report (library/gridstead_gate.py)."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gridstead import config
from gridstead.collector.status import serve
from role_files import ROOT

spec = importlib.util.spec_from_file_location("gridstead_gate", ROOT / "library" / "gridstead_gate.py")
assert spec and spec.loader
gate: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gate)

WELL = (
    "Writing segment beginning at txid 7. \n10.0.0.2:8485 (Written txid 9), 10.0.0.3:8485 (Written txid 9), 10.0.0.4:8485 (Written txid 9)"
)


def unused_port() -> int:
    """A port of loopback at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def datanode(state: str = "In Service", heard_s: int = 0) -> dict[str, Any]:
    return {"adminState": state, "lastContact": heard_s, "used": 5, "remaining": 7}


def test_three_equal_servers_of_zookeeper_need_one_leader() -> None:
    assert gate.judge_ensemble({"a": "leader", "b": "follower", "c": "follower"}) == []
    assert gate.judge_ensemble({"a": "standalone"}) == []
    assert gate.judge_ensemble({"a": "leader", "b": "follower", "c": "silent (refused)"}) == ["ZooKeeper on c is silent (refused)"]
    assert gate.judge_ensemble({"a": "follower", "b": "follower", "c": "follower"}) == ["ZooKeeper: 0 servers lead"]
    assert len(gate.judge_ensemble({"a": "standalone", "b": "standalone", "c": "standalone"})) == 4


PAGES = {  # of the stream: of the gateway that runs it, of one that stands by, of one that is not well
    "127.0.0.2": (200, {"healthy": True}),
    "127.0.0.3": (200, {"healthy": True, "standby": "127.0.0.2:1"}),
    "127.0.0.4": (503, {"healthy": False}),
}


@pytest.mark.parametrize(("gateways", "troubled"), [(["127.0.0.2", "127.0.0.3"], []), (["127.0.0.3", "127.0.0.4"], ["127.0.0.4"])])
def test_the_pipeline_is_asked_on_every_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gateways: list[str], troubled: list[str]
) -> None:
    port = unused_port()
    servers = [serve(host, port, {"/health": lambda page=page: page}) for host, page in PAGES.items()]
    service = config.Service(name="stream", role="analytics", check="http", url=f"http://127.0.0.3:{port}/health", log="/")
    monkeypatch.setattr(gate.Gate, "config", lambda _self: (config, SimpleNamespace(services=[service])))
    look = gate.Gate({"etc_dir": str(tmp_path), "parts": ["pipeline"], "gateways": gateways})
    look.look()
    for server in servers:
        server.shutdown()
        server.server_close()
    assert [trouble.split(" is not well")[0] for trouble in look.troubles] == [f"stream on {host}" for host in troubled]
    assert look.seen["active"] == ({} if troubled else {"stream": ["127.0.0.2"]})


def test_a_cluster_of_one_master_waits_for_no_zookeeper(tmp_path: Path) -> None:
    (tmp_path / "hadoop").mkdir()
    for name in ("core-site.xml", "yarn-site.xml"):
        (tmp_path / "hadoop" / name).write_text("<configuration/>")
    look = gate.Gate({"etc_dir": str(tmp_path), "parts": ["zookeeper"]})
    look.look()
    assert look.troubles == []
    port = unused_port()
    quorum = f"<configuration><property><name>hadoop.zk.address</name><value>127.0.0.1:{port}</value></property></configuration>"
    (tmp_path / "hadoop/yarn-site.xml").write_text(quorum)
    look.look()
    assert "ZooKeeper on 127.0.0.1 is silent" in look.troubles[0]


@pytest.mark.parametrize(
    ("report", "lacking"),
    [
        ("Written txid 9", False),
        ("Written txid 8 (1 txns/3ms behind)", False),  # the next look sees whether it has caught up
        ("Written txid 5 (4 txns/2000ms behind) (will try to re-sync on next segment)", True),
        ("Written txid 0 (9 txns/0ms behind) (never written", True),
    ],
)
def test_a_journalnode_that_writes_nothing_until_the_next_segment_is_named(report: str, lacking: bool) -> None:
    assert gate.judge_journals(WELL) == []
    found = gate.judge_journals(WELL.replace("10.0.0.3:8485 (Written txid 9", f"10.0.0.3:8485 ({report}"))
    assert ["10.0.0.3:8485" in trouble for trouble in found] == ([True] if lacking else [])


def test_datanodes_that_are_silent_or_missing_are_named() -> None:
    nodes = {"w1:9866": datanode(), "w2:9866": datanode("Decommissioned"), "w3:9866": datanode(heard_s=60)}
    troubles, serving = gate.judge_datanodes(nodes, ["w1", "w2", "w3", "w4"], None)
    assert troubles == [
        "the DataNode on w4 is not there",
        "the DataNode on w2 is not in service (Decommissioned)",
        "the DataNode on w3 was last heard of 60 s ago",
    ]
    assert serving["w1"] == {"used": 5, "remaining": 7} and set(serving) == {"w1", "w3"}
    assert gate.judge_datanodes(nodes, ["w1"], None)[0] == []


@pytest.mark.parametrize(("state", "drained"), [("Decommission In Progress", False), ("In Service", False), ("Decommissioned", True)])
def test_a_node_is_drained_when_hdfs_says_so(state: str, drained: bool) -> None:
    troubles, _serving = gate.judge_datanodes({"w1:9866": datanode(), "w2:9866": datanode(state)}, ["w1"], "w2")
    assert bool(troubles) != drained


@pytest.mark.parametrize(("state", "leaves"), [("Decommission In Progress", True), ("In Service", False), ("Decommissioned", False)])
def test_a_node_on_its_way_out_is_the_one_named_whose_blocks_are_being_copied(state: str, leaves: bool) -> None:
    nodes = {"w1:9866": datanode(), "w2:9866": datanode(state)}
    assert gate.on_its_way_out(nodes, ["w2", "w3"]) == leaves
    assert not gate.on_its_way_out(nodes, ["w1"]) and not gate.on_its_way_out(nodes, [])


def test_partitions_without_leader_or_copy_are_named_and_many_are_counted() -> None:
    assert gate.judge_partitions({"t": {0: (1, 3, 3)}}) == []
    troubles = gate.judge_partitions({"t": {number: (1, 3, 2) for number in range(7)}, "u": {0: (-1, 3, 0)}})
    assert troubles == ["Kafka: no leader of u-0", "Kafka: under-replicated are t-0, t-1, t-2, t-3, t-4 and 2 more"]


def test_one_is_active_and_all_others_stand_by() -> None:
    assert gate.one_active("NameNode", {"a": "active", "b": "standby"}, "active", "standby") == []
    assert gate.one_active("NameNode", {"a": "standby", "b": "standby"}, "active", "standby") == ["0 NameNodes are active"]
    assert gate.one_active("NameNode", {"a": "active", "b": "starting"}, "active", "standby") == ["NameNode on b is starting"]
