"""The lab keeps its promises: real systemd, names, SSH, failures of hosts and of the network, clear refusals, and no trace left."""

from __future__ import annotations

import importlib
import ipaddress
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import machine
from appliance import ROOT
from hosts import LAB, Hosts, missing

pytestmark = [pytest.mark.lab, pytest.mark.skipif(bool(missing()), reason=missing() or "a lab can be made")]

NAMES = ("alpha", "beta", "gamma")


def left_behind(before: machine.Snapshot, but: str = "nothing") -> list[str]:
    """What differs from a snapshot, but one kind of thing, once the kernel has had the time to take namespaces apart."""
    deadline = time.monotonic() + 10
    while True:
        found = [entry for entry in machine.differences(before, machine.snapshot()) if not entry.startswith(f"{but}: ")]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


@pytest.fixture(scope="module")
def image() -> None:
    """The base image, built before anything is measured."""
    Hosts("image").do("base", timeout=900)


@pytest.fixture(scope="module")
def lab(image: None) -> Iterator[Hosts]:
    """Three hosts; at the end the machine must be as it was before."""
    before = machine.snapshot()
    hosts = Hosts("test-three")
    hosts.do("destroy")
    started = time.monotonic()
    hosts.do("create", *NAMES)
    print(f"\n{len(NAMES)} hosts in {time.monotonic() - started:.1f} s")
    yield hosts
    hosts.do("destroy")
    assert left_behind(before) == []
    assert not hosts.directory.exists()


@pytest.fixture
def single(image: None) -> Iterator[Hosts]:
    """A lab of a name of its own that a test makes, and may maltreat."""
    hosts = Hosts("test-one")
    hosts.do("destroy")
    yield hosts
    hosts.do("destroy")


def test_hosts_are_real_systemd_machines_without_failed_units(lab: Hosts) -> None:
    for name in NAMES:
        assert lab.on(name, "cat /proc/1/comm; systemctl is-system-running; systemctl --failed -q").split() == ["systemd", "running"]
        assert lab.on(name, "hostname; systemctl is-active ssh dbus systemd-journald systemd-logind").split() == [name, *["active"] * 4]
    for own in ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub", "/proc/sys/kernel/random/boot_id"):
        assert len({lab.on(name, f"cat {own}") for name in NAMES}) == len(NAMES), own


def test_hosts_reach_one_another_by_name_and_nothing_else(lab: Hosts) -> None:
    for one in NAMES:
        for other in NAMES:
            lab.on(one, f"ping -c 1 -W 2 -q {other}")
    refused = "import socket; socket.setdefaulttimeout(5); socket.create_connection(('192.0.2.1', 80))"
    done = lab.attempt("exec", "alpha", "--", "python3", "-c", refused)
    assert "Network is unreachable" in done.stderr, "the lab has no way out, and says so at once"


def test_ssh_knows_the_hosts_and_their_keys(lab: Hosts) -> None:
    assert lab.do("ssh", "beta", "--", "hostname; id -un").split() == ["beta", "root"]
    assert stat.S_IMODE((lab.directory / "id_ed25519").stat().st_mode) == 0o600
    assert stat.S_IMODE(lab.directory.stat().st_mode) == 0o700
    data = os.urandom(3_000_000)
    copy = subprocess.run([*lab.command("ssh", "beta"), "--", "cat"], input=data, capture_output=True, timeout=60, check=True).stdout
    assert copy == data


def test_a_host_cannot_change_the_machine(lab: Hosts) -> None:
    assert not lab.succeeds("alpha", "echo 1 > /proc/sys/vm/overcommit_memory")
    assert not lab.succeeds("alpha", "test -w /proc/sysrq-trigger && echo h > /proc/sysrq-trigger")
    assert not lab.succeeds("alpha", "date -s @0")
    assert not lab.succeeds("alpha", "mknod /root/disk b 8 0")
    assert not lab.succeeds("alpha", "echo 0 > /sys/kernel/mm/ksm/run")
    lab.on("alpha", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    assert lab.on("beta", "cat /proc/sys/net/ipv4/ip_forward").strip() == "0"


def test_packages_come_through_the_proxy_and_nothing_else_does(lab: Hosts) -> None:
    lab.on("gamma", "timeout 60 apt-get update -qq -o Acquire::Retries=0")
    lab.on("gamma", "apt-cache policy openjdk-17-jre-headless | grep -q 'Candidate: 17'")
    said = lab.on("gamma", "curl -s -o /dev/null -w '%{http_code}' -x http://gateway:3128 http://192.0.2.9/")
    assert said == "403"


def test_a_cut_host_is_alone_until_healed(lab: Hosts) -> None:
    lab.do("cut", "beta")
    assert not lab.succeeds("alpha", "ping -c 1 -W 1 -q beta")
    assert not lab.succeeds("beta", "ping -c 1 -W 1 -q alpha")
    lab.on("alpha", "ping -c 1 -W 2 -q gamma")
    assert not lab.status()["beta"]["connected"]
    lab.do("reboot", "beta")
    assert not lab.succeeds("alpha", "ping -c 1 -W 1 -q beta"), "the cable is pulled still"
    lab.do("heal", "beta")
    lab.on("alpha", "ping -c 1 -W 2 -q beta")


def test_a_partition_parts_two_sides_and_leaves_the_rest(lab: Hosts) -> None:
    lab.do("partition", "alpha", "beta,gamma")
    assert not lab.succeeds("alpha", "ping -c 1 -W 1 -q beta")
    assert not lab.succeeds("gamma", "ping -c 1 -W 1 -q alpha")
    lab.on("beta", "ping -c 1 -W 2 -q gamma")
    assert lab.do("ssh", "alpha", "hostname").strip() == "alpha", "this machine reaches both sides"
    assert lab.status()["alpha"]["separated"] == ["beta", "gamma"]
    lab.do("heal", "beta")
    lab.on("beta", "ping -c 1 -W 2 -q alpha")
    assert not lab.succeeds("gamma", "ping -c 1 -W 1 -q alpha")
    lab.do("heal")
    lab.on("gamma", "ping -c 1 -W 2 -q alpha")


def test_a_halted_host_starts_with_what_it_had(lab: Hosts) -> None:
    lab.on("beta", "echo kept > /root/kept")
    lab.do("halt", "beta")
    assert lab.status()["beta"]["state"] == "halted"
    assert "not running (halted)" in lab.refuse("exec", "beta", "true")
    assert "not running (halted)" in lab.refuse("halt", "beta")
    lab.do("start", "beta")
    assert lab.on("beta", "cat /root/kept").strip() == "kept"
    assert "runs already" in lab.refuse("start", "beta")
    lab.on("alpha", "ping -c 1 -W 2 -q beta")


def test_a_crash_ends_everything_at_once(lab: Hosts) -> None:
    lab.on("gamma", "printf '#!/bin/sh\\ntouch /root/stopped\\n' > /root/stop; chmod +x /root/stop")
    lab.on("gamma", "systemd-run -q -p ExecStop=/root/stop sleep 1000; echo kept > /root/kept")
    started = time.monotonic()
    lab.do("crash", "gamma")
    assert time.monotonic() - started < 3
    assert lab.status()["gamma"]["state"] == "crashed"
    lab.do("start", "gamma")
    assert lab.on("gamma", "ls /root").split() == ["kept", "stop"], "no unit was stopped in order"


@pytest.mark.parametrize("how", ["from outside", "from inside"])
def test_a_reboot_is_seen_as_one(lab: Hosts, how: str) -> None:
    asked = "cat /proc/sys/kernel/random/boot_id; journalctl --list-boots -q | wc -l"
    boot, boots = lab.on("alpha", asked).split()
    if how == "from outside":
        lab.do("reboot", "alpha")
    else:
        asked_for = lab.attempt("exec", "alpha", "--", "systemctl", "--no-block", "reboot")
        names, boots_seen = set(), set()
        kernels = Path("/proc/sys/kernel/random/boot_id").read_text().strip()  # shows where a host that ends has unmounted its own

        def up_again() -> bool:
            """Look at the host all the while: what is seen must be the host's, though its first process begins on the machine's disk."""
            try:
                done = lab.attempt("exec", "alpha", "--", "cat", "/etc/hostname", "/proc/sys/kernel/random/boot_id", timeout=10)
            except subprocess.TimeoutExpired:
                return False  # it went down under the command
            if done.returncode == 0:
                name, seen = done.stdout.split()
                names.add(name)
                boots_seen.add(seen)
            return bool(boots_seen - {boot, kernels}) and lab.status()["alpha"]["state"] == "running"

        deadline = time.monotonic() + 120
        while not up_again():
            assert time.monotonic() < deadline, f"it is not up again: {asked_for}, seen {boots_seen}, state {lab.status()['alpha']}"
        assert names == {"alpha"} and len(boots_seen - {boot, kernels}) == 1, (names, boots_seen)
    again, more = lab.on("alpha", asked).split()
    assert again != boot
    assert int(more) == int(boots) + 1


def test_hosts_come_and_go_one_by_one(lab: Hosts) -> None:
    lab.do("create", "delta")
    lab.on("alpha", "ping -c 1 -W 2 -q delta")
    address = lab.status()["delta"]["address"]
    lab.do("destroy", "delta")
    assert list(lab.status()) == list(NAMES)
    assert not lab.succeeds("alpha", "getent hosts delta")
    assert not (lab.directory / "hosts" / "delta").exists()
    lab.do("create", "epsilon")
    assert lab.status()["epsilon"]["address"] == address
    lab.do("destroy", "epsilon")


def test_the_inventory_is_ansibles(lab: Hosts) -> None:
    inventory = json.loads(lab.do("inventory", "--group", "masters=alpha,beta", "--group", "workers=gamma"))["all"]
    assert list(inventory["hosts"]) == list(NAMES)
    assert list(inventory["children"]["masters"]["hosts"]) == ["alpha", "beta"]
    assert "has no host nobody" in lab.refuse("inventory", "--group", "masters=nobody")
    assert "is no group" in lab.refuse("inventory", "--group", "masters")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create", "Upper"], "cannot be the name of a host"),
        (["create", "../escape"], "cannot be the name of a host"),
        (["create", "x" * 31], "cannot be the name of a host"),
        (["create", "trailing-"], "cannot be the name of a host"),
        (["create", "gateway"], "cannot be the name of a host"),
        (["create", "visitors"], "cannot be the name of a host"),
        (["create", "alpha"], "has a host alpha already"),
        (["create", "new", "new"], "a host is named twice"),
        (["create"], "arguments are required: HOST"),
        (["create", "new=10.1.1"], "is no address"),
        (["create", "new=192.0.2.7"], "is no address of a host in"),
        (["create", "--network", "10.9.0.0/20", "new"], "has the network"),
        (["cut", "nobody"], "has no host nobody; it has alpha, beta, gamma"),
        (["crash", "alpha", "nobody"], "has no host nobody"),
        (["partition", "alpha", "alpha,beta"], "alpha cannot be on both sides"),
        (["partition", "alpha", ""], "has no host"),
        (["start", "alpha"], "runs already"),
        (["ssh", "nobody"], "has no host nobody"),
        (["juggle", "alpha"], "invalid choice: 'juggle'"),
    ],
    ids=lambda value: "-".join(value)[:30] if isinstance(value, list) else "",
)
def test_nonsense_is_refused_with_what_to_do(lab: Hosts, words: list[str], said: str) -> None:
    answer = lab.refuse(*words)
    assert said in answer
    assert "Next: " in answer or "usage: " in answer
    assert {name: host["state"] for name, host in lab.status().items()} == dict.fromkeys(NAMES, "running"), "nothing was touched"


def test_a_lab_that_is_not_there_is_named(single: Hosts) -> None:
    assert "there is no lab test-one" in single.refuse("status")
    assert "cannot be the name of a lab" in Hosts("../x").refuse("status")


def test_labs_stand_side_by_side(lab: Hosts, single: Hosts) -> None:
    single.do("create", "alpha")
    address, other = lab.status()["alpha"]["address"], single.status()["alpha"]["address"]
    assert address != other
    assert not lab.succeeds("alpha", f"ping -c 1 -W 1 -q {other}")
    listed = single.do("list").splitlines()
    assert {"test-one: alpha", "test-three: alpha beta gamma"} <= set(listed)
    single.do("destroy")
    lab.on("alpha", "ping -c 1 -W 2 -q beta")


def test_network_and_addresses_may_be_chosen(lab: Hosts, single: Hosts) -> None:
    assert "is not a private network" in single.refuse("create", "--network", "198.51.96.0/20", "alpha")
    single.do("create", "--network", str(ipaddress.ip_network(lab.status()["alpha"]["address"] + "/20", strict=False)), "alpha")
    single.do("destroy")
    single.do("create", "--network", "10.9.0.0/20", "one=10.9.2.7", "two=10.9.15.254", "three")
    assert {name: host["address"] for name, host in single.status().items()} == {
        "one": "10.9.2.7",
        "two": "10.9.15.254",
        "three": "10.9.0.11",
    }
    single.on("one", "ping -c 1 -W 2 -q two && ping -c 1 -W 2 -q three")
    assert single.do("ssh", "two", "--", "hostname").strip() == "two"
    assert "is the address of one" in single.refuse("create", "four=10.9.2.7")
    for address in ("10.9.0.1", "10.9.15.255", "10.9.16.1"):
        assert "is no address of a host in 10.9.0.0/20" in single.refuse("create", f"four={address}")


def test_the_page_shows_every_verb_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(LAB.parent)
    parser = importlib.import_module("lab").parser()
    (verbs,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    lines = re.findall(r"^    \$lab (.*)$", (ROOT / "docs/operations/lab.md").read_text(), re.MULTILINE)
    shown = {parser.parse_args(shlex.split(re.split("[;>]", line)[0], comments=True)).verb for line in lines}
    assert shown | {"connect"} == set(verbs)


def kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def processes(hosts: Hosts) -> list[int]:
    """The monitor and the holder, as /proc/locks tells."""
    inode = (hosts.directory / "lock").stat().st_ino
    locks = [line.split() for line in open("/proc/locks")]
    return [int(lock[4]) for lock in sorted(locks, key=lambda lock: lock[6]) if lock[5].endswith(f":{inode}")]


@pytest.mark.parametrize("victims", [slice(0, 1), slice(1, 2), slice(0, 2)], ids=["monitor", "holder", "both"])
def test_a_killed_lab_leaves_nothing(single: Hosts, victims: slice) -> None:
    before = machine.snapshot()
    single.do("create", "alpha", "beta")
    with subprocess.Popen(single.command("ssh", "alpha", "sleep 100"), stderr=subprocess.DEVNULL) as visitor:
        single.do("exec", "alpha", "--", "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &")
        seen = {entry.partition(":")[0] for entry in machine.differences(before, machine.snapshot())}
        assert seen == {"namespaces", "control groups", "processes"}, "the snapshot sees a running lab, which changes nothing else"
        kill(processes(single)[victims])
        if victims == slice(0, 2):
            assert left_behind(before, but="control groups") == [], "the kernel ends all but the empty groups"
            assert "is dead" in single.refuse("status")
            assert "test-one: dead" in single.do("list")
            assert "something of a lab test-one is still there" in single.refuse("create", "alpha")
            single.do("destroy")
        assert visitor.wait(timeout=30) != 0
    assert left_behind(before) == []
    assert not single.directory.exists()


@pytest.mark.parametrize("after_s", [0.15, 0.3, 0.5, 0.8, 1.3])
def test_a_killed_create_is_cleared_up_by_destroy(single: Hosts, after_s: float) -> None:
    before = machine.snapshot()
    with subprocess.Popen(single.command("create", "alpha", "beta"), stdout=subprocess.DEVNULL) as create:
        time.sleep(after_s)  # not a wait for anything: the moment of the kill
        create.kill()
    single.do("destroy")
    assert left_behind(before) == []
    assert not single.directory.exists()
