"""The path of an event in numbers: what each stage took in, gave on, and still holds; and waiting for the last."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from gridstead.cli import kafkalog, metrics
from gridstead.cli.broker import Broker, BrokerError
from gridstead.config import Config, ConfigError, elasticsearch_client, stomp_client

QUERIES = {"archive": "rows", "statistics": "documents"}


@dataclass(frozen=True)
class Stage:
    """One stage. Counts are None where unknown; ``lag`` is what it holds and has not given on, ``since`` says of what
    time the counters speak: "ever" (kept on disk) or "start" (of the process). ``problem``: why numbers are missing.
    """

    name: str
    service: str
    lag: int | None = None
    events_in: int | None = None
    events_out: int | None = None
    since: str = "ever"
    problem: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Give the fields for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Snapshot:
    """All stages in the order of the path, read at about the same time (ms since the epoch)."""

    taken_ms: int
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        """Return one stage."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def problems(self) -> list[str]:
        """What could not be read."""
        return [f"{stage.name}: {stage.problem}" for stage in self.stages if stage.problem]

    @property
    def holding(self) -> list[str]:
        """What stages hold, and what could not be read."""
        return [f"{stage.name} {stage.lag:,}" for stage in self.stages if stage.lag] + self.problems

    @property
    def backlog(self) -> int | None:
        """Sum of all lags, None while one is unknown."""
        lags = [stage.lag for stage in self.stages]
        return None if any(lag is None for lag in lags) else sum(lag or 0 for lag in lags)

    @property
    def freshness_s(self) -> float | None:
        """Age of the newest event that the collector took in, in seconds."""
        last = self.stage("collector").detail.get("last_event_ms")
        return (self.taken_ms - last) / 1000 if last else None

    @property
    def marks(self) -> tuple[Any, ...]:
        """What changes whenever something moves; equal in two snapshots: nothing moved between them."""
        return tuple((stage.events_in, stage.events_out) for stage in self.stages)

    def as_dict(self) -> dict[str, Any]:
        """Give the fields for JSON."""
        return {
            "taken_ms": self.taken_ms,
            "backlog": self.backlog,
            "freshness_s": self.freshness_s,
            "stages": [stage.as_dict() for stage in self.stages],
        }


def snapshot(config: Config) -> Snapshot:
    """Read every stage, all at the same time; a stage that does not answer says so and breaks nothing."""
    readers: list[Callable[[Config], list[Stage]]] = [_collector, _broker, _bridge, _kafka_and_stream, _elasticsearch]
    with ThreadPoolExecutor(max_workers=len(readers)) as pool:
        parts = list(pool.map(lambda reader: reader(config), readers))
    return Snapshot(int(time.time() * 1000), tuple(stage for part in parts for stage in part))


def wait_until_drained(
    config: Config, timeout_s: float, note: Callable[[Snapshot], None] = lambda snapshot: None
) -> tuple[bool, Snapshot]:
    """Wait until every stage has given on what it holds and served it: whether it did in time, and the last snapshot.

    Drained means: no lag anywhere, twice in a row with nothing moved in between. ``note`` is shown each snapshot.
    """
    deadline = time.monotonic() + timeout_s
    before: Snapshot | None = None
    while True:
        now = snapshot(config)
        note(now)
        if now.backlog == 0 and before is not None and before.backlog == 0 and before.marks == now.marks:
            refresh(config)
            return True, now
        if time.monotonic() > deadline:
            return False, now
        before = now
        time.sleep(1.0)


def refresh(config: Config) -> None:
    """Make what was written to Elasticsearch visible to searches; a server that is away is left alone."""
    from elasticsearch import ApiError, TransportError

    client = elasticsearch_client(config, request_timeout=30)
    try:
        client.indices.refresh(index=_index(config), ignore_unavailable=True, allow_no_indices=True)
    except (ApiError, TransportError):
        pass
    finally:
        client.close()


def _collector(config: Config) -> list[Stage]:
    try:
        counters = metrics.collector(config)
    except metrics.MetricsError as error:
        return [Stage("collector", "collector", problem=str(error))]
    detail = {name: counters.get(name) for name in _COLLECTOR_DETAIL}
    return [
        Stage(
            "collector",
            "collector",
            lag=_integer(counters.get("queue_rows")),
            events_in=_add(counters.get("events"), counters.get("dead_letters")),
            events_out=_add(counters.get("sent"), counters.get("dead_letters_sent")),
            detail=detail,
        )
    ]


_COLLECTOR_DETAIL = (
    *("packets", "packets_bad", "messages", "events", "dead_letters", "dropped_full", "kernel_drops"),
    *("queue_bytes", "queue_max_bytes", "last_event_ms", "sender_connected", "input_connected"),
)


def _broker(config: Config) -> list[Stage]:
    queues = {
        "raw": config.stomp.raw_queue,
        "events": config.stomp.events_queue,
        "deadletter": config.stomp.deadletter_queue,
    }
    try:
        with Broker(stomp_client(config), timeout_s=10) as broker:
            depth = {name: broker.depth(queue) for name, queue in queues.items()}
            added = {
                name: int(broker.manage(f"queue.{queue}", attribute="messagesAdded")) for name, queue in queues.items()
            }
    except (BrokerError, ConfigError, ValueError, TypeError) as error:
        return [Stage("broker", "activemq", problem=str(error))]
    lag = sum(depth.values())
    taken = sum(added.values())
    return [Stage("broker", "activemq", lag, taken, taken - lag, since="start", detail={"depth": depth})]


def _bridge(config: Config) -> list[Stage]:
    try:
        counters = metrics.bridge(config)
    except metrics.MetricsError as error:
        return [Stage("bridge", "bridge", problem=str(error))]
    moved = _integer(counters.get("moved"))
    detail = {name: value for name, value in counters.items() if isinstance(value, int | float)}
    # What it has received and Kafka has not yet is still the broker's, unacknowledged, and counted there.
    return [Stage("bridge", "bridge", 0, moved, moved, since="start", detail=detail)]


def _kafka_and_stream(config: Config) -> list[Stage]:
    ends: dict[int, int] | None = None
    try:
        with kafkalog.consumer(config) as opened:
            ends = {number: end for number, (_, end) in kafkalog.bounds(opened, config.kafka.events_topic).items()}
            dead = sum(end for _, end in kafkalog.bounds(opened, config.kafka.deadletter_topic).values())
        total = sum(ends.values())
        log = Stage("log", "kafka", 0, total + dead, total, detail={"events": total, "dead_letters": dead})
    except (kafkalog.KafkaError, ConfigError) as error:
        log = Stage("log", "kafka", problem=str(error))
    return [log, *_stream(config, ends)]


def _stream(config: Config, ends: Mapping[int, int] | None) -> list[Stage]:
    try:
        queries = metrics.stream(config).get("queries", {})
    except metrics.MetricsError as error:
        return [Stage(name, "stream", problem=str(error)) for name in QUERIES]
    topic = config.kafka.events_topic
    return [stream_stage(name, unit, queries.get(name), ends, topic) for name, unit in QUERIES.items()]


def stream_stage(
    name: str, unit: str, entry: Mapping[str, Any] | None, ends: Mapping[int, int] | None, topic: str
) -> Stage:
    """Make the stage of one streaming query from its entry in /metrics.json and the end offsets of the topic."""
    if entry is None:
        return Stage(name, "stream", problem="the stream does not know this query")
    if entry.get("state") == "failed":
        return Stage(name, "stream", since="start", problem=f"failed: {entry.get('error')}")
    done = {int(number): int(offset) for number, offset in ((entry.get("offsets") or {}).get(topic) or {}).items()}
    lag = None
    problem = ""
    if ends is None:
        problem = "unknown without Kafka"
    elif done or not any(ends.values()):
        lag = sum(max(0, end - done.get(number, 0)) for number, end in ends.items())
    else:
        problem = f"{entry.get('state')}: nothing done since the start"
    return Stage(
        name,
        "stream",
        lag=lag,
        events_in=_integer(entry.get("rows")),
        events_out=_integer(entry.get("documents" if unit == "documents" else "archived_rows")),
        since="start",
        problem=problem,
        detail={"unit_out": unit, **{key: entry.get(key) for key in _STREAM_DETAIL}},
    )


_STREAM_DETAIL = (
    *("state", "batch_id", "updated_at", "batch_duration_ms", "processed_rows_per_s"),
    *("malformed", "duplicates", "superseded", "retracted", "beyond_horizon"),
)


def _elasticsearch(config: Config) -> list[Stage]:
    from elasticsearch import ApiError, TransportError

    try:
        client = elasticsearch_client(config, request_timeout=10, max_retries=0)
    except ConfigError as error:
        return [Stage("serving", "elasticsearch", problem=str(error))]
    try:
        count = int(client.count(index=_index(config), ignore_unavailable=True, allow_no_indices=True)["count"])
        return [Stage("serving", "elasticsearch", 0, None, count, detail={"documents": count})]
    except (ApiError, TransportError) as error:
        return [Stage("serving", "elasticsearch", problem=" ".join(str(error).split()))]
    finally:
        client.close()


def _index(config: Config) -> str:
    return f"{config.elasticsearch.index_prefix}-transfers"


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _add(*values: Any) -> int | None:
    numbers = [_integer(value) for value in values]
    return None if any(number is None for number in numbers) else sum(number or 0 for number in numbers)
