"""What an account has of a cluster: read with a number of calls that does not depend on the number of nodes."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

from .desired import CLUSTER_TAG, Rule

LIVING = ["pending", "running", "stopping", "stopped", "shutting-down"]
SERVICES = ("sts", "ec2", "iam", "s3", "resourcegroupstaggingapi")
MISSING = {
    "NoSuchEntity",
    "NoSuchBucket",
    "404",
    "NoSuchTagSet",
    "ServerSideEncryptionConfigurationNotFoundError",
    "NoSuchPublicAccessBlockConfiguration",
    "NoSuchLifecycleConfiguration",
}


def code_of(error: Exception) -> str:
    """Return the code of an error of the API; empty for other errors."""
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def tags_of(resource: dict[str, Any], key: str = "Tags") -> dict[str, str]:
    """Return the tags of a resource as a mapping."""
    return {tag["Key"]: tag["Value"] for tag in resource.get(key) or []}


def name_of(resource: dict[str, Any]) -> str:
    """Return the tag Name."""
    return tags_of(resource).get("Name", "")


def rules_of(permissions: list[dict[str, Any]], names: dict[str, str]) -> list[Rule]:
    """Return the rules of a security group, each with one source, groups by their names in `names`."""
    rules = []
    for permission in permissions:
        first, last = int(permission.get("FromPort", -1)), int(permission.get("ToPort", -1))
        sources = [pair["CidrIp"] for pair in permission.get("IpRanges", [])] + [p["CidrIpv6"] for p in permission.get("Ipv6Ranges", [])]
        sources += [names.get(pair["GroupId"], pair["GroupId"]) for pair in permission.get("UserIdGroupPairs", [])]
        sources += [prefix["PrefixListId"] for prefix in permission.get("PrefixListIds", [])]
        rules += [(str(permission["IpProtocol"]), first, last, source) for source in sources]
    return sorted(rules)


class Account:
    """An AWS account in a region, as seen with one session."""

    def __init__(self, session: Any, config: Any, region: str) -> None:
        """Make the clients."""
        self.session, self.region = session, region
        self.clients = {name: session.client(name, region_name=region, config=config) for name in SERVICES}

    def all(self, operation: str, **arguments: Any) -> list[dict[str, Any]]:
        """Return all pages of an EC2 operation that lists one kind of thing."""
        client = self.clients["ec2"]
        if client.can_paginate(operation):
            pages = list(client.get_paginator(operation).paginate(**arguments))
        else:
            pages = [getattr(client, operation)(**arguments)]
        lists = [value for page in pages for key, value in page.items() if isinstance(value, list)]
        return [element for found in lists for element in found]

    def tagged(self, operation: str, cluster: str, vpc: str = "", filters: tuple[dict[str, Any], ...] = ()) -> list[dict[str, Any]]:
        """List what has the cluster's tag or, given its network, what is in that, tagged or not."""
        by = {"Name": "vpc-id", "Values": [vpc]} if vpc else {"Name": f"tag:{CLUSTER_TAG}", "Values": [cluster]}
        return self.all(operation, Filters=[by, *filters])

    def ask(self, service: str, operation: str, **arguments: Any) -> Any:
        """Call an operation; None where what it asks for does not exist."""
        client = self.clients[service]
        try:
            return getattr(client, operation)(**arguments)
        except client.exceptions.ClientError as error:
            if code_of(error) in MISSING:
                return None
            raise

    def identity(self) -> dict[str, str]:
        """Tell whose credentials these are."""
        answer = self.clients["sts"].get_caller_identity()
        return {"account": answer["Account"], "arn": answer["Arn"]}

    def bucket(self, name: str) -> dict[str, Any] | None:
        """Return the state of a bucket; one that others own is `foreign`."""
        client = self.clients["s3"]
        try:
            if not self.ask("s3", "head_bucket", Bucket=name):
                return None
        except client.exceptions.ClientError as error:
            if code_of(error) in ("403", "AccessDenied", "301"):
                return {"foreign": True}
            raise
        place = client.get_bucket_location(Bucket=name).get("LocationConstraint") or "us-east-1"
        if {"EU": "eu-west-1"}.get(place, place) != self.region:
            return {"foreign": True}
        tags = self.ask("s3", "get_bucket_tagging", Bucket=name) or {}
        encryption = self.ask("s3", "get_bucket_encryption", Bucket=name) or {}
        rules = (self.ask("s3", "get_bucket_lifecycle_configuration", Bucket=name) or {}).get("Rules", [])
        block = (self.ask("s3", "get_public_access_block", Bucket=name) or {}).get("PublicAccessBlockConfiguration", {})
        return {
            "foreign": False,
            "tags": tags_of(tags, "TagSet"),
            "versioned": client.get_bucket_versioning(Bucket=name).get("Status") == "Enabled",
            "encrypted": bool(encryption),
            "tidy": any(rule.get("ID") == "gridstead" and rule["Status"] == "Enabled" for rule in rules),
            "private": len(block) == 4 and all(block.values()),
            "objects": len(client.list_object_versions(Bucket=name, MaxKeys=1000).get("Versions", [])),
        }

    def other_buckets(self, cluster: str, name: str) -> dict[str, Any] | None:
        """Return further buckets with the cluster's tag, as one that the file named before; None where one may not look."""
        client = self.clients["resourcegroupstaggingapi"]
        by = {"TagFilters": [{"Key": CLUSTER_TAG, "Values": [cluster]}], "ResourceTypeFilters": ["s3"]}
        try:
            pages = list(client.get_paginator("get_resources").paginate(**by))
        except client.exceptions.ClientError as error:
            if "AccessDenied" in code_of(error):
                return None
            raise
        names = {entry["ResourceARN"].rpartition(":")[2] for page in pages for entry in page["ResourceTagMappingList"]}
        return {other: state for other in sorted(names - {name}) if (state := self.bucket(other)) and not state["foreign"]}

    def role(self, name: str) -> dict[str, Any] | None:
        """Return a role with its policies and whether it has an instance profile."""
        found = self.ask("iam", "get_role", RoleName=name)
        profile = self.ask("iam", "get_instance_profile", InstanceProfileName=name)
        if not found:
            return {"tags": None, "profile": bool(profile)} if profile else None
        policy = self.ask("iam", "get_role_policy", RoleName=name, PolicyName="bucket") or {}
        document = policy.get("PolicyDocument", {})
        if isinstance(document, str):
            document = json.loads(urllib.parse.unquote(document))
        names = self.clients["iam"].list_role_policies(RoleName=name)["PolicyNames"]
        attached = self.clients["iam"].list_attached_role_policies(RoleName=name)["AttachedPolicies"]
        return {
            "tags": tags_of(found["Role"]),
            "policy": document,
            "trust": found["Role"]["AssumeRolePolicyDocument"],
            "inline": [other for other in names if other != "bucket"],
            "others": [other for other in names if other != "bucket"] + [other["PolicyArn"] for other in attached],
            "profile": bool(profile and profile["InstanceProfile"]["Roles"]),
        }

    def found(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Return all that is there of a cluster, by kind."""
        cluster = wanted["tags"][CLUSTER_TAG]
        vpcs = self.tagged("describe_vpcs", cluster)
        state: dict[str, Any] = {"vpcs": vpcs, "vpc": vpcs[0]["VpcId"] if vpcs else ""}
        vpc = state["vpc"]
        in_vpc = {"subnets": "describe_subnets", "route_tables": "describe_route_tables", "groups": "describe_security_groups"}
        in_vpc |= {"endpoints": "describe_vpc_endpoints", "interfaces": "describe_network_interfaces"}
        for kind, operation in in_vpc.items():
            state[kind] = self.tagged(operation, cluster, vpc) if vpc else []
        gateways = self.tagged("describe_internet_gateways", cluster)
        if vpc and not gateways:  # one that got no tag
            gateways = self.all("describe_internet_gateways", Filters=[{"Name": "attachment.vpc-id", "Values": [vpc]}])
        state["internet_gateways"] = sorted(gateways, key=lambda gateway: not gateway.get("Attachments"))
        gateways = self.tagged("describe_nat_gateways", cluster, vpc) if vpc else []
        state["nat_gateways"] = [gateway for gateway in gateways if gateway["State"] in ("pending", "available", "failed")]
        state["addresses"] = self.tagged("describe_addresses", cluster)
        state["volumes"] = self.tagged("describe_volumes", cluster)
        states = ({"Name": "instance-state-name", "Values": LIVING},)
        reservations = self.tagged("describe_instances", cluster, filters=states)
        state["instances"] = [instance for reservation in reservations for instance in reservation["Instances"]]
        key_filter = [{"Name": "key-name", "Values": [wanted["key"]["name"]]}]
        state["keys"] = self.all("describe_key_pairs", Filters=key_filter, IncludePublicKey=True)
        state["role"] = self.role(wanted["role"])
        state["bucket"] = self.bucket(wanted["bucket"]["name"])
        state["other_buckets"] = self.other_buckets(cluster, wanted["bucket"]["name"])
        return state
