#!/usr/bin/env python3
"""Resolve every server and library once, check each file against its lock, and keep versioned tarballs.

The bundle is all that an installation needs: hosts never download (DESIGN.md, "Artefacts and the bundle").
Servers come from Maven (`artifacts/<server>/pom.xml`), Python libraries from pip (`requirements/*.lock`). Both
clients follow the site's own mirror settings. A second call with the same inputs does nothing.

Only the standard library is used, so that the bundle can be built before anything is installed.
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = ROOT / "artifacts"
REQUIREMENTS = ROOT / "requirements"
COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
LAYOUT = 1  # raise it when a builder below lays a component out in another way
POM = {"m": "http://maven.apache.org/POM/4.0.0"}


class BundleError(Exception):
    """A bundle that cannot be built or trusted; the message says what, where and what to do."""


def say(text: str) -> None:
    """Print one line of progress at once."""
    print(f"bundle: {text}", flush=True)


def sha256(path: Path) -> str:
    """Return the sha256 of a file as hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def run(command: list[str], what: str, cwd: Path = ROOT, **environment: str) -> None:
    """Run a client quietly; on failure raise BundleError with the lines that explain it."""
    try:
        env = {**os.environ, **environment}
        done = subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except FileNotFoundError as error:
        raise BundleError(f"{what}: {command[0]} is not installed. Install it (Debian: apt-get install {command[0]}).") from error
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        telling = [line for line in lines if "ERROR" in line or "error:" in line.lower()] or lines
        raise BundleError(
            f"{what} failed with exit code {done.returncode}:\n  " + "\n  ".join(telling[:8]) + "\n"
            "Next: check that the package registry or the site's mirror is reachable, then run `make bundle` again."
        )


# --- locks ---------------------------------------------------------------------------------------------------------


def read_lock(server: str) -> dict[str, str]:
    """Return {repository path: sha256} of artifacts/<server>/artifacts.lock."""
    path = ARTIFACTS / server / "artifacts.lock"
    if not path.exists():
        raise BundleError(f"{path.relative_to(ROOT)} is missing. Next: tools/bundle.py lock {server}")
    pairs = (line.split(maxsplit=1) for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {name: digest for digest, name in pairs}


def resolve(server: str, into: Path) -> dict[str, Path]:
    """Resolve a server's pom with Maven; return {repository path: file}."""
    pom = ARTIFACTS / server / "pom.xml"
    goal = [COPY_DEPENDENCIES, "-Dmdep.useRepositoryLayout=true", f"-DoutputDirectory={into}"]
    run(["mvn", "-B", "-ntp", "-f", str(pom), *goal], f"resolving {pom.relative_to(ROOT)} with mvn")
    files = (path for path in into.rglob("*") if path.suffix in {".jar", ".zip"})
    return {str(path.relative_to(into)): path for path in sorted(files)}


def check_against_lock(server: str, files: dict[str, Path]) -> None:
    """Raise BundleError naming every file that differs from the lock, with both hashes and the remedy."""
    locked = read_lock(server)
    wrong = [f"{name}: not in the lock" for name in sorted(files.keys() - locked.keys())]
    wrong += [f"{name}: in the lock, but not resolved" for name in sorted(locked.keys() - files.keys())]
    for name in sorted(files.keys() & locked.keys()):
        found = sha256(files[name])
        if found != locked[name]:
            wrong.append(f"{name}\n      locked   sha256 {locked[name]}\n      resolved sha256 {found}")
    if wrong:
        raise BundleError(
            f"artifacts of {server} differ from artifacts/{server}/artifacts.lock:\n    " + "\n    ".join(wrong) + "\n"
            "Next: remove the named files from the local Maven repository (~/.m2/repository) and run `make bundle` again;\n"
            "if they still differ, the mirror serves something else than what was tested: do not install it.\n"
            f"Only after a wanted change of pom.xml: tools/bundle.py lock {server}"
        )


def write_lock(server: str) -> None:
    """Resolve a server and write its lock anew (after a wanted change of its pom.xml)."""
    with tempfile.TemporaryDirectory() as scratch:
        files = resolve(server, Path(scratch))
        lines = [f"{sha256(path)}  {name}" for name, path in files.items()]
    head = f"# sha256 and repository path of every file of {server}; written by: tools/bundle.py lock {server}\n"
    (ARTIFACTS / server / "artifacts.lock").write_text(head + "\n".join(lines) + "\n")
    say(f"artifacts/{server}/artifacts.lock: {len(lines)} files")


# --- tarballs ------------------------------------------------------------------------------------------------------


def write_tar(target: Path, tree: Path) -> None:
    """Write a tree as an uncompressed tarball (jars are compressed already), the same bytes for the same content."""
    partial = target.with_suffix(".partial")
    with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(tree.rglob("*")):
            info = tar.gettarinfo(path, str(path.relative_to(tree)))
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = "root"
            info.mode = 0o755 if path.is_dir() or info.mode & 0o100 else 0o644
            if info.isreg():
                with path.open("rb") as stream:
                    tar.addfile(info, stream)
            else:
                tar.addfile(info)
    partial.rename(target)


def place(files: dict[str, Path], into: Path) -> None:
    """Link every resolved jar into one flat directory; two files of one name would shadow each other."""
    into.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        target = into / path.name
        if target.exists():
            raise BundleError(f"two artefacts share the file name {path.name} (one is {name}): exclude one in pom.xml")
        shutil.copyfile(path, target)


def unzip(archive: Path, into: Path, prefix: str, strip: int = 0) -> None:
    """Extract the members below prefix, without their first `strip` path parts, keeping the executable bit."""
    with zipfile.ZipFile(archive) as package:
        for member in package.infolist():
            if member.is_dir() or not member.filename.startswith(prefix):
                continue
            target = into.joinpath(*Path(member.filename).parts[strip:])
            target.parent.mkdir(parents=True, exist_ok=True)
            with package.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            target.chmod(0o755 if member.external_attr >> 16 & 0o100 else 0o644)


def pip(arguments: list[str], what: str) -> None:
    """Run the control environment's pip (the interpreter that runs this file)."""
    run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], what)


def pip_target(lock: str, into: Path) -> None:
    """Install locked wheels into a plain directory that any interpreter of this minor version can use."""
    arguments = ["install", "--quiet", "--no-deps", "--no-compile", "--require-hashes", "--only-binary", ":all:"]
    pip([*arguments, "--target", str(into), "-r", str(REQUIREMENTS / lock)], f"installing requirements/{lock}")
    shutil.rmtree(into / "bin", ignore_errors=True)


PYARROW_UNUSED = ("include", "includes", "src", "tests", "*flight*", "*_s3*", "libarrow_python.so", "libarrow_python.so.*.*.*")
"""64 of its 166 MB: headers, tests, RPC and S3 that nothing else is linked with, and copies where a link would be."""


def trim(package: Path, unused: tuple[str, ...]) -> None:
    """Delete what of a package is not used here."""
    for pattern in unused:
        for path in package.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# --- components ----------------------------------------------------------------------------------------------------


def jars_only(server: str, tree: Path, scratch: Path) -> None:
    """A server that is its jars: lib/*.jar."""
    files = resolve(server, scratch)
    check_against_lock(server, files)
    place(files, tree / "lib")


def hadoop(server: str, tree: Path, scratch: Path) -> None:
    """Hadoop: lib/*.jar, and the real web pages that only the tests jar carries."""
    files = resolve(server, scratch)
    check_against_lock(server, files)
    pages = next(name for name in files if name.endswith("-tests.jar"))
    unzip(files.pop(pages), tree, "webapps/")
    place(files, tree / "lib")


def elasticsearch(server: str, tree: Path, scratch: Path) -> None:
    """Elasticsearch: the published archive, unpacked as it is."""
    files = resolve(server, scratch)
    check_against_lock(server, files)
    (archive,) = files.values()
    unzip(archive, tree, "elasticsearch-", strip=1)
    for name in ("logs", "plugins"):
        (tree / name).mkdir(exist_ok=True)


def spark(server: str, tree: Path, scratch: Path) -> None:
    """Spark in its own layout (bin, sbin, jars, python) from the pyspark sdist, with the Kafka and Avro jars."""
    files = resolve(server, scratch / "maven")
    check_against_lock(server, files)
    arguments = ["download", "--quiet", "--no-deps", "--no-build-isolation", "--require-hashes", "-d", str(scratch)]
    pip([*arguments, "-r", str(REQUIREMENTS / "spark.lock")], "downloading pyspark (430 MB)")
    (sdist,) = scratch.glob("pyspark-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(scratch)  # its hash was checked by pip; Debian 12's Python knows no extraction filter
    source = scratch / sdist.name.removesuffix(".tar.gz")
    for name in ("bin", "sbin", "jars"):
        shutil.move(source / "deps" / name, tree / name)
    for script in (*(tree / "bin").iterdir(), *(tree / "sbin").iterdir()):
        script.chmod(0o755)
    (tree / "python").mkdir()
    shutil.move(source / "pyspark", tree / "python" / "pyspark")
    shutil.move(source / "lib", tree / "python" / "lib")
    present = {path.name for path in (tree / "jars").iterdir()}
    place({name: path for name, path in files.items() if path.name not in present and not shadows(path, present)}, tree / "jars")


def shadows(jar: Path, present: set[str]) -> bool:
    """Tell whether Spark already carries this artefact in another version; Spark's own version wins."""
    artefact = jar.parent.parent.name
    return any(name.startswith(f"{artefact}-") and name[len(artefact) + 1 :][:1].isdigit() for name in present)


def release() -> str:
    """Return the Debian release and architecture of this machine: bookworm-amd64. Raises BundleError on another system."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise BundleError(
            "packages of Debian can only be bundled on Debian. Next: `tools/bundle.py build debian` on a host like those to install"
        )
    known = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    architecture = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout
    return f"{known.get('VERSION_CODENAME', 'unknown')}-{architecture.strip()}"


def debian(_server: str, tree: Path, scratch: Path) -> None:
    """Packages of Debian with everything they depend on, as a repository for apt: *.deb and Packages.

    apt resolves them as for a machine without any package, from this machine's own sources, whose signatures it checks.
    """
    wanted = [line for line in (ARTIFACTS / "debian" / "packages.list").read_text().split("\n") if line and not line.startswith("#")]
    for part in ("lists/partial", "cache/archives/partial"):
        (scratch / part).mkdir(parents=True)
    (scratch / "status").touch()
    settings = {"Dir::State::Lists": scratch / "lists", "Dir::State::status": scratch / "status", "Dir::Cache": scratch / "cache",
                "APT::Sandbox::User": getpass.getuser(), "APT::Install-Recommends": "false"}  # fmt: skip
    apt = ["apt-get", "-q", "-y", *(f"-o{name}={value}" for name, value in settings.items())]
    run([*apt, "update"], "reading Debian's lists of packages with apt-get")
    run([*apt, "--download-only", "install", *wanted], f"fetching {', '.join(wanted)} from Debian with apt-get")
    entries = []
    for package in sorted((scratch / "cache" / "archives").glob("*.deb")):
        fields = subprocess.run(["dpkg-deb", "--field", str(package)], capture_output=True, text=True, check=True).stdout
        entries.append(f"{fields}Filename: ./{package.name}\nSize: {package.stat().st_size}\nSHA256: {sha256(package)}\n")
        shutil.move(package, tree / package.name)
    (tree / "Packages").write_text("\n".join(entries))


def victoriametrics(server: str, tree: Path, scratch: Path) -> None:
    """VictoriaMetrics, built from the Go modules of artifacts/victoriametrics; go.sum holds their checksums."""
    if not shutil.which("go"):
        raise BundleError("building VictoriaMetrics needs Go 1.21 or later, which then fetches the version that go.mod names. Install it")
    source = scratch / "source"
    shutil.copytree(ARTIFACTS / server, source)
    go = ["go", "build", "-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o", str(tree / "bin" / "victoria-metrics")]
    program = "github.com/VictoriaMetrics/VictoriaMetrics/app/victoria-metrics"
    run([*go, program], "building VictoriaMetrics with Go", source, CGO_ENABLED="0")


def supervisor(_server: str, tree: Path, _scratch: Path) -> None:
    """The process supervisor of the embedded appliance, as a plain directory of packages."""
    pip_target("supervisor.lock", tree / "lib")


def gridstead(_server: str, tree: Path, scratch: Path) -> None:
    """Our own distribution with the libraries it needs, and its wheel for the release of the jobs."""
    pip_target("runtime.lock", tree / "lib")
    trim(tree / "lib" / "pyarrow", PYARROW_UNUSED)
    source = scratch / "analytics"
    shutil.copytree(ROOT / "analytics", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", ".*", "build"))
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tree / "wheels"), str(source)]
    pip(build, "building the wheel of analytics/")
    (wheel,) = (tree / "wheels").iterdir()
    pip(["install", "--quiet", "--no-deps", "--no-compile", "--target", str(tree / "lib"), str(wheel)], "installing gridstead")
    shutil.rmtree(tree / "lib" / "bin", ignore_errors=True)


def pom_version(server: str) -> str:
    """Return the version of artifacts/<server>/pom.xml."""
    version = ElementTree.parse(ARTIFACTS / server / "pom.xml").getroot().find("m:version", POM)
    if version is None or not version.text:
        raise BundleError(f"artifacts/{server}/pom.xml has no <version>")
    return version.text


def module_version(server: str) -> str:
    """Return the version of VictoriaMetrics in artifacts/<server>/go.mod."""
    for line in (ARTIFACTS / server / "go.mod").read_text().splitlines():
        if (words := line.split())[:1] == ["github.com/VictoriaMetrics/VictoriaMetrics"]:
            return words[1].removeprefix("v")
    raise BundleError(f"artifacts/{server}/go.mod does not name VictoriaMetrics")


def locked_version(lock: str, package: str) -> str:
    """Return the version of a package in requirements/<lock>."""
    for line in (REQUIREMENTS / lock).read_text().splitlines():
        if line.startswith(f"{package}=="):
            return line.split("==")[1].split()[0]
    raise BundleError(f"requirements/{lock} does not name {package}. Next: make lock")


def project_version() -> str:
    """Return the version of the distribution gridstead."""
    return str(tomllib.loads((ROOT / "analytics" / "pyproject.toml").read_text())["project"]["version"])


def tree_of(folder: Path) -> Iterator[Path]:
    """Yield the source files of a folder, in order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not any(p.startswith(".") for p in path.parts[len(ROOT.parts) :]):
            yield path


Builder = Callable[[str, Path, Path], None]
COMPONENTS: dict[str, tuple[Builder, Callable[[], str], list[Path]]] = {
    "zookeeper": (jars_only, lambda: pom_version("zookeeper"), [ARTIFACTS / "zookeeper"]),
    "hadoop": (hadoop, lambda: pom_version("hadoop"), [ARTIFACTS / "hadoop"]),
    "activemq": (jars_only, lambda: pom_version("activemq"), [ARTIFACTS / "activemq"]),
    "kafka": (jars_only, lambda: pom_version("kafka"), [ARTIFACTS / "kafka"]),
    "elasticsearch": (elasticsearch, lambda: pom_version("elasticsearch"), [ARTIFACTS / "elasticsearch"]),
    "spark": (spark, lambda: pom_version("spark"), [ARTIFACTS / "spark", REQUIREMENTS / "spark.lock"]),
    "s3a": (jars_only, lambda: pom_version("s3a"), [ARTIFACTS / "s3a"]),
    "supervisor": (supervisor, lambda: locked_version("supervisor.lock", "supervisor"), [REQUIREMENTS / "supervisor.lock"]),
    "gridstead": (gridstead, project_version, [ROOT / "analytics", REQUIREMENTS / "runtime.lock"]),
    "debian": (debian, release, [ARTIFACTS / "debian"]),
    "victoriametrics": (victoriametrics, lambda: module_version("victoriametrics"), [ARTIFACTS / "victoriametrics"]),
}
ON_DEMAND = ("debian", "victoriametrics")
"""Only built when named: hosts with a package source of their own do without the one, sites without the dashboard without the other."""


def inputs_digest(sources: list[Path]) -> str:
    """Digest of everything a component is made from: its sources, its locks, the Python minor version, the layout."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} layout {LAYOUT}".encode())
    for source in sources:
        for path in [source] if source.is_file() else tree_of(source):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


# --- the bundle ----------------------------------------------------------------------------------------------------


class Bundle:
    """A directory of tarballs and the manifest that says what they are."""

    def __init__(self, directory: Path) -> None:
        """Open a bundle directory; the manifest is read where there is one."""
        self.directory = directory
        self.manifest_path = directory / "manifest.json"
        self.components: dict[str, dict[str, str]] = {}
        if self.manifest_path.exists():
            self.components = json.loads(self.manifest_path.read_text())["components"]

    def save(self) -> None:
        """Write the manifest atomically."""
        partial = self.manifest_path.with_suffix(".partial")
        partial.write_text(json.dumps({"components": dict(sorted(self.components.items()))}, indent=2) + "\n")
        partial.rename(self.manifest_path)

    def verify(self, name: str) -> None:
        """Raise BundleError if a tarball is missing or differs from the manifest."""
        entry = self.components[name]
        path = self.directory / entry["file"]
        remedy = f"Next: rm -f {path} && make bundle"
        if not path.exists():
            raise BundleError(f"{entry['file']} is missing from {self.directory}. {remedy}")
        found = sha256(path)
        if found != entry["sha256"]:
            raise BundleError(
                f"{path} is not the file that was bundled:\n"
                f"      manifest sha256 {entry['sha256']}\n      found    sha256 {found}\n{remedy}"
            )

    def build(self, name: str) -> bool:
        """Build one component unless it is there, made from the same inputs; return whether anything was done."""
        builder, version_of, sources = COMPONENTS[name]
        inputs = inputs_digest(sources)
        entry = self.components.get(name)
        if entry and entry["inputs"] == inputs and (self.directory / entry["file"]).exists():
            self.verify(name)
            return False
        version = version_of()
        say(f"{name} {version}: resolving")
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=self.directory, prefix=f".{name}-") as scratch:
            tree = Path(scratch) / "tree"
            tree.mkdir()
            work = Path(scratch) / "work"
            work.mkdir()
            builder(name, tree, work)
            target = self.directory / f"{name}-{version}.tar"
            write_tar(target, tree)
        if entry and entry["file"] != target.name:
            (self.directory / entry["file"]).unlink(missing_ok=True)
        self.components[name] = {"version": version, "file": target.name, "sha256": sha256(target), "inputs": inputs}
        self.save()
        say(f"{target.name}: {target.stat().st_size / 1e6:.0f} MB in {time.monotonic() - started:.0f} s")
        return True


def main(arguments: list[str] | None = None) -> int:
    """Command line of the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path(os.environ.get("GRIDSTEAD_BUNDLE", ROOT / "bundle")))
    verbs = parser.add_subparsers(dest="verb", required=True)
    build = verbs.add_parser("build", help="resolve, verify and pack what is not in the bundle yet")
    known = f"one of: {', '.join(COMPONENTS)} (default: all but {', '.join(ON_DEMAND)})"
    build.add_argument("components", nargs="*", metavar="COMPONENT", help=known)
    verbs.add_parser("verify", help="check every tarball against the manifest")
    lock = verbs.add_parser("lock", help="write a server's artifacts.lock anew, after a wanted change of its pom.xml")
    lock.add_argument("servers", nargs="+", metavar="SERVER")
    options = parser.parse_args(arguments)
    names = set(COMPONENTS) if options.verb == "build" else {path.parent.name for path in ARTIFACTS.glob("*/pom.xml")}
    unknown = sorted(set(getattr(options, "components", []) or getattr(options, "servers", [])) - names)
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(sorted(names))}")
    try:
        if options.verb == "lock":
            for server in options.servers:
                write_lock(server)
            return 0
        options.directory.mkdir(parents=True, exist_ok=True)
        bundle = Bundle(options.directory)
        if options.verb == "verify":
            for name in bundle.components:
                bundle.verify(name)
            say(f"{len(bundle.components)} tarballs agree with the manifest")
            return 0
        done = [bundle.build(name) for name in options.components or [name for name in COMPONENTS if name not in ON_DEMAND]]
        say(f"{sum(done)} built, {len(done) - sum(done)} up to date in {options.directory}")
    except BundleError as error:
        print(f"bundle: ERROR: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
