"""Releases of the jobs on HDFS: a wheel and a packed environment per version, and a pointer to the one in use.

Layout under release.root::

    <version>/gridstead-<version>-py3-none-any.whl
    <version>/environment.tar.gz      the libraries of the jobs, unpacked by YARN beside each container
    <version>/batch.py, …             the applications (JOBS), as spark-submit's main file
    <version>/release.json            version, SHA-256 and size of each file
    current                           one line: the version in use

A version is uploaded under another name and renamed when whole, and is never changed afterwards.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gridstead.hdfs import HdfsError, HdfsShell

if TYPE_CHECKING:
    from gridstead.config import Config

ENVIRONMENT = "environment.tar.gz"
JOBS = ("archive", "batch", "ingest", "reading", "stream")
_VERSION = re.compile(r"^[0-9A-Za-z][0-9A-Za-z.+_-]*$")
_UNPACKED = "environment"  # the name under which YARN shows the unpacked environment in a container


class ReleaseError(Exception):
    """A release cannot be built, published or used; the text says why and what to do."""


@dataclass(frozen=True)
class ReleaseFile:
    """One file of a release: its name, its SHA-256 in hex, and its size in bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Release:
    """A built or published release."""

    version: str
    files: tuple[ReleaseFile, ...]
    build: str = field(default="", compare=False)
    """What it was made from: the SHA-256 of the bundle's tarball. The same files are the same release all the same."""

    def to_json(self) -> str:
        """The content of release.json."""
        return json.dumps(asdict(self), sort_keys=True, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Release:
        """Read release.json; raises ReleaseError."""
        try:
            document = json.loads(text)
            files = tuple(ReleaseFile(**file) for file in document["files"])
            return Release(document["version"], files, document.get("build", ""))
        except (ValueError, KeyError, TypeError) as error:
            raise ReleaseError(f"release.json cannot be read ({error!r}): publish this version again") from error


def build_wheel(source: Path, out: Path, python: str = sys.executable) -> Path:
    """Build the wheel of the distribution in ``source`` (analytics/) into ``out``, without the network; returns it."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [python, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet",
                   "--wheel-dir", scratch, str(source)]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        wheels = list(Path(scratch).glob("*.whl"))
        if result.returncode != 0 or len(wheels) != 1:
            raise ReleaseError(
                f"the wheel of {source} was not built (setuptools must be installed): {result.stderr.strip()[-500:]}"
            )
        target = out / wheels[0].name
        target.write_bytes(wheels[0].read_bytes())
    return target


def pack_environment(lib: Path, target: Path) -> Path:
    """Pack a directory of site-packages into a tar.gz; the same content gives the same bytes. Returns ``target``."""
    if not lib.is_dir():
        raise ReleaseError(f"{lib} is not a directory: it must hold the libraries of the jobs (spark.pythonpath)")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(lib.rglob("*")):
                if "__pycache__" in path.parts or path.suffix == ".pyc":
                    continue
                info = tar.gettarinfo(str(path), arcname=path.relative_to(lib).as_posix())
                info.uid = info.gid = 0
                info.uname = info.gname = ""
                info.mtime = 0
                info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
                if info.isfile():
                    with path.open("rb") as content:
                        tar.addfile(info, content)
                else:
                    tar.addfile(info, io.BytesIO())
    os.replace(partial, target)
    return target


def build(lib: Path, out: Path, version: str, wheel: Path | None = None, build_id: str = "") -> Release:
    """Lay a release into ``out``: environment packed from ``lib``, the applications found in it, and the wheel if
    given.

    ``lib`` is the runtime's site-packages with the package gridstead in it. Raises ReleaseError.
    """
    _check_version(version)
    out.mkdir(parents=True, exist_ok=True)
    jobs = lib / "gridstead" / "jobs"
    files = []
    for job in JOBS:
        source = jobs / f"{job}.py"
        if not source.is_file():
            raise ReleaseError(f"{source} is not there: {lib} must hold the installed package gridstead")
        target = out / source.name
        target.write_bytes(source.read_bytes())
        files.append(target)
    files.append(pack_environment(lib, out / ENVIRONMENT))
    if wheel is not None:
        if f"-{version}-" not in wheel.name:
            raise ReleaseError(f"{wheel.name} is not the wheel of version {version}")
        target = out / wheel.name
        if target.resolve() != wheel.resolve():
            target.write_bytes(wheel.read_bytes())
        files.append(target)
    release = Release(version, tuple(sorted((_file(path) for path in files), key=lambda f: f.name)), build_id)
    (out / "release.json").write_text(release.to_json(), encoding="utf-8")
    return release


def _file(path: Path) -> ReleaseFile:
    digest = hashlib.sha256()
    with path.open("rb") as content:
        for block in iter(lambda: content.read(1 << 20), b""):
            digest.update(block)
    return ReleaseFile(path.name, digest.hexdigest(), path.stat().st_size)


def _check_version(version: str) -> None:
    if not _VERSION.match(version) or version == "current":
        raise ReleaseError(f"{version!r} is no version: letters, digits and . + _ - only")


class Releases:
    """The releases on HDFS under one root (cfg.release.root)."""

    def __init__(self, shell: HdfsShell, root: str) -> None:
        self._shell = shell
        self._root = root.rstrip("/")

    def publish(self, directory: Path, use: bool = True, replace: bool = False) -> bool:
        """Upload what :func:`build` laid out, and make it the current one; false if the same was there already.

        A version that is there with other content is refused (ReleaseError): raise the version instead; or, while the
        jobs are developed, ``replace`` it.
        """
        release = Release.from_json((directory / "release.json").read_text(encoding="utf-8"))
        for file in release.files:
            if _file(directory / file.name) != file:
                raise ReleaseError(f"{directory / file.name} is not what release.json says: build the release again")
        target = f"{self._root}/{release.version}"
        changed = False
        described = f"{target}/release.json"
        there = Release.from_json(self._shell.read(described)) if self._shell.exists(described) else None
        if there is not None and there != release and not replace:
            raise ReleaseError(
                f"version {release.version} is on HDFS already ({target}) with other files: "
                "releases are never changed, raise the version"
            )
        if there != release:
            staging = f"{self._root}/.upload-{release.version}-{os.getpid()}"
            self._shell.remove(staging)
            self._shell.mkdirs(staging)
            self._shell.put([directory / name for name in (*[f.name for f in release.files], "release.json")], staging)
            if there is not None:
                self._shell.remove(target)
            self._shell.move(staging, target)
            changed = True
        if use and self.current() != release.version:
            self.use(release.version)
            changed = True
        return changed

    def list(self) -> list[str]:
        """The versions on HDFS, oldest first by version number."""
        if not self._shell.exists(self._root):
            return []
        names = self._shell.names(self._root)
        return sorted((name for name in names if name != "current" and not name.startswith(".")), key=_version_order)

    def current(self) -> str | None:
        """The version in use, None if none was chosen."""
        try:
            return self._shell.read(f"{self._root}/current").strip() or None
        except HdfsError as error:
            if "No such file" in str(error):
                return None
            raise

    def use(self, version: str) -> None:
        """Point ``current`` to a version that is on HDFS; ReleaseError if it is not."""
        _check_version(version)
        if not self._shell.exists(f"{self._root}/{version}/release.json"):
            raise ReleaseError(f"version {version} is not on HDFS under {self._root}: see `gridstead release list`")
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "current"
            file.write_text(version + "\n", encoding="utf-8")
            self._shell.replace(file, f"{self._root}/current")


def _version_order(version: str) -> tuple[tuple[int, int, str], ...]:
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"[.+_-]", version))


def releases(cfg: Config) -> Releases:
    """The releases of a configuration."""
    return Releases(HdfsShell(cfg.hadoop.cli), cfg.release.root)


def spark_environment(cfg: Config, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of spark-submit: where Spark, its configuration, Hadoop's, Java and the driver's Python are."""
    env = dict(os.environ if environment is None else environment)
    env["SPARK_HOME"] = cfg.spark.home
    env["SPARK_CONF_DIR"] = cfg.spark.conf_dir
    env["HADOOP_CONF_DIR"] = env["YARN_CONF_DIR"] = cfg.hadoop.conf_dir
    env["PYSPARK_PYTHON"] = env["PYSPARK_DRIVER_PYTHON"] = cfg.spark.python
    if cfg.appliance.java_home:
        env["JAVA_HOME"] = cfg.appliance.java_home
    paths = [cfg.spark.pythonpath, str(Path(cfg.spark.home).parent)]
    env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    env["PATH"] = os.pathsep.join(
        [str(Path(cfg.spark.home) / "bin"), str(Path(cfg.spark.python).parent), env.get("PATH", os.defpath)]
    )
    return env


def spark_submit_command(
    cfg: Config,
    job: str,
    arguments: Sequence[str] = (),
    master: str = "yarn",
    deploy_mode: str = "client",
    version: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> list[str]:
    """The command line that submits a job (one of JOBS); run it with :func:`spark_environment`.

    On YARN the executors get the packed environment of ``version`` (required there; the current one is
    ``releases(cfg).current()``) from HDFS; in cluster mode the driver too, and the main file comes from HDFS. In
    cluster mode gridstead.toml and the client files it names must be at the same paths on every node.
    """
    if job not in JOBS:
        raise ReleaseError(f"{job!r} is no job: use one of {', '.join(JOBS)}")
    if deploy_mode not in ("client", "cluster"):
        raise ReleaseError(f"{deploy_mode!r} is no deploy mode: use client or cluster")
    command = [str(Path(cfg.spark.home) / "bin" / "spark-submit"), "--master", master, "--deploy-mode", deploy_mode,
               "--name", f"gridstead-{job}"]  # fmt: skip
    main = str(Path(cfg.spark.pythonpath or ".") / "gridstead" / "jobs" / f"{job}.py")
    conf: dict[str, str] = {}
    if master == "yarn":
        if not version:
            raise ReleaseError("no release is in use: publish one, or choose one with `gridstead release use VERSION`")
        root = f"{cfg.release.root.rstrip('/')}/{version}"
        command += ["--archives", f"hdfs://{root}/{ENVIRONMENT}#{_UNPACKED}"]
        conf["spark.executorEnv.PYTHONPATH"] = f"./{_UNPACKED}"
        conf["spark.pyspark.python"] = cfg.spark.python
        if deploy_mode == "cluster":
            main = f"hdfs://{root}/{job}.py"
            conf["spark.yarn.appMasterEnv.PYTHONPATH"] = f"./{_UNPACKED}"
            conf["spark.yarn.appMasterEnv.PYSPARK_PYTHON"] = cfg.spark.python
            conf["spark.yarn.appMasterEnv.GRIDSTEAD_CONFIG"] = str(cfg.path)
    for name, value in {**conf, **(settings or {})}.items():
        command += ["--conf", f"{name}={value}"]
    return [*command, main, "--config", str(cfg.path), *arguments]
