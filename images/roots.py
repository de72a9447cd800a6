"""The Debian that images begin with: one directory with Java, and one over it with Python, each made once and then the same for all."""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/lab"))
from errors import LabError, run
from image import SUITE, leniency, mirrors
from state import exclusive

USER, UID = "gridstead", 10001
ROOT = Path(os.environ.get("GRIDSTEAD_IMAGES_DIR") or "/var/lib/gridstead-images")
JAVA = ["openjdk-17-jre-headless"]
PYTHON = ["python3"]
# What no server needs, or what is of the moment at which it was made.
UNWANTED = (
    "usr/share/doc usr/share/man usr/share/locale usr/share/info usr/share/lintian usr/share/bug "
    "var/log var/cache var/lib/apt/lists var/lib/apt/extended_states var/lib/systemd "
    "var/lib/dpkg/status-old var/lib/dpkg/diversions-old var/lib/dpkg/statoverride-old "
    "etc/passwd- etc/shadow- etc/group- etc/gshadow- etc/subuid- etc/subgid- "
    "etc/machine-id etc/hostname etc/resolv.conf etc/apt/sources.list tmp run root"
).split()
KEPT = ("tmp", "run", "root", "var/log", "var/cache", "var/lib/apt/lists")  # as empty directories
FILES = {"etc/dpkg/dpkg.cfg.d/images": "path-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n"}


def path() -> Path:
    """Where the directories are, or will be: the name is a digest of all that defines them."""
    sources = [inspect.getsource(function) for function in (_make, _install, _clean, _settle_keystore)]
    definition = repr([USER, UID, JAVA, PYTHON, UNWANTED, KEPT, FILES, sources, mirrors(), leniency(), platform.machine()])
    return ROOT / f"{SUITE}-{hashlib.sha256(definition.encode()).hexdigest()[:12]}"


def build() -> Path:
    """Return the directory that has `base` and `python`, the upper directory of an overlay over it; make both if they are not there."""
    directory = path()
    with exclusive(ROOT):
        if not directory.is_dir():
            partial = ROOT / "partial"
            run(["rm", "-rf", "--one-file-system", str(partial)], timeout_s=120)
            started = time.monotonic()
            print("making the Debian of the images (once, 2 to 4 minutes)", flush=True)
            _make(partial)
            partial.rename(directory)
            for other in set(ROOT.glob(f"{SUITE}-*")) - {directory}:
                shutil.rmtree(other)
            print(f"made {directory} in {time.monotonic() - started:.0f} s", flush=True)
    return directory


def _make(directory: Path) -> None:
    base = directory / "base"
    base.parent.mkdir(parents=True)
    sources = mirrors()
    main = next((mirror for mirror in sources if mirror.release == SUITE), None)
    if main is None:
        raise LabError(
            f"apt of this machine knows no mirror of Debian {SUITE}", "apt-get update, after adding one to /etc/apt/sources.list.d"
        )
    _said(["debootstrap", "--variant=minbase", SUITE, str(base), main.uri], directory / "debootstrap.log")
    for name, content in FILES.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(content)
    (base / "etc/apt/sources.list").write_text("".join(f"deb {mirror.uri} {mirror.release} {mirror.component}\n" for mirror in sources))
    run(["chroot", str(base), "groupadd", "--gid", str(UID), USER])
    nobody = ["--no-create-home", "--home-dir", "/tmp", "--shell", "/usr/sbin/nologin"]
    run(["chroot", str(base), "useradd", "--uid", str(UID), "--gid", USER, *nobody, USER])
    _install(base, JAVA, directory / "java.log")
    mirrors_file = (base / "etc/apt/sources.list").read_text()
    _settle_keystore(base / "etc/ssl/certs/java/cacerts")
    _clean(base)

    # Python comes as a layer of its own over that.
    upper, work, merged = directory / "python", directory / "work", directory / "merged"
    for folder in (upper, work, merged):
        folder.mkdir()
    run(["mount", "-t", "overlay", "-o", f"lowerdir={base},upperdir={upper},workdir={work}", "overlay", str(merged)])
    try:
        (merged / "etc/apt/sources.list").write_text(mirrors_file)
        _install(merged, PYTHON, directory / "python.log")
        for cache in sorted(merged.glob("usr/**/__pycache__")):
            shutil.rmtree(cache)
        # compiled files are valid by the content of their source, not by its time
        compiling = [
            "chroot",
            str(merged),
            "python3",
            "-m",
            "compileall",
            "-q",
            "--invalidation-mode",
            "unchecked-hash",
            "/usr/lib/python3.11",
        ]
        run(compiling, timeout_s=300)
        _clean(merged)
    finally:
        run(["umount", str(merged)])
    merged.rmdir()
    shutil.rmtree(work)


def _install(root: Path, packages: list[str], log: Path) -> None:
    (root / "usr/share/man/man1").mkdir(parents=True, exist_ok=True)  # Java's package wants it
    (root / "etc/apt/apt.conf.d/91mirror").write_text(leniency())
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    run(["mount", "-t", "proc", "proc", str(root / "proc")])
    run(["mount", "--bind", "/dev", str(root / "dev")])
    try:
        inside = ["chroot", str(root), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "APT::Install-Recommends=false"]
        _said([*inside, "update"], log)
        _said([*inside, "-y", "upgrade"], log)
        _said([*inside, "-y", "install", *packages], log)
    finally:
        run(["umount", str(root / "dev"), str(root / "proc")])
    (root / "etc/apt/apt.conf.d/91mirror").unlink()


def _clean(root: Path) -> None:
    for name in UNWANTED:
        path = root / name
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
    for name in KEPT:
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for device in (root / "dev").iterdir():
        shutil.rmtree(device) if device.is_dir() and not device.is_symlink() else device.unlink()
    shadow = root / "etc/shadow"
    shadow.write_text(re.sub(r"^([^:]*:[^:]*):\d+", r"\1:", shadow.read_text(), flags=re.MULTILINE))  # the day on which a password was set


def _settle_keystore(path: Path) -> None:
    """Write Java's store of certificates anew without the times at which they were imported (the format JKS, which Java still reads)."""
    data = path.read_bytes()
    magic, version, count = struct.unpack_from(">III", data)
    if magic != 0xFEEDFEED:
        raise LabError(f"{path} is not in the format JKS", "look at images/roots.py, which was written for that format")
    position, entries = 12, []
    for _ in range(count):
        tag, length = struct.unpack_from(">IH", data, position)
        alias = data[position + 6 : position + 6 + length]
        position += 6 + length + 8
        start = position
        (length,) = struct.unpack_from(">H", data, position)
        position += 2 + length
        (length,) = struct.unpack_from(">I", data, position)
        position += 4 + length
        entries.append((alias, struct.pack(">IH", tag, len(alias)) + alias + bytes(8) + data[start:position]))
    body = data[:12] + b"".join(entry for _, entry in sorted(entries))
    password = "changeit".encode("utf-16-be")
    path.write_bytes(body + hashlib.sha1(password + b"Mighty Aphrodite" + body).digest())


def _said(command: list[str], log: Path) -> None:
    with log.open("a") as output:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False).returncode
    if code != 0:
        raise LabError(f"`{' '.join(command[:4])} …` ended with {code}", f"tail {log}")
