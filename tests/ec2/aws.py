"""An AWS that is moto's server on loopback: counts calls, fails where a test says so, and is all that a playbook can reach."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "inventories/ec2/control.yml"
DEBIAN = {
    "ami_id": "ami-0debd1a0000000012",
    "name": "debian-12-amd64-20261101-2289",
    "description": "Debian 12",
    "owner_id": "136693071363",
    "public": True,
    "virtualization_type": "hvm",
    "architecture": "x86_64",
    "state": "available",
    "platform": None,
    "image_type": "machine",
    "hypervisor": "xen",
    "root_device_name": "/dev/xvda",
    "root_device_type": "ebs",
    "sriov": "simple",
    "creation_date": "2026-11-01T00:00:00.000Z",
}
ONE_NODE: dict[str, Any] = {
    "zones": ["us-east-1a"],
    "internet": False,
    "groups": {"node": {"inventory": ["masters", "workers"], "type": "m5.large", "count": 1}},
}


@dataclass
class Fault:
    """An error that the server gives instead of an answer: from the call `after` on, `times` times."""

    action: str
    code: str
    status: int = 400
    after: int = 0
    times: int = 10**6
    seen: int = 0

    def strikes(self, action: str) -> bool:
        """Tell whether this call fails."""
        if not re.fullmatch(self.action, action):
            return False
        self.seen += 1
        return self.after < self.seen <= self.after + self.times


@dataclass
class Run:
    """A playbook that has run."""

    code: int
    output: str
    seconds: float
    calls: Counter[str]

    @property
    def changed(self) -> int:
        """How many tasks changed something."""
        found = re.search(r"changed=(\d+)", self.output)
        return int(found[1]) if found else -1

    @property
    def writes(self) -> Counter[str]:
        """Calls that are not for reading."""
        return Counter({call: n for call, n in self.calls.items() if not re.match(r"Describe|Get|List|Head|GET|HEAD", call)})


@dataclass
class Aws:
    """The server, its calls and its faults."""

    url: str
    work: Path
    calls: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = field(default_factory=dict)  # of services that moto lacks
    further: dict[str, str] = field(default_factory=dict)  # of the environment of playbooks

    def middleware(self, application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        """Wrap moto's application."""

        def wrapped(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            target = environ.get("HTTP_X_AMZ_TARGET", "")
            service = (re.search(r"/(\w[\w-]*)/aws4_request", environ.get("HTTP_AUTHORIZATION", "")) or ["", ""])[1]
            query = urllib.parse.parse_qs(body.decode("utf-8", "replace")) if service in ("ec2", "iam", "sts") else {}
            action = query.get("Action", [""])[0] or target.rpartition(".")[2]
            if service == "s3":
                asked = sorted(urllib.parse.parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True))
                action = " ".join([environ["REQUEST_METHOD"], *asked[:1]])
            if not environ["PATH_INFO"].startswith("/moto-api"):
                self.calls.append(action)
            for fault in self.faults:
                if fault.strikes(action):
                    text = f"<Code>{fault.code}</Code><Message>made to fail</Message>"
                    form = {"s3": f"<Error>{text}</Error>", "ec2": f"<Response><Errors><Error>{text}</Error></Errors></Response>"}
                    start(f"{fault.status} Failed", [("Content-Type", "text/xml")])
                    return [form.get(service, f"<ErrorResponse><Error>{text}</Error></ErrorResponse>").encode()]
            if action in self.answers:
                start("200 OK", [("Content-Type", "application/x-amz-json-1.1")])
                return [json.dumps(self.answers[action](json.loads(body))).encode()]
            if service == "pricing":  # moto has none
                start("400 Bad Request", [("Content-Type", "application/x-amz-json-1.1")])
                return [b'{"__type": "AccessDeniedException", "message": "no prices here"}']
            return application(environ, start)

        return wrapped

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a playbook: credentials of nobody, and every way out but to this server is shut."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("AWS_") and "proxy" not in key.lower()}
        nowhere = "http://127.0.0.1:9"
        return {
            **clean,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "nobody",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "HTTP_PROXY": nowhere,
            "HTTPS_PROXY": nowhere,
            "NO_PROXY": "127.0.0.1",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            **self.further,
        }

    def client(self, service: str, region_name: str = "us-east-1", config: Any = None) -> Any:
        """Return a client of the server, as a session of boto3 does."""
        nobody = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        return boto3.client(service, region_name=region_name, config=config, endpoint_url=self.url, **nobody)

    def cluster(self, name: str, **content: Any) -> Path:
        """Write a cluster file: small, unless told otherwise."""
        key = self.work / "id.pub"
        if not key.exists():
            public = Ed25519PrivateKey.generate().public_key()
            key.write_bytes(public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b" somebody\n")
        default = {
            "name": name,
            "region": "us-east-1",
            "zones": ["us-east-1a", "us-east-1b"],
            "access": ["203.0.113.0/24"],
            "key": str(key),
            "groups": {
                "master": {"inventory": ["masters"], "type": "m5.large", "count": 1},
                "worker": {"inventory": ["workers"], "type": "m5.large", "count": 2, "volumes": [{"size": 50}]},
            },
        }
        path = self.work / f"{name}.yml"
        path.write_text(yaml.safe_dump({**default, **content}, sort_keys=False))
        return path

    def play(self, verb: str, cluster: Path, confirm: str = "", inventory: Path = INVENTORY, timeout: float = 280, **variables: Any) -> Run:
        """Run a playbook of EC2 on a cluster file."""
        return self.run(f"ec2-{verb}", cluster, confirm, inventory, timeout, **variables)

    def run(self, playbook: str, cluster: Path, confirm: str, inventory: Path, timeout: float, **variables: Any) -> Run:
        """Run any playbook on a cluster file."""
        ansible = shutil.which("ansible-playbook", path=self.environment["PATH"])
        assert ansible
        quick = {"ec2_poll_s": 1, "ec2_wait_s": 60, **variables}
        command = [ansible, "-i", str(inventory), str(ROOT / "playbooks" / f"{playbook}.yml"), "-e", json.dumps(quick)]
        self.calls.clear()
        started = time.monotonic()
        environment = {**self.environment, "CLUSTER": str(cluster), "CONFIRM": confirm}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
        seconds = time.monotonic() - started
        print(f"{playbook} {cluster.stem}: code {done.returncode}, {seconds:.1f} s, {len(self.calls)} calls")
        return Run(done.returncode, done.stdout + done.stderr, seconds, Counter(self.calls))

    def ask(self, cluster: Path, tool: str, *arguments: str) -> str:
        """What a command of Ansible says of the inventory of a cluster file."""
        program = shutil.which(tool, path=self.environment["PATH"])
        assert program
        command = [program, "-i", str(INVENTORY.parent), *arguments]
        environment = {**self.environment, "CLUSTER": str(cluster)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def inventory(self, cluster: Path) -> dict[str, Any]:
        """The inventory of a cluster file."""
        listed = self.ask(cluster, "ansible-inventory", "--list")
        return dict(json.loads(listed, object_hook=lambda value: value.get("__ansible_unsafe", value)))

    def up(self, cluster: Path, **variables: Any) -> Run:
        """Make a cluster; it has to succeed."""
        run = self.play("up", cluster, confirm=cluster.stem, **variables)
        assert run.code == 0, run.output[-6000:]
        return run

    def down(self, cluster: Path, **variables: Any) -> Run:
        """Remove a cluster; it has to succeed."""
        run = self.play("down", cluster, confirm=cluster.stem, **variables)
        assert run.code == 0, run.output[-6000:]
        return run

    def reset(self) -> None:
        """Forget all resources, faults and calls."""
        urllib.request.urlopen(f"{self.url}/moto-api/reset", data=b"").close()
        self.faults.clear()
        self.answers.clear()
        self.further.clear()


@contextmanager
def serve(work: Path) -> Iterator[Aws]:
    """Run the server on a free port of loopback, in a thread of this process."""
    amis = work / "amis.json"
    amis.write_text(json.dumps([DEBIAN]))
    os.environ["MOTO_AMIS_PATH"] = str(amis)
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    aws = Aws("", work)
    server = make_server("127.0.0.1", 0, aws.middleware(DomainDispatcherApplication(create_backend_app)), threaded=True)
    aws.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield aws
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
