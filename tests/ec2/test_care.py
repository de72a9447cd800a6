"""Day by day: what up, stop, start and down do to a cluster that is there, a step a test and in this order. Takes minutes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from aws import ROOT, Aws
from census import census, names, nodes

pytestmark = [pytest.mark.long, pytest.mark.timeout(280)]


@pytest.fixture
def cluster(aws: Aws) -> Path:
    """The cluster file."""
    return aws.cluster("care")


def test_nothing_is_made_unasked(aws: Aws, cluster: Path) -> None:
    before = names(census(aws))
    unasked = aws.play("up", cluster, confirm="another")
    assert unasked.code != 0
    assert "Nothing was changed. To go on without being asked, set CONFIRM=care" in unasked.output
    assert not unasked.writes
    assert names(census(aws)) == before


def test_up(aws: Aws, cluster: Path) -> None:
    aws.up(cluster)
    assert len(nodes(aws, "care")) == 4


def test_up_corrects_what_somebody_changed(aws: Aws, cluster: Path) -> None:
    ec2 = aws.client("ec2")
    group = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["care-worker"]}])["SecurityGroups"][0]["GroupId"]
    everyone = [{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=everyone)
    plan = aws.play("plan", cluster)
    assert "~ security group care-worker" in plan.output
    assert not plan.writes
    run = aws.up(cluster)
    assert set(run.writes) == {"RevokeSecurityGroupIngress"}


def test_rules_follow_the_ports_of_the_inventory(aws: Aws, cluster: Path, tmp_path: Path) -> None:
    inventory = tmp_path / "inventory"
    shutil.copytree(ROOT / "inventories/ec2", inventory)
    (inventory / "group_vars/all/mine.yml").write_text("hdfs_namenode_rpc_port: 7777\n")
    plan = aws.play("plan", cluster, inventory=inventory / "control.yml")
    assert plan.code == 0, plan.output
    assert "~ security group care-master" in plan.output
    assert "~ security group care-worker" not in plan.output


def test_stop_and_start_keep_the_nodes(aws: Aws, cluster: Path) -> None:
    before = nodes(aws, "care")
    assert aws.play("stop", cluster).code == 0
    assert not nodes(aws, "care")
    assert set(nodes(aws, "care", "stopped")) == set(before)
    assert aws.play("start", cluster).code == 0
    after = nodes(aws, "care")
    identity = {name: (instance["InstanceId"], instance["PrivateIpAddress"]) for name, instance in before.items()}
    assert {name: (instance["InstanceId"], instance["PrivateIpAddress"]) for name, instance in after.items()} == identity
    assert after["care-bastion"]["PublicIpAddress"] == before["care-bastion"]["PublicIpAddress"]


def test_nodes_that_left_the_file_stay_until_told(aws: Aws, cluster: Path) -> None:
    content = yaml.safe_load(cluster.read_text())
    content["groups"]["worker"]["count"] = 1
    cluster.write_text(yaml.safe_dump(content))
    plan = aws.play("plan", cluster)
    assert "Will be destroyed: nothing" in plan.output
    assert plan.output.count("is no longer in the file: drain it") == 1
    removed = aws.up(cluster, ec2_remove=True)
    assert set(removed.writes) == {"TerminateInstances"}
    assert set(nodes(aws, "care")) == {"care-bastion", "care-master-1", "care-worker-1"}


def test_down_wants_the_name(aws: Aws, cluster: Path) -> None:
    run = aws.play("down", cluster, confirm="yes")
    assert run.code != 0
    assert "Nothing was changed" in run.output
    assert not run.writes


def test_down(aws: Aws, cluster: Path) -> None:
    aws.down(cluster)
    assert not nodes(aws, "care")
