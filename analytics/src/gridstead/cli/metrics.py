"""The status pages of our own daemons: GET /metrics.json, flat or nested counters as JSON."""

from __future__ import annotations

import http
import http.client
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gridstead.config import Config

TIMEOUT_S = 3.0


class MetricsError(ConnectionError):
    """A status page does not answer, not with JSON, or says that it has no counters now."""


def fetch(host: str, port: int, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Read one daemon's counters. Raises MetricsError."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", "/metrics.json")
        answer = connection.getresponse()
        document = json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MetricsError(f"http://{host}:{port}/metrics.json: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if not isinstance(document, dict):
        raise MetricsError(f"http://{host}:{port}/metrics.json: not a JSON object")
    if answer.status != http.HTTPStatus.OK:  # a gateway that stands by, while nobody is elected
        raise MetricsError(f"http://{host}:{port}/metrics.json: {document.get('reason') or f'HTTP {answer.status}'}")
    return document


def collector(config: Config) -> dict[str, Any]:
    """Read the collector's counters, the sums of all gateways'. Raises MetricsError if one does not answer."""
    return together([fetch(host, config.collector.status_port) for host in _gateways(config, config.collector.bind)])


def bridge(config: Config) -> dict[str, Any]:
    """Read the bridge's counters, the sums of all gateways'. Raises MetricsError if one does not answer."""
    return together([fetch(host, config.bridge.status_port) for host in _gateways(config, config.bridge.bind)])


def together(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counters of several daemons as those of one: sums, of times the latest, of states whether all have it."""
    one: dict[str, Any] = dict(documents[0])
    for document in documents[1:]:
        for name, value in document.items():
            if isinstance(value, bool):
                one[name] = value and one.get(name, True)
            elif isinstance(value, int | float):
                seen = one.get(name) or 0
                one[name] = max(seen, value) if name.endswith("_ms") else seen + value
            elif one.get(name) is None:
                one[name] = value
    return one


def stream(config: Config) -> dict[str, Any]:
    """Read the stream's counters. Raises MetricsError, also where its status page is switched off."""
    if config.stream.status_port == 0:
        raise MetricsError("the stream's status page is off (stream.status_port = 0)")
    return _elected(config, config.stream.bind, config.stream.status_port)


def scheduler(config: Config) -> dict[str, Any]:
    """Read the scheduler's tasks. Raises MetricsError."""
    return _elected(config, config.schedule.bind, config.schedule.status_port)


def _gateways(config: Config, own: str) -> Sequence[str]:
    """Addresses of the gateways, this host's first."""
    return sorted(config.failover.gateways, key=lambda host: host != own) or [own]


def _elected(config: Config, own: str, port: int) -> dict[str, Any]:
    """Counters of a service that one gateway runs: others answer with them too, as far as they answer."""
    gateways = _gateways(config, own)
    for host in gateways[:-1]:
        try:
            return fetch(host, port)
        except MetricsError:
            continue
    return fetch(gateways[-1], port)


def packets_counter(config: Config) -> Callable[[], int | None]:
    """Make a function that reads how many packets this host's collector has committed, None while it is silent."""

    def read() -> int | None:
        try:
            return int(fetch(config.collector.bind, config.collector.status_port)["packets"])
        except (MetricsError, KeyError, TypeError, ValueError):
            return None

    return read
