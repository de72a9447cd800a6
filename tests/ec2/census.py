"""Everything in the account, by kind: what is told to be gone must be in none of these lists."""

from __future__ import annotations

from typing import Any

from aws import Aws

# kind: client, operation, list in the answer, id
KINDS = {
    "instances": ("ec2", "describe_instances", "Reservations", ""),
    "volumes": ("ec2", "describe_volumes", "Volumes", "VolumeId"),
    "interfaces": ("ec2", "describe_network_interfaces", "NetworkInterfaces", "NetworkInterfaceId"),
    "security groups": ("ec2", "describe_security_groups", "SecurityGroups", "GroupId"),
    "subnets": ("ec2", "describe_subnets", "Subnets", "SubnetId"),
    "route tables": ("ec2", "describe_route_tables", "RouteTables", "RouteTableId"),
    "internet gateways": ("ec2", "describe_internet_gateways", "InternetGateways", "InternetGatewayId"),
    "NAT gateways": ("ec2", "describe_nat_gateways", "NatGateways", "NatGatewayId"),
    "addresses": ("ec2", "describe_addresses", "Addresses", "AllocationId"),
    "endpoints": ("ec2", "describe_vpc_endpoints", "VpcEndpoints", "VpcEndpointId"),
    "networks": ("ec2", "describe_vpcs", "Vpcs", "VpcId"),
    "key pairs": ("ec2", "describe_key_pairs", "KeyPairs", "KeyName"),
    "launch templates": ("ec2", "describe_launch_templates", "LaunchTemplates", "LaunchTemplateName"),
    "roles": ("iam", "list_roles", "Roles", "RoleName"),
    "policies": ("iam", "list_policies", "Policies", "Arn"),
    "instance profiles": ("iam", "list_instance_profiles", "InstanceProfiles", "InstanceProfileName"),
    "buckets": ("s3", "list_buckets", "Buckets", "Name"),
}


def census(aws: Aws) -> dict[str, dict[str, Any]]:
    """Return all that lives, by kind and id, in every detail."""
    found: dict[str, dict[str, Any]] = {}
    for kind, (service, operation, key, identity) in KINDS.items():
        arguments = {"Scope": "Local"} if operation == "list_policies" else {}
        answer = getattr(aws.client(service), operation)(**arguments)[key]
        if kind == "instances":
            answer = [instance for reservation in answer for instance in reservation["Instances"]]
            answer = [instance for instance in answer if instance["State"]["Name"] != "terminated"]
            identity = "InstanceId"
        if kind == "NAT gateways":
            answer = [gateway for gateway in answer if gateway["State"] != "deleted"]
        if kind == "endpoints":
            answer = [endpoint for endpoint in answer if endpoint["State"] != "deleted"]
        found[kind] = {resource[identity]: resource for resource in answer}
    return found


def names(found: dict[str, dict[str, Any]]) -> dict[str, set[str]]:
    """Return only the ids."""
    return {kind: set(resources) for kind, resources in found.items()}


def nodes(aws: Aws, cluster: str, state: str = "running") -> dict[str, dict[str, Any]]:
    """Return the instances of a cluster in a state, by name."""
    filters = [{"Name": "instance-state-name", "Values": [state]}, {"Name": "tag:gridstead-cluster", "Values": [cluster]}]
    reservations = aws.client("ec2").describe_instances(Filters=filters)["Reservations"]
    return {tag["Value"]: i for r in reservations for i in r["Instances"] for tag in i["Tags"] if tag["Key"] == "Name"}
