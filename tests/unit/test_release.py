"""Releases: reproducible packing, publishing to HDFS (a directory stands for it), spark-submit."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gridstead.hdfs import HdfsError, HdfsShell
from gridstead.release import JOBS, ReleaseError, Releases, build, pack_environment, spark_environment, spark_submit_command

SHELL = """#!/usr/bin/env python3
import os, shutil, sys
root = os.environ["FAKE_HDFS"]
def at(path): return root + path
def fail(text, status=1):
    print(text, file=sys.stderr); sys.exit(status)
assert sys.argv[1] == "fs"
verb, *rest = sys.argv[2:]
paths = [a for a in rest if not a.startswith("-")]
if verb == "-test": sys.exit(0 if os.path.exists(at(paths[0])) else 1)
elif verb == "-mkdir": [os.makedirs(at(p), exist_ok=True) for p in paths]
elif verb == "-put":
    target = at(paths[-1])
    for file in paths[:-1]:
        final = os.path.join(target, os.path.basename(file)) if os.path.isdir(target) else target
        if os.path.exists(final) and "-f" not in rest: fail("put: File exists")
        shutil.copy(file, final)
elif verb == "-mv":
    if os.path.exists(at(paths[1])): fail("mv: File exists")
    os.rename(at(paths[0]), at(paths[1]))
elif verb == "-rm": shutil.rmtree(at(paths[0]), ignore_errors=True)
elif verb == "-cat":
    for p in paths:
        if not os.path.exists(at(p)): fail(f"cat: `{p}': No such file or directory")
        print(open(at(p)).read(), end="")
elif verb == "-ls": print("\\n".join(sorted(paths[0] + "/" + n for n in os.listdir(at(paths[0])))))
else: fail("unknown " + verb, 255)
"""


@pytest.fixture
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Releases:
    cli = tmp_path / "hadoop"
    cli.write_text(SHELL)
    cli.chmod(0o755)
    (tmp_path / "hdfs").mkdir()
    monkeypatch.setenv("FAKE_HDFS", str(tmp_path / "hdfs"))
    return Releases(HdfsShell(str(cli)), "/apps/gridstead")


@pytest.fixture
def lib(tmp_path: Path) -> Path:
    jobs = tmp_path / "lib" / "gridstead" / "jobs"
    jobs.mkdir(parents=True)
    for name in (*JOBS, "__init__"):
        (jobs / f"{name}.py").write_text(f"# {name}\n")
    (jobs / "__pycache__").mkdir()
    (jobs / "__pycache__" / "batch.pyc").write_bytes(b"x")
    (jobs / "run.sh").write_text("#!/bin/sh\n")
    (jobs / "run.sh").chmod(0o700)
    return tmp_path / "lib"


def test_packing_the_same_twice_gives_the_same_bytes(lib: Path, tmp_path: Path) -> None:
    first = pack_environment(lib, tmp_path / "a" / "e.tar.gz").read_bytes()
    for path in lib.rglob("*"):
        os.utime(path, (1, 1))
    assert pack_environment(lib, tmp_path / "b" / "e.tar.gz").read_bytes() == first
    with tarfile.open(tmp_path / "a" / "e.tar.gz") as tar:
        names = tar.getnames()
        assert "gridstead/jobs/batch.py" in names and not any("pyc" in name for name in names)
        assert tar.getmember("gridstead/jobs/run.sh").mode & stat.S_IXUSR


def test_publish_list_and_use(releases: Releases, lib: Path, tmp_path: Path) -> None:
    assert releases.list() == [] and releases.current() is None
    for version in ("0.1.0", "0.10.0", "0.2.0"):
        build(lib, tmp_path / version, version)
        assert releases.publish(tmp_path / version, use=version == "0.1.0")
    assert releases.list() == ["0.1.0", "0.2.0", "0.10.0"] and releases.current() == "0.1.0"
    releases.use("0.10.0")
    assert releases.current() == "0.10.0"
    root = tmp_path / "hdfs" / "apps" / "gridstead"
    assert sorted(p.name for p in (root / "0.2.0").iterdir()) == [
        "archive.py",
        "batch.py",
        "environment.tar.gz",
        "ingest.py",
        "reading.py",
        "release.json",
        "stream.py",
    ]
    assert not [p for p in root.iterdir() if p.name.startswith(".")]


def test_publishing_again_changes_nothing_and_other_content_is_refused(
    releases: Releases, lib: Path, tmp_path: Path
) -> None:
    build(lib, tmp_path / "one", "1.0")
    assert releases.publish(tmp_path / "one") and not releases.publish(tmp_path / "one")
    build(lib, tmp_path / "by-hand", "1.0", build_id="of a bundle")
    assert not releases.publish(tmp_path / "by-hand"), "the same files are the same release, whoever builds them"
    (lib / "gridstead" / "jobs" / "batch.py").write_text("# other\n")
    build(lib, tmp_path / "two", "1.0")
    with pytest.raises(ReleaseError, match="raise the version"):
        releases.publish(tmp_path / "two")


def test_a_file_changed_after_the_build_is_refused(releases: Releases, lib: Path, tmp_path: Path) -> None:
    build(lib, tmp_path / "one", "1.0")
    (tmp_path / "one" / "batch.py").write_text("# changed\n")
    with pytest.raises(ReleaseError, match="build the release again"):
        releases.publish(tmp_path / "one")


@pytest.mark.parametrize("version", ["9.9", "current", "../x", ""])
def test_a_version_that_is_not_there_cannot_be_used(releases: Releases, version: str) -> None:
    with pytest.raises(ReleaseError):
        releases.use(version)


def test_a_lib_without_the_jobs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReleaseError, match="must hold the installed package"):
        build(tmp_path / "empty", tmp_path / "out", "1.0")


def test_a_shell_that_fails_or_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(HdfsError, match="is not there: install"):
        HdfsShell(str(tmp_path / "none")).mkdirs("/x")
    cli = tmp_path / "broken"
    cli.write_text("#!/bin/sh\necho 'mkdir: Call to nn failed on connection exception' >&2; exit 1\n")
    cli.chmod(0o755)
    with pytest.raises(HdfsError, match="`hadoop fs -mkdir -p /x` failed: mkdir: Call to nn failed"):
        HdfsShell(str(cli)).mkdirs("/x")
    with pytest.raises(HdfsError, match="connection exception"):
        HdfsShell(str(cli)).exists("/x")


def configuration(**changes: Any) -> Any:
    return SimpleNamespace(
        path=Path("/etc/gridstead/gridstead.toml"),
        appliance=SimpleNamespace(java_home="/jdk"),
        hadoop=SimpleNamespace(conf_dir="/etc/hadoop", cli="/opt/hadoop"),
        spark=SimpleNamespace(
            home="/lib/pyspark", python="/usr/bin/python3", pythonpath="/lib/gs", conf_dir="/etc/spark"
        ),
        release=SimpleNamespace(root="/apps/gridstead/"),
    )


def test_spark_submit_in_cluster_mode_takes_everything_from_the_release() -> None:
    command = spark_submit_command(
        configuration(), "batch", ["--from", "2024-01-01"], deploy_mode="cluster", version="0.1.0"
    )
    assert command[0] == "/lib/pyspark/bin/spark-submit"
    assert command[command.index("--archives") + 1] == "hdfs:///apps/gridstead/0.1.0/environment.tar.gz#environment"
    assert "spark.yarn.appMasterEnv.PYTHONPATH=./environment" in command
    main = command.index("hdfs:///apps/gridstead/0.1.0/batch.py")
    assert command[main + 1 :] == ["--config", "/etc/gridstead/gridstead.toml", "--from", "2024-01-01"]


def test_spark_submit_in_client_and_local_mode_runs_the_installed_job() -> None:
    client = spark_submit_command(configuration(), "batch", version="0.1.0", settings={"spark.executor.memory": "1g"})
    assert "/lib/gs/gridstead/jobs/batch.py" in client and "spark.executor.memory=1g" in client
    local = spark_submit_command(configuration(), "stream", master="local[2]")
    assert "--archives" not in local


@pytest.mark.parametrize(
    ("arguments", "options"), [(("other",), {}), (("batch",), {"deploy_mode": "x"}), (("batch",), {"version": None})]
)
def test_what_cannot_be_submitted_is_refused(arguments: tuple[str], options: dict[str, Any]) -> None:
    with pytest.raises(ReleaseError):
        spark_submit_command(configuration(), *arguments, **({"version": "1"} | options))


def test_the_environment_of_spark_submit_puts_spark_first() -> None:
    environment = spark_environment(configuration(), {"PATH": "/bin", "PYTHONPATH": "/elsewhere"})
    assert environment["PATH"] == "/lib/pyspark/bin:/usr/bin:/bin"
    assert environment["PYTHONPATH"] == "/lib/gs:/lib"
    assert environment["HADOOP_CONF_DIR"] == "/etc/hadoop" and environment["JAVA_HOME"] == "/jdk"
