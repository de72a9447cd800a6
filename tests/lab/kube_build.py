"""The programs of the test cluster, built from Go modules that go.mod and go.sum pin, once for each state of what defines them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import state
from errors import LabError, run

SOURCES = Path(__file__).with_name("kube")
VERSION = "v1.36.3"
_ROOT = "/var/lib/gridstead-kube" if os.geteuid() == 0 else str(Path.home() / ".cache" / "gridstead-kube")
ROOT = Path(os.environ.get("GRIDSTEAD_KUBE_DIR") or _ROOT)
_CNI = "github.com/containernetworking/plugins/plugins"
PROGRAMS = {  # name: package
    "pause": "./pause",
    "coredns": "./coredns",
    "hyperkube": "./hyperkube",
    "containerd": "github.com/containerd/containerd/v2/cmd/containerd",
    "containerd-shim-runc-v2": "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
    "ctr": "github.com/containerd/containerd/v2/cmd/ctr",
    "runc": "github.com/opencontainers/runc",
    "cni/host-local": f"{_CNI}/ipam/host-local",
    "cni/loopback": f"{_CNI}/main/loopback",
    "cni/portmap": f"{_CNI}/meta/portmap",
    "cni/ptp": f"{_CNI}/main/ptp",
    "helm": "helm.sh/helm/v4/cmd/helm",
    "helm-unittest": "github.com/helm-unittest/helm-unittest/cmd/helm-unittest",
    "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform",
}
TOOLS = ("helm", "helm-unittest", "kubeconform")
_STATIC = "-linkmode external -extldflags -static"
_LINKS = {"pause": _STATIC, "coredns": _STATIC, "runc": _STATIC}  # they run where there are no libraries, or others than here
_TAGS = "seccomp,no_btrfs,no_zfs,no_devmapper,selinux_off,no_aufs,providerless"
_LINK = (
    f"-s -w -X k8s.io/component-base/version.gitVersion={VERSION} -X k8s.io/component-base/version.gitMajor=1"
    " -X k8s.io/component-base/version.gitMinor=36 -X k8s.io/component-base/version.gitCommit=lab"
    f" -X k8s.io/client-go/pkg/version.gitVersion={VERSION}"
)
_FLAGS = ["-buildvcs=false", "-pgo=off", "-gcflags=all=-dwarf=false", "-tags", _TAGS, "-ldflags"]


def missing() -> str:
    """What this machine lacks to build the cluster; empty if nothing."""
    if not shutil.which("go"):
        return "there is no Go, of the version that tests/lab/kube/go.mod names"
    if not shutil.which("gcc"):
        return "there is no C compiler (Debian: gcc libc6-dev)"
    return "" if Path("/usr/include/seccomp.h").exists() else "there is no libseccomp to link runc with (Debian: libseccomp-dev)"


def directory() -> Path:
    """Where the programs are, or will be: the name is a digest of all that defines them."""
    if missing():
        raise LabError(f"the test cluster cannot be built: {missing()}", "install it")
    digest = hashlib.sha256(repr([PROGRAMS, _FLAGS, _LINK, _LINKS, run(["go", "version"])]).encode())
    for path in sorted(path for path in SOURCES.rglob("*") if path.suffix in (".go", ".mod", ".sum")):
        digest.update(path.read_bytes())
    return ROOT / f"programs-{digest.hexdigest()[:12]}"


def build(names: Sequence[str] = tuple(PROGRAMS)) -> Path:
    """Return the directory of the programs; build those of these that are not there."""
    target = directory()
    with state.exclusive(ROOT):
        for name in names:
            if not (target / name).exists():
                _build(name, target / name)
        _forget_former(target)
    return target


def _build(name: str, path: Path) -> None:
    started = time.monotonic()
    print(f"building {name}" + (" (once, 5 to 10 minutes)" if name == "hyperkube" else ""), flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    log = path.with_name(f".{path.name}.log")
    environment = {**os.environ, "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    with log.open("w") as output:
        command = ["nice", "-n", "10", "go", "build", *_FLAGS, f"{_LINK} {_LINKS.get(name, '')}", "-o", str(partial), PROGRAMS[name]]
        code = subprocess.run(command, cwd=SOURCES, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output).returncode
    if code != 0:
        raise LabError(f"go build of {name} ended with {code}", f"tail {log}")
    partial.rename(path)
    log.unlink()
    print(f"built {path} in {time.monotonic() - started:.0f} s", flush=True)


def _forget_former(target: Path) -> None:
    """Remove the programs of former definitions that no cluster uses."""
    used = {lab.definition.get("programs") for lab in state.all_labs() if (lab.directory / "lab.json").exists()}
    for other in ROOT.glob("programs-*"):
        if other != target and str(other) not in used:
            shutil.rmtree(other)
