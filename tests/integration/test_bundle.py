"""The bundle: what differs from its lock or manifest stops the work with its name, both hashes and the remedy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import ROOT

BUNDLE = Path(os.environ.get("GRIDSTEAD_BUNDLE", ROOT / "bundle"))


def bundle(*arguments: str, root: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run tools/bundle.py; return what happened."""
    command = [sys.executable, str(root / "tools/bundle.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, timeout=600, check=False)


def test_a_second_call_does_nothing() -> None:
    before = {path.name: path.stat().st_mtime_ns for path in BUNDLE.glob("*.tar")}
    done = bundle("--directory", str(BUNDLE), "build")
    assert done.returncode == 0, done.stderr
    by_default = [name for name in before if not name.startswith(("debian-", "victoriametrics-"))]  # those are built when they are named
    assert f"0 built, {len(by_default)} up to date" in done.stdout
    assert {path.name: path.stat().st_mtime_ns for path in BUNDLE.glob("*.tar")} == before


def test_a_jar_that_differs_from_the_lock_stops_the_bundle(tmp_path: Path) -> None:
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    lock = tmp_path / "clone/artifacts/activemq/artifacts.lock"
    lines = lock.read_text().splitlines()
    digest, jar = lines[5].split()
    lines[5] = f"{'0' * 64}  {jar}"
    lock.write_text("\n".join(lines) + "\n")
    done = bundle("--directory", str(tmp_path / "bundle"), "build", "activemq", root=tmp_path / "clone")
    assert done.returncode == 1
    assert jar in done.stderr and digest in done.stderr and "0" * 64 in done.stderr and "Next:" in done.stderr
    assert not list((tmp_path / "bundle").glob("*.tar"))


@pytest.fixture
def forged(tmp_path: Path) -> Path:
    """A bundle whose one tarball is not what its manifest says."""
    (tmp_path / "kafka-1.tar").write_bytes(b"not the tarball")
    entry = {"version": "1", "file": "kafka-1.tar", "sha256": "1" * 64, "inputs": ""}
    (tmp_path / "manifest.json").write_text(json.dumps({"components": {"kafka": entry}}))
    return tmp_path


def test_verify_names_the_tarball_both_hashes_and_the_remedy(forged: Path) -> None:
    done = bundle("--directory", str(forged), "verify")
    assert done.returncode == 1
    assert "kafka-1.tar" in done.stderr and "1" * 64 in done.stderr and "make bundle" in done.stderr
    assert len(set(re.findall(r"[0-9a-f]{64}", done.stderr))) == 2


def test_an_installation_refuses_a_tarball_that_differs(forged: Path, tmp_path: Path) -> None:
    play = tmp_path / "play.yml"
    play.write_text(
        "- hosts: localhost\n  connection: local\n  gather_subset: ['!all', '!min', 'user', 'env']\n"
        f"  vars: {{gridstead_root: {tmp_path}/root, gridstead_supervisor: supervisord, gridstead_bundle_dir: {forged},\n"
        "         gridstead_user: \"{{ ansible_facts['user_id'] }}\"}\n"
        "  roles: [{role: artifact, artifact_name: kafka}]\n"
    )
    env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    done = subprocess.run(["ansible-playbook", str(play)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "kafka-1.tar" in done.stdout and "1" * 64 in done.stdout and "make bundle" in done.stdout
    assert not list((tmp_path / "root").rglob("kafka/1"))


def test_an_unknown_component_is_an_error_that_lists_the_known() -> None:
    done = bundle("build", "hadop")
    assert done.returncode == 2 and "hadoop" in done.stderr
