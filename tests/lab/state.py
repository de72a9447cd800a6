"""Where a lab keeps its files, what names it takes, and how all that is left of one is removed."""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kernel
from cgroup import Group
from errors import LabError

ROOT = Path(os.environ.get("GRIDSTEAD_LAB_DIR") or "/var/lib/gridstead-lab")
NETWORK = ipaddress.ip_network("10.88.0.0/16")  # one /24 a lab; none of it is ever seen outside a lab's namespace
FIRST_HOST = 11
MOST_HOSTS = 200
GATEWAY_NAME = "gateway"
WITHHELD = "-sys_time,-sys_module,-sys_rawio,-mknod,-syslog"
"""Capabilities that no process of a host has: the machine's clock, kernel modules, devices and the kernel's log are not the host's."""
_NAME = re.compile(r"[a-z][a-z0-9-]{0,29}(?<!-)")
_RESERVED = ("localhost", GATEWAY_NAME, "visitors")  # the last is a control group beside the hosts'
_ROOT = re.compile(r"/[A-Za-z0-9/._-]{1,47}")  # part of mount options and of a UNIX socket's path, which has at most 107 characters


def check_name(kind: str, name: str) -> str:
    """Return the name if a lab or a host may have it."""
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise LabError(
            f"{name!r} cannot be the name of a {kind}: a name is 1 to 30 of a-z, 0-9 and -, begins with a letter, does not end with -, "
            f"and is none of {', '.join(_RESERVED)}",
            "give another name",
        )
    return name


def check_network(text: str) -> ipaddress.IPv4Network:
    """Return the network that is meant if a lab may have it. Another lab may have it as well: neither is seen outside its namespace."""
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise LabError(f"{text!r} is no network: {error}", "--network 10.88.0.0/20") from None
    if not network.is_private or not 16 <= network.prefixlen <= 28:
        raise LabError(f"{network} is not a private network of /16 to /28", "--network 10.88.0.0/20")
    return network


class Lab:
    """The files of one lab below ROOT/labs/NAME."""

    MONITOR, HOLDER = range(2)
    """Bytes of the lock file; the process that has claimed one is the lab's monitor or holder."""

    def __init__(self, name: str) -> None:
        """Name the lab; it need not exist."""
        self.name = check_name("lab", name)
        if not _ROOT.fullmatch(str(ROOT)):
            raise LabError(f"GRIDSTEAD_LAB_DIR={ROOT} is not an absolute path of at most 48 of A-Z, a-z, 0-9 and /._-", "set it to another")
        self.directory = ROOT / "labs" / name
        self.group = Group(f"gridstead-lab-{zlib.crc32(str(ROOT).encode()):08x}-{name}")  # labs of another ROOT may have the same name
        self.visitors = Group(self.group.path.name, "visitors")
        self.control = self.directory / "control"
        self.key = self.directory / "id_ed25519"
        self.known_hosts = self.directory / "known_hosts"
        self.ssh_config = self.directory / "ssh_config"
        self.lock = self.directory / "lock"
        self.log = self.directory / "holder.log"

    @property
    def exists(self) -> bool:
        """Whether anything of the lab is there, running or not."""
        return self.directory.is_dir() or self.group.path.is_dir()

    def processes(self) -> list[int]:
        """The monitor and the holder, as far as they run."""
        return [pid for pid in (kernel.claimant(self.lock, byte) for byte in (self.MONITOR, self.HOLDER)) if pid]

    def holder(self) -> int:
        """The process that holds the lab's network namespace and is the parent of its hosts."""
        pid = kernel.claimant(self.lock, self.HOLDER)
        if pid:
            return pid
        if self.exists:
            raise LabError(f"lab {self.name} is dead: its holder was killed, or the machine was started anew", f"{self.command} destroy")
        raise LabError(f"there is no lab {self.name}", f"{self.command} create HOST…, or lab.py list")

    @property
    def command(self) -> str:
        """How a command for this lab begins."""
        return f"lab.py --lab {self.name}"

    @property
    def subnet(self) -> ipaddress.IPv4Network:
        """The lab's addresses."""
        return ipaddress.IPv4Network(self.definition["subnet"])

    @property
    def gateway(self) -> str:
        """The address of the lab's bridge, where the package proxy listens."""
        return str(self.subnet[1])

    @property
    def definition(self) -> dict[str, Any]:
        """What the lab was made with."""
        return dict(json.loads((self.directory / "lab.json").read_text()))

    def create(self, image: str, network: str = "", **settings: Any) -> None:
        """Make the directory; find the first free subnet, unless a network is given; refuse a name that is taken.

        A cluster has further settings.
        """
        with exclusive(ROOT / "labs"):
            if self.exists:
                raise LabError(f"something of a lab {self.name} is still there", f"{self.command} destroy")
            subnet = check_network(network) if network else _first_free()
            self.directory.mkdir(parents=True, mode=0o700)
            self.lock.touch()
            (self.directory / "lab.json").write_text(json.dumps({"subnet": str(subnet), "image": image, **settings}))

    def define(self, **settings: Any) -> None:
        """Add to what the lab was made with, before it runs."""
        (self.directory / "lab.json").write_text(json.dumps({**self.definition, **settings}))

    def wipe(self) -> None:
        """Kill whatever is left in the lab's control group and remove its files. Safe to repeat, and by several at once."""
        self.group.remove()
        shutil.rmtree(self.directory, onerror=_unless_gone)


def _first_free() -> ipaddress.IPv4Network:
    """The first /24 that no lab has."""
    taken = {str(lab.subnet) for lab in all_labs() if (lab.directory / "lab.json").exists()}
    free = next((net for net in NETWORK.subnets(new_prefix=24) if str(net) not in taken), None)
    if free is None:
        raise LabError(f"every subnet of {NETWORK} has a lab", "lab.py list, and destroy some")
    return free


def _unless_gone(_function: Any, _path: str, error: Any) -> None:
    """Raise what kept a file from being removed, but not where another process was quicker."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


def all_labs() -> Iterator[Lab]:
    """Every lab of which anything is left on disk."""
    for directory in sorted((ROOT / "labs").glob("*")):
        yield Lab(directory.name)


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Let one process at a time do what it does in a directory, which is made if it is not there: give out subnets, build what is kept."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
