"""How fast Elasticsearch creates and answers documents of the transfer statistics (thesis table 4.2: 500,000 of them).

Against a running appliance: ``python tests/bench/bench_serving.py --config FILE --documents N --output DIR``. It uses
indices and a template of its own (``<index_prefix>-bench-…``), made by the product's store, and deletes them. A round
creates all documents in an empty index, writes them all once more (what a batch does to a served month), reads them all
as ``gridstead report`` does, and asks some times for sums by source and destination and by hour, as a dashboard does.
Given are the medians over the rounds, the least and the most; of the sums those of one search. Exit code 1 if a
document is missing or a sum is wrong.

The time is that of the requests: making the documents is left out. CPU is Elasticsearch's own (_nodes/stats).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics as measures
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

import record
from elastic_transport import TransportError
from elasticsearch import ApiError, Elasticsearch

from gridstead.cli import transfers
from gridstead.config import Config, ConfigError, elasticsearch_client, load
from gridstead.serving import indices as serving
from gridstead.serving.documents import Document, Version
from gridstead.serving.elastic import ElasticStore
from gridstead.serving.patience import ServingError
from gridstead.serving.store import Place, Write

BIN_MS = 600_000
FIRST_BIN_MS = 1_748_736_000_000
BINS = 30 * 144
CHUNK = 20_000
HOUR = "1h"
SEARCHES = 5
STATS_S = 1.1  # Elasticsearch looks at its process once a second
VOS = ("alice", "atlas", "cms", "dune", "lhcb")
SITES = tuple(f"site-{number:03d}.example" for number in range(170))


class Totals(NamedTuple):
    """What the documents must sum up to."""

    documents: int
    bytes: int


def document(number: int) -> tuple[Place, Document]:
    """The document of a number: keys differ, values are those of a statistic of 10 minutes."""
    chance = random.Random(number)
    vo = chance.choice(VOS)
    src, dst = chance.choices(SITES, k=2)
    end = FIRST_BIN_MS + (number % BINS + 1) * BIN_MS
    active = chance.randint(1, 40)
    names = {"vo": vo, "src": src, "dst": dst, "is_remote": src != dst, "is_transfer": False, "activity": "r"}
    values = (active, active // 2, chance.randint(0, 1 << 32), chance.randint(0, BIN_MS) * active, 0)
    key = f"{vo}|{src}|{dst}|{str(src != dst).lower()}|false|r|{end}|{number}"
    return Place(1, "transfers", key, end), Document(json.dumps(names, separators=(",", ":")), end, values, 1)


class Measured(NamedTuple):
    """One measured part: seconds, CPU seconds of Elasticsearch, and its heap in use afterwards."""

    seconds: float
    cpu_s: float
    heap_bytes: int


class Bench:
    """The rounds against one Elasticsearch."""

    def __init__(self, client: Elasticsearch, prefix: str, documents: int) -> None:
        self.client = client
        self.prefix = prefix
        self.indices = serving.Indices(prefix, BIN_MS)
        self.index = self.indices.alias("transfers")
        self.documents = documents
        self.versions: dict[Place, Version | None] = {}
        self.totals = Totals(documents, sum(document(number)[1].values[2] for number in range(documents)))

    def _node(self) -> tuple[float, int]:
        time.sleep(STATS_S)
        nodes = self.client.nodes.stats(metric="process,jvm")["nodes"].values()
        cpu = sum(node["process"]["cpu"]["total_in_millis"] for node in nodes) / 1000
        return cpu, sum(node["jvm"]["mem"]["heap_used_in_bytes"] for node in nodes)

    def measure(self, work: Callable[[], float], times: int) -> Measured:
        """Run a part, which returns the seconds of its requests, so many times; the result is that of one time."""
        before, _ = self._node()
        seconds = measures.median(work() for _ in range(times))
        after, heap = self._node()
        return Measured(seconds, (after - before) / times, heap)

    def write(self) -> float:
        """Write all documents whole, each on the condition that it is as it was, and make them visible."""
        store = ElasticStore(self.client, self.indices)
        seconds = 0.0
        for first in range(0, self.documents, CHUNK):
            made = [document(number) for number in range(first, min(first + CHUNK, self.documents))]
            writes = [Write(place, one, self.versions.get(place)) for place, one in made]
            began = time.monotonic()
            self.versions |= store.write(writes)
            seconds += time.monotonic() - began
        began = time.monotonic()
        self.client.indices.refresh(index=self.index)
        return seconds + time.monotonic() - began

    def read(self) -> float:
        """Read every document as ``gridstead report`` does, and sum."""
        began = time.monotonic()
        count = total = 0
        for found in transfers.documents(self.client, self.index, transfers.Selection()):
            count += 1
            total += int(found["bytes"])
        seconds = time.monotonic() - began
        self._check("read", Totals(count, total))
        return seconds

    def matrix(self) -> float:
        """Ask for the bytes by source and destination."""
        inner = {"dst": {"terms": {"field": "dst", "size": len(SITES)}, "aggs": {"bytes": {"sum": {"field": "bytes"}}}}}
        answer, seconds = self._aggregate({"src": {"terms": {"field": "src", "size": len(SITES)}, "aggs": inner}})
        cells = [cell for row in answer["src"]["buckets"] for cell in row["dst"]["buckets"]]
        self._check("matrix", self._sums(cells))
        return seconds

    def series(self) -> float:
        """Ask for the bytes of each hour by VO."""
        by_vo = {"vo": {"terms": {"field": "vo"}, "aggs": {"bytes": {"sum": {"field": "bytes"}}}}}
        hours = {"date_histogram": {"field": "bin_end_ms", "fixed_interval": HOUR}, "aggs": by_vo}
        answer, seconds = self._aggregate({"hours": hours})
        self._check("series", self._sums([one for hour in answer["hours"]["buckets"] for one in hour["vo"]["buckets"]]))
        return seconds

    def _aggregate(self, aggregations: dict[str, Any]) -> tuple[Any, float]:
        began = time.monotonic()
        answer = self.client.search(index=self.index, size=0, aggs=aggregations, request_cache=False)
        return answer["aggregations"], time.monotonic() - began

    @staticmethod
    def _sums(buckets: list[Any]) -> Totals:
        counted = sum(bucket["doc_count"] for bucket in buckets)
        return Totals(counted, sum(int(bucket["bytes"]["value"]) for bucket in buckets))  # each below 2**53: exact

    def _check(self, part: str, found: Totals) -> None:
        if found != self.totals:
            raise SystemExit(f"FAILED: {part} found {found}, and not {self.totals}")

    def size(self) -> int:
        """Bytes of the index on disk."""
        return int(self.client.indices.stats(index=self.index)["_all"]["primaries"]["store"]["size_in_bytes"])

    def prepare(self) -> None:
        """Begin with the template and no index."""
        self.delete()
        serving.serve(self.client, self.indices, 1, 60)

    def delete(self) -> None:
        """Delete what the benchmark made."""
        serving.drop(self.client, self.indices, None, 60)
        self.versions.clear()


PARTS = {"create": "create", "write": "write again", "read": "read all", "matrix": "matrix", "series": "series"}


def rounds(bench: Bench, repeat: int) -> tuple[dict[str, list[Measured]], int]:
    """Run all parts in turn, so many times; returns what each took, and the size of the index."""
    measured: dict[str, list[Measured]] = {part: [] for part in PARTS}
    size = 0
    for _ in range(repeat):
        bench.prepare()
        works = {"create": bench.write, "write": bench.write}
        works |= {"read": bench.read, "matrix": bench.matrix, "series": bench.series}
        for part, work in works.items():
            measured[part].append(bench.measure(work, SEARCHES if part in ("matrix", "series") else 1))
            if part == "create":
                size = bench.size()
    return measured, size


def condensed(part: str, runs: list[Measured], documents: int, **more: Any) -> dict[str, Any]:
    """The row of one part: the medians and the spread."""
    seconds = [one.seconds for one in runs]
    row = record.result(
        PARTS[part],
        documents,
        measures.median(seconds),
        measures.median(one.cpu_s for one in runs),
        0,
        seconds_least=round(min(seconds), 3),
        seconds_most=round(max(seconds), 3),
        heap_mib=round(max(one.heap_bytes for one in runs) / record.MIB),
        **more,
    )
    del row["rss_mib"]  # Elasticsearch tells its heap, not its resident size
    return row | {"seconds": round(measures.median(seconds), 3)}


def measure(config: Config, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the benchmark; returns a row a part."""
    client = elasticsearch_client(config, request_timeout=120)
    prefix = f"{config.elasticsearch.index_prefix}-bench"
    bench = Bench(client, prefix, arguments.documents)
    try:
        measured, size = rounds(bench, arguments.repeat)
        bench.delete()
    finally:
        client.close()
    return [condensed(part, runs, arguments.documents, index_bytes=size) for part, runs in measured.items()]


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="gridstead.toml of the running appliance")
    parser.add_argument("--documents", type=int, default=500_000, help="documents (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the dated JSON file goes")
    arguments = parser.parse_args()
    if min(arguments.documents, arguments.repeat) < 1:
        parser.error("--documents and --repeat must be at least 1")
    described = record.machine()
    try:
        rows = measure(load(arguments.config), arguments)
    except (ConfigError, ServingError, ApiError, TransportError) as error:
        print(f"bench_serving: {error}: is the appliance up? `gridstead status`", file=sys.stderr)
        return 1
    for row in rows:
        print(
            f"{row['name']:12} {row['seconds']:>8.3f} s ({row['seconds_least']:.3f} to {row['seconds_most']:.3f})"
            f" {row['events_per_s']:>9} documents/s {row['cpu_us_per_event']:>7} us CPU/document"
        )
    if arguments.output:
        parameters = {name: getattr(arguments, name) for name in ("documents", "repeat")}
        print(record.write(arguments.output, "serving", described, parameters, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
