"""What a cluster file asks for, as plain data: names, networks, rules, nodes. Nothing here talks to AWS."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

CLUSTER_TAG = "gridstead-cluster"
BASTION = "bastion"
ANYWHERE = "0.0.0.0/0"
Rule = tuple[str, int, int, str]  # protocol, first port, last port, network or name of a group
GROUP_RULES = 60  # quota of rules a security group and direction


def members(component: str, placed_on: str, cluster: dict[str, Any]) -> list[str]:
    """Return the file's groups whose nodes run a component: those that name it, else those of its default group."""
    named = [group["name"] for group in cluster["groups"] if component in group["inventory"]]
    return named or [group["name"] for group in cluster["groups"] if placed_on in group["inventory"]]


def merged(rules: set[Rule]) -> list[Rule]:
    """Join rules of neighbouring ports with the same protocol and source."""
    result: list[Rule] = []
    for protocol, source, first, last in sorted((rule[0], rule[3], rule[1], rule[2]) for rule in rules):
        if result and result[-1][0] == protocol and result[-1][3] == source and first <= result[-1][2] + 1:
            result[-1] = (protocol, result[-1][1], max(last, result[-1][2]), source)
        else:
            result.append((protocol, first, last, source))
    return result


def rules_in(cluster: dict[str, Any], components: dict[str, Any]) -> dict[str, list[Rule]]:
    """Return for each group who may reach which of its ports: what the components that it runs serve to those that use them."""
    rules: dict[str, set[Rule]] = {group["name"]: {("tcp", 22, 22, BASTION)} for group in cluster["groups"]}
    names = list(rules)
    for component, entry in components.items():
        for port in entry["ports"]:
            first, last = port.get("range") or (port["port"], port["port"])
            sources: list[str] = []
            for user in port["from"]:
                if user == "cluster":
                    sources += names
                elif user == "producers":
                    sources += cluster["producers"]
                else:
                    sources += members(user, components[user]["group"], cluster)
            for group in members(component, entry["group"], cluster):
                rules[group] |= {(port.get("proto", "tcp"), int(first), int(last), source) for source in sources}
    rules[BASTION] = {("tcp", 22, 22, network) for network in cluster["access"]}
    return {group: merged(found) for group, found in rules.items()}


def rules_out(cluster: dict[str, Any], group: str) -> list[Rule]:
    """Return whom a group may reach: the cluster (the bastion only its SSH), and the web for packages and for S3."""
    inside = ("tcp", 22, 22, cluster["network"]) if group == BASTION else ("-1", -1, -1, cluster["network"])
    return merged({inside, ("tcp", 80, 80, ANYWHERE), ("tcp", 443, 443, ANYWHERE)})


def policy_of(bucket: str) -> dict[str, Any]:
    """Return what the nodes may do: use their bucket."""
    arn = f"arn:aws:s3:::{bucket}"
    of_bucket = ["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketMultipartUploads"]
    of_objects = ["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:ListMultipartUploadParts", "s3:PutObject"]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": of_bucket, "Resource": [arn]},
            {"Effect": "Allow", "Action": of_objects, "Resource": [f"{arn}/*"]},
        ],
    }


def subnets_of(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """Cut the network into eight: one public part with the bastion, and a private one a zone."""
    parts = list(ipaddress.ip_network(cluster["network"]).subnets(prefixlen_diff=3))
    subnets = [{"name": f"{cluster['name']}-public", "zone": cluster["zones"][0], "cidr": str(parts[0])}]
    for part, zone in zip(parts[1:], cluster["zones"], strict=False):
        subnets.append({"name": f"{cluster['name']}-private-{zone}", "zone": zone, "cidr": str(part)})
    return subnets


def address_of(network: str, slot: int, index: int) -> str:
    """Return the address that a node gets: its group's sixteenth of the subnet, then its number."""
    subnet = ipaddress.ip_network(network)
    return str(subnet.network_address + subnet.num_addresses // 16 * slot + 3 + index)


def nodes_of(cluster: dict[str, Any], subnets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all nodes of the file, without the bastion."""
    name, zones = cluster["name"], cluster["zones"]
    nodes = []
    for slot, group in enumerate(cluster["groups"], start=1):
        spot = round(group["count"] * group["spot"])
        for index in range(1, group["count"] + 1):
            subnet = subnets[1 + (index - 1) % len(zones)]
            volumes = [{"device": "/dev/xvda", "size": group["root"], "type": "gp3"}]
            letters = "fghijklmnopq"
            volumes += [{"device": f"/dev/sd{letters[at]}", **volume} for at, volume in enumerate(group["volumes"])]
            nodes.append(
                {
                    "name": f"{name}-{group['name']}-{index}",
                    "group": group["name"],
                    "order": slot * 1000 + index,
                    "inventory": ",".join(group["inventory"]),
                    "type": group["type"],
                    "zone": subnet["zone"],
                    "subnet": subnet["name"],
                    "address": address_of(subnet["cidr"], slot, index),
                    "spot": index > group["count"] - spot,
                    "volumes": volumes,
                }
            )
    return nodes


def desired(cluster: dict[str, Any], components: dict[str, Any], account: str) -> dict[str, Any]:
    """Return everything that the file asks for in an account."""
    name = cluster["name"]
    subnets = subnets_of(cluster)
    public, private = [subnets[0]["name"]], [subnet["name"] for subnet in subnets[1:]]
    rules = rules_in(cluster, components)
    bucket = cluster["bucket"]["name"] or f"gridstead-{name}-{account}-{cluster['region']}"
    addresses = [f"{name}-bastion"] + ([f"{name}-nat"] if cluster["internet"] else [])
    bastion = {
        "name": f"{name}-{BASTION}",
        "group": BASTION,
        "order": 0,
        "inventory": "",
        "type": cluster["bastion"]["type"],
        "zone": subnets[0]["zone"],
        "subnet": public[0],
        "address": address_of(subnets[0]["cidr"], 1, 1),
        "spot": False,
        "volumes": [{"device": "/dev/xvda", "size": 8, "type": "gp3"}],
    }
    return {
        "tags": {**cluster["tags"], CLUSTER_TAG: name},
        "vpc": {"name": name, "cidr": cluster["network"]},
        "subnets": subnets,
        "internet_gateway": name,
        "addresses": addresses,
        "nat_gateway": f"{name}-nat" if cluster["internet"] else "",
        "endpoint": f"com.amazonaws.{cluster['region']}.s3",
        "route_tables": [
            {"name": f"{name}-public", "subnets": public, "way_out": "internet_gateway"},
            {"name": f"{name}-private", "subnets": private, "way_out": "nat_gateway" if cluster["internet"] else ""},
        ],
        "groups": [
            {"name": f"{name}-{group}", "group": group, "in": rules[group], "out": rules_out(cluster, group)}
            for group in [BASTION, *(group["name"] for group in cluster["groups"])]
        ],
        "key": {"name": f"gridstead-{name}", "material": cluster["key"]},
        "role": f"gridstead-{name}-{cluster['region']}",
        "policy": policy_of(bucket),
        "trust": {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
        },
        "bucket": {"name": bucket, "keep": cluster["bucket"]["keep"]},
        "nodes": [bastion, *nodes_of(cluster, subnets)],
    }


def canonical(document: Any) -> str:
    """Write a policy so that equal ones are equal texts: lists of one and single values are the same, order does not count."""

    def simple(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: simple(content) for key, content in value.items()}
        if isinstance(value, list):
            return sorted((simple(content) for content in value), key=json.dumps) if len(value) != 1 else simple(value[0])
        return value

    return json.dumps(simple(document), sort_keys=True)
