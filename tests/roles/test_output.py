"""What playbooks print: a quiet word while something is waited for, and at the end what took long."""

from __future__ import annotations

import os
import re
from pathlib import Path

from appliance import ROOT, run

PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - name: Wait for a server
      ansible.builtin.command: {argv: [sh, -c, "test -e {{ place }}/up || { touch {{ place }}/up; exit 1; }"]}
      register: tried
      until: tried is success
      retries: 3
      delay: 1
      changed_when: false
    - name: Take long
      ansible.builtin.command: {argv: [sleep, "5"]}
      changed_when: true
"""


def test_waiting_is_no_failure_and_the_slowest_tasks_are_told(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAY)
    book = ["ansible-playbook", "-i", "localhost,", "-c", "local", str(tmp_path / "play.yml"), "-e", f"place={tmp_path}"]
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    output = run([*book, "-e", "ansible_python_interpreter=/usr/bin/python3"], env=env)
    assert "FAILED" not in output
    assert output.index("waiting: [localhost]: Wait for a server (try 1)") < output.index("PLAY RECAP")
    end = output.partition("PLAY RECAP")[2]
    assert re.search(r"^It took \d+ s\.\n +\d s  Take long$", end, re.MULTILINE), end
    assert "Wait for a server" not in end
