"""What the preflight says of a host (library/gridstead_preflight.py), and of clocks whatever the time zone of the control machine."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from role_files import ROOT

spec = importlib.util.spec_from_file_location("gridstead_preflight", ROOT / "library" / "gridstead_preflight.py")
assert spec and spec.loader
preflight: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(preflight)


def module(**parameters: Any) -> Any:
    def run(command: list[str]) -> tuple[int, str, str]:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    return SimpleNamespace(params=parameters, run_command=run)


def test_names_that_do_not_resolve_or_only_to_loopback() -> None:
    parameters = {"addresses": ["nowhere.invalid", "localhost"], "own_address": "localhost"}
    assert list(preflight.names(parameters)) == ["the name nowhere.invalid does not resolve: put it into DNS or /etc/hosts"]


def test_a_clock_that_differs() -> None:
    assert list(preflight.clock({"now": time.time(), "clock_tolerance": 10})) == []
    (said,) = preflight.clock({"now": time.time() - 100, "clock_tolerance": 10})
    assert said.startswith("the clock is 100 s before that of the control machine")


def test_too_little_disk_and_memory(tmp_path: Path) -> None:
    wanted = {"disks": [str(tmp_path / "not" / "yet")], "disk_free_gb": 10**6, "memory_mb": 10**9}
    disk, memory = preflight.space(wanted)
    assert "GB free" in disk and str(tmp_path) in disk and "MiB of memory" in memory
    assert list(preflight.space(wanted | {"disk_free_gb": 0, "memory_mb": 1})) == []


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_a_port_that_somebody_else_holds(kind: int) -> None:
    with socket.socket(socket.AF_INET, kind) as holder:
        holder.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            holder.listen()
        port = holder.getsockname()[1]
        (said,) = preflight.ports(module(ports=[port]))
        assert said.startswith(f"port {port} is held by another process")
    assert list(preflight.ports(module(ports=[port]))) == []


@pytest.mark.parametrize(("version", "right"), [("17.0.9", True), ("11.0.2", False)])
def test_java(tmp_path: Path, version: str, right: bool) -> None:
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    program.chmod(0o755)
    found = list(preflight.java(module(java_home=str(tmp_path), java_versions=[17, 21])))
    assert (found == []) is right
    assert list(preflight.java(module(java_home="/nonexistent", java_versions=[17]))) == [
        "/nonexistent/bin/java is not there: set java_home to another"
    ]


def test_a_limit_of_open_files_that_is_too_low() -> None:
    (said,) = preflight.limits({"open_files": 2**40})
    assert "services need 1099511627776" in said


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_the_clock_of_the_control_machine_is_right_in_any_time_zone(tmp_path: Path, zone: str) -> None:
    (play,) = yaml.safe_load((ROOT / "playbooks" / "preflight.yml").read_text())
    (now,) = [task["gridstead_preflight"]["now"] for task in play["tasks"] if "gridstead_preflight" in task]
    told = {"ansible.builtin.copy": {"content": now, "dest": str(tmp_path / "now"), "mode": "0644"}}
    (tmp_path / "play.json").write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [told]}]))
    options = ["-i", "localhost,", "-c", "local", "-e", "ansible_python_interpreter=/usr/bin/python3"]
    command = ["ansible-playbook", *options, str(tmp_path / "play.json")]
    env = {**os.environ, "TZ": zone, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=60)
    assert abs(float((tmp_path / "now").read_text()) - time.time()) < 60
