"""What the playbooks of a running cluster refuse before they reach any host."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from appliance import ROOT

ADDRESSES = {"m1": "192.0.2.1", "m2": "192.0.2.2", "m3": "192.0.2.3", "w1": "192.0.2.4", "w2": "192.0.2.5"}  # nobody's (RFC 5737)


@pytest.mark.parametrize("book", ["add-node", "drain-node", "rolling-restart", "upgrade"])
@pytest.mark.parametrize("limit", ["!m1", "w2"])
def test_a_part_of_the_cluster_is_refused(tmp_path: Path, book: str, limit: str) -> None:
    """Without the first master its plays, the gate among them, would be skipped and the others run."""
    groups = {"masters": ["m1", "m2", "m3"], "workers": ["w1", "w2"]}
    inventory = {
        "all": {
            "hosts": {name: {"ansible_host": address, "gridstead_address": address} for name, address in ADDRESSES.items()},
            "children": {group: {"hosts": dict.fromkeys(names, {})} for group, names in groups.items()},
        }
    }
    (tmp_path / "hosts.json").write_text(json.dumps(inventory))
    words = ["-e", "node=w2", "-e", "component=kafka", "--limit", limit]
    command = ["ansible-playbook", "-i", str(tmp_path / "hosts.json"), f"playbooks/{book}.yml", *words]
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "CONFIRM": "w2"}
    done = subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0 and "Nothing was touched: this looks at the whole cluster" in done.stdout, done.stdout + done.stderr
    assert "UNREACHABLE" not in done.stdout
