"""How many events a second the running appliance takes without falling behind, and how soon they are served.

Against a running appliance: ``python tests/bench/bench_stream.py --config FILE --rates 250,1000,10000 --seconds 600``.
Made-up events of now, with identities of their own, go to the log at each rate in turn; a marker a second tells the
latency from sent to visible to a search. Lag, CPU by service, memory and the sizes of what is kept are sampled. With
``--spike 5`` the first rate is multiplied for a minute in the middle, and the time until the lag is gone is measured.
With ``--compress 6`` the events' clock runs six times as fast, from the past until now: 600 seconds are an hour of them,
in which what the stream keeps must stay flat once its horizon is over. The log's clock is the broker's, so deploy with a
sixth of the horizon that is meant (``analytics_dedupe_horizon_s``).
The events stay in the archive: use an appliance for this alone. Exit code 1 if a rate was not sustained.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import record
from confluent_kafka import Producer
from elasticsearch import ApiError, TransportError

from gridstead.bridge.sink import PARTITIONER
from gridstead.cli import metrics, supervision
from gridstead.config import Config, elasticsearch_client, kafka_client, load
from gridstead.events import access_of

TICK_S = 0.05
SAMPLE_S = 5.0
PAIRS = 600
FILES = 5000
USERS = 300
DRAIN_S = 300.0


class Traffic:
    """Endless events of now in the wire form: many short accesses, some of hours, popular files and links first."""

    def __init__(self, seed: int) -> None:
        """Draw the names; identities differ from run to run, else the stream would take them for duplicates."""
        self._draw = random.Random(seed)
        self._number = random.SystemRandom().getrandbits(40) << 20
        sites = [f"site-{number:03d}.example" for number in range(170)]
        self._pairs = [(self._draw.choice(sites), self._draw.choice(sites)) for _ in range(PAIRS)]

    def _popular(self, count: int) -> int:
        return int(count ** self._draw.random()) - 1

    def event(self, now_ms: int, vo: str | None = None) -> tuple[str, bytes]:
        """Key and value for the log; ``vo`` marks an event."""
        draw = self._draw
        self._number += 1
        identity = f"{self._number * 0x9E3779B97F4A7C15 % 2**64:016x}{self._number:016x}"
        server, client = self._pairs[self._popular(PAIRS)]
        length = int(draw.lognormvariate(11, 2)) % 20_000_000
        size = 1 + self._number % 4_000_000_000
        moved = size if draw.random() < 0.3 else draw.randrange(size)
        value = (
            f'{{"event_id":"{identity}","source":"access","producer_id":"{self._number:x}","server_host":"se.{server}",'
            f'"server_domain":"{server}","server_username":"xrootd","client_host":"wn{draw.randrange(200)}.{client}",'
            f'"client_domain":"{client}","user":"user{self._popular(USERS)}","user_dn":null,'
            f'"vo":"{vo or ("cms", "atlas", "lhcb", "alice")[self._popular(4)]}","app_info":null,'
            f'"file_lfn":"/store/data/Run2025/{self._popular(FILES):06d}.root","file_ref":null,"file_size":{size},'
            f'"start_ms":{now_ms - length},"end_ms":{now_ms},"read_bytes":{moved},"read_single_bytes":{moved},'
            f'"read_vector_bytes":0,"write_bytes":0,"open_missing":false,"clock_clamped":false,"received_ms":{now_ms}}}'
        )
        return access_of(identity), value.encode()


class Latency:
    """Marked events: when they were sent, and when a search first found them."""

    def __init__(self, config: Config, name: str) -> None:
        """``name`` is the marker's virtual organisation, with a number behind."""
        self._client = elasticsearch_client(config, request_timeout=30)
        self._index = f"{config.elasticsearch.index_prefix}-transfers"
        self.name = name
        self._sent: dict[str, float] = {}
        self.seconds: list[float] = []
        self.refused = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def sent(self, vo: str) -> None:
        """A marked event was given to the log."""
        self._sent[vo] = time.monotonic()

    def _look(self) -> None:
        while not self._over.wait(0.1):
            waiting = list(self._sent)
            if not waiting:
                continue
            try:
                found = self._client.search(
                    index=self._index,
                    size=0,
                    query={"terms": {"vo": waiting}},
                    aggs={"vo": {"terms": {"field": "vo", "size": len(waiting)}}},
                    ignore_unavailable=True,
                )
            except (ApiError, TransportError):
                self.refused += 1  # a busy Elasticsearch: the marker is looked for again, its latency goes on
                continue
            now = time.monotonic()
            for bucket in found["aggregations"]["vo"]["buckets"] if "aggregations" in found else []:
                self.seconds.append(now - self._sent.pop(bucket["key"]))

    def close(self, patience_s: float) -> None:
        """Wait for the markers that are under way."""
        deadline = time.monotonic() + patience_s
        while self._sent and time.monotonic() < deadline:
            time.sleep(0.2)
        self._over.set()
        self._thread.join()
        self._client.close()

    def summary(self) -> dict[str, Any]:
        """Percentiles in seconds, and how many markers were never found."""
        ordered = sorted(self.seconds)
        at = [ordered[min(len(ordered) - 1, int(len(ordered) * q))] for q in (0.5, 0.95)] if ordered else [None, None]
        return {
            "markers": len(ordered),
            "lost": len(self._sent),
            "refused": self.refused,
            "p50_s": at[0] and round(at[0], 2),
            "p95_s": at[1] and round(at[1], 2),
        }


def cpu_by_service(config: Config) -> dict[str, float]:
    """CPU seconds of every service with its children."""
    used = {}
    for service in supervision.services(config):
        if service.pid:
            used[service.name] = record.cpu_s(record.family(service.pid))
    return used


def lag_of(config: Config) -> int:
    """Rows of the log that are not served yet."""
    return int(metrics.stream(config)["queries"]["statistics"].get("lag") or 0)


def kept(config: Config) -> dict[str, int]:
    """Bytes resident of the stream, and of its identity index on disk."""
    stream = next(service for service in supervision.services(config) if service.name == "stream")
    files = Path(config.appliance.data_dir, "stream").glob("identity*")
    return {"stream_rss": stream.rss_bytes or 0, "identity_index": sum(file.stat().st_size for file in files)}


def checkpoint(config: Config) -> int:
    """Bytes of the stream's checkpoints on HDFS."""
    counted = subprocess.run([config.hadoop.cli, "fs", "-count", config.stream.checkpoint],
                             check=True, capture_output=True, text=True).stdout  # fmt: skip
    return int(counted.split()[2])  # directories, files, bytes, path


def run_rate(
    config: Config, traffic: Traffic, rate: int, seconds: float, spike: int, compress: int
) -> dict[str, Any]:
    """Send at a rate (with a spike in the middle), wait until everything is served, and tell how it went."""
    producer = Producer({**kafka_client(config), "linger.ms": 20, "partitioner": PARTITIONER, "acks": "all",
                         "queue.buffering.max.messages": 1_000_000})  # fmt: skip
    topic = config.kafka.events_topic
    latency = Latency(config, f"bench-{os.getpid()}-{rate}")
    before, began = cpu_by_service(config), time.monotonic()
    generator = time.process_time()
    sent, marked, lags, sampled, keeps = 0, 0, [], 0.0, [kept(config)]
    checkpoints = [checkpoint(config)]
    first_ms = time.time_ns() // 1_000_000 - round(seconds * 1000) * (compress - 1)
    spike_at = (seconds / 2 - 30, seconds / 2 + 30) if spike > 1 else (0.0, 0.0)
    caught_up: float | None = None
    due = last = 0.0
    while (elapsed := time.monotonic() - began) < seconds:
        now_ms = first_ms + round(elapsed * 1000) * compress
        due += rate * (elapsed - last) * (spike if spike_at[0] <= elapsed < spike_at[1] else 1)
        last = elapsed
        while sent < due:
            vo = None
            if marked <= elapsed:
                marked += 1
                vo = f"{latency.name}-{marked}"
                latency.sent(vo)
            key, value = traffic.event(now_ms, vo)
            producer.produce(topic, value, key)
            sent += 1
            if sent % 1000 == 0:
                producer.poll(0)
        if elapsed - sampled >= SAMPLE_S:
            sampled = elapsed
            lags.append(lag_of(config))
            keeps.append(kept(config))
            if spike > 1 and elapsed > spike_at[1] and caught_up is None and lags[-1] < rate * 10:
                caught_up = elapsed - spike_at[1]
        producer.poll(0)
        time.sleep(max(0.0, began + (int(elapsed / TICK_S) + 1) * TICK_S - time.monotonic()))
    producer.flush(60)
    generator = time.process_time() - generator
    sending = time.monotonic() - began
    deadline = time.monotonic() + DRAIN_S
    while lag_of(config) and time.monotonic() < deadline:
        time.sleep(0.5)
    drained = time.monotonic() - began - sending
    latency.close(30)
    after = cpu_by_service(config)
    checkpoints.append(checkpoint(config))
    cpu = {name: after.get(name, 0.0) - before.get(name, 0.0) for name in before}
    half = len(lags) // 2
    early, late = statistics.median(lags[1:half] or [0]), statistics.median(lags[half:] or [0])
    found = latency.summary()
    return {
        "name": f"{rate} events/s"
        + (f", {spike} times that for a minute" if spike > 1 else "")
        + (f", clock {compress} times as fast" if compress > 1 else ""),
        "seconds": round(sending, 1),
        "events": sent,
        "sent_per_s": round(sent / sending),
        "events_per_s": round(sent / (sending + drained)),
        "drained_after_s": round(drained, 1),
        "lag_median_first_half": early,
        "lag_median_second_half": late,
        "lag_max": max(lags, default=0),
        "sustained": drained < 60 and late < max(2 * early, rate * 30),
        "caught_up_after_s": caught_up and round(caught_up, 1),
        "latency_p50_ms": found["p50_s"] and round(1000 * found["p50_s"]),
        "latency_p95_ms": found["p95_s"] and round(1000 * found["p95_s"]),
        "markers": found["markers"],
        "markers_lost": found["lost"],
        "searches_refused": found["refused"],
        "cpu_us_per_event": round(sum(cpu.values()) / sent * 1e6, 1),
        "cpu_us_by_service": {name: round(used / sent * 1e6, 1) for name, used in cpu.items()},
        "generator_cpu_us_per_event": round(generator / sent * 1e6, 1),
        "kept_mib": {name: [round(keep[name] / record.MIB) for keep in keeps[:: max(1, len(keeps) // 12)]]
                     for name in keeps[0]},
        "checkpoint_kib": [size >> 10 for size in checkpoints],
    }  # fmt: skip


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="gridstead.toml of the running appliance")
    parser.add_argument("--rates", default="250,1000,10000", help="events/s, one run each (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="length of each run (default: %(default)s)")
    parser.add_argument("--spike", type=int, default=1, help="factor of the rate for a minute in the middle")
    parser.add_argument("--compress", type=int, default=1, help="how many times as fast the events' clock runs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the dated JSON file goes")
    arguments = parser.parse_args()
    config = load(arguments.config)
    described = record.machine()
    traffic = Traffic(arguments.seed)
    results = []
    for rate in map(int, arguments.rates.split(",")):
        results.append(run_rate(config, traffic, rate, arguments.seconds, arguments.spike, arguments.compress))
        print(json.dumps(results[-1]), flush=True)
    if arguments.output:
        parameters = {"seconds": arguments.seconds, "spike": arguments.spike, "pairs": PAIRS, "files": FILES,
                      "users": USERS, "trigger_s": config.stream.trigger_s, "compress": arguments.compress,
                      "dedupe_horizon_s": config.stream.dedupe_horizon_s,
                      "statistics": list(config.stream.statistics)}  # fmt: skip
        print(record.write(arguments.output, "stream", described, parameters, results))
    return 0 if all(result["sustained"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
