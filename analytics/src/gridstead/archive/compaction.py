"""Compaction: the many small files of micro-batches become few large ones, under readers and after any kill.

Neighbouring commits are merged: their rows are written anew, sorted, and one commit with their whole range of numbers
takes their place in the moment its manifest is there. The old manifests and files stay for a grace period, for readers
that listed them before, and are deleted by a later run. Rows, their days and their positions stay as they are.

A commit is rewritten only together with others of at least its own size, so each row is rewritten about
log2(target / size of a micro-batch) times at most, and once at the usual sizes; those that have reached half of the
group size are left alone.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pyspark.sql import SparkSession

from gridstead.archive.commits import Commits, Staging, new_token, sweep
from gridstead.archive.files import Files
from gridstead.archive.layout import ARCHIVED, COLUMNS, directory_of
from gridstead.archive.lock import STALE_S, Lock
from gridstead.archive.manifest import MERGED, ArchiveError, CommittedFile, Manifest, Positions, Ranges, Token, live
from gridstead.archive.positions import beyond, length
from gridstead.archive.reader import Horizon, expired_before, rows_of
from gridstead.schema import MALFORMED_SOURCE

log = logging.getLogger("gridstead.archive")

KIND: Final = "merge"
GROUP_TARGETS: Final = 4
"""One merge takes up to so many times the target size: what fits the memory and the disk of one small driver."""

ORDER: Final = ("source", "date", "topic", "partition", "offset")
"""How the rows of a merged file are sorted: by day and source, as files are, then by position."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Compaction:
    """How to compact: bytes and ms. ``below``: only commits wholly before these positions (None: all)."""

    target_bytes: int = 128 << 20
    min_age_ms: int = 3_600_000
    grace_ms: int = 86_400_000
    below: Positions | None = None
    codec: str = "zstd"
    lock_stale_s: float = STALE_S


@dataclass
class Compacted:
    """What a run did. ``refused``: the groups that could not be merged, and why."""

    merges: int = 0
    commits: int = 0
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    deleted_files: int = 0
    refused: list[str] = field(default_factory=list)


class Compactor:
    """Compacts one archive; ``tell`` is given a line of progress now and then."""

    def __init__(self, spark: SparkSession, root: str, settings: Compaction, tell: Tell = log.info) -> None:
        self._spark = spark
        self._files = Files(spark, root)
        self._commits = Commits(self._files)
        self._settings = settings
        self._tell = tell
        self._done = Compacted()

    def run(self) -> Compacted:
        """Delete what was replaced long enough ago, then merge what there is to merge.

        May be killed at any moment and run again. Raises ArchiveError if another process is at work.
        """
        with Lock(self._files, "compaction", self._settings.lock_stale_s) as lock:
            sweep(self._files, KIND)
            tokens = self._commits.since()
            counted = live(tokens)
            self._delete_replaced(tokens, counted)
            groups = self._groups(counted)
            for number, group in enumerate(groups, 1):
                self._tell(
                    f"merging {number} of {len(groups)}: commits {group[0].token.first} to {group[-1].token.last}, "
                    f"{sum(len(m.files) for m in group)} files, {sum(m.bytes for m in group) >> 10} KiB"
                )
                try:
                    self._merge(group, lock)
                except ArchiveError as error:
                    self._done.refused.append(str(error))
        return self._done

    def _delete_replaced(self, tokens: Sequence[Token], counted: Sequence[Token]) -> None:
        """Delete the files and then the manifests of commits that were replaced before the grace period began."""
        replaced = sorted(set(tokens) - set(counted))
        starts = [token.first for token in counted]
        due: dict[Token, bool] = {}
        for number, token in enumerate(replaced):
            by = counted[bisect_right(starts, token.first) - 1]
            if by not in due:
                age_ms = _now_ms() - self._files.modified_ms(self._commits.path(by))
                due[by] = age_ms >= self._settings.grace_ms
            if not due[by]:
                continue
            for file in self._commits.read(token).files:
                self._done.deleted_files += self._files.delete(file.path)
            self._files.delete(self._commits.path(token))
            if number % 500 == 499:
                self._tell(f"deleting what was replaced: {number + 1} of {len(replaced)} commits")
        for day in self._commits.days()[:-3]:
            if not self._files.names(f"commits/{day}"):
                self._files.delete(f"commits/{day}")

    def _groups(self, counted: Sequence[Token]) -> list[list[Manifest]]:
        """The neighbouring commits to merge, oldest first."""
        limit = GROUP_TARGETS * self._settings.target_bytes
        candidates: list[Manifest] = []
        for token in reversed(counted[: self._eligible(counted)]):
            manifest = self._commits.read(token)
            if manifest.kind == MERGED and manifest.bytes * 2 >= limit:
                break  # older ones were settled before this one could grow so large
            candidates.insert(0, manifest)
        return group(candidates, limit)

    def _eligible(self, counted: Sequence[Token]) -> int:
        """How many of the first commits are old enough and below the position: both grow with the number."""

        def young(token: Token) -> bool:
            manifest = self._commits.read(token)
            below = self._settings.below
            return manifest.committed_ms > _now_ms() - self._settings.min_age_ms or (
                below is not None and bool(beyond(manifest.positions, below))
            )

        low, high = 0, len(counted)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if young(counted[middle]) else (middle + 1, high)
        return low

    def _merge(self, members: list[Manifest], lock: Lock) -> None:
        last = members[-1]
        token = new_token(members[0].token.first, last.token.last, max(m.token.epoch for m in members))
        ranges = _joined(members)
        unknown = {column for m in members for column in m.columns} - set(COLUMNS)
        if unknown:
            raise ArchiveError(
                f"commits {token.first} to {token.last} hold columns that this version does not know "
                f"({', '.join(sorted(unknown))}): upgrade before compacting them (gridstead release list)"
            )
        horizon = expired_before(self._files)
        kept = [file for m in members for file in m.files if not _expired(file, horizon)]
        rows = sum(file.rows for file in kept)
        staging = Staging(self._files, KIND, token)
        if kept:
            self._write(kept, staging)
        files, names = staging.staged()
        written = sum(file.rows for file in files)
        if written != rows:
            staging.abandon(names)
            raise ArchiveError(
                f"commits {token.first} to {token.last} should have {rows} rows but {written} were read: "
                "run `gridstead archive verify`"
            )
        manifest = Manifest(
            token=token,
            kind=MERGED,
            committed_ms=last.committed_ms,
            rows=rows,
            files=files,
            ranges=ranges,
            positions=last.positions,
            columns=COLUMNS,
            absent=length(ranges) - rows,
        )
        lock.check()
        staging.commit(manifest, names)
        self._count(members, manifest)

    def _write(self, kept: Sequence[CommittedFile], staging: Staging) -> None:
        size = sum(file.bytes for file in kept)
        rows = rows_of(self._spark, self._files, (self._files.url(file.path) for file in kept))
        parts = max(1, round(size / self._settings.target_bytes))
        spread = rows.coalesce(1) if parts == 1 else rows.repartitionByRange(parts, *ORDER)
        per_file = max(1, sum(file.rows for file in kept) * self._settings.target_bytes // max(1, size))
        days = {directory_of(file.path)[1] for file in kept}
        ordered = spread.select(*ARCHIVED.names).sortWithinPartitions(*ORDER)
        staging.write(ordered, self._settings.codec, days, maxRecordsPerFile=str(2 * per_file))

    def _count(self, members: Sequence[Manifest], merged: Manifest) -> None:
        done = self._done
        done.merges += 1
        done.commits += len(members)
        done.files_before += sum(len(m.files) for m in members)
        done.files_after += len(merged.files)
        done.bytes_before += sum(m.bytes for m in members)
        done.bytes_after += merged.bytes


def group(candidates: Sequence[Manifest], limit: int) -> list[list[Manifest]]:
    """Cut neighbouring commits into groups of at most ``limit`` bytes, from the newest backwards.

    A merged commit joins only what is at least as large together, so that it is not rewritten over and over; groups
    of one are left out.
    """
    groups: list[list[Manifest]] = []
    size = 0
    for manifest in reversed(candidates):
        joins = manifest.kind != MERGED or manifest.bytes <= size
        if groups and joins and size + manifest.bytes <= limit:
            groups[-1].insert(0, manifest)
            size += manifest.bytes
        else:
            groups.append([manifest])
            size = manifest.bytes
    return [members for members in reversed(groups) if len(members) > 1]


def _joined(members: Sequence[Manifest]) -> Ranges:
    """The ranges of neighbouring commits in one; raises ArchiveError if they do not join."""
    joined: Ranges = {}
    for manifest in members:
        for topic, partitions in manifest.ranges.items():
            for partition, (first, end) in partitions.items():
                known = joined.setdefault(topic, {}).get(partition)
                if known is not None and known[1] != first:
                    raise ArchiveError(
                        f"commit {manifest.token} begins at offset {first} of partition {partition} of topic {topic}, "
                        f"but the one before ended at {known[1]}: run `gridstead archive verify`"
                    )
                joined[topic][partition] = (known[0] if known else first, end)
    return joined


def _expired(file: CommittedFile, horizon: Horizon) -> bool:
    source, day = directory_of(file.path)
    return day < (horizon.malformed if source == MALFORMED_SOURCE else horizon.events)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
