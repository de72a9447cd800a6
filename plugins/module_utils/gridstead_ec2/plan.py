"""The difference between what a cluster file asks for and what an account has, and how it is told."""

from __future__ import annotations

from typing import Any

from .account import LIVING, name_of, rules_of, tags_of
from .desired import BASTION, CLUSTER_TAG, GROUP_RULES, canonical

BASTION_WAITS = "the bastion gets its public address"
OTHER_TAGS = "gets other tags"
STAGES = ("network", "access", "nodes")


class Plan:
    """Compares, and collects what up has to do: stage by stage, and what stands in its way."""

    def __init__(self, wanted: dict[str, Any], found: dict[str, Any], remove: bool = False, drained: tuple[str, ...] = ()) -> None:
        """Compare. Nodes that the file no longer has go if `remove` says so, or if they are among the ids of `drained`."""
        self.wanted, self.found, self.remove, self.drained = wanted, found, remove, drained
        self.cluster = wanted["tags"][CLUSTER_TAG]
        self.changes: dict[str, list[tuple[str, str]]] = {stage: [] for stage in STAGES}  # sign (+ ~ -) and text
        self.kinds: list[str] = []  # of what differs
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.ids = self._ids()
        self.launch: list[dict[str, Any]] = []
        self.start: list[str] = []
        self.retag: list[dict[str, Any]] = []
        self.leaving: list[dict[str, str]] = []  # nodes that the file no longer has
        self.terminate: list[str] = []
        self.drop_groups: list[dict[str, str]] = []
        self.regroup: list[dict[str, Any]] = []  # security groups to make or to change, with their rules as ec2_security_group takes them
        self.busy: list[str] = []
        self._network()
        self._access()
        self._nodes()

    def _ids(self) -> dict[str, Any]:
        """Return the ids of what is there, by name."""
        found = self.found
        ids: dict[str, Any] = {"vpc": found["vpc"]}
        ids["subnets"] = {name_of(subnet): subnet["SubnetId"] for subnet in found["subnets"]}
        ids["route_tables"] = {name_of(table): table["RouteTableId"] for table in found["route_tables"]}
        ids["groups"] = {group["GroupName"]: group["GroupId"] for group in found["groups"]}
        ids["addresses"] = {name_of(address): address["AllocationId"] for address in found["addresses"]}
        ids["public"] = {name_of(address): address["PublicIp"] for address in found["addresses"]}
        ids["internet_gateway"] = found["internet_gateways"][0]["InternetGatewayId"] if found["internet_gateways"] else ""
        alive = [gateway for gateway in found["nat_gateways"] if gateway["State"] != "failed"]
        ids["nat_gateway"] = alive[0]["NatGatewayId"] if alive else ""
        staying = [instance for instance in found["instances"] if instance["State"]["Name"] != "shutting-down"]
        by_node = {tags_of(instance).get("Name", ""): instance for instance in staying}
        ids["nodes"] = {name: instance["InstanceId"] for name, instance in by_node.items()}
        return ids

    def _differ(self, stage: str, kind: str, name: str, here: bool, same: bool = True, what: str = "") -> None:
        """Note that a thing is missing or another than wanted."""
        if not (here and same):
            self.kinds.append(kind)
        if not here:
            self.changes[stage].append(("+", f"{kind} {name}{what}"))
        elif not same:
            self.changes[stage].append(("~", f"{kind} {name}{what}"))

    def _tagged(self, resource: dict[str, Any]) -> bool:
        """Tell whether a resource has all tags of the cluster."""
        return self.wanted["tags"].items() <= tags_of(resource).items()

    def _network(self) -> None:
        wanted, found, ids = self.wanted, self.found, self.ids
        if len(found["vpcs"]) > 1:
            names = ", ".join(vpc["VpcId"] for vpc in found["vpcs"])
            self.problems.append(f"the networks {names} all say that they are the cluster {self.cluster}; delete or retag all but one")
        for vpc in found["vpcs"]:
            if vpc["CidrBlock"] != wanted["vpc"]["cidr"]:
                there, asked = vpc["CidrBlock"], wanted["vpc"]["cidr"]
                self.problems.append(f"the network is {there} and cannot become {asked}; correct the file, or ec2-down")
        self._differ("network", "network", wanted["vpc"]["cidr"], bool(ids["vpc"]), all(map(self._tagged, found["vpcs"])))
        by_name = {name_of(subnet): subnet for subnet in found["subnets"]}
        by_cidr = {subnet["CidrBlock"]: name_of(subnet) for subnet in found["subnets"]}
        for subnet in wanted["subnets"]:
            there = by_name.get(subnet["name"])
            moved = there and (there["CidrBlock"], there["AvailabilityZone"]) != (subnet["cidr"], subnet["zone"])
            if moved or by_cidr.get(subnet["cidr"], subnet["name"]) not in ("", subnet["name"]):
                advice = "zones are added and taken away at the end of the list only"
                self.problems.append(f"{subnet['name']} cannot become {subnet['cidr']} in {subnet['zone']}: {advice}")
            self._differ("network", "subnet", subnet["name"], bool(there), not there or self._tagged(there), f" {subnet['cidr']}")
        gateways = found["internet_gateways"]
        attached = bool(gateways and gateways[0].get("Attachments"))
        self._differ("network", "internet gateway", self.cluster, bool(gateways), attached and self._tagged(gateways[0]))
        for address in wanted["addresses"]:
            self._differ("network", "public address", address, address in ids["addresses"])
        if wanted["nat_gateway"]:
            here = [gateway for gateway in found["nat_gateways"] if gateway["NatGatewayId"] == ids["nat_gateway"]]
            self._differ("network", "NAT gateway", wanted["nat_gateway"], bool(here))
            self.busy += [f"NAT gateway {gateway['NatGatewayId']} is pending" for gateway in here if gateway["State"] == "pending"]
        self.drop_nats = [] if wanted["nat_gateway"] else [gateway["NatGatewayId"] for gateway in found["nat_gateways"]]
        self.drop_addresses = [address["PublicIp"] for address in found["addresses"] if name_of(address) not in wanted["addresses"]]
        self.changes["network"] += [("-", f"NAT gateway {gateway}") for gateway in self.drop_nats]
        self.changes["network"] += [("-", f"public address {address}") for address in self.drop_addresses]
        tables = {name_of(table): table for table in found["route_tables"]}
        for table in wanted["route_tables"]:
            there = tables.get(table["name"])
            self._differ("network", "route table", table["name"], bool(there), bool(there) and self._routes_are(table, there or {}))
        endpoints = [endpoint for endpoint in found["endpoints"] if endpoint["ServiceName"] == wanted["endpoint"]]
        endpoints = [endpoint for endpoint in endpoints if endpoint.get("State", "available").lower() not in ("deleted", "deleting")]
        self._differ("network", "gateway to S3", wanted["endpoint"], bool(endpoints))

    def _routes_are(self, wanted: dict[str, Any], table: dict[str, Any]) -> bool:
        """Tell whether a route table has the wanted way out and subnets."""
        subnets = {association.get("SubnetId") for association in table.get("Associations", [])} - {None}
        out = [route for route in table.get("Routes", []) if route.get("DestinationCidrBlock") == "0.0.0.0/0"]
        ways = {route.get("GatewayId") or route.get("NatGatewayId") for route in out}
        way_out = {self.ids[wanted["way_out"]]} if wanted["way_out"] else set()
        return subnets == {self.ids["subnets"].get(name) for name in wanted["subnets"]} and ways == way_out

    def _access(self) -> None:
        wanted, found = self.wanted, self.found
        names = {group["GroupId"]: group["GroupName"].removeprefix(f"{self.cluster}-") for group in found["groups"]}
        by_name = {group["GroupName"]: group for group in found["groups"]}
        for group in wanted["groups"]:
            there = by_name.get(group["name"])
            same = bool(there) and self._tagged(there or {})
            if there:
                same = same and rules_of(there["IpPermissions"], names) == sorted(map(tuple, group["in"]))
                same = same and rules_of(there["IpPermissionsEgress"], names) == sorted(map(tuple, group["out"]))
            self._differ("access", "security group", group["name"], bool(there), same, f", {len(group['in'])} rules")
            if not same:
                here = group["name"] in self.ids["groups"]
                self.regroup.append({**group, "here": here, "in": self._rules(group["in"]), "out": self._rules(group["out"])})
            if len(group["in"]) > GROUP_RULES:
                rules = f"needs {len(group['in'])} rules of {GROUP_RULES}"
                self.problems.append(f"security group {group['name']} {rules}; join groups in the file")
        keep = {group["name"] for group in wanted["groups"]} | {"default"}
        used = {tags_of(instance).get("gridstead-group") for instance in found["instances"]}
        for name, group in by_name.items():
            if name not in keep and names[group["GroupId"]] not in used and not self._foreign(tags_of(group)):
                self.drop_groups.append({"name": name, "id": group["GroupId"]})
                self.changes["access"].append(("-", f"security group {name}"))
        self._key()
        self._role()
        self._bucket()

    def _foreign(self, tags: dict[str, str] | None) -> bool:
        """Tell whether something of our name is not ours."""
        return (tags or {}).get(CLUSTER_TAG) != self.cluster

    def _rules(self, rules: list[Any]) -> list[dict[str, Any]]:
        """Return rules as the module ec2_security_group takes them; those of groups that are not there yet are left out."""
        result = []
        for protocol, first, last, source in rules:
            ports = {"proto": "all"} if protocol == "-1" else {"proto": protocol, "from_port": first, "to_port": last}
            if "/" in source:
                result.append({**ports, "cidr_ip": source})
            elif f"{self.cluster}-{source}" in self.ids["groups"]:
                result.append({**ports, "group_id": self.ids["groups"][f"{self.cluster}-{source}"]})
        return result

    def _key(self) -> None:
        key, there = self.wanted["key"], self.found["keys"]
        if there and self._foreign(tags_of(there[0])):
            self.problems.append(f"the key pair {key['name']} is there and not this cluster's; choose another name for the cluster")
            return
        public = " ".join(str(there[0].get("PublicKey", key["material"])).split()[:2]) if there else ""
        self._differ("access", "key pair", key["name"], bool(there), public == key["material"])
        if there and public != key["material"]:
            self.notes.append("the key differs: nodes that are there keep the one they were made with")

    def _role(self) -> None:
        name, there = self.wanted["role"], self.found["role"]
        if there and there["tags"] is not None and self._foreign(there["tags"]):
            self.problems.append(f"the IAM role {name} is there and not this cluster's; choose another name for the cluster")
            return
        here = bool(there and there["tags"] is not None)
        same = here and there["profile"] and not there["others"] and canonical(there["policy"]) == canonical(self.wanted["policy"])
        same = same and canonical(there["trust"]) == canonical(self.wanted["trust"])
        self._differ("access", "IAM role and instance profile", name, here, same)

    def _bucket(self) -> None:
        name, there = self.wanted["bucket"]["name"], self.found["bucket"]
        if there and there["foreign"]:
            where = "belongs to another account or is in another region"
            self.problems.append(f"the bucket {name} {where}; set bucket.name to a name that nobody has")
        elif there and not ours_or_unfinished(there, self.cluster):
            self.problems.append(f"the bucket {name} is there and not this cluster's; set bucket.name to another")
        else:
            same = bool(there) and not self._foreign((there or {})["tags"])
            same = same and bool(there) and all((there or {})[what] for what in ("versioned", "encrypted", "private", "tidy"))
            self._differ("access", "bucket", name, bool(there), same)
        for other in self.found["other_buckets"] or {}:
            self.notes.append(f"the bucket {other} is this cluster's as well, not the file's: ec2-down removes it, unless bucket.keep")
        if self.found["other_buckets"] is None:
            self.notes.append("whether the cluster has further buckets is not known: these credentials may not ask (tag:GetResources)")

    def _tags_for(self, node: dict[str, Any]) -> dict[str, str]:
        """Return the tags of a node; those that the inventory reads, and which the bastion is and where."""
        tags = {**self.wanted["tags"], "Name": node["name"], "gridstead-group": node["group"]}
        if node["group"] != BASTION:
            bastion = f"{self.cluster}-bastion"
            tags |= {"gridstead-inventory": node["inventory"], "gridstead-bastion": self.ids["public"].get(bastion, "")}
            tags |= {"gridstead-disks": str(len(node["volumes"]) - 1), "gridstead-bucket": self.wanted["bucket"]["name"]}
            tags["gridstead-order"] = str(node["order"])
            tags["gridstead-masters"] = str(sum("masters" in one["inventory"].split(",") for one in self.wanted["nodes"]))
            if bastion in self.ids["nodes"]:  # of one that is to come, whoever launches it learns the id
                tags["gridstead-bastion-id"] = self.ids["nodes"][bastion]
        return tags

    def _nodes(self) -> None:
        taken = {interface["PrivateIpAddress"] for interface in self.found["interfaces"]}
        by_name: dict[str, list[dict[str, Any]]] = {}
        for instance in self.found["instances"]:
            if instance["State"]["Name"] != "shutting-down":
                by_name.setdefault(name_of(instance), []).append(instance)
        for node in self.wanted["nodes"]:
            there = by_name.pop(node["name"], [])
            if len(there) > 1:
                ids = ", ".join(instance["InstanceId"] for instance in there)
                self.problems.append(f"{node['name']} is there more than once ({ids}); terminate all but one")
            elif there:
                self._node_there(node, there[0])
            else:
                self._node_missing(node, taken)
        for name, instances in by_name.items():
            for instance in instances:
                inventory = tags_of(instance).get("gridstead-inventory", "")
                state = instance["State"]["Name"]
                self.leaving.append({"name": name, "id": instance["InstanceId"], "inventory": inventory, "state": state})
                if self.remove or instance["InstanceId"] in self.drained:
                    self.terminate.append(instance["InstanceId"])
                    self.changes["nodes"].append(("-", f"node {name} {instance['InstanceId']}, with its volumes"))
                else:
                    node = f"{name} ({instance['InstanceId']})"
                    self.notes.append(f"{node} is no longer in the file: ec2-scale drains and terminates it")
        bastion = f"{self.cluster}-bastion"
        address = next((address for address in self.found["addresses"] if name_of(address) == bastion), None)
        if address is None or not address.get("InstanceId") or address["InstanceId"] != self.ids["nodes"].get(bastion):
            self.changes["nodes"].append(("~", BASTION_WAITS))

    def _node_missing(self, node: dict[str, Any], taken: set[str]) -> None:
        address = node["address"]
        while address in taken:  # held by what is just going: the next one of the group
            head, _, last = address.rpartition(".")
            address = f"{head}.{int(last) + 1}"
        taken.add(address)
        node = {**node, "address": address, "tags": self._tags_for(node), "security_group": f"{self.cluster}-{node['group']}"}
        self.launch.append(node)
        size = sum(volume["size"] for volume in node["volumes"])
        kind = f"{node['type']}{' spot' if node['spot'] else ''}"
        self.changes["nodes"].append(("+", f"node {node['name']} {kind}, {node['zone']}, {address}, {size} GiB"))

    def _node_there(self, node: dict[str, Any], instance: dict[str, Any]) -> None:
        state, identity = instance["State"]["Name"], instance["InstanceId"]
        if state == "stopped":
            self.start.append(identity)
            self.changes["nodes"].append(("~", f"node {node['name']} {identity} is stopped and starts"))
        elif state != "running":
            self.busy.append(f"{node['name']} is {state}")
            if state == "stopping":
                self.problems.append(f"{node['name']} is stopping; run this again when it is stopped")
        tags = self._tags_for(node)
        if not tags.items() <= tags_of(instance).items():
            self.retag.append({"id": identity, "tags": tags})
            self.changes["nodes"].append(("~", f"node {node['name']} {identity} {OTHER_TAGS}"))
        there = {"type": instance["InstanceType"], "spot": instance.get("InstanceLifecycle") == "spot"}
        sizes = {volume["VolumeId"]: volume["Size"] for volume in self.found["volumes"]}
        there["GiB of volumes"] = sorted(sizes.get(mapping["Ebs"]["VolumeId"], 0) for mapping in instance["BlockDeviceMappings"])
        asked = {"type": node["type"], "spot": node["spot"], "GiB of volumes": sorted(volume["size"] for volume in node["volumes"])}
        differs = [f"{what} {there[what]} instead of {asked[what]}" for what in asked if there[what] != asked[what]]
        if differs:
            advice = f"up leaves it; drain and terminate {identity}, and the next up makes it as the file says"
            self.notes.append(f"{node['name']} has {' and '.join(differs)}: {advice}")

    def scale_problems(self) -> list[str]:
        """Return why the number of nodes cannot be changed now: only nodes without masters come and go, and of a cluster that is whole."""
        problems = []
        other = [text for stage in STAGES for sign, text in self.changes[stage] if stage != "nodes"]
        missing = [node["name"] for node in self.launch if node["group"] == BASTION or "masters" in node["inventory"].split(",")]
        if other or missing:
            what = f"{len(other)} changes of network and access" if other else f"{', '.join(missing)} missing"
            problems.append(f"the cluster is not as the file says ({what}): ec2-up first, then this")
        if self.start:
            problems.append(f"nodes are stopped ({', '.join(self.start)}): ec2-start first, then this")
        masters = [node["name"] for node in self.leaving if "masters" in node["inventory"].split(",")]
        if masters:
            problems.append(f"{', '.join(masters)} would go; masters vote, and their number is not changed by this: set the count back")
        unwell = [f"{node['name']} is {node['state']}" for node in self.leaving if node["state"] != "running"]
        if unwell:
            problems.append(f"{', '.join(unwell)}, and only a running node can be drained: start it, or terminate it if nothing is on it")
        return problems

    def stages(self) -> list[str]:
        """Return the stages that have something to do."""
        return [stage for stage in STAGES if self.changes[stage]]

    def lines(self) -> list[str]:
        """Tell the difference."""
        signs = {"+": "Will be created", "~": "Will be changed", "-": "Will be destroyed"}
        changes = [change for stage in STAGES for change in self.changes[stage]]
        text = []
        for sign, title in signs.items():
            chosen = [entry for kind, entry in changes if kind == sign]
            text += [f"{title}: {len(chosen) or 'nothing'}", *(f"  {sign} {entry}" for entry in chosen)]
        return text + [f"Note: {note}" for note in self.notes] + [f"Waiting: {wait}" for wait in self.busy]


def ours_or_unfinished(bucket: dict[str, Any], cluster: str) -> bool:
    """Tell whether a bucket has the cluster's tag, or is as an up leaves it that was stopped before the tag: without tags and empty."""
    if bucket["foreign"]:
        return False
    return bool((bucket["tags"] or {}).get(CLUSTER_TAG) == cluster or not (bucket["tags"] or bucket["objects"]))


def rubble(wanted: dict[str, Any], found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return all that down removes, by kind, in the order of removal; each with id, name and what the module needs."""
    cluster = wanted["tags"][CLUSTER_TAG]

    def entry(identity: str, name: str = "", **more: Any) -> dict[str, Any]:
        return {"id": identity, "name": name or identity, **more}

    ours = [i for i in found["instances"] if i["State"]["Name"] in LIVING]
    role, bucket, keys = found["role"], found["bucket"], found["keys"]
    kept = wanted["bucket"]["keep"] or not bucket or not ours_or_unfinished(bucket, cluster)
    mine = role and (role["tags"] is None or role["tags"].get(CLUSTER_TAG) == cluster)
    return {
        "instances": [entry(i["InstanceId"], name_of(i)) for i in ours],
        "nat_gateways": [entry(gateway["NatGatewayId"], f"{cluster}-nat") for gateway in found["nat_gateways"]],
        "endpoints": [entry(e["VpcEndpointId"], e["ServiceName"]) for e in found["endpoints"] if e.get("State", "").lower() != "deleted"],
        "addresses": [entry(address["AllocationId"], name_of(address), ip=address["PublicIp"]) for address in found["addresses"]],
        "interfaces": [entry(i["NetworkInterfaceId"]) for i in found["interfaces"] if not i.get("Attachment")],
        "groups": [
            entry(
                group["GroupId"],
                group["GroupName"],
                description=group["Description"],
                vpc=group["VpcId"],
                rules=len(group["IpPermissions"]) + len(group["IpPermissionsEgress"]),
            )
            for group in found["groups"]
            if group["GroupName"] != "default"
        ],
        "route_tables": [
            entry(table["RouteTableId"], name_of(table), vpc=table["VpcId"])
            for table in found["route_tables"]
            if not any(association.get("Main") for association in table["Associations"])
        ],
        "internet_gateways": [
            entry(gateway["InternetGatewayId"], cluster, vpc=(gateway.get("Attachments") or [{}])[0].get("VpcId", ""))
            for gateway in found["internet_gateways"]
        ],
        "subnets": [entry(s["SubnetId"], name_of(s), cidr=s["CidrBlock"], vpc=s["VpcId"]) for s in found["subnets"]],
        "vpcs": [entry(vpc["VpcId"], cluster, cidr=vpc["CidrBlock"]) for vpc in found["vpcs"]],
        "volumes": [entry(volume["VolumeId"]) for volume in found["volumes"] if not volume["Attachments"]],
        "keys": [entry(key["KeyPairId"], key["KeyName"]) for key in keys if tags_of(key).get(CLUSTER_TAG) == cluster],
        "roles": [entry(wanted["role"])] if mine else [],
        "buckets": ([] if kept else [entry(wanted["bucket"]["name"], objects=bucket["objects"])])
        + [
            entry(name, objects=state["objects"])
            for name, state in (found["other_buckets"] or {}).items()
            if not wanted["bucket"]["keep"] and (state["tags"] or {}).get(CLUSTER_TAG) == cluster
        ],
    }


def rubble_lines(parts: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Tell what down removes."""
    names = {"vpcs": "network", "nat_gateways": "NAT gateway", "endpoints": "gateway to S3", "addresses": "public address"}
    names |= {"groups": "security group", "keys": "key pair", "roles": "IAM role and instance profile"}
    lines = []
    for kind, entries in parts.items():
        for entry in entries:
            what = names.get(kind, kind.removesuffix("s").replace("_", " "))
            objects = entry.get("objects")
            content = f" with {'1000 or more' if objects == 1000 else objects} objects and versions in it" if objects is not None else ""
            lines.append(f"  - {what} {entry['name']}{' ' + entry['id'] if entry['id'] != entry['name'] else ''}{content}")
    return [f"Will be destroyed: {len(lines) or 'nothing'}", *lines]
