"""What the plan sees: its own cluster whole, with or without tags, and nothing of another one. No playbook runs here."""

from __future__ import annotations

from typing import Any

import pytest

from aws import DEBIAN, Aws
from gridstead_ec2.account import Account
from gridstead_ec2.cluster import load
from gridstead_ec2.desired import desired
from gridstead_ec2.errors import HINTS, hint
from gridstead_ec2.plan import Plan, rubble


def wanted_of(aws: Aws, name: str, **content: Any) -> dict[str, Any]:
    """Return what the file of a cluster asks for."""
    return desired(load(str(aws.cluster(name, **content)), ["masters", "workers"]), {}, "123456789012")


def make_some(aws: Aws, wanted: dict[str, Any]) -> None:
    """Make one thing of each kind, with the cluster's tags."""
    ec2, iam, s3 = aws.client("ec2"), aws.client("iam"), aws.client("s3")
    tags = [{"Key": key, "Value": value} for key, value in wanted["tags"].items()]

    def of(kind: str) -> list[dict[str, Any]]:
        return [{"ResourceType": kind, "Tags": tags}]

    vpc = ec2.create_vpc(CidrBlock=wanted["vpc"]["cidr"], TagSpecifications=of("vpc"))["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=wanted["subnets"][0]["cidr"])["Subnet"]["SubnetId"]  # untagged, but in the network
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]  # untagged, but attached to it
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    ec2.create_route_table(VpcId=vpc)
    ec2.create_security_group(GroupName="some", Description="some", VpcId=vpc)
    ec2.create_network_interface(SubnetId=subnet)
    address = ec2.allocate_address(Domain="vpc", TagSpecifications=of("elastic-ip"))["AllocationId"]
    ec2.create_nat_gateway(SubnetId=subnet, AllocationId=address)
    ec2.create_volume(AvailabilityZone="us-east-1a", Size=1, TagSpecifications=of("volume"))
    ec2.create_vpc_endpoint(VpcId=vpc, ServiceName=wanted["endpoint"])
    ec2.create_key_pair(KeyName=wanted["key"]["name"], TagSpecifications=of("key-pair"))
    ec2.run_instances(ImageId=DEBIAN["ami_id"], MinCount=1, MaxCount=1, SubnetId=subnet, TagSpecifications=of("instance"))
    iam.create_role(RoleName=wanted["role"], AssumeRolePolicyDocument="{}", Tags=tags)
    s3.create_bucket(Bucket=wanted["bucket"]["name"])
    s3.put_bucket_tagging(Bucket=wanted["bucket"]["name"], Tagging={"TagSet": tags})


def test_down_sees_all_of_its_cluster_and_nothing_of_another(aws: Aws) -> None:
    one, two = wanted_of(aws, "one"), wanted_of(aws, "two")
    make_some(aws, one)
    account = Account(aws, None, "us-east-1")
    mine, others = rubble(one, account.found(one)), rubble(two, account.found(two))
    assert [kind for kind, entries in mine.items() if not entries] == []
    assert [kind for kind, entries in others.items() if entries] == []
    assert Plan(two, account.found(two)).problems == []
    make_some(aws, two)
    assert rubble(one, account.found(one)) == mine


def test_names_that_others_have_are_told_and_not_removed(aws: Aws) -> None:
    aws.reset()
    wanted = wanted_of(aws, "one")
    aws.client("ec2").create_key_pair(KeyName="gridstead-one")
    aws.client("iam").create_role(RoleName="gridstead-one-us-east-1", AssumeRolePolicyDocument="{}")
    aws.client("s3").create_bucket(Bucket=wanted["bucket"]["name"])
    aws.client("s3").put_object(Bucket=wanted["bucket"]["name"], Key="precious", Body=b"1")
    found = Account(aws, None, "us-east-1").found(wanted)
    told = " ".join(Plan(wanted, found).problems)
    for what in ("the key pair gridstead-one", "the IAM role gridstead-one-us-east-1", f"the bucket {wanted['bucket']['name']}"):
        assert what in told
    assert not any(rubble(wanted, found).values())


@pytest.mark.parametrize("keep", [False, True])
def test_bucket_of_an_up_that_was_stopped_is_taken_and_removed(aws: Aws, keep: bool) -> None:
    aws.reset()
    wanted = wanted_of(aws, "one", bucket={"name": "one-bucket", "keep": keep})
    aws.client("s3").create_bucket(Bucket="one-bucket")
    found = Account(aws, None, "us-east-1").found(wanted)
    plan = Plan(wanted, found)
    assert plan.problems == []
    assert ("~", "bucket one-bucket") in plan.changes["access"]
    assert [entry["name"] for entry in rubble(wanted, found)["buckets"]] == ([] if keep else ["one-bucket"])


def test_every_error_has_a_next_step() -> None:
    assert hint("something that nobody foresaw").startswith("See the message above, then run the same command again")
    for marks, text in HINTS.items():
        for mark in marks:
            assert hint(f"An error occurred ({mark}) when calling X: made to fail") == text


def test_scaling_is_refused_where_it_would_harm(aws: Aws) -> None:
    aws.reset()
    wanted = wanted_of(aws, "one")
    account = Account(aws, None, "us-east-1")
    assert "ec2-up first" in " ".join(Plan(wanted, account.found(wanted), remove=True).scale_problems())
    make_some(aws, wanted)
    ec2 = aws.client("ec2")
    instance = account.found(wanted)["instances"][0]["InstanceId"]
    tags = {"Name": "one-master-3", "gridstead-group": "master", "gridstead-inventory": "masters"}
    ec2.create_tags(Resources=[instance], Tags=[{"Key": key, "Value": value} for key, value in tags.items()])
    told = Plan(wanted, account.found(wanted), remove=True).scale_problems()
    assert any("one-master-3 would go; masters vote" in problem for problem in told)
    ec2.stop_instances(InstanceIds=[instance])
    told = Plan(wanted, account.found(wanted), remove=True).scale_problems()
    assert any("one-master-3 is stopped, and only a running node can be drained" in problem for problem in told)


def test_only_drained_nodes_go(aws: Aws) -> None:
    aws.reset()
    wanted = wanted_of(aws, "one")
    make_some(aws, wanted)
    account = Account(aws, None, "us-east-1")
    found = account.found(wanted)
    instance = found["instances"][0]["InstanceId"]
    assert Plan(wanted, found).terminate == []
    assert Plan(wanted, found, drained=("i-another",)).terminate == []
    assert Plan(wanted, found, drained=(instance,)).terminate == [instance]
