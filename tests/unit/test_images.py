"""What images are made of: layers that depend on content alone, configuration that is merged in a pod, and bills of materials."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import bom
import play
import pytest
import yaml
from oci import TIME, Layer, Layout

from appliance import wait_until

IMAGES = Path(__file__).resolve().parents[2] / "images"

pytestmark = pytest.mark.skipif(not shutil.which("awk"), reason="there is no awk")


def tree(root: Path) -> Path:
    """A directory with all that a layer may hold."""
    (root / "bin").mkdir(parents=True)
    (root / "bin/program").write_text("#!/bin/sh\n")
    (root / "bin/program").chmod(0o755)
    os.link(root / "bin/program", root / "bin/same")
    (root / "a-link").symlink_to("bin/program")
    (root / "empty").mkdir()
    return root


def entries(layout: Layout, layer: Layer) -> dict[str, tarfile.TarInfo]:
    """What is in a layer."""
    with gzip.open(layout.path(layer.digest)) as stream, tarfile.open(fileobj=stream) as archive:
        return {entry.name: entry for entry in archive}


def test_a_layer_depends_on_its_content_alone(tmp_path: Path) -> None:
    layers = []
    for number in range(2):
        root = tree(tmp_path / f"root{number}")
        os.utime(root / "bin/program", (number * 1e9, number * 1e9))
        layers.append(Layout(tmp_path / f"layout{number}").layer(root))
    assert layers[0] == layers[1]
    (tmp_path / "root1/bin/program").write_text("#!/bin/bash\n")
    assert Layout(tmp_path / "layout1").layer(tmp_path / "root1") != layers[0]


def test_a_layer_holds_files_links_and_modes(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    found = entries(layout, layout.layer(tree(tmp_path / "root")))
    assert sorted(found) == ["a-link", "bin", "bin/program", "bin/same", "empty"]
    assert found["bin/program"].mode == 0o755 and {entry.mtime for entry in found.values()} == {TIME}
    assert (found["bin/same"].type, found["bin/same"].linkname) == (tarfile.LNKTYPE, "bin/program")
    assert found["a-link"].linkname == "bin/program"
    part = entries(layout, layout.layer(tmp_path / "root", lambda path: path.startswith("bin")))
    assert sorted(part) == ["bin", "bin/program", "bin/same"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes what an overlay leaves where a file was removed")
def test_a_layer_says_what_was_removed(tmp_path: Path) -> None:
    root = tree(tmp_path / "root")
    os.mknod(root / "bin/gone", 0o20000, os.makedev(0, 0))
    layout = Layout(tmp_path / "layout")
    assert "bin/.wh.gone" in entries(layout, layout.layer(root))


def test_a_layout_names_its_images_and_keeps_nothing_else(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    first, second = (layout.layer(tree(tmp_path / str(number)), lambda path, n=number: n or path != "empty") for number in range(2))
    layout.image("localhost/x/one:1", [first], {"User": "1"}, {"label": "value"})
    layout.image("localhost/x/one:1", [first, second], {"User": "2"}, {})
    layout.image("localhost/x/two:1", [second], {}, {})
    layout.sweep()
    assert [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in layout.index()] == ["one-1", "two-1"]
    manifest = layout.read(layout.index()[0]["digest"])
    settings = layout.read(manifest["config"]["digest"])
    assert settings["config"] == {"User": "2", "Labels": {}} and settings["rootfs"]["diff_ids"] == [first.diff_id, second.diff_id]
    assert len(list(layout.blobs.iterdir())) == 2 + 2 * 2


def merged(directory: Path, name: str, content: str, extra: str) -> str:
    """What a pod makes of a file and of what its chart adds."""
    (directory / name).write_text(content)
    (directory / f"{name}.extra").write_text(extra)
    command = ["awk", "-v", f"extra={directory / name}.extra", "-f", str(IMAGES / "files/merge.awk"), str(directory / name)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_additions_of_every_kind(tmp_path: Path) -> None:
    assert merged(tmp_path, "a.properties", "a=1\nb=2\n", "b=3\n").splitlines() == ["a=1", "b=2", "b=3"], "the last line counts"
    site = "<configuration>\n  <property><name>a</name><value>1</value></property>\n</configuration>\n"
    found = ElementTree.fromstring(merged(tmp_path, "a.xml", site, "<property><name>b</name><value>2</value></property>\n"))
    assert [name.text for name in found.iter("name")] == ["a", "b"]
    settings = yaml.safe_load(merged(tmp_path, "a.yml", "discovery.type: single-node\nb: 1\n", "discovery.type: multi-node\nc: [d]\n"))
    assert settings == {"discovery.type": "multi-node", "b": 1, "c": ["d"]}
    table = "[a]\nx = 1\n\n[[services]]\nname = 'q'\n\n[b]\ny = 2\n"
    found_toml = tomllib.loads(merged(tmp_path, "a.toml", table, 'a.z = "p=q"\nb.y = 3\nc.d = true\nservices = [{name = "n"}]\n'))
    assert found_toml == {"a": {"x": 1, "z": "p=q"}, "b": {"y": 3}, "c": {"d": True}, "services": [{"name": "n"}]}


def expanded(directory: Path, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a pod makes of a file with names of variables."""
    (directory / "file").write_text(text)
    command = ["awk", "-v", "file=kafka/file", "-f", str(IMAGES / "files/expand.awk"), str(directory / "file")]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"], **environment}, check=False)


def test_variables_take_their_places(tmp_path: Path) -> None:
    assert expanded(tmp_path, "p=@{P}@{Q:-d}.\n", P=r"a&b\1 $c").stdout == "p=a&b\\1 $cd.\n"
    missing = expanded(tmp_path, "p=@{P}\n")
    assert missing.returncode == 1 and "kafka/file needs the variable P, which is not set" in missing.stderr


@pytest.mark.parametrize("image", play.ENTRIES)
def test_a_bill_of_materials_names_every_file_of_the_locks(image: str, tmp_path: Path) -> None:
    components = play.COMPONENTS[image]
    status = tmp_path / "status"
    paragraphs = ["Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9", "Package: gone\nStatus: deinstall"]
    status.write_text("\n\n".join(paragraphs))
    found = list(bom.of_components(components, dict.fromkeys(components, "1.0"), status))
    document = bom.document(image, "0.1", "sha256:" + "0" * 64, found)
    assert document == bom.document(image, "0.1", "sha256:" + "0" * 64, reversed(found)), "the same image has the same bill"
    purls = [component["purl"] for component in document["components"]]
    locked = [line for name in components for line in lock_of(name)]
    assert sum(purl.startswith("pkg:maven/") for purl in purls) == len({line.split()[1] for line in locked})
    assert "pkg:deb/debian/libc6@2.36-9?arch=amd64" in purls and not any("gone" in purl for purl in purls)


def lock_of(component: str) -> list[str]:
    """The files of a component of the bundle."""
    lock = play.ROOT / "artifacts" / component / "artifacts.lock"
    return [line for line in lock.read_text().splitlines() if not line.startswith("#")] if lock.exists() else []


@pytest.mark.parametrize("image", play.ENTRIES)
def test_every_service_of_a_role_gets_its_launcher(image: str) -> None:
    _, roles = play.ENTRIES[image]
    assert all(play.launchers(role) for role in roles)


def listens(port: int) -> bool:
    """Whether something listens on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def registry(tmp_path: Path) -> str:
    """A registry's program; from Debian's package, which is unpacked and not installed, as that starts it on all addresses."""
    if found := shutil.which("docker-registry"):
        return found
    package = "apt-get download -q docker-registry && dpkg-deb -x docker-registry_*.deb ."
    done = subprocess.run(["sh", "-c", package], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"needs docker-registry, which is not here and not to be had: {done.stderr.strip()[-300:]}")
    return str(tmp_path / "usr/bin/docker-registry")


@pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo")
def test_images_are_pushed_to_a_registry_under_the_same_digest(registry: str, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    image = layout.image("localhost/gridstead/one:1", [layout.layer(tree(tmp_path / "root"))], {"User": "1"}, {"label": "value"})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    settings = {"version": 0.1, "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}, "http": {"addr": address}}
    (tmp_path / "registry.yml").write_text(json.dumps(settings))
    with subprocess.Popen([registry, "serve", str(tmp_path / "registry.yml")], stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: listens(port), "the registry listens", 20)
            push = [sys.executable, str(IMAGES / "build.py"), "--output", str(layout.directory), "--push", f"{address}/site/grid"]
            subprocess.run([*push, "--push-option=--dest-tls-verify=false"], check=True, timeout=60)
            look = ["skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", f"docker://{address}/site/grid/one:1"]
            assert subprocess.run(look, capture_output=True, text=True, check=True, timeout=30).stdout.strip() == image.digest
        finally:
            server.terminate()
