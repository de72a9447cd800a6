"""The life of a cluster, a step a test and in this order: up, up again with nothing to do, down."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from aws import DEBIAN, ONE_NODE, ROOT, Aws
from census import census, names, nodes
from gridstead_ec2 import account, desired, plan
from gridstead_ec2 import cluster as cluster_file

pytestmark = pytest.mark.timeout(280)
BOUND = 40  # calls of an up that finds nothing to do, whatever the number of nodes; 27 were seen
STATE: dict[str, Any] = {}  # what a step leaves for the next


@pytest.fixture
def cluster(aws: Aws) -> Path:
    """The cluster file; the bucket has a name of its own."""
    node = {**ONE_NODE["groups"]["node"], "volumes": [{"size": 50}]}
    return aws.cluster(
        "life", **{**ONE_NODE, "groups": {"node": node}}, bucket={"name": "life-archive-of-a-test"}, tags={"project": "grid"}
    )


def load_module(name: str) -> ModuleType:
    """Load an Ansible module as Python."""
    specification = spec_from_file_location(name, ROOT / "library" / f"{name}.py")
    assert specification
    assert specification.loader
    module = module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


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


def test_up(aws: Aws, cluster: Path) -> None:
    STATE["before"] = names(census(aws))
    aws.up(cluster)
    assert set(nodes(aws, "life")) == {"life-bastion", "life-node-1"}
    assert not unknown_to_us(aws)


def test_all_is_as_safe_as_told(aws: Aws, cluster: Path) -> None:
    ec2 = aws.client("ec2")
    found = nodes(aws, "life")
    for instance in found.values():
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        assert instance["ImageId"] == DEBIAN["ami_id"]
    assert found["life-node-1"]["IamInstanceProfile"]["Arn"].endswith("/gridstead-life-us-east-1")
    assert "IamInstanceProfile" not in found["life-bastion"]
    assert "PublicIpAddress" not in found["life-node-1"]
    volumes = ec2.describe_volumes(Filters=[{"Name": "tag:gridstead-cluster", "Values": ["life"]}])["Volumes"]
    assert len(volumes) == 3
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
    (rule,) = s3.get_bucket_lifecycle_configuration(Bucket="life-archive-of-a-test")["Rules"]
    assert rule["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert all(s3.get_public_access_block(Bucket="life-archive-of-a-test")["PublicAccessBlockConfiguration"].values())
    policy = aws.client("iam").get_role_policy(RoleName="gridstead-life-us-east-1", PolicyName="bucket")["PolicyDocument"]
    resources = {resource for statement in policy["Statement"] for resource in statement["Resource"]}
    assert resources == {"arn:aws:s3:::life-archive-of-a-test", "arn:aws:s3:::life-archive-of-a-test/*"}


def test_an_up_of_twenty_nodes_that_finds_nothing_to_do_makes_few_calls(aws: Aws, cluster: Path) -> None:
    content = yaml.safe_load(cluster.read_text())
    content["groups"]["node"]["count"] = 20
    cluster.write_text(yaml.safe_dump(content))
    read = cluster_file.load(str(cluster), ["masters", "workers"])
    wanted = desired.desired(read, {}, "123456789012")
    here = account.Account(aws, None, "us-east-1")
    plans = plan.Plan(wanted, here.found(wanted))
    assert len(plans.launch) == 19
    module = load_module("gridstead_ec2_nodes")
    ec2 = aws.client("ec2")
    parameters = {"image": DEBIAN["ami_id"], "key": "gridstead-life", "profile": "gridstead-life-us-east-1", "user_data": "", **plans.ids}
    for node in plans.launch:  # as a playbook does, but all in this process
        module.launch(ec2, module.request(node, parameters))
    assert set(aws.up(cluster).writes) == {"CreateTags"}  # the first node learns how many masters there are
    before = census(aws)
    run = aws.up(cluster)
    assert len(nodes(aws, "life")) == 21
    assert run.changed == 0
    assert not run.writes
    assert census(aws) == before
    print("calls of a no-op up of 20 nodes and the bastion:", sum(run.calls.values()))
    assert sum(run.calls.values()) <= BOUND


def test_down_leaves_nothing(aws: Aws, cluster: Path) -> None:
    aws.client("s3").put_object(Bucket="life-archive-of-a-test", Key="events/1", Body=b"1")
    aws.down(cluster)
    left = names(census(aws))
    assert {kind: left[kind] - STATE["before"][kind] for kind in left} == {kind: set() for kind in left}
