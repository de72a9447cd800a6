#!/usr/bin/python
# Launch the nodes that a plan of gridstead_ec2 found missing.
"""Ansible module: launch instances, each with its tags from the first moment; one that fails does not keep the others from it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gridstead_ec2_nodes
short_description: Launch the nodes that are missing
description:
  - One call a node. The tags are given in that call, so that nothing is left untagged whatever happens then.
  - Beside M(amazon.aws.ec2_instance), which cannot ask for spot, and which tries again for minutes where AWS has no instance free.
options:
  region: {description: The region., type: str, required: true}
  nodes: {description: C(launch) of M(gridstead_ec2)., type: list, elements: dict, required: true}
  image: {description: The image., type: str, required: true}
  key: {description: Name of the key pair., type: str, required: true, no_log: false}
  profile: {description: Name of the instance profile; the bastion gets none., type: str, required: true}
  subnets: {description: Ids of the subnets by name., type: dict, required: true}
  groups: {description: Ids of the security groups by name., type: dict, required: true}
  user_data: {description: Script of the first boot of nodes that have volumes beside the root's., type: str, default: ""}
author: [Gridstead]
"""

EXAMPLES = r"""
- name: New nodes
  gridstead_ec2_nodes:
    region: us-east-1
    nodes: "{{ ec2_plan.launch }}"
    image: ami-0123456789abcdef0
    key: gridstead-small
    profile: gridstead-small-us-east-1
    subnets: "{{ ec2_plan.ids.subnets }}"
    groups: "{{ ec2_plan.ids.groups }}"
"""

RETURN = r"""
launched: {description: Ids of the new instances by name of the node., type: dict, returned: always}
"""

import time
import uuid

from ansible.module_utils.basic import AnsibleModule

try:
    import boto3
    import botocore.config
    import botocore.exceptions
except ImportError:  # told below
    boto3 = None


BASTION = "bastion"
AGAIN = ("RequestLimitExceeded", "Throttling", "Unavailable", "InternalError", "iamInstanceProfile")


def request(node, parameters):
    """Return the arguments of RunInstances for a node."""
    tags = [{"Key": key, "Value": value} for key, value in sorted(node["tags"].items())]
    types = ["instance", "volume", "network-interface"] + (["spot-instances-request"] if node["spot"] else [])
    arguments = {
        "ImageId": parameters["image"],
        "InstanceType": node["type"],
        "ClientToken": str(uuid.uuid4()),  # a call whose answer was lost makes no second node
        "MinCount": 1,
        "MaxCount": 1,
        "KeyName": parameters["key"],
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1},
        "NetworkInterfaces": [
            {
                "DeviceIndex": 0,
                "SubnetId": parameters["subnets"][node["subnet"]],
                "Groups": [parameters["groups"][node["security_group"]]],
                "PrivateIpAddress": node["address"],
                "AssociatePublicIpAddress": False,
                "DeleteOnTermination": True,
            }
        ],
        "BlockDeviceMappings": [
            {
                "DeviceName": volume["device"],
                "Ebs": {"VolumeSize": volume["size"], "VolumeType": volume["type"], "Encrypted": True, "DeleteOnTermination": True},
            }
            for volume in node["volumes"]
        ],
        "TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in types],
    }
    if node["group"] != BASTION:
        arguments["IamInstanceProfile"] = {"Name": parameters["profile"]}
    if node["spot"]:
        arguments["InstanceMarketOptions"] = {"MarketType": "spot"}
    if len(node["volumes"]) > 1 and parameters["user_data"]:
        arguments["UserData"] = parameters["user_data"]
    return arguments


def launch(client, arguments, tries=12):
    """Launch one instance; try again where that helps: after too many calls, or with an instance profile that was made a moment ago."""
    while True:
        try:
            return client.run_instances(**arguments)["Instances"][0]["InstanceId"]
        except botocore.exceptions.ClientError as error:
            tries -= 1
            if not tries or not any(mark in str(error) for mark in AGAIN):
                raise
            time.sleep(5)


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "region": {"type": "str", "required": True},
            "nodes": {"type": "list", "elements": "dict", "required": True},
            "image": {"type": "str", "required": True},
            "key": {"type": "str", "required": True, "no_log": False},
            "profile": {"type": "str", "required": True},
            "subnets": {"type": "dict", "required": True},
            "groups": {"type": "dict", "required": True},
            "user_data": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    if boto3 is None:
        module.fail_json(msg="boto3 is missing. Next: make bootstrap")
    nodes = module.params["nodes"]
    if module.check_mode:
        module.exit_json(changed=bool(nodes), launched={})
    config = botocore.config.Config(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=60)
    launched, failed, bastion = {}, [], ""
    try:
        client = boto3.Session().client("ec2", region_name=module.params["region"], config=config)
        for node in sorted(nodes, key=lambda node: node["group"] != BASTION):  # the others have its id in a tag
            if bastion:
                node["tags"]["gridstead-bastion-id"] = bastion
            try:
                launched[node["name"]] = launch(client, request(node, module.params))
                bastion = launched[node["name"]] if node["group"] == BASTION else bastion
            except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
                failed.append(f"{node['name']}, {node['type']} in {node['zone']}: {error}")
    except botocore.exceptions.BotoCoreError as error:
        failed.append(str(error))
    if failed:
        module.fail_json(msg="\n".join(failed), changed=bool(launched), launched=launched)
    module.exit_json(changed=bool(launched), launched=launched)


if __name__ == "__main__":
    main()
