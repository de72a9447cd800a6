"""The checks of ``gridstead doctor``, in the order of an event's path: what is wrong, and what to type next."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gridstead.cli import kafkalog, metrics, pipeline, supervision
from gridstead.cli.pipeline import Snapshot, Stage
from gridstead.cli.supervision import ServiceState
from gridstead.cli.units import exact, human_bytes, human_seconds
from gridstead.config import (
    Config,
    ConfigError,
    elasticsearch_client,
    elasticsearch_settings,
    kafka_client,
    stomp_client,
)

OLDEST_JAVA = 17
LOW_SPACE_BYTES = 1 << 30
LOW_SPACE_SHARE = 0.03
QUEUE_NEARLY_FULL = 0.9
STANDSTILL_S = 60.0
TIMEOUT_S = 5.0


class Verdict(StrEnum):
    """What a check found: nothing wrong, something to know, or something wrong."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """One result: which check, its verdict, a sentence, and the next command ("" where there is nothing to do)."""

    check: str
    verdict: Verdict
    message: str
    next_command: str = ""

    def as_dict(self) -> dict[str, str]:
        """Give the fields for JSON."""
        return asdict(self)


class Patient:
    """The appliance under examination; what several checks need is asked once."""

    def __init__(self, config: Config) -> None:
        """Ask the supervisor, all services and all stages at the same time."""
        self.config = config
        with ThreadPoolExecutor(max_workers=2) as pool:
            services = pool.submit(supervision.services, config)
            snapshot = pool.submit(pipeline.snapshot, config)
            self.services: list[ServiceState] = services.result()
            self.snapshot: Snapshot = snapshot.result()

    def stage(self, name: str) -> Stage:
        """Return one stage of the path."""
        return self.snapshot.stage(name)

    def is_sick(self, service: str) -> bool:
        """Whether this host has the service and it is not healthy: it is blamed once, not by every check."""
        return any(state.name == service and not state.healthy for state in self.services)

    @cached_property
    def hadoop(self) -> str:
        """The launcher, as one types it."""
        return self.config.hadoop.cli

    def web(self, service: str, path: str) -> Any:
        """GET JSON from a service's own web server (the host and port of its check). Raises OSError, ValueError."""
        found = self.config.service(service)
        if found is None or found.check != "http":
            raise OSError(f"{service} has no http check in {self.config.path}")
        parts = urlsplit(found.url)
        with urllib.request.urlopen(f"{parts.scheme}://{parts.netloc}{path}", timeout=TIMEOUT_S) as answer:
            return json.load(answer)


def examine(config: Config) -> Iterator[Finding]:
    """Run every check in the order of the path and yield what it found, one OK where it found nothing."""
    for early in (_client_files, _java, _disk):
        yield from early(config)
    patient = Patient(config)
    for name, service, check, sentence in _CHECKS:
        if config.appliance.supervisor == "container" and service and config.service(service) is None:
            continue  # a release has no YARN, and Kubernetes is its scheduler
        if patient.is_sick(service):
            yield Finding(name, Verdict.NOTE, f"not examined, because {service} is not healthy")
            continue
        found = list(check(patient))
        if not found:
            yield Finding(name, Verdict.OK, sentence)
        yield from found


def _client_files(config: Config) -> Iterator[Finding]:
    readers: tuple[Callable[[Config], Any], ...] = (kafka_client, stomp_client, elasticsearch_settings)
    good = True
    for reader in readers:
        try:
            reader(config)
        except ConfigError as error:
            good = False
            for problem in error.problems:
                yield Finding("configuration", Verdict.WRONG, problem, "make up")
    if good:
        yield Finding("configuration", Verdict.OK, f"{config.path} and the three client files can be read")


def _java(config: Config) -> Iterator[Finding]:
    java = str(Path(config.appliance.java_home) / "bin" / "java") if config.appliance.java_home else "java"
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("java", Verdict.WRONG, f"{java} does not run: {error}", "make up")
        return
    match = re.search(r'version "(\d+)', done.stderr + done.stdout)
    version = int(match[1]) if match else 0
    if version < OLDEST_JAVA:
        yield Finding(
            "java", Verdict.WRONG, f"{java} is version {version or 'unknown'}, needed: {OLDEST_JAVA}", "make up"
        )
    else:
        yield Finding("java", Verdict.OK, f"{java} is version {version}")


def _disk(config: Config) -> Iterator[Finding]:
    seen: set[int] = set()
    ours = (config.appliance.data_dir, config.collector.data_dir, config.appliance.log_dir)
    for directory in ours[:1] if config.appliance.supervisor == "container" else ours:  # a pod has no others' volumes
        try:
            device = Path(directory).stat().st_dev
            usage = shutil.disk_usage(directory)
        except OSError as error:
            yield Finding("disk", Verdict.WRONG, f"{directory}: {error.strerror}", "make up")
            continue
        if device in seen:
            continue
        seen.add(device)
        text = f"{directory}: {human_bytes(usage.free)} of {human_bytes(usage.total)} free"
        if usage.free < max(LOW_SPACE_BYTES, LOW_SPACE_SHARE * usage.total):
            yield Finding("disk", Verdict.WRONG, text, f"du -xh --max-depth=2 {directory} | sort -h | tail")
        else:
            yield Finding("disk", Verdict.OK, text)


def _services(patient: Patient) -> Iterator[Finding]:
    config = patient.config
    if not config.services:
        yield Finding("services", Verdict.WRONG, f"{config.path} names no [[services]]", "make up")
    if config.services and all(state.state == "unknown" for state in patient.services):
        asked = {
            "systemd": "systemctl",
            "container": "the API server of Kubernetes, by this pod's service account",
        }.get(config.appliance.supervisor, " ".join(config.appliance.supervisorctl))
        yield Finding("services", Verdict.WRONG, f"the supervisor does not answer ({asked})", "make up")
    for state in patient.services:
        service = config.service(state.name)
        if service is None or state.healthy:
            continue
        if (
            state.state in ("STOPPED", "FATAL", "EXITED", "BACKOFF", "inactive", "failed")
            and supervision.check(service)[0]
        ):
            what = f"{state.name} is {state.state.lower()}, but another process answers at {service.url}"
            port = urlsplit(service.url).port if "//" in service.url else service.url.rpartition(":")[2]
            yield Finding("services", Verdict.WRONG, what, f"ss -ltnp 'sport = :{port}'")
        else:
            what = f"{state.name} is {state.state.lower()}: {state.reason}"
            next_command = f"{_tail(patient, state.name)}    # then {_restart(patient, state.name)}"
            yield Finding("services", Verdict.WRONG, what, next_command)


def _hdfs(patient: Patient) -> Iterator[Finding]:
    admin, fsck = f"{patient.hadoop} dfsadmin", f"{patient.hadoop} fsck"
    try:
        beans = patient.web("hdfs-namenode", "/jmx?qry=Hadoop:service=NameNode,name=*")["beans"]
    except (OSError, ValueError, KeyError) as error:
        yield Finding("hdfs", Verdict.NOTE, f"the NameNode's figures cannot be read ({error})", f"{admin} -report")
        return
    values: dict[str, Any] = {}
    for bean in beans:
        values.update(bean)
    if values.get("Safemode"):
        what = f"HDFS is in safe mode: {values['Safemode']}"
        yield Finding("hdfs", Verdict.WRONG, what, f"{admin} -safemode get    # it leaves by itself when blocks are in")
    if not values.get("NumLiveDataNodes"):
        yield Finding("hdfs", Verdict.WRONG, "HDFS has no live DataNode", _restart(patient, "hdfs-datanode"))
    if values.get("NumDeadDataNodes"):
        yield Finding(
            "hdfs", Verdict.WRONG, f"{values['NumDeadDataNodes']} DataNodes are dead", f"{admin} -report -dead"
        )
    for name, what in (("MissingBlocks", "missing"), ("CorruptBlocks", "corrupt")):
        if values.get(name):
            text = f"{exact(values[name])} blocks are {what}"
            yield Finding("hdfs", Verdict.WRONG, text, f"{fsck} / -list-corruptfileblocks")
    if values.get("UnderReplicatedBlocks"):
        text = f"{exact(values['UnderReplicatedBlocks'])} blocks have too few copies"
        yield Finding("hdfs", Verdict.NOTE, text, f"{fsck} /")
    remaining, capacity = values.get("CapacityRemaining"), values.get("CapacityTotal")
    if capacity and remaining is not None and remaining < max(LOW_SPACE_BYTES, LOW_SPACE_SHARE * capacity):
        text = f"HDFS has {human_bytes(remaining)} of {human_bytes(capacity)} left"
        yield Finding("hdfs", Verdict.WRONG, text, f"{patient.hadoop} fs -du -h /")


def _yarn(patient: Patient) -> Iterator[Finding]:
    try:
        values = patient.web("yarn-resourcemanager", "/ws/v1/cluster/metrics")["clusterMetrics"]
    except (OSError, ValueError, KeyError) as error:
        yield Finding("yarn", Verdict.NOTE, f"the ResourceManager's figures cannot be read ({error})")
        return
    if not values.get("activeNodes"):
        yield Finding("yarn", Verdict.WRONG, "YARN has no active NodeManager", _restart(patient, "yarn-nodemanager"))
    if values.get("unhealthyNodes"):
        nodes = f"{patient.hadoop} org.apache.hadoop.yarn.client.cli.NodeCLI -list -states UNHEALTHY -showDetails"
        what = f"{values['unhealthyNodes']} NodeManagers are unhealthy (most often a full disk)"
        yield Finding("yarn", Verdict.WRONG, what, nodes)
    if values.get("appsPending"):
        yield Finding("yarn", Verdict.NOTE, f"{values['appsPending']} applications wait for resources")


def _collector(patient: Patient) -> Iterator[Finding]:
    stage = patient.stage("collector")
    if stage.problem:
        yield Finding("collector", Verdict.WRONG, stage.problem, _restart(patient, "collector"))
        return
    detail = stage.detail
    held, bound = detail.get("queue_bytes") or 0, detail.get("queue_max_bytes") or 0
    if bound and held > QUEUE_NEARLY_FULL * bound:
        what = (
            f"the collector's queue is {held * 100 // bound} % full ({exact(stage.lag or 0)} rows wait for the broker)"
        )
        yield Finding("collector", Verdict.WRONG, what, "gridstead status    # is activemq up?")
    if detail.get("sender_connected") is False:
        what = "the collector has no connection to the broker; it keeps events on disk"
        yield Finding("collector", Verdict.WRONG, what, _restart(patient, "activemq"))
    if detail.get("dropped_full"):
        what = f"{exact(detail['dropped_full'])} packets were dropped because the queue was full"
        yield Finding("collector", Verdict.NOTE, what, "# raise collector_queue_max_bytes, then make up")
    if detail.get("kernel_drops"):
        what = f"{exact(detail['kernel_drops'])} packets were dropped by the kernel: the socket buffer is too small"
        yield Finding(
            "collector", Verdict.NOTE, what, "sysctl -w net.core.rmem_max=26214400    # then restart collector"
        )


def _broker(patient: Patient) -> Iterator[Finding]:
    stage = patient.stage("broker")
    if stage.problem:
        yield Finding("broker", Verdict.WRONG, stage.problem, _restart(patient, "activemq"))
    elif stage.lag:
        depth = ", ".join(f"{name} {exact(count)}" for name, count in stage.detail["depth"].items() if count)
        yield Finding("broker", Verdict.NOTE, f"messages wait in the broker: {depth}", "gridstead status")


def _bridge(patient: Patient) -> Iterator[Finding]:
    stage = patient.stage("bridge")
    if stage.problem:
        yield Finding("bridge", Verdict.WRONG, stage.problem, _restart(patient, "bridge"))


def _kafka(patient: Patient) -> Iterator[Finding]:
    config = patient.config
    try:
        with kafkalog.consumer(config) as opened:
            topics = opened.list_topics(timeout=kafkalog.TIMEOUT_S).topics
    except (kafkalog.KafkaError, ConfigError) as error:
        yield Finding("kafka", Verdict.WRONG, f"Kafka does not answer its clients: {error}", _restart(patient, "kafka"))
        return
    for name in (config.kafka.events_topic, config.kafka.deadletter_topic):
        if name not in topics:
            yield Finding("kafka", Verdict.WRONG, f"there is no topic {name}", "make up")
            continue
        partitions = topics[name].partitions
        leaderless = [str(number) for number, partition in partitions.items() if partition.leader < 0]
        thin = [
            str(number) for number, partition in partitions.items() if len(partition.isrs) < len(partition.replicas)
        ]
        if leaderless:
            what = f"{name}: no leader for partition {', '.join(leaderless)}"
            yield Finding("kafka", Verdict.WRONG, what, _restart(patient, "kafka"))
        elif thin:
            yield Finding("kafka", Verdict.NOTE, f"{name}: too few copies of partition {', '.join(thin)}")


def _stream(patient: Patient) -> Iterator[Finding]:
    for name in pipeline.QUERIES:
        stage = patient.stage(name)
        detail = stage.detail
        if stage.problem.startswith("failed"):
            yield Finding("stream", Verdict.WRONG, f"query {name} {stage.problem}", _tail(patient, "stream"))
        elif stage.problem:
            yield Finding("stream", Verdict.NOTE, f"query {name}: {stage.problem}", "gridstead status")
        elif stage.lag and _seconds_since(detail.get("updated_at")) > STANDSTILL_S:
            since = human_seconds(_seconds_since(detail.get("updated_at")))
            what = f"query {name} stands still since {since}, {exact(stage.lag)} records behind"
            yield Finding("stream", Verdict.WRONG, what, _tail(patient, "stream"))
        if detail.get("malformed"):
            yield Finding("stream", Verdict.NOTE, f"query {name} met {exact(detail['malformed'])} malformed records")
        if detail.get("beyond_horizon"):
            what = (
                f"{exact(detail['beyond_horizon'])} events came later than the horizon (stream.dedupe_horizon_s): if "
                "they had come before, they count twice until the next batch over their days"
            )
            yield Finding("stream", Verdict.NOTE, what, "gridstead batch run --from DAY --to DAY")


def _elasticsearch(patient: Patient) -> Iterator[Finding]:
    from elasticsearch import ApiError, TransportError

    client = elasticsearch_client(patient.config, request_timeout=TIMEOUT_S, max_retries=0)
    try:
        health = client.cluster.health()
    except (ApiError, TransportError) as error:
        text = f"Elasticsearch does not answer its clients: {' '.join(str(error).split())}"
        yield Finding("elasticsearch", Verdict.WRONG, text, _restart(patient, "elasticsearch"))
        return
    finally:
        client.close()
    unassigned = health.get("unassigned_shards", 0)
    if health["status"] == "red":
        what = f"the cluster is red, {unassigned} shards are not assigned"
        yield Finding("elasticsearch", Verdict.WRONG, what, _tail(patient, "elasticsearch"))
    elif health["status"] == "yellow":
        yield Finding("elasticsearch", Verdict.NOTE, f"the cluster is yellow, {unassigned} copies are not assigned")


def _dead_letters(patient: Patient) -> Iterator[Finding]:
    dead = patient.stage("log").detail.get("dead_letters")
    if dead:
        what = f"{exact(dead)} dead letters since the topic was made (some may have been replayed)"
        yield Finding("dead letters", Verdict.NOTE, what, "gridstead dlq list")


def _scheduler(patient: Patient) -> Iterator[Finding]:
    try:
        tasks = metrics.scheduler(patient.config).get("tasks", {})
    except metrics.MetricsError as error:
        yield Finding("scheduler", Verdict.WRONG, f"it does not answer: {error}", _tail(patient, "scheduler"))
        return
    for name, task in tasks.items():
        if task["last"].get("exit_code"):
            ago = human_seconds(time.time() - task["last"]["began"])
            what = f"the last {name}, begun {ago} ago, failed: {task['last'].get('error')}"
            yield Finding("scheduler", Verdict.WRONG, what, _tail(patient, "scheduler"))


def _restart(patient: Patient, service: str) -> str:
    return supervision.restart_command(patient.config, service)


def _tail(patient: Patient, name: str) -> str:
    service = patient.config.service(name)
    return " ".join(supervision.log_command(patient.config, service)) if service else "gridstead status"


def _seconds_since(moment: str | None) -> float:
    try:
        then = datetime.fromisoformat(moment or "")
    except ValueError:
        return 0.0
    return time.time() - (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()


# Name, the service without which the check has nothing to ask ("": none), the check, and what to say when all is well.
_CHECKS: tuple[tuple[str, str, Callable[[Patient], Iterator[Finding]], str], ...] = (
    ("services", "", _services, "every service is up and answers"),
    ("collector", "collector", _collector, "the collector takes input and its queue has room"),
    ("broker", "activemq", _broker, "the broker's queues are empty"),
    ("bridge", "bridge", _bridge, "the bridge answers"),
    ("kafka", "kafka", _kafka, "both topics are there, every partition has a leader"),
    ("dead letters", "kafka", _dead_letters, "there are none"),
    ("hdfs", "hdfs-namenode", _hdfs, "no block is missing, the NameNode is out of safe mode"),
    ("yarn", "yarn-resourcemanager", _yarn, "NodeManagers are active and healthy"),
    ("stream", "stream", _stream, "both queries keep up"),
    ("elasticsearch", "elasticsearch", _elasticsearch, "no shard is missing"),
    ("scheduler", "scheduler", _scheduler, "what it ran last went well"),
)
