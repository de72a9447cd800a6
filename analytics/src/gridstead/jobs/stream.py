"""The stream: one Spark application that archives the log and keeps the served statistics.

Query ``archive`` (Structured Streaming) writes every row of the log to HDFS; it is the only reader of the log. The
follower, in a thread of its own, takes what the archive has committed and adds it to the served documents
(follower.py). Elasticsearch may be away while the archive goes on; then the follower catches up.

Neither needs a checkpoint to be exact: the archive knows its positions by its manifests, the served documents by the
control record beside them. If either part dies the application exits with status 1, so that its supervisor starts it
again; it waits for HDFS, Kafka and Elasticsearch before it begins.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery

from gridstead import config as configuration
from gridstead.archive.files import Files
from gridstead.archive.increments import Increments
from gridstead.archive.manifest import Manifest, Positions
from gridstead.archive.reader import committed_positions, starting_offsets
from gridstead.archive.writer import ArchiveWriter
from gridstead.collector.status import serve
from gridstead.follower import ROWS_AT_ONCE, Follower
from gridstead.jobs.session import fingerprint, kafka_source_options, log_to_stderr, max_bins, serving_indices, session
from gridstead.jobs.status import Status
from gridstead.schema import parse_events
from gridstead.serving import indices as serving
from gridstead.serving.elastic import ElasticStore
from gridstead.serving.transactions import Writer

log = logging.getLogger("gridstead.stream")

WAIT_S = 1800
IDLE_S = 0.5
REST_S = 5.0
"""A follower that keeps up rests after a step for as long as it took, at most this: then the next step is larger, and
what a step costs besides its rows is paid less often."""
MANIFESTS = 1000
"""Commits that the archive may be ahead of the follower before it has to look them up."""

SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.scheduler.mode": "FAIR",
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "100000",
    "spark.sql.maxConcurrentOutputFileWriters": "20",
    "spark.sql.streaming.minBatchesToRetain": "20",
    "spark.sql.streaming.numRecentProgressUpdates": "5",
    "spark.sql.streaming.noDataMicroBatches.enabled": "false",
    "spark.cleaner.periodicGC.interval": "10min",
}


S3_CHECKPOINT = {
    "spark.sql.streaming.checkpointFileManagerClass": (
        "org.apache.spark.internal.io.cloud.AbortableStreamBasedCheckpointFileManager"
    )
}
"""How a checkpoint on an object store is written without renames."""


def kafka_rows(
    spark: SparkSession, client: Mapping[str, str], topic: str, max_offsets: int, start: str | None
) -> DataFrame:
    """The log as a stream; a gap in it (retention passed us) stops the query instead of losing rows.

    ``start``: Kafka's startingOffsets where there is no checkpoint; None: from the beginning.
    """
    reader = spark.readStream.format("kafka").options(**kafka_source_options(client))
    return (
        reader.option("subscribe", topic)
        .option("startingOffsets", start or "earliest")
        .option("maxOffsetsPerTrigger", max_offsets)
        .option("failOnDataLoss", "true")
        .option("fetchOffset.numRetries", "10")
        .load()
    )


def _counted(parsed: DataFrame) -> DataFrame:
    """Count rows and malformed rows in the query's progress, without another pass."""
    return parsed.observe("archive", F.count(F.lit(1)).alias("rows"), F.count("malformed").alias("malformed"))


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
    """The archive's query and the follower with their status, from a configuration."""

    def __init__(self, cfg: configuration.Config, spark: SparkSession) -> None:
        self._cfg = cfg
        self._spark = spark
        self._client = configuration.kafka_client(cfg)
        self._status = Status()
        self._ends = EndOffsets(self._client, cfg.kafka.events_topic)
        self._stop = threading.Event()
        self._committed: Positions = {}
        self._follower: threading.Thread | None = None
        self._manifests: deque[Manifest] = deque(maxlen=MANIFESTS)
        self._news = threading.Event()

    def stop(self) -> None:
        """Ask :meth:`run` to stop both parts and return."""
        self._stop.set()

    @property
    def follows(self) -> bool:
        """Whether the follower's thread is at work; after :meth:`run` it is where it waits for Elasticsearch."""
        return self._follower is not None and self._follower.is_alive()

    def run(self) -> int:
        """Wait for the servers, run both parts, and return the exit status: 0 if stopped, 1 if a part died."""
        cfg = self._cfg.stream
        server = self._serve(cfg.status_port) if cfg.status_port else None
        query: StreamingQuery | None = None
        try:
            self._wait_for_servers()
            self._committed = committed_positions(self._spark, cfg.archive)
            query = self._archive()
            self._follower = threading.Thread(target=self._follow, name="follower")
            self._follower.start()
            log.info("the archive and the statistics follow topic %s", self._cfg.kafka.events_topic)
            return self._watch(query, self._follower)
        finally:
            self._stop.set()
            self._news.set()
            if self._follower is not None:
                self._follower.join(30)
            if query is not None:
                try:
                    query.stop()
                except Exception as error:
                    log.warning("the archive's query did not stop cleanly: %s", _brief(error))
            if server is not None:
                server.shutdown()

    def _serve(self, port: int) -> ThreadingHTTPServer:
        pages = {
            "/health": lambda: (200 if self._status.healthy() else 503, {"healthy": self._status.healthy()}),
            "/metrics.json": lambda: (200, self._status.document()),
        }
        return serve(self._cfg.stream.bind, port, pages)

    def _wait_for_servers(self) -> None:
        cfg = self._cfg

        def storage() -> None:
            for directory in (cfg.stream.checkpoint, cfg.stream.archive):
                files = Files(self._spark, directory)
                files.mkdirs("")
                files.write(".ready", "")
                files.delete(".ready")

        def kafka() -> None:
            self._ends.partitions()

        wait_for(f"the storage ({cfg.stream.checkpoint}, {cfg.stream.archive})", storage)
        wait_for(f"Kafka (topic {cfg.kafka.events_topic})", kafka)

    def _archive(self) -> StreamingQuery:
        cfg = self._cfg
        checkpoint = f"{cfg.stream.checkpoint.rstrip('/')}/archive"
        writer = ArchiveWriter(self._spark, cfg.stream.archive, checkpoint)
        start = starting_offsets(self._spark, cfg.stream.archive)
        raw = kafka_rows(self._spark, self._client, cfg.kafka.events_topic, cfg.stream.max_offsets_per_trigger, start)

        def write(batch: DataFrame, batch_id: int) -> None:
            manifest = writer.write_batch(batch, batch_id)
            self._status.archived(len(manifest.files), manifest.rows)
            self._manifests.append(manifest)
            self._committed = manifest.positions
            self._news.set()

        self._status.begin("archive", self._committed)
        self._spark.sparkContext.setLocalProperty("spark.scheduler.pool", "archive")
        return (
            _counted(parse_events(raw))
            .writeStream.queryName("archive")
            .option("checkpointLocation", checkpoint)
            .trigger(processingTime=f"{cfg.stream.trigger_s} seconds")
            .foreachBatch(write)
            .start()
        )

    def _follow(self) -> None:
        """The follower's thread: until stopped, or until an error ends it (and with it the application)."""
        try:
            self._spark.sparkContext.setLocalProperty("spark.scheduler.pool", "statistics")
            increments = Increments(self._spark, self._cfg.stream.archive)
            follower = self._open_follower(increments)
            try:
                self._status.begin("statistics", follower.positions)
                while not self._stop.is_set():
                    self._news.clear()
                    while self._manifests:
                        increments.add(self._manifests.popleft())
                    step = follower.step(self._committed)
                    if step is None:
                        self._news.wait(IDLE_S)
                    else:
                        self._status.step(follower.positions, step)
                        if step.rows < ROWS_AT_ONCE // 2:
                            self._stop.wait(min(sum(step.seconds.values()), REST_S))
            finally:
                follower.close()
        except Exception as error:
            if not self._stop.is_set():
                self._status.fail("statistics", _brief(error))
                log.error("the statistics stop, so the application ends: %s", _cause(error), exc_info=error)

    def _open_follower(self, increments: Increments) -> Follower:
        cfg = self._cfg
        client = configuration.elasticsearch_client(cfg, request_timeout=60)
        store = ElasticStore(client, serving_indices(cfg))
        serving.prepare_control(client, store.indices, WAIT_S)
        found = store.read_control()
        serving.serve(client, store.indices, found[0].generation if found is not None else 1, WAIT_S)
        writer = Writer(store, f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}", fingerprint(cfg))
        return Follower(
            self._spark,
            increments,
            writer,
            Path(cfg.appliance.data_dir) / "stream" / "identity.sqlite",
            cfg.stream.dedupe_horizon_s * 1000,
            cfg.stream.bin_s * 1000,
            max_bins(cfg),
            cfg.stream.statistics,
        )

    def _watch(self, query: StreamingQuery, follower: threading.Thread) -> int:
        while not self._stop.wait(1.0):
            if not query.isActive:
                error = query.exception()
                self._status.fail("archive", _brief(error) if error is not None else "it ended without an error")
                log.error(
                    "the archive's query died, so the application ends (its supervisor starts it again): %s",
                    _cause(error),
                )
                return 1
            if not follower.is_alive():
                return 1
            progress = query.lastProgress
            if progress is not None:
                self._status.progress(json.loads(_json(progress)))
            self._status.ends(self._ends.get())
        log.info("stopping")
        return 0


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
        prog="gridstead-stream", description="Archive and statistics of the log of events."
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
        settings = {**SETTINGS, "spark.local.dir": str(scratch)}
        if cfg.stream.checkpoint.startswith("s3a:"):
            settings |= S3_CHECKPOINT
        spark = session("gridstead-stream", cfg.stream.master, settings)
        spark.sparkContext.setLogLevel("WARN")
        application = Application(cfg, spark)
    except configuration.ConfigError as error:
        log.error("%s", error)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: application.stop())
    status = 1
    try:
        status = application.run()
    except Exception as error:
        log.error("the stream ends: %s", _cause(error))
    try:
        spark.stop()
    except Exception as error:
        log.warning("Spark did not stop cleanly: %s", _brief(error))
    if application.follows:  # its next start finds what it has begun
        log.warning("the statistics wait for Elasticsearch; the application ends without them")
        logging.shutdown()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
