"""Two clusters in one account do not touch each other; errors at further places leave nothing behind. Takes minutes."""

from __future__ import annotations

import pytest

from aws import ONE_NODE, Aws, Fault
from census import census, names

pytestmark = [pytest.mark.long, pytest.mark.timeout(580)]


@pytest.fixture
def empty(server: Aws) -> Aws:
    """An account with nothing in it."""
    server.reset()
    return server


def test_two_clusters_do_not_touch_each_other(empty: Aws) -> None:
    before = names(census(empty))
    first, second = empty.cluster("first", **ONE_NODE), empty.cluster("second", **ONE_NODE)
    empty.up(first)
    with_first = census(empty)
    empty.up(second)
    with_both = census(empty)
    for kind, resources in with_first.items():
        assert {identity: with_both[kind][identity] for identity in resources} == resources, kind
    empty.down(second)
    assert census(empty) == with_first
    empty.down(first)
    assert names(census(empty)) == before


@pytest.mark.parametrize(
    ("action", "code", "said"),
    [
        ("CreateTags", "ExpiredToken", "The credentials are not valid, or no longer"),
        ("AssociateRouteTable", "UnauthorizedOperation", "These credentials may not do this"),
        ("PutRolePolicy", "AccessDenied", "These credentials may not do this"),
        ("PUT versioning", "AccessDenied", "These credentials may not do this"),
        ("AllocateAddress", "AddressLimitExceeded", "A quota of the account is used up"),
        ("PUT", "BucketAlreadyExists", "The name is taken"),
        ("RunInstances", "VcpuLimitExceeded", "A quota of the account is used up"),
    ],
)
def test_down_after_an_error_in_the_middle_leaves_nothing(empty: Aws, action: str, code: str, said: str) -> None:
    before = names(census(empty))
    cluster = empty.cluster("broken", **ONE_NODE)
    empty.faults.append(Fault(action, code, 403 if code == "AccessDenied" else 400))
    run = empty.play("up", cluster, confirm="broken")
    assert run.code != 0
    assert code in run.output
    assert said in " ".join(run.output.split())
    empty.faults.clear()
    empty.down(cluster)
    assert names(census(empty)) == before


@pytest.mark.parametrize("taken", ["key", "role"])
def test_names_that_others_have_stop_up_and_survive_down(empty: Aws, taken: str) -> None:
    if taken == "key":
        empty.client("ec2").create_key_pair(KeyName="gridstead-broken")
    else:
        empty.client("iam").create_role(RoleName="gridstead-broken-us-east-1", AssumeRolePolicyDocument="{}")
    before = names(census(empty))
    cluster = empty.cluster("broken", **ONE_NODE)
    run = empty.play("up", cluster, confirm="broken")
    assert run.code != 0
    assert "is there and not this cluster's" in " ".join(run.output.split())
    assert not run.writes
    empty.down(cluster)
    assert names(census(empty)) == before


def test_a_bucket_that_is_to_stay_stays_and_is_taken_again(empty: Aws) -> None:
    cluster = empty.cluster("keeper", **ONE_NODE, bucket={"name": "keeper-of-a-test", "keep": True})
    empty.up(cluster)
    empty.client("s3").put_object(Bucket="keeper-of-a-test", Key="events/1", Body=b"1")
    run = empty.down(cluster)
    assert "Stays: bucket keeper-of-a-test" in run.output
    left = names(census(empty))
    assert left["buckets"] == {"keeper-of-a-test"}
    assert not left["instances"]
    plan = empty.play("plan", cluster)
    assert plan.code == 0
    assert "bucket keeper-of-a-test" not in plan.output


def test_spot_nodes_are_spot_from_the_first_call(empty: Aws) -> None:
    groups = {
        "master": {"inventory": ["masters"], "type": "m5.large", "count": 1},
        "worker": {"inventory": ["workers"], "type": "m5.large", "count": 2, "spot": 0.5},
    }
    cluster = empty.cluster("spot", zones=["us-east-1a"], internet=False, groups=groups)
    empty.up(cluster)
    reservations = empty.client("ec2").describe_instances()["Reservations"]
    instances = {tag["Value"]: i for r in reservations for i in r["Instances"] for tag in i["Tags"] if tag["Key"] == "Name"}
    assert [name for name, instance in instances.items() if instance.get("InstanceLifecycle") == "spot"] == ["spot-worker-2"]
    told = {name: variables["gridstead_spot"] for name, variables in empty.inventory(cluster)["_meta"]["hostvars"].items()}
    assert told == {"spot-master-1": False, "spot-worker-1": False, "spot-worker-2": True}
    assert empty.up(cluster).changed == 0
    empty.client("ec2").terminate_instances(InstanceIds=[instances["spot-worker-2"]["InstanceId"]])
    assert dict(empty.up(cluster).writes) == {"RunInstances": 1}
    assert empty.inventory(cluster)["_meta"]["hostvars"]["spot-worker-2"]["gridstead_spot"], "what was taken away is made anew as it was"
