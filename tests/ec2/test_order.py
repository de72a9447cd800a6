"""Which nodes are the first of a group on EC2: that says what else than workers' services they run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from aws import ROOT

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: common, tasks_from: layout}
    - ansible.builtin.copy:
        content: "{{ gridstead_placement | to_json }}"
        dest: "{{ playbook_dir }}/{{ inventory_hostname }}.json"
        mode: "600"
"""


def test_the_first_nodes_are_those_with_the_lowest_numbers_whatever_their_instances_are_called(tmp_path: Path) -> None:
    """The plug-in lists by instance id, as here; a node that is made anew has another."""
    nodes = {"masters": ["c-master-2", "c-master-3", "c-master-1"], "workers": [f"c-worker-{number}" for number in (12, 100, 2, 1, 11, 3)]}
    groups = {group: {"hosts": dict.fromkeys(names, {})} for group, names in nodes.items()}
    local = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
    inventory = {**groups, "nodes": {"children": dict.fromkeys(groups, {})}, "all": {"vars": local}}
    (tmp_path / "group_vars").mkdir()
    shutil.copytree(ROOT / "inventories/ec2/group_vars/nodes", tmp_path / "group_vars/nodes")
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory, sort_keys=False))
    (tmp_path / "play.yml").write_text(PLAY)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ansible = shutil.which("ansible-playbook", path=path)
    assert ansible
    command = [
        ansible,
        "-i",
        str(tmp_path / "hosts.yml"),
        "-e",
        "ansible_become=false",
        "-l",
        "c-worker-1,c-worker-12",
        str(tmp_path / "play.yml"),
    ]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    placed, seen_elsewhere = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("c-worker-1", "c-worker-12"))
    assert placed == seen_elsewhere
    assert placed["gateway"] == ["c-worker-1"]
    assert placed["elasticsearch"] == ["c-worker-1", "c-worker-2", "c-worker-3"]
    assert placed["zookeeper"] == placed["kafka"] == ["c-master-1", "c-master-2", "c-master-3"]
    assert placed["hdfs_datanode"] == [f"c-worker-{number}" for number in (1, 2, 3, 11, 12, 100)]
