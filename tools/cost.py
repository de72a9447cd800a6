#!/usr/bin/env python3
"""Write docs/reference/cost.md: the price of a million events on EC2 and on owned hosts, from the assumptions in docs/reference/cost.yml.

Without arguments the page is written, ``--check`` only tells whether it is stale. With cluster files or ``--set NAME=VALUE`` the page for
those is printed, and nothing is written.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "plugins" / "module_utils"))
from gridstead_ec2 import cluster as cluster_file  # noqa: E402
from gridstead_ec2 import desired, price  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
DO_NOT_EDIT = "<!-- Written by tools/cost.py from cost.yml: change that, then run the tool again. -->"
MONTH_DAYS = 365 / 12


class CostError(Exception):
    """The price cannot be computed; the text says what is missing and what to do."""


@dataclass(frozen=True)
class Cost:
    """What one cluster costs, US dollars a month, and how many events a second it may take."""

    name: str
    cores: int
    ec2: float
    ec2_stopped: float
    ec2_running_hour: float  # on top of that
    hosts: int
    owned: float
    capacity: float

    def per_million(self, dollars: float, events_a_month: float) -> float:
        """Dollars for a million events."""
        return dollars / events_a_month * 1e6

    @property
    def even_hours(self) -> float:
        """Hours a month for which EC2, stopped in the others, costs as much as owned hosts."""
        return max(0.0, (self.owned - self.ec2_stopped) / self.ec2_running_hour)


def price_table() -> dict[str, Any]:
    """The dated prices of the role, and the names that an inventory may have."""
    return dict(yaml.safe_load((ROOT / "roles/ec2/vars/main.yml").read_text(encoding="utf-8"))["ec2_prices"])


def wanted(path: Path) -> dict[str, Any]:
    """What a cluster file asks for; its key does not matter here and need not be there."""
    variables = yaml.safe_load((ROOT / "roles/ec2/vars/main.yml").read_text(encoding="utf-8"))
    inventory = ["masters", "workers", *variables["ec2_components"]]
    with tempfile.NamedTemporaryFile("w", suffix=".pub") as key:
        key.write("ssh-ed25519 AAAA nobody\n")
        key.flush()
        try:
            content = yaml.safe_load(cluster_file.text_of(str(path)))
            text = yaml.safe_dump({**content, "key": key.name}) if isinstance(content, dict) else ""
            found = cluster_file.parse(str(path), text, inventory)
        except (cluster_file.ClusterError, yaml.YAMLError) as error:
            raise CostError(f"{path}: {error}") from error
    return {**desired.desired(found, {}, "0"), "region": found["region"], "name": found["name"]}


def cost(path: Path, given: dict[str, float], cores_of: dict[str, int]) -> Cost:
    """Compute the cost of one cluster file, and of as many owned cores."""
    asked, table = wanted(path), price_table()
    prices, hours = price.by_table(table, asked["region"]), table["hours"]
    estimate = price.estimate(asked, prices, hours)
    if estimate["unknown"]:
        raise CostError(f"{path}: no price for {', '.join(estimate['unknown'])}; write it into roles/ec2/vars/main.yml")
    nodes = [node for node in asked["nodes"] if node["group"] != desired.BASTION]
    lacking = sorted({node["type"] for node in nodes} - cores_of.keys())
    if lacking:
        raise CostError(f"{path}: how many virtual cores has {', '.join(lacking)}? Write it into docs/reference/cost.yml, under cores")
    cores = sum(cores_of[node["type"]] for node in nodes)
    saved = sum(prices[node["type"]] for node in nodes if node["spot"]) * (1 - given["spot_price"])
    hour, stopped_month = estimate["hour"] - saved, estimate["stopped_month"] - saved * hours
    fixed = given["ec2_other_month"] + given["ec2_staff_month"]
    hosts = max(math.ceil(cores / given["host_cores"]), int(given["hosts_least"]))
    power = given["host_watts"] / 1000 * hours * given["pue"] * given["kwh_price"]
    host_month = given["host_price"] / (given["host_years"] * 12) + power + given["host_place_month"]
    event_us = given["copies_factor"] * (given["stream_us"] + given["bridge_us"] + given["batch_us"] * given["batch_runs"])
    return Cost(
        name=asked["name"],
        cores=cores,
        ec2=hour * hours + fixed,
        ec2_stopped=stopped_month + fixed,
        ec2_running_hour=hour - stopped_month / hours,
        hosts=hosts,
        owned=hosts * host_month + given["owned_staff_month"],
        capacity=cores * given["core_ratio"] * given["most_used"] * 1e6 / event_us,
    )


def rows(costs: list[Cost], given: dict[str, float]) -> list[str]:
    """The table: a row a cluster."""
    load = given["events_a_day"] * MONTH_DAYS
    lines = []
    for one in costs:
        most = one.capacity * 86_400 * MONTH_DAYS
        takes = one.capacity * 86_400 >= given["events_a_day"]
        at_load = [f"${one.per_million(dollars, load):.3f}" if takes else "too small" for dollars in (one.ec2, one.owned)]
        at_most = [f"${one.per_million(dollars, most):.3f}" for dollars in (one.ec2, one.owned)]
        lines.append(
            f"| `{one.name}` | {one.cores} | ${one.ec2:,.0f} | {one.hosts} | ${one.owned:,.0f} | {at_load[0]} | {at_load[1]} "
            f"| {one.capacity:,.0f} | {at_most[0]} | {at_most[1]} | {one.even_hours:.0f} |"
        )
    return lines


def page(source: dict[str, Any], given: dict[str, float], costs: list[Cost]) -> str:
    """Write the page."""
    table = price_table()
    reasons = {name: reason for name, (_value, reason) in source["assumptions"].items()}
    told = [f"| `{name}` | {given[name]:,.10g} | {reason} |" for name, reason in reasons.items()]
    return "\n".join(
        [
            "# What a million events cost",
            DO_NOT_EDIT,
            "A cluster file on EC2 beside as many virtual cores of hosts of one's own. **Most of it is assumed**: the prices of EC2 are",
            f"from a table of {table['date']} for the file's region, the CPU times were measured on one small machine, and everything",
            "about owned hosts is a guess to be replaced by yours. The page shows how the price depends on them:",
            "",
            "    python tools/cost.py --set events_a_day=5000000 --set host_price=6500 --set spot_price=0.4 my-cluster.yml",
            "",
            f"`at load`: {given['events_a_day']:,.0f} events a day. `at most`: as many as the cores take. A cluster is paid whether it is",
            "used or not, so an event is cheap when there are many. `even`: hours a month for which the cluster on EC2, stopped in the",
            f"others, costs as much as owned hosts; a month has {table['hours']}. More means that EC2 is cheaper even when it always runs.",
            "",
            "| cluster | cores | EC2 a month | hosts | owned a month | EC2, a million at load | owned, a million at load "
            "| events/s at most | EC2, a million at most | owned, a million at most | even, hours |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
            *rows(costs, given),
            "",
            "## The assumptions",
            "| variable | value | what, and where from |",
            "|---|---:|---|",
            *told,
            "",
            "## How it is computed",
            "- EC2 a month: what `ec2-plan` shows, with spot nodes at `spot_price`, and `ec2_other_month` and `ec2_staff_month`.",
            "- hosts: cores / `host_cores`, at least `hosts_least`.",
            "- owned a month: hosts × (`host_price` / (12 × `host_years`) + `host_watts` / 1000 × "
            f"{table['hours']} × `pue` × `kwh_price` + `host_place_month`) + `owned_staff_month`.",
            "- CPU of an event: `copies_factor` × (`stream_us` + `bridge_us` + `batch_us` × `batch_runs`).",
            "  The batch is most of it: with it once a day, over two days, `batch_runs` is 2.",
            "- events/s at most: cores × `core_ratio` × `most_used` / CPU of an event. Disks, memory and Elasticsearch may end sooner;",
            "  that more cores take more events in proportion was not measured. At far lower rates an event takes more CPU,",
            "  of cores that are idle then.",
            "- even: (owned a month - what EC2 costs stopped) / (what it costs an hour more when it runs).",
            "",
        ]
    )


def settings(source: dict[str, Any], changes: Sequence[str]) -> dict[str, float]:
    """The assumptions, with those of the command line."""
    given = {name: float(value) for name, (value, _reason) in source["assumptions"].items()}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in given:
            raise CostError(f"--set {change}: there is no {name}; docs/reference/cost.yml has {', '.join(given)}")
        try:
            given[name] = float(text)
        except ValueError:
            raise CostError(f"--set {change}: {text!r} is no number") from None
    positive = ("events_a_day", "stream_us", "copies_factor", "core_ratio", "most_used", "host_cores", "host_years")
    wrong = [name for name, value in given.items() if not 0 <= value < math.inf or (name in positive and not value)]
    if wrong:
        raise CostError(f"{', '.join(wrong)}: give a number above 0, or 0 where something may cost nothing")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only tell whether the page is stale")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another value of an assumption")
    parser.add_argument("clusters", nargs="*", type=Path, metavar="CLUSTER", help="cluster files in the place of the examples")
    options = parser.parse_args(arguments)
    target = REFERENCE / "cost.md"
    try:
        source = yaml.safe_load((REFERENCE / "cost.yml").read_text(encoding="utf-8"))
        given = settings(source, options.set)
        paths = options.clusters or [ROOT / path for path in source["clusters"]]
        text = page(source, given, [cost(path, given, source["cores"]) for path in paths])
    except CostError as error:
        print(f"cost: {error}", file=sys.stderr)
        return 1
    if options.set or options.clusters:
        print(text)
        return 0
    if options.check:
        stale = not target.exists() or target.read_text(encoding="utf-8") != text
        if stale:
            print(f"cost: {target} is stale. Next: python tools/cost.py", file=sys.stderr)
        return int(stale)
    target.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
