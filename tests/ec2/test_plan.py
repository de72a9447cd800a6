"""What the plan sees: its own cluster whole, with or without tags, and nothing of another one. No playbook runs here."""

from __future__ import annotations

import json
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


def test_zones_come_and_go_at_the_end_of_the_list_only(aws: Aws) -> None:
    aws.reset()
    wanted = wanted_of(aws, "one", zones=["us-east-1a", "us-east-1b"])
    make_some(aws, wanted)
    ec2, account = aws.client("ec2"), Account(aws, None, "us-east-1")
    vpc = account.found(wanted)["vpc"]
    for subnet in wanted["subnets"][1:]:
        tags = [{"ResourceType": "subnet", "Tags": [{"Key": "Name", "Value": subnet["name"]}]}]
        ec2.create_subnet(VpcId=vpc, CidrBlock=subnet["cidr"], AvailabilityZone=subnet["zone"], TagSpecifications=tags)
    for zones, problems in ((["us-east-1a", "us-east-1b", "us-east-1c"], 0), (["us-east-1a"], 0)):
        changed = wanted_of(aws, "one", zones=zones)
        assert len([text for text in Plan(changed, account.found(changed)).problems if "zones" in text]) == problems
    for zones in (["us-east-1a", "us-east-1c", "us-east-1b"], ["us-east-1b"]):
        changed = wanted_of(aws, "one", zones=zones)
        assert any("at the end of the list only" in text for text in Plan(changed, account.found(changed)).problems)


def test_what_the_file_no_longer_has_of_the_network_goes_and_is_told(aws: Aws) -> None:
    aws.reset()
    wanted = wanted_of(aws, "one")
    make_some(aws, wanted)
    account = Account(aws, None, "us-east-1")
    without = wanted_of(aws, "one", internet=False)
    plan = Plan(without, account.found(without))
    assert len(plan.drop_nats) == 1 and ("-", f"NAT gateway {plan.drop_nats[0]}") in plan.changes["network"]
    assert all(("-", f"public address {address}") in plan.changes["network"] for address in plan.drop_addresses)
    assert Plan(wanted, account.found(wanted)).drop_nats == []


def test_what_others_made_in_the_network_is_not_removed_and_what_they_opened_is_seen(aws: Aws) -> None:
    aws.reset()
    wanted = wanted_of(aws, "one")
    make_some(aws, wanted)  # with a security group that has no tag
    account, ec2, iam = Account(aws, None, "us-east-1"), aws.client("ec2"), aws.client("iam")
    assert Plan(wanted, account.found(wanted)).drop_groups == []
    loose = ec2.create_internet_gateway(TagSpecifications=[{"ResourceType": "internet-gateway", "Tags": [
        {"Key": key, "Value": value} for key, value in wanted["tags"].items()]}])["InternetGateway"]["InternetGatewayId"]  # fmt: skip
    assert Plan(wanted, account.found(wanted)).ids["internet_gateway"] == loose  # the one to attach; the other has no tag
    role = wanted["role"]
    iam.update_assume_role_policy(RoleName=role, PolicyDocument=json.dumps(wanted["trust"]))
    iam.create_instance_profile(InstanceProfileName=role)
    iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
    iam.put_role_policy(RoleName=role, PolicyName="bucket", PolicyDocument=json.dumps(wanted["policy"]))
    assert "IAM role and instance profile" not in Plan(wanted, account.found(wanted)).kinds
    iam.put_role_policy(RoleName=role, PolicyName="more", PolicyDocument=json.dumps(wanted["policy"]))
    assert account.found(wanted)["role"]["inline"] == ["more"]
    assert "IAM role and instance profile" in Plan(wanted, account.found(wanted)).kinds
    iam.delete_role_policy(RoleName=role, PolicyName="more")
    anyone = json.loads(json.dumps(wanted["trust"]).replace('{"Service": "ec2.amazonaws.com"}', '{"AWS": "*"}'))
    iam.update_assume_role_policy(RoleName=role, PolicyDocument=json.dumps(anyone))
    assert "IAM role and instance profile" in Plan(wanted, account.found(wanted)).kinds


def test_a_bucket_in_another_region_is_not_this_clusters(aws: Aws) -> None:
    aws.reset()
    wanted = wanted_of(aws, "one", bucket={"name": "one-bucket"}, region="eu-west-1", zones=["eu-west-1a"])
    aws.client("s3").create_bucket(Bucket="one-bucket")
    aws.client("s3").put_bucket_tagging(
        Bucket="one-bucket", Tagging={"TagSet": [{"Key": key, "Value": value} for key, value in wanted["tags"].items()]}
    )
    found = Account(aws, None, "eu-west-1").found(wanted)
    assert any("in another region" in problem for problem in Plan(wanted, found).problems)
    assert rubble(wanted, found)["buckets"] == []


def test_nodes_that_are_stopping_or_have_other_volumes_are_told(aws: Aws) -> None:
    aws.reset()
    wanted = wanted_of(aws, "one")
    make_some(aws, wanted)
    account, ec2 = Account(aws, None, "us-east-1"), aws.client("ec2")
    node = wanted["nodes"][1]
    instance = account.found(wanted)["instances"][0]["InstanceId"]
    ec2.create_tags(Resources=[instance], Tags=[{"Key": "Name", "Value": node["name"]}])
    assert any("GiB of volumes" in note for note in Plan(wanted, account.found(wanted)).notes)
    found = account.found(wanted)
    found["instances"][0]["State"]["Name"] = "stopping"
    assert any("is stopping" in problem for problem in Plan(wanted, found).problems)


@pytest.mark.parametrize("keep", [False, True])
def test_a_bucket_of_which_the_file_has_forgotten_the_name_is_told_and_goes(aws: Aws, keep: bool) -> None:
    aws.reset()
    make_some(aws, wanted_of(aws, "one", bucket={"name": "one-before"}))
    make_some(aws, wanted_of(aws, "two", bucket={"name": "two-bucket"}))
    wanted = wanted_of(aws, "one", bucket={"name": "one-now", "keep": keep})
    found = Account(aws, None, "us-east-1").found(wanted)
    assert any("the bucket one-before is this cluster's as well" in note for note in Plan(wanted, found).notes)
    assert [entry["name"] for entry in rubble(wanted, found)["buckets"]] == ([] if keep else ["one-before"])
