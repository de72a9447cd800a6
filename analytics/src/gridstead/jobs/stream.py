"""The stream: one Spark application, two queries on the log of events, each with its own checkpoint and pace.

``archive`` writes every row of the log to HDFS (archive.py). ``transfers`` keeps the transfer statistics and writes
each changed document whole to Elasticsearch (sink.py).

How ``transfers`` stays exact. It is native stateful operators only: de-duplication by event_id, then one aggregation,
in update mode (Spark 4.0 allows this chain). State and positions are committed together by the checkpoint, so a
micro-batch that was killed between sink and commit is computed again from the same state and the same positions, and
writes the same absolute values under the same ids. The horizon of the de-duplication runs on the broker's clock (log
timestamps), never on the event's: a late event or a future clock evicts nothing. Rows older in the log than the
horizon would be dropped, so it must not be shorter than the topic's retention; then no row that is still in the log
can be older. The aggregate is never evicted: its state grows by one row of a few hundred bytes per key and bin, and
an event of any age finds its bin's count intact.

If either query dies the application exits with status 1, so that its supervisor starts it again; it waits for HDFS,
Kafka and Elasticsearch before it begins.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery

from gridstead import config as configuration
from gridstead.archive import ArchiveWriter, CheckpointLog, Files, Positions
from gridstead.jobs.session import kafka_source_options, log_to_stderr, session
from gridstead.schema import parse_events, well_formed
from gridstead.sink import ensure_templates, transfer_actions, write_actions
from gridstead.statistics import transfer_statistics

log = logging.getLogger("gridstead.stream")

DEDUPLICATION_HORIZON_S = 7 * 86_400
"""Kafka's default retention, see above; ``stream.dedupe_horizon_s`` overrides."""

STATE_PARTITIONS = 2
"""Parts of the state of each operator; fixed by the checkpoint once it is made."""

WAIT_S = 1800

SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.scheduler.mode": "FAIR",
    "spark.sql.shuffle.partitions": str(STATE_PARTITIONS),
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.streaming.stateStore.providerClass": (
        "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider"
    ),
    "spark.sql.streaming.stateStore.rocksdb.changelogCheckpointing.enabled": "true",
    "spark.sql.streaming.stateStore.rocksdb.boundedMemoryUsage": "true",
    "spark.sql.streaming.stateStore.rocksdb.maxMemoryUsageMB": "128",
    "spark.sql.streaming.minBatchesToRetain": "20",
    "spark.sql.streaming.numRecentProgressUpdates": "5",
    "spark.sql.streaming.noDataMicroBatches.enabled": "false",
    "spark.cleaner.periodicGC.interval": "10min",
}


def transfers(parsed: DataFrame, horizon_s: int, bin_ms: int, max_bins: int) -> DataFrame:
    """The statistics query: parsed rows of the log (a stream) -> transfer statistics, for update mode.

    ``horizon_s``: for how long, by log timestamps, an event_id is remembered.
    """
    events = well_formed(parsed).withWatermark("timestamp", f"{horizon_s} seconds")
    return transfer_statistics(events.dropDuplicatesWithinWatermark(["event_id"]), bin_ms, max_bins)


def kafka_rows(spark: SparkSession, client: Mapping[str, str], topic: str, max_offsets: int) -> DataFrame:
    """The log as a stream, from its beginning; a gap in it (retention passed us) stops the query instead of losing
    rows."""
    reader = spark.readStream.format("kafka").options(**kafka_source_options(client))
    return (
        reader.option("subscribe", topic)
        .option("startingOffsets", "earliest")
        .option("maxOffsetsPerTrigger", max_offsets)
        .option("failOnDataLoss", "true")
        .option("fetchOffset.numRetries", "10")
        .load()
    )


def _counted(parsed: DataFrame, name: str) -> DataFrame:
    """Count rows and malformed rows in the query's progress, without another pass."""
    return parsed.observe(name, F.count(F.lit(1)).alias("rows"), F.count("malformed").alias("malformed"))


class Status:
    """The last progress of the queries, as /health and /metrics.json show it. Thread-safe."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._lock = threading.Lock()
        self._started_ms = int(time.time() * 1000)
        self._queries: dict[str, dict[str, Any]] = {
            name: {"state": "starting", "rows": 0, "malformed": 0} for name in names
        }
        self._batches: dict[str, int] = {}

    def begin(self, name: str, positions: Positions) -> None:
        """A query runs from these positions."""
        with self._lock:
            offsets = {topic: {str(p): o for p, o in parts.items()} for topic, parts in positions.items()}
            self._queries[name].update(state="running", offsets=offsets)

    def update(self, name: str, progress: Mapping[str, Any], end: Positions | None) -> None:
        """Take over a query's last progress (Spark's JSON; empty before the first) and the log's present end offsets.

        ``end`` is None while Kafka does not answer; the last known then stands.
        """
        with self._lock:
            entry = self._queries[name]
            source = (progress.get("sources") or [{}])[0]
            offsets = source.get("endOffset") or entry.get("offsets") or {}
            entry["offsets"] = offsets
            if end is not None:
                entry["end_offsets"] = {topic: {str(p): o for p, o in parts.items()} for topic, parts in end.items()}
            latest = entry.get("end_offsets") or source.get("latestOffset") or {}
            entry["lag"] = sum(
                max(0, int(o) - int((offsets.get(topic) or {}).get(p, 0)))
                for topic, parts in latest.items()
                for p, o in parts.items()
            )
            entry["batch_id"] = progress.get("batchId")
            entry["updated_at"] = progress.get("timestamp")
            entry["input_rows"] = progress.get("numInputRows")
            entry["input_rows_per_s"] = progress.get("inputRowsPerSecond")
            entry["processed_rows_per_s"] = progress.get("processedRowsPerSecond")
            entry["batch_duration_ms"] = (progress.get("durationMs") or {}).get("triggerExecution")
            entry["duration_ms"] = progress.get("durationMs")
            operators = progress.get("stateOperators") or []
            entry["state_rows"] = {o["operatorName"]: o["numRowsTotal"] for o in operators}
            entry["dropped_by_horizon"] = entry.get("dropped_by_horizon", 0)
            if self._batches.get(name) != progress.get("batchId") and progress.get("numInputRows"):
                self._batches[name] = int(progress.get("batchId") or 0)
                observed = (progress.get("observedMetrics") or {}).get(name) or {}
                entry["rows"] += observed.get("rows", 0)
                entry["malformed"] += observed.get("malformed", 0)
                entry["dropped_by_horizon"] += sum(o.get("numRowsDroppedByWatermark", 0) for o in operators)

    def add(self, name: str, counts: Mapping[str, int]) -> None:
        """Add to the counters of a query."""
        with self._lock:
            for key, value in counts.items():
                self._queries[name][key] = self._queries[name].get(key, 0) + value

    def fail(self, name: str, reason: str) -> None:
        """Note that a query has died."""
        with self._lock:
            self._queries[name].update(state="failed", error=reason)

    def healthy(self) -> bool:
        """Whether every query runs."""
        with self._lock:
            return all(entry["state"] == "running" for entry in self._queries.values())

    def document(self) -> dict[str, Any]:
        """The content of /metrics.json; counters count since ``started_ms``."""
        with self._lock:
            queries = json.loads(json.dumps(self._queries))
        lags = [entry["lag"] for entry in queries.values() if "lag" in entry]
        return {"service": "stream", "started_ms": self._started_ms, "lag": max(lags, default=None), "queries": queries}


def serve_status(status: Status, bind: str, port: int) -> ThreadingHTTPServer:
    """Serve GET /health (200 or 503) and /metrics.json in a thread of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/health":
                healthy = status.healthy()
                self._answer(200 if healthy else 503, {"healthy": healthy})
            elif self.path == "/metrics.json":
                self._answer(200, status.document())
            else:
                self._answer(404, {"error": "try /health or /metrics.json"})

        def _answer(self, code: int, document: Mapping[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer((bind, port), Handler)
    threading.Thread(target=server.serve_forever, name="status", daemon=True).start()
    return server


def wait_for(what: str, attempt: Callable[[], None], deadline_s: float = WAIT_S, pause_s: float = 3.0) -> None:
    """Repeat an attempt until it does not raise; raises TimeoutError after the deadline. Says what it waits for."""
    since = time.monotonic()
    noted = -60.0
    while True:
        try:
            return attempt()
        except Exception as error:
            now = time.monotonic()
            reason = _brief(error)
            if now - since > deadline_s:
                raise TimeoutError(
                    f"{what} was not ready for {deadline_s:.0f} s ({reason}): see `gridstead doctor`"
                ) from error
            if now - noted >= 30:
                log.warning("waiting for %s: %s", what, reason)
                noted = now
            time.sleep(pause_s)


def _brief(error: BaseException) -> str:
    java = getattr(error, "java_exception", None)
    text = str(java) if java is not None else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:300]


class EndOffsets:
    """The end offsets of a topic, asked of Kafka at most once in ``interval_s``."""

    def __init__(self, client: Mapping[str, str], topic: str, interval_s: float = 2.0) -> None:
        from confluent_kafka import Consumer

        self._topic = topic
        self._interval_s = interval_s
        self._asked = float("-inf")
        self._last: Positions | None = None
        self._consumer = Consumer(
            {
                **client,
                "group.id": "gridstead-lag",
                "enable.auto.commit": False,
                "log_level": 2,
                "log.connection.close": False,
            }
        )

    def partitions(self, timeout_s: float = 5.0) -> list[int]:
        """The topic's partitions. Raises LookupError if there is no such topic, KafkaException if Kafka is away."""
        metadata = self._consumer.list_topics(self._topic, timeout=timeout_s).topics[self._topic]
        if metadata.error is not None:
            raise LookupError(f"topic {self._topic}: {metadata.error}")
        return sorted(metadata.partitions)

    def get(self) -> Positions | None:
        """topic -> partition -> end offset; None while Kafka does not answer."""
        from confluent_kafka import KafkaException, TopicPartition

        if time.monotonic() - self._asked >= self._interval_s:
            self._asked = time.monotonic()
            try:
                parts = self.partitions(2.0)
                ends = {
                    p: self._consumer.get_watermark_offsets(TopicPartition(self._topic, p), timeout=2.0)[1]
                    for p in parts
                }
                self._last = {self._topic: ends}
            except (KafkaException, LookupError):
                self._last = None
        return self._last


class Application:
    """The two queries with their status, from a configuration."""

    def __init__(self, cfg: configuration.Config, spark: SparkSession) -> None:
        self._cfg = cfg
        self._spark = spark
        self._client = configuration.kafka_client(cfg)
        self._status = Status(("archive", "transfers"))
        self._ends = EndOffsets(self._client, cfg.kafka.events_topic)
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ask :meth:`run` to stop the queries and return."""
        self._stop.set()

    def run(self) -> int:
        """Wait for the servers, run both queries, and return the exit status: 0 if stopped, 1 if a query died."""
        cfg = self._cfg.stream
        server = serve_status(self._status, "127.0.0.1", cfg.status_port) if cfg.status_port else None
        queries: dict[str, StreamingQuery] = {}
        try:
            self._wait_for_servers()
            queries["archive"] = self._archive()
            queries["transfers"] = self._transfers()
            log.info("archive and transfers run on topic %s", self._cfg.kafka.events_topic)
            return self._watch(queries)
        finally:
            for query in queries.values():
                try:
                    query.stop()
                except Exception as error:
                    log.warning("a query did not stop cleanly: %s", _brief(error))
            if server is not None:
                server.shutdown()

    def _wait_for_servers(self) -> None:
        cfg = self._cfg

        def hdfs() -> None:
            for directory in (cfg.stream.checkpoint, cfg.stream.archive):
                files = Files(self._spark, directory)
                files.mkdirs("")
                files.write(".ready", "")
                files.delete(".ready")

        def kafka() -> None:
            self._ends.partitions()

        wait_for(f"HDFS ({cfg.stream.checkpoint})", hdfs)
        wait_for(f"Kafka (topic {cfg.kafka.events_topic})", kafka)
        client = configuration.elasticsearch_client(cfg, request_timeout=30)
        elastic = cfg.elasticsearch
        ensure_templates(client, elastic.index_prefix, elastic.shards, elastic.replicas, WAIT_S)
        client.close()

    def _start(self, name: str, df: DataFrame, function: Callable[[DataFrame, int], None]) -> StreamingQuery:
        cfg = self._cfg.stream
        checkpoint = f"{cfg.checkpoint.rstrip('/')}/{name}"
        self._status.begin(name, CheckpointLog(self._spark, checkpoint).committed())
        self._spark.sparkContext.setLocalProperty("spark.scheduler.pool", name)
        writer = df.writeStream.queryName(name).outputMode("append" if name == "archive" else "update")
        return (
            writer.option("checkpointLocation", checkpoint)
            .trigger(processingTime=f"{cfg.trigger_s} seconds")
            .foreachBatch(function)
            .start()
        )

    def _rows(self, name: str) -> DataFrame:
        cfg = self._cfg
        raw = kafka_rows(self._spark, self._client, cfg.kafka.events_topic, cfg.stream.max_offsets_per_trigger)
        return _counted(parse_events(raw), name)

    def _archive(self) -> StreamingQuery:
        cfg = self._cfg.stream
        writer = ArchiveWriter(self._spark, cfg.archive, f"{cfg.checkpoint.rstrip('/')}/archive")

        def write(batch: DataFrame, batch_id: int) -> None:
            manifest = writer.write_batch(batch, batch_id)
            self._status.add("archive", {"files": len(manifest.files), "archived_rows": manifest.rows})

        return self._start("archive", self._rows("archive"), write)

    def _transfers(self) -> StreamingQuery:
        cfg = self._cfg
        settings = configuration.elasticsearch_settings(cfg)
        prefix = cfg.elasticsearch.index_prefix
        horizon = int(getattr(cfg.stream, "dedupe_horizon_s", DEDUPLICATION_HORIZON_S))
        statistics = transfers(self._rows("transfers"), horizon, cfg.stream.bin_s * 1000, max_bins(cfg))

        def write(batch: DataFrame, batch_id: int) -> None:
            result = write_actions(transfer_actions(batch, prefix), settings)
            self._status.add(
                "transfers", {"documents": result.written, "superseded": result.superseded, "retried": result.retried}
            )

        return self._start("transfers", statistics, write)

    def _watch(self, queries: Mapping[str, StreamingQuery]) -> int:
        while not self._stop.wait(1.0):
            for name, query in queries.items():
                if not query.isActive:
                    error = query.exception()
                    reason = _brief(error) if error is not None else "it ended without an error"
                    self._status.fail(name, reason)
                    log.error(
                        "query %s died, so the application ends (its supervisor starts it again): %s",
                        name,
                        _cause(error),
                    )
                    return 1
                progress = query.lastProgress
                self._status.update(name, json.loads(_json(progress)) if progress is not None else {}, self._ends.get())
        log.info("stopping")
        return 0


def max_bins(cfg: configuration.Config) -> int:
    """The cap of bins of one event, from stream.max_bin_days and stream.bin_s."""
    return max(1, cfg.stream.max_bin_days * 86_400 // cfg.stream.bin_s)


def _json(progress: Any) -> str:
    return progress.json if hasattr(progress, "json") else json.dumps(progress)


def _cause(error: BaseException | None) -> str:
    """The lines of a query's error that say what happened, in one line."""
    if error is None:
        return "no error"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "Exception" in line] or lines
    return " | ".join(telling[-3:])[:1500]


def _clean_scratch(directory: Path) -> None:
    """Remove what a killed run left in Spark's local directory; it belongs to this application alone."""
    if directory.is_dir():
        for child in directory.iterdir():
            shutil.rmtree(child, ignore_errors=True) if child.is_dir() else child.unlink(missing_ok=True)
    directory.mkdir(parents=True, exist_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the application."""
    parser = argparse.ArgumentParser(
        prog="gridstead-stream", description="Archive and transfer statistics of the log of events."
    )
    parser.add_argument(
        "--config", metavar="FILE", help="gridstead.toml (default: as found by every gridstead command)"
    )
    options = parser.parse_args(arguments)
    log_to_stderr("stream")
    try:
        cfg = configuration.load(options.config)
        scratch = Path(cfg.appliance.data_dir) / "stream" / "spark"
        _clean_scratch(scratch)
        spark = session("gridstead-stream", cfg.stream.master, {**SETTINGS, "spark.local.dir": str(scratch)})
        spark.sparkContext.setLogLevel("WARN")
        application = Application(cfg, spark)
    except configuration.ConfigError as error:
        log.error("%s", error)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: application.stop())
    try:
        return application.run()
    except Exception as error:
        log.error("the stream ends: %s", _cause(error))
        return 1
    finally:
        try:
            spark.stop()
        except Exception as error:
            log.warning("Spark did not stop cleanly: %s", _brief(error))


if __name__ == "__main__":
    sys.exit(main())
