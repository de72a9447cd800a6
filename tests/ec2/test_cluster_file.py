"""The cluster file: all faults at once, the examples, and what follows from a file."""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from aws import ROOT, Aws
from gridstead_ec2 import desired, price
from gridstead_ec2.cluster import ClusterError, load, scaled

VARS = yaml.safe_load((ROOT / "roles/ec2/vars/main.yml").read_text())
INVENTORY = ["masters", "workers", *VARS["ec2_components"]]


@pytest.fixture
def components() -> dict[str, Any]:
    """Two components with ports."""
    return {
        "hdfs_namenode": {
            "group": "masters",
            "ports": [{"port": 9820, "from": ["cluster"]}, {"port": 9870, "from": ["hdfs_namenode"]}],
        },
        "kafka": {
            "group": "masters",
            "ports": [{"port": 9092, "from": ["gateway"]}, {"port": 9093, "from": ["kafka"]}],
        },
        "gateway": {"group": "workers", "ports": [{"port": 9940, "proto": "udp", "from": ["producers"]}]},
    }


def key_in(folder: Path) -> str:
    """Write something that looks like a public key."""
    (folder / "id.pub").write_text("ssh-ed25519 AAAA someone\n")
    return str(folder / "id.pub")


def example(name: str, folder: Path) -> dict[str, Any]:
    """Read an example with a key that is there."""
    content = yaml.safe_load((ROOT / "clusters" / f"{name}.yml").read_text())
    (folder / f"{name}.yml").write_text(yaml.safe_dump({**content, "key": key_in(folder)}))
    return load(str(folder / f"{name}.yml"), INVENTORY)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "bad.yml").write_text(
        """
        name: Bad_Name
        region: europe
        zones: []
        network: 10.0.0.0/8
        access: [0.0.0.0/0, 10.0.0.1/24]
        key: /nowhere/id.pub
        colour: red
        bucket: {name: UPPER, keep: maybe}
        tags: {aws:mine: x}
        groups:
          bastion: {inventory: [masters], type: m5, count: 1}
          worker: {inventory: [slaves], type: m5.large, count: -1, spot: 2, volumes: [{size: big}], sise: 3}
        """
    )
    with pytest.raises(ClusterError) as caught:
        load(str(tmp_path / "bad.yml"), INVENTORY)
    told = "\n".join(caught.value.errors)
    places = ["name", "region", "zones", "network", "access[0]", "access[1]", "key", "colour", "bucket.name", "bucket.keep", "tags"]
    places += [f"groups.{where}" for where in ("bastion", "bastion.type", "worker.inventory[0]", "worker.count", "worker.spot")]
    places += ["groups.worker.volumes[0].size", "groups.worker.sise"]
    assert [place for place in places if f"\n{place}:" not in f"\n{told}"] == []
    assert "colour: unknown key; known are name, region, zones" in told
    assert "'europe' is not a region, such as eu-west-1" in told
    assert "No such file or directory" in told
    assert len(caught.value.errors) == 18
    assert "has 18 faults:" in str(caught.value)


SMALL_VOLUMES = [{"size": 1}, {"size": 124, "type": "st1"}, {"size": 125, "type": "sc1"}]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"zones": ["us-west-2a"]}, "zones: us-west-2a is not in the region us-east-1; zones are us-east-1a and so on"),
        ({"groups": {"node": {"inventory": ["masters"], "type": "m5.large", "count": 1}}}, "no node is in the inventory's group workers"),
        (
            {"groups": {"node": {"inventory": ["masters", "workers"], "type": "m5.large", "count": 2, "spot": 0.5}}},
            "masters hold what cannot be lost",
        ),
        (
            {"network": "10.0.0.0/20", "groups": {"node": {"inventory": ["masters", "workers"], "type": "m5.large", "count": 40}}},
            "10.0.0.0/20 has addresses for 26 of a group",
        ),
        (
            {"groups": {"node": {"inventory": ["masters", "workers"], "type": "m5.large", "count": 1, "volumes": SMALL_VOLUMES}}},
            "groups.node.volumes[1].size: 124 GiB; st1 has at least 125",
        ),
    ],
)
def test_keys_that_do_not_fit_together(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    content = yaml.safe_load((ROOT / "clusters/small.yml").read_text())
    (tmp_path / "c.yml").write_text(yaml.safe_dump({**content, "key": key_in(tmp_path), **change}))
    with pytest.raises(ClusterError, match="fault") as caught:
        load(str(tmp_path / "c.yml"), INVENTORY)
    assert told in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "a: [", "name: x"])
def test_a_file_that_is_no_cluster_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.yml").write_text(content)
    with pytest.raises(ClusterError):
        load(str(tmp_path / "c.yml"), INVENTORY)
    with pytest.raises(ClusterError, match="cannot be read"):
        load(str(tmp_path / "none.yml"), INVENTORY)


@pytest.mark.parametrize("name", ["small", "ha", "thesis"])
def test_examples_are_valid_and_priced(tmp_path: Path, name: str) -> None:
    wanted = desired.desired(example(name, tmp_path), {}, "1")
    prices = VARS["ec2_prices"]
    cost = price.estimate(wanted, price.by_table(prices, "us-east-1"), prices["hours"])
    assert not cost["unknown"]
    assert 0 < cost["stopped_month"] < cost["month"]


def test_thesis_is_four_m4_2xlarge(tmp_path: Path) -> None:
    wanted = desired.desired(example("thesis", tmp_path), {}, "1")
    assert [node["type"] for node in wanted["nodes"]] == ["t3.micro"] + 4 * ["m4.2xlarge"]
    prices = VARS["ec2_prices"]
    cost = price.estimate(wanted, price.by_table(prices, "us-east-1"), prices["hours"])
    disks = (8 + 100 + 3 * (30 + 200)) * 0.08
    assert cost["month"] == pytest.approx(730 * (4 * 0.4 + 0.0104 + 0.045 + 2 * 0.005) + disks)


def test_what_has_no_price_is_told(tmp_path: Path) -> None:
    cost = price.estimate(desired.desired(example("small", tmp_path), {}, "1"), {"m5.2xlarge": 0.384}, 730)
    assert cost["unknown"] == ["1 t3.micro", "108 GiB of gp3 volumes", "2 public addresses", "1 NAT gateway, without traffic"]


def test_addresses_are_distinct_within_their_subnets_and_stay_when_a_group_grows(tmp_path: Path) -> None:
    cluster = example("ha", tmp_path)
    wanted = desired.desired(cluster, {}, "1")
    subnets = {subnet["name"]: ipaddress.ip_network(subnet["cidr"]) for subnet in wanted["subnets"]}
    assert len({node["address"] for node in wanted["nodes"]}) == len(wanted["nodes"]) == 10
    for node in wanted["nodes"]:
        assert ipaddress.ip_address(node["address"]) in subnets[node["subnet"]]
    cluster["groups"][0]["count"] = 30
    grown = {node["name"]: node["address"] for node in desired.desired(cluster, {}, "1")["nodes"]}
    assert all(grown[node["name"]] == node["address"] for node in wanted["nodes"])
    spot = [node["name"] for node in wanted["nodes"] if node["spot"]]
    assert spot == ["ha-worker-4", "ha-worker-5", "ha-worker-6"]


def test_rules_are_what_components_serve_to_those_who_use_them(tmp_path: Path, components: dict[str, Any]) -> None:
    cluster = example("ha", tmp_path)
    cluster["producers"] = ["10.9.0.0/16"]
    rules = desired.rules_in(cluster, components)
    assert rules["master"] == [
        ("tcp", 22, 22, "bastion"),
        ("tcp", 9093, 9093, "master"),
        ("tcp", 9820, 9820, "master"),
        ("tcp", 9870, 9870, "master"),
        ("tcp", 9092, 9092, "worker"),
        ("tcp", 9820, 9820, "worker"),
    ]
    assert rules["worker"] == [("tcp", 22, 22, "bastion"), ("udp", 9940, 9940, "10.9.0.0/16")]
    assert rules["bastion"] == [("tcp", 22, 22, "203.0.113.0/24")]
    cluster["groups"].append({**cluster["groups"][1], "name": "log", "inventory": ["kafka"]})
    placed = desired.rules_in(cluster, components)
    assert ("tcp", 9092, 9092, "worker") in placed["log"]
    assert ("tcp", 9092, 9092, "worker") not in placed["master"]


def test_neighbouring_ports_are_one_rule() -> None:
    rules = {("tcp", 8030, 8030, "a"), ("tcp", 8031, 8031, "a"), ("tcp", 8032, 8033, "a"), ("tcp", 8032, 8032, "b")}
    rules.add(("udp", 8034, 8034, "a"))
    assert desired.merged(rules) == [("tcp", 8030, 8033, "a"), ("tcp", 8032, 8032, "b"), ("udp", 8034, 8034, "a")]


def test_every_component_that_uses_a_port_is_known() -> None:
    known = {*VARS["ec2_components"], "cluster", "producers"}
    placement = yaml.safe_load((ROOT / "roles/common/defaults/main/placement.yml").read_text())
    assert {name: component["group"] for name, component in VARS["ec2_components"].items()} == placement["gridstead_default_groups"]
    for name, component in VARS["ec2_components"].items():
        for port in component["ports"]:
            assert set(port["from"]) <= known, name


def test_the_gate_of_the_day_2_playbooks_reaches_what_it_asks() -> None:
    """It runs on a gateway, and asks web pages of servers of every kind (library/gridstead_gate.py)."""
    entries = [port for component in VARS["ec2_components"].values() for port in component["ports"]]
    ports = {str(port["port"]).strip("{} "): port["from"] for port in entries if "port" in port}
    asked = ["zookeeper_port", "hdfs_namenode_http_port", "hdfs_journalnode_http_port", "yarn_resourcemanager_http_port", "kafka_port"]
    asked += ["elasticsearch_http_port", "activemq_port", "collector_status_port", "bridge_status_port", "analytics_stream_status_port"]
    assert [name for name in asked if not {"gateway", "cluster"} & set(ports[name])] == []


def test_every_port_of_the_appliance_has_its_users() -> None:
    ports = yaml.safe_load((ROOT / "roles/common/defaults/main/ports.yml").read_text())["gridstead_base_ports"]
    dependencies = {entry["role"] for entry in yaml.safe_load((ROOT / "roles/ec2/meta/main.yml").read_text())["dependencies"]}
    key_of, home_of = {}, {}
    for path in ROOT.glob("roles/*/defaults/main.yml"):
        for variable, key in re.findall(r'^(\w+_port): "{{ gridstead_ports\.(\w+) }}"', path.read_text(), re.MULTILINE):
            key_of[variable], home_of[variable] = key, path.parents[1].name
    entries = [port.get("port", 22) for component in VARS["ec2_components"].values() for port in component["ports"]]
    named = {entry.strip("{} ") for entry in entries if entry != 22}
    assert named <= set(key_of), "ports of no role"
    assert {key_of[name] for name in named} == set(ports), "say in roles/ec2/vars/main.yml who uses these ports"
    assert {home_of[name] for name in named} == dependencies, "the role ec2 depends on the roles whose ports it names"


def test_prices_by_the_api_where_it_answers(aws: Aws, tmp_path: Path) -> None:
    def answer(question: dict[str, Any]) -> dict[str, Any]:
        fields = {entry["Field"]: entry["Value"] for entry in question["Filters"]}
        assert fields["regionCode"] == "us-east-1"
        usd = {"m5.2xlarge": "0.5", "t3.micro": "0.01"}.get(fields.get("instanceType", ""), "0.09")
        term = {"priceDimensions": {"b": {"pricePerUnit": {"USD": usd}}}}
        return {"FormatVersion": "aws_v1", "PriceList": [f'{{"terms": {{"OnDemand": {{"a": {json.dumps(term)}}}}}}}']}

    aws.answers["GetProducts"] = answer
    prices = price.by_api(aws.client("pricing"), "us-east-1", {"m5.2xlarge", "t3.micro"}, {"gp3"})
    assert prices == {"m5.2xlarge": 0.5, "t3.micro": 0.01, "gp3": 0.09}
    aws.answers.clear()


def with_key(name: str, folder: Path) -> str:
    """Return the text of an example with a key that is there."""
    text = (ROOT / "clusters" / f"{name}.yml").read_text()
    return text.replace("~/.ssh/id_ed25519.pub", key_in(folder))


def test_scaling_changes_one_number_of_the_file(tmp_path: Path) -> None:
    text = with_key("ha", tmp_path)
    for group in ("worker", "workers"):
        changed = scaled("ha.yml", text, INVENTORY, group, "12")
        differ = [(old, new) for old, new in zip(text.splitlines(), changed.splitlines(), strict=True) if old != new]
        assert differ == [("    count: 6", "    count: 12")]


@pytest.mark.parametrize(
    ("group", "count", "told"),
    [
        ("worker", "", "give both"),
        ("", "3", "give both"),
        ("worker", "-1", "give both"),
        ("spare", "3", "no such group; the file has master, worker"),
        ("worker", "0", "no node is in the inventory's group workers"),
        ("worker", "999", "is not a whole number from 0 to 200"),
    ],
)
def test_scaling_refuses_what_cannot_be(tmp_path: Path, group: str, count: str, told: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(told)):
        scaled("ha.yml", with_key("ha", tmp_path), INVENTORY, group, count)


def test_scaling_refuses_a_count_that_two_groups_share(tmp_path: Path) -> None:
    text = with_key("ha", tmp_path).replace("count: 3", "count: &n 3").replace("count: 6", "count: *n")
    with pytest.raises(ClusterError, match="shared with another place of the file"):
        scaled("ha.yml", text, INVENTORY, "worker", "5")
