"""Moves one queue to one topic: receive a batch, give it to Kafka, and acknowledge it once Kafka has it.

Any failure drops both connections and starts again; what was not acknowledged comes again, so Kafka may get a message
twice but never misses one. Readers drop the second by the event's identity. The key of an event is its access, so that
all reports of an access are in one partition, in the order in which they came.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gridstead.bridge.frames import Frame
from gridstead.bridge.sink import Record, Sink, SinkError, Topic
from gridstead.bridge.source import Source, SourceError
from gridstead.collector.store import RAW_MAX_BYTES, dead_letter
from gridstead.config import StompClient
from gridstead.events import access_of

log = logging.getLogger("gridstead.bridge")

KEY_HEADER = "event-id"
BATCH_BYTES = 8 << 20
LINGER_S = 0.02
BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 5.0
STOP_WAIT_S = 8.0
"""How long a batch in flight may still take after the request to stop; then it is left to be delivered again."""

BROKER_HEADERS = frozenset(
    "ack content-length content-type destination destination-type expires message-id persistent priority receipt"
    " redelivered subscription timestamp transaction".split()
)
BROKER_PREFIXES = ("_AMQ", "__AMQ", "JMSX")
"""Headers of the broker's own, and how others of them begin; all the rest are the sender's and go to Kafka."""


@dataclass(frozen=True)
class Route:
    """From where to where. Sizes in bytes; ``deadletter_topic`` takes what is too large for ``topic``."""

    queue: str
    topic: str
    deadletter_topic: str
    batch_messages: int
    window_bytes: int


@dataclass
class Counters:
    """What a mover did since the start of the process."""

    moved: int = 0
    bytes: int = 0
    """Bodies as received."""
    batches: int = 0
    reconnects: int = 0
    dead_letters: int = 0
    """Messages replaced by a dead letter, because they were larger than their topic takes; part of ``moved``."""
    last_batch_ms: float = 0.0


class Mover:
    """Keeps a source and a sink connected and moves messages between them until stopped."""

    def __init__(
        self, route: Route, stomp: StompClient, kafka: Mapping[str, str], topics: Sequence[Topic], replication: int
    ) -> None:
        """Prepare; ``run`` connects."""
        self.route = route
        self.counters = Counters()
        self.state = "not connected yet"
        self.connected = False
        self._cause: type[Exception] | None = None
        self._stomp = stomp
        self._kafka = kafka
        self._topics = topics
        self._replication = replication
        self._stop = threading.Event()
        self._stopped_at = 0.0

    def stop(self) -> None:
        """Ask ``run`` to end after the batch it is at."""
        self._stopped_at = time.monotonic()
        self._stop.set()

    def run(self) -> None:
        """Connect and move until :meth:`stop`; connects again for ever, with back-off."""
        pause = BACKOFF_MIN_S
        while not self._stop.is_set():
            before = self.counters.batches
            try:
                self._session()
            except (SourceError, SinkError) as error:
                self._failed(error)
            if self.counters.batches > before:
                pause = BACKOFF_MIN_S
            self._stop.wait(pause)
            pause = min(pause * 2, BACKOFF_MAX_S)
        self.connected = False

    def _session(self) -> None:
        """One life of both connections: Kafka first, so that nothing is taken which cannot be passed on."""
        sink = Sink(self._kafka, self._topics, self._replication)
        try:
            source = Source(self._stomp, self.route.queue, self.route.window_bytes)
            try:
                self._working()
                while not self._stop.is_set():
                    batch = source.receive(self.route.batch_messages, BATCH_BYTES, LINGER_S, self._stop.is_set)
                    if batch:
                        self._move(batch, source, sink)
                    else:
                        sink.check()
            finally:
                source.close()
        finally:
            sink.close()

    def _move(self, batch: Sequence[Frame], source: Source, sink: Sink) -> None:
        began = time.monotonic()

        def tick() -> None:
            source.beat()
            if self._stop.is_set() and time.monotonic() - self._stopped_at > STOP_WAIT_S:
                raise SinkError(f"stopped before Kafka took a batch of {len(batch)}; the broker keeps it")

        records = [to_record(frame, self.route, sink.limits) for frame in batch]
        sink.send(records, tick)
        source.acknowledge(batch[-1])
        counters = self.counters
        counters.moved += len(batch)
        counters.bytes += sum(len(frame.body) for frame in batch)
        counters.batches += 1
        counters.last_batch_ms = round((time.monotonic() - began) * 1000, 1)
        counters.dead_letters += sum(
            record.value is not frame.body for record, frame in zip(records, batch, strict=True)
        )

    def _working(self) -> None:
        if self._cause is not None:
            self.counters.reconnects += 1
        self.connected, self.state, self._cause = True, "connected", None
        log.info("queue %s -> topic %s: connected", self.route.queue, self.route.topic)

    def _failed(self, error: Exception) -> None:
        changed = self._cause is not type(error)
        self.connected, self.state, self._cause = False, str(error), type(error)
        if changed:
            log.warning("queue %s -> topic %s: %s; trying again", self.route.queue, self.route.topic, error)


def to_record(
    frame: Frame,
    route: Route,
    limits: Mapping[str, int],
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> Record:
    """Turn a message into Kafka's record; the sender's headers are kept.

    Key: of an event the access in the header ``event-id``, of a dead letter the header whole; none without the header.

    A message larger than the topic's limit (bytes, by topic) becomes a dead letter, cut where even that is too large.
    """
    identity = frame.headers.get(KEY_HEADER) or None
    key = identity if identity is None or route.topic == route.deadletter_topic else access_of(identity)
    headers = {
        name: value
        for name, value in frame.headers.items()
        if name not in BROKER_HEADERS and name != KEY_HEADER and not name.startswith(BROKER_PREFIXES)
    }
    record = Record(route.topic, key, frame.body, headers)
    limit = limits[route.topic]
    if record.size() <= limit:
        return record
    reason = f"message of {len(frame.body)} bytes exceeds max.message.bytes = {limit} of topic {route.topic}"
    return Record(
        route.deadletter_topic,
        identity if identity is None or len(identity) <= 256 else None,
        _fitting(frame.body, reason, route, limits[route.deadletter_topic], now_ms()),
        {},
    )


def _fitting(raw: bytes, reason: str, route: Route, limit: int, received_ms: int) -> bytes:
    """The dead-letter record's JSON, with as much of the raw bytes as fits (base64: 4 bytes for 3)."""
    room = max(0, (limit - 4096) // 4 * 3)
    kept = raw[: min(room, RAW_MAX_BYTES)]
    letter: dict[str, Any] = dead_letter(reason, "stomp", route.queue, received_ms, kept)
    letter["truncated"] = len(kept) < len(raw)
    return json.dumps(letter).encode()
