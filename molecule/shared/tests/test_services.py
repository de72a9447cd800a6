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

LAB = Path(__file__).parents[3] / "tests" / "lab" / "lab.py"
ENGINE = os.environ.get("GRIDSTEAD_TEST_ENGINE", "")
NAMED = os.environ["GRIDSTEAD_SCENARIO_SERVICES"].split()
MAY_LISTEN = set(os.environ.get("GRIDSTEAD_SCENARIO_LISTEN", "").split())
LOOPBACK = re.compile(r"(\[::ffff:127\.0\.0\.1\]|127\.0\.0\.1|\[::1\]):")


@pytest.fixture
def units(host: Any) -> list[str]:
    found: list[str] = host.run("systemctl list-unit-files --no-legend 'gridstead-*.service'").stdout.split()[::3]
    assert {f"gridstead-{name}.service" for name in NAMED} == set(found)
    return found


def properties(host: Any, unit: str, *names: str) -> dict[str, str]:
    shown = host.check_output(f"systemctl show {unit} " + " ".join(f"-p {name}" for name in names))
    return dict(line.split("=", 1) for line in shown.splitlines())


def test_services_are_enabled_and_run_without_root(host: Any, units: list[str]) -> None:
    for unit in units:
        shown = properties(host, unit, "UnitFileState", "ActiveState", "MainPID")
        assert (shown["UnitFileState"], shown["ActiveState"]) == ("enabled", "active"), unit
        assert host.check_output(f"ps -o user= -p {shown['MainPID']}") != "root", unit


def test_services_have_their_limit_of_open_files(host: Any, units: list[str]) -> None:
    for unit in units:
        pid = properties(host, unit, "MainPID")["MainPID"]
        assert limit(host, pid, "$4") == min(65536, limit(host, "1", "$5")), unit  # a machine may forbid its hosts to go beyond its own


def limit(host: Any, pid: str, column: str) -> int:
    """The soft ($4) or hard ($5) limit of open files of a process."""
    return int(host.check_output(f"awk '/Max open files/ {{print {column}}}' /proc/{pid}/limits"))


def test_nothing_listens_beyond_this_host(host: Any) -> None:
    found = [line.split()[4] for line in host.check_output("ss -Hlntup").splitlines() if "sshd" not in line]
    assert bool(found) == bool(NAMED)
    assert {address for address in found if not LOOPBACK.match(address)} <= MAY_LISTEN


def test_configuration_is_not_for_others_to_write(host: Any) -> None:
    written = "find /etc/gridstead /opt/gridstead /var/lib/gridstead /var/log/gridstead -not -type l -perm /o=w 2>/dev/null"
    assert host.run(written).stdout == ""
    assert host.run("find /opt/gridstead -user gridstead -type f -name '*.jar'").stdout == "", "a service could replace its program"


def test_services_come_back_after_a_kill_and_a_reboot(host: Any, units: list[str]) -> None:
    for unit in units:
        pid = properties(host, unit, "MainPID")["MainPID"]
        host.check_output(f"kill -9 {pid}")
        wait_for(host, [unit], {pid})
    name = host.check_output("hostname")
    lab = [sys.executable, str(LAB), "--lab", "molecule", "reboot", name]
    subprocess.run([ENGINE, "restart", f"gridstead-molecule-{name}"] if ENGINE else lab, check=True, capture_output=True)
    wait_for(host, units, set())
    assert host.run("systemctl --failed --no-legend").stdout == ""


def wait_for(host: Any, units: list[str], without: set[str]) -> None:
    """Wait until services are up again, as other processes than those, and stay so for three seconds."""
    until = time.monotonic() + 120
    up = 0
    while up < 3:
        assert time.monotonic() < until, f"{units} did not come back"
        shown = [properties(host, unit, "ActiveState", "MainPID") for unit in units]
        up = up + 1 if all(s["ActiveState"] == "active" and s["MainPID"] not in {*without, "0"} for s in shown) else 0
        time.sleep(1)
