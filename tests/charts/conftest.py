"""The cluster of these tests: the one that KUBECONFIG names, else one that they make and remove."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance import ROOT
from hosts import missing

sys.path.insert(0, str(ROOT / "tests" / "lab"))  # kube_build.py
import kube_build
from charts.release import IMAGES


def kube(*words: str) -> str:
    """Run a verb of the test cluster's tool; return what it printed."""
    command = [sys.executable, str(ROOT / "tests" / "lab" / "kube.py"), "--lab", "test-charts", *words]
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=1800, check=True).stdout


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Callable[..., bool]]:
    """A cluster that KUBECONFIG names, else one made here, with NODES nodes of the tests' file; returns what loads images where it may."""
    if os.environ.get("KUBECONFIG"):
        yield lambda _layout=IMAGES: False
        return
    if lacking := missing() or kube_build.missing():
        pytest.skip(f"no cluster can be made, and KUBECONFIG names none: {lacking}")
    kube("down")
    kube("build")
    kube("up", "--nodes", str(getattr(request.module, "NODES", 1)))
    os.environ["KUBECONFIG"] = kube("kubeconfig").strip()

    def load(layout: Path = IMAGES) -> bool:
        if not (layout / "index.json").exists():
            pytest.skip(f"{layout} has no images: make images")
        kube("load", str(layout))
        return True

    try:
        yield load
    finally:
        del os.environ["KUBECONFIG"]
        kube("down")
