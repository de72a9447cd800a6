"""Runs the checks one after the other; each failure comes with the last log lines of the services concerned."""

from __future__ import annotations

import importlib
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gridstead.cli.supervision import log_tail
from gridstead.config import Config, ConfigError
from gridstead.smoke.probe import Probe, SmokeError

LOG_LINES = 15


@dataclass(frozen=True)
class Check:
    """One check: the module with its ``check(probe) -> str``, the services it leans on, and its time limit in s."""

    name: str
    meaning: str
    services: tuple[str, ...]
    timeout_s: float


CHECKS: tuple[Check, ...] = (
    Check("hdfs", "put, get and compare a file on HDFS", ("hdfs-namenode", "hdfs-datanode"), 120),
    Check("mapreduce", "count words by MapReduce on YARN", ("yarn-resourcemanager", "yarn-nodemanager"), 240),
    Check("spark", "read and write HDFS by Spark", ("yarn-resourcemanager", "yarn-nodemanager"), 300),
    Check("kafka", "produce and consume", ("kafka",), 90),
    Check("stomp", "durable subscription across a disconnect", ("activemq",), 60),
    Check("elasticsearch", "index, aggregate, delete", ("elasticsearch",), 60),
    Check(
        "pipeline",
        "events and packets to exact statistics",
        ("collector", "activemq", "bridge", "kafka", "stream", "elasticsearch"),
        240,
    ),
)


@dataclass(frozen=True)
class Outcome:
    """The result of one check: ``message`` is what it saw, or why it failed; ``logs`` are lines by service."""

    name: str
    meaning: str
    ok: bool
    message: str
    seconds: float
    logs: dict[str, list[str]] = field(default_factory=dict)


def run(config: Config, only: Sequence[str] = ()) -> Iterator[Outcome]:
    """Run the checks (all, or only those named) and yield each outcome as it comes. An unknown name is a KeyError."""
    known = {check.name: check for check in CHECKS}
    chosen = [known[name] for name in only] if only else list(CHECKS)
    for check in chosen:
        yield run_one(config, check)


def run_one(config: Config, check: Check) -> Outcome:
    """Run one check; whatever it raises becomes its outcome."""
    module = importlib.import_module(f"gridstead.smoke.{check.name}")
    begun = time.monotonic()
    ok, message = False, ""
    try:
        with Probe(config, check.timeout_s) as probe:
            message = module.check(probe)
        ok = True
    except (SmokeError, ConfigError) as error:
        message = str(error)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
    logs = {} if ok else {name: log_tail(config, name, LOG_LINES) for name in check.services}
    return Outcome(check.name, check.meaning, ok, message, time.monotonic() - begun, logs)
