"""Reading Kafka topics from here to there: bounds, records, and committed positions."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from gridstead.config import Config, kafka_client

TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 3.0

Bounds = dict[int, tuple[int, int]]


class KafkaError(ConnectionError):
    """Kafka does not answer, lacks the topic, or refused; the message says which."""


@contextmanager
def consumer(config: Config, group: str = "gridstead-cli", **settings: Any) -> Iterator[Consumer]:
    """Open a consumer that commits nothing by itself; librdkafka's and our errors come as KafkaError."""
    client = kafka_client(config)
    _knock(client["bootstrap.servers"])
    opened = Consumer(
        {
            **client,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "socket.connection.setup.timeout.ms": 5000,
            "log_level": 0,
            **settings,
        }
    )
    try:
        yield opened
    except KafkaException as error:
        raise KafkaError(_text(error)) from error
    finally:
        opened.close()


def bounds(opened: Consumer, topic: str) -> Bounds:
    """Return for each partition of a topic the first offset kept and the one after the last."""
    known = opened.list_topics(topic, timeout=TIMEOUT_S).topics.get(topic)
    if known is None or known.error is not None or not known.partitions:
        raise KafkaError(f"there is no topic {topic}")
    return {
        number: opened.get_watermark_offsets(TopicPartition(topic, number), timeout=TIMEOUT_S)
        for number in sorted(known.partitions)
    }


def end_offsets(config: Config, topic: str) -> dict[int, int]:
    """Return for each partition of a topic the offset after its last record. Raises KafkaError."""
    with consumer(config) as opened:
        return {number: end for number, (_, end) in bounds(opened, topic).items()}


def records(opened: Consumer, topic: str, begin: Mapping[int, int], end: Mapping[int, int]) -> Iterator[Message]:
    """Yield the records of each partition from ``begin`` to before ``end``, one partition after the other."""
    for number in sorted(end):
        position = begin.get(number, 0)
        if position >= end[number]:
            continue
        opened.assign([TopicPartition(topic, number, position)])
        patience = time.monotonic() + TIMEOUT_S
        while position < end[number]:
            message = opened.poll(0.5)
            if message is None:
                if opened.position([TopicPartition(topic, number)])[0].offset >= end[number]:
                    break
                if time.monotonic() > patience:
                    raise KafkaError(f"{topic}, partition {number}: no record at offset {position} in {TIMEOUT_S:g} s")
                continue
            if message.error():
                raise KafkaError(str(message.error()))
            position = (message.offset() or 0) + 1
            patience = time.monotonic() + TIMEOUT_S
            if position <= end[number]:
                yield message
    opened.unassign()


def _knock(bootstrap: str) -> None:
    """Raise KafkaError at once where no server listens; librdkafka itself would try until its timeout."""
    problems = []
    for server in bootstrap.split(","):
        host, _, port = server.strip().rpartition("://")[2].rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
            return
        except (OSError, ValueError) as error:
            problems.append(f"{server.strip()}: {getattr(error, 'strerror', None) or error}")
    raise KafkaError("; ".join(problems))


def _text(error: KafkaException) -> str:
    inner = error.args[0] if error.args else error
    return inner.str() if hasattr(inner, "str") else str(inner)
