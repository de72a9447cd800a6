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


def test_smoke_wants_a_whole_cluster(aws: Aws, cluster: Path) -> None:
    run = aws.play("smoke", cluster, inventory=ROOT / "inventories/ec2")
    assert run.code != 0
    assert "The cluster is not as the cluster file says; ec2-up makes it so" in " ".join(run.output.split())


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


def test_scale_out_makes_the_nodes_and_writes_the_count(aws: Aws, cluster: Path) -> None:
    before, text = nodes(aws, "care"), cluster.read_text()
    run = aws.play("scale", cluster, confirm="care", ec2_group="workers", ec2_count="4")
    assert run.code == 0, run.output
    assert "Will be created: 2" in run.output
    assert "Price of the whole cluster" in run.output
    assert dict(run.writes) == {"RunInstances": 2}
    after = nodes(aws, "care")
    assert set(after) - set(before) == {"care-worker-3", "care-worker-4"}
    assert {name: after[name] for name in before} == before
    head, _, tail = text.rpartition("count: 2")
    assert cluster.read_text() == f"{head}count: 4{tail}"
    assert aws.play("scale", cluster, confirm="care").changed == 0


def test_scale_in_is_refused_where_nothing_can_drain(aws: Aws, cluster: Path) -> None:
    scaled_to(cluster, 4)
    text = cluster.read_text()
    run = aws.play("scale", cluster, confirm="care", ec2_group="worker", ec2_count="2", ec2_drain_playbook="/nowhere/drain-node.yml")
    assert run.code != 0
    assert "Nothing was changed: care-worker-3, care-worker-4 would be terminated" in " ".join(run.output.split())
    assert not run.writes
    assert cluster.read_text() == text


@pytest.fixture
def drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Instead of drain-node.yml, since there is no host to log in to: notes the node and who is in the inventory then; one may refuse."""
    playbook = """
    - hosts: localhost
      gather_facts: false
      tasks:
        - ansible.builtin.lineinfile:
            path: "{{ lookup('ansible.builtin.env', 'DRAINED') }}"
            line: >-
              {{ node }} of {{ groups['workers'] | sort | join(' ') }}, {{ lookup('ansible.builtin.env', 'CONFIRM') }}, {{ leaving | sort }}
            create: true
            mode: "600"
        - ansible.builtin.fail: {msg: it would lack copies}
          when: node in lookup('ansible.builtin.env', 'REFUSED').split()
    """
    monkeypatch.setenv("DRAINED", str(tmp_path / "drained"))
    (tmp_path / "drain.yml").write_text(playbook)
    return tmp_path / "drain.yml"


def scaled_to(cluster: Path, count: int) -> None:
    """Write the count of workers into the file."""
    content = yaml.safe_load(cluster.read_text())
    content["groups"]["worker"]["count"] = count
    cluster.write_text(yaml.safe_dump(content))


def test_scale_in_ends_no_node_that_was_not_drained(aws: Aws, cluster: Path, drain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaled_to(cluster, 2)
    plan = aws.play("plan", cluster)
    assert "Will be destroyed: nothing" in plan.output
    assert " ".join(plan.output.split()).count("is no longer in the file: ec2-scale drains and terminates it") == 2
    monkeypatch.setenv("REFUSED", "care-worker-3 care-worker-4")
    run = aws.play("scale", cluster, confirm="care", ec2_drain_playbook=str(drain))
    assert run.code != 0
    assert "it would lack copies" in run.output
    assert not run.writes
    assert len((drain.parent / "drained").read_text().splitlines()) == 1


def test_scale_in_drains_then_terminates(aws: Aws, cluster: Path, drain: Path) -> None:
    scaled_to(cluster, 2)
    run = aws.play("scale", cluster, confirm="care", ec2_drain_playbook=str(drain))
    assert run.code == 0, run.output
    assert dict(run.writes) == {"TerminateInstances": 2}
    assert set(nodes(aws, "care")) == {"care-bastion", "care-master-1", "care-worker-1", "care-worker-2"}
    of = "of care-worker-1 care-worker-2 care-worker-3 care-worker-4"
    drained = (drain.parent / "drained").read_text().splitlines()
    together = ["care-worker-3", "care-worker-4"]
    assert sorted(drained) == [f"{name} {of}, {name}, {together}" for name in together]


def test_up_ends_undrained_nodes_only_when_told(aws: Aws, cluster: Path) -> None:
    scaled_to(cluster, 1)
    assert not aws.up(cluster).writes
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
