"""Kafka: produce to a topic of our own with acks=all, consume everything back, remove the topic."""

from __future__ import annotations

import time
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from gridstead.config import kafka_client
from gridstead.smoke.probe import Probe, SmokeError

MESSAGES = 1000
PARTITIONS = 2


def check(probe: Probe) -> str:
    """Run the check; returns what was seen, raises SmokeError."""
    settings: dict[str, Any] = {**kafka_client(probe.config), "log_level": 0}
    topic = f"gridstead.{probe.name}"
    admin = AdminClient(settings)
    try:
        made = admin.create_topics([NewTopic(topic, PARTITIONS)], operation_timeout=20, request_timeout=20)
        made[topic].result(timeout=min(30.0, probe.left()))
    except KafkaException as error:
        raise SmokeError(f"the topic {topic} cannot be made: {error}") from error
    probe.later(lambda: admin.delete_topics([topic])[topic].result(timeout=30))
    wanted = {f"{number}".encode(): f"value {number}".encode() for number in range(MESSAGES)}
    refused: list[str] = []
    producer = Producer({**settings, "acks": "all", "enable.idempotence": True, "message.timeout.ms": 30_000})
    for key, value in wanted.items():
        producer.produce(topic, value, key, on_delivery=lambda error, _: refused.append(str(error)) if error else None)
    left = producer.flush(min(40.0, probe.left()))
    if refused or left:
        raise SmokeError(f"{left} messages were not sent, {len(refused)} refused ({'; '.join(refused[:1])})")
    got = _consume(probe, settings, topic)
    probe.expect(len(got), MESSAGES, "number of messages consumed")
    probe.expect(dict(got), wanted, "messages consumed")
    return f"{MESSAGES} messages in {PARTITIONS} partitions, all back, once each"


def _consume(probe: Probe, settings: dict[str, Any], topic: str) -> list[tuple[bytes, bytes]]:
    consumer = Consumer({**settings, "group.id": probe.name, "enable.auto.commit": False})
    got: list[tuple[bytes, bytes]] = []
    try:
        consumer.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
        quiet_since = None
        while True:
            message = consumer.poll(min(0.5, probe.left()))
            if message is not None and not message.error():
                key, value = message.key(), message.value()
                if isinstance(key, bytes) and isinstance(value, bytes):
                    got.append((key, value))
                quiet_since = None
            elif len(got) >= MESSAGES:
                quiet_since = quiet_since or time.monotonic()
                if time.monotonic() - quiet_since > 1:  # one more second: nothing may come twice
                    return got
    finally:
        consumer.close()
