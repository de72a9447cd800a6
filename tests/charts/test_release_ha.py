"""A release of profile ha on a cluster of three nodes: one server of each kind lost, a rolling upgrade, a NameNode without its volume."""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import open_files  # conftest.py says where it is
from appliance import wait_until
from charts.flow import Y2010_MS, Flow, assert_uninstalling_keeps_the_data, numbers
from charts.release import MISSING, HelmError, Release, build, released

pytestmark = [pytest.mark.long, pytest.mark.kubernetes]

NODES = 3
VOTERS = ("zookeeper", "hdfs-journalnode", "kafka", "elasticsearch")


@pytest.fixture(scope="module")
def grid(cluster: Callable[..., bool], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The release under test."""
    if lacking := MISSING or ("" if "KUBECONFIG" in os.environ else open_files.missing()):
        pytest.skip(lacking)
    cluster()
    chart = build(tmp_path_factory.mktemp("charts"))
    values = yaml.safe_load((chart / "profiles" / "ha.yaml").read_text())
    if registry := os.environ.get("GRIDSTEAD_IMAGE_PREFIX"):
        values["global"]["image"] = {"registry": registry}
    with released(chart, "gridstead-test-ha", **values) as release:
        nodes = len(release.core.list_node().items)
        if nodes < NODES:
            pytest.skip(f"the cluster has {nodes} nodes, and profile ha keeps servers of one kind on {NODES}")
        print(f"\nready after {release.apply('upgrade', '--install'):.0f} s")
        release.start_client()
        yield release


def active_namenode(grid: Release) -> int:
    """The number of the active NameNode's pod."""
    states = grid.exec("hadoop", "haadmin", "-getAllServiceState")
    (number,) = re.findall(r"-namenode-(\d)\.\S+\s+active", states)
    return int(number)


def test_servers_of_one_kind_are_on_nodes_of_their_own(grid: Release) -> None:
    for component in (*VOTERS, "hdfs-namenode", "hdfs-datanode"):
        nodes = [pod.spec.node_name for pod in grid.pods(component)]
        assert len(nodes) == 3 and len(set(nodes)) == 3, component


def test_helm_test_runs_the_smoke_tests(grid: Release) -> None:
    told = grid.helm("test", "--logs", "--timeout", "900s")
    assert "Succeeded" in told and told.count(" ok ") >= 5


def test_status_and_doctor_know_the_release(grid: Release) -> None:
    services = {service["name"]: service for service in grid.gridstead("status")["services"]}
    assert services.keys() >= {*VOTERS, "hdfs-namenode", "hdfs-datanode"}
    assert all(service["healthy"] for service in services.values())
    assert grid.gridstead("doctor")["healthy"]


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("hdfs.replication=2,hdfs.datanode.replicas=2", "hdfs-datanode has 3 pods and would get 2: what only the others hold"),
        ("kafka.replicas=5", "kafka has 3 pods and would get 5: they agree by votes"),
        ("hdfs.journalnode.replicas=5", "hdfs-journalnode has 3 pods and would get 5: they agree by votes"),
    ],
)
def test_what_would_lose_copies_or_votes_is_refused(grid: Release, setting: str, why: str) -> None:
    before = {pod.metadata.uid for pod in grid.pods()}
    with pytest.raises(HelmError, match=why):
        grid.apply("upgrade", "--set", setting)
    assert {pod.metadata.uid for pod in grid.pods()} == before


def test_one_server_of_each_kind_is_killed_while_events_flow_and_the_counts_are_exact(grid: Release, tmp_path: Path) -> None:
    flow = Flow(grid, 1, 240, tmp_path)
    before = active_namenode(grid)
    for component, number in (("hdfs-namenode", before), *((voter, 1) for voter in VOTERS), ("hdfs-datanode", 1)):
        killed = grid.kill(component, number)
        begun = time.monotonic()
        grid.exec("sh", "-c", "date | hadoop fs -put -f - /tmp/written")
        wrote = time.monotonic() - begun
        wait_until(functools.partial(grid.replaced, component, killed, number), f"{component} is back", 300)
        print(f"{component}: HDFS took a file after {wrote:.0f} s, ready again after {time.monotonic() - begun:.0f} s")
    assert active_namenode(grid) != before
    print(f"longest stall {flow.finish():.0f} s")


def test_an_upgrade_goes_from_broker_to_broker_each_after_the_one_before_has_caught_up(grid: Release, tmp_path: Path) -> None:
    flow = Flow(grid, 2, 150, tmp_path)
    print(f"upgrade ready after {grid.apply('upgrade', kafka={**grid.values['kafka'], 'heap': '400m'}):.0f} s")
    pods = [grid.pod("kafka", number) for number in range(3)]
    ready = [next(entry for entry in pod.status.conditions if entry.type == "Ready").last_transition_time for pod in pods]
    created = [pod.metadata.creation_timestamp for pod in pods]
    assert created[1] >= ready[2] and created[0] >= ready[1]
    print(f"longest stall {flow.finish():.0f} s")


def test_a_namenode_that_lost_its_volume_copies_the_namespace_from_another(grid: Release) -> None:
    before, served = grid.archived(), numbers(grid.documents(0, 2 * Y2010_MS))
    grid.core.delete_namespaced_persistent_volume_claim(f"data-{grid.name}-hdfs-namenode-0", grid.namespace)
    killed = grid.kill("hdfs-namenode")
    wait_until(functools.partial(grid.replaced, "hdfs-namenode", killed), "the NameNode is back", 300)
    assert set(before) <= set(grid.archived()) and numbers(grid.documents(0, 2 * Y2010_MS)) == served
    grid.exec("hadoop", "haadmin", "-failover", f"nn{active_namenode(grid) + 1}", "nn1")
    assert active_namenode(grid) == 0  # and from now on it is the one that is asked
    assert set(before) <= set(grid.archived())


def test_what_is_uninstalled_and_installed_again_finds_its_data(grid: Release) -> None:
    assert_uninstalling_keeps_the_data(grid)
