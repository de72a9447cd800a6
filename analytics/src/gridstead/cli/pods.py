"""The pods of a release on Kubernetes: their states and their logs, asked of the API server from within a pod.

A release's pods have its name as label ``app.kubernetes.io/instance``, and that of the service as
``app.kubernetes.io/component``. The pod that asks needs a service account that may get pods and their logs; without
one nothing is known.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_S = 5.0


class PodsError(Exception):
    """The API server cannot be asked, or refuses; the text says why."""


def selector(release: str, service: str = "") -> str:
    """The labels by which the pods of a release, or of one of its services, are found."""
    whole = f"app.kubernetes.io/instance={release}"
    return f"{whole},app.kubernetes.io/component={service}" if service else whole


def states(release: str) -> dict[str, str]:
    """The state of each service that has pods: Running, or what holds up the first of its pods that is not ready."""
    found: dict[str, str] = {}
    for pod in _pods(selector(release)):
        component = pod["metadata"]["labels"].get("app.kubernetes.io/component", "")
        if found.get(component, "Running") == "Running":
            found[component] = _state(pod)
    return found


def log_tail(release: str, service: str, lines: int) -> list[str]:
    """The last lines of the log of a service, of each of its pods. Raises PodsError."""
    told = []
    for pod in _pods(selector(release, service)):
        name = pod["metadata"]["name"]
        text = _get(f"/pods/{quote(name)}/log?{urlencode({'tailLines': lines, 'container': service})}")
        told += [f"{name}: {line}" for line in text.decode(errors="replace").splitlines()]
    return told


def _state(pod: dict[str, Any]) -> str:
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    for status in pod["status"].get("containerStatuses", []):
        waiting = status["state"].get("waiting") or status["state"].get("terminated")
        if waiting:
            return str(waiting.get("reason") or "Waiting")
    return str(pod["status"].get("phase", "Unknown"))


def _pods(labels: str) -> Iterable[dict[str, Any]]:
    return json.loads(_get(f"/pods?{urlencode({'labelSelector': labels})}"))["items"]


def _get(path: str) -> bytes:
    """GET below the pod's own namespace."""
    try:
        server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
        namespace = (ACCOUNT / "namespace").read_text().strip()
        headers = {"Authorization": f"Bearer {(ACCOUNT / 'token').read_text().strip()}"}
        trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    except (KeyError, OSError) as error:
        raise PodsError(f"this is not a pod with a service account ({error}): ask with kubectl") from error
    request = urllib.request.Request(f"{server}/api/v1/namespaces/{namespace}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=trust) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        raise PodsError(f"the API server refuses {path.partition('?')[0]}: HTTP {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        raise PodsError(f"the API server does not answer: {error}") from error
