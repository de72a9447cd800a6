#!/usr/bin/env python3
"""The images: filled by the roles that install hosts, packed without a container engine, the same digest from the same inputs.

Needs root (overlays, chroot), debootstrap, and a bundle. docs/operations/images.md tells more.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bom
import play
import roots
import yaml
from oci import Image, Layer, Layout

from errors import LabError, run

PREFIX = "localhost/gridstead"
FILES = Path(__file__).with_name("files")
_SPARK = "/opt/gridstead/spark/current"
PATH = f"/opt/gridstead/bin:/opt/gridstead/hadoop/bin:/opt/gridstead/gridstead/bin:{_SPARK}/bin:/usr/local/bin:/usr/bin:/bin"
PYTHON_ENVIRONMENT = [
    f"SPARK_HOME={_SPARK}",
    "PYSPARK_PYTHON=/usr/bin/python3",
    f"PYTHONPATH=/opt/gridstead/gridstead/current/lib:{_SPARK}/python:{_SPARK}/python/lib/{{py4j}}",
    "PYTHONDONTWRITEBYTECODE=1",
]


class Build:
    """One run: a few images into one layout."""

    def __init__(self, layout: Layout, bundle: Path, scratch: Path) -> None:
        """Begin with the Debian that all have in common."""
        self.layout = layout
        self.scratch = scratch
        self.bundle = bundle
        self.components: dict[str, dict[str, str]] = json.loads((bundle / "manifest.json").read_text())["components"]
        self.debian = roots.build()
        self._shared: dict[str, Layer] = {}

    @property
    def release(self) -> str:
        """The tag of all images."""
        return self.components["gridstead"]["version"]

    def possible(self, asked: Sequence[str]) -> list[str]:
        """The images that are asked for; where none is, those of which the bundle has all components."""
        lacking = {name: [part for part in play.COMPONENTS[name] if part not in self.components] for name in asked or play.ENTRIES}
        for name, parts in lacking.items():
            if not parts:
                continue
            said, command = f"{self.bundle} has no {', '.join(parts)}, of which {name} is made", f"tools/bundle.py build {' '.join(parts)}"
            if asked:
                raise LabError(said, command)
            print(f"left out: {said}. Next, if you want it: {command}")
        return [name for name, parts in lacking.items() if not parts]

    def build(self, names: Sequence[str]) -> list[Image]:
        """Fill and pack the images."""
        fillings = {name: Filling(self.debian, self.scratch / name) for name in names}
        try:
            for filling in fillings.values():
                filling.mount()
            self._play({name: filling.merged for name, filling in fillings.items()})
            for name, filling in fillings.items():
                filling.finish(with_python=name in play.WITH_PYTHON)
        finally:
            for filling in fillings.values():
                filling.unmount()
        images = [self._pack(name, filling) for name, filling in fillings.items()]
        self.layout.sweep()
        return images

    def _play(self, directories: dict[str, Path]) -> None:
        inventory, book = play.compose(directories, self.scratch)
        log = self.layout.directory.parent / "images.log"
        environment = {**os.environ, "ANSIBLE_CONFIG": str(play.ROOT / "ansible.cfg"), "GRIDSTEAD_BUNDLE": str(self.bundle)}
        with log.open("w") as output:
            command = ["ansible-playbook", "-i", str(inventory), str(book)]
            code = subprocess.run(
                command, env=environment, cwd=play.ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            ).returncode
        if code != 0:
            raise LabError(f"the roles did not fill the images, ansible-playbook ended with {code}", f"tail -n 50 {log}")

    def _pack(self, name: str, filling: Filling) -> Image:
        components = play.COMPONENTS[name]
        apart = [f"opt/gridstead/{part}/{self.components[part]['version']}" for part in components]
        layers = [self._share("base", self.debian / "base")]
        if name in play.WITH_PYTHON:
            layers.append(self._share("python", self.debian / "python"))
        for place in apart:
            layers.append(self._share(place, filling.upper, place))
        layers.append(
            self.layout.layer(filling.upper, lambda path: not any(path == place or path.startswith(f"{place}/") for place in apart))
        )
        status = self.debian / ("python" if name in play.WITH_PYTHON else "base") / "var/lib/dpkg/status"
        versions = {part: self.components[part]["version"] for part in components}
        labels = {
            "org.opencontainers.image.title": name,
            "org.opencontainers.image.version": self.release,
            "org.opencontainers.image.description": f"Gridstead: {name}",
            "org.opencontainers.image.licenses": "Apache-2.0",
            **{f"gridstead.component.{part}": version for part, version in versions.items()},
            **{f"gridstead.bundle.{part}": self.components[part]["sha256"] for part in components},
            "gridstead.java": next(entry["version"] for entry in bom.packages(status.read_text()) if entry["name"].startswith("openjdk")),
        }
        config: dict[str, Any] = {
            "User": f"{roots.UID}:{roots.UID}",
            "Entrypoint": ["/opt/gridstead/bin/run"],
            "WorkingDir": "/tmp",
            "Env": [f"PATH={PATH}", "LANG=C.UTF-8", "HOME=/tmp", *(self._python(filling) if name in play.WITH_PYTHON else [])],
        }
        image = self.layout.image(f"{PREFIX}/{name}:{self.release}", layers, config, labels)
        document = bom.document(name, self.release, image.digest, bom.of_components(components, versions, status))
        (self.layout.directory / f"{name}.cdx.json").write_text(json.dumps(document, indent=1) + "\n")
        return image

    def _python(self, filling: Filling) -> list[str]:
        """Where Python finds what: Spark names the archive of Py4J by its version."""
        (py4j,) = filling.upper.glob(f"opt/gridstead/spark/{self.components['spark']['version']}/python/lib/py4j-*-src.zip")
        return [setting.replace("{py4j}", py4j.name) for setting in PYTHON_ENVIRONMENT]

    def _share(self, key: str, root: Path, place: str = "") -> Layer:
        """The layer of a directory that several images have, or of one place in it."""
        if key not in self._shared:

            def wanted(path: str) -> bool:
                return path == place or path.startswith(f"{place}/") or place.startswith(f"{path}/")

            self._shared[key] = self.layout.layer(root, wanted) if place else self.layout.layer(root)
        return self._shared[key]


class Filling:
    """The root directory of one image while the roles write to it: what they write is kept apart from what was there."""

    def __init__(self, debian: Path, directory: Path) -> None:
        """Name the directories."""
        self.debian = debian
        self.upper, self.work, self.merged = (directory / part for part in ("upper", "work", "merged"))

    def mount(self) -> None:
        """Lay the overlay. Python is there for Ansible's modules, whether or not the image will have it."""
        for folder in (self.upper, self.work, self.merged):
            folder.mkdir(parents=True)
        options = f"lowerdir={self.debian}/python:{self.debian}/base,upperdir={self.upper},workdir={self.work}"
        run(["mount", "-t", "overlay", "-o", options, "overlay", str(self.merged)])
        run(["mount", "-t", "proc", "proc", str(self.merged / "proc")])
        run(["mount", "--bind", "/dev", str(self.merged / "dev")])

    def unmount(self) -> None:
        """Take it away again."""
        if os.path.ismount(self.merged):
            run(["umount", "--recursive", str(self.merged)])

    def finish(self, with_python: bool) -> None:
        """Make of what the roles wrote what a container begins with."""
        gridstead, etc, data = (self.merged / place for place in ("opt/gridstead", "etc/gridstead", "var/lib/gridstead"))
        etc.rename(gridstead / "etc")
        etc.mkdir()
        for launcher in (gridstead / "etc/services").iterdir():
            # in single quotes there, and so known to the environment only when the launcher runs
            launcher.write_text(re.sub(r"@(\{[A-Z_]+(?::-[^}]*)?\})", "'\"$\\1\"'", launcher.read_text()))
        directories = sorted(path for path in data.rglob("*") if path.is_dir())
        names = [str(Path("/", path.relative_to(self.merged))) for path in directories]
        (gridstead / "var-directories").write_text("".join(f"{name}\n" for name in names))
        shutil.rmtree(data)
        data.mkdir()
        for folder in (etc, data):
            os.chown(folder, roots.UID, roots.UID)
        (gridstead / "bin").mkdir()
        for file in FILES.iterdir():
            shutil.copy(file, gridstead / "bin")
        cluster_id = yaml.safe_load((play.ROOT / "roles/kafka/defaults/main.yml").read_text())["kafka_cluster_id"]
        ports = yaml.safe_load((play.ROOT / "roles/common/defaults/main/ports.yml").read_text())["gridstead_base_ports"]
        program = gridstead / "bin/run"
        known = program.read_text().replace("@KAFKA_CLUSTER_ID@", cluster_id)
        program.write_text(known.replace("@NAMENODE_PORT@", str(ports["hdfs_namenode_rpc"])))
        if with_python:
            for cache in sorted(gridstead.rglob("__pycache__")):
                shutil.rmtree(cache)
            compiling = ["python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
            places = ["/opt/gridstead/gridstead/current/lib", "/opt/gridstead/spark/current/python"]
            run(["chroot", str(self.merged), *compiling, *places], timeout_s=600)
        for folder in ("tmp", "root", "var/tmp"):  # Ansible's
            if (self.upper / folder).exists():
                shutil.rmtree(self.upper / folder)


def push(layout: Layout, prefix: str, options: Sequence[str]) -> None:
    """Copy all images of the layout to a registry."""
    if not shutil.which("skopeo"):
        raise LabError("images are pushed by skopeo, which is missing here", "apt-get install skopeo")
    for entry in layout.index():
        annotations = entry["annotations"]
        name = annotations["io.containerd.image.name"].rpartition("/")[2]
        source = f"oci:{layout.directory}:{annotations['org.opencontainers.image.ref.name']}"
        run(["skopeo", "copy", "--quiet", "--preserve-digests", *options, source, f"docker://{prefix}/{name}"], timeout_s=1800)
        print(f"pushed {prefix}/{name}")


def in_own_mounts() -> None:
    """Go on in a mount namespace of our own, so that whatever happens no mount is left."""
    if os.environ.pop("GRIDSTEAD_OWN_MOUNTS", "") != "yes":
        os.environ["GRIDSTEAD_OWN_MOUNTS"] = "yes"
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv])


def main() -> None:
    """Build, then push if asked to."""
    parser = argparse.ArgumentParser(prog="build.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"of {', '.join(play.ENTRIES)}; if none is given, what the bundle has")
    parser.add_argument("--output", type=Path, default=play.ROOT / "build/images", help="directory of the OCI layout (build/images)")
    parser.add_argument("--push", metavar="PREFIX", help="copy what the layout has to a registry, as PREFIX/NAME:TAG, and build nothing")
    parser.add_argument("--push-option", action="append", default=[], metavar="OPTION", help="a further option of skopeo copy")
    arguments = parser.parse_args()
    try:
        layout = Layout(arguments.output.resolve())
        if arguments.push:
            push(layout, arguments.push, arguments.push_option)
            return
        unknown = set(arguments.images) - set(play.ENTRIES)
        if unknown:
            raise LabError(f"there is no image {', '.join(sorted(unknown))}", f"one of {', '.join(play.ENTRIES)}")
        if os.geteuid() != 0:
            raise LabError("only root can build images", "run this as root")
        in_own_mounts()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("images/build.py: ended by a signal"))  # so that what is half done is removed
        started = time.monotonic()
        bundle = Path(os.environ.get("GRIDSTEAD_BUNDLE") or play.ROOT / "bundle").resolve()
        if not (bundle / "manifest.json").exists():
            raise LabError(f"{bundle} is no bundle", "make bundle")
        roots.ROOT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=roots.ROOT, prefix="filling-") as scratch:
            build = Build(layout, bundle, Path(scratch))
            images = build.build(build.possible(arguments.images))
        for image in images:
            print(f"{image.name:<40} {image.size / 1e6:6.0f} MB  {image.digest}")
        print(f"{layout.directory}, in {time.monotonic() - started:.0f} s")
    except LabError as error:
        sys.exit(f"images/build.py: {error}")


if __name__ == "__main__":
    main()
