"""Gateways share the keys of the pseudonyms: the role's own tasks, on two directories of this machine as hosts."""

from __future__ import annotations

import getpass
import grp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gridstead.pseudonyms import add_key
from role_files import ROOT

GATEWAYS = ["one", "two"]
PLAYBOOK = f"""
- hosts: all
  connection: local
  gather_facts: false
  vars_files: [{ROOT}/roles/collector/vars/main.yml]
  tasks:
    - ansible.builtin.include_tasks: {ROOT}/roles/collector/tasks/keys.yml
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    variables = {
        "ansible_python_interpreter": sys.executable,
        "gridstead_python": sys.executable,
        "gridstead_placement": {"gateway": GATEWAYS},
        "_gridstead_environment": {"PYTHONPATH": str(ROOT / "analytics/src")},
        "collector_user": getpass.getuser(),
        "collector_group": grp.getgrgid(os.getgid()).gr_name,
    }
    hosts = {name: {"collector_pseudonym_keys": str(tmp_path / name / "keys")} for name in [*GATEWAYS, "other"]}
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"vars": variables, "hosts": hosts}}))
    (tmp_path / "playbook.yml").write_text(PLAYBOOK)
    for name in GATEWAYS:
        (tmp_path / name).mkdir(mode=0o700)
    return tmp_path


def play(site: Path, *options: str) -> tuple[int, str]:
    ansible = shutil.which("ansible-playbook", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert ansible
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    command = [ansible, "-i", str(site / "hosts.json"), str(site / "playbook.yml"), "--limit", ",".join(GATEWAYS), *options]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stdout + done.stderr


def keys(site: Path) -> list[str]:
    return [(site / name / "keys").read_text() for name in GATEWAYS if (site / name / "keys").exists()]


def test_the_first_key_is_made_once_and_given_to_the_others(site: Path) -> None:
    code, said = play(site, "--check")
    assert code == 0 and keys(site) == [], said
    code, said = play(site)
    assert code == 0, said
    first, second = keys(site)
    assert first == second and first.count("\n1 ") == 1
    assert {(site / name / "keys").stat().st_mode & 0o777 for name in GATEWAYS} == {0o600}
    for options in ([], ["--check", "--diff"]):
        code, said = play(site, *options)
        assert code == 0 and "changed=0" in said and "changed=1" not in said, said
        assert keys(site) == [first, first]


def test_a_rotated_key_reaches_the_others_and_is_not_shown(site: Path) -> None:
    assert play(site)[0] == 0
    add_key(site / "two" / "keys")
    code, said = play(site, "--diff", "-vvv")
    first, second = keys(site)
    assert code == 0 and first == second and "\n2 " in first, said
    assert not [line for line in first.splitlines() if line.startswith(("1 ", "2 ")) and line.split()[1] in said]


def test_keys_that_contradict_each_other_are_refused_and_left_alone(site: Path) -> None:
    for name in GATEWAYS:
        add_key(site / name / "keys")
    before = keys(site)
    code, said = play(site)
    assert code != 0 and "Gateways have not the same keys 1 of the pseudonyms" in " ".join(said.split()), said
    assert keys(site) == before


def test_a_key_that_was_forgotten_on_one_gateway_does_not_come_back(site: Path) -> None:
    assert play(site)[0] == 0
    add_key(site / "one" / "keys")
    assert play(site)[0] == 0
    path = site / "one" / "keys"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("1 ")))
    before = keys(site)
    code, said = play(site)
    assert code != 0 and "not the same keys 1 of" in " ".join(said.split()) and keys(site) == before, said


def test_no_first_key_is_made_while_the_other_gateway_may_have_one(site: Path) -> None:
    assert play(site)[0] == 0
    (site / "two" / "keys").unlink()
    code, said = play(site, "--limit", "two")
    assert code != 0 and "and one may have some" in " ".join(said.split()) and len(keys(site)) == 1, said
    assert play(site)[0] == 0 and len(set(keys(site))) == 1 and len(keys(site)) == 2
