"""The page of costs: never stale, what it says of a cluster file can be computed by hand, and its variables can be changed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ONE = {
    "name": "one",
    "region": "us-east-1",
    "zones": ["us-east-1a"],
    "access": ["203.0.113.0/24"],
    "key": "/nowhere/id.pub",
    "internet": False,
    "groups": {
        "master": {"inventory": ["masters"], "type": "m5.2xlarge", "count": 1},
        "worker": {"inventory": ["workers"], "type": "m5.4xlarge", "count": 2, "spot": 0.5, "volumes": [{"size": 500}]},
    },
}


def cost(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ROOT / "tools" / "cost.py", *arguments], capture_output=True, text=True)


def row(text: str) -> list[float]:
    """The numbers of the first cluster's row."""
    (line,) = (line for line in text.splitlines() if line.startswith("| `one` |"))
    return [float(cell.strip(" $").replace(",", "")) for cell in line.split("|")[2:-1]]


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "one.yml"
    path.write_text(yaml.safe_dump(ONE))
    return path


def test_the_page_is_what_the_assumptions_say() -> None:
    checked = cost("--check")
    assert checked.returncode == 0, checked.stderr


def test_a_row_is_what_one_computes_by_hand(cluster: Path) -> None:
    changes = {
        "events_a_day": 24_000_000, "stream_us": 90, "bridge_us": 10, "batch_us": 50, "batch_runs": 2,
        "copies_factor": 2, "core_ratio": 1, "most_used": 0.4,
        "spot_price": 0.5, "ec2_other_month": 10, "ec2_staff_month": 20,
        "host_cores": 32, "host_price": 6000, "host_years": 5, "hosts_least": 1, "host_watts": 200, "kwh_price": 0.25, "pue": 1.6,
        "host_place_month": 30, "owned_staff_month": 500,
    }  # fmt: skip
    known = yaml.safe_load((ROOT / "docs/reference/cost.yml").read_text())["assumptions"]
    assert changes.keys() == known.keys(), "every assumption is tried"
    shown = cost(*[f"--set={name}={value}" for name, value in changes.items()], cluster)
    assert shown.returncode == 0, shown.stderr
    gib = 8 + 30 + 2 * (30 + 500)  # bastion, master, workers
    hour = 0.0104 + 0.384 + 0.768 + 0.768 * 0.5 + 0.005
    ec2 = hour * 730 + gib * 0.08 + 30
    owned = 2 * (6000 / 60 + 0.2 * 730 * 1.6 * 0.25 + 30) + 500
    capacity = 40 * 0.4 * 1e6 / (2 * (100 + 50 * 2))
    load = 24 * 365 / 12
    most = capacity * 86_400 * 365 / 12 / 1e6
    stopped = 0.005 + 0.768 * 0.5  # the address, and the spot node, which AWS does not stop
    even = (owned - (gib * 0.08 + stopped * 730 + 30)) / (hour - stopped)
    expected = [40, ec2, 2, owned, ec2 / load, owned / load, capacity, ec2 / most, owned / most, even]
    for found, computed, digits in zip(row(shown.stdout), expected, [0, 0, 0, 0, 3, 3, 0, 3, 3, 0], strict=True):
        assert found == pytest.approx(computed, abs=0.51 * 10**-digits)


def test_a_cluster_that_is_too_small_has_no_price_at_that_load(cluster: Path) -> None:
    shown = cost("--set=events_a_day=9e12", cluster)
    assert shown.stdout.count("too small") == 2


def test_nothing_is_written_for_other_values(cluster: Path) -> None:
    page = ROOT / "docs" / "reference" / "cost.md"
    before = page.read_bytes()
    assert "`kwh_price` | 0.7 |" in cost("--set=kwh_price=0.7", cluster).stdout
    assert page.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set=colour=3"], "there is no colour; docs/reference/cost.yml has events_a_day,"),
        (["--set=pue=much"], "'much' is no number"),
        (["--set=most_used=0"], "most_used: give a number above 0"),
        (["--set=kwh_price=-1"], "kwh_price: give a number above 0, or 0"),
        (["--set=kwh_price=nan"], "kwh_price: give a number above 0, or 0"),
        (["/nowhere.yml"], "/nowhere.yml: "),
    ],
)
def test_what_cannot_be_computed_is_told(arguments: list[str], told: str) -> None:
    refused = cost(*arguments)
    assert refused.returncode == 1
    assert told in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("m5.4xlarge", "x9.huge", "no price for 1 x9.huge"),
        ("region: us-east-1", "region: moon", "one.yml"),
        ("count: 1", "count: many", "count"),
    ],
)
def test_a_cluster_file_that_has_no_price_is_told(cluster: Path, old: str, new: str, told: str) -> None:
    cluster.write_text(re.sub(old, new, cluster.read_text(), count=1))
    refused = cost(cluster)
    assert refused.returncode == 1
    assert told in refused.stderr and "Traceback" not in refused.stderr
