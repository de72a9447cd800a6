"""A small writer of OCI images: directories become layers, and the same content gives the same digest.

https://github.com/opencontainers/image-spec is what it writes: one layout directory, in which several images share the layers that they
have in common.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

TIME = 315532800  # 1980, the first year that ZIP archives know: the time of every file
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Layer:
    """A layer that is in the layout."""

    digest: str
    diff_id: str
    size: int

    @property
    def descriptor(self) -> dict[str, Any]:
        """How manifests name it."""
        return {"mediaType": _LAYER, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Image:
    """An image that is in the layout."""

    name: str
    digest: str
    size: int


class Layout:
    """One directory of images and the layers they share."""

    def __init__(self, directory: Path) -> None:
        """Open the directory; make it if it is not there."""
        self.directory = directory
        self.blobs = directory / "blobs" / "sha256"
        self.blobs.mkdir(parents=True, exist_ok=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}\n')

    def layer(self, root: Path, wanted: Callable[[str], bool] = lambda _: True, level: int = 6) -> Layer:
        """Pack a directory, which may be the upper one of an overlay, as a layer; of it the paths that are wanted."""
        partial = self.directory / f".layer-{os.getpid()}"
        with partial.open("wb") as file:
            packed = _Hashing(file)
            with gzip.GzipFile("", "wb", level, cast(IO[bytes], packed), mtime=0) as compressed:
                plain = _Hashing(compressed)
                with tarfile.open(fileobj=cast(IO[bytes], plain), mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as archive:
                    _pack(archive, root, wanted)
        partial.rename(self.blobs / packed.hexdigest)
        return Layer(f"sha256:{packed.hexdigest}", f"sha256:{plain.hexdigest}", packed.size)

    def image(self, name: str, layers: Iterable[Layer], config: Mapping[str, Any], labels: Mapping[str, str]) -> Image:
        """Make an image of layers, under a name with a tag."""
        layers = list(layers)
        settings = {
            "created": "1980-01-01T00:00:00Z",
            "architecture": _ARCHITECTURES[os.uname().machine],
            "os": "linux",
            "config": {**config, "Labels": dict(labels)},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": "1980-01-01T00:00:00Z"} for _ in layers],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._blob(settings, _CONFIG),
            "layers": [layer.descriptor for layer in layers],
            "annotations": dict(labels),
        }
        descriptor = self._blob(manifest, _MANIFEST)
        names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": reference(name)}
        entries = {entry["annotations"]["io.containerd.image.name"]: entry for entry in self.index()}
        entries[name] = {**descriptor, "annotations": names}
        index = {"schemaVersion": 2, "manifests": [entries[key] for key in sorted(entries)]}
        (self.directory / "index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
        return Image(name, descriptor["digest"], sum(layer.size for layer in layers))

    def index(self) -> list[dict[str, Any]]:
        """The images that are there, as the layout's index names them."""
        file = self.directory / "index.json"
        return list(json.loads(file.read_text())["manifests"]) if file.exists() else []

    def read(self, digest: str) -> dict[str, Any]:
        """A manifest or a configuration."""
        return dict(json.loads(self.path(digest).read_text()))

    def path(self, digest: str) -> Path:
        """The file of a blob."""
        return self.blobs / digest.removeprefix("sha256:")

    def sweep(self) -> None:
        """Remove what no image of the index needs."""
        needed = set()
        for entry in self.index():
            manifest = self.read(entry["digest"])
            needed |= {entry["digest"], manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])}
        for blob in self.blobs.iterdir():
            if f"sha256:{blob.name}" not in needed:
                blob.unlink()

    def _blob(self, content: Mapping[str, Any], media: str) -> dict[str, Any]:
        data = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.sha256(data).hexdigest()
        (self.blobs / digest).write_bytes(data)
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}


def reference(name: str) -> str:
    """How an image is called within a layout: NAME-TAG."""
    return name.rpartition("/")[2].replace(":", "-")


class _Hashing:
    """A file that is written through, counted and hashed."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _pack(archive: tarfile.TarFile, root: Path, wanted: Callable[[str], bool]) -> None:
    links: dict[int, str] = {}
    for path, status in _walk(root):
        name = str(path.relative_to(root))
        if not wanted(name):
            continue
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:  # how an overlay says that a file of a lower layer is gone
            name = str(Path(name).parent / f".wh.{path.name}")
            archive.addfile(_plain(tarfile.TarInfo(name), status, 0o644))
            continue
        entry = _plain(tarfile.TarInfo(name), status, stat.S_IMODE(status.st_mode))
        if stat.S_ISDIR(status.st_mode):
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
            if _opaque(path):
                archive.addfile(_plain(tarfile.TarInfo(f"{name}/.wh..wh..opq"), status, 0o644))
        elif stat.S_ISLNK(status.st_mode):
            entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(path)
            archive.addfile(entry)
        elif stat.S_ISREG(status.st_mode):
            first = links.setdefault(status.st_ino, name)
            if first != name:
                entry.type, entry.linkname = tarfile.LNKTYPE, first
                archive.addfile(entry)
                continue
            entry.size = status.st_size
            with path.open("rb") as content:
                archive.addfile(entry, content)
        else:
            raise ValueError(f"{path} is neither a file, a directory nor a link: no image may hold it")


def _plain(entry: tarfile.TarInfo, status: os.stat_result, mode: int) -> tarfile.TarInfo:
    entry.mtime, entry.mode, entry.uid, entry.gid = TIME, mode, status.st_uid, status.st_gid
    return entry


def _opaque(path: Path) -> bool:
    try:
        return os.getxattr(path, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


def _walk(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below a directory, in an order that depends on the names alone."""
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        status = entry.stat(follow_symlinks=False)
        yield Path(entry.path), status
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(Path(entry.path))
