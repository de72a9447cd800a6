"""The bill of materials of an image, as CycloneDX 1.6: what the bundle's locks and the packages of Debian say is in it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from play import ROOT

_LOCKS = {"gridstead": ["runtime"], "spark": ["spark"]}  # requirements/NAME.lock, by component
Component = dict[str, Any]


def jars(component: str) -> Iterator[Component]:
    """The files that Maven resolved."""
    lock = ROOT / "artifacts" / component / "artifacts.lock"
    for line in lock.read_text().splitlines() if lock.exists() else []:
        if line.startswith("#"):
            continue
        digest, path = line.split()
        *group, name, version, file = path.split("/")
        classifier = file.removeprefix(f"{name}-{version}").rpartition(".")[0].removeprefix("-")
        purl = f"pkg:maven/{'.'.join(group)}/{name}@{version}?type={file.rpartition('.')[2]}" + (
            f"&classifier={classifier}" if classifier else ""
        )
        yield _component(f"{'.'.join(group)}:{name}", version, purl, digest)


def wheels(component: str) -> Iterator[Component]:
    """The distributions that pip resolved."""
    for lock in _LOCKS.get(component, []):
        for name, version in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / f"requirements/{lock}.lock").read_text(), re.MULTILINE):
            yield _component(name, version, f"pkg:pypi/{name.lower()}@{version}")


def modules(component: str) -> Iterator[Component]:
    """The modules that Go resolved."""
    lock = ROOT / "artifacts" / component / "go.mod"
    for name, version in re.findall(r"^\t(\S+) (v\S+)", lock.read_text(), re.MULTILINE) if lock.exists() else []:
        yield _component(name, version, f"pkg:golang/{name}@{version}")


def packages(status: str) -> Iterator[Component]:
    """The packages that dpkg says are installed."""
    for paragraph in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"[A-Z][A-Za-z-]+: ", line))
        if fields.get("Status") == "install ok installed":
            name, version = fields["Package"], fields["Version"]
            yield _component(name, version, f"pkg:deb/debian/{name}@{version}?arch={fields['Architecture']}")


def document(name: str, version: str, digest: str, components: Iterable[Component]) -> dict[str, Any]:
    """The whole document; the same image gives the same."""
    unique = {component["bom-ref"]: component for component in components}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest)}",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": name, "name": name, "version": version, "hashes": [_hash(digest)]}},
        "components": [unique[key] for key in sorted(unique)],
    }


def _component(name: str, version: str, purl: str, digest: str = "") -> Component:
    entry = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    return entry | ({"hashes": [_hash(digest)]} if digest else {})


def _hash(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest.removeprefix("sha256:")}


def of_components(names: Iterable[str], versions: dict[str, str], status: Path) -> Iterator[Component]:
    """Everything that an image of these components of the bundle has."""
    for name in names:
        yield _component(name, versions[name], f"pkg:generic/{name}@{versions[name]}")
        yield from jars(name)
        yield from wheels(name)
        yield from modules(name)
    yield from packages(status.read_text())
