"""The batch: a grid day from the archive on HDFS to documents in Elasticsearch, beside DuckDB on the same files.

Against a running appliance: ``python tests/bench/bench_batch.py --config FILE --events 20000000``. A made-up day (see
grid_day.py) is archived below a directory of its own on HDFS, and the product's batch merges its transfer statistics
into indices of their own ("1 day"; then one with fewer pairs of domains, so fewer documents). The same files are read
from this machine's disk to compare the computation alone: Spark and DuckDB in turn, and all statistics in one run against
a run for each. Last, ``--days`` gives the cost of 1, 7 and 30 days of ``--small`` events each. ``--parts`` runs some of
these three alone. Everything it made is deleted. Exit code 1 if Spark and DuckDB differ.

CPU is that of Spark's JVM and its Python together (proc(5)); Elasticsearch's stands beside it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import grid_day
import record
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from gridstead.archive.commits import Staging, new_token
from gridstead.archive.files import Files
from gridstead.archive.layout import COLUMNS, DAY_MS, PARQUET, row_day
from gridstead.archive.manifest import BATCH, Manifest
from gridstead.cli import supervision
from gridstead.config import Config, elasticsearch_client, load
from gridstead.jobs import session as jobs
from gridstead.jobs.batch import SETTINGS, Batch, batch_statistics
from gridstead.jobs.session import fingerprint, max_bins, serving_indices
from gridstead.serving import indices as serving
from gridstead.serving.elastic import ElasticStore
from gridstead.serving.transactions import Writer
from gridstead.statistic import STATISTICS

PREFIX = "gridstead-bench"
WAIT_S = 60.0


class Cost:
    """Seconds and CPU seconds of what runs inside a ``with``: Spark's JVM, this process, and Elasticsearch."""

    def __init__(self, spark: SparkSession, elastic_pid: int | None = None) -> None:
        """``elastic_pid``: the launcher of Elasticsearch, whose children count too."""
        jvm: Any = spark._jvm
        self._ours = [os.getpid(), int(jvm.java.lang.ProcessHandle.current().pid())]
        self._elastic = list(record.family(elastic_pid)) if elastic_pid else []
        self.seconds = self.cpu_s = self.elastic_s = 0.0

    def __enter__(self) -> Cost:
        self._began, self._before = time.monotonic(), (record.cpu_s(self._ours), record.cpu_s(self._elastic))
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began
        self.cpu_s, self.elastic_s = record.cpu_s(self._ours) - self._before[0], record.cpu_s(self._elastic) - self._before[1]

    def result(self, name: str, events: int, **more: Any) -> dict[str, Any]:
        """What tests/bench/record.py writes of one candidate."""
        resident = max(record.usage(pid).rss_bytes for pid in self._ours)
        return record.result(name, events, self.seconds, self.cpu_s, resident, **more)


def archive(spark: SparkSession, root: str, events: int, day: int = 0, peers: int = grid_day.PEERS) -> list[str]:
    """Archive one more made-up day as one commit, as compaction leaves it; returns the addresses of its files."""
    files = Files(spark, root)
    token = new_token(day + 1, day + 1, 1)
    staging = Staging(files, "write", token)
    shift = day * DAY_MS
    rows = grid_day.events(spark, events, peers)
    for name in ("start_ms", "end_ms", "received_ms"):
        rows = rows.withColumn(name, F.col(name) + shift)
    rows = rows.withColumn("timestamp", F.timestamp_millis(F.unix_millis("timestamp") + shift))
    if day:  # other accesses than the other days'
        access = F.lpad(F.lower(F.hex(F.xxhash64(F.substring("event_id", 1, 16), F.lit(day)))), 16, "0")
        rows = rows.withColumn("event_id", F.concat(access, F.substring("event_id", 17, 16)))
    rows = rows.withColumn("offset", F.col("offset") + day * events)
    dated = rows.withColumn("date", row_day())
    writer = dated.write.partitionBy("source", "date").options(**PARQUET).option("compression", "zstd")
    writer.parquet(files.url(staging.data))
    held, names = staging.staged()
    ranges = {grid_day.TOPIC: {part: (day * events, (day + 1) * events) for part in range(grid_day.PARTITIONS)}}
    ends = {grid_day.TOPIC: {part: (day + 1) * events for part in range(grid_day.PARTITIONS)}}
    committed_ms = grid_day.DAY_MS + (day + 1) * DAY_MS
    count = sum(file.rows for file in held)
    absent = grid_day.PARTITIONS * events - count
    staging.commit(Manifest(token, BATCH, committed_ms, count, held, ranges, ends, COLUMNS, absent=absent), names)
    return [files.url(name) for name in names]


def days_of(count: int) -> tuple[dt.date, dt.date]:
    """The first and the last of so many days; the long events of the first began the day before."""
    return grid_day.DAY - dt.timedelta(days=1), grid_day.DAY + dt.timedelta(days=count - 1)


@contextmanager
def served(config: Config, upto: dict[str, dict[int, int]]) -> Iterator[None]:
    """Indices of their own, as a stream leaves them that is at ``upto`` of the log and has counted nothing."""
    client = elasticsearch_client(config, request_timeout=60)
    store = ElasticStore(client, serving_indices(config))
    delete(client, store)
    serving.prepare_control(client, store.indices, WAIT_S)
    serving.serve(client, store.indices, 1, WAIT_S)
    Writer(store, "bench", fingerprint(config)).transact(upto, [])
    try:
        yield
    finally:
        delete(client, store)
        client.close()


def delete(client: Any, store: ElasticStore) -> None:
    """Delete the indices and templates of the benchmark."""
    serving.drop(client, store.indices, None, WAIT_S)
    client.indices.delete(index=store.indices.control, ignore_unavailable=True)
    client.options(ignore_status=404).indices.delete_index_template(name=store.indices.control)


def merge(
    spark: SparkSession, config: Config, name: str, days: int, per_day: int, which: Sequence[str], peers: int = grid_day.PEERS
) -> dict[str, Any]:
    """Archive so many days on HDFS, and let the batch bring them to Elasticsearch."""
    try:
        for day in range(days):
            archive(spark, config.stream.archive, per_day, day, peers)
        upto = {grid_day.TOPIC: {part: days * per_day for part in range(grid_day.PARTITIONS)}}
        elastic = next(service for service in supervision.services(config) if service.name == "elasticsearch")
        with served(config, upto):
            batch = Batch(config, spark, which)
            with Cost(spark, elastic.pid) as cost:
                summary = batch.merge(*days_of(days), False)
            batch.close()
        parts = {f"{part}_s": seconds for part, seconds in summary.seconds.items()}
        elastic_us = round(cost.elastic_s / (days * per_day) * 1e6, 1)
        return cost.result(name, days * per_day, documents=summary.merged.written, statistics=list(which),
                           elasticsearch_us_per_event=elastic_us, **parts)  # fmt: skip
    finally:
        Files(spark, config.stream.archive).delete("")


def compute(spark: SparkSession, config: Config, events: int, rounds: int, directory: Path) -> Iterator[dict[str, Any]]:
    """The computation alone, from files on this machine's disk: Spark and DuckDB in turn, then all statistics, and each alone."""
    paths = archive(spark, f"file://{directory}", events)
    pattern = str(Path(paths[0].removeprefix("file:")).parents[1] / "date=*" / "*.parquet")
    both = days_of(1)
    cap, bin_ms = max_bins(config), config.stream.bin_s * 1000

    def spark_run(name: str, which: tuple[str, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        with Cost(spark) as cost:
            tables = batch_statistics(spark, f"file://{directory}", *both, None, bin_ms, cap, which)
            sums = [table.agg(F.count(F.lit(1)), F.sum(F.col("values")[0]), F.sum(F.try_element_at("values", F.lit(3)))).collect()[0]
                    for table in tables.values()]  # fmt: skip
        return cost.result(name, events, documents=sum(found[0] for found in sums)), tuple(sums[0])

    for number in range(rounds):
        ours, sums = spark_run("Spark: transfers", ("transfers",))
        peer = json.loads(subprocess.run([sys.executable, str(Path(__file__).with_name("peer_duckdb.py")), pattern],
                                         check=True, capture_output=True, text=True).stdout)  # fmt: skip
        if sums != (peer["documents"], peer["active"], peer["bytes"]):
            raise SystemExit(f"Spark and DuckDB differ: {sums}, {peer}")
        theirs = record.result("DuckDB: transfers", events, peer["seconds"], peer["cpu_s"], peer["rss_bytes"],
                               documents=peer["documents"])  # fmt: skip
        for row in (ours, theirs):
            yield row | {"round": number + 1}
    yield spark_run("Spark: all statistics, doubles found once", tuple(STATISTICS))[0]
    for name in STATISTICS:
        if name != "transfers":
            yield spark_run(f"Spark: {name}", (name,))[0]


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="gridstead.toml of the running appliance")
    parser.add_argument("--events", type=int, default=20_000_000, help="events of the day (default: %(default)s)")
    parser.add_argument("--small", type=int, default=1_000_000, help="events of a day of many (default: %(default)s)")
    parser.add_argument("--parts", default="day,compute,days", help="what to run (default: %(default)s)")
    peers = f"{grid_day.PEERS},3"
    parser.add_argument("--peers", default=peers, help="a day for each: domains that read from one (default: %(default)s)")
    parser.add_argument("--days", default="1,7,30", help="how many of the many (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of Spark and DuckDB in turn (default: %(default)s)")
    parser.add_argument("--memory", default="3g", help="heap of Spark (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the dated JSON file goes")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := set(parts) - {"day", "compute", "days"}:
        parser.error(f"--parts: {', '.join(sorted(unknown))} is not among day, compute and days")
    found = load(arguments.config)
    config = replace(
        found,
        stream=replace(found.stream, archive=f"{found.stream.archive.rstrip('/')}-bench"),
        elasticsearch=replace(found.elasticsearch, index_prefix=PREFIX),
    )
    described = record.machine()
    spark = session(found, arguments.memory)
    results: list[dict[str, Any]] = []

    def note(row: dict[str, Any]) -> None:
        results.append(row)
        print(json.dumps(row), flush=True)

    if "day" in parts:
        for peers in map(int, arguments.peers.split(",")):
            name = "1 day" if peers == grid_day.PEERS else f"1 day, {peers} peers"
            note(merge(spark, config, name, 1, arguments.events, ("transfers",), peers))
    if "compute" in parts:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as directory:
            for row in compute(spark, config, arguments.events, arguments.rounds, Path(directory)):
                note(row)
    for days in arguments.days.split(",") if "days" in parts else ():
        name = f"{days} days" if int(days) > 1 else "1 day of few events"
        note(merge(spark, config, name, int(days), arguments.small, ("transfers",)))
    spark.stop()
    if arguments.output:
        parameters = {"events": arguments.events, "events_of_a_small_day": arguments.small, "memory": arguments.memory}
        print(record.write(arguments.output, "batch", described, parameters, results))
    return 0


def session(config: Config, memory: str) -> SparkSession:
    """A local session with the settings of the batch, on the appliance's HDFS."""
    os.environ["HADOOP_CONF_DIR"] = config.hadoop.conf_dir
    os.environ.setdefault("HADOOP_USER_NAME", Path(config.appliance.data_dir).owner())
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    os.environ["PYSPARK_SUBMIT_ARGS"] = (  # what has to be known before the JVM starts
        f"--driver-memory {memory} --driver-java-options -XX:-DontCompileHugeMethods "
        "--conf spark.ui.showConsoleProgress=false pyspark-shell"
    )
    spark = jobs.session("bench-batch", "local[2]", SETTINGS)
    spark.sparkContext.setLogLevel("ERROR")
    return spark


if __name__ == "__main__":
    sys.exit(main())
