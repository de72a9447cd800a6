"""The cluster file: read it, and say everything that is wrong with it at once."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

REQUIRED = object()
LEAST_GIB = {"st1": 125, "sc1": 125}
"""How small EC2 makes a volume of a type; of the others 1 GiB (EBS user guide, "Amazon EBS volume types")."""


class ClusterError(Exception):
    """The cluster file cannot be used; `errors` has one sentence a fault: where, what, and what is allowed."""

    def __init__(self, path: str, errors: list[str]) -> None:
        """Compose the message."""
        self.errors = errors
        count = "1 fault" if len(errors) == 1 else f"{len(errors)} faults"
        super().__init__("\n".join([f"{path} has {count}:", *(f"  {error}" for error in errors)]))


@dataclass
class Check:
    """How a value is read (any exception refuses it), and what is allowed in words."""

    allowed: str
    read: Callable[[Any], Any]

    def __call__(self, value: Any, where: str, errors: list[str]) -> Any:
        """Return the value as it is used, or note the fault."""
        try:
            return self.read(value)
        except (ArithmeticError, AttributeError, OSError, TypeError, ValueError) as error:
            detail = f" ({error.strerror})" if isinstance(error, OSError) else ""
            errors.append(f"{where}: {value!r} is not {self.allowed}{detail}")
            return None


def require(condition: Any) -> None:
    """Refuse the value being read unless the condition holds."""
    if not condition:
        raise ValueError


def text(pattern: str, allowed: str) -> Check:
    """Allow a text of a pattern."""

    def read(value: Any) -> str:
        require(isinstance(value, str) and re.fullmatch(pattern, value))
        return str(value)

    return Check(allowed, read)


def number(least: float, most: float, kind: type[int] | type[float] = int) -> Check:
    """Allow a number within bounds."""

    def read(value: Any) -> float:
        require(not isinstance(value, bool) and isinstance(value, (int, kind)) and least <= value <= most)
        return kind(value)

    return Check(f"{'a whole number' if kind is int else 'a number'} from {least} to {most}", read)


def boolean() -> Check:
    """Allow true and false."""

    def read(value: Any) -> bool:
        require(isinstance(value, bool))
        return bool(value)

    return Check("true or false", read)


def choice(*names: str) -> Check:
    """Allow one of some names."""
    return text("|".join(map(re.escape, names)), "one of " + ", ".join(names))


def read_network(value: Any) -> str:
    """Read a network for the cluster: private, and large enough for eight parts."""
    net = ipaddress.IPv4Network(value)
    require(net.is_private and 16 <= net.prefixlen <= 20)
    return str(net)


def read_source(value: Any) -> str:
    """Read a network that may log in."""
    net = ipaddress.IPv4Network(value)
    require(net.prefixlen >= 8)
    return str(net)


def read_private(value: Any) -> str:
    """Read a private network."""
    net = ipaddress.IPv4Network(value)
    require(net.is_private)
    return str(net)


def read_key(value: Any) -> str:
    """Read the public key from its file."""
    with open(os.path.expanduser(value), encoding="utf-8") as stream:
        words = stream.read().split()
    require(len(words) >= 2 and words[0] in ("ssh-ed25519", "ssh-rsa"))
    return " ".join(words[:2])


def read_tags(value: Any) -> dict[str, str]:
    """Read tags of the user's own."""
    require(all(isinstance(key, str) and isinstance(content, str) for key, content in value.items()))
    require(not any(re.match("(?i)aws:|gridstead-|name$", key) or len(key) > 128 for key in value))
    return dict(value)


def listing(check: Check, least: int = 1) -> Callable[[Any, str, list[str]], Any]:
    """Allow a list, each element by a check, none twice."""

    def read(value: Any, where: str, errors: list[str]) -> Any:
        if not isinstance(value, list) or len(value) < least:
            errors.append(f"{where}: {value!r} is not a list of at least {least}; each is {check.allowed}")
            return []
        for position, element in enumerate(value):
            if element in value[:position]:
                errors.append(f"{where}[{position}]: {element!r} is there twice")
        return [check(element, f"{where}[{position}]", errors) for position, element in enumerate(value)]

    return read


def mapping(table: dict[str, tuple[Any, Any]]) -> Callable[[Any, str, list[str]], Any]:
    """Allow a mapping of the keys of a table: key to (check, default or REQUIRED)."""

    def read(value: Any, where: str, errors: list[str]) -> Any:
        prefix = f"{where}." if where else ""
        if not isinstance(value, dict):
            errors.append(f"{where or 'the file'}: {value!r} is not a mapping with the keys {', '.join(table)}")
            return {key: None for key in table}
        errors += [f"{prefix}{key}: unknown key; known are {', '.join(table)}" for key in value if key not in table]
        result = {}
        for key, (check, default) in table.items():
            if key in value:
                result[key] = check(value[key], f"{prefix}{key}", errors)
            elif default is REQUIRED:
                errors.append(f"{prefix}{key}: missing" + (f"; it is {check.allowed}" if isinstance(check, Check) else ""))
                result[key] = None
            else:
                result[key] = default
        return result

    return read


INSTANCE_TYPE = text(r"[a-z][a-z0-9-]*\.[a-z0-9-]+", "an instance type, such as m5.2xlarge")
NAME = text(r"[a-z][a-z0-9-]{0,18}[a-z0-9]", "2 to 20 lower-case letters, digits and dashes, beginning with a letter")
VOLUME = mapping({"size": (number(1, 16384), REQUIRED), "type": (choice("gp3", "gp2", "st1", "sc1"), "gp3")})


def group_check(inventory: list[str]) -> Callable[[Any, str, list[str]], Any]:
    """Check one group of nodes."""

    def volumes(value: Any, where: str, errors: list[str]) -> Any:
        if not isinstance(value, list) or len(value) > 12:
            errors.append(f"{where}: {value!r} is not a list of at most 12 volumes, each with size (GiB) and type")
            return []
        return [VOLUME(volume, f"{where}[{position}]", errors) for position, volume in enumerate(value)]

    return mapping(
        {
            "inventory": (listing(choice(*inventory)), REQUIRED),
            "type": (INSTANCE_TYPE, REQUIRED),
            "count": (number(0, 200), REQUIRED),
            "spot": (number(0, 1, float), 0.0),
            "root": (number(8, 16384), 30),
            "volumes": (volumes, []),
        }
    )


def groups_check(inventory: list[str]) -> Callable[[Any, str, list[str]], Any]:
    """Check all groups of nodes: a mapping from name to group."""
    check = group_check(inventory)

    def read(value: Any, where: str, errors: list[str]) -> Any:
        if not isinstance(value, dict) or not value or len(value) > 14:
            errors.append(f"{where}: {value!r} is not a mapping of 1 to 14 groups of nodes")
            return []
        groups = []
        for name, content in value.items():
            NAME(name, f"{where}.{name}", errors)
            if name == "bastion":
                errors.append(f"{where}.{name}: the name of the host that every cluster has beside its groups; choose another")
            group = check(content, f"{where}.{name}", errors)
            groups.append({"name": name, **group})
        return groups

    return read


def table(inventory: list[str]) -> dict[str, tuple[Any, Any]]:
    """Return the keys of the file, for the groups that an inventory may have."""
    return {
        "name": (NAME, REQUIRED),
        "region": (text(r"[a-z]{2}(-[a-z]+)+-\d", "a region, such as eu-west-1"), REQUIRED),
        "zones": (listing(text(r"[a-z]{2}(-[a-z]+)+-\d[a-z]", "a zone, such as eu-west-1a")), REQUIRED),
        "network": (Check("a private IPv4 network with a prefix of /16 to /20", read_network), "10.88.0.0/16"),
        "access": (listing(Check("an IPv4 network of at most /8, such as 192.0.2.7/32", read_source)), REQUIRED),
        "producers": (listing(Check("a private IPv4 network", read_private), 0), []),
        "internet": (boolean(), True),
        "key": (Check("a readable file with an SSH public key (ed25519 or rsa)", read_key), REQUIRED),
        "image": (text(r"ami-[0-9a-f]{8,17}", "an image, such as ami-0123456789abcdef0"), None),
        "bastion": (mapping({"type": (INSTANCE_TYPE, "t3.micro")}), {"type": "t3.micro"}),
        "bucket": (
            mapping(
                {
                    "name": (text(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", "3 to 63 lower-case letters, digits and dashes"), None),
                    "keep": (boolean(), False),
                }
            ),
            {"name": None, "keep": False},
        ),
        "tags": (Check("texts by name, none beginning with aws: or gridstead-, none called Name", read_tags), {}),
        "groups": (groups_check(inventory), REQUIRED),
    }


def across(cluster: dict[str, Any]) -> list[str]:
    """Return what is wrong between keys that are right by themselves."""
    errors = []
    for zone in cluster["zones"]:
        if zone[:-1] != cluster["region"]:
            errors.append(f"zones: {zone} is not in the region {cluster['region']}; zones are {cluster['region']}a and so on")
    if len(cluster["zones"]) > 6:
        errors.append(f"zones: {len(cluster['zones'])} zones; at most 6 have a place in the network")
    most = 2 ** (32 - ipaddress.ip_network(cluster["network"]).prefixlen - 3 - 4) - 6
    for group in cluster["groups"]:
        if group["count"] > most:
            errors.append(f"groups.{group['name']}.count: {group['count']} nodes; {cluster['network']} has addresses for {most} of a group")
        for position, volume in enumerate(group["volumes"]):
            if volume["size"] < LEAST_GIB.get(volume["type"], 1):
                where = f"groups.{group['name']}.volumes[{position}].size"
                errors.append(f"{where}: {volume['size']} GiB; {volume['type']} has at least {LEAST_GIB[volume['type']]}")
        if group["spot"] and "masters" in group["inventory"]:
            errors.append(f"groups.{group['name']}.spot: masters hold what cannot be lost; only groups without masters may have spot nodes")
    for wanted in ("masters", "workers"):
        if not any(wanted in group["inventory"] and group["count"] for group in cluster["groups"]):
            errors.append(f"groups: no node is in the inventory's group {wanted}; at least one has to be")
    return errors


def text_of(path: str) -> str:
    """Return the text of a cluster file; raise ClusterError where it cannot be read."""
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as stream:
            return stream.read()
    except OSError as error:
        raise ClusterError(path, [f"it cannot be read: {error.strerror}; name it by CLUSTER=clusters/NAME.yml"]) from error


def parse(path: str, text: str, inventory: list[str]) -> dict[str, Any]:
    """Read the text of a cluster file; raise ClusterError with all its faults."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ClusterError(path, [f"it is not YAML: {' '.join(str(error).split())}"]) from error
    errors: list[str] = []
    cluster: dict[str, Any] = mapping(table(inventory))(content, "", errors)
    if not errors:
        errors = across(cluster)
    if errors:
        raise ClusterError(path, errors)
    return cluster


def load(path: str, inventory: list[str]) -> dict[str, Any]:
    """Read a cluster file; raise ClusterError with all its faults."""
    return parse(path, text_of(path), inventory)


def scaled(path: str, text: str, inventory: list[str], group: str, count: str) -> str:
    """Return the text of a cluster file with another count of a group, everything else to the letter as it was.

    The group is named as in the file, or by a group of the inventory that only one of the file's has. Raises ClusterError.
    """
    groups = parse(path, text, inventory)["groups"]
    names = [entry["name"] for entry in groups]
    found = [group] if group in names else [entry["name"] for entry in groups if group in entry["inventory"]]
    if not group or not re.fullmatch(r"\d{1,4}", count):
        raise ClusterError(path, [f"GROUP={group} COUNT={count}: give both, a group of the file and how many nodes it is to have"])
    if len(found) != 1:
        which = f"the groups {', '.join(found)} all are in it" if found else "no such group"
        raise ClusterError(path, [f"GROUP={group}: {which}; the file has {', '.join(names)}"])
    place = yaml.compose(text, Loader=yaml.SafeLoader)
    for key in ("groups", found[0], "count"):
        place = next(value for name, value in place.value if name.value == key)
    changed = text[: place.start_mark.index] + str(int(count)) + text[place.end_mark.index :]
    wanted = yaml.safe_load(text)
    wanted["groups"][found[0]]["count"] = int(count)
    try:
        same = yaml.safe_load(changed) == wanted
    except yaml.YAMLError:  # the count had a name that another place uses
        same = False
    if not same:
        shared = f"groups.{found[0]}.count is shared with another place of the file"
        raise ClusterError(path, [f"{shared}: change the file, then run this without COUNT"])
    parse(path, changed, inventory)
    return changed
