"""What a cluster costs: by the price API where it answers, else by the dated table of the role."""

from __future__ import annotations

import json
from typing import Any


def usd(product: str) -> float:
    """Return the on-demand price of a product of the price API."""
    terms = json.loads(product)["terms"]["OnDemand"]
    dimensions = [dimension for term in terms.values() for dimension in term["priceDimensions"].values()]
    return float(dimensions[0]["pricePerUnit"]["USD"])


def ask(client: Any, region: str, filters: dict[str, str]) -> float:
    """Return the price of the one product that the filters leave."""
    fields = [{"Type": "TERM_MATCH", "Field": key, "Value": value} for key, value in {"regionCode": region, **filters}.items()]
    return usd(client.get_products(ServiceCode="AmazonEC2", Filters=fields, MaxResults=1)["PriceList"][0])


def by_api(client: Any, region: str, types: set[str], volumes: set[str]) -> dict[str, float]:
    """Return the prices of instance types (an hour) and volume types (a GB and month); raises what the client raises."""
    linux = {"operatingSystem": "Linux", "tenancy": "Shared", "preInstalledSw": "NA", "capacitystatus": "Used"}
    prices = {name: ask(client, region, {"instanceType": name, **linux}) for name in sorted(types)}
    prices |= {name: ask(client, region, {"productFamily": "Storage", "volumeApiName": name}) for name in sorted(volumes)}
    return prices


def by_table(table: dict[str, Any], region: str) -> dict[str, float]:
    """Return the prices of the table for a region."""
    return dict(table["regions"].get(region, {}))


def items(wanted: dict[str, Any]) -> list[tuple[int, str, str]]:
    """Return what is paid for: how many, of what, and in words."""
    count: dict[tuple[str, str], int] = {}
    for node in wanted["nodes"]:
        label = f"{node['type']}{' spot, at the on-demand price' if node['spot'] else ''}"
        count[(node["type"], label)] = count.get((node["type"], label), 0) + 1
        for volume in node["volumes"]:
            key = (volume["type"], f"GiB of {volume['type']} volumes")
            count[key] = count.get(key, 0) + volume["size"]
    count[("ipv4", "public addresses")] = len(wanted["addresses"])
    if wanted["nat_gateway"]:
        count[("nat", "NAT gateway, without traffic")] = 1
    return [(number, kind, label) for (kind, label), number in count.items()]


def estimate(wanted: dict[str, Any], prices: dict[str, float], hours: int) -> dict[str, Any]:
    """Return the lines of the estimate, the sums by hour and month, and what has no known price."""
    lines, unknown, hourly, stopped = [], [], 0.0, 0.0
    for number, kind, label in items(wanted):
        if kind not in prices:
            unknown.append(f"{number} {label}")
            continue
        per_hour = number * prices[kind] / (hours if "." not in kind and kind not in ("ipv4", "nat") else 1)
        hourly += per_hour
        stopped += 0 if "." in kind and " spot" not in label else per_hour  # AWS stops no spot node
        lines.append(f"{number:6d} {label:45s} ${per_hour:8.4f} an hour  ${per_hour * hours:10.2f} a month")
    return {"lines": lines, "unknown": unknown, "hour": hourly, "month": hourly * hours, "stopped_month": stopped * hours}
