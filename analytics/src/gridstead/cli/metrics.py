"""The status pages of our own daemons: GET /metrics.json, flat or nested counters as JSON."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any

from gridstead.config import Config

TIMEOUT_S = 3.0


class MetricsError(ConnectionError):
    """A status page does not answer, or not with JSON."""


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
    return document


def collector(config: Config) -> dict[str, Any]:
    """Read the collector's counters. Raises MetricsError."""
    return fetch(config.collector.bind, config.collector.status_port)


def bridge(config: Config) -> dict[str, Any]:
    """Read the bridge's counters. Raises MetricsError."""
    return fetch(config.bridge.bind, config.bridge.status_port)


def stream(config: Config) -> dict[str, Any]:
    """Read the stream's counters. Raises MetricsError, also where its status page is switched off."""
    if config.stream.status_port == 0:
        raise MetricsError("the stream's status page is off (stream.status_port = 0)")
    return fetch(config.stream.bind, config.stream.status_port)


def scheduler(config: Config) -> dict[str, Any]:
    """Read the scheduler's tasks. Raises MetricsError."""
    return fetch(config.schedule.bind, config.schedule.status_port)


def packets_counter(config: Config) -> Callable[[], int | None]:
    """Make a function that reads how many packets the collector has committed, None while it does not answer."""

    def read() -> int | None:
        try:
            return int(collector(config)["packets"])
        except (MetricsError, KeyError, TypeError, ValueError):
            return None

    return read
