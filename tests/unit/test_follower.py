"""Archive, follower and merge together, on a real Spark: batch = any split of the stream, killed anywhere, = DuckDB."""

from __future__ import annotations

import copy
import datetime as dt
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from archive_log import DAY_MS, Log
from gridstead import sources
from gridstead.archive.increments import Increments
from gridstead.archive.manifest import Positions
from gridstead.events import access_of
from gridstead.follower import Follower, collect_deltas, reachable
from gridstead.jobs.batch import batch_statistics
from gridstead.serving.transactions import Writer
from gridstead.simulate import AccessSimulation
from gridstead.statistics import BIN_MS, MAX_BINS
from memory_store import MemoryStore
from oracle import distinct, oracle_statistics

HORIZON_MS = 10 * 86_400_000


class Killed(BaseException):
    """The process ends here."""


def made_events(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Normalised events with duplicates, new ids for old content, and later versions of earlier accesses."""
    draw = random.Random(seed)
    waiting: list[dict[str, Any]] = []
    for record in AccessSimulation(seed, count, DAY_MS, 86_400, duplicates=0.15, late=0.05, future=0.01):
        yield sources.normalise(record, DAY_MS + 86_400_000)
        if draw.random() < 0.2:
            later = copy.deepcopy(record)
            inner = later.get("data", later)
            inner["end_time"] += draw.randint(1, 9000) * (1000 if inner["end_time"] > 1e11 else 1)
            inner["read_bytes_at_close"] = int(inner.get("read_bytes_at_close") or 0) + draw.randint(0, 10**9)
            waiting.append(later)
        if waiting and draw.random() < 0.2:
            yield sources.normalise(waiting.pop(draw.randrange(len(waiting))), DAY_MS + 86_400_000)


class Application:
    """The follower as the stream runs it, over an archive on the local disk and a store in memory."""

    def __init__(self, spark: SparkSession, log: Log, directory: Path) -> None:
        self.spark, self.log, self.directory = spark, log, directory
        self.store = MemoryStore()
        self.follower: Follower | None = None
        self.horizon_ms = HORIZON_MS
        self.starts = 0

    def index_files(self) -> list[Path]:
        return list(self.directory.glob("identity*"))

    def start(self) -> Follower:
        self.starts += 1
        writer = Writer(self.store, f"w{self.starts}", "test", cache_documents=50)
        increments = Increments(self.spark, self.log.root)
        return Follower(self.spark, increments, writer, self.directory / "identity.sqlite", self.horizon_ms, BIN_MS, MAX_BINS)

    def follow(self, committed: Positions) -> None:
        """Take everything that is committed; a kill leaves it where it is."""
        try:
            if self.follower is None:
                self.follower = self.start()
            while self.follower.step(committed) is not None:
                pass
        except Killed:
            if self.follower is not None:
                self.follower.close()
            self.follower = None

    def served(self) -> dict[str, dict[str, tuple[int, ...]]]:
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for place, document in self.store.documents.items():
            if document.values[0] != 0:
                found.setdefault(place.statistic, {})[place.key] = document.values
        return found


def test_the_stream_killed_anywhere_equals_the_batch_and_duckdb(spark: SparkSession, tmp_path: Path) -> None:
    draw = random.Random(1)
    log = Log(spark, tmp_path)
    application = Application(spark, log, tmp_path)
    events = list(made_events(1, 150))

    def disturb(call: str) -> None:
        if draw.random() < 0.003:
            raise Killed

    application.store.before = application.store.after = disturb
    manifest = None
    left = list(events)
    while left:
        for _ in range(draw.randint(40, 90)):
            if left:
                event = left.pop(0)
                log.add(event, partition=int(access_of(event["event_id"]), 16) % 2)
        batch = log.plan()
        manifest = log.writer().write_batch(log.frame(batch), batch)
        application.follow(manifest.positions)
        if draw.random() < 0.3:  # the disk of the follower is lost
            application.follower = application.follower and application.follower.close()  # type: ignore[func-returns-value]
            for file in application.index_files():
                file.unlink()
    assert manifest is not None
    application.store.before = application.store.after = lambda call: None
    application.follow(manifest.positions)
    logged = [event for partition in log.rows for event in _in_order(events, partition)]
    expected = oracle_statistics(distinct(logged))
    assert application.served() == expected
    assert application.starts > 2

    first, last = dt.date(2023, 11, 1), dt.date(2023, 11, 30)
    tables = batch_statistics(spark, log.root, first, last, None, BIN_MS, MAX_BINS)
    computed = {name: {delta.key: delta.values for delta in collect_deltas(table)} for name, table in tables.items()}
    assert computed == expected


def _in_order(events: list[dict[str, Any]], partition: int) -> list[dict[str, Any]]:
    return [event for event in events if int(access_of(event["event_id"]), 16) % 2 == partition]


@pytest.mark.parametrize(("horizon_ms", "anew"), [(1, True), (HORIZON_MS, False)])
def test_an_index_that_stood_by_for_longer_than_its_horizon_is_made_anew(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture, horizon_ms: int, anew: bool
) -> None:
    log = Log(spark, tmp_path)
    events = list(made_events(5, 90))
    gateways = [tmp_path / name for name in ("one", "two")]
    store = MemoryStore()
    for number, directory in enumerate([gateways[0], gateways[1], gateways[1], gateways[0]]):
        directory.mkdir(exist_ok=True)
        if number < 3:  # then the first leads again, and there is nothing new
            for event in events[30 * number : 30 * number + 30]:
                log.add(event, partition=int(access_of(event["event_id"]), 16) % 2)
            batch = log.plan()
            manifest = log.writer().write_batch(log.frame(batch), batch)
        application = Application(spark, log, directory)
        application.store, application.horizon_ms = store, horizon_ms
        caplog.clear()
        with caplog.at_level("INFO", logger="gridstead.follower"):
            application.follow(manifest.positions)
        assert application.follower is not None
        application.follower.close()
    assert ("older than its horizon" in caplog.text) is anew
    (learnt,) = re.findall(r"learnt (\d+) events of the archive", caplog.text)
    assert (int(learnt) < 60) is anew  # the two commits that it had missed, or less
    assert anew or application.served() == oracle_statistics(distinct(events[:90]))  # a horizon of 1 ms lets duplicates through


def test_a_batch_below_a_cut_counts_what_the_stream_had_served_there(spark: SparkSession, tmp_path: Path) -> None:
    log = Log(spark, tmp_path)
    application = Application(spark, log, tmp_path)
    events = list(made_events(3, 120))
    for event in events[:80]:
        log.add(event, partition=int(access_of(event["event_id"]), 16) % 2)
    batch = log.plan()
    manifest = log.writer().write_batch(log.frame(batch), batch)
    application.follow(manifest.positions)
    at_cut = application.served()
    log.write(*events[80:])
    first, last = dt.date(2023, 11, 1), dt.date(2023, 11, 30)
    tables = batch_statistics(spark, log.root, first, last, manifest.positions, BIN_MS, MAX_BINS)
    computed = {name: {delta.key: delta.values for delta in collect_deltas(table)} for name, table in tables.items()}
    assert computed == at_cut


def test_a_step_takes_the_same_share_of_every_partition() -> None:
    committed = {"t": {0: 1000, 1: 100, 2: 7}}
    assert reachable({}, committed, 10_000) == committed
    upto = reachable({"t": {0: 500}}, committed, 100)
    assert upto == {"t": {0: 583, 1: 17, 2: 2}}
    position: Positions = {}
    for _ in range(1000):
        position = reachable(position, committed, 10)
    assert position == committed
