"""A lab's network: one bridge in the holder's network namespace, one port of it a host. Runs inside that namespace."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path

from errors import LabError, run

BRIDGE = "br0"
TABLE = "lab"


class Network:
    """The bridge and its ports; a host is known by the place of its address in the lab's network."""

    def __init__(self, subnet: ipaddress.IPv4Network) -> None:
        """Name the addresses; the first is the bridge's own."""
        self.subnet = subnet
        self.partitions: set[frozenset[int]] = set()

    def up(self) -> None:
        """Make the bridge."""
        run(["ip", "link", "set", "lo", "up"])
        run(["ip", "link", "add", BRIDGE, "type", "bridge"])
        run(["ip", "address", "add", f"{self.subnet[1]}/{self.subnet.prefixlen}", "dev", BRIDGE])
        run(["ip", "link", "set", BRIDGE, "up"])
        # This namespace has no way out. Forwarding (its own setting, not the machine's) lets hosts be told so at once.
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def attach(self, number: int, pid: int, connected: bool) -> None:
        """Give the network namespace of a process an eth0 at a port of the bridge."""
        port = self._port(number)
        if port in run(["ip", "-brief", "link"]):  # of the host's last boot, whose namespace the kernel has not yet cleared
            try:
                run(["ip", "link", "delete", port])
            except LabError:  # cleared meanwhile
                if port in run(["ip", "-brief", "link"]):
                    raise
        # The address of the card stays the same over reboots, as the others remember it.
        card = ":".join(["02", "00", *(f"{byte:02x}" for byte in self.subnet[number].packed)])
        run(["ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "address", card, "netns", str(pid)])
        run(["ip", "link", "set", port, "master", BRIDGE, "up" if connected else "down"])

    def connect(self, number: int, connected: bool) -> None:
        """Plug a host's cable in or pull it."""
        run(["ip", "link", "set", self._port(number), "up" if connected else "down"])

    def separate(self, pairs: Iterable[frozenset[int]]) -> None:
        """Drop whatever these pairs of hosts send one another, and nothing else."""
        self.partitions = set(pairs)
        rules = "".join(
            f"iifname {self._port(one)} oifname {self._port(other)} drop\n"
            for pair in self.partitions
            for one, other in (sorted(pair), sorted(pair, reverse=True))
        )
        chain = f"chain forward {{\ntype filter hook forward priority 0; policy accept;\n{rules}}}\n"
        run(["nft", "-f", "-"], given=f"table bridge {TABLE}\ndelete table bridge {TABLE}\ntable bridge {TABLE} {{\n{chain}}}\n")

    @staticmethod
    def _port(number: int) -> str:
        return f"port{number:03}"
