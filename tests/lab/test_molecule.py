"""Each role alone on a real systemd host: molecule's whole sequence, as `molecule test` in the role's directory runs it."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from appliance import ROOT
from hosts import missing

pytestmark = [
    pytest.mark.lab,
    pytest.mark.long,
    pytest.mark.skipif("GRIDSTEAD_TEST_ENGINE" not in os.environ and bool(missing()), reason=missing() or "a lab can be made"),
]

ROLES = sorted(path.parents[2].name for path in ROOT.glob("roles/*/molecule/default/molecule.yml"))


@pytest.mark.parametrize("role", ROLES)
def test_role(role: str, tmp_path: Path) -> None:
    started = time.monotonic()
    env = {"GRIDSTEAD_BUNDLE": str(ROOT / "bundle"), **os.environ, "MOLECULE_EPHEMERAL_DIRECTORY": str(tmp_path), "PY_COLORS": "0"}
    command = ["molecule", "test"]
    done = subprocess.run(command, env=env, cwd=ROOT / "roles" / role, capture_output=True, text=True, timeout=1200, check=False)
    said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
    assert done.returncode == 0, said
    changes = [int(count) for count in re.findall(rf"^{role}\s+: ok=\d+\s+changed=(\d+)", said, re.MULTILINE)]
    assert len(changes) == 4, f"not once each: check, converge, idempotence, check\n{said}"
    assert changes[0] > 0 and changes[1] > 0 and changes[2:] == [0, 0], said
    print(f"\nmolecule test of {role} took {time.monotonic() - started:.0f} s")
