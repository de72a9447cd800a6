"""Which host runs what, by the groups of an inventory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from role_files import ROOT

PLAYBOOK = """
- hosts: m1
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: common, tasks_from: layout}
    - ansible.builtin.copy:
        content: "{{ gridstead_placement | to_json }}"
        dest: "{{ inventory_dir }}/placement"
        mode: "0600"
"""


def placement(directory: Path, **groups: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Return what the role common makes of these groups; each has the variables of its hosts."""
    inventory, playbook = directory / "hosts.json", directory / "playbook.yml"
    variables = {"ansible_python_interpreter": sys.executable}
    children = {group: {"hosts": hosts} for group, hosts in groups.items()}
    inventory.write_text(json.dumps({"all": {"vars": variables, "children": children}}))
    playbook.write_text(PLAYBOOK)
    ansible = shutil.which("ansible-playbook", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert ansible
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_ROLES_PATH": str(ROOT / "roles")}
    command = [ansible, "-i", str(inventory), str(playbook)]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads((directory / "placement").read_text()))


def test_hosts_come_as_the_inventory_has_them(tmp_path: Path) -> None:
    workers = ["w3", "w10", "w1", "w2"]
    found = placement(tmp_path, masters={"m1": {}}, workers={name: {} for name in workers})
    assert (found["gateway"], found["elasticsearch"], found["hdfs_datanode"]) == (["w3", "w10"], ["w3", "w10", "w1"], workers)


def test_hosts_with_numbers_come_in_their_order(tmp_path: Path) -> None:
    workers = {f"w{number}": {"gridstead_order": number} for number in (3, 10, 1, 2)}
    found = placement(tmp_path, masters={"m1": {}}, workers=workers, kafka={"w3": {}, "w1": {}})
    assert found["gateway"] == ["w1", "w2"]
    assert found["elasticsearch"] == ["w1", "w2", "w3"]
    assert found["hdfs_datanode"] == ["w1", "w2", "w3", "w10"]
    assert found["kafka"] == ["w1", "w3"], "also in a group of a component's own"
