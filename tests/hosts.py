"""The hosts of a test lab as tests see them: the verbs of tests/lab/lab.py."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

LAB = Path(__file__).parent / "lab" / "lab.py"
DIRECTORY = Path(os.environ.get("GRIDSTEAD_LAB_DIR") or "/var/lib/gridstead-lab")


def missing() -> str:
    """Why no lab can be made here; empty where one can."""
    if os.geteuid() != 0:
        return "making hosts needs root"
    absent = [program for program in ("debootstrap", "ip", "nft", "nsenter", "ssh", "unshare") if not shutil.which(program)]
    return f"programs are missing: {', '.join(absent)}; `lab.py base` names the packages" if absent else ""


def changed(output: str) -> int:
    """How many tasks changed something on all hosts, by Ansible's recap; an error where there is none."""
    counts = re.findall(r"changed=(\d+)", output)
    assert counts, output
    return sum(map(int, counts))


@dataclasses.dataclass
class Hosts:
    """One lab; what fails shows what the tool said."""

    name: str

    @property
    def directory(self) -> Path:
        """Where the lab keeps its files."""
        return DIRECTORY / "labs" / self.name

    def command(self, *words: str) -> list[str]:
        """The command line of a verb."""
        return [sys.executable, str(LAB), "--lab", self.name, *words]

    def attempt(self, *words: str, timeout: float = 100) -> subprocess.CompletedProcess[str]:
        """Run a verb; return how it ended and what it said."""
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False)

    def do(self, *words: str, timeout: float = 150) -> str:
        """Run a verb that must succeed; return what it printed."""
        done = self.attempt(*words, timeout=timeout)
        assert done.returncode == 0, f"lab.py {' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def refuse(self, *words: str) -> str:
        """Run a verb that must be refused; return what was said."""
        done = self.attempt(*words)
        assert done.returncode != 0, f"lab.py {' '.join(words)} was not refused\n{done.stdout}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr

    def on(self, host: str, script: str, timeout: float = 150) -> str:
        """Run a shell script at the console of a host; return what it printed."""
        return self.do("exec", host, "--", "sh", "-c", script, timeout=timeout)

    def succeeds(self, host: str, script: str) -> bool:
        """Whether a shell script at the console of a host ends with 0."""
        return self.attempt("exec", host, "--", "sh", "-c", script).returncode == 0

    def status(self) -> dict[str, dict[str, Any]]:
        """What the lab says of each host."""
        return {host["name"]: host for host in json.loads(self.do("status", "--json"))}
