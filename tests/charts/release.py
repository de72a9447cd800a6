"""A release on a Kubernetes cluster, as tests see it: installed by helm, looked at and disturbed by the official client."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config
from kubernetes.stream import stream

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))
import kube_build
from appliance import Statistics, wait_until
from gridstead.pseudonyms import Pseudonyms
from gridstead.statistic import STATISTICS
from oracle import distinct, oracle_statistics

ROOT = Path(__file__).resolve().parents[2]
IMAGES = Path(os.environ.get("GRIDSTEAD_IMAGES") or ROOT / "build" / "images")
MISSING = "" if shutil.which("helm") else kube_build.missing()
"""What this machine lacks to have helm; empty if it has it, or can build it."""
SERVERS = ("hdfs-namenode", "hdfs-datanode", "kafka", "activemq", "elasticsearch", "victoriametrics", "collector", "bridge", "stream")
READY_S = 600

_DUMP = """
import json, sys
from gridstead.config import elasticsearch_client, load
client = elasticsearch_client(load("/etc/gridstead/gridstead/gridstead.toml"), request_timeout=60)
index, after, low, high, keys = sys.argv[1], None, int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
present = {"ignore_unavailable": True, "allow_no_indices": True}
client.indices.refresh(index=index, **present)
while True:
    hits = client.search(index=index, size=5000, query={"range": {"bin_end_ms": {"gt": low, "lte": high}}}, sort=["bin_end_ms", *keys],
                         **({"search_after": after} if after else {}), **present)["hits"]["hits"]
    for hit in hits:
        print(json.dumps([hit["_id"], hit["_source"]]))
    if len(hits) < 5000:
        break
    after = hits[-1]["sort"]
print("end")
"""


class HelmError(Exception):
    """A command of helm failed; the text is what it said."""


class ExecError(OSError):
    """A command in a pod failed, or its pod is away; an OSError, so that what waits for answers goes on waiting."""


def _exec() -> Any:
    """The call that opens a stream, of a client of its own: for as long as it opens one, a client can do nothing else."""
    return client.CoreV1Api(client.ApiClient()).connect_get_namespaced_pod_exec


def connect() -> None:
    """Make the cluster of KUBECONFIG that of the client, which read the variable at its import, when there was perhaps no cluster yet."""
    config.load_kube_config(os.environ.get("KUBECONFIG"))


@functools.cache
def tool(name: str) -> str:
    """Where helm, helm-unittest or kubeconform is: on the PATH, or built for the test cluster."""
    return shutil.which(name) or str(kube_build.build([name]) / name)


def helm(*arguments: str, timeout_s: float = 900) -> str:
    """Run helm; returns what it printed. Raises HelmError."""
    done = subprocess.run([tool("helm"), *arguments], capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise HelmError(f"helm {' '.join(arguments)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def build(directory: Path, tool: Path = ROOT / "tools" / "charts.py") -> Path:
    """Make the charts; returns the directory of the whole one."""
    subprocess.run([sys.executable, tool, "build", str(directory)], check=True)
    return directory / "gridstead"


def build_of(commit: str, directory: Path) -> Path:
    """Make the charts of a commit; returns the directory of the whole one. Raises CalledProcessError where the history is too short."""
    tree = directory / "tree"
    tree.mkdir()
    packed = subprocess.run(["git", "archive", commit, "charts", "tools", "roles"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=tree, input=packed, check=True)
    return build(directory / "charts", tree / "tools" / "charts.py")


@dataclass
class Release:
    """One release in a namespace of its own, with a pod from which commands are given."""

    chart: Path
    namespace: str
    name: str = "grid"
    values: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Connect to the cluster of KUBECONFIG, and make the namespace."""
        connect()
        self.core, self.apps, self.batch = client.CoreV1Api(), client.AppsV1Api(), client.BatchV1Api()
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = client.V1ObjectMeta(name=self.namespace, labels=labels)
        if self.namespace not in self.namespaces():
            self.core.create_namespace(client.V1Namespace(metadata=metadata))

    def namespaces(self) -> set[str]:
        """The namespaces of the cluster."""
        return {item.metadata.name for item in self.core.list_namespace().items}

    def remove(self) -> None:
        """Delete the namespace with everything in it, volumes too."""
        claims = {claim.spec.volume_name for claim in self.core.list_namespaced_persistent_volume_claim(self.namespace).items}
        self.core.delete_namespace(self.namespace)
        wait_until(lambda: self.namespace not in self.namespaces(), "the namespace is gone")
        for volume in self.core.list_persistent_volume().items:
            if volume.metadata.name in claims and volume.spec.persistent_volume_reclaim_policy == "Retain":
                self.core.delete_persistent_volume(volume.metadata.name)

    def helm(self, verb: str, *arguments: str) -> str:
        """Run helm on this release."""
        return helm(verb, self.name, *arguments, "--namespace", self.namespace)

    def apply(self, verb: str, *arguments: str, **changed: Any) -> float:
        """Install or upgrade with these values, and wait until everything is ready; returns the seconds it took."""
        begun = time.monotonic()
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(yaml.safe_dump({**self.values, **changed}))
            file.flush()
            try:
                self.helm(verb, str(self.chart), "--values", file.name, "--wait", "--timeout", f"{READY_S}s", *arguments)
            except HelmError as error:
                raise HelmError(f"{error}\n{self.explain()}") from None
        return time.monotonic() - begun

    def uninstall(self) -> None:
        """Uninstall, and wait until the pods are gone."""
        self.helm("uninstall", "--wait")
        wait_until(lambda: not self.pods(), "the pods are gone")

    def pods(self, component: str = "") -> list[Any]:
        """The pods of the release, or of one component; not the test's own."""
        wanted = f"app.kubernetes.io/component{f'={component}' if component else '!=test'}"
        return self.core.list_namespaced_pod(self.namespace, label_selector=f"app.kubernetes.io/instance={self.name},{wanted}").items

    def pod(self, component: str, number: int = 0) -> Any:
        """A pod of a component, the first unless another is asked for."""
        return self.core.read_namespaced_pod(f"{self.name}-{component}-{number}", self.namespace)

    def replaced(self, component: str, killed: str, number: int = 0) -> bool:
        """Whether another pod is in the place of the one with this id, and everything is ready again."""
        name = f"{self.name}-{component}-{number}"
        there = [str(pod.metadata.uid) for pod in self.pods(component) if pod.metadata.name == name]
        return there not in ([], [killed]) and self.ready()

    def ready(self) -> bool:
        """Whether all pods of all servers are ready."""
        sets = self.apps.list_namespaced_stateful_set(self.namespace).items
        return len(sets) >= len(SERVERS) and all(
            item.status.ready_replicas == item.spec.replicas and item.status.observed_generation == item.metadata.generation
            and item.status.current_revision == item.status.update_revision
            for item in sets
        )  # fmt: skip

    def kill(self, component: str, number: int = 0) -> str:
        """Take a pod away at once, as when its node dies; returns its id."""
        pod = self.pod(component, number)
        self.core.delete_namespaced_pod(pod.metadata.name, self.namespace, grace_period_seconds=0)
        return str(pod.metadata.uid)

    def logs(self, component: str, lines: int = 30, previous: bool = False) -> str:
        """The end of the log of a component's first pod, of all its containers."""
        pod = self.pod(component)
        names = [container.name for container in [*(pod.spec.init_containers or []), *pod.spec.containers]]
        told = ""
        for name in names:
            with contextlib.suppress(client.ApiException):
                text = self.core.read_namespaced_pod_log(
                    pod.metadata.name, self.namespace, container=name, tail_lines=lines, previous=previous
                )
                told += f"--- {pod.metadata.name}, {name}\n{text}\n"
        return told

    def explain(self) -> str:
        """What is not ready, its events and the end of its log."""
        told = []
        for pod in self.pods():
            statuses = pod.status.container_statuses or []
            if pod.status.phase == "Succeeded" or (statuses and all(status.ready for status in statuses)):
                continue
            told.append(f"{pod.metadata.name}: {pod.status.phase}")
            events = self.core.list_namespaced_event(self.namespace, field_selector=f"involvedObject.name={pod.metadata.name}").items
            told += [f"    {event.reason}: {event.message}" for event in events[-5:]]
            component = pod.metadata.labels["app.kubernetes.io/component"]
            with contextlib.suppress(client.ApiException):
                told.append(self.logs(component))
        return "\n".join(told)

    def start_client(self) -> None:
        """Run the pod of the smoke tests with nothing to do: commands are given there, whichever server is away."""
        if any(pod.metadata.name == "client" for pod in self.pods("test")):
            return
        hooks = yaml.safe_load_all(helm("get", "hooks", self.name, "--namespace", self.namespace))
        [pod] = [hook for hook in hooks if hook and hook["kind"] == "Pod"]
        pod["metadata"] = {"name": "client", "labels": {"app.kubernetes.io/instance": self.name, "app.kubernetes.io/component": "test"}}
        pod["spec"]["containers"][0]["args"] = ["sleep", "infinity"]
        pod["spec"]["terminationGracePeriodSeconds"] = 0
        self.core.create_namespaced_pod(self.namespace, pod)
        wait_until(lambda: self._client().status.phase == "Running", "the client runs")

    def stop_client(self) -> None:
        """Take the client away, if it is there."""
        if any(pod.metadata.name == "client" for pod in self.pods("test")):
            self.core.delete_namespaced_pod("client", self.namespace, grace_period_seconds=0)
        wait_until(lambda: "client" not in {pod.metadata.name for pod in self.pods("test")}, "the client is gone")

    def _client(self) -> Any:
        return self.core.read_namespaced_pod("client", self.namespace)

    @property
    def client_address(self) -> str:
        """The client's address, from which its packets come."""
        return str(self._client().status.pod_ip)

    def exec(self, *command: str, pod: str = "client", timeout_s: float = 420) -> str:
        """Run a command in a pod; returns what it printed. Raises ExecError."""
        try:
            answer = stream(_exec(), pod, self.namespace, command=list(command), stdout=True, stderr=True,
                            stdin=False, tty=False, _preload_content=False)  # fmt: skip
            answer.run_forever(timeout=timeout_s)
            printed, said = answer.read_stdout(), answer.read_stderr()
            code = answer.returncode
        except client.ApiException as error:
            raise ExecError(f"{' '.join(command[:4])} in {pod}: {error.reason}") from error
        if code != 0:
            raise ExecError(f"{' '.join(command[:4])} in {pod} ended with {code}\n{printed[-3000:]}\n{said[-3000:]}")
        return printed

    def put(self, content: bytes, path: str) -> None:
        """Write a file in the client."""
        command = ["sh", "-c", f"head -c {len(content)} > {path}"]
        answer = stream(_exec(), "client", self.namespace, command=command, stdin=True, stdout=True,
                        stderr=True, tty=False, _preload_content=False)  # fmt: skip
        for at in range(0, len(content), 1 << 16):
            answer.write_stdin(content[at : at + (1 << 16)])
        answer.run_forever(timeout=60)
        assert answer.returncode == 0, answer.read_stderr()

    def gridstead(self, *arguments: str, timeout_s: float = 420) -> Any:
        """Run the command line in the client; returns its JSON."""
        return json.loads(self.exec("gridstead", "--json", *arguments, timeout_s=timeout_s))

    def refresh(self) -> None:
        """Nothing: whoever reads the documents makes them visible first."""

    def documents(self, from_ms: int, to_ms: int, statistic: str = "transfers") -> dict[str, dict[str, Any]]:
        """Served documents of a statistic whose bin ends in (from_ms, to_ms], by id, as readers see them."""
        keys = json.dumps(list(STATISTICS[statistic].dimensions))
        text = self.exec("python3", "-c", _DUMP, f"gridstead-{statistic}", str(from_ms), str(to_ms), keys)
        *rows, end = text.splitlines()
        if end != "end":
            raise ExecError("the documents broke off")
        return dict(json.loads(row) for row in rows)

    def expected(self, events: Sequence[Mapping[str, Any]]) -> Statistics:
        """What DuckDB computes from normalised events, with the collector's own pseudonyms."""
        keys = self.exec("cat", "/var/lib/gridstead/collector/pseudonyms.keys", pod=f"{self.name}-collector-0")
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "keys"
            file.write_text(keys)
            file.chmod(0o600)
            pseudonyms = Pseudonyms(file)
            return oracle_statistics(distinct([pseudonyms.protect(event) for event in events]))

    def metrics(self, question: str) -> list[dict[str, Any]]:
        """What the store of metrics answers to an expression of MetricsQL, over all that it has: series with their labels and values."""
        script = (
            "import base64, sys, urllib.parse, urllib.request as request\n"
            "query = urllib.parse.urlencode({'query': sys.argv[2], 'start': '-1d', 'step': '5s'})\n"
            "asked = request.Request(f'http://{sys.argv[1]}:8428/api/v1/query_range?{query}')\n"
            "asked.add_header('Authorization', 'Basic ' + base64.b64encode(f'gridstead:{sys.argv[3]}'.encode()).decode())\n"
            "print(request.urlopen(asked, timeout=30).read().decode())\n"
        )
        name = f"{self.name}-victoriametrics"
        password = base64.b64decode(self.core.read_namespaced_secret(name, self.namespace).data["password"]).decode()
        host = f"{name}.{self.namespace}.svc.cluster.local"
        return list(json.loads(self.exec("python3", "-c", script, host, question, password))["data"]["result"])

    def volumes(self) -> set[str]:
        """The ids of the volume claims."""
        return {claim.metadata.uid for claim in self.core.list_namespaced_persistent_volume_claim(self.namespace).items}

    def archived(self) -> list[str]:
        """The files of the archive on HDFS."""
        listed = self.exec("hadoop", "fs", "-ls", "-R", "/gridstead/events").splitlines()
        return sorted(line.split()[-1] for line in listed if line.startswith("-"))


@contextlib.contextmanager
def released(chart: Path, namespace: str, **values: Any) -> Iterator[Release]:
    """A release that is removed at the end with its namespace and volumes; that in GRIDSTEAD_TEST_NAMESPACE is used, and stays."""
    kept = os.environ.get("GRIDSTEAD_TEST_NAMESPACE")
    release = Release(chart, kept or namespace, values=values)
    try:
        yield release
    finally:
        if not kept:
            with contextlib.suppress(HelmError):
                release.helm("uninstall", "--wait")
            release.remove()
