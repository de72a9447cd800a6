"""The test cluster and the images on it: a real Kubernetes that leaves nothing behind, and containers without root."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
import kube_build
import machine
from appliance import ROOT, wait_until
from hosts import DIRECTORY, Hosts, missing

KUBE = Path(__file__).with_name("kube.py")
IMAGES = Path(os.environ.get("GRIDSTEAD_IMAGES") or ROOT / "build/images")
GIVEN = os.environ.get("KUBECONFIG")
NAMESPACE = "gridstead-test-images"
PREFIX = os.environ.get("GRIDSTEAD_IMAGE_PREFIX") or "localhost/gridstead"

_missing = missing() or kube_build.missing()
pytestmark = [pytest.mark.lab, pytest.mark.long]
makes_cluster = pytest.mark.skipif(bool(_missing), reason=_missing or "a cluster can be made")


@dataclass
class Cluster:
    """A cluster, ours or one that KUBECONFIG names."""

    name: str | None

    def attempt(self, *words: str, given: str | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a verb of kube.py."""
        command = [sys.executable, str(KUBE), "--lab", str(self.name), *words]
        return subprocess.run(command, capture_output=True, text=True, input=given or "", timeout=timeout, check=False)

    def do(self, *words: str, given: str | None = None, timeout: float = 300) -> str:
        """Run a verb that must succeed; return what it printed."""
        done = self.attempt(*words, given=given, timeout=timeout)
        assert done.returncode == 0, f"kube.py {' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def kubectl(self, *words: str, given: str | None = None, timeout: float = 300) -> str:
        """Run kubectl."""
        if self.name:
            return self.do("run", "--", "kubectl", *words, given=given, timeout=timeout)
        done = subprocess.run(["kubectl", *words], capture_output=True, text=True, input=given or "", timeout=timeout, check=False)
        assert done.returncode == 0, f"kubectl {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *words: str) -> Any:
        """What kubectl says as JSON."""
        return json.loads(self.kubectl(*words, "-o", "json"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The cluster of KUBECONFIG, or a cluster of three nodes; set GRIDSTEAD_TEST_LAB to keep one between runs."""
    kept = os.environ.get("GRIDSTEAD_TEST_LAB")
    if GIVEN:
        found = Cluster(None)
    elif _missing:
        pytest.skip(_missing)
    else:
        found = Cluster(kept or "test-kube")
        if not kept:
            found.do("down")
        started = time.monotonic()
        found.do("build", timeout=1800)
        print(f"\nthe programs were there after {time.monotonic() - started:.0f} s")
        print(found.do("up", timeout=600))
    found.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", timeout=120)
    found.kubectl("create", "namespace", NAMESPACE)
    found.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    yield found
    if not kept and not GIVEN:
        found.do("down")
    else:
        found.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="module")
def images(cluster: Cluster) -> dict[str, str]:
    """Names of the images by component, loaded into the cluster if it is ours."""
    if not (IMAGES / "index.json").exists():
        pytest.skip(f"{IMAGES} has no images: make images")
    index = json.loads((IMAGES / "index.json").read_text())["manifests"]
    names = [entry["annotations"]["io.containerd.image.name"] for entry in index]
    if cluster.name:
        print(cluster.do("load", str(IMAGES), timeout=1200))
    return {name.rpartition("/")[2].partition(":")[0]: f"{PREFIX}/{name.rpartition('/')[2]}" for name in names}


@makes_cluster
@pytest.mark.skipif(bool(GIVEN), reason="KUBECONFIG names a cluster that is not ours")
@pytest.mark.parametrize("how", ["down", "killed"])
def test_a_cluster_leaves_nothing_behind(how: str) -> None:
    one = Cluster("test-kube-trace")
    one.do("down")
    before = machine.snapshot()
    one.do("up", "--nodes", "2", timeout=600)
    seen = {entry.partition(":")[0] for entry in machine.differences(before, machine.snapshot())}
    assert seen == {"namespaces", "control groups", "processes"}, "a running cluster changes nothing else"
    if how == "killed":
        lab = Hosts(one.name or "")
        with open(lab.directory / "lock") as lock:
            inode = os.fstat(lock.fileno()).st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            if line.split()[5].endswith(f":{inode}"):
                os.kill(int(line.split()[4]), signal.SIGKILL)
    one.do("down")
    wait_until(lambda: machine.differences(before, machine.snapshot()) == [], "nothing is left", 30)
    assert not (DIRECTORY / "labs" / "test-kube-trace").exists()


def test_every_node_is_ready_and_is_the_version_that_is_pinned(cluster: Cluster) -> None:
    nodes = cluster.json("get", "nodes")["items"]
    assert nodes and all({"type": "Ready", "status": "True"}.items() <= node["status"]["conditions"][-1].items() for node in nodes)
    if cluster.name:
        assert {node["status"]["nodeInfo"]["kubeletVersion"] for node in nodes} == {"v1.36.3"}
        assert len(nodes) == 3 or "GRIDSTEAD_TEST_LAB" in os.environ


def pod(name: str, image: str, arguments: list[str], **more: Any) -> dict[str, Any]:
    """A pod of an image as charts make them: any user but root, a root that cannot be written, no privilege."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
        "env": [{"name": key, "value": value} for key, value in more.get("env", {}).items()],
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "etc", "mountPath": "/etc/gridstead"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "data", "mountPath": more.get("data", "/var/lib/gridstead")},
        ],
    }
    if "port" in more:
        container["readinessProbe"] = {"tcpSocket": {"port": more["port"]}, "periodSeconds": 1}
    if "ready" in more:
        container["readinessProbe"] = {"exec": {"command": more["ready"]}, "periodSeconds": 2, "timeoutSeconds": 10}
    volumes: list[dict[str, Any]] = [{"name": kind, "emptyDir": {}} for kind in ("etc", "tmp")]
    claim = more.get("claim")
    volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": claim}} if claim else {"name": "data", "emptyDir": {}})
    security = {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    spec = {
        "securityContext": security,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "containers": [container],
        "volumes": volumes,
        "restartPolicy": more.get("restart", "Never"),
        "hostname": name,
        "subdomain": "pods",
    }
    if "before" in more:
        spec["initContainers"] = [{**container, "name": "before", "args": more["before"], "readinessProbe": None}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name, "set": "pods"}}, "spec": spec}


def apply(cluster: Cluster, *objects: dict[str, Any]) -> None:
    """Have the cluster make objects."""
    cluster.kubectl("-n", NAMESPACE, "apply", "-f", "-", given=yaml.safe_dump_all(objects))


def ready(cluster: Cluster, name: str, timeout_s: int = 420) -> None:
    """Wait until a pod is ready; show what it says where it is not."""
    try:
        cluster.kubectl("-n", NAMESPACE, "wait", "--for=condition=Ready", f"pod/{name}", f"--timeout={timeout_s}s", timeout=timeout_s + 10)
    except AssertionError:
        print(cluster.kubectl("-n", NAMESPACE, "describe", "pod", name))
        print(cluster.kubectl("-n", NAMESPACE, "logs", name, "--all-containers", "--tail=50"))
        raise


def inside(cluster: Cluster, name: str, *command: str) -> str:
    """Run a command in a pod."""
    return cluster.kubectl("-n", NAMESPACE, "exec", name, "--", *command)


HEADLESS = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "pods"},
    "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"set": "pods"}, "ports": [{"name": "any", "port": 1}]},
}
HOME = "/opt/gridstead"
TOPIC = f"java -cp '{HOME}/kafka/current/lib/*' org.apache.kafka.tools.TopicCommand"
SERVERS: dict[str, dict[str, Any]] = {
    "hdfs-namenode": {
        "image": "hadoop",
        "port": 9820,
        "before": ["hadoop", "namenode", "-format", "-nonInteractive", "-clusterid", "test"],
        "check": "hadoop fs -mkdir -p /checked",
    },
    "zookeeper": {"image": "zookeeper", "port": 2181, "check": "exec 3<>/dev/tcp/localhost/2181; echo srvr >&3; grep -q Mode: <&3"},
    "kafka": {
        "image": "kafka",
        "port": 9092,
        "check": f"{TOPIC} --bootstrap-server $(hostname -f):9092 --create --topic t --if-not-exists",
    },
    "activemq": {
        "image": "artemis",
        "port": 61616,
        "env": {"CLIENT_PASSWORD": "Only-for-this-test/&"},
        "check": "grep -qx 'gridstead = Only-for-this-test/&' /etc/gridstead/activemq/artemis-users.properties",
    },
    "elasticsearch": {
        "image": "elasticsearch",
        "port": 9200,
        "check": "exec 3<>/dev/tcp/localhost/9200; printf 'GET /_cluster/health HTTP/1.0\\r\\n\\r\\n' >&3; grep -q green <&3",
    },
    "collector": {
        "image": "pipeline",
        "port": 9941,
        "env": {"CLIENT_PASSWORD": "x", "ARTEMIS": "localhost"},
        "check": "gridstead --help && python3 -c 'import pyspark'",
    },
}


@pytest.mark.parametrize("service", SERVERS)
def test_a_server_runs_without_root_and_with_a_root_that_cannot_be_written(cluster: Cluster, images: dict[str, str], service: str) -> None:
    settings = dict(SERVERS[service])
    image, check = images[settings.pop("image")], settings.pop("check")
    apply(cluster, HEADLESS, pod(service, image, [service], **settings))
    started = time.monotonic()
    try:
        ready(cluster, service)
        print(f"\n{service} was ready {time.monotonic() - started:.0f} s after its pod was asked for")
        assert inside(cluster, service, "id", "-u").strip() == "10001"
        assert inside(cluster, service, "sh", "-c", "touch /opt/gridstead/x 2>/dev/null || echo refused").strip() == "refused"
        wait_until(lambda: not fails(cluster, service, ["bash", "-c", check]), f"{service} does its work", 60)
        before = time.monotonic()
        cluster.kubectl("-n", NAMESPACE, "delete", "pod", service, "--grace-period=60", timeout=90)
        assert time.monotonic() - before < 45, "a server ends when it is told to, not when it is killed"
    finally:
        cluster.kubectl("-n", NAMESPACE, "delete", "pod", service, "--ignore-not-found", "--force", "--grace-period=0")


def fails(cluster: Cluster, name: str, command: list[str]) -> bool:
    """Whether a command in a pod fails."""
    try:
        inside(cluster, name, *command)
    except AssertionError as error:
        print(str(error)[-500:])
        return True
    return False


def test_a_missing_variable_ends_a_container_with_a_sentence(cluster: Cluster, images: dict[str, str]) -> None:
    apply(cluster, pod("wrong", images["artemis"], ["activemq"]))
    cluster.kubectl("-n", NAMESPACE, "wait", "--for=jsonpath={.status.phase}=Failed", "pod/wrong", "--timeout=60s")
    said = cluster.kubectl("-n", NAMESPACE, "logs", "wrong")
    assert "needs the variable CLIENT_PASSWORD, which is not set. Next: give it to the container" in said
    cluster.kubectl("-n", NAMESPACE, "delete", "pod", "wrong")


def test_pods_of_all_nodes_reach_one_another_by_name_and_by_service(cluster: Cluster, images: dict[str, str]) -> None:
    image = images["zookeeper"]
    nodes = [node["metadata"]["name"] for node in cluster.json("get", "nodes")["items"]]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "served"},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 2181}]},
    }
    server = pod("server", image, ["zookeeper"], port=2181)
    server["spec"]["nodeName"] = nodes[0]
    clients = [pod(f"client{number}", image, ["sleep", "600"]) for number in range(len(nodes))]
    for client, node in zip(clients, nodes, strict=True):
        client["spec"]["nodeName"] = node
    apply(cluster, HEADLESS, service, server, *clients)
    ready(cluster, "server")
    for number in range(len(nodes)):
        ready(cluster, f"client{number}")
        for name in ("served", "server.pods", f"server.pods.{NAMESPACE}.svc.cluster.local"):
            said = inside(cluster, f"client{number}", "bash", "-c", f"exec 3<>/dev/tcp/{name}/2181; echo srvr >&3; cat <&3")
            assert "Mode: standalone" in said, f"client{number} to {name}"
    cluster.kubectl("-n", NAMESPACE, "delete", "pod,service", "--all", "--force", "--grace-period=0")


def test_a_volume_keeps_what_a_pod_wrote(cluster: Cluster, images: dict[str, str]) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "kept"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}},
    }
    apply(cluster, claim, pod("writer", images["zookeeper"], ["sh", "-c", "echo kept >/var/lib/gridstead/file"], claim="kept"))
    cluster.kubectl("-n", NAMESPACE, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/writer", "--timeout=60s")
    cluster.kubectl("-n", NAMESPACE, "delete", "pod", "writer")
    apply(cluster, pod("reader", images["zookeeper"], ["cat", "/var/lib/gridstead/file"], claim="kept"))
    cluster.kubectl("-n", NAMESPACE, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/reader", "--timeout=60s")
    assert cluster.kubectl("-n", NAMESPACE, "logs", "reader") == "kept\n"
    cluster.kubectl("-n", NAMESPACE, "delete", "pod/reader", "pvc/kept")


@makes_cluster
@pytest.mark.skipif(bool(GIVEN), reason="KUBECONFIG names a cluster that is not ours")
def test_a_node_that_lost_power_comes_back_with_its_pods(cluster: Cluster, images: dict[str, str]) -> None:
    lab = Hosts(cluster.name or "")
    one = pod("survivor", images["zookeeper"], ["zookeeper"], port=2181, restart="Always")
    one["spec"]["nodeName"] = "node2"
    apply(cluster, HEADLESS, one)
    ready(cluster, "survivor")
    lab.do("crash", "node2")
    lab.do("start", "node2")

    def started_again() -> bool:
        status = cluster.json("-n", NAMESPACE, "get", "pod", "survivor")["status"]
        return status["containerStatuses"][0]["restartCount"] > 0 and status["containerStatuses"][0]["ready"]

    wait_until(started_again, "the pod runs again", 120)
    cluster.kubectl("-n", NAMESPACE, "delete", "pod", "survivor", "--force", "--grace-period=0")


@pytest.mark.skipif(os.geteuid() != 0, reason="building images needs root")
@pytest.mark.skipif(not (IMAGES / "index.json").exists(), reason="no images are built: make images")
@pytest.mark.parametrize("image", ["kafka", "pipeline"])
def test_an_image_built_again_is_the_same(image: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "images/build.py"), image, "--output", str(tmp_path / "images")]
    subprocess.run(command, check=True, timeout=900, stdin=subprocess.DEVNULL)
    found = [json.loads((path / "index.json").read_text())["manifests"] for path in (IMAGES, tmp_path / "images")]
    digests = [
        next(entry["digest"] for entry in index if f"/{image}:" in entry["annotations"]["io.containerd.image.name"]) for index in found
    ]
    assert digests[0] == digests[1]
    assert (IMAGES / f"{image}.cdx.json").read_text() == (tmp_path / f"images/{image}.cdx.json").read_text()
