"""One host of a lab: its files, and its life from boot to power loss. Runs in the holder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from select import select

import kernel
from cgroup import Group
from errors import LabError, run
from state import WITHHELD, Lab

BOOT = Path(__file__).with_name("boot.sh")
BOOT_TIMEOUT_S = 20
SIGNALS = {"halt": signal.SIGRTMIN + 4, "reboot": signal.SIGRTMIN + 5, "crash": signal.SIGKILL}  # see systemd(1), SIGNALS
ASKED_TO_REBOOT = (-signal.SIGHUP, 128 + signal.SIGHUP)  # how the kernel ends PID 1 of a namespace that calls reboot(2)


@dataclass
class Host:
    """A host, running or not."""

    lab: Lab
    name: str
    number: int
    connected: bool = True
    pid: int | None = None
    """PID 1 of the host, as the machine knows it."""
    ended: str = "never started"
    withheld: str = WITHHELD
    _asked: str = ""
    _parent: subprocess.Popen[str] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """The host's address."""
        return str(self.lab.subnet[self.number])

    @property
    def files(self) -> Path:
        """The host's directory: its changes to the image, and what its console said."""
        return self.lab.directory / "hosts" / self.name

    @property
    def group(self) -> Group:
        """The host's control group."""
        return Group(self.lab.group.path.name, self.name)

    def prepare(self) -> None:
        """Lay down what makes this host itself, as changes to the image: name, identity, keys."""
        upper = self.files / "upper"
        for folder in (self.files / "work", self.files / "root", upper / "etc/ssh", upper / "root/.ssh"):
            folder.mkdir(parents=True)
        upper.chmod(0o755)
        (upper / "root").chmod(0o700)
        (upper / "root/.ssh").chmod(0o700)
        (upper / "etc/hostname").write_text(f"{self.name}\n")
        (upper / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        (upper / "etc/resolv.conf").touch()  # no name server: names are in /etc/hosts
        key = upper / "etc/ssh/ssh_host_ed25519_key"
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(key)])
        shutil.copy(self.lab.key.with_suffix(".pub"), upper / "root/.ssh/authorized_keys")

    @property
    def public_key(self) -> str:
        """The public half of the host's key, as known_hosts wants it."""
        return " ".join((self.files / "upper/etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2])

    @property
    def root(self) -> Path | None:
        """Where the files of a running host are seen. None while it boots: its root is still the machine's, which is not to be touched."""
        path = Path(f"/proc/{self.pid}/root")
        try:
            return None if self.pid is None or path.samefile("/") else path
        except OSError:  # it has just ended
            return None

    def know(self, names: dict[str, str]) -> None:
        """Write the addresses of all hosts into /etc/hosts, beside what the host itself has put there."""
        ours = "  # lab"
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while self.pid and not self.root and Path(f"/proc/{self.pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        path = (self.root or self.files / "upper") / "etc/hosts"
        others = [line for line in path.read_text().splitlines() if not line.endswith(ours)] if path.exists() else ["127.0.0.1 localhost"]
        path.write_text("".join(f"{line}\n" for line in others + [f"{address} {name}{ours}" for name, address in names.items()]))

    def boot(self, *further: str) -> int:
        """Start the host up to where it waits for a network; return its PID 1. `boot.sh` is given further arguments."""
        self.group.create()
        holder, group = os.getpid(), self.group

        def child() -> None:
            kernel.die_with_parent(holder, signal.SIGKILL)
            group.take(os.getpid())

        namespaces = ["--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup", "--propagation", "private"]
        subnet = self.lab.subnet
        self._parent = subprocess.Popen(
            ["unshare", "--fork", "--kill-child", *namespaces, "sh", str(BOOT)]
            + [
                self.name,
                self.lab.definition["image"],
                str(self.files),
                f"{self.address}/{subnet.prefixlen}",
                self.lab.gateway,
                self.withheld,
            ]
            + list(further),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=child,  # the holder has one thread only
        )
        assert self._parent.stdout
        ready, _, _ = select([self._parent.stdout], [], [], BOOT_TIMEOUT_S)
        said = self._parent.stdout.readline().strip() if ready else ""
        if not said.isdigit():
            self.stop()
            raise LabError(f"{self.name} did not boot", f"see what the holder's log says: {self.lab.log}")
        self.pid, self.ended = int(said), ""
        # systemd divides its control group among its services; then no process may be left in the group itself.
        self.lab.visitors.take(self._parent.pid)
        return self.pid

    def go(self) -> None:
        """Let the host go on, now that it has a network."""
        assert self._parent and self._parent.stdin and self._parent.stdout
        self._parent.stdin.write("go\n")
        self._parent.stdin.close()
        self._parent.stdout.close()

    def require_running(self) -> int:
        """Return PID 1 of a host that runs; refuse one that does not."""
        if not self.pid:
            raise LabError(f"{self.name} is not running ({self.ended})", f"{self.lab.command} start {self.name}")
        return self.pid

    def end(self, how: str) -> None:
        """Halt, reboot or crash the host; `reap` sees when that has come about."""
        os.kill(self.require_running(), SIGNALS[how])
        self._asked = how

    def reap(self) -> bool:
        """See whether the host has ended, and clear up after it; return whether it wants to be booted again."""
        code = self._parent.poll() if self._parent else None
        if code is None:
            return False
        self.stop()
        if self._asked == "crash":
            self.ended = "crashed"
        elif code in (-signal.SIGINT, 128 + signal.SIGINT):
            self.ended = "halted"
        else:
            self.ended = f"ended by itself with {code}, see {self.files}/console.log"
        self._asked = ""
        return code in ASKED_TO_REBOOT

    def stop(self) -> None:
        """Kill whatever the host runs; its files stay."""
        self.group.remove()
        if self._parent:
            self._parent.kill()
            self._parent.wait()
        self._parent, self.pid = None, None
