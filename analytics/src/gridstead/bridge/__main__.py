"""``python -m gridstead.bridge --config FILE``: move the broker's queues to Kafka, at least once."""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
import threading
import time
from typing import Any

from gridstead.bridge.mover import Counters, Mover, Route
from gridstead.bridge.sink import MAX_MESSAGE_BYTES, Topic
from gridstead.collector.status import Answer, serve
from gridstead.config import Config, ConfigError, kafka_client, load, stomp_client
from gridstead.daemon import EXIT_CONFIG, start

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
EVENTS_PARTITIONS = 4
EVENTS_WINDOW_BYTES = 4 << 20
DEADLETTER_WINDOW_BYTES = 1 << 20
DEADLETTER_BATCH = 100

log = logging.getLogger("gridstead.bridge")


def topics(config: Config) -> list[Topic]:
    """The topics the bridge fills, as it makes them where they are missing."""
    events = {"message.timestamp.type": "LogAppendTime", "retention.ms": str(config.bridge.retention_days * DAY_MS)}
    letters = {
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(MAX_MESSAGE_BYTES),
        "retention.ms": str(WEEK_MS),  # they hold names as producers sent them
    }
    return [
        Topic(config.kafka.events_topic, EVENTS_PARTITIONS, events),
        Topic(config.kafka.deadletter_topic, 1, letters),
    ]


def movers(config: Config) -> list[Mover]:
    """One mover a queue, each with connections of its own: a large dead letter never holds up events."""
    kafka, stomp, made = kafka_client(config), stomp_client(config), topics(config)
    letters_topic = config.kafka.deadletter_topic
    replication = getattr(config.bridge, "replication", 1)
    routes = [
        Route(
            config.stomp.events_queue,
            config.kafka.events_topic,
            letters_topic,
            config.bridge.batch_messages,
            EVENTS_WINDOW_BYTES,
        ),
        Route(
            config.stomp.deadletter_queue, letters_topic, letters_topic, DEADLETTER_BATCH, DEADLETTER_WINDOW_BYTES
        ),
    ]
    return [Mover(route, stomp, kafka, made, replication) for route in routes]


def health(running: list[Mover]) -> Answer:
    """200 while every queue is connected on both sides, else 503 with the reasons."""
    queues = {mover.route.queue: mover.state for mover in running}
    ready = all(mover.connected for mover in running)
    return (200 if ready else 503), {"status": "ok" if ready else "waiting", "queues": queues}


def metrics(running: list[Mover], started_ms: int) -> Answer:
    """Counters since the start of the process: the sum over the queues (last_batch_ms: the largest), and each queue."""
    each = {mover.route.queue: dataclasses.asdict(mover.counters) for mover in running}
    total: dict[str, Any] = {
        entry.name: sum(counters[entry.name] for counters in each.values()) for entry in dataclasses.fields(Counters)
    }
    total["last_batch_ms"] = max(counters["last_batch_ms"] for counters in each.values())
    total |= {"started_ms": started_ms, "connected": all(mover.connected for mover in running), "queues": each}
    return 200, total


def run(config: Config) -> int:
    """Move until SIGTERM or SIGINT, then finish the batches in flight; returns the exit code."""
    running = movers(config)
    started_ms = time.time_ns() // 1_000_000
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        pages = {"/health": lambda: health(running), "/metrics.json": lambda: metrics(running, started_ms)}
        server = serve(config.bridge.bind, config.bridge.status_port, pages)
    except OSError as error:
        where = f"{config.bridge.bind}:{config.bridge.status_port}"
        log.critical("status page on %s: %s: change bridge.status_port in %s", where, error, config.path)
        return 1
    threads = [threading.Thread(target=mover.run, name=mover.route.queue) for mover in running]
    for thread in threads:
        thread.start()
    dead = False
    while not stop.wait(1.0):
        if not all(thread.is_alive() for thread in threads):
            dead = True  # its traceback is in the log; a fresh process starts from what is not acknowledged
            break
    for mover in running:
        mover.stop()
    for thread in threads:
        thread.join()
    server.shutdown()
    log.info("stopped after %d messages", sum(mover.counters.moved for mover in running))
    return 1 if dead else 0


def main() -> int:
    """Run the daemon; returns the exit code: 78 for a configuration that cannot be used, 1 for another failure."""
    path = start("bridge", __doc__)
    try:
        return run(load(path))
    except ConfigError as error:
        log.critical("%s", error)
        return EXIT_CONFIG


if __name__ == "__main__":
    sys.exit(main())
