"""Retention: days of the archive that are older than wanted are given up, first on record, later on disk.

A mark in retention/ names the day before which nothing counts any more; readers, compaction and verification go by it
at once. The directories of those days are deleted when the mark is older than the grace period, so that a job that
listed them before can finish. Manifests stay: they say that the positions were there.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pyspark.sql import SparkSession

from gridstead.archive.files import Files
from gridstead.archive.layout import is_day
from gridstead.archive.lock import STALE_S, Lock
from gridstead.archive.reader import expired_before
from gridstead.schema import MALFORMED_SOURCE

log = logging.getLogger("gridstead.archive")

EVENTS = "events"
MALFORMED = "malformed"


@dataclass(frozen=True)
class Retention:
    """How many days to keep events and malformed rows (0: for ever), and the grace in ms."""

    days: int = 0
    malformed_days: int = 0
    grace_ms: int = 86_400_000
    lock_stale_s: float = STALE_S


@dataclass
class Retained:
    """What a run did: the first days that still count ("" where all do), and the days deleted now."""

    events_from: str = ""
    malformed_from: str = ""
    deleted: list[str] = field(default_factory=list)
    deleted_files: int = 0
    deleted_bytes: int = 0


def retain(
    spark: SparkSession, root: str, settings: Retention, today: dt.date, tell: Callable[[str], None] = log.info
) -> Retained:
    """Give up the days that are over, and delete those given up before the grace period; may be repeated.

    ``today`` is the present day, UTC. Raises ArchiveError while compaction runs.
    """
    files = Files(spark, root)
    with Lock(files, "retention", settings.lock_stale_s):
        _mark(files, EVENTS, settings.days, today)
        _mark(files, MALFORMED, settings.malformed_days, today)
        horizon = expired_before(files)
        done = Retained(horizon.events, horizon.malformed)
        for kind in (EVENTS, MALFORMED):
            due = _due(files, kind, settings.grace_ms)
            if due:
                _delete_before(files, kind, due, done, tell)
                _tidy(files, kind, due)
        return done


def _mark(files: Files, kind: str, days: int, today: dt.date) -> None:
    day = (today - dt.timedelta(days=days)).isoformat()
    if days > 0 and day > getattr(expired_before(files), kind):
        files.mkdirs("retention")
        files.create(f"retention/{kind}-before-{day}", "")


def _marks(files: Files, kind: str) -> list[str]:
    names = [name.removeprefix(f"{kind}-before-") for name in files.names("retention") if name.startswith(kind)]
    return sorted(name for name in names if is_day(name))


def _due(files: Files, kind: str, grace_ms: int) -> str:
    """The latest day whose mark is older than the grace period, "" if none is."""
    oldest = time.time_ns() // 1_000_000 - grace_ms
    due = [day for day in _marks(files, kind) if files.modified_ms(f"retention/{kind}-before-{day}") <= oldest]
    return max(due, default="")


def _delete_before(files: Files, kind: str, due: str, done: Retained, tell: Callable[[str], None]) -> None:
    for source in files.names("events"):
        if (source == f"source={MALFORMED_SOURCE}") != (kind == MALFORMED):
            continue
        for name in files.names(f"events/{source}"):
            day = name.removeprefix("date=")
            if is_day(day) and day < due:
                path = f"events/{source}/{name}"
                entries = files.files(path)
                files.delete(path)
                done.deleted.append(path)
                done.deleted_files += len(entries)
                done.deleted_bytes += sum(entry.bytes for entry in entries)
                tell(f"deleted {path}: {len(entries)} files")


def _tidy(files: Files, kind: str, due: str) -> None:
    for day in _marks(files, kind):
        if day < due:
            files.delete(f"retention/{kind}-before-{day}")
