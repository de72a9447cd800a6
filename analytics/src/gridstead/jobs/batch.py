"""The batch: statistics of a range of days from the archive, merged into what is served (or written as Parquet).

A batch notes in the control record that it begins; its cut is a place between two transactions of the stream, so a set
of positions of the log. It counts the distinct events of the archive below the cut, and every document of its range
becomes what it has counted plus what was streamed since (serving/merge.py). So it may run at any time beside the
stream, be killed, and be run again.

``--fresh`` counts all days into a new generation of indices, which readers see in one step when it is whole.

An event is archived by the day on which it ended and may touch earlier bins, so the days read are all from the first
one on. An event whose clock was clamped can come again with another end: such events are also looked up in the days
before.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import logging
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from gridstead import config as configuration
from gridstead.archive.files import Files
from gridstead.archive.layout import DAY_MS, day_text
from gridstead.archive.manifest import ArchiveError, Positions
from gridstead.archive.reader import committed_positions, days, expired_before, read_events
from gridstead.follower import collect_deltas, is_beyond
from gridstead.identity.batch import signed_events
from gridstead.jobs.session import fingerprint, log_to_stderr, max_bins, serving_indices, session
from gridstead.jobs.usage import executors
from gridstead.serving import indices as serving
from gridstead.serving.control import (
    BatchRun,
    ControlError,
    Point,
    abandon_batch,
    beat,
    begin_batch,
    check_definitions,
    end_batch,
)
from gridstead.serving.documents import Delta
from gridstead.serving.elastic import ElasticStore
from gridstead.serving.merge import Merged, await_cut, merge_slice
from gridstead.serving.patience import ServingError
from gridstead.serving.retention import served_from
from gridstead.statistic import STATISTICS
from gridstead.statistics import statistics, typed

log = logging.getLogger("gridstead.batch")

CLAMPED_LOOKBACK_DAYS: Final = 8
"""How long after an event with a clamped clock the same event may come again with another end."""
BEAT_S: Final = 15.0
WAIT_S: Final = 900.0
DOCUMENTS_AT_ONCE: Final = 50_000
"""Documents that are merged at once: what an executor sends and the driver holds, about 1 KB each."""
TELL_S: Final = 10.0
READERS_S: Final = 10.0
"""For how long after a rebuild the former indices stay, for searches that are under way in them."""

STAGING: Final = "batch"
"""The directory of the archive in which results wait to be merged, by the run of the batch."""

STAGED: Final = "key string, bin_end_ms bigint, dimensions string, `values` array<bigint>, statistic string"
"""gridstead.statistics.statistics as it is kept between computing and merging, by directories of ``statistic``."""

SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "16",
    # joined by their bytes, partitions of many short keys outgrow the hash map and are sorted on disk
    "spark.sql.adaptive.coalescePartitions.enabled": "false",
    # far more keys than a first, small hash map holds: nearly each row would be looked up in two
    "spark.sql.codegen.aggregate.map.twolevel.enabled": "false",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "100000",
}


@dataclass
class Summary:
    """What a batch did; printed as JSON."""

    first_day: str
    last_day: str
    positions: Positions
    merged: Merged = field(default_factory=Merged)
    seconds: dict[str, float] = field(default_factory=dict)
    executors: list[str] = field(default_factory=list)
    """The host of each executor at the end; none in local mode."""


def batch_statistics(
    spark: SparkSession,
    root: str,
    first_day: dt.date,
    last_day: dt.date,
    upto: Positions | None,
    bin_ms: int,
    max_bins: int,
    which: Sequence[str] = tuple(STATISTICS),
) -> dict[str, DataFrame]:
    """Statistics of the bins that begin on these days (UTC, both included), of the archive's rows below ``upto``.

    By name, each with the schema of gridstead.statistics.statistics. Which accesses have several rows is found once for
    all of them, at once; apart from that they are cheaper one after the other than in one pass (decision 9).
    """
    low, high = midnight_ms(first_day), midnight_ms(last_day + dt.timedelta(days=1))
    lookback = first_day - dt.timedelta(days=CLAMPED_LOOKBACK_DAYS)
    archived = read_events(spark, root, lookback, dt.date.max, upto)
    wanted = archived.where((F.col("date") >= F.lit(first_day)) | F.col("clock_clamped"))
    signed = signed_events(wanted)
    start = F.col("bin_end_ms") - F.lit(bin_ms)
    return {name: statistics(signed, [name], bin_ms, max_bins).where((start >= low) & (start < high)) for name in which}


class Batch:
    """One run over a range of days, or over all of them into a fresh generation of indices."""

    def __init__(
        self, cfg: configuration.Config, spark: SparkSession, which: Sequence[str] = tuple(STATISTICS)
    ) -> None:
        """``which`` of :data:`gridstead.statistic.STATISTICS`; served are always all, a benchmark measures one."""
        self._which = tuple(which)
        self._cfg = cfg
        self._spark = spark
        self._archive = cfg.stream.archive
        self._bin_ms = cfg.stream.bin_s * 1000
        self._client = configuration.elasticsearch_client(cfg, request_timeout=60)
        self._store = ElasticStore(self._client, serving_indices(cfg))

    def all_days(self) -> tuple[dt.date, dt.date]:
        """The days whose bins the archive's events may touch. Raises ControlError for an empty archive."""
        held = days(self._spark, self._archive)
        if held is None:
            raise ControlError(f"the archive {self._archive} has no events yet: see `gridstead status`")
        first = self._given_up() or held[0] - dt.timedelta(days=self._cfg.stream.max_bin_days + 1)
        return max(first, self._served_from()), held[1] + dt.timedelta(days=1)

    def _given_up(self) -> dt.date | None:
        """The day before which retention has given up all events; None if it has given up none."""
        horizon = expired_before(Files(self._spark, self._archive)).events
        return dt.date.fromisoformat(horizon) if horizon else None

    def _check_days(self, first: dt.date, fresh: bool, forget: bool) -> None:
        """Refuse what would delete served documents whose events retention has given up. Raises ControlError."""
        begin = self._given_up()
        if begin is None or forget:
            return
        lost = f"the archive holds no events of days before {begin}, which retention has given up"
        if not fresh and first < begin:
            raise ControlError(f"{lost}; what is served of them would be deleted. Next: --from {begin}")
        if fresh and self._serves_before(begin):
            raise ControlError(
                f"{lost}; a rebuild would end what is served of them. Next: `gridstead batch run --from {begin} "
                "--to today` makes the other days anew, `gridstead rebuild --forget` all, without those"
            )

    def _served_from(self) -> dt.date:
        """The first day of which bins are served."""
        found = self._store.read_control()
        return (served_from(found[0]) if found is not None else None) or dt.date.min

    def _check_served(self, first: dt.date) -> None:
        """Refuse to bring back what retention has given up. Raises ControlError."""
        begin = self._served_from()
        if first < begin:
            raise ControlError(
                f"nothing is served of days before {begin}, which retention has given up "
                f"(elasticsearch.retention_months). Next: --from {begin}, or --output for a file; a rebuild once more"
            )

    def _serves_before(self, day: dt.date) -> bool:
        found = self._store.read_control()
        generation = found[0].generation if found is not None else 1
        return any(self._store.days(generation, name, 0, midnight_ms(day)) for name in STATISTICS)

    def to_parquet(self, first: dt.date, last: dt.date, path: str) -> Summary:
        """Write the statistics as typed Parquet, a directory a statistic; existing ones are replaced."""
        began = time.monotonic()
        summary = Summary(first.isoformat(), last.isoformat(), committed_positions(self._spark, self._archive))
        for name, computed in self._compute(first, last, summary.positions).items():
            url = f"{path.rstrip('/')}/{name}"
            typed(computed, name, self._bin_ms).write.mode("overwrite").parquet(url)
            summary.merged.computed += self._spark.read.parquet(url).count()
        summary.seconds["compute"] = round(time.monotonic() - began, 1)
        return summary

    def merge(self, first: dt.date, last: dt.date, fresh: bool, forget: bool = False) -> Summary:
        """Compute and merge. Raises ControlError or ServingError with what to do.

        ``forget``: also where documents are served whose events the archive holds no more.
        """
        began = time.monotonic()
        generation = 0 if fresh else 1  # begin_batch puts the right one
        wanted = BatchRun(uuid.uuid4().hex[:12], Point(0, {}), generation, first.isoformat(), last.isoformat(), 0)
        self._check_definitions()
        self._check_days(first, fresh, forget)
        if fresh:
            serving.prepare(self._client, self._store.indices, None, WAIT_S)
        run = begin_batch(self._store, wanted, now_ms()).batch
        assert run is not None
        log.info("batch %s over %s to %s, cut after transaction %d", run.run, first, last, run.cut.seq)
        archive, staging = Files(self._spark, self._archive), f"{STAGING}/{run.run}"
        summary = Summary(first.isoformat(), last.isoformat(), run.cut.positions)
        try:
            self._check_served(first)  # retention changes nothing while a batch is under way
            with self._beating(run.run):
                self._await_archive(run.cut.positions)
                for left in archive.names(STAGING):  # by batches that were killed; no other one may run now
                    archive.delete(f"{STAGING}/{left}")
                staged = self._stage(self._compute(first, last, run.cut.positions), staging)
                summary.seconds["compute"] = round(time.monotonic() - began, 1)
                await_cut(self._store, run, WAIT_S)
                self._merge(run, staged, first, last, summary)
                control = end_batch(self._store, run.run, now_ms())
        except BaseException:
            abandon_batch(self._store, run.run)
            raise
        finally:
            archive.delete(staging)
        if fresh:
            serving.serve(self._client, self._store.indices, control.generation, WAIT_S)
            time.sleep(READERS_S)
            serving.drop(self._client, self._store.indices, control.generation, WAIT_S)
        summary.seconds["total"] = round(time.monotonic() - began, 1)
        return summary

    def close(self) -> None:
        """Close the client."""
        self._client.close()

    def _compute(self, first: dt.date, last: dt.date, upto: Positions) -> dict[str, DataFrame]:
        bins = max_bins(self._cfg)
        return batch_statistics(self._spark, self._archive, first, last, upto, self._bin_ms, bins, self._which)

    def _check_definitions(self) -> None:
        found = self._store.read_control()
        if found is not None:
            check_definitions(found[0], fingerprint(self._cfg))

    def _await_archive(self, cut: Positions) -> None:
        until = time.monotonic() + WAIT_S
        while is_beyond(cut, committed_positions(self._spark, self._archive)):
            if time.monotonic() > until:
                raise ControlError(
                    f"the archive {self._archive} does not reach the cut {cut}: was it deleted or set back? "
                    "see `gridstead archive verify`"
                )
            time.sleep(1.0)

    def _stage(self, computed: Mapping[str, DataFrame], staging: str) -> str:
        """Keep the result on HDFS by statistic, ordered by bin, so that a slice of it can be read alone."""
        url = Files(self._spark, self._archive).url(staging)
        for name, table in computed.items():
            ordered = table.drop("statistic").sortWithinPartitions("bin_end_ms")
            ordered.write.mode("overwrite").parquet(f"{url}/statistic={name}")
        return url

    def _merge(self, run: BatchRun, staged: str, first: dt.date, last: dt.date, summary: Summary) -> None:
        """Merge a slice at a time: all bins that the batch has, and those that are served."""
        began = time.monotonic()
        low, high = midnight_ms(first), midnight_ms(last + dt.timedelta(days=1))
        computed = self._spark.read.schema(STAGED).parquet(staged)
        counted = computed.groupBy("statistic", "bin_end_ms").count().collect()
        for name in self._which:
            counts: dict[int, int] = {}
            for day in sorted(self._store.days(run.generation, name, low, high)):
                counts |= self._store.bins(run.generation, name, day, day + DAY_MS)
            served = set(counts)
            for statistic, bin_end_ms, count in counted:
                if statistic == name:
                    counts[bin_end_ms] = max(count, counts.get(bin_end_ms, 0))
            told = 0.0
            of_name = computed.where(F.col("statistic") == name)
            for low_end, high_end, base in _collected(of_name, slices(counts, DOCUMENTS_AT_ONCE)):
                known = any(low_end <= bin_end_ms <= high_end for bin_end_ms in served)
                summary.merged += merge_slice(self._store, run, name, low_end - self._bin_ms, high_end, base, known)
                if high_end == max(counts) or time.monotonic() - told > TELL_S:
                    told = time.monotonic()
                    log.info("merged %s up to %s", name, day_text(high_end))
        summary.seconds["merge"] = round(time.monotonic() - began, 1)

    @contextmanager
    def _beating(self, run: str) -> Iterator[None]:
        over = threading.Event()
        client = configuration.elasticsearch_client(self._cfg, request_timeout=30)
        store = ElasticStore(client, self._store.indices)

        def tell() -> None:
            while not over.wait(BEAT_S):
                try:
                    beat(store, run, now_ms())
                except (ControlError, ServingError) as error:  # the batch itself meets it at its next step
                    log.warning("the batch could not say that it lives: %s", error)

        teller = threading.Thread(target=tell, name="beat", daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join(30)
            client.close()


def _collected(computed: DataFrame, ranges: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int, list[Delta]]]:
    """Each range of bins with what was computed of it; while one is worked on, the next is fetched."""

    def fetch(low_end: int, high_end: int) -> list[Delta]:
        return collect_deltas(computed.where(F.col("bin_end_ms").between(low_end, high_end)))

    coming: deque[tuple[int, int, Future[list[Delta]]]] = deque()
    with ThreadPoolExecutor(1, "collect") as fetcher:
        for low_end, high_end in ranges:
            coming.append((low_end, high_end, fetcher.submit(fetch, low_end, high_end)))
            if len(coming) > 1:
                low, high, base = coming.popleft()
                yield low, high, base.result()
        for low, high, base in coming:
            yield low, high, base.result()


def slices(counts: Mapping[int, int], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of bins (the ends of the first and the last, ms) that hold at most so many documents, or are one bin."""
    first = last = held = 0
    for bin_end_ms, count in sorted(counts.items()):
        if held and held + count > most:
            yield first, last
            held = 0
        first, last, held = (first if held else bin_end_ms), bin_end_ms, held + count
    if held:
        yield first, last


def now_ms() -> int:
    """Time in ms since the epoch."""
    return time.time_ns() // 1_000_000


def midnight_ms(day: dt.date) -> int:
    """The begin of a day, UTC, in ms since the epoch."""
    return int(dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC).timestamp()) * 1000


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gridstead-batch", description="Statistics of days, from the archive.")
    parser.add_argument("--config", metavar="FILE", help="gridstead.toml (default: as every gridstead command)")
    day = dt.date.fromisoformat
    parser.add_argument("--from", dest="first", metavar="DAY", type=day, help="first day, YYYY-MM-DD, UTC")
    parser.add_argument("--to", dest="last", metavar="DAY", type=day, help="last day, included")
    parser.add_argument("--fresh", action="store_true", help="all days, into fresh indices for the readers")
    parser.add_argument("--forget", action="store_true", help="with --fresh: lose days that retention has given up")
    parser.add_argument("--output", metavar="PATH", help="write Parquet to this path on HDFS instead of Elasticsearch")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Entry point: exit status 0 done, 1 failed, 2 wrong use."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.fresh and (options.first or options.last or options.output):
        parser.error("--fresh is about all days and Elasticsearch: give it without days and --output")
    if options.forget and not options.fresh:
        parser.error("--forget is for --fresh")
    if not options.fresh and not (options.first and options.last):
        parser.error("give --from DAY and --to DAY, or --fresh")
    if not options.fresh and options.first > options.last:
        parser.error(f"--from {options.first} is after --to {options.last}")
    log_to_stderr("batch")
    try:
        cfg = configuration.load(options.config)
    except configuration.ConfigError as error:
        log.error("%s", error)
        return 2
    spark = session("gridstead-batch", "local[*]", SETTINGS)
    spark.sparkContext.setLogLevel("WARN")
    batch = None
    try:
        batch = Batch(cfg, spark)
        first, last = batch.all_days() if options.fresh else (options.first, options.last)
        if options.output:
            summary = batch.to_parquet(first, last, options.output)
        else:
            summary = batch.merge(first, last, options.fresh, options.forget)
        summary.executors = executors(spark)
        print(json.dumps(asdict(summary)), flush=True)
        return 0
    except (ControlError, ServingError, ArchiveError, configuration.ConfigError) as error:
        log.error("%s", error)
        return 1
    finally:
        if batch is not None:
            batch.close()
        spark.stop()


if __name__ == "__main__":
    sys.exit(main())
