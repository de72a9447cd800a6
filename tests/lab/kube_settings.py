"""What the nodes of a test cluster are started with: certificates, configuration files, and the command lines of the daemons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import run
from kube_build import SOURCES

PODS = "10.244.0.0/16"  # of which each node has the /24 of its number
SERVICES = "10.96.0.0/16"
FIRST_SERVICE = "10.96.0.1"
DNS = "10.96.0.10"
API_PORT = 6443
PAUSE, COREDNS = "localhost/lab/pause:1", "localhost/lab/coredns:1"
_KUBE = "/etc/kube"
_PKI = f"{_KUBE}/pki"
_SOCKET = "/run/containerd/containerd.sock"

Nodes = dict[str, str]
"""Address of each node by its name; the first has the control plane."""

_CONTAINERD = f"""\
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{_SOCKET}"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/kube/cni"]
    conf_dir = "/etc/kube/cni-NODE"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"RUNTIME
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "/opt/kube/runc"
      SystemdCgroup = false
"""


def number(address: str) -> int:
    """The last byte of an address, by which the lab knows a host."""
    return int(address.rpartition(".")[2])


def write(directory: Path, nodes: Nodes, runtime: dict[str, Any] | None = None) -> None:
    """Write all below a directory, which the nodes see as /etc/kube; containers begin with runtime, an OCI specification."""
    (directory / "pki").mkdir(mode=0o700)
    containerd = _CONTAINERD.replace("RUNTIME", f'\n    base_runtime_spec = "{_KUBE}/runtime.json"' if runtime else "")
    if runtime:
        _json(directory / "runtime.json", runtime)
    master = next(iter(nodes))
    _certificates(directory / "pki", nodes)
    for user in ("admin", "controller-manager", "scheduler", "proxy", *(f"kubelet-{node}" for node in nodes)):
        _json(directory / f"{user}.conf", _kubeconfig(f"https://{nodes[master]}:{API_PORT}", user))
    for node, address in nodes.items():
        (directory / f"containerd-{node}.toml").write_text(containerd.replace("NODE", node))
        (directory / f"cni-{node}").mkdir()
        _json(directory / f"cni-{node}/10-lab.conflist", _network(number(address)))
        _json(directory / f"kubelet-{node}.yaml", _kubelet(node))
        _json(directory / f"{node}.json", _steps(node, nodes))


def with_library(specification: dict[str, Any], library: str) -> dict[str, Any]:
    """The specification of a container without limits of its own, with a library of /etc/kube that its programs load first."""
    inside = f"/usr/local/lib/{library}"
    process = specification["process"]
    process["rlimits"] = []
    process["env"] = [f"LD_PRELOAD={inside}"]
    mount = {"destination": inside, "type": "bind", "source": f"{_KUBE}/{library}", "options": ["bind", "ro", "nosuid", "nodev"]}
    specification["mounts"].append(mount)
    return specification


def outside(directory: Path, gate: str) -> dict[str, Any]:
    """A kubeconfig for programs of this machine, which holds all that it needs."""
    config = _kubeconfig(f"https://{gate}", "admin")
    config["clusters"][0]["cluster"] = {"server": f"https://{gate}", "certificate-authority-data": _base64(directory / "pki/ca.crt")}
    data = {f"client-{kind}-data": _base64(directory / f"pki/admin.{suffix}") for kind, suffix in (("certificate", "crt"), ("key", "key"))}
    config["users"][0]["user"] = data
    return config


def _base64(path: Path) -> str:
    return run(["base64", "-w0", str(path)])


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")  # JSON is YAML
    path.chmod(0o600)


def _kubeconfig(server: str, user: str) -> dict[str, Any]:
    credentials = {"client-certificate": f"{_PKI}/{user}.crt", "client-key": f"{_PKI}/{user}.key"}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority": f"{_PKI}/ca.crt"}}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
        "current-context": "lab",
    }


def _certificates(directory: Path, nodes: Nodes) -> None:
    """A certificate authority of the lab's own, and what it says of who is who."""

    def key(name: str) -> str:
        path = str(directory / f"{name}.key")
        run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path])
        return path

    ca = ["-CA", str(directory / "ca.crt"), "-CAkey", str(directory / "ca.key"), "-CAcreateserial"]
    run(["openssl", "req", "-x509", "-new", "-key", key("ca"), "-subj", "/CN=lab", "-days", "30", "-out", str(directory / "ca.crt")])

    def certify(name: str, subject: str, names: Sequence[str] = ()) -> None:
        request, extensions = directory / f"{name}.csr", directory / f"{name}.ext"
        run(["openssl", "req", "-new", "-key", key(name), "-subj", subject, "-out", str(request)])
        san = f"subjectAltName={','.join(names)}\n" if names else ""
        extensions.write_text(f"keyUsage=digitalSignature\nextendedKeyUsage=clientAuth,serverAuth\n{san}")
        out = ["-days", "30", "-extfile", str(extensions), "-out", str(directory / f"{name}.crt")]
        run(["openssl", "x509", "-req", "-in", str(request), *ca, *out])
        request.unlink()
        extensions.unlink()

    inside = "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"
    master = next(iter(nodes.values()))
    certify("apiserver", "/CN=kube-apiserver", [*(f"DNS:{name}" for name in inside), f"IP:{master}", f"IP:{FIRST_SERVICE}", "IP:127.0.0.1"])
    for node, address in nodes.items():
        certify(f"kubelet-{node}", f"/O=system:nodes/CN=system:node:{node}", [f"DNS:{node}", f"IP:{address}"])
    certify("admin", "/O=system:masters/CN=admin")
    certify("apiserver-kubelet", "/O=system:masters/CN=apiserver-kubelet")
    certify("controller-manager", "/CN=system:kube-controller-manager")
    certify("scheduler", "/CN=system:kube-scheduler")
    certify("proxy", "/CN=system:kube-proxy")
    run(["openssl", "genrsa", "-out", str(directory / "sa.key"), "2048"])
    run(["openssl", "rsa", "-in", str(directory / "sa.key"), "-pubout", "-out", str(directory / "sa.pub")])


def _network(node: int) -> dict[str, Any]:
    """Pods have a cable each, and what they send goes through the node's own routing, where the services' addresses are translated."""
    subnet = PODS.replace(".0.0/16", f".{node}.0/24")
    addresses = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni"}
    plugins = [{"type": "ptp", "ipMasq": False, "ipam": addresses}, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return {"cniVersion": "1.0.0", "name": "lab", "plugins": plugins}


def _kubelet(node: str) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": {"clientCAFile": f"{_PKI}/ca.crt"}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{_PKI}/kubelet-{node}.crt",
        "tlsPrivateKeyFile": f"{_PKI}/kubelet-{node}.key",
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "resolvConf": "",
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "maxPods": 60,
        "nodeStatusUpdateFrequency": "5s",
        "oomScoreAdj": 0,
    }


def _steps(node: str, nodes: Nodes) -> list[dict[str, Any]]:
    """What kube_init.py does on a node."""
    ctr = ["ctr", "--address", _SOCKET, "--namespace", "k8s.io"]
    routes = [
        ["ip", "route", "replace", PODS.replace(".0.0/16", f".{number(address)}.0/24"), "via", address]
        for other, address in nodes.items()
        if other != node
    ]
    return [
        {"run": ["mount", "--make-rshared", "/"]},  # what the kubelet mounts is to be seen by containers
        {"run": ["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]},
        *({"run": route} for route in routes),
        {"start": "containerd", "command": ["containerd", "--config", f"{_KUBE}/containerd-{node}.toml"]},
        *(_control_plane(nodes[node]) if node == next(iter(nodes)) else []),
        {"run": [*ctr, "version"], "tries": 100},
        {"run": [*ctr, "images", "import", "--local", f"{_KUBE}/images.tar"]},
        {
            "start": "kubelet",
            "command": [
                "hyperkube",
                "kubelet",
                f"--config={_KUBE}/kubelet-{node}.yaml",
                f"--kubeconfig={_KUBE}/kubelet-{node}.conf",
                f"--hostname-override={node}",
                f"--node-ip={nodes[node]}",
            ],
        },
        {
            "start": "kube-proxy",
            "command": [
                "hyperkube",
                "kube-proxy",
                f"--kubeconfig={_KUBE}/proxy.conf",
                f"--hostname-override={node}",
                "--proxy-mode=nftables",
                f"--cluster-cidr={PODS}",
                "--conntrack-max-per-core=0",  # that setting is the machine's
                "--conntrack-tcp-timeout-established=0",
                "--conntrack-tcp-timeout-close-wait=0",
            ],
        },
    ]


def _control_plane(address: str) -> list[dict[str, Any]]:
    def user(name: str) -> list[str]:
        return [f"--{kind}={_KUBE}/{name}.conf" for kind in ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")]

    etcd = [
        "hyperkube",
        "etcd",
        "--name=lab",
        "--data-dir=/var/lib/etcd",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=lab=http://127.0.0.1:2380",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]
    apiserver = [
        "hyperkube",
        "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--advertise-address={address}",
        f"--secure-port={API_PORT}",
        f"--tls-cert-file={_PKI}/apiserver.crt",
        f"--tls-private-key-file={_PKI}/apiserver.key",
        f"--client-ca-file={_PKI}/ca.crt",
        f"--kubelet-client-certificate={_PKI}/apiserver-kubelet.crt",
        f"--kubelet-client-key={_PKI}/apiserver-kubelet.key",
        f"--kubelet-certificate-authority={_PKI}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-key-file={_PKI}/sa.pub",
        f"--service-account-signing-key-file={_PKI}/sa.key",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-cluster-ip-range={SERVICES}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--profiling=false",
    ]
    manager = [
        "hyperkube",
        "kube-controller-manager",
        *user("controller-manager"),
        f"--service-account-private-key-file={_PKI}/sa.key",
        f"--root-ca-file={_PKI}/ca.crt",
        f"--cluster-signing-cert-file={_PKI}/ca.crt",
        f"--cluster-signing-key-file={_PKI}/ca.key",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--node-monitor-grace-period=20s",
        f"--service-cluster-ip-range={SERVICES}",
        "--profiling=false",
    ]
    scheduler = ["hyperkube", "kube-scheduler", *user("scheduler"), "--leader-elect=false", "--profiling=false"]
    volumes = ["hyperkube", "volumes", f"--kubeconfig={_KUBE}/admin.conf", "--root=/var/lib/volumes"]
    ready = ["hyperkube", "kubectl", f"--kubeconfig={_KUBE}/admin.conf", "get", "--raw=/readyz"]
    return [
        {"start": "etcd", "command": etcd},
        {"start": "kube-apiserver", "command": apiserver},
        {"run": ready, "tries": 300},
        {"start": "kube-controller-manager", "command": manager},
        {"start": "kube-scheduler", "command": scheduler},
        {"start": "volumes", "command": volumes},
    ]


def addons() -> str:
    """The manifest of what a cluster has from the start."""
    return (SOURCES / "addons.yaml").read_text().replace("IMAGE", COREDNS).replace("ADDRESS", DNS)
