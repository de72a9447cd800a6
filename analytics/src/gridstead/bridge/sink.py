"""Kafka's side of the bridge: topics, their limits, and an idempotent producer that waits for all acknowledgements."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

MAX_MESSAGE_BYTES = 32 << 20
RECORD_OVERHEAD_BYTES = 1024
"""Room for the batch header (61 bytes), the record's own fields and what a client library adds to them."""
ADMIN_TIMEOUT_S = 10.0
DELIVERY_TIMEOUT_S = 30.0
TICK_S = 1.0
PARTITIONER = "murmur2_random"
"""Java's default: equal keys go to one partition, whichever client writes them (librdkafka's own default hashes by
CRC-32, so a second producer or a mirror in Java would part the reports of an access); no key: any partition."""
RETENTION = "retention.ms"

log = logging.getLogger("gridstead.bridge")
_quiet = logging.getLogger("gridstead.bridge.librdkafka")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


class SinkError(Exception):
    """Kafka did not take everything; whatever was sent must be taken for not delivered."""


@dataclass(frozen=True)
class Topic:
    """A topic and how it is made where it is missing; of one that exists only the retention is brought in line."""

    name: str
    partitions: int
    settings: Mapping[str, str] = field(default_factory=dict)


class Record(NamedTuple):
    """A message for Kafka."""

    topic: str
    key: str | None
    value: bytes
    headers: dict[str, str]

    def size(self) -> int:
        """Upper bound of the bytes the record takes in a batch of its own."""
        parts = sum(len(name.encode()) + len(value.encode()) + 10 for name, value in self.headers.items())
        return len(self.value) + len((self.key or "").encode()) + parts + RECORD_OVERHEAD_BYTES


class Sink:
    """A producer to some topics, never used again after a SinkError."""

    def __init__(self, settings: Mapping[str, str], topics: Iterable[Topic], replication: int) -> None:
        """Connect, make the missing topics, and learn how large a message each takes.

        ``settings`` are librdkafka's (bootstrap.servers, security). Raises SinkError.
        """
        self._last_error = ""
        self._unreachable = False
        self._failed: list[str] = []
        common: dict[str, Any] = {**settings, "error_cb": self._note, "log_level": 3, "logger": _quiet}
        wanted = {topic.name: topic for topic in topics}
        try:
            admin = AdminClient(common)
            _make_topics(admin, wanted, replication)
            present = _settings(admin, wanted)
            _keep(admin, wanted, present)
            self.limits = {name: int(settings["max.message.bytes"]) for name, settings in present.items()}
            self._producer = Producer(
                {
                    "linger.ms": 5,
                    **common,
                    "enable.idempotence": True,
                    "acks": "all",
                    "partitioner": PARTITIONER,
                    "batch.size": min(512 << 10, *self.limits.values()),
                    "message.max.bytes": max(self.limits.values()),
                    "delivery.timeout.ms": int(DELIVERY_TIMEOUT_S * 1000),
                    "delivery.report.only.error": True,
                    "on_delivery": self._report,
                }
            )
        except KafkaException as error:
            raise SinkError(self._sentence(error)) from error

    def _note(self, error: KafkaError) -> None:
        self._last_error = error.str()
        self._unreachable = self._unreachable or error.code() == KafkaError._ALL_BROKERS_DOWN

    def _sentence(self, error: object) -> str:
        code = error.args[0] if isinstance(error, KafkaException) else error
        text = code.str() if isinstance(code, KafkaError) else str(error)
        return f"Kafka: {text}" + (f" ({self._last_error})" if self._last_error else "")

    def _report(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed.append(f"topic {message.topic()}: {error.str()}")

    def send(self, records: Iterable[Record], tick: Callable[[], None]) -> None:
        """Send the records and return when Kafka has all of them on every in-sync replica.

        ``tick`` is called about once a second meanwhile, and may raise. Raises SinkError.
        """
        deadline = time.monotonic() + DELIVERY_TIMEOUT_S + 5
        try:
            for record in records:
                self._produce(record, tick)
            while self._producer.flush(TICK_S) and not self._failed:
                tick()
                if time.monotonic() > deadline:
                    raise SinkError(self._sentence(f"no acknowledgement within {DELIVERY_TIMEOUT_S + 5:.0f} s"))
        except KafkaException as error:
            raise SinkError(self._sentence(error)) from error
        if self._failed:
            raise SinkError(self._sentence(f"{len(self._failed)} messages refused, first: {self._failed[0]}"))
        self._last_error = ""

    def check(self) -> None:
        """Notice, while there is nothing to send, that Kafka is gone. Raises SinkError."""
        self._producer.poll(0)
        if not self._unreachable:
            return
        self._unreachable = False
        try:
            self._producer.list_topics(timeout=ADMIN_TIMEOUT_S)
        except KafkaException as error:
            raise SinkError(self._sentence(error)) from error
        self._last_error = ""

    def _produce(self, record: Record, tick: Callable[[], None]) -> None:
        while True:
            try:
                self._producer.produce(record.topic, record.value, record.key, headers={**record.headers})
                return
            except BufferError:  # librdkafka's queue is full: it must deliver some first
                self._producer.poll(TICK_S)
                tick()
                if self._failed:
                    raise SinkError(self._sentence(self._failed[0])) from None

    def close(self) -> None:
        """Drop what is not delivered."""
        with contextlib.suppress(KafkaException):
            self._producer.purge()
            self._producer.flush(0)


def _make_topics(admin: AdminClient, wanted: Mapping[str, Topic], replication: int) -> None:
    present = admin.list_topics(timeout=ADMIN_TIMEOUT_S).topics
    missing = [
        NewTopic(topic.name, topic.partitions, replication, config=dict(topic.settings))
        for topic in wanted.values()
        if topic.name not in present
    ]
    if not missing:
        return
    for made in admin.create_topics(missing, operation_timeout=ADMIN_TIMEOUT_S).values():
        try:
            made.result(ADMIN_TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
        except TimeoutError as error:
            raise SinkError(f"Kafka: topics not made within {ADMIN_TIMEOUT_S:.0f} s") from error


def _settings(admin: AdminClient, wanted: Mapping[str, Topic]) -> dict[str, dict[str, str]]:
    """The settings of each topic. One made a moment ago may still be unknown to the broker asked."""
    deadline = time.monotonic() + ADMIN_TIMEOUT_S
    while True:
        try:
            return {name: _settings_of(admin, name) for name in wanted}
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _settings_of(admin: AdminClient, name: str) -> dict[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, name)
    answer = admin.describe_configs([resource], request_timeout=ADMIN_TIMEOUT_S)[resource]
    try:
        return {key: entry.value for key, entry in answer.result(2 * ADMIN_TIMEOUT_S).items()}
    except TimeoutError as error:
        raise SinkError(f"Kafka: no settings of topic {name} within {2 * ADMIN_TIMEOUT_S:.0f} s") from error


def _keep(admin: AdminClient, wanted: Mapping[str, Topic], present: Mapping[str, Mapping[str, str]]) -> None:
    """Change the retention of topics that exist with another one than is configured now."""
    for name, topic in wanted.items():
        days = topic.settings.get(RETENTION)
        if days is None or present[name].get(RETENTION) == days:
            continue
        log.info("topic %s: %s was %s, is set to %s", name, RETENTION, present[name].get(RETENTION), days)
        entry = ConfigEntry(RETENTION, days, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
        try:
            admin.incremental_alter_configs([resource])[resource].result(ADMIN_TIMEOUT_S)
        except TimeoutError as error:
            raise SinkError(f"Kafka: the retention of topic {name} was not set in {ADMIN_TIMEOUT_S:.0f} s") from error
