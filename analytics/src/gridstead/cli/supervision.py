"""What runs on this host: the state that the supervisor reports, each process's memory and age, and a check by network.

The supervisor is supervisord (embedded appliance) or systemd (hosts), asked by their own command, or Kubernetes
(containers), asked at its API server: there "this host" is a release.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gridstead.cli import pods
from gridstead.config import Config, Service

UNIT_PREFIX = "gridstead-"
CHECK_TIMEOUT_S = 3.0
HEALTH_BYTES = 10_000
"""A page of health is shorter; of a longer answer, as Hadoop's, nothing is read into memory."""
_SUPERVISOR_LINE = re.compile(r"^(?:[^\s:]+:)?(?P<name>\S+)\s+(?P<state>[A-Z]+)\b(?:.*?pid (?P<pid>\d+))?")


@dataclass(frozen=True)
class Process:
    """What the supervisor says of one service: ``state`` in its own word, ``pid`` None where nothing runs."""

    state: str
    pid: int | None = None

    @property
    def running(self) -> bool:
        """Whether the supervisor holds it for running."""
        return self.state in ("RUNNING", "active", "Running")


@dataclass(frozen=True)
class ServiceState:
    """One service as ``gridstead status`` shows it. Memory in bytes, uptime in seconds, None where unknown."""

    name: str
    role: str
    state: str
    healthy: bool
    reason: str
    pid: int | None
    uptime_s: float | None
    rss_bytes: int | None
    web: str | None

    def as_dict(self) -> dict[str, Any]:
        """Give the fields for JSON."""
        return asdict(self)


def services(config: Config) -> list[ServiceState]:
    """Look at every service, all at the same time; in start order."""
    processes = supervised(config)
    with ThreadPoolExecutor(max_workers=max(4, len(config.services))) as pool:
        checks = list(pool.map(check, config.services))
    children = _children()
    states = []
    for service, (healthy, reason) in zip(config.services, checks, strict=True):
        process = processes.get(service.name, Process("unknown"))
        pids = _family(process.pid, children) if process.pid else []
        if process.state != "unknown" and not process.running:
            healthy, reason = False, reason or f"the supervisor says {process.state}"
        states.append(
            ServiceState(
                name=service.name,
                role=service.role,
                state=process.state,
                healthy=healthy,
                reason=reason,
                pid=process.pid,
                uptime_s=_age(process.pid) if process.pid else None,
                rss_bytes=sum(map(_rss, pids)) if pids else None,
                web=service.web or None,
            )
        )
    return states


def supervised(config: Config) -> dict[str, Process]:
    """Ask the supervisor for every service; empty where it cannot be asked."""
    if config.appliance.supervisor == "container":
        try:
            return {name: Process(state) for name, state in pods.states(config.appliance.name).items()}
        except pods.PodsError:
            return {}
    if config.appliance.supervisor == "systemd":
        return _systemd([service.name for service in config.services])
    output = _run([*config.appliance.supervisorctl, "status"])
    return parse_supervisor(output or "")


def parse_supervisor(output: str) -> dict[str, Process]:
    """Read what ``supervisorctl status`` prints."""
    found = {}
    for line in output.splitlines():
        match = _SUPERVISOR_LINE.match(line)
        if match:
            pid = int(match["pid"]) if match["pid"] and match["state"] == "RUNNING" else None
            found[match["name"]] = Process(match["state"], pid)
    return found


def parse_systemd(output: str) -> dict[str, Process]:
    """Read what ``systemctl show --property=Id,ActiveState,MainPID`` prints: a block a unit."""
    found = {}
    for block in output.split("\n\n"):
        values = dict(line.partition("=")[::2] for line in block.splitlines())
        name = values.get("Id", "").removesuffix(".service").removeprefix(UNIT_PREFIX)
        if name:
            pid = int(values.get("MainPID") or 0)
            found[name] = Process(values.get("ActiveState", "unknown"), pid or None)
    return found


def check(service: Service) -> tuple[bool, str]:
    """Check a service by network: (healthy, what is wrong, or for whom it stands by, or "")."""
    if service.check == "tcp":
        host, _, port = service.url.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CHECK_TIMEOUT_S).close()
        except OSError as error:
            return False, f"{service.url}: {_reason(error)}"
        return True, ""
    try:
        with urllib.request.urlopen(service.url, timeout=CHECK_TIMEOUT_S) as answer:
            return True, _standing_by(answer)
    except urllib.error.HTTPError as error:
        if error.code < 500:
            return True, ""
        text = " ".join(error.read(300).decode(errors="replace").split())
        return False, f"{service.url}: HTTP {error.code} {text}".rstrip()
    except (OSError, http.client.HTTPException) as error:
        return False, f"{service.url}: {_reason(error)}"


def _standing_by(answer: http.client.HTTPResponse) -> str:
    """For whom a service stands by that another gateway runs (gridstead.failover); else empty."""
    if answer.headers.get_content_type() != "application/json":
        return ""
    try:
        page = json.loads(answer.read(HEALTH_BYTES))
    except ValueError:
        return ""
    return f"stands by for {page['standby']}" if isinstance(page, dict) and page.get("standby") else ""


def restart_command(config: Config, name: str) -> str:
    """Write the command that restarts a service here."""
    if config.appliance.supervisor == "container":
        return f"kubectl delete pod -l {pods.selector(config.appliance.name, name)}"
    if config.appliance.supervisor == "systemd":
        return f"systemctl restart {UNIT_PREFIX}{name}"
    return " ".join([*config.appliance.supervisorctl, "restart", name])


def log_command(config: Config, service: Service, lines: int = 50) -> list[str]:
    """Write the command that shows the end of a service's log: a file, the journal, or what pods logged."""
    if config.appliance.supervisor == "container":
        return ["kubectl", "logs", "-l", pods.selector(config.appliance.name, service.name), f"--tail={lines}"]
    if config.appliance.supervisor == "systemd":
        return ["journalctl", f"--unit={UNIT_PREFIX}{service.name}", f"--lines={lines}", "--output=cat", "--no-pager"]
    return ["tail", "-n", str(lines), service.log]


def log_tail(config: Config, name: str, lines: int = 12) -> list[str]:
    """Read the last lines of a service's log; one line that says why where it cannot be read."""
    service = config.service(name)
    if service is None:
        return [f"{name} is not a service of {config.path}"]
    if config.appliance.supervisor == "container":
        try:
            return pods.log_tail(config.appliance.name, name, lines) or [f"{name} has no pod, or it says nothing"]
        except pods.PodsError as error:
            return [f"{error}: {' '.join(log_command(config, service, lines))}"]
    if config.appliance.supervisor == "systemd":
        command = log_command(config, service, lines)
        return (_run(command) or "").splitlines() or [f"nothing from {' '.join(command)}: read it as root"]
    path = Path(service.log)
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64 * 1024))
            text = file.read().decode("utf-8", errors="replace")
    except OSError as error:
        return [f"{path}: {_reason(error)}"]
    return text.splitlines()[-lines:] or [f"{path} is empty"]


def _systemd(names: Sequence[str]) -> dict[str, Process]:
    units = [f"{UNIT_PREFIX}{name}.service" for name in names]
    output = _run(["systemctl", "show", "--property=Id,ActiveState,MainPID", *units])
    return parse_systemd(output or "")


def _run(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None)
    if isinstance(inner, OSError):
        error = inner
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _children() -> dict[int, list[int]]:
    """Map every process on this host to its children."""
    found: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                found.setdefault(int(fields[1]), []).append(int(entry.name))
    return found


def _family(pid: int, children: dict[int, list[int]]) -> list[int]:
    family, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        family.append(current)
        waiting.extend(children.get(current, ()))
    return family


def _stat(pid: int) -> list[str] | None:
    """Read /proc/PID/stat from the state on (the command's name may hold blanks and brackets)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _age(pid: int) -> float | None:
    fields = _stat(pid)
    if fields is None:
        return None
    up = float(Path("/proc/uptime").read_text().split()[0])
    return max(0.0, up - int(fields[19]) / os.sysconf("SC_CLK_TCK"))


def _rss(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[21]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def names(states: Iterable[ServiceState]) -> str:
    """Join the names of services for a sentence."""
    return ", ".join(state.name for state in states)
