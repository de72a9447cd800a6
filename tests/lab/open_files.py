"""The limit of open files that Elasticsearch insists on, where the machine allows its hosts less."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

from errors import run

NEEDED = 65536
LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def missing() -> str:
    """Why Elasticsearch, bound to other than loopback, cannot run on hosts of this machine; empty where it can."""
    few = LIMIT < NEEDED and not shutil.which("gcc")
    return f"Elasticsearch wants {NEEDED} open files, and nobody can pretend" if few else ""


def library(directory: Path) -> Path:
    """Build the library that makes Java see the limit, unless it is there; returns its file. Raises LabError."""
    built = directory / "nofile.so"
    if not built.exists():
        run(["gcc", "-shared", "-fPIC", "-O2", "-o", str(built), str(Path(__file__).with_name("nofile.c"))])
    return built
