"""The life of a cluster, a step a test and in this order: errors in the middle, repair, growth, inventory, and nothing left at the end."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from aws import DEBIAN, ROOT, Aws, Fault
from census import census, names, nodes
from gridstead_ec2 import account, desired, plan
from gridstead_ec2 import cluster as cluster_file

pytestmark = pytest.mark.timeout(280)
BOUND = 40  # calls of an up that finds nothing to do, whatever the number of nodes; 27 were seen
STATE: dict[str, Any] = {}  # what a step leaves for the next


@pytest.fixture
def cluster(aws: Aws) -> Path:
    """The cluster file; the bucket has a name of its own."""
    return aws.cluster("life", bucket={"name": "life-archive-of-a-test"}, tags={"project": "grid"})


def load_module(name: str) -> ModuleType:
    """Load an Ansible module as Python."""
    specification = spec_from_file_location(name, ROOT / "library" / f"{name}.py")
    assert specification
    assert specification.loader
    module = module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_nothing_is_made_where_a_name_is_taken(aws: Aws, cluster: Path) -> None:
    STATE["before"] = names(census(aws))
    aws.client("s3").create_bucket(Bucket="life-archive-of-a-test")
    aws.client("s3").put_object(Bucket="life-archive-of-a-test", Key="precious", Body=b"1")
    taken = aws.play("up", cluster, confirm="life")
    assert taken.code != 0
    assert "the bucket life-archive-of-a-test is there and not this cluster's" in taken.output
    assert not taken.writes
    aws.client("s3").delete_object(Bucket="life-archive-of-a-test", Key="precious")
    aws.client("s3").delete_bucket(Bucket="life-archive-of-a-test")
    assert names(census(aws)) == STATE["before"]


def test_up_survives_throttling_and_tells_of_no_capacity(aws: Aws, cluster: Path) -> None:
    aws.faults += [Fault("CreateSubnet|AuthorizeSecurityGroupIngress|DescribeVpcs", "RequestLimitExceeded", 503, after=0, times=1)]
    aws.faults += [Fault("RunInstances", "InsufficientInstanceCapacity", 500, after=2)]
    run = aws.play("up", cluster, confirm="life")
    assert run.code != 0
    assert "InsufficientInstanceCapacity" in run.output
    assert "no such instance free in this zone now" in " ".join(run.output.split())
    assert set(nodes(aws, "life")) == {"life-bastion", "life-master-1"}
    assert aws.faults[0].seen > 1
    aws.faults.clear()


def test_up_goes_on_where_it_stopped(aws: Aws, cluster: Path) -> None:
    before = census(aws)
    run = aws.up(cluster)
    assert set(nodes(aws, "life")) == {"life-bastion", "life-master-1", "life-worker-1", "life-worker-2"}
    assert run.calls["RunInstances"] == 2
    assert set(run.writes) <= {"RunInstances", "AssociateAddress"}
    after = census(aws)
    for kind in set(before) - {"instances", "volumes", "interfaces"}:
        assert set(before[kind]) == set(after[kind]), kind
    assert not unknown_to_us(aws)


def unknown_to_us(aws: Aws) -> list[str]:
    """Return what was made and bears no tag of the cluster, nor is in its network."""
    found, before = census(aws), STATE["before"]
    vpc = next(name for name in found["networks"] if name not in before["networks"])
    strange = []
    for kind, resources in found.items():
        for identity, resource in resources.items():
            tags = resource.get("Tags") or resource.get("TagSet") or []
            if identity not in before[kind] and kind not in ("roles", "policies", "instance profiles", "buckets"):
                if not any(tag["Key"] == "gridstead-cluster" for tag in tags) and resource.get("VpcId") != vpc:
                    strange.append(f"{kind} {identity}")
    return strange


def test_second_up_changes_nothing(aws: Aws, cluster: Path) -> None:
    before = census(aws)
    run = aws.up(cluster)
    assert run.changed == 0
    assert not run.writes
    assert census(aws) == before
    print(sum(run.calls.values()), dict(run.calls))
    assert sum(run.calls.values()) <= BOUND


def test_nodes_are_as_safe_as_told(aws: Aws, cluster: Path) -> None:
    ec2 = aws.client("ec2")
    found = nodes(aws, "life")
    for instance in found.values():
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        assert instance["ImageId"] == DEBIAN["ami_id"]
        assert instance["IamInstanceProfile"]["Arn"].endswith("/gridstead-life-us-east-1")
    assert "PublicIpAddress" not in found["life-worker-1"]
    assert found["life-worker-1"]["Placement"]["AvailabilityZone"] != found["life-worker-2"]["Placement"]["AvailabilityZone"]
    volumes = ec2.describe_volumes(Filters=[{"Name": "tag:gridstead-cluster", "Values": ["life"]}])["Volumes"]
    assert len(volumes) == 6
    assert all(volume["Encrypted"] for volume in volumes)
    groups = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["life-*"]}])["SecurityGroups"]
    open_to_all = [p for group in groups for p in group["IpPermissions"] for r in p["IpRanges"] if r["CidrIp"] == "0.0.0.0/0"]
    assert not open_to_all
    from_outside = [(group["GroupName"], p["FromPort"]) for group in groups for p in group["IpPermissions"] if p["IpRanges"]]
    assert from_outside == [("life-bastion", 22)]
    s3 = aws.client("s3")
    assert s3.get_bucket_versioning(Bucket="life-archive-of-a-test")["Status"] == "Enabled"
    rules = s3.get_bucket_encryption(Bucket="life-archive-of-a-test")["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert all(s3.get_public_access_block(Bucket="life-archive-of-a-test")["PublicAccessBlockConfiguration"].values())
    policy = aws.client("iam").get_role_policy(RoleName="gridstead-life-us-east-1", PolicyName="bucket")["PolicyDocument"]
    resources = {resource for statement in policy["Statement"] for resource in statement["Resource"]}
    assert resources == {"arn:aws:s3:::life-archive-of-a-test", "arn:aws:s3:::life-archive-of-a-test/*"}


def test_inventory_has_the_groups_of_the_site(aws: Aws, cluster: Path) -> None:
    def ask(tool: str, *arguments: str) -> str:
        program = shutil.which(tool, path=aws.environment["PATH"])
        assert program
        command = [program, "-i", str(ROOT / "inventories/ec2"), *arguments]
        environment = {**aws.environment, "CLUSTER": str(cluster)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    inventory = json.loads(ask("ansible-inventory", "--list"), object_hook=lambda value: value.get("__ansible_unsafe", value))
    assert inventory["masters"]["hosts"] == ["life-master-1"]
    assert sorted(inventory["workers"]["hosts"]) == ["life-worker-1", "life-worker-2"]
    hosts = inventory["_meta"]["hostvars"]
    assert set(hosts) == {"life-master-1", "life-worker-1", "life-worker-2"}
    instances = nodes(aws, "life")
    for name, variables in hosts.items():
        assert variables["ansible_host"] == variables["gridstead_address"] == instances[name]["PrivateIpAddress"]
        assert variables["gridstead_rack"] == "/" + instances[name]["Placement"]["AvailabilityZone"]
    said = "ssh {{ ansible_ssh_common_args }} disks {{ hdfs_datanode_dirs }} name {{ gridstead_name }}"
    told = ask("ansible", "life-worker-1", "-m", "ansible.builtin.debug", "-a", f"msg={json.dumps(said)}", "-e", "gridstead_data_dir=/d")
    worker, bastion = instances["life-worker-1"]["InstanceId"], instances["life-bastion"]["PublicIpAddress"]
    assert f"HostKeyAlias={worker}" in told
    assert f"-W %h:%p admin@{bastion}" in told
    assert "disks ['/data/1/hdfs'] name life" in told


def test_up_replaces_what_died_and_touches_nothing_else(aws: Aws, cluster: Path) -> None:
    before = nodes(aws, "life")
    lost = before["life-worker-1"]
    aws.client("ec2").terminate_instances(InstanceIds=[lost["InstanceId"]])
    run = aws.up(cluster)
    assert dict(run.writes) == {"RunInstances": 1}
    after = nodes(aws, "life")
    new = after.pop("life-worker-1")
    assert new["InstanceId"] != lost["InstanceId"]
    assert new["PrivateIpAddress"] == lost["PrivateIpAddress"]
    del before["life-worker-1"]
    assert after == before


def test_noop_up_of_twenty_nodes_makes_no_more_calls(aws: Aws, cluster: Path) -> None:
    content = yaml.safe_load(cluster.read_text())
    content["groups"]["worker"]["count"] = 19
    cluster.write_text(yaml.safe_dump(content))
    read = cluster_file.load(str(cluster), ["masters", "workers"])
    wanted = desired.desired(read, {}, "123456789012")
    here = account.Account(aws, None, "us-east-1")
    plans = plan.Plan(wanted, here.found(wanted))
    assert len(plans.launch) == 17
    module = load_module("gridstead_ec2_nodes")
    ec2 = aws.client("ec2")
    parameters = {"image": DEBIAN["ami_id"], "key": "gridstead-life", "profile": "gridstead-life-us-east-1", "user_data": "", **plans.ids}
    for node in plans.launch:  # as a playbook does, but all in this process
        module.launch(ec2, module.request(node, parameters))
    run = aws.up(cluster)
    assert len(nodes(aws, "life")) == 21
    assert run.changed == 0
    assert not run.writes
    print("calls of a no-op up of 20 nodes and the bastion:", sum(run.calls.values()))
    assert sum(run.calls.values()) <= BOUND


def test_down_goes_on_after_credentials_expired(aws: Aws, cluster: Path) -> None:
    aws.client("s3").put_object(Bucket="life-archive-of-a-test", Key="events/1", Body=b"1")
    aws.faults += [Fault("DeleteSecurityGroup|DescribeSecurityGroups", "RequestExpired", after=3)]
    run = aws.play("down", cluster, confirm="life")
    assert run.code != 0
    assert "The credentials are not valid, or no longer" in " ".join(run.output.split())
    assert not nodes(aws, "life")
    aws.faults.clear()


def test_down_leaves_nothing(aws: Aws, cluster: Path) -> None:
    aws.down(cluster)
    left = names(census(aws))
    assert {kind: left[kind] - STATE["before"][kind] for kind in left} == {kind: set() for kind in left}
    again = aws.down(cluster)
    assert again.changed == 0
    assert not again.writes
