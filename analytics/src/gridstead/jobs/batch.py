"""The batch: transfer statistics of a range of days, from the archive to Elasticsearch (or to Parquet).

It counts the distinct events of the archive as committed when it starts; what is committed later, and what the log
holds beyond the archive, it has not seen. Since a document's version is the number of events counted (sink.py), it
overwrites nothing that has seen more. An event is archived by the day on which it ended and may touch earlier bins,
so the days read are [from, to + cap]. An event whose clock was clamped can come again with another end: such events
are also looked up in the days before, and only the first in the log counts.

``--rebuild`` makes the serving layer equal to the archive over the range: it also deletes documents that the batch
does not have, and lowers those that have counted more than it. Both only where it is proved that the document holds
nothing newer than the archive: its ``update_time`` (latest log timestamp counted) is before the timestamp of the
first record of the log that is not archived, asked of Kafka after the documents were read. The broker stamps the
records (LogAppendTime), so later ones cannot be earlier. Where Kafka does not answer nothing is deleted, and the exit
status says so.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from gridstead import config as configuration
from gridstead.archive import Positions, committed_positions, distinct_events, read_events
from gridstead.jobs.session import log_to_stderr, session
from gridstead.jobs.stream import max_bins
from gridstead.sink import Written, ensure_templates, patient, transfer_actions, transfers_index, write_actions
from gridstead.statistics import transfer_statistics

log = logging.getLogger("gridstead.batch")

DAY_MS: Final = 86_400_000
CLAMPED_LOOKBACK_DAYS: Final = 8
"""How long after an event with a clamped clock the same event may come again with another end (the horizon of the
stream)."""

DOCUMENTS_AT_ONCE: Final = 200_000
"""How many documents a rebuild compares in one go; a few hundred bytes each in the driver."""

EVERYTHING_ARCHIVED: Final = (1 << 63) - 1

_EXISTING = "key string, index string, version long, seq_no long, primary_term long, update_time long"


@dataclass
class Summary:
    """What a batch did; printed as JSON. ``unproven``: documents left alone since they may hold newer events."""

    first_day: str
    last_day: str
    documents: int = 0
    written: Written = field(default_factory=Written)
    deleted: int = 0
    lowered: int = 0
    unproven: int = 0
    seconds: float = 0.0


def batch_statistics(
    spark: SparkSession, root: str, first_day: dt.date, last_day: dt.date, bin_ms: int, max_bins: int
) -> DataFrame:
    """Transfer statistics of the bins that begin on these days (UTC, both included), from the archive at ``root``."""
    low, high = _midnight_ms(first_day), _midnight_ms(last_day + dt.timedelta(days=1))
    cap_days = math.ceil(max_bins * bin_ms / DAY_MS)
    lookback = first_day - dt.timedelta(days=CLAMPED_LOOKBACK_DAYS)
    archived = read_events(spark, root, lookback, last_day + dt.timedelta(days=cap_days))
    wanted = archived.where((F.col("date") >= F.lit(first_day)) | F.col("clock_clamped"))
    statistics = transfer_statistics(distinct_events(wanted), bin_ms, max_bins)
    start = F.col("bin_end_ms") - F.col("bin_ms")
    return statistics.where((start >= low) & (start < high))


def first_unarchived_ms(
    client: Mapping[str, str], topic: str, archived: Positions, timeout_s: float = 30.0
) -> int | None:
    """The earliest log timestamp (ms) among the first records of each partition that the archive does not have.

    :data:`EVERYTHING_ARCHIVED` if there is no such record; None if Kafka did not say within the time.
    """
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    settings = {
        "group.id": "gridstead-batch",
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "log_level": 2,
    }
    consumer = Consumer({**client, **settings})
    try:
        metadata = consumer.list_topics(topic, timeout=timeout_s).topics[topic]
        if metadata.error is not None:
            return None
        known = archived.get(topic, {})
        waiting = {}
        for partition in metadata.partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=timeout_s)
            position = max(low, known.get(partition, 0))
            if position < high:
                waiting[partition] = position
        earliest = EVERYTHING_ARCHIVED
        consumer.assign([TopicPartition(topic, partition, offset) for partition, offset in waiting.items()])
        deadline = time.monotonic() + timeout_s
        while waiting:
            message = consumer.poll(max(0.0, deadline - time.monotonic()))
            if message is None:
                return None
            partition = message.partition()
            if message.error() is not None or partition is None or partition not in waiting:
                continue
            del waiting[partition]
            earliest = min(earliest, message.timestamp()[1])
            consumer.incremental_unassign([TopicPartition(topic, partition)])
        return earliest
    except KafkaException as error:
        log.warning("Kafka did not answer: %s", error)
        return None
    finally:
        consumer.close()


def documents_of(client: Any, index: str, low_ms: int, high_ms: int, bin_ms: int) -> Iterator[tuple[Any, ...]]:
    """The documents whose bin begins in [low, high): key, index, version, seq_no, primary_term, update_time."""
    from elasticsearch import helpers

    query = {"range": {"bin_end_ms": {"gt": low_ms, "lte": high_ms + DAY_MS}}}
    found = helpers.scan(
        client,
        index=index,
        query={
            "query": query,
            "_source": ["update_time", "bin_end_ms", "bin_ms"],
            "version": True,
            "seq_no_primary_term": True,
        },
        size=5000,
        ignore_unavailable=True,
        allow_no_indices=True,
    )
    for hit in found:
        source = hit["_source"]
        start = int(source["bin_end_ms"]) - int(source.get("bin_ms") or bin_ms)
        if low_ms <= start < high_ms:
            update_time = source.get("update_time")
            yield (hit["_id"], hit["_index"], hit["_version"], hit["_seq_no"], hit["_primary_term"], update_time)


class Batch:
    """One run over a range of days (UTC, both included)."""

    def __init__(self, cfg: configuration.Config, spark: SparkSession, first_day: dt.date, last_day: dt.date) -> None:
        self._cfg = cfg
        self._spark = spark
        self._first = first_day
        self._last = last_day
        self._bin_ms = cfg.stream.bin_s * 1000
        self.summary = Summary(first_day.isoformat(), last_day.isoformat())

    def statistics(self) -> DataFrame:
        """The statistics of the range."""
        cfg = self._cfg
        return batch_statistics(self._spark, cfg.stream.archive, self._first, self._last, self._bin_ms, max_bins(cfg))

    def to_parquet(self, path: str) -> None:
        """Write the statistics as Parquet; an existing directory is replaced."""
        self.statistics().write.mode("overwrite").parquet(path)
        self.summary.documents = self._spark.read.parquet(path).count()

    def to_elasticsearch(self, rebuild: bool) -> bool:
        """Write the statistics; false if a rebuild could not prove what it was to delete."""
        cfg = self._cfg
        elastic = cfg.elasticsearch
        settings = configuration.elasticsearch_settings(cfg)
        client = configuration.elasticsearch_client(cfg, request_timeout=60)
        try:
            ensure_templates(client, elastic.index_prefix, elastic.shards, elastic.replicas)
            positions = committed_positions(self._spark, cfg.stream.archive)
            statistics = self.statistics().persist(StorageLevel.MEMORY_AND_DISK)
            self.summary.documents = statistics.count()
            self.summary.written = write_actions(transfer_actions(statistics, elastic.index_prefix), settings)
            return self._reconcile(client, settings, statistics, positions) if rebuild else True
        finally:
            client.close()

    def _reconcile(self, client: Any, settings: Mapping[str, Any], statistics: DataFrame, positions: Positions) -> bool:
        index = transfers_index(self._cfg.elasticsearch.index_prefix)
        patient(lambda: client.indices.refresh(index=index, ignore_unavailable=True), "refresh the indices")
        low, high = _midnight_ms(self._first), _midnight_ms(self._last + dt.timedelta(days=1))
        complete = True
        found = documents_of(client, index, low, high, self._bin_ms)
        while rows := list(itertools.islice(found, DOCUMENTS_AT_ONCE)):
            newest = first_unarchived_ms(configuration.kafka_client(self._cfg), self._cfg.kafka.events_topic, positions)
            complete &= self._reconcile_part(self._spark.createDataFrame(rows, _EXISTING), settings, statistics, newest)
        return complete

    def _reconcile_part(
        self, existing: DataFrame, settings: Mapping[str, Any], statistics: DataFrame, newest: int | None
    ) -> bool:
        right = statistics.select("key", "active")
        wrong = existing.join(right, "key", "left").where(
            F.col("active").isNull() | (F.col("version") > F.col("active"))
        )
        proved = F.coalesce(
            F.col("update_time") < F.lit(newest), F.col("update_time").isNull() & F.lit(newest is not None)
        )
        judged = wrong.withColumn("proved", F.coalesce(proved, F.lit(False))).persist()
        counts = {(row["proved"], row["extra"]): row["n"] for row in judged.groupBy(
            "proved", F.col("active").isNull().alias("extra")).agg(F.count(F.lit(1)).alias("n")).collect()}  # fmt: skip
        unproven = counts.get((False, True), 0) + counts.get((False, False), 0)
        self.summary.unproven += unproven
        if counts.get((True, True), 0) + counts.get((True, False), 0) > 0:
            gone = write_actions(_deletions(judged.where("proved")), settings)
            self.summary.deleted += gone.deleted
            again = judged.where(F.col("proved") & F.col("active").isNotNull()).select("key")
            if counts.get((True, False), 0) > 0:
                time.sleep(1.0)  # until the deleted versions are forgotten (index.gc_deletes 0, a clock of 200 ms)
                actions = transfer_actions(
                    statistics.join(again, "key", "left_semi"), self._cfg.elasticsearch.index_prefix
                )
                lowered = write_actions(actions, settings)
                self.summary.lowered += lowered.written
                self.summary.deleted -= lowered.written
        judged.unpersist()
        return unproven == 0 or newest is not None


def _deletions(judged: DataFrame) -> DataFrame:
    header = F.struct(
        F.col("index").alias("_index"),
        F.col("key").alias("_id"),
        F.col("seq_no").alias("if_seq_no"),
        F.col("primary_term").alias("if_primary_term"),
    )
    return judged.select(
        F.to_json(F.struct(header.alias("delete"))).alias("action"), F.lit(None).cast("string").alias("source")
    )


def _midnight_ms(day: dt.date) -> int:
    return int(dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC).timestamp()) * 1000


def main(arguments: list[str] | None = None) -> int:
    """Entry point: exit status 0 done, 1 failed, 2 wrong use, 3 rebuilt but some documents could not be proved old."""
    parser = argparse.ArgumentParser(
        prog="gridstead-batch", description="Transfer statistics of a range of days, from the archive."
    )
    parser.add_argument(
        "--config", metavar="FILE", help="gridstead.toml (default: as found by every gridstead command)"
    )
    parser.add_argument(
        "--from",
        dest="first",
        metavar="DAY",
        required=True,
        type=dt.date.fromisoformat,
        help="first day, YYYY-MM-DD, UTC",
    )
    parser.add_argument(
        "--to", dest="last", metavar="DAY", required=True, type=dt.date.fromisoformat, help="last day, included"
    )
    parser.add_argument("--rebuild", action="store_true", help="also delete or lower what the archive does not have")
    parser.add_argument("--output", metavar="PATH", help="write Parquet to this path on HDFS instead of Elasticsearch")
    options = parser.parse_args(arguments)
    if options.first > options.last:
        parser.error(f"--from {options.first} is after --to {options.last}")
    if options.rebuild and options.output:
        parser.error("--rebuild writes to Elasticsearch, --output does not: give one of them")
    log_to_stderr("batch")
    try:
        cfg = configuration.load(options.config)
    except configuration.ConfigError as error:
        log.error("%s", error)
        return 2
    began = time.monotonic()
    spark = session("gridstead-batch", "local[*]", {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "16"})
    spark.sparkContext.setLogLevel("WARN")
    try:
        batch = Batch(cfg, spark, options.first, options.last)
        complete = True
        if options.output:
            batch.to_parquet(options.output)
        else:
            complete = batch.to_elasticsearch(options.rebuild)
        batch.summary.seconds = round(time.monotonic() - began, 1)
        print(json.dumps(asdict(batch.summary)), flush=True)
    finally:
        spark.stop()
    if not complete:
        log.error(
            "%d documents may hold events that are not in the archive, since Kafka did not answer: "
            "see `gridstead doctor`, then rebuild again", batch.summary.unproven,
        )  # fmt: skip
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
