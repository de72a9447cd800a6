"""Three ways to bring producers' messages to statistics, by where they are transformed (thesis ch. 3).

1. *In the pipeline*: messages are normalised, then stored. What is stored is what the archive holds; the messages as
   they came, and those that were refused, are gone (the product keeps the latter as dead letters).
2. *By a job*: messages are stored as they came, a job reads them, normalises them and stores the result beside them.
3. *In the analysis*: messages are stored as they came, and each analysis normalises what it reads.

The transformation is one and the same in all of them, the product's own: :func:`gridstead.events.normalise_json`, the
collector's Python code as the shared library, then :func:`gridstead.schema.parse_events`, the archive's parser of the
wire form. Python it stays inside Spark too (an ordinary UDF, a batch of rows at a time): the identity of an event is
a SHA-256 over a canonical JSON, and a second definition of it in Spark's expressions would be one too many. So the
ways differ in where the work is done, how often, and what is stored and read again; not in the work.

Layout of the output: ``raw/`` (ways 2 and 3), ``normalised/`` (ways 1 and 2), both in the format and codec chosen, and
``statistics/`` (Parquet): the transfer statistics of the distinct events, the same for all ways and formats.

The place of a message in the input stands for its position in the log: ``topic`` is the file's name, ``partition`` the
number of the 64 KiB block at which Spark began to read it, ``offset`` a number that grows with the lines from there.
Input files are text, one message a line, compressed or not.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import LongType, StringType, StructField, StructType

from gridstead import config as configuration
from gridstead import formats
from gridstead.events import ValidationError, encode_event
from gridstead.identity.batch import signed_events
from gridstead.jobs.session import log_to_stderr, session
from gridstead.jobs.usage import Usage, UsageMeter, stored
from gridstead.schema import EVENT, POSITION, parse_events
from gridstead.shares import BIN_MS, MAX_BINS
from gridstead.sources import normalise_json
from gridstead.statistics import statistics, typed

log = logging.getLogger("gridstead.ingest")

WAYS: Final = (1, 2, 3)
_BLOCK_BYTES: Final = 1 << 16
_ROW_IN_TASK: Final = (1 << 33) - 1  # the lower bits of monotonically_increasing_id

PLACE: Final = StructType(
    [*(POSITION[name] for name in ("topic", "partition", "offset")), StructField("timestamp_ms", LongType())]
)
"""schema.POSITION as it is stored: the time in ms, which every format writes alike."""

RAW: Final = StructType([*PLACE.fields, StructField("value", StringType()), StructField("value_base64", StringType())])
"""A message as it came. Its bytes are in ``value`` where they are UTF-8, else in ``value_base64``: no format changes
them."""

NORMALISED: Final = StructType([*EVENT.fields, *PLACE.fields])
"""An event as the archive holds it."""


@dataclass(frozen=True)
class Plan:
    """How to ingest: the way (1, 2, 3), and the format and codec of what is stored."""

    way: int
    format: str
    codec: str

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise formats.FormatError(f"{self.way} is no way to ingest: use one of {', '.join(map(str, WAYS))}")
        formats.codec_option(self.format, self.codec)


@dataclass(frozen=True)
class Stage:
    """One step: "store", "transform" or "analyse"; its time, what Spark used, and what it stored."""

    name: str
    seconds: float
    usage: Usage
    files: int
    stored_bytes: int


@dataclass
class Summary:
    """What a run did; printed as JSON. ``refused``: messages that are no events."""

    plan: Plan
    messages: int = 0
    refused: int = 0
    documents: int = 0
    stages: list[Stage] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Time of all steps together."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def stored_bytes(self) -> int:
        """Bytes stored before the analysis: the messages, the events, or both."""
        return sum(stage.stored_bytes for stage in self.stages if stage.name != "analyse")


def messages(spark: SparkSession, paths: Sequence[str], received_ms: int) -> DataFrame:
    """The lines of text files as messages received at one time: schema :data:`RAW`."""
    text = F.is_valid_utf8("value")
    block = F.call_function("div", F.col("_metadata.file_block_start"), F.lit(_BLOCK_BYTES).cast("long"))
    return spark.read.text(list(paths)).select(
        F.col("_metadata.file_name").alias("topic"),
        block.cast("int").alias("partition"),
        F.monotonically_increasing_id().bitwiseAND(F.lit(_ROW_IN_TASK)).alias("offset"),
        F.lit(received_ms).cast("long").alias("timestamp_ms"),
        F.when(text, F.col("value")).alias("value"),
        F.when(~text, F.base64(F.col("value").cast("binary"))).alias("value_base64"),
    )


def transform(raw: DataFrame) -> DataFrame:
    """Normalise messages (:data:`RAW`): columns of :data:`NORMALISED`, then ``malformed``, null where it is an event.

    Every message gives one row. Which field was wrong is the collector's to say; here ``malformed`` is only set.
    """
    value = F.coalesce(F.col("value").cast("binary"), F.unbase64("value_base64"))
    wire: Any = F.udf(_wire, StringType())
    placed = raw.select(
        wire(value, F.col("timestamp_ms")).alias("value"),
        *["topic", "partition", "offset"],
        F.timestamp_millis("timestamp_ms").alias("timestamp"),
    )
    parsed = parse_events(placed)
    ms = F.unix_millis("timestamp").alias("timestamp_ms")
    return parsed.select(*EVENT.names, "topic", "partition", "offset", ms, "malformed")


def analyse(normalised: DataFrame, bin_ms: int = BIN_MS, max_bins: int = MAX_BINS) -> DataFrame:
    """The transfer statistics of the distinct events of :data:`NORMALISED`."""
    timed = normalised.withColumn("timestamp", F.timestamp_millis("timestamp_ms")).drop("timestamp_ms")
    return typed(statistics(signed_events(timed), ["transfers"], bin_ms, max_bins), "transfers", bin_ms)


def run(
    spark: SparkSession,
    plan: Plan,
    paths: Sequence[str],
    output: str,
    received_ms: int,
    bin_ms: int = BIN_MS,
    max_bins: int = MAX_BINS,
) -> Summary:
    """Ingest the files into a new directory and compute its statistics."""
    return _Run(spark, plan, output).all(messages(spark, paths, received_ms), bin_ms, max_bins)


class _Run:
    """The steps of one run, in order, each measured."""

    def __init__(self, spark: SparkSession, plan: Plan, output: str) -> None:
        self._spark = spark
        self._plan = plan
        self._output = output.rstrip("/")
        self._meter = UsageMeter(spark)
        self._judged = Observation()
        self._summary = Summary(plan)

    def all(self, raw: DataFrame, bin_ms: int, max_bins: int) -> Summary:
        way = self._plan.way
        if way == 1:
            self._step("store", "normalised", lambda: self._store(self._events(raw), "normalised"))
        else:
            self._step("store", "raw", lambda: self._store(raw, "raw"))
        if way == 2:
            events = self._events(self._read("raw", RAW))
            self._step("transform", "normalised", lambda: self._store(events, "normalised"))
        source = self._events(self._read("raw", RAW)) if way == 3 else self._read("normalised", NORMALISED)
        computed = analyse(source, bin_ms, max_bins)
        self._step("analyse", "statistics", lambda: computed.write.parquet(f"{self._output}/statistics"))
        judged = self._judged.get
        self._summary.messages, self._summary.refused = judged["messages"], judged["refused"]
        self._summary.documents = self._spark.read.parquet(f"{self._output}/statistics").count()
        return self._summary

    def _events(self, raw: DataFrame) -> DataFrame:
        """Normalise, count what is refused on the way, and leave it out."""
        refused = F.count("malformed").alias("refused")
        counted = transform(raw).observe(self._judged, F.count(F.lit(1)).alias("messages"), refused)
        return counted.where(F.col("malformed").isNull()).select(*NORMALISED.names)

    def _store(self, frame: DataFrame, name: str) -> None:
        formats.write(frame, f"{self._output}/{name}", self._plan.format, self._plan.codec)

    def _read(self, name: str, schema: StructType) -> DataFrame:
        return formats.read(self._spark, f"{self._output}/{name}", schema, self._plan.format)

    def _step(self, name: str, directory: str, work: Callable[[], None]) -> None:
        self._meter.read()
        began = time.monotonic()
        work()
        seconds = time.monotonic() - began
        usage = self._meter.read()
        files, size = stored(self._spark, f"{self._output}/{directory}")
        self._summary.stages.append(Stage(name, seconds, usage, files, size))
        log.info("%s: %.1f s, %d tasks, %d bytes in %d files", name, seconds, usage.tasks, size, files)


def _wire(value: bytearray | None, received_ms: int) -> str | None:
    """The wire form of a message's event, None if it is refused."""
    if value is None:
        return None
    try:
        return encode_event(normalise_json(bytes(value), received_ms)).decode("ascii")
    except ValidationError:
        return None


def main(arguments: list[str] | None = None) -> int:
    """Entry point: exit status 0 done, 1 failed, 2 wrong use."""
    parser = argparse.ArgumentParser(prog="gridstead-ingest", description="Bring producers' messages to statistics.")
    parser.add_argument("--config", metavar="FILE", help="gridstead.toml (default: as found by every command)")
    parser.add_argument("--way", type=int, choices=WAYS, required=True, help="1: transform, then store; 2: store, "
                        "transform by a job, analyse; 3: store, transform inside the analysis")  # fmt: skip
    parser.add_argument("--format", choices=formats.FORMATS, default="parquet", help="default: %(default)s")
    parser.add_argument("--codec", choices=formats.CODECS, default="zstd", help="default: %(default)s")
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help="files of messages, one a line")
    parser.add_argument("--output", required=True, metavar="PATH", help="a directory that is not there yet")
    parser.add_argument("--received-ms", type=int, help="when the messages were received (default: now)")
    options = parser.parse_args(arguments)
    log_to_stderr("ingest")
    try:
        plan = Plan(options.way, options.format, options.codec)
        cfg = configuration.load(options.config)
    except (formats.FormatError, configuration.ConfigError) as error:
        log.error("%s", error)
        return 2
    bin_ms = cfg.stream.bin_s * 1000
    max_bins = max(1, cfg.stream.max_bin_days * 86_400 // cfg.stream.bin_s)
    received_ms = options.received_ms if options.received_ms is not None else int(time.time() * 1000)
    spark = session("gridstead-ingest", "local[*]", {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "16"})
    spark.sparkContext.setLogLevel("WARN")
    try:
        if stored(spark, options.output) != (0, 0):
            log.error("%s holds files already: give --output a directory that is not there", options.output)
            return 2
        summary = run(spark, plan, options.input, options.output, received_ms, bin_ms, max_bins)
        print(json.dumps(asdict(summary) | {"seconds": round(summary.seconds, 2)}), flush=True)
    finally:
        spark.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
