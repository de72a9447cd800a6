"""Readers: the committed rows of a range of days, found by names alone, and what is cheap to know of the whole."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession

from gridstead.archive.commits import Commits
from gridstead.archive.files import Files
from gridstead.archive.layout import ARCHIVED, COMMIT_SLACK_DAYS, is_day
from gridstead.archive.manifest import ArchiveError, Positions, Token, live
from gridstead.archive.positions import below, beyond
from gridstead.schema import EVENT, FAULT, MALFORMED_SOURCE, POSITION

EARLIEST = -2
"""Kafka's sign for the beginning of a partition."""


@dataclass(frozen=True)
class Horizon:
    """The days before which retention has given up events and malformed rows (YYYY-MM-DD; empty: none)."""

    events: str = ""
    malformed: str = ""


def expired_before(files: Files) -> Horizon:
    """Read the marks of retention: the names in retention/, of which the latest day of each kind counts."""
    found = {"events": "", "malformed": ""}
    for name in files.names("retention"):
        kind, _, day = name.partition("-before-")
        if kind in found and is_day(day):
            found[kind] = max(found[kind], day)
    return Horizon(**found)


def committed_positions(spark: SparkSession, root: str) -> Positions:
    """Up to which position the archive holds each partition of the log (the next offset); empty for a new archive.

    Lists the newest days of commits/ and reads one manifest.
    """
    newest = Commits(Files(spark, root)).newest()
    return newest.positions if newest else {}


def starting_offsets(
    spark: SparkSession, root: str, partitions: Mapping[str, Iterable[int]] | None = None
) -> str | None:
    """JSON for Kafka's startingOffsets where a stream has no checkpoint: go on where the archive ends.

    None where the archive is empty: begin at the earliest. ``partitions`` are those that the topics have now; Kafka
    wants each of them named, and one that the archive does not know begins at its earliest record.
    """
    known = committed_positions(spark, root)
    if not known:
        return None
    offsets = {topic: {str(p): position for p, position in sorted(ps.items())} for topic, ps in known.items()}
    if partitions is not None:
        offsets = {
            topic: {str(p): known.get(topic, {}).get(p, EARLIEST) for p in sorted(numbers)}
            for topic, numbers in partitions.items()
        }
    return json.dumps(offsets)


def committed_files(
    spark: SparkSession, root: str, first_day: dt.date, last_day: dt.date, malformed: bool = False
) -> list[str]:
    """Addresses of the committed files of these days of ``date`` (both included), by names alone.

    Commits are listed before the data, so every file of a commit that was seen is found; ``malformed`` reads the rows
    that are no events instead of the events. Days that retention has given up have no files.
    """
    files = Files(spark, root)
    horizon = expired_before(files)
    first = max(first_day.isoformat(), horizon.malformed if malformed else horizon.events)
    earliest = (first_day - dt.timedelta(days=COMMIT_SLACK_DAYS)).isoformat()
    committed = set(live(Commits(files).since(earliest)))
    result = []
    for source in _sources(files, malformed):
        for day in files.names(f"events/source={source}"):
            if f"date={first}" <= day <= f"date={last_day.isoformat()}":
                for name in files.names(f"events/source={source}/{day}"):
                    if Token.of(name) in committed:
                        result.append(files.url(f"events/source={source}/{day}/{name}"))
    return result


def days(spark: SparkSession, root: str) -> tuple[dt.date, dt.date] | None:
    """The first and the last day (of ``date``) with events, None where there are none.

    By the names of directories: a day of which only the leftover of a killed attempt is there counts too.
    """
    files = Files(spark, root)
    first = expired_before(files).events
    found = {
        day
        for source in _sources(files, malformed=False)
        for name in files.names(f"events/source={source}")
        if is_day(day := name.removeprefix("date=")) and day >= first
    }
    return (dt.date.fromisoformat(min(found)), dt.date.fromisoformat(max(found))) if found else None


def _sources(files: Files, malformed: bool) -> list[str]:
    names = [name.removeprefix("source=") for name in files.names("events") if name.startswith("source=")]
    return [name for name in names if (name == MALFORMED_SOURCE) == malformed]


def read_events(
    spark: SparkSession, root: str, first_day: dt.date, last_day: dt.date, upto: Positions | None = None
) -> DataFrame:
    """The archived events that ended on these days (UTC, both included): schema.EVENT, schema.POSITION and ``date``.

    Each position of the log is there once; an event may be there more than once: see gridstead.identity.batch. With
    ``upto`` only rows before these positions (none of a partition that it does not name); raises ArchiveError if the
    archive does not reach so far. Columns that an older file does not have are null.
    """
    if upto is not None:
        missing = beyond(upto, committed_positions(spark, root))
        if missing:
            raise ArchiveError(
                f"the archive {root} does not hold the log up to the cut, it lacks {missing}: "
                "wait for the stream (gridstead status), or cut earlier"
            )
    paths = committed_files(spark, root, first_day, last_day)
    events = events_of(spark, Files(spark, root), paths)
    return events if upto is None else events.where(below(upto))


def read_malformed(spark: SparkSession, root: str, first_day: dt.date, last_day: dt.date) -> DataFrame:
    """The archived rows that were no events, by their day in the log: schema.POSITION, schema.FAULT and ``date``."""
    paths = committed_files(spark, root, first_day, last_day, malformed=True)
    return rows_of(spark, Files(spark, root), paths).select(*POSITION.names, *FAULT.names, "date")


def events_of(spark: SparkSession, files: Files, paths: Iterable[str]) -> DataFrame:
    """The events of files by their addresses: schema.EVENT, schema.POSITION and ``date``."""
    return rows_of(spark, files, paths).select(*EVENT.names, *POSITION.names, "date")


def rows_of(
    spark: SparkSession, files: Files, paths: Iterable[str], options: Mapping[str, str] | None = None
) -> DataFrame:
    """The rows of files by their addresses: ARCHIVED. ``options`` are those of Spark's Parquet reader."""
    addresses = list(paths)
    if not addresses:
        return spark.createDataFrame([], ARCHIVED)
    reader = spark.read.schema(ARCHIVED).options(**(options or {})).option("basePath", files.url("events"))
    return reader.parquet(*addresses)
