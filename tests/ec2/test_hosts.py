"""The appliance on EC2 for real: real hosts stand behind the instances, and the playbooks install over SSH, through the bastion.

A step a test and in this order: from nothing to a cluster that passes its smoke tests, repair, more and fewer nodes, back to nothing;
events arrive meanwhile, and none is lost or counted twice. Takes an hour, and 9 GB of memory.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance import assert_served, wait_until
from aws import ROOT, Aws, Run
from census import census, names, nodes
from clusters import HADOOP, HostedCluster, open_files
from hosts import Hosts, changed, missing
from machines import NETWORK, NOTICE, OUTSIDE, Machines, host_of
from metadata_service import in_seconds

pytestmark = [
    pytest.mark.lab,
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(missing()), reason=missing() or "a lab can be made"),
    pytest.mark.skipif(bool(open_files.missing()), reason=open_files.missing() or "Elasticsearch can run"),
]
NAME = "real"
GROUPS = {
    "master": {"inventory": ["masters", "elasticsearch", "gateway"], "type": "m5.2xlarge", "count": 1},
    "worker": {"inventory": ["workers"], "type": "m5.2xlarge", "count": 2, "volumes": [{"size": 50}]},
    "spot": {"inventory": ["workers"], "type": "m5.2xlarge", "count": 0, "spot": 1, "volumes": [{"size": 50}]},
}
SETTINGS = """\
gridstead_size: small
hdfs_replication: 2 # so that one of three workers may go
elasticsearch_heap: 512m
kafka_heap: 320m
activemq_heap: 256m
hdfs_namenode_heap: 160m
hdfs_datanode_heap: 128m
zookeeper_heap: 64m
yarn_resourcemanager_heap: 192m
yarn_nodemanager_heap: 160m
yarn_nodemanager_memory_mb: 2048
"""
STATE: dict[str, Any] = {}  # what a step leaves for the next


@dataclass
class Site:
    """A cluster file, the inventory with the settings of its site, the account, and the hosts behind the account's instances."""

    aws: Aws
    machines: Machines
    file: Path
    inventory: Path

    def play(self, verb: str, **variables: Any) -> Run:
        """Run a playbook of EC2, which must succeed; the hosts follow what it did to instances."""
        inventory = self.inventory if verb == "smoke" else self.inventory / "control.yml"
        run = self.aws.play(verb, self.file, NAME, inventory, 1800, ec2_inventory=str(self.inventory), ec2_wait_s=600, **variables)
        assert run.code == 0, run.output[-6000:]
        self.machines.follow()
        return run

    def install(self) -> int:
        """Run the site's playbook as the page of EC2 says; return how many tasks changed something."""
        run = self.aws.run("site", self.file, "", self.inventory, 3000)
        assert run.code == 0, run.output[-8000:]
        return changed(run.output)

    def reached(self) -> list[str]:
        """The nodes that Ansible reaches."""
        environment = {**self.aws.environment, "CLUSTER": str(self.file)}
        ansible = shutil.which("ansible", path=environment["PATH"])
        assert ansible
        command = [ansible, "-i", str(self.inventory), "nodes", "-m", "ansible.builtin.ping", "--one-line"]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
        )
        print(done.stdout, done.stderr)
        return sorted(re.findall(r"^(\S+) \| SUCCESS", done.stdout, re.MULTILINE))

    @property
    def cluster(self) -> HostedCluster:
        """The installed cluster."""
        return HostedCluster(self.machines.hosts, self.host(f"{NAME}-master-1"))

    def host(self, node: str) -> str:
        """The name of a node's host."""
        return host_of(nodes(self.aws, NAME)[node])

    def well(self, workers: int) -> bool:
        """Whether so many workers serve HDFS and YARN, no block lacks a copy, and every service of the gateway is healthy."""
        cluster = self.cluster
        lines = "grep -E 'Under replicated|Missing blocks:|^Live' || :"
        report = cluster.on(cluster.gateway, f"{HADOOP} dfsadmin -report 2>/dev/null | {lines}")
        if f"Live datanodes ({workers})" not in report or re.findall(r": (\d+)$", report, re.MULTILINE) != ["0", "0"]:
            return False
        if f"Total Nodes:{workers}\n" not in self.yarn("RUNNING"):
            return False
        return cluster.hosts.succeeds(cluster.gateway, "/opt/gridstead/gridstead/bin/gridstead status")

    def yarn(self, state: str) -> str:
        """YARN's list of the nodes in this state."""
        cli = f"{HADOOP} org.apache.hadoop.yarn.client.cli.NodeCLI -list -states {state}"
        return self.cluster.on(self.cluster.gateway, f"{cli} 2>/dev/null || :")


@pytest.fixture(scope="module")
def site(aws: Aws, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An empty account and no host. GRIDSTEAD_TEST_LAB names the lab, and keeps its hosts to be looked at; the next run makes them anew."""
    kept = os.environ.get("GRIDSTEAD_TEST_LAB")
    work = tmp_path_factory.mktemp("site")
    machines = Machines(aws, Hosts(kept or "test-ec2"), work)
    machines.hosts.do("destroy")
    content = {"network": NETWORK, "access": [OUTSIDE], "key": f"{machines.key}.pub", "groups": GROUPS}
    inventory = work / "inventory"
    shutil.copytree(ROOT / "inventories/ec2", inventory)
    own = inventory / "group_vars/all/site.yml"
    own.write_text(own.read_text().replace("gridstead_size: medium\n", SETTINGS))
    yield Site(aws, machines, aws.cluster(NAME, **content), inventory)
    machines.forget_connections()
    if not kept:
        machines.hosts.do("destroy")


@contextmanager
def arriving(site: Site, directory: Path, rate: int = 20) -> Iterator[None]:
    """Events arrive while something is done; afterwards the statistics of all of them must be served, exactly."""
    cluster = site.cluster
    simulated = cluster.simulated(directory)
    before = cluster.moved()
    with cluster.replay(simulated.path, rate, 1500) as replay:
        try:
            wait_until(lambda: cluster.moved() >= before + 5 * rate, "events arrive", 120)
            yield
            output, _ = replay.communicate(timeout=1500)
        finally:
            replay.kill()
    assert replay.returncode == 0, output
    started = time.monotonic()
    assert_served(cluster, simulated.expected(), simulated.from_ms, simulated.to_ms, timeout_s=400)
    print(f"all statistics of events that arrived meanwhile are exact {time.monotonic() - started:.0f} s after the last")


def test_up(site: Site) -> None:
    STATE["before"] = names(census(site.aws))
    site.play("up")
    assert set(nodes(site.aws, NAME)) == {"real-bastion", "real-master-1", "real-worker-1", "real-worker-2"}
    hosts = site.machines.hosts.status()
    assert {host["address"] for host in hosts.values()} == {i["PrivateIpAddress"] for i in nodes(site.aws, NAME).values()}


def test_the_one_way_in_is_the_bastion(site: Site) -> None:
    found = nodes(site.aws, NAME)
    for node, open_ in (("real-bastion", True), ("real-master-1", False)):
        done = site.machines.hosts.attempt("connect", found[node]["PrivateIpAddress"], "22")
        assert ("SSH-2.0" in done.stdout) is open_, f"{node}: {done.stdout} {done.stderr}"


def test_the_site_is_installed_over_ssh(site: Site) -> None:
    assert site.install() > 0
    wait_until(lambda: site.well(2), "the cluster is well", 300)


def test_a_second_run_changes_nothing(site: Site) -> None:
    run = site.play("up")
    assert run.changed == 0
    assert not run.writes
    assert site.install() == 0


def test_smoke_tests_pass(site: Site) -> None:
    run = site.play("smoke")
    print(run.output)


def test_the_security_groups_let_through_all_that_is_needed(site: Site) -> None:
    outside = OUTSIDE.partition("/")[0]
    assert {entry for entry in site.machines.refused() if entry[1] != outside} == set()


def test_blocks_are_on_the_volumes_and_a_zone_is_a_rack(site: Site) -> None:
    cluster = site.cluster
    for worker in ("real-worker-1", "real-worker-2"):
        assert cluster.on(site.host(worker), "find /data/1/hdfs -name 'blk_*' | head -1")
    topology = cluster.on(cluster.gateway, f"{HADOOP} dfsadmin -printTopology 2>/dev/null")
    assert set(re.findall(r"Rack: (\S+)", topology)) == {"/us-east-1a", "/us-east-1b"}


def test_up_and_the_site_heal_what_was_terminated(site: Site, tmp_path: Path) -> None:
    lost = nodes(site.aws, NAME)["real-worker-2"]
    with arriving(site, tmp_path):
        site.aws.client("ec2").terminate_instances(InstanceIds=[lost["InstanceId"]])
        site.machines.follow()
        assert host_of(lost) not in site.machines.hosts.status()
        run = site.play("up")
        assert dict(run.writes) == {"RunInstances": 1}
        assert nodes(site.aws, NAME)["real-worker-2"]["InstanceId"] != lost["InstanceId"]
        site.install()
        wait_until(lambda: site.well(2), "the cluster is whole again", 400)
    assert site.install() == 0


def test_a_bastion_that_is_made_anew_is_no_stranger(site: Site) -> None:
    lost = nodes(site.aws, NAME)["real-bastion"]["InstanceId"]
    site.aws.client("ec2").terminate_instances(InstanceIds=[lost])
    site.machines.follow()
    assert site.reached() == []
    run = site.play("up")
    assert set(run.writes) == {"RunInstances", "AssociateAddress", "CreateTags"}
    assert site.reached() == ["real-master-1", "real-worker-1", "real-worker-2"]


def test_scale_out_adds_a_worker(site: Site, tmp_path: Path) -> None:
    with arriving(site, tmp_path):
        run = site.play("scale", ec2_group="spot", ec2_count="1")
        assert dict(run.writes) == {"RunInstances": 1}
        site.install()
        wait_until(lambda: site.well(3), "three workers serve", 400)
    assert site.install() == 0


def test_a_spot_node_is_drained_at_its_notice_and_made_anew_by_up(site: Site, tmp_path: Path) -> None:
    lost = nodes(site.aws, NAME)["real-spot-1"]
    host, cluster = host_of(lost), site.cluster
    active = "systemctl list-units --no-legend --state=active 'gridstead-*.service' | awk '{print $1}'"
    ran = cluster.on(host, active).split()
    assert {"gridstead-hdfs-datanode.service", "gridstead-yarn-nodemanager.service", "gridstead-spot.service"} <= set(ran)
    with arriving(site, tmp_path):
        cluster.on(host, f"echo '{in_seconds(120)}' > {NOTICE}")
        wait_until(lambda: "Total Nodes:1\n" in site.yarn("SHUTDOWN"), "YARN knows that the NodeManager is gone", 60)
        assert "gridstead-hdfs-datanode.service" in cluster.on(host, active), "blocks are read from it until the end is near"
        wait_until(lambda: cluster.on(host, active) == "gridstead-spot.service\n", "all else on the host has stopped", 120)
        print(cluster.on(host, "journalctl --no-pager -o cat -u gridstead-spot"))
        site.aws.client("ec2").terminate_instances(InstanceIds=[lost["InstanceId"]])
        site.machines.follow()
        run = site.play("up")
        assert dict(run.writes) == {"RunInstances": 1}
        anew = nodes(site.aws, NAME)["real-spot-1"]
        assert anew["InstanceId"] != lost["InstanceId"] and anew["PrivateIpAddress"] == lost["PrivateIpAddress"]
        site.install()
        wait_until(lambda: site.well(3), "three workers serve again", 700)


def test_scale_in_drains_the_worker_and_then_terminates_it(site: Site, tmp_path: Path) -> None:
    leaving = site.host("real-spot-1")
    cluster = site.cluster
    local = "mkdir -p /tmp/many && cd /tmp/many && for n in 1 2 3 4 5 6 7 8 9 10 11 12; do head -c 100000 /dev/urandom > $n; done"
    cluster.on(cluster.gateway, f"{local} && {HADOOP} fs -mkdir -p /tmp/many && {HADOOP} fs -put -f /tmp/many/* /tmp/many")
    places = f"{HADOOP} fsck /tmp/many -files -blocks -locations 2>/dev/null"
    held = f"DatanodeInfoWithStorage[{site.machines.hosts.status()[leaving]['address']}:"
    assert held in cluster.on(cluster.gateway, places)
    with arriving(site, tmp_path):
        run = site.play("scale", ec2_group="spot", ec2_count="0")
        assert dict(run.writes) == {"TerminateInstances": 1}
        assert leaving not in site.machines.hosts.status()
        site.install()
        wait_until(lambda: site.well(2), "two workers serve", 400)
    after = cluster.on(cluster.gateway, places)
    assert "is HEALTHY" in after and held not in after and "Average block replication:\t2.0" in after, after
    assert site.install() == 0


def test_everything_is_back_after_stop_and_start(site: Site, tmp_path: Path) -> None:
    site.play("stop")
    assert {host["ended"] for host in site.machines.hosts.status().values()} == {"halted"}
    site.play("start")
    wait_until(lambda: site.well(2), "everything is back", 600)
    with arriving(site, tmp_path, rate=400):
        pass
    assert site.install() == 0


def test_the_security_groups_still_let_through_all_that_is_needed(site: Site) -> None:
    outside = OUTSIDE.partition("/")[0]
    assert {entry for entry in site.machines.refused() if entry[1] != outside} == set()


def test_down_leaves_nothing(site: Site) -> None:
    site.play("down")
    assert not site.machines.hosts.status()
    left = names(census(site.aws))
    assert {kind: left[kind] - STATE["before"][kind] for kind in left} == {kind: set() for kind in left}
