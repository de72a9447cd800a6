"""A node of a test cluster: a host of a lab that has containerd and a kubelet instead of systemd. Runs in the holder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from host import Host

BOOT = Path(__file__).with_name("kube-boot.sh")


@dataclass
class Node(Host):
    """A node, running or not."""

    withheld: str = "-sys_time,-sys_module,-sys_rawio"  # containers need device nodes, the kubelet reads the kernel's log

    def boot(self, *further: str) -> int:
        """Start the node up to where it waits for a network; return its PID 1."""
        self.lab.visitors.create_twins()
        self.group.create_twins()
        settings, volumes = self.lab.directory / "kube", self.lab.directory / "volumes"
        return super().boot(str(BOOT), self.lab.definition["programs"], str(settings), str(volumes), *further)
