#!/usr/bin/env python3
"""Test hosts: real systemd machines on a private network, made in seconds from one image, and removed without a trace.

A lab is a group of hosts with a name of its own; several may run side by side. Needs root, and Debian's debootstrap, iproute2, nftables,
openssh-client and util-linux. docs/operations/lab.md shows every verb.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kernel
from errors import LabError, run
from state import ROOT, WITHHELD, Lab, all_labs, check_name, check_network

BOOT_TIMEOUT_S = 90
END_TIMEOUT_S = 120
ENVIRONMENT = ["HOME=/root", "LANG=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]


def ask(lab: Lab, verb: str, **arguments: Any) -> Any:
    """Have the lab's holder do something; return its answer."""
    lab.holder()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(lab.control))
            with connection.makefile("rw") as stream:
                stream.write(json.dumps({"verb": verb, "arguments": arguments}) + "\n")
                stream.flush()
                reply = json.loads(stream.readline())
    except (OSError, ValueError) as error:
        raise LabError(f"the holder of lab {lab.name} does not answer, or has ended: {error}", f"{lab.command} destroy") from None
    if "error" in reply:
        raise Refused(reply["error"])
    return reply["result"]


class Refused(LabError):
    """What the holder answered, remedy included."""

    def __init__(self, message: str) -> None:
        """Keep the message as it is."""
        Exception.__init__(self, message)


def wait_until(condition: Callable[[], bool], timeout_s: float, problem: str, remedy: str) -> None:
    """Poll a condition until it holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"not within {timeout_s:.0f} s: {problem}", remedy)
        time.sleep(0.1)


def inside(pid: int, command: Sequence[str]) -> list[str]:
    """The command line that runs a command as root inside the host whose PID 1 this is, with a clean environment."""
    terminal = [f"TERM={os.environ['TERM']}"] if "TERM" in os.environ else []
    enter = ["nsenter", f"--target={pid}", "--all", "--root", "--wd", "setpriv", "--bounding-set", WITHHELD]
    return [*enter, "env", "-i", *ENVIRONMENT, *terminal, *command]


def state_of(host: dict[str, Any]) -> str:
    """What systemd of a host says of itself, or how the host ended."""
    if not host["pid"]:
        return host["ended"] or "booting"
    if host["node"]:
        return "running"  # kube.py knows more
    done = subprocess.run(inside(host["pid"], ["systemctl", "is-system-running"]), capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip() or "booting"


def wait_booted(lab: Lab, names: Sequence[str]) -> None:
    """Wait until the systemd of hosts has started everything; say which units failed."""
    started = time.monotonic()
    for host in ask(lab, "status", names=names):

        def booted(name: str = host["name"]) -> bool:
            (now,) = ask(lab, "status", names=[name])
            if now["ended"]:
                raise LabError(f"{name} {now['ended']} while it booted", f"tail {lab.directory}/hosts/{name}/console.log")
            return state_of(now) in ("running", "degraded")

        wait_until(booted, BOOT_TIMEOUT_S, f"{host['name']} has booted", f"{lab.command} exec {host['name']} -- systemctl list-jobs")
    for host in ask(lab, "status", names=names):
        print(f"{host['name']} {host['address']} {state_of(host)} after {time.monotonic() - started:.1f} s")
        if state_of(host) == "degraded":
            print(run(inside(host["pid"], ["systemctl", "--failed", "--plain", "--no-legend"])).rstrip(), file=sys.stderr)


def cmd_base(_lab: Lab, _arguments: argparse.Namespace) -> None:
    """Build the base image unless it is there, and print where it is."""
    import image  # not needed, and not quick, for SSH's `connect`

    print(image.build())


def cmd_create(lab: Lab, arguments: argparse.Namespace) -> None:
    """Make hosts and boot them; the lab too, if this is its first."""
    import image

    image.require_programs()
    names, addresses = names_and_addresses(arguments.hosts)
    if not lab.processes():
        lab.create(str(image.build()), arguments.network)
        try:
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab {lab.name}", "-f", str(lab.key)])
            start_holder(lab)
        except BaseException:
            end(lab)
            raise
    elif arguments.network and check_network(arguments.network) != lab.subnet:
        raise LabError(f"lab {lab.name} has the network {lab.subnet}", f"{lab.command} create HOST… without --network")
    ask(lab, "create", names=names, addresses=addresses)
    wait_booted(lab, names)


def names_and_addresses(hosts: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The names of hosts given as NAME or NAME=ADDRESS, and the addresses that some have."""
    names, addresses = [], {}
    for host in hosts:
        name, given, address = host.partition("=")
        names.append(check_name("host", name))
        if given:
            try:
                addresses[name] = str(ipaddress.IPv4Address(address))
            except ValueError:
                raise LabError(f"{address!r} is no address", "create NAME=10.88.0.20, with an address of the lab's network") from None
    if len(set(names)) < len(names):
        raise LabError("a host is named twice", "name each once")
    return names, addresses


def start_holder(lab: Lab) -> None:
    """Start the processes behind the lab, detached from this one, and wait until they listen."""
    reading, writing = os.pipe()
    with lab.log.open("w") as log:
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("holder.py")), lab.name, str(writing)],
            env={**os.environ, "GRIDSTEAD_LAB_DIR": str(ROOT)},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writing],
            start_new_session=True,
        )
    os.close(writing)
    with os.fdopen(reading) as pipe:
        if pipe.read() != "ready\n":
            said = lab.log.read_text().strip().splitlines() if lab.log.exists() else []
            raise LabError(f"the holder of lab {lab.name} did not start: {(said or ['it said nothing'])[-1]}", "lab.py list")


def cmd_list(_lab: Lab, _arguments: argparse.Namespace) -> None:
    """List all labs."""
    for lab in all_labs():
        running = len(lab.processes()) == 2
        names = [host["name"] for host in ask(lab, "status", names=[])] if running else []
        print(f"{lab.name}: {' '.join(names) or 'no hosts' if running else f'dead; {lab.command} destroy removes what is left'}")


def cmd_status(lab: Lab, arguments: argparse.Namespace) -> None:
    """Show the hosts of the lab: address, state, PID 1, network."""
    hosts = [{**host, "state": state_of(host)} for host in ask(lab, "status", names=arguments.hosts)]
    if arguments.json:
        print(json.dumps(hosts, indent=2))
        return
    for host in hosts:
        cable = "" if host["connected"] else "  network cut"
        parted = f"  separated from {' '.join(host['separated'])}" if host["separated"] else ""
        print(f"{host['name']:<16} {host['address']:<14} {host['state']:<12} pid {host['pid'] or '-'}{cable}{parted}")


def cmd_ssh(lab: Lab, arguments: argparse.Namespace) -> None:
    """Log in to a host, or run a command there, over the lab's network."""
    ask(lab, "status", names=[arguments.host])
    os.execvp("ssh", ["ssh", "-F", str(lab.ssh_config), arguments.host, *arguments.command])


def cmd_exec(lab: Lab, arguments: argparse.Namespace) -> None:
    """Run a command on a host as at its console: it needs no network."""
    (host,) = ask(lab, "status", names=[arguments.host])
    if not host["pid"]:
        remedy = f"{lab.command} start {arguments.host}" if host["ended"] else f"{lab.command} status"
        raise LabError(f"{arguments.host} is not running ({state_of(host)})", remedy)
    lab.visitors.take(os.getpid())
    command = inside(host["pid"], arguments.command or ["bash", "-l"])
    os.execvp(command[0], command)


def cmd_connect(lab: Lab, arguments: argparse.Namespace) -> None:
    """Connect standard input and output with a TCP port of a host. The SSH configuration of the lab uses it as ProxyCommand."""
    lab.visitors.take(os.getpid())
    holder = lab.holder()
    kernel.enter_network(f"/proc/{holder}/ns/net")
    threading.Thread(target=end_with, args=(holder,), daemon=True).start()
    try:
        connection = socket.create_connection((arguments.host, arguments.port), timeout=10)
    except OSError as error:
        raise LabError(f"{arguments.host} port {arguments.port}: {error}", f"{lab.command} status") from None
    connection.settimeout(None)
    answers = threading.Thread(target=pour, args=(connection.fileno(), 1), daemon=True)
    answers.start()
    pour(0, connection.fileno())
    connection.shutdown(socket.SHUT_WR)
    answers.join(timeout=5)  # a host that is cut off never ends its side


def end_with(pid: int) -> None:
    """End this process when another does: its socket would keep the network of a dead lab alive."""
    select.select([os.pidfd_open(pid)], [], [])
    os._exit(1)


def pour(source: int, target: int) -> None:
    """Copy what comes from one descriptor to another, up to its end."""
    while data := os.read(source, 1 << 18):
        while data:
            data = data[os.write(target, data) :]


def cmd_start(lab: Lab, arguments: argparse.Namespace) -> None:
    """Boot hosts that were halted or crashed; what they wrote is still there."""
    ask(lab, "start", names=arguments.hosts)
    wait_booted(lab, arguments.hosts)


def cmd_halt(lab: Lab, arguments: argparse.Namespace) -> None:
    """Shut hosts down in order."""
    ask(lab, "end", names=arguments.hosts, how="halt")
    wait_ended(lab, arguments.hosts)


def cmd_crash(lab: Lab, arguments: argparse.Namespace) -> None:
    """Power loss: every process of the hosts ends at once."""
    ask(lab, "end", names=arguments.hosts, how="crash")
    wait_ended(lab, arguments.hosts)


def wait_ended(lab: Lab, names: Sequence[str]) -> None:
    """Wait until no process of the hosts is left."""

    def ended() -> bool:
        return all(host["ended"] for host in ask(lab, "status", names=names))

    wait_until(ended, END_TIMEOUT_S, f"{' '.join(names)} ended", f"{lab.command} crash {' '.join(names)}")


def cmd_reboot(lab: Lab, arguments: argparse.Namespace) -> None:
    """Shut hosts down in order and boot them again."""
    before = {host["name"]: host["pid"] for host in ask(lab, "status", names=arguments.hosts)}
    ask(lab, "end", names=arguments.hosts, how="reboot")

    def rebooted() -> bool:
        return all(host["pid"] not in (None, before[host["name"]]) for host in ask(lab, "status", names=arguments.hosts))

    wait_until(rebooted, END_TIMEOUT_S, "the hosts boot again", f"{lab.command} status")
    wait_booted(lab, arguments.hosts)


def cmd_cut(lab: Lab, arguments: argparse.Namespace) -> None:
    """Pull the network cable of hosts. `exec` still reaches them."""
    ask(lab, "cut", names=arguments.hosts)


def cmd_heal(lab: Lab, arguments: argparse.Namespace) -> None:
    """Undo `cut` and `partition` for these hosts, or for all."""
    ask(lab, "heal", names=arguments.hosts)


def cmd_partition(lab: Lab, arguments: argparse.Namespace) -> None:
    """Let two sides of the network, each a comma-separated list of hosts, not reach one another. Both still reach all others."""
    ask(lab, "partition", one=arguments.side, other=arguments.other)


def cmd_inventory(lab: Lab, arguments: argparse.Namespace) -> None:
    """Print an Ansible inventory of the lab, as YAML."""
    hosts = {host["name"]: {"ansible_host": host["address"]} for host in ask(lab, "status", names=[])}
    groups: dict[str, Any] = {}
    for group in arguments.group:
        name, _, members = group.partition("=")
        if not re.fullmatch(r"[a-z_][a-z0-9_]*", name) or not members:
            raise LabError(f"{group!r} is no group", "--group NAME=HOST,HOST…")
        ask(lab, "status", names=members.split(","))
        groups[name] = {"hosts": dict.fromkeys(members.split(","), {})}
    everything = {
        "hosts": hosts,
        "vars": {
            "ansible_user": "root",
            "ansible_ssh_common_args": f"-F {shlex.quote(str(lab.ssh_config))}",
            "ansible_python_interpreter": "/usr/bin/python3",
        },
    }
    print(json.dumps({"all": {**everything, "children": groups}}, indent=2))  # JSON is YAML


def cmd_destroy(lab: Lab, arguments: argparse.Namespace) -> None:
    """Remove hosts; without a name all, and whatever is left of the lab after a mishap. Safe to repeat."""
    if arguments.hosts:
        ask(lab, "destroy", names=arguments.hosts)
    else:
        end(lab)


def end(lab: Lab) -> None:
    """End the processes behind the lab, and remove all that is left of it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        pids = lab.processes()
        for pid in reversed(pids):  # the holder first: the monitor clears up after it
            os.kill(pid, number)
            if number == signal.SIGTERM:
                break
        deadline = time.monotonic() + (15 if number == signal.SIGTERM else 5)
        while lab.processes() and time.monotonic() < deadline:
            time.sleep(0.02)
    lab.wipe()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="lab.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--lab", default=os.environ.get("GRIDSTEAD_LAB", "lab"), metavar="NAME", help="which lab (GRIDSTEAD_LAB, or 'lab')")
    verbs = top.add_subparsers(title="verbs", dest="verb", required=True, metavar="VERB")

    def verb(action: Callable[[Lab, argparse.Namespace], None], hosts: str | None = None) -> argparse.ArgumentParser:
        said = (action.__doc__ or "").strip()
        made = verbs.add_parser(action.__name__.removeprefix("cmd_"), help=said.rstrip("."), description=said)
        made.set_defaults(action=action)
        if hosts:
            made.add_argument("hosts", nargs=hosts, metavar="HOST", help="name of a host")
        return made

    def list_of_hosts(text: str) -> list[str]:
        return text.split(",")

    verb(cmd_base)
    made = verb(cmd_create)
    made.add_argument("hosts", nargs="+", metavar="HOST[=ADDRESS]", help="name of a host; its address, unless any will do")
    made.add_argument("--network", default="", metavar="NETWORK", help="the network of a lab that is not there yet (a /24 that no lab has)")
    verb(cmd_list)
    verb(cmd_status, "*").add_argument("--json", action="store_true", help="print JSON")
    for action in (cmd_ssh, cmd_exec):
        made = verb(action)
        made.add_argument("host", metavar="HOST", help="name of a host")
        made.add_argument("command", nargs="*", metavar="COMMAND", help="what to run there; put -- before it if it has options")
    for action in (cmd_halt, cmd_start, cmd_reboot, cmd_crash, cmd_cut):
        verb(action, "+")
    verb(cmd_heal, "*")
    made = verb(cmd_partition)
    made.add_argument("side", type=list_of_hosts, metavar="HOST,…", help="one side")
    made.add_argument("other", type=list_of_hosts, metavar="HOST,…", help="the other side")
    verb(cmd_inventory).add_argument(
        "--group", action="append", default=[], metavar="NAME=HOST,…", help="a group of hosts; may be given several times"
    )
    verb(cmd_destroy, "*")
    made = verb(cmd_connect)
    made.add_argument("host", metavar="ADDRESS", help="address of a host")
    made.add_argument("port", type=int, metavar="PORT", help="TCP port")
    return top


def main() -> int:
    """Entry point."""
    arguments = parser().parse_args()
    try:
        arguments.action(Lab(arguments.lab), arguments)
    except LabError as error:
        print(f"lab.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"lab.py: interrupted. Next: lab.py --lab {arguments.lab} status, or destroy", file=sys.stderr)
        return 130
    except PermissionError as error:
        print(f"lab.py: {error}. Next: run it as root", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
