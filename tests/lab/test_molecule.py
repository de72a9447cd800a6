"""Molecule's whole sequence on real systemd hosts: each role alone, and the clusters, as `molecule test` runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import ROOT, run
from clusters import OTHER_KAFKA, bundle_with_kafka, open_files
from hosts import missing

pytestmark = [
    pytest.mark.lab,
    pytest.mark.long,
    pytest.mark.skipif("GRIDSTEAD_TEST_ENGINE" not in os.environ and bool(missing()), reason=missing() or "a lab can be made"),
]

ROLES = sorted(path.parents[2].name for path in ROOT.glob("roles/*/molecule/default/molecule.yml"))
CLUSTERS = sorted(path.parent.name for path in ROOT.glob("molecule/cluster/molecule/*/molecule.yml"))
ON_DEMAND = {"victoriametrics": "victoriametrics", "offline": "debian"}
"""Components that the bundle only has where they are named, by the scenario that needs them."""

BUNDLE = {"GRIDSTEAD_BUNDLE": str(ROOT / "bundle"), **os.environ}


def changes(said: str) -> Iterator[tuple[str, int]]:
    """Each action of the scenario on its hosts, and how many tasks changed something."""
    for action, output in re.findall(r"> (\w+)\] Executing\n(.*?)> \1\] Executed", said, re.DOTALL):
        counts = re.findall(r"^(?!localhost)\w+\s+: ok=\d+\s+changed=(\d+)", output, re.MULTILINE)
        if counts:
            yield action, sum(map(int, counts))


def scenario(name: str, directory: Path, ephemeral: Path, **env: str) -> None:
    """Run a scenario: on bare hosts check mode finds something to do and does nothing, after a converge nothing is left to do."""
    started = time.monotonic()
    if name in ON_DEMAND:
        run([sys.executable, str(ROOT / "tools" / "bundle.py"), "build", ON_DEMAND[name]], env=BUNDLE)
    command = ["molecule", "test", *(["-s", name] if name in CLUSTERS else [])]
    env = {**BUNDLE, "MOLECULE_EPHEMERAL_DIRECTORY": str(ephemeral), "PY_COLORS": "0", **env}
    both = subprocess.STDOUT  # in one, as they come: molecule tells its actions in the one, Ansible what changed in the other
    done = subprocess.run(command, env=env, cwd=directory, stdout=subprocess.PIPE, stderr=both, text=True, timeout=5400, check=False)
    said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
    assert done.returncode == 0, said
    seen = [(action, count > 0) for action, count in changes(said) if action not in ("prepare", "side_effect")]
    expected = [("check", True), ("converge", True), ("idempotence", False), ("check", False)]
    assert seen[:4] == expected and set(seen[4:]) <= {("idempotence", False)}, said
    print(f"\nmolecule test of {name} took {time.monotonic() - started:.0f} s")


@pytest.mark.parametrize("role", ROLES)
def test_role(role: str, tmp_path: Path) -> None:
    scenario(role, ROOT / "roles" / role, tmp_path)


@pytest.mark.timeout(6000)
@pytest.mark.skipif(bool(open_files.missing()), reason=open_files.missing() or "Elasticsearch can run")
@pytest.mark.parametrize("name", CLUSTERS)
def test_cluster(name: str, tmp_path: Path) -> None:
    other = {"GRIDSTEAD_SCENARIO_OTHER_BUNDLE": str(bundle_with_kafka(OTHER_KAFKA, tmp_path))} if name == "upgrade" else {}
    scenario(name, ROOT / "molecule" / "cluster", tmp_path / "molecule", **other)
