"""Errors in the middle of up and down, and repair: a step a test and in this order. Takes minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aws import Aws, Fault
from census import census, names, nodes

pytestmark = [pytest.mark.long, pytest.mark.timeout(280)]
STATE: dict[str, Any] = {}  # what a step leaves for the next


@pytest.fixture
def cluster(aws: Aws) -> Path:
    """The cluster file; the bucket has a name of its own."""
    return aws.cluster("mend", bucket={"name": "mend-archive-of-a-test"}, tags={"project": "grid"})


def test_nothing_is_made_where_a_name_is_taken(aws: Aws, cluster: Path) -> None:
    STATE["before"] = names(census(aws))
    aws.client("s3").create_bucket(Bucket="mend-archive-of-a-test")
    aws.client("s3").put_object(Bucket="mend-archive-of-a-test", Key="precious", Body=b"1")
    taken = aws.play("up", cluster, confirm="mend")
    assert taken.code != 0
    assert "the bucket mend-archive-of-a-test is there and not this cluster's" in taken.output
    assert not taken.writes
    aws.client("s3").delete_object(Bucket="mend-archive-of-a-test", Key="precious")
    aws.client("s3").delete_bucket(Bucket="mend-archive-of-a-test")
    assert names(census(aws)) == STATE["before"]


def test_up_survives_throttling_and_tells_of_no_capacity(aws: Aws, cluster: Path) -> None:
    aws.faults += [Fault("CreateSubnet|AuthorizeSecurityGroupIngress|DescribeVpcs", "RequestLimitExceeded", 503, after=0, times=1)]
    aws.faults += [Fault("RunInstances", "InsufficientInstanceCapacity", 500, after=2)]
    run = aws.play("up", cluster, confirm="mend")
    assert run.code != 0
    assert "InsufficientInstanceCapacity" in run.output
    assert "no such instance free in this zone now" in " ".join(run.output.split())
    assert set(nodes(aws, "mend")) == {"mend-bastion", "mend-master-1"}
    assert aws.faults[0].seen > 1
    aws.faults.clear()


def test_up_goes_on_where_it_stopped(aws: Aws, cluster: Path) -> None:
    before = census(aws)
    run = aws.up(cluster)
    assert set(nodes(aws, "mend")) == {"mend-bastion", "mend-master-1", "mend-worker-1", "mend-worker-2"}
    assert run.calls["RunInstances"] == 2
    assert set(run.writes) <= {"RunInstances", "AssociateAddress"}
    found = nodes(aws, "mend")
    assert found["mend-worker-1"]["Placement"]["AvailabilityZone"] != found["mend-worker-2"]["Placement"]["AvailabilityZone"]
    after = census(aws)
    for kind in set(before) - {"instances", "volumes", "interfaces"}:
        assert set(before[kind]) == set(after[kind]), kind


def test_second_up_changes_nothing(aws: Aws, cluster: Path) -> None:
    before = census(aws)
    run = aws.up(cluster)
    assert run.changed == 0
    assert not run.writes
    assert census(aws) == before


def test_inventory_has_the_groups_of_the_site(aws: Aws, cluster: Path) -> None:
    inventory = aws.inventory(cluster)
    assert inventory["masters"]["hosts"] == ["mend-master-1"]
    assert sorted(inventory["workers"]["hosts"]) == ["mend-worker-1", "mend-worker-2"]
    hosts = inventory["_meta"]["hostvars"]
    assert set(hosts) == {"mend-master-1", "mend-worker-1", "mend-worker-2"}
    instances = nodes(aws, "mend")
    for name, variables in hosts.items():
        assert variables["ansible_host"] == variables["gridstead_address"] == instances[name]["PrivateIpAddress"]
        assert variables["ec2_bucket"] == "mend-archive-of-a-test"
        assert variables["gridstead_rack"] == "/" + instances[name]["Placement"]["AvailabilityZone"]
    numbers = {name: variables["gridstead_order"] for name, variables in hosts.items()}  # the plug-in has nodes in the order of their ids
    assert numbers == {"mend-master-1": 1001, "mend-worker-1": 2001, "mend-worker-2": 2002}
    said = "ssh {{ ansible_ssh_common_args }} disks {{ hdfs_datanode_dirs }} name {{ gridstead_name }}"
    debug = ["-m", "ansible.builtin.debug", "-a", f"msg={json.dumps(said)}", "-e", "gridstead_data_dir=/d"]
    told = aws.ask(cluster, "ansible", "mend-worker-1", *debug)
    worker, bastion = instances["mend-worker-1"]["InstanceId"], instances["mend-bastion"]
    assert f"HostKeyAlias={worker}" in told
    assert f"HostKeyAlias={bastion['InstanceId']} -W %h:%p admin@{bastion['PublicIpAddress']}" in " ".join(told.split())
    assert "disks ['/data/1/hdfs'] name mend" in told


def test_up_replaces_what_died_and_touches_nothing_else(aws: Aws, cluster: Path) -> None:
    before = nodes(aws, "mend")
    lost = before["mend-worker-1"]
    aws.client("ec2").terminate_instances(InstanceIds=[lost["InstanceId"]])
    run = aws.up(cluster)
    assert dict(run.writes) == {"RunInstances": 1}
    after = nodes(aws, "mend")
    new = after.pop("mend-worker-1")
    assert new["InstanceId"] != lost["InstanceId"]
    assert new["PrivateIpAddress"] == lost["PrivateIpAddress"]
    del before["mend-worker-1"]
    assert after == before


def test_a_bastion_that_died_is_made_anew_and_the_nodes_name_the_new_one(aws: Aws, cluster: Path) -> None:
    before = nodes(aws, "mend")
    aws.client("ec2").terminate_instances(InstanceIds=[before["mend-bastion"]["InstanceId"]])
    run = aws.up(cluster)
    assert set(run.writes) == {"RunInstances", "AssociateAddress", "CreateTags"}
    after = nodes(aws, "mend")
    assert after["mend-bastion"]["PublicIpAddress"] == before["mend-bastion"]["PublicIpAddress"]
    for name in set(after) - {"mend-bastion"}:
        assert {"Key": "gridstead-bastion-id", "Value": after["mend-bastion"]["InstanceId"]} in after[name]["Tags"]
    assert not aws.up(cluster).writes


def test_down_goes_on_after_credentials_expired(aws: Aws, cluster: Path) -> None:
    aws.client("s3").put_object(Bucket="mend-archive-of-a-test", Key="events/1", Body=b"1")
    aws.faults += [Fault("DeleteSecurityGroup|DescribeSecurityGroups", "RequestExpired", after=3)]
    run = aws.play("down", cluster, confirm="mend")
    assert run.code != 0
    assert "The credentials are not valid, or no longer" in " ".join(run.output.split())
    assert not nodes(aws, "mend")
    aws.faults.clear()


def test_down_leaves_nothing(aws: Aws, cluster: Path) -> None:
    aws.down(cluster)
    left = names(census(aws))
    assert {kind: left[kind] - STATE["before"][kind] for kind in left} == {kind: set() for kind in left}
    again = aws.down(cluster)
    assert again.changed == 0
    assert not again.writes
