#!/usr/bin/python
# Read a cluster file and an AWS account, and return the difference; changes nothing.
"""Ansible module: what `ec2-up` or `ec2-down` has to do, in words and as data for the amazon.aws modules."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gridstead_ec2
short_description: What a cluster file asks for, what the account has, and the difference
description:
  - Validates the cluster file and names all faults at once, then reads the account. It changes nothing itself.
  - The number of calls does not depend on the number of nodes (a page of a listing has 1000).
options:
  cluster_file: {description: The cluster file., type: path, required: true}
  inventory: {description: Groups that the inventory may have., type: list, elements: str, required: true}
  components: {description: Group and ports of each component., type: dict, required: true}
  image: {description: Owner and name of the image that is taken where the file names none., type: dict, required: true}
  prices: {description: Table of prices for where the price API does not answer., type: dict, required: true}
  goal:
    description:
      - Whether the plan is for having the cluster, for having another number of nodes, or for having nothing of it.
      - With C(scale) nodes that the file no longer has go, and what else differs stands in the way.
    type: str
    choices: [up, scale, down]
    default: up
  checks: {description: "Whether to look up image, types, quotas and prices too.", type: bool, default: true}
  remove: {description: Whether nodes that the file no longer has are terminated., type: bool, default: false}
  drained: {description: Ids of nodes that are terminated if the file no longer has them., type: list, elements: str, default: []}
  group: {description: "With the goal C(scale), a group whose count is to be another than the file's.", type: str, default: ""}
  count: {description: "That count, a whole number.", type: str, default: ""}
author: [Gridstead]
"""

EXAMPLES = r"""
- name: Plan
  gridstead_ec2:
    cluster_file: clusters/small.yml
    inventory: [masters, workers]
    components: {}
    image: {owner: "136693071363", name: debian-12-amd64-*}
    prices: {date: 2026-01-01, hours: 730, regions: {}}
"""

RETURN = r"""
cluster: {description: The cluster file with its defaults., type: dict, returned: always}
wanted: {description: What the file asks for., type: dict, returned: always}
ids: {description: Ids of what is there by name., type: dict, returned: up}
stages: {description: Stages that have something to do., type: list, returned: up}
kinds: {description: Kinds of what differs., type: list, returned: up}
text: {description: The plan in words., type: list, returned: always}
problems: {description: What stands in the way., type: list, returned: always}
account: {description: Number of the account., type: str, returned: always}
text_of_file: {description: The cluster file with the count that was asked for., type: str, returned: always}
leaving: {description: Nodes that the file no longer has., type: list, returned: up}
partition: {description: "The partition of AWS, the second part of its ARNs.", type: str, returned: always}
settled: {description: Whether there is nothing left but what follows when all nodes run., type: bool, returned: always}
done: {description: Whether there is nothing to do and to wait for., type: bool, returned: always}
rubble: {description: What down removes by kind., type: dict, returned: down}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.gridstead_ec2 import checks, errors
from ansible.module_utils.gridstead_ec2.account import Account
from ansible.module_utils.gridstead_ec2.cluster import ClusterError, parse, scaled, text_of
from ansible.module_utils.gridstead_ec2.desired import desired
from ansible.module_utils.gridstead_ec2.plan import BASTION_WAITS, OTHER_TAGS, Plan, rubble, rubble_lines

try:
    import boto3
    import botocore.config
    import botocore.exceptions
except ImportError:  # told below
    boto3 = None


def up(account, cluster, wanted, found, parameters):
    """Return the plan for having the cluster."""
    scale = parameters["goal"] == "scale"
    plan = Plan(wanted, found, remove=parameters["remove"] or scale, drained=tuple(parameters["drained"]))
    plan.problems += plan.scale_problems() if scale else []
    lines = plan.lines()
    image = cluster["image"]
    if parameters["checks"]:
        result = checks.all_checks(account, cluster, wanted, plan.launch, parameters["image"], parameters["prices"])
        image = result["image"]
        plan.problems += result["problems"]
        lines += result["lines"]
    stages = plan.stages()
    running = [i for i in found["instances"] if i["State"]["Name"] in ("pending", "running")]
    return {
        "ids": plan.ids,
        "stages": stages,
        "kinds": plan.kinds,
        "text": lines,
        "problems": plan.problems,
        "done": not stages and not plan.busy,
        "settled": not plan.busy and all(
            (stage, sign) == ("access", "-") or text.endswith((BASTION_WAITS, OTHER_TAGS))
            for stage in stages
            for sign, text in plan.changes[stage]
        ),
        "bastion_waits": ("~", BASTION_WAITS) in plan.changes["nodes"],
        "running": [i["InstanceId"] for i in running if i.get("InstanceLifecycle") != "spot"],
        "running_spot": [i["InstanceId"] for i in running if i.get("InstanceLifecycle") == "spot"],
        "image": image,
        "regroup": plan.regroup,
        "launch": plan.launch,
        "start": plan.start,
        "retag": plan.retag,
        "leaving": plan.leaving,
        "terminate": plan.terminate,
        "drop_groups": plan.drop_groups,
        "drop_nats": plan.drop_nats,
        "drop_addresses": plan.drop_addresses,
        "inline": (found["role"] or {}).get("inline", []),
        "halted": plan.start + [node["id"] for node in plan.leaving if node["state"] == "stopped"],
    }


def down(wanted, found):
    """Return the plan for having nothing of the cluster."""
    parts = rubble(wanted, found)
    lines = rubble_lines(parts)
    bucket = found["bucket"]
    if bucket and not parts["buckets"]:
        lines.append(f"Stays: bucket {wanted['bucket']['name']}")
    return {"rubble": parts, "text": lines, "problems": [], "done": not any(parts.values()), "settled": not any(parts.values())}


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "cluster_file": {"type": "path", "required": True},
            "inventory": {"type": "list", "elements": "str", "required": True},
            "components": {"type": "dict", "required": True},
            "image": {"type": "dict", "required": True},
            "prices": {"type": "dict", "required": True},
            "goal": {"type": "str", "choices": ["up", "scale", "down"], "default": "up"},
            "checks": {"type": "bool", "default": True},
            "remove": {"type": "bool", "default": False},
            "drained": {"type": "list", "elements": "str", "default": []},
            "group": {"type": "str", "default": ""},
            "count": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    if boto3 is None:
        module.fail_json(msg="boto3 is missing. Next: make bootstrap")
    path, inventory, goal = module.params["cluster_file"], module.params["inventory"], module.params["goal"]
    try:
        text = text_of(path)
        if goal == "scale" and (module.params["group"] or module.params["count"]):
            text = scaled(path, text, inventory, module.params["group"], module.params["count"])
        cluster = parse(path, text, inventory)
    except ClusterError as error:
        module.fail_json(msg=str(error), faults=error.errors)
    config = botocore.config.Config(retries={"mode": "standard", "max_attempts": 8}, connect_timeout=10, read_timeout=60)
    try:
        account = Account(boto3.Session(), config, cluster["region"])
        who = account.identity()
        wanted = desired(cluster, module.params["components"], who["account"])
        found = account.found(wanted)
        result = down(wanted, found) if goal == "down" else up(account, cluster, wanted, found, module.params)
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        module.fail_json(msg=f"AWS said: {error}\n{errors.hint(str(error))}")
    head = [f"Cluster {cluster['name']} in the account {who['account']}, region {cluster['region']}, as {who['arn']}"]
    head.append(f"One way in: SSH to the bastion, from {', '.join(cluster['access'])}")
    result["text"] = head + result["text"]
    account_facts = {"account": who["account"], "partition": who["arn"].split(":")[1]}
    result["text_of_file"] = text
    module.exit_json(changed=False, cluster=cluster, wanted=wanted, **account_facts, **result)


if __name__ == "__main__":
    main()
