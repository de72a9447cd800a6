"""The base image that all hosts of all labs share: a minimal Debian with systemd, SSH and Python, built once and cached."""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import state
from errors import LabError, run

SUITE = "bookworm"
PACKAGES = (
    "systemd systemd-sysv dbus openssh-server sudo python3 python3-apt ca-certificates procps iproute2 iputils-ping curl nftables logrotate"
).split()
NEEDED = {  # program: Debian package
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
}
FILES = {
    "etc/apt/apt.conf.d/90lab": """\
Acquire::http::Proxy "http://gateway:3128";
Acquire::https::Proxy "http://gateway:3128";
Acquire::Languages "none";
""",
    "etc/ssh/sshd_config.d/lab.conf": "PermitRootLogin prohibit-password\nPasswordAuthentication no\nUseDNS no\n",
    "etc/systemd/system.conf.d/lab.conf": "[Manager]\nDefaultTimeoutStopSec=30s\n",
    "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=persistent\nSystemMaxUse=64M\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/machine-id": "",  # a host gets its own
}
# Hardware, the clock and the kernel's settings are the machine's; timers would disturb what is measured.
MASKED = (
    "systemd-udevd.service systemd-udev-trigger.service systemd-timesyncd.service systemd-sysctl.service systemd-modules-load.service "
    "dev-hugepages.mount sys-fs-fuse-connections.mount "
    "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer getty.target console-getty.service"
).split()


@dataclass(frozen=True)
class Mirror:
    """One line of apt's sources."""

    uri: str
    release: str
    component: str


def mirrors() -> list[Mirror]:
    """The mirrors of the image's release that this machine's own apt uses."""
    lines = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages", "Origin: Debian"])
    found = [Mirror(*line.split()) for line in lines.splitlines()]
    return [mirror for mirror in dict.fromkeys(found) if mirror.release.partition("-")[0] == SUITE]


def leniency() -> str:
    """What this machine's apt lets pass on a mirror that lags behind; the hosts' apt has to as well."""
    return "".join(f"{line}\n" for line in run(["apt-config", "dump"]).splitlines() if line.startswith("Acquire::Check-"))


def require_programs() -> None:
    """Refuse a machine that cannot run a lab."""
    if os.geteuid() != 0:
        raise LabError("only root can make hosts", "run this as root, for example: sudo -E env PATH=$PATH python tests/lab/lab.py …")
    missing = sorted({package for program, package in NEEDED.items() if not shutil.which(program)})
    if missing:
        raise LabError(f"a lab needs programs that are missing here: {', '.join(missing)}", f"apt-get install {' '.join(missing)}")


def path() -> Path:
    """Where the image is, or will be: the name is a digest of all that defines it."""
    definition = repr([PACKAGES, FILES, MASKED, inspect.getsource(_build), mirrors(), leniency(), platform.machine()])
    return state.ROOT / "images" / f"{SUITE}-{hashlib.sha256(definition.encode()).hexdigest()[:12]}"


def build() -> Path:
    """Return the image; build it first if it is not there. Another that builds it at the same time is waited for."""
    require_programs()
    image = path()
    with state.exclusive(image.parent):
        if not image.is_dir():
            _build(image)
            _forget_former(image)
    return image


def _build(image: Path) -> None:
    sources = mirrors()
    main = next((mirror for mirror in sources if mirror.release == SUITE), None)
    if main is None:
        remedy = "apt-get update, after adding one to /etc/apt/sources.list.d"
        raise LabError(f"apt of this machine knows no mirror of Debian {SUITE}", remedy)
    partial = image.with_name("partial")
    run(["rm", "-rf", "--one-file-system", str(partial)], timeout_s=120)
    started = time.monotonic()
    print(f"building the base image {image.name} from {main.uri} (once, 1 to 3 minutes)", flush=True)
    log = image.with_name("debootstrap.log")
    # In namespaces of its own: what debootstrap mounts and starts goes with it, however it ends.
    namespaces = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(partial), main.uri]
    with log.open("w") as output:
        code = subprocess.run([*namespaces, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False).returncode
    if code != 0:
        raise LabError(f"debootstrap ended with {code}", f"tail {log}")
    for name, content in FILES.items():
        file = partial / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    lines = [f"deb {mirror.uri} {mirror.release} {mirror.component}\n" for mirror in sources]
    (partial / "etc/apt/sources.list").write_text("".join(lines))
    (partial / "etc/apt/apt.conf.d/91mirror").write_text(leniency())
    for unit in MASKED:
        link = partial / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    for key in (partial / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    for archive in (partial / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()
    partial.rename(image)
    print(f"built {image} in {time.monotonic() - started:.0f} s", flush=True)


def _forget_former(image: Path) -> None:
    """Remove images of former definitions that no lab uses."""
    used = {Path(lab.definition["image"]) for lab in state.all_labs() if (lab.directory / "lab.json").exists()}
    for other in image.parent.glob(f"{SUITE}-*"):
        if other != image and other not in used:
            run(["rm", "-rf", "--one-file-system", str(other)], timeout_s=120)
