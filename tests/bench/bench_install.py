"""How the time of an installation grows with the hosts: from bare systemd hosts to a cluster whose smoke tests pass.

``python tests/bench/bench_install.py --hosts 1,3,6,12 --output DIR``, as root where a test lab can be made: for each number hosts are
made, the appliance is installed over SSH, its smoke tests are run, and it is installed once more, which must change
nothing; then the hosts are removed. One host is an appliance of its own; of three each is master and worker; beyond
three, three are masters and the others workers. All hosts share this machine's cores, which hosts of a site do not.
Exit code 1 if a run fails or the second one changes something.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import record

from appliance import ROOT, run
from clusters import SMALL, pretend_open_files
from hosts import Hosts, changed, missing

LAB = "bench-install"
NO_OP_S = 120
"""What a run that changes nothing may take."""


def placed(count: int) -> tuple[list[str], list[str]]:
    """The masters and the workers of so many hosts; none where one host is an appliance of its own."""
    names = [f"h{number}" for number in range(1, count + 1)]
    if count == 1:
        return [], names
    return names[:3], names if count == 3 else names[3:]


def timed(command: list[str]) -> tuple[float, str]:
    """Run a command; return the seconds it took, and what it printed."""
    began = time.monotonic()
    said = run(command, env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}, timeout=3600)
    return round(time.monotonic() - began, 1), said


def measure(count: int, directory: Path) -> dict[str, Any]:
    """Make so many hosts, install, check, install again, and remove them."""
    hosts = Hosts(LAB)
    hosts.do("destroy")
    masters, workers = placed(count)
    names = sorted({*masters, *workers}, key=lambda name: int(name[1:]))
    try:
        began = time.monotonic()
        hosts.do("create", *names, timeout=900)
        seconds: dict[str, float] = {"create_s": round(time.monotonic() - began, 1)}
        groups = [f"--group={group}={','.join(members)}" for group, members in (("masters", masters), ("workers", workers)) if masters]
        inventory = json.loads(hosts.do("inventory", *groups))
        if masters:
            inventory["all"]["vars"] |= SMALL
            pretend_open_files(hosts, workers, directory)
        site = hosts.directory / "site" / "hosts.json"
        site.parent.mkdir()
        site.write_text(json.dumps(inventory))
        play = ["ansible-playbook", "-i", str(site)]
        seconds["install_s"], _ = timed([*play, "playbooks/site.yml"])
        seconds["smoke_s"], _ = timed([*play, "playbooks/smoke.yml"])
        seconds["again_s"], said = timed([*play, "playbooks/site.yml"])
        assert changed(said) == 0, said
    finally:
        hosts.do("destroy")
    return {"name": f"{count} host{'s' if count > 1 else ''}", "hosts": count, **seconds}


def main() -> int:
    """Measure each number of hosts and write the results; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", default="1,3,6,12", help="how many, by commas (default: %(default)s)")
    parser.add_argument("--output", default="build/bench", type=Path, help="directory of the JSON (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        counts = [int(number) for number in arguments.hosts.split(",")]
    except ValueError:
        parser.error("--hosts: numbers, separated by commas")
    if not set(counts).isdisjoint({0, 2}) or min(counts) < 1:
        parser.error("--hosts: 1, or 3 and more: a cluster has three masters")
    if missing():
        parser.error(missing())
    described = record.machine()
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in counts:
            results.append(measure(count, Path(scratch)))
            print(json.dumps(results[-1]), flush=True)
    path = record.write(arguments.output, "install", described, {"settings": SMALL}, results)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
