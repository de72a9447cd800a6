"""The processes behind a running lab. `python holder.py LAB`, which `lab.py create` starts.

Two processes watch each other. The *holder* has the lab's network namespace, is the parent of its hosts, and does what `lab.py` asks over
a socket. The *monitor*, its parent, stays in the machine's own network: it serves the package proxy and, when the holder ends in whatever
way, removes what is left of the lab. When the monitor ends, the holder does that. When both are killed at once, the kernel kills the hosts,
and with the last process go namespaces and mounts; `lab.py destroy` then removes the files and the empty control groups.
"""

from __future__ import annotations

import ipaddress
import json
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import gate
import kernel
import packages
from errors import LabError, run
from host import Host
from kube_node import Node
from network import Network
from state import FIRST_HOST, GATEWAY_NAME, MOST_HOSTS, Lab, check_name


class Holder:
    """All hosts of one lab. Each public method is a verb of the control socket."""

    def __init__(self, lab: Lab, network: Network) -> None:
        """Begin without hosts."""
        self.lab = lab
        self.network = network
        self.hosts: dict[str, Host] = {}

    def create(self, names: list[str], addresses: dict[str, str]) -> None:
        """Make hosts and start them; those without an address of their own get the next free one."""
        for name in names:
            if name in self.hosts:
                raise LabError(f"lab {self.lab.name} has a host {name} already", f"{self.lab.command} status")
        if len(self.hosts) + len(names) > MOST_HOSTS:
            raise LabError(f"a lab has at most {MOST_HOSTS} hosts", "lab.py --lab ANOTHER create …")
        numbers = self._numbers(addresses)
        taken = {*numbers.values(), *(host.number for host in self.hosts.values())}
        free = (number for number in range(FIRST_HOST, self.lab.subnet.num_addresses - 1) if number not in taken)
        kind = Node if "programs" in self.lab.definition else Host
        for name in names:
            host = kind(self.lab, check_name("host", name), numbers[name] if name in numbers else next(free))
            host.prepare()
            self.hosts[name] = host
        self._publish()
        self.start(names)

    def destroy(self, names: list[str]) -> None:
        """Remove hosts with their files."""
        for host in self._named(names):
            host.stop()
            run(["rm", "-rf", "--one-file-system", str(host.files)], timeout_s=120)
            del self.hosts[host.name]
            self.network.separate(pair for pair in self.network.partitions if host.number not in pair)
        self._publish()

    def start(self, names: list[str]) -> None:
        """Start hosts that do not run."""
        for host in self._named(names):
            if host.pid:
                raise LabError(f"{host.name} runs already", f"{self.lab.command} status")
        for host in self._named(names):
            self._boot(host)

    def end(self, names: list[str], how: str) -> None:
        """Halt, reboot or crash hosts; all of them run, or none is touched."""
        for host in self._named(names):
            host.require_running()
        for host in self._named(names):
            host.end(how)

    def cut(self, names: list[str]) -> None:
        """Pull the network cables of hosts."""
        for host in self._named(names):
            host.connected = False
            if host.pid:
                self.network.connect(host.number, False)

    def heal(self, names: list[str]) -> None:
        """Plug the cables of hosts in, and end the partitions that they are part of."""
        healed = self._named(names)
        for host in healed:
            host.connected = True
            if host.pid:
                self.network.connect(host.number, True)
        numbers = {host.number for host in healed}
        self.network.separate(pair for pair in self.network.partitions if not pair & numbers)

    def partition(self, one: list[str], other: list[str]) -> None:
        """Let no host of one side reach any of the other."""
        both = set(one) & set(other)
        if both:
            raise LabError(f"{', '.join(sorted(both))} cannot be on both sides", f"{self.lab.command} partition HOST,… HOST,…")
        sides = [[host.number for host in self._named(side)] for side in (one, other)]
        self.network.separate(self.network.partitions | {frozenset((a, b)) for a in sides[0] for b in sides[1]})

    def status(self, names: list[str]) -> list[dict[str, Any]]:
        """Say of hosts what the holder knows."""
        by_number = {host.number: host.name for host in self.hosts.values()}
        return [
            {
                "name": host.name,
                "address": host.address,
                "pid": host.pid if host.root else None,
                "ended": host.ended,
                "node": isinstance(host, Node),
                "connected": host.connected,
                "separated": sorted(
                    by_number[number] for pair in self.network.partitions if host.number in pair for number in pair - {host.number}
                ),
            }
            for host in self._named(names)
        ]

    def reap(self) -> None:
        """See which hosts have ended, and boot those again that asked for it."""
        for host in self.hosts.values():
            if host.reap():
                try:
                    self._boot(host)
                except LabError as error:
                    host.stop()
                    host.ended = f"could not boot again: {error}"

    def _numbers(self, addresses: dict[str, str]) -> dict[str, int]:
        """The places in the lab's network of the addresses that hosts are to have."""
        subnet = self.lab.subnet
        taken = {host.number: host.name for host in self.hosts.values()}
        numbers: dict[str, int] = {}
        for name, address in addresses.items():
            number = int(ipaddress.IPv4Address(address)) - int(subnet.network_address)
            if not 1 < number < subnet.num_addresses - 1:
                raise LabError(f"{address} is no address of a host in {subnet} (its first is the lab's own)", f"{self.lab.command} status")
            if number in taken:
                raise LabError(f"{address} is the address of {taken[number]}", f"{self.lab.command} status")
            taken[number] = name
            numbers[name] = number
        return numbers

    def _named(self, names: list[str]) -> list[Host]:
        """The hosts of these names, all for none."""
        unknown = [name for name in names if name not in self.hosts]
        if unknown:
            there = ", ".join(self.hosts) or "none"
            raise LabError(f"lab {self.lab.name} has no host {', '.join(unknown)}; it has {there}", f"{self.lab.command} status")
        return [self.hosts[name] for name in names or self.hosts]

    def _boot(self, host: Host) -> None:
        self.network.attach(host.number, host.boot(), host.connected)
        host.go()

    def _publish(self) -> None:
        """Tell every host, and SSH on this machine, who is there."""
        names = {host.name: host.address for host in self.hosts.values()}
        for host in self.hosts.values():
            host.know({GATEWAY_NAME: self.lab.gateway, **names})
        self.lab.known_hosts.write_text("".join(f"{host.name},{host.address} {host.public_key}\n" for host in self.hosts.values()))
        aliases = "".join(f"Host {name}\n  HostName {address}\n" for name, address in names.items())
        self.lab.ssh_config.write_text(_SSH_OPTIONS.format(lab=self.lab, proxy=_proxy_command(self.lab)) + aliases)


_SSH_OPTIONS = """\
Host *
  User root
  IdentityFile {lab.key}
  IdentitiesOnly yes
  UserKnownHostsFile {lab.known_hosts}
  StrictHostKeyChecking yes
  ProxyCommand {proxy}
  ConnectTimeout 10
  ServerAliveInterval 5
  ServerAliveCountMax 3
  LogLevel ERROR
"""


def _proxy_command(lab: Lab) -> str:
    """What SSH runs to reach an address of the lab, which only its own namespace knows."""
    place = lab.directory.parent.parent
    return f"env GRIDSTEAD_LAB_DIR={place} {sys.executable} {Path(__file__).with_name('lab.py')} --lab {lab.name} connect %h %p"


def answer(holder: Holder, connection: socket.socket) -> None:
    """Do what one client asks, and tell it how that went."""
    with connection, connection.makefile("rw") as stream:
        try:
            request = json.loads(stream.readline())
            reply = {"result": getattr(holder, request["verb"])(**request["arguments"])}
        except LabError as error:
            reply = {"error": str(error)}
        except Exception as error:  # the lab must outlive a mistake of ours; the client shows it
            reply = {"error": f"{type(error).__name__}: {error}. Next: {holder.lab.command} destroy"}
        with suppress(BrokenPipeError):  # the client may have been killed meanwhile
            stream.write(json.dumps(reply))


def hold(lab: Lab, network: Network, lock: int, ready: int) -> None:
    """Be the holder until told to end."""
    kernel.claim(lock, lab.HOLDER)
    waking, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)
    lab.group.create()
    lab.group.share_controllers()
    lab.visitors.create()
    holder = Holder(lab, network)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(lab.control))
    server.listen()
    os.write(ready, b"ready\n")
    os.close(ready)
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        selector.register(waking, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is server:
                    answer(holder, server.accept()[0])
                elif signal.SIGTERM in os.read(waking, 512):
                    return
                holder.reap()


def main() -> None:
    """Make the network, part into monitor and holder, and leave nothing behind."""
    lab, ready = Lab(sys.argv[1]), int(sys.argv[2])
    lock = os.open(lab.lock, os.O_RDWR | os.O_CLOEXEC)
    kernel.claim(lock, lab.MONITOR)
    if not os.path.samestat(os.fstat(lock), os.stat(lab.lock)):
        sys.exit("the lab was destroyed while it started")
    machine = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    way_in = gate.listen(lab) if "gate" in lab.definition else None
    kernel.leave_network()
    network = Network(lab.subnet)
    network.up()
    proxy = packages.listen(lab.gateway)
    monitor = os.getpid()
    holder = os.fork()
    if holder == 0:
        proxy.socket.close()
        if way_in:
            way_in.close()
        kernel.die_with_parent(monitor, signal.SIGTERM)
        try:
            hold(lab, network, lock, ready)
        finally:
            lab.wipe()
        return
    os.close(ready)
    kernel.enter_network(f"/proc/self/fd/{machine}")
    packages.serve(proxy)
    if way_in:
        gate.serve(way_in, lab, holder)
    os.waitpid(holder, 0)
    lab.wipe()


if __name__ == "__main__":
    main()
