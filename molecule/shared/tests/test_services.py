"""What is asked of every role on a real host, whatever it runs (pytest-testinfra; molecule gives ``host``).

The services are those that systemd knows as gridstead-*; a scenario names the ones that must be among them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
LAB = ROOT / "tests" / "lab" / "lab.py"
ENGINE = os.environ.get("GRIDSTEAD_TEST_ENGINE", "")
SERVES_OTHERS = "GRIDSTEAD_SCENARIO_CLUSTER" in os.environ
PORTS: dict[str, int] = yaml.safe_load((ROOT / "roles/common/defaults/main/ports.yml").read_text())["gridstead_base_ports"]
LISTENS = {  # also as a standby; of two message brokers only the active one listens
    service: PORTS[text.partition("gridstead_ports.")[2].split()[0]]
    for service, text in yaml.safe_load((ROOT / "roles/service/vars/restart.yml").read_text())["_service_ports"].items()
} | ({} if SERVES_OTHERS else {"activemq": PORTS["activemq"]})
DRAWN = 32768  # from here on the kernel draws ports, for drivers and executors of Spark
AS_ROOT = {"gridstead-spot.service"}  # it stops what systemd runs
MAY_LISTEN = {"*:13562"}  # Hadoop's ShuffleHandler has no setting for its address (docs/decisions/0005)


@pytest.fixture
def named(host: Any) -> list[str]:
    """The services of this host: in a cluster each host has a variable of its own."""
    default = os.environ.get("GRIDSTEAD_SCENARIO_SERVICES", "")
    return os.environ.get(f"GRIDSTEAD_SCENARIO_SERVICES_{host.check_output('hostname').upper()}", default).split()


@pytest.fixture
def units(host: Any, named: list[str]) -> list[str]:
    found: list[str] = host.run("systemctl list-unit-files --no-legend 'gridstead-*.service'").stdout.split()[::3]
    assert {f"gridstead-{name}.service" for name in named} == set(found)
    return found


def properties(host: Any, unit: str, *names: str) -> dict[str, str]:
    shown = host.check_output(f"systemctl show {unit} " + " ".join(f"-p {name}" for name in names))
    return dict(line.split("=", 1) for line in shown.splitlines())


def test_services_are_enabled_and_run_without_root(host: Any, units: list[str]) -> None:
    for unit in units:
        shown = properties(host, unit, "UnitFileState", "ActiveState", "MainPID")
        assert (shown["UnitFileState"], shown["ActiveState"]) == ("enabled", "active"), unit
        user = "root" if unit in AS_ROOT else "gridstead"
        assert host.check_output(f"ps -o user= -p {shown['MainPID']}") == user, unit


def test_services_have_their_limit_of_open_files(host: Any, units: list[str]) -> None:
    for unit in units:
        pid = properties(host, unit, "MainPID")["MainPID"]
        assert limit(host, pid, "$4") == min(65536, limit(host, "1", "$5")), unit  # a machine may forbid its hosts to go beyond its own


def limit(host: Any, pid: str, column: str) -> int:
    """The soft ($4) or hard ($5) limit of open files of a process."""
    return int(host.check_output(f"awk '/Max open files/ {{print {column}}}' /proc/{pid}/limits"))


def listening(host: Any) -> set[int]:
    """Ports at which something else than SSH listens."""
    lines = host.check_output("ss -Hlntup").splitlines()
    return {int(line.split()[4].rpartition(":")[2]) for line in lines if "sshd" not in line}


def test_services_listen_at_their_ports_and_at_no_others(host: Any, named: list[str]) -> None:
    found = listening(host)
    assert {name: LISTENS[name] for name in named if name in LISTENS and LISTENS[name] not in found} == {}
    assert {port for port in found if port < DRAWN} <= set(PORTS.values())
    if "collector" in named:
        assert PORTS["collector_xrootd"] in found


def test_nothing_listens_beyond_this_host_or_the_address_of_the_cluster(host: Any, named: list[str]) -> None:
    found = [line.split()[4] for line in host.check_output("ss -Hlntup").splitlines() if "sshd" not in line]
    addresses = ["127.0.0.1", "::1", *(host.check_output("hostname -I").split() if SERVES_OTHERS else [])]
    allowed = re.compile("|".join(rf"(\[::ffff:{a}\]|\[?{a}\]?):\d+" for a in map(re.escape, addresses)))
    assert bool(found) == bool(named)
    assert {address for address in found if not allowed.fullmatch(address)} <= MAY_LISTEN


def test_logs_go_to_the_journal_which_rotates_them(host: Any, units: list[str]) -> None:
    for unit in units:
        assert properties(host, unit, "StandardOutput")["StandardOutput"] == "journal", unit
        assert host.check_output(f"journalctl --unit {unit} --lines 1 --output cat"), unit
    files = "find /var/log/gridstead -type f -not -path '*/yarn-containers/*'"  # a NodeManager removes those that it has aggregated
    assert host.run(files).stdout == ""
    kept = host.check_output("journalctl --quiet --header | grep -c '^File path'")
    host.check_output("journalctl --rotate")
    assert int(host.check_output("journalctl --quiet --header | grep -c '^File path'")) > int(kept)


def test_configuration_is_not_for_others_to_write(host: Any) -> None:
    written = "find /etc/gridstead /opt/gridstead /var/lib/gridstead /var/log/gridstead -not -type l -perm /o=w 2>/dev/null"
    assert host.run(written).stdout == ""
    assert host.run("find /opt/gridstead -user gridstead -type f -name '*.jar'").stdout == "", "a service could replace its program"


def test_services_come_back_after_a_kill_and_a_reboot(host: Any, named: list[str], units: list[str]) -> None:
    for unit in units:
        pid = properties(host, unit, "MainPID")["MainPID"]
        host.check_output(f"kill -9 {pid}")
        wait_for(host, [unit], {pid})
    name = host.check_output("hostname")
    booted = host.check_output("cat /proc/sys/kernel/random/boot_id")
    lab = [sys.executable, str(LAB), "--lab", "molecule", "reboot", name]
    subprocess.run([ENGINE, "restart", f"gridstead-molecule-{name}"] if ENGINE else lab, check=True, capture_output=True)
    wait_for(host, units, set())
    assert ENGINE or host.check_output("cat /proc/sys/kernel/random/boot_id") != booted
    wanted = {LISTENS[name] for name in named if name in LISTENS}
    until = time.monotonic() + 300
    while missing := wanted - listening(host):
        assert time.monotonic() < until, f"after the reboot nothing listens at {missing}"
        time.sleep(2)
    assert {unit: properties(host, unit, "UnitFileState")["UnitFileState"] for unit in units} == dict.fromkeys(units, "enabled")
    assert host.run("systemctl --failed --no-legend").stdout == ""


def wait_for(host: Any, units: list[str], without: set[str]) -> None:
    """Wait until services are up again, as other processes than those, and stay so for three seconds."""
    until = time.monotonic() + 120
    up, before = 0, None
    while up < 3:
        assert time.monotonic() < until, f"{units} did not come back"
        shown = [properties(host, unit, "ActiveState", "MainPID") for unit in units]
        same = shown == before  # and not others again and again
        up = up + 1 if same and all(s["ActiveState"] == "active" and s["MainPID"] not in {*without, "0"} for s in shown) else 0
        before = shown
        time.sleep(1)
