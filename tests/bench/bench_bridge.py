"""How fast the bridge moves 1 KB events, beside stomp.py + confluent-kafka in the same run.

Against a running appliance: ``python tests/bench/bench_bridge.py --config FILE --messages N --output DIR``. It uses a
queue and topics of its own on the appliance's broker and Kafka, so no made-up event reaches the archive. Exit code 1
if the bridge is slower than ``--goal`` events/s or the records in Kafka are not as many as were sent.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import queue
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import record
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from gridstead.bridge.__main__ import EVENTS_WINDOW_BYTES, run, topics
from gridstead.bridge.frames import FrameReader, encode
from gridstead.bridge.mover import BATCH_BYTES, KEY_HEADER, LINGER_S
from gridstead.bridge.sink import PARTITIONER, Sink, SinkError
from gridstead.bridge.source import Source, SourceError
from gridstead.collector.status import serve
from gridstead.config import Config, ConfigError, kafka_client, load, stomp_client
from gridstead.events import access_of

QUEUE = "gridstead.bench"
SAMPLE_S = 0.1
PATIENCE_S = 180.0
FILL_BATCH = 500


def bench_config(config: Config, port: int) -> Config:
    """The appliance's configuration with queues and topics of the benchmark's own."""
    return dataclasses.replace(
        config,
        kafka=dataclasses.replace(config.kafka, events_topic=QUEUE, deadletter_topic=f"{QUEUE}.deadletter"),
        stomp=dataclasses.replace(config.stomp, events_queue=QUEUE, deadletter_queue=f"{QUEUE}.deadletter"),
        bridge=dataclasses.replace(config.bridge, status_port=port),
    )


def event(number: int, size: int) -> tuple[str, bytes]:
    """The identity and body of a made-up event of ``size`` bytes."""
    identity = hashlib.sha256(b"%d" % number).hexdigest()[:32]
    start = json.dumps({"event_id": identity, "number": number, "pad": ""}).encode()[:-2]
    return identity, start + b"x" * (size - len(start) - 2) + b'"}'


def drain(config: Config) -> int:
    """Take what an earlier run left in the queue; returns how many."""
    source = Source(stomp_client(config), QUEUE, EVENTS_WINDOW_BYTES)
    count = 0
    while batch := source.receive(1000, BATCH_BYTES, LINGER_S):
        source.acknowledge(batch[-1])
        count += len(batch)
    source.close()
    return count


def fill(config: Config, messages: int, size: int) -> float:
    """Send persistent events to the queue, in transactions with a receipt; returns the events/s of it."""
    client = stomp_client(config)
    began = time.monotonic()
    with socket.create_connection(client.hosts[0], 10) as connection:
        connection.settimeout(60)
        reader = FrameReader()

        def ask(frames: list[bytes]) -> None:
            connection.sendall(b"".join(frames))
            while (answer := reader.next()) is None:
                data = connection.recv(65536)
                if not data:
                    raise SourceError("the broker closed the connection")
                reader.feed(data)
            if answer.command == "ERROR":
                raise SourceError(f"the broker reports an error: {answer.headers.get('message')}")

        login = {"login": client.username or "", "passcode": client.password or ""}
        ask([encode("CONNECT", {"accept-version": "1.2", "host": "bench", "heart-beat": "0,0", **login})])
        for first in range(0, messages, FILL_BATCH):
            frames = [encode("BEGIN", {"transaction": "fill"})]
            for number in range(first, min(first + FILL_BATCH, messages)):
                identity, body = event(number, size)
                head = {"destination": QUEUE, "destination-type": "ANYCAST", "persistent": "true"}
                frames.append(encode("SEND", head | {"transaction": "fill", KEY_HEADER: identity}, body))
            frames.append(encode("COMMIT", {"transaction": "fill", "receipt": "filled"}))
            ask(frames)
    return messages / (time.monotonic() - began)


def run_peer(config: Config) -> int:
    """The peer: the same work by stomp.py's receiver thread, one flush and one cumulative ACK a batch."""
    import stomp

    frames: queue.SimpleQueue[Any] = queue.SimpleQueue()
    moved = [0]
    failures: list[Any] = []

    class Listener(stomp.ConnectionListener):
        def on_message(self, frame: Any) -> None:
            frames.put(frame)

    serve("127.0.0.1", config.bridge.status_port, {"/metrics.json": lambda: (200, {"moved": moved[0]})})
    producer = Producer(
        {
            **kafka_client(config),
            "enable.idempotence": True,
            "acks": "all",
            "partitioner": PARTITIONER,
            "linger.ms": 5,
            "batch.size": 512 << 10,
            "delivery.report.only.error": True,
            "on_delivery": lambda error, _: failures.append(error),
        }
    )
    client = stomp_client(config)
    connection = stomp.Connection12(list(client.hosts), heartbeats=(0, 0), auto_decode=False)
    connection.set_listener("peer", Listener())
    connection.connect(client.username, client.password, wait=True)
    window = {"consumer-window-size": str(EVENTS_WINDOW_BYTES)}
    connection.subscribe(QUEUE, id="peer", ack="client", headers=window)
    while not failures:
        batch = [frames.get()]
        end = time.monotonic() + LINGER_S
        while len(batch) < config.bridge.batch_messages:
            try:
                batch.append(frames.get(timeout=max(0.0, end - time.monotonic())))
            except queue.Empty:
                break
        for frame in batch:
            producer.produce(QUEUE, frame.body, access_of(frame.headers[KEY_HEADER]))
        producer.flush()
        connection.ack(batch[-1].headers["ack"])
        moved[0] += len(batch)
    return 1


def in_kafka(config: Config) -> int:
    """Records in the benchmark's topic."""
    consumer = Consumer({**kafka_client(config), "group.id": QUEUE})
    partitions = consumer.list_topics(QUEUE, timeout=10).topics[QUEUE].partitions
    count = 0
    for partition in partitions:
        low, high = consumer.get_watermark_offsets(TopicPartition(QUEUE, partition), timeout=10)
        count += high - low
    consumer.close()
    return count


def delete_topics(config: Config) -> None:
    """Delete the benchmark's topics, and wait until they are gone."""
    admin = AdminClient({**kafka_client(config)})
    names = {topic.name for topic in topics(config)}
    present = names & set(admin.list_topics(timeout=10).topics)
    if present:
        for gone in admin.delete_topics(list(present), operation_timeout=10).values():
            gone.result(20)
    while names & set(admin.list_topics(timeout=10).topics):
        time.sleep(0.2)


def make_topics(config: Config) -> None:
    """Make the benchmark's topics as the bridge makes its own."""
    Sink(kafka_client(config), topics(config), getattr(config.bridge, "replication", 1)).close()


def measure(worker: str, arguments: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Fill the queue, run one candidate in a process of its own until it moved everything, and give its result.

    Time and CPU count from the first sample in which something was moved: start-up is not part of it.
    """
    delete_topics(config)
    make_topics(config)
    fill_rate = fill(config, arguments.messages, arguments.size)
    command = [sys.executable, __file__, "--config", str(config.path), "--worker", worker]
    command += ["--port", str(config.bridge.status_port)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    page = f"http://127.0.0.1:{config.bridge.status_port}/metrics.json"
    try:
        first: tuple[float, int, record.Usage] | None = None
        deadline = time.monotonic() + PATIENCE_S
        moved = 0
        while moved < arguments.messages:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{worker}: moved {moved} of {arguments.messages} messages, then no more: see above")
            time.sleep(SAMPLE_S)
            try:
                with urllib.request.urlopen(page, timeout=5) as answer:
                    moved = json.load(answer)["moved"]
            except OSError:
                continue
            now, used = time.monotonic(), record.usage(process.pid)
            if first is None and moved:
                first = (now, moved, used)
        if first is None or first[1] >= moved:
            raise SystemExit("too few messages to measure: give a larger --messages")
    finally:
        process.send_signal(signal.SIGTERM if worker == "bridge" else signal.SIGKILL)
        process.wait(30)
    began, before, usage = first
    cpu_s = used.cpu_s - usage.cpu_s
    counted = {"records_in_kafka": in_kafka(config), "fill_events_per_s": round(fill_rate)}
    return record.result(NAMES[worker], moved - before, now - began, cpu_s, used.rss_bytes, **counted)


NAMES = {"bridge": "gridstead bridge", "peer": "stomp.py + confluent-kafka"}
WORKERS: dict[str, Callable[[Config], int]] = {"bridge": run, "peer": run_peer}


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="gridstead.toml of the running appliance")
    parser.add_argument("--messages", type=int, default=100_000, help="events to move (default: %(default)s)")
    parser.add_argument("--size", type=int, default=1024, help="bytes of an event (default: %(default)s)")
    parser.add_argument("--goal", type=int, default=10_000, help="least events/s of the bridge (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the dated JSON file goes")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        config = bench_config(load(arguments.config), arguments.port or free_port())
        if arguments.worker:
            return WORKERS[arguments.worker](config)
        described = record.machine()
        drain(config)
        results = [measure(worker, arguments, config) for worker in WORKERS]
        delete_topics(config)
    except (ConfigError, SourceError, SinkError, KafkaException) as error:
        print(f"bench_bridge: {error}: is the appliance up? `gridstead status`", file=sys.stderr)
        return 1
    for row in results:
        print(
            f"{row['name']:28} {row['events_per_s']:>8} events/s {row['cpu_us_per_event']:>8} us CPU/event"
            f" {row['rss_mib']:>5} MiB"
        )
    if arguments.output:
        parameters = {name: getattr(arguments, name) for name in ("messages", "size", "goal")}
        parameters["batch_messages"] = config.bridge.batch_messages
        print(record.write(arguments.output, "bridge", described, parameters, results))
    if any(row["records_in_kafka"] != arguments.messages for row in results):
        print("FAILED: records in Kafka are not as many as were sent", file=sys.stderr)
        return 1
    if results[0]["events_per_s"] < arguments.goal:
        print(f"FAILED: the bridge is slower than {arguments.goal} events/s", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
