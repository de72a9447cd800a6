#!/usr/bin/env python3
"""A test cluster: a real Kubernetes on nodes that are made in seconds and removed without a trace.

Its nodes are hosts of a lab: `lab.py --lab kube exec, cut, partition, crash, start` work on them too. Needs root and Go, and what lab.py
needs. docs/operations/lab.md shows every verb.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "images"))

from oci import Layout

import kube_build
import kube_settings
import lab as hosts
import open_files
from errors import LabError, run
from state import FIRST_HOST, Lab

READY_TIMEOUT_S = 120
CTR = ["/opt/kube/ctr", "--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io"]


def kubeconfig(lab: Lab) -> Path:
    """The file that tells any program of this machine how to reach the cluster."""
    return lab.directory / "kubeconfig"


def environment(lab: Lab) -> dict[str, str]:
    """The environment in which kubectl, helm and the other tools are found and reach the cluster."""
    programs = lab.definition["programs"]
    return {**os.environ, "PATH": f"{lab.directory / 'bin'}:{programs}:{os.environ['PATH']}", "KUBECONFIG": str(kubeconfig(lab))}


def kubectl(lab: Lab, *words: str, given: str | None = None, timeout_s: float = 60) -> str:
    """Run kubectl; return what it printed."""
    command = [f"{lab.definition['programs']}/hyperkube", "kubectl", f"--kubeconfig={kubeconfig(lab)}", *words]
    return run(command, given=given, timeout_s=timeout_s)


def nodes_of(lab: Lab) -> list[dict[str, Any]]:
    """The nodes as the lab knows them."""
    return list(hosts.ask(lab, "status", names=[]))


def cmd_build(_lab: Lab, _arguments: argparse.Namespace) -> None:
    """Build the programs of the cluster unless they are there, and print where they are."""
    print(kube_build.build())


def cmd_tools(_lab: Lab, _arguments: argparse.Namespace) -> None:
    """Build helm, helm-unittest and kubeconform unless they are there, and print where they are. Needs no root."""
    print(kube_build.build(kube_build.TOOLS))


def cmd_up(lab: Lab, arguments: argparse.Namespace) -> None:
    """Make the cluster, and wait until its nodes and its name service are ready. One that runs already is left as it is."""
    import image

    image.require_programs()
    if not 1 <= arguments.nodes <= 9:
        raise LabError(f"{arguments.nodes} nodes", "--nodes 1 to 9")
    if len(lab.processes()) == 2:
        print(f"cluster {lab.name} runs already\n{kubeconfig(lab)}")
        return
    programs = kube_build.build()
    base = image.build()
    started = time.monotonic()
    names = [f"node{number}" for number in range(1, arguments.nodes + 1)]
    lab.create(str(base), programs=str(programs))
    try:
        addresses = {name: str(lab.subnet[FIRST_HOST + index]) for index, name in enumerate(names)}
        lab.define(gate=[addresses["node1"], kube_settings.API_PORT])
        (lab.directory / "volumes").mkdir()
        (lab.directory / "kube").mkdir()
        kube_settings.write(lab.directory / "kube", addresses, runtime(programs, lab.directory / "kube"))
        own_images(programs, lab.directory / "kube" / "images.tar")
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab {lab.name}", "-f", str(lab.key)])
        hosts.start_holder(lab)
        link_programs(lab, programs)
        outside = kube_settings.outside(lab.directory / "kube", f"127.0.0.1:{(lab.directory / 'gate').read_text().strip()}")
        kubeconfig(lab).write_text(json.dumps(outside))
        kubeconfig(lab).chmod(0o600)
        hosts.ask(lab, "create", names=names, addresses=addresses)
        wait_ready(lab, names)
    except BaseException:
        if not arguments.keep:
            hosts.end(lab)
        raise
    print(f"cluster {lab.name} of {len(names)} nodes was ready after {time.monotonic() - started:.1f} s\n{kubeconfig(lab)}")


def runtime(programs: Path, directory: Path) -> dict[str, Any] | None:
    """What every container begins with where Elasticsearch would refuse the machine's limit of open files; else nothing."""
    if open_files.LIMIT >= open_files.NEEDED or open_files.missing():
        return None
    return kube_settings.with_library(json.loads(run([str(programs / "ctr"), "oci", "spec"])), open_files.library(directory).name)


def link_programs(lab: Lab, programs: Path) -> None:
    """Give kubectl its name."""
    (lab.directory / "bin").mkdir()
    (lab.directory / "bin/kubectl").symlink_to(programs / "hyperkube")


def own_images(programs: Path, archive: Path) -> None:
    """Pack the two images that the cluster itself needs."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        layout = Layout(Path(scratch, "layout"))
        for name, entry in ((kube_settings.PAUSE, "pause"), (kube_settings.COREDNS, "coredns")):
            root = Path(scratch, entry)
            root.mkdir()
            run(["cp", str(programs / entry), str(root)])
            layout.image(name, [layout.layer(root, level=1)], {"Entrypoint": [f"/{entry}"]}, {})
        with tarfile.open(archive, "w") as packed:
            packed.add(layout.directory, arcname=".")


def wait_ready(lab: Lab, names: Sequence[str]) -> None:
    """Wait until the API answers, nodes are ready, and names are served."""

    def answers() -> bool:
        with contextlib.suppress(LabError):
            return kubectl(lab, "get", "--raw=/readyz", timeout_s=10) == "ok"
        return False

    logs = f"{lab.command} exec node1 -- tail -n 5 /var/log/kube-apiserver.log /var/log/kubelet.log"
    hosts.wait_until(answers, READY_TIMEOUT_S, "the API server answers", logs)
    kubectl(lab, "apply", "-f", "-", given=kube_settings.addons())

    def ready() -> bool:
        found = json.loads(kubectl(lab, "get", "nodes", "-o", "json"))["items"]
        conditions = [condition for node in found for condition in node["status"]["conditions"]]
        return sum(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions) == len(names)

    hosts.wait_until(ready, READY_TIMEOUT_S, "every node is ready", logs)
    timeout = f"--timeout={READY_TIMEOUT_S}s"
    kubectl(lab, "-n", "kube-system", "rollout", "status", "deployment/coredns", timeout, timeout_s=READY_TIMEOUT_S + 5)


def cmd_down(lab: Lab, _arguments: argparse.Namespace) -> None:
    """Remove the cluster with its volumes, and whatever is left of it after a mishap. Safe to repeat."""
    hosts.end(lab)


def cmd_status(lab: Lab, _arguments: argparse.Namespace) -> None:
    """Show nodes and pods."""
    for node in nodes_of(lab):
        print(f"{node['name']:<8} {node['address']:<14} {hosts.state_of(node)}")
    print(kubectl(lab, "get", "nodes,pods", "--all-namespaces", "-o", "wide"), end="")


def cmd_kubeconfig(lab: Lab, _arguments: argparse.Namespace) -> None:
    """Print where the kubeconfig is."""
    lab.holder()
    print(kubeconfig(lab))


def cmd_run(lab: Lab, arguments: argparse.Namespace) -> None:
    """Run kubectl, helm, or any other program that finds the cluster by KUBECONFIG."""
    lab.holder()
    variables = environment(lab)
    os.execvpe(arguments.command[0], arguments.command, variables)


def cmd_load(lab: Lab, arguments: argparse.Namespace) -> None:
    """Load the images of an OCI layout directory into every node, all or those named."""
    started = time.monotonic()
    layout = Layout(Path(arguments.layout))
    with subset(layout, arguments.images) as archive:
        loads = [(node["name"], import_into(node["pid"], archive)) for node in nodes_of(lab) if node["pid"]]
        for name, load in loads:
            said, _ = load.communicate()
            if load.returncode != 0:
                raise LabError(f"{name} did not take the images: {said.strip().splitlines()[-1:]}", f"{lab.command} exec {name} -- df -h")
    names = ", ".join(map(full_name, chosen(layout, arguments.images)))
    print(f"loaded {names} into {len(loads)} nodes in {time.monotonic() - started:.0f} s")


def import_into(pid: int, archive: Path) -> subprocess.Popen[str]:
    """Begin to import an archive on a node."""
    with archive.open("rb") as given:
        command = hosts.inside(pid, [*CTR, "images", "import", "--local", "-"])
        return subprocess.Popen(command, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def chosen(layout: Layout, names: Sequence[str]) -> list[dict[str, Any]]:
    """The entries of the layout's index whose short names are asked for; all, if none is."""
    found = [entry for entry in layout.index() if not names or short_name(entry) in names]
    missing = set(names) - {short_name(entry) for entry in found}
    if missing or not found:
        raise LabError(f"{layout.directory} has no image {', '.join(sorted(missing)) or 'at all'}", "make images")
    return found


def full_name(entry: dict[str, Any]) -> str:
    """An image's name with its tag."""
    return str(entry["annotations"]["io.containerd.image.name"])


def short_name(entry: dict[str, Any]) -> str:
    """The last part of an image's name, without its tag."""
    return full_name(entry).rpartition("/")[2].partition(":")[0]


@contextlib.contextmanager
def subset(layout: Layout, names: Sequence[str]) -> Iterator[Path]:
    """An archive of some images of a layout."""
    with tempfile.TemporaryDirectory(dir=layout.directory) as scratch:
        archive = Path(scratch, "images.tar")
        entries = chosen(layout, names)
        needed = {entry["digest"] for entry in entries}
        for entry in entries:
            manifest = layout.read(entry["digest"])
            needed |= {manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])}
        index = Path(scratch, "index.json")
        index.write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
        with tarfile.open(archive, "w") as packed:
            packed.add(layout.directory / "oci-layout", arcname="oci-layout")
            packed.add(index, arcname="index.json")
            for digest in sorted(needed):
                packed.add(layout.path(digest), arcname=f"blobs/sha256/{digest.removeprefix('sha256:')}")
        yield archive


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="kube.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--lab", default="kube", metavar="NAME", help="which cluster ('kube')")
    verbs = top.add_subparsers(title="verbs", dest="verb", required=True, metavar="VERB")

    def verb(action: Callable[[Lab, argparse.Namespace], None]) -> argparse.ArgumentParser:
        said = (action.__doc__ or "").strip()
        made = verbs.add_parser(action.__name__.removeprefix("cmd_"), help=said.rstrip("."), description=said)
        made.set_defaults(action=action)
        return made

    for action in (cmd_build, cmd_tools, cmd_down, cmd_status, cmd_kubeconfig):
        verb(action)
    made = verb(cmd_up)
    made.add_argument("--nodes", type=int, default=3, help="number of nodes (3)")
    made.add_argument("--keep", action="store_true", help="leave what there is where it does not become ready, to look at it")
    made = verb(cmd_load)
    made.add_argument("layout", help="directory of the images, as `make images` writes it")
    made.add_argument("images", nargs="*", help="names of images; all, if none is given")
    verb(cmd_run).add_argument("command", nargs="+", metavar="COMMAND", help="what to run; put -- before it if it has options")
    return top


def main() -> None:
    """Do what the command line asks."""
    arguments = parser().parse_args()
    try:
        arguments.action(Lab(arguments.lab), arguments)
    except LabError as error:
        sys.exit(f"kube.py: {error}")


if __name__ == "__main__":
    main()
