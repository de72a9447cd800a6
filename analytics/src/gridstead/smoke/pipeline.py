"""The pipeline end to end: events over STOMP and packets over UDP, until their statistics are served, exactly.

All of it lies in the year 2001, under a virtual organisation of its own (packets name none: they get a bin of their
own), so that it is told apart from real traffic. Its documents are deleted at the end; the archive keeps the events.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from gridstead.cli import kafkalog
from gridstead.cli.broker import Broker, BrokerError
from gridstead.cli.metrics import packets_counter
from gridstead.cli.packets import PacketSender, SendError
from gridstead.config import elasticsearch_client, stomp_client
from gridstead.smoke.probe import Probe, SmokeError
from gridstead.smoke.reference import Key, Value, transfer_statistics
from gridstead.xrootd import CloseRecord, OpenRecord, Operations, Record, TimeRecord, encode_packet

YEAR_MS = 978_307_200_000  # 2001-01-01T00:00:00Z
YEAR_LENGTH_MS = 364 * 86_400_000
EVENTS = 300
AGAIN = 30
INVALID = 3
FILES = 40
DOMAINS = ("smoke-a.example", "smoke-b.example", "smoke-c.example")

Found = dict[Key, Value]
Filters = list[dict[str, Any]]


def check(probe: Probe) -> str:
    """Run the check; returns what was seen, raises SmokeError."""
    from elasticsearch import ApiError, TransportError

    client = elasticsearch_client(probe.config, request_timeout=20)
    probe.later(client.close)
    served = Served(probe, client)
    try:
        return _work(probe, served)
    except (ApiError, TransportError) as error:
        raise SmokeError(f"Elasticsearch: {' '.join(str(error).split())}") from error
    except BrokerError as error:
        raise SmokeError(f"the broker: {error}") from error
    except SendError as error:
        raise SmokeError(f"the collector: {error}") from error
    except kafkalog.KafkaError as error:
        raise SmokeError(f"Kafka: {error}") from error


def _work(probe: Probe, served: Served) -> str:
    config = probe.config
    draw = random.Random(probe.name)
    bin_ms = config.stream.bin_s * 1000
    events = make_events(draw, probe.name, bin_ms)
    wanted = transfer_statistics(events, bin_ms)
    of_events: Filters = [{"term": {"vo": probe.name}}]
    bin_begin = _free_bin(draw, served, bin_ms)
    of_packets: Filters = [{"term": {"vo": "unknown"}}, {"term": {"bin_end_ms": bin_begin + bin_ms}}]
    probe.later(served.delete, of_events)
    probe.later(served.delete, of_packets)

    before = kafkalog.end_offsets(config, config.kafka.deadletter_topic)
    with Broker(stomp_client(config)) as broker:
        broker.send(config.stomp.raw_queue, make_messages(draw, events, probe.name))
    packets, moved = make_packets(draw, bin_begin // 1000, bin_ms // 1000)
    counter = packets_counter(config)
    with PacketSender(
        config.collector.bind, config.collector.xrootd_port, received=counter, patience_s=probe.left()
    ) as sender:
        for packet in [*packets, *packets]:
            sender.send(packet)
        sender.flush()

    await_equal(probe, lambda: served.statistics(of_events), wanted, "statistics of the events")
    sums = {"active": FILES, "finished": FILES, "bytes": moved}
    await_equal(probe, lambda: served.sums(of_packets), sums, "sums of the packets' files")
    await_equal(probe, lambda: _dead_letters(probe, before), INVALID, "dead letters")
    time.sleep(2 * config.stream.trigger_s)  # nothing may come twice
    probe.expect(served.statistics(of_events) == wanted, True, "statistics of the events unchanged afterwards")
    total = sum(value["bytes"] for value in wanted.values())
    return (
        f"{EVENTS} events ({EVENTS + AGAIN} messages, {total:,} bytes) in {len(wanted)} documents and {FILES} files "
        f"from {2 * len(packets)} packets ({moved:,} bytes), {INVALID} dead letters: all exact"
    )


class Served:
    """The documents in Elasticsearch."""

    def __init__(self, probe: Probe, client: Any) -> None:
        """Look at the transfer statistics of this appliance."""
        self._client = client
        self._index = f"{probe.config.elasticsearch.index_prefix}-transfers"

    def hits(self, filters: Filters) -> list[Mapping[str, Any]]:
        """Return all documents that pass the filters, as they are now."""
        present = {"ignore_unavailable": True, "allow_no_indices": True}
        self._client.indices.refresh(index=self._index, **present)
        answer = self._client.search(index=self._index, query={"bool": {"filter": filters}}, size=10_000, **present)
        return list(answer["hits"]["hits"])

    def statistics(self, filters: Filters) -> Found:
        """Return the values of the documents by their keys."""
        found: Found = {}
        for hit in self.hits(filters):
            row = hit["_source"]
            key = (row["vo"], row["src"], row["dst"], row["is_remote"], row["is_transfer"], row["activity"])
            values = {name: int(row[name]) for name in ("active", "finished", "bytes", "active_time")}
            found[(*key, int(row["bin_end_ms"]))] = values
        return found

    def sums(self, filters: Filters) -> dict[str, int]:
        """Return sums over the documents."""
        rows = [hit["_source"] for hit in self.hits(filters)]
        return {name: sum(int(row[name]) for row in rows) for name in ("active", "finished", "bytes")}

    def delete(self, filters: Filters) -> None:
        """Delete the documents that pass the filters."""
        operations = [{"delete": {"_index": hit["_index"], "_id": hit["_id"]}} for hit in self.hits(filters)]
        if operations:
            self._client.bulk(operations=operations, refresh="true")


def make_events(draw: random.Random, vo: str, bin_ms: int) -> list[dict[str, Any]]:
    """Draw events of up to two hours, some without length, some that moved nothing."""
    events = []
    for number in range(EVENTS):
        start = YEAR_MS + draw.randrange(YEAR_LENGTH_MS)
        length = draw.choice((0, 1, draw.randrange(1, bin_ms), draw.randrange(1, 7_200_000)))
        size = draw.randrange(1, 10**13)
        moved = draw.choice((0, size, draw.randrange(1, size + 1)))
        write = moved if draw.random() < 0.3 else 0
        server, client = draw.choice(DOMAINS), draw.choice(DOMAINS)
        events.append(
            {
                **{"vo": vo, "number": number, "server": server, "client": client, "size": size},
                **{"start_ms": start, "end_ms": start + length, "read": moved - write, "write": write},
            }
        )
    return events


def make_messages(draw: random.Random, events: list[dict[str, Any]], marker: str) -> list[bytes]:
    """Write the events as producers do, some of them twice, and a few records that must be refused."""
    messages = []
    for event in [*events, *draw.sample(events, AGAIN)]:
        record = {
            "unique_id": f"{draw.getrandbits(64):016x}",
            "file_lfn": f"/store/{marker}/{event['number']}.root",
            "file_size": event["size"],
            "start_time": event["start_ms"],
            "end_time": event["end_ms"],
            "read_bytes": 0,
            "read_bytes_at_close": event["read"],
            "write_bytes": event["write"],
            "server_host": "disk01",
            "server_domain": event["server"],
            "client_host": "wn001",
            "client_domain": event["client"],
            "vo": event["vo"],
        }
        messages.append(json.dumps(record if draw.random() < 0.5 else {"data": record, "metadata": {}}).encode())
    for number in range(INVALID):
        wrong = {"file_lfn": f"/store/{marker}/wrong-{number}", "end_time": "yesterday", "read_bytes": 1}
        messages.append(json.dumps(wrong).encode())
    draw.shuffle(messages)
    return messages


def make_packets(draw: random.Random, begin_s: int, bin_s: int) -> tuple[list[bytes], int]:
    """Make two packets, in which files are opened and closed within one bin; returns them and the bytes moved."""
    server_start, server_id = begin_s - draw.randint(1, 10**6), draw.getrandbits(47)
    opens: list[Record] = []
    closes: list[Record] = []
    moved = 0
    for number in range(1, FILES + 1):
        size = draw.randrange(1, 10**12)
        read, vector = size // 3, size - size // 3
        moved += size
        opens.append(OpenRecord(number, size, number, f"/store/smoke/{number}.root", False))
        closes.append(CloseRecord(number, read, vector, 0, False, Operations(1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0)))
    third = bin_s // 3
    windows = [(begin_s, begin_s + third, opens), (begin_s + third, begin_s + 2 * third, closes)]
    packets = [
        encode_packet(
            [TimeRecord(begin, end, server_id, 0, len(records), 1), *records],
            server_start_s=server_start,
            sequence=sequence,
        )
        for sequence, (begin, end, records) in enumerate(windows)
    ]
    return packets, moved


def await_equal(probe: Probe, read: Callable[[], Any], wanted: Any, what: str) -> None:
    """Wait until a value is as wanted; SmokeError with the difference when the time is over."""
    while (got := read()) != wanted:
        try:
            probe.left()
        except SmokeError as error:
            raise SmokeError(f"{what}: {error}: {_difference(got, wanted)}") from None
        time.sleep(0.5)


def _difference(got: Any, wanted: Any) -> str:
    if not (isinstance(got, dict) and isinstance(wanted, dict)):
        return f"{got!r} instead of {wanted!r}"
    missing = [key for key in wanted if key not in got]
    extra = [key for key in got if key not in wanted]
    other = [f"{key}: {got[key]} instead of {wanted[key]}" for key in wanted if key in got and got[key] != wanted[key]]
    counts = f"{len(missing)} of {len(wanted)} missing, {len(extra)} too many, {len(other)} different"
    return counts + "".join(f"\n    {line}" for line in other[:3])


def _free_bin(draw: random.Random, served: Served, bin_ms: int) -> int:
    """Choose a bin of 2001 that holds nothing of an unknown virtual organisation."""
    while True:
        begin = (YEAR_MS // bin_ms + draw.randrange(1, YEAR_LENGTH_MS // bin_ms)) * bin_ms
        if not served.hits([{"term": {"vo": "unknown"}}, {"term": {"bin_end_ms": begin + bin_ms}}]):
            return begin


def _dead_letters(probe: Probe, before: Mapping[int, int]) -> int:
    """Count the dead letters since ``before`` that hold this check's marker."""
    from gridstead.cli.dlq import parse

    topic = probe.config.kafka.deadletter_topic
    count = 0
    with kafkalog.consumer(probe.config) as opened:
        end = {number: high for number, (_, high) in kafkalog.bounds(opened, topic).items()}
        for message in kafkalog.records(opened, topic, before, end):
            value = message.value()
            letter = parse(message.partition() or 0, message.offset() or 0, value if isinstance(value, bytes) else None)
            count += probe.name.encode() in (letter.raw or b"")
    return count
