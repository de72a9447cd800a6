"""Before anything is made: is there an image, are the types offered, do the quotas suffice, what does it cost."""

from __future__ import annotations

from typing import Any

import botocore.config
import botocore.exceptions

from . import price
from .account import Account

AWS_ERRORS = (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError)
QUOTAS = {False: ("L-1216C47A", "on-demand"), True: ("L-34B43A08", "spot")}  # virtual cores of the standard types
STANDARD = "acdhimrtz"  # first letters of the types that these quotas are of


def image_of(account: Account, cluster: dict[str, Any], default: dict[str, str]) -> tuple[str, str]:
    """Return the image of new nodes, and what is wrong with it."""
    if cluster["image"]:
        images = account.all("describe_images", ImageIds=[cluster["image"]])
        wrong = f"image: there is no {cluster['image']} in {cluster['region']}"
    else:
        filters = [{"Name": "name", "Values": [default["name"]]}, {"Name": "architecture", "Values": ["x86_64"]}]
        filters.append({"Name": "state", "Values": ["available"]})
        images = account.all("describe_images", Owners=[default["owner"]], Filters=filters)
        wrong = f"there is no image {default['name']} of {default['owner']} in {cluster['region']}; set image in the cluster file"
    newest = max(images, key=lambda image: str(image.get("CreationDate", "")), default=None)
    return (newest["ImageId"], "") if newest else ("", wrong)


def types_of(account: Account, wanted: dict[str, Any]) -> tuple[dict[str, int], list[str]]:
    """Return the virtual cores of the types, and what is not offered where it is wanted."""
    names = sorted({node["type"] for node in wanted["nodes"]})
    filters = [{"Name": "instance-type", "Values": names}]
    found = {entry["InstanceType"]: entry for entry in account.all("describe_instance_types", Filters=filters)}
    offers = account.all("describe_instance_type_offerings", LocationType="availability-zone", Filters=filters)
    offered = {(offer["InstanceType"], offer["Location"]) for offer in offers}
    problems = [f"the type {name} does not exist in this region" for name in names if name not in found]
    for name, entry in found.items():
        if "x86_64" not in entry.get("ProcessorInfo", {}).get("SupportedArchitectures", ["x86_64"]):
            problems.append(f"the type {name} is not x86_64; the image and the bundle are")
    for name, zone in sorted({(node["type"], node["zone"]) for node in wanted["nodes"]}):
        if name in found and (name, zone) not in offered:
            elsewhere = sorted(where for kind, where in offered if kind == name)
            problems.append(f"the type {name} is not offered in {zone}, only in {', '.join(elsewhere) or 'no zone of the region'}")
    return {name: entry["VCpuInfo"]["DefaultVCpus"] for name, entry in found.items()}, problems


def in_use(account: Account, cores: dict[str, int]) -> dict[bool, int]:
    """Return the virtual cores of standard types that run in the region now, by spot or not."""
    used = {False: 0, True: 0}
    filters = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    for reservation in account.all("describe_instances", Filters=filters):
        for instance in reservation["Instances"]:
            options = instance.get("CpuOptions", {})
            count = options.get("CoreCount", 0) * options.get("ThreadsPerCore", 0) or cores.get(instance["InstanceType"], 0)
            if instance["InstanceType"][0] in STANDARD:
                used[instance.get("InstanceLifecycle") == "spot"] += count
    return used


def quotas(account: Account, client: Any, launch: list[dict[str, Any]], cores: dict[str, int]) -> tuple[list[str], list[str]]:
    """Compare what is to be launched with the quotas; return lines and problems."""
    lines, problems = [], []
    used = in_use(account, cores) if launch else {}
    for spot, (code, label) in QUOTAS.items():
        need = sum(cores.get(node["type"], 0) for node in launch if node["spot"] is spot and node["type"][0] in STANDARD)
        if not need:
            continue
        try:
            limit = client.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
        except AWS_ERRORS as error:
            lines.append(f"Quota of {label} virtual cores: not known ({type(error).__name__}); {used[spot]} in use, {need} more wanted")
            continue
        lines.append(f"Quota of {label} virtual cores: {limit:g}; {used[spot]} in use, {need} more wanted")
        if used[spot] + need > limit:
            more = f"{used[spot]} are in use and {need} more wanted; ask for more"
            problems.append(f"the quota {code} of {label} virtual cores is {limit:g}: {more}")
    return lines, problems


def prices_of(client: Any, wanted: dict[str, Any], region: str, table: dict[str, Any]) -> tuple[dict[str, float], str]:
    """Return prices and where they are from."""
    types = {node["type"] for node in wanted["nodes"]}
    volumes = {volume["type"] for node in wanted["nodes"] for volume in node["volumes"]}
    prices = price.by_table(table, region)
    try:
        prices |= price.by_api(client, region, types, volumes)
    except (*AWS_ERRORS, LookupError, ValueError):
        return prices, f"the table of {table['date']} in the repository, since the price API did not answer"
    return prices, f"the price API now; public addresses and NAT by the table of {table['date']} in the repository"


def cost_lines(client: Any, wanted: dict[str, Any], region: str, table: dict[str, Any]) -> list[str]:
    """Tell the price of the whole cluster."""
    prices, source = prices_of(client, wanted, region, table)
    cost = price.estimate(wanted, prices, table["hours"])
    lines = [f"Price of the whole cluster, in US dollars without tax, traffic and S3, by {source}:", *cost["lines"]]
    if cost["unknown"]:
        lines.append(f"  not known, and not in the sum: {'; '.join(cost['unknown'])}")
    least = "at least " if cost["unknown"] else ""
    running = f"${cost['hour']:.2f} an hour, ${cost['month']:.2f} a month of {table['hours']} hours"
    lines.append(f"  In all {least}{running}; stopped ${cost['stopped_month']:.2f} a month")
    return lines


def all_checks(
    account: Account,
    cluster: dict[str, Any],
    wanted: dict[str, Any],
    launch: list[dict[str, Any]],
    default_image: dict[str, str],
    table: dict[str, Any],
) -> dict[str, Any]:
    """Make all checks; return the image, the lines to show, and what stands in the way."""
    quick = botocore.config.Config(retries={"mode": "standard", "max_attempts": 2}, connect_timeout=5, read_timeout=20)
    lines: list[str] = []
    problems: list[str] = []
    image = ""
    if launch:
        image, wrong = image_of(account, cluster, default_image)
        cores, missing = types_of(account, wanted)
        client = account.session.client("service-quotas", region_name=account.region, config=quick)
        lines, over = quotas(account, client, launch, cores)
        problems = [problem for problem in [wrong, *missing, *over] if problem]
    client = account.session.client("pricing", region_name="us-east-1", config=quick)
    lines += cost_lines(client, wanted, cluster["region"], table)
    return {"image": image, "lines": lines, "problems": problems}
