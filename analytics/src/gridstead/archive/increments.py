"""The newest events of the archive, by positions: what the follower reads every few seconds."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterable
from typing import Final

from pyspark.sql import DataFrame, SparkSession

from gridstead.archive.commits import Commits
from gridstead.archive.files import Files
from gridstead.archive.layout import directory_of
from gridstead.archive.manifest import ArchiveError, Manifest, Positions, Ranges, Token, live
from gridstead.archive.positions import beyond, inside, intersects, within
from gridstead.archive.reader import events_of, expired_before
from gridstead.schema import MALFORMED_SOURCE

KEPT_MS: Final = 3_600_000
"""For how long a manifest is believed without looking again; far shorter than the grace of compaction."""


class Increments:
    """Reads ranges of positions. Manifests that were seen are kept in memory, a few KB each."""

    def __init__(self, spark: SparkSession, root: str) -> None:
        self._spark = spark
        self._root = root
        self._files = Files(spark, root)
        self._recent: list[Manifest] = []

    def add(self, manifest: Manifest) -> None:
        """Take over what the writer has just committed, so that it need not be looked up."""
        if not manifest.ranges or (self._recent and manifest.token.last <= self._recent[-1].token.last):
            return
        if self._recent and manifest.token.first != self._recent[-1].token.last + 1:
            self._recent = []
        self._recent.append(manifest)
        oldest = manifest.committed_ms - KEPT_MS
        while self._recent[0].committed_ms < oldest:
            self._recent.pop(0)

    def committed(self) -> Positions:
        """Up to which positions the archive holds the log, asked of it anew."""
        newest = Commits(self._files).newest()
        return newest.positions if newest else {}

    def read(self, after: Positions, upto: Positions) -> DataFrame:
        """The archived events at positions from ``after`` (0 where it does not know a partition) to before ``upto``:
        schema.EVENT, schema.POSITION and ``date``.

        Found through the newest manifests whose ranges have a part in it, whether compacted meanwhile or not. Raises
        ArchiveError if the archive does not reach to ``upto``.
        """
        wanted = beyond(upto, after)
        chosen = self._choose(wanted)
        paths = [file.path for manifest in chosen for file in manifest.files]
        horizon = expired_before(self._files)
        kept = [p for p in paths if directory_of(p)[0] != MALFORMED_SOURCE and directory_of(p)[1] >= horizon.events]
        events = events_of(self._spark, self._files, map(self._files.url, kept))
        if all(inside(manifest.ranges, wanted) for manifest in chosen):
            return events  # the same plan at each step, so that its compiled code is used again
        return events.where(within(wanted))

    def boundary(self, after: Positions, upto: Positions) -> Positions:
        """The end of the newest commit that goes beyond ``after`` and not beyond ``upto``; ``upto`` if there is none.

        A range that begins and ends between commits is read without looking at positions.
        """
        self._choose(beyond(upto, after))
        ends = (manifest.positions for manifest in reversed(self._recent))
        return next((end for end in ends if not beyond(end, upto) and beyond(end, after)), upto)

    def reaching_back(self, upto: Positions, ms: int) -> Positions:
        """Positions before which nothing was committed in the ``ms`` before the archive had reached ``upto``.

        A search by halves over the commits, a file read a step. Compaction makes old commits look younger, which only
        makes the answer reach further back.
        """
        commits = Commits(self._files)
        tokens = live(commits.since())
        if not tokens:
            return {}

        def first(condition: Callable[[Manifest], bool], end: int) -> int:
            return bisect.bisect_left(range(end), True, key=lambda at: condition(commits.read(tokens[at])))

        reached = min(first(lambda m: not beyond(upto, m.positions), len(tokens)), len(tokens) - 1)
        since_ms = commits.read(tokens[reached]).committed_ms - ms
        start = first(lambda m: m.committed_ms >= since_ms, reached + 1)
        return commits.read(tokens[start - 1]).positions if start > 0 else {}

    def _choose(self, wanted: Ranges) -> list[Manifest]:
        if not wanted:
            return []
        recent = [m for m in self._recent if m.committed_ms >= time.time_ns() // 1_000_000 - KEPT_MS]
        if not _covers(recent, wanted):
            recent = self._look_back(wanted)
            self._recent = recent
        return [manifest for manifest in recent if intersects(manifest.ranges, wanted)]

    def _look_back(self, wanted: Ranges) -> list[Manifest]:
        """The newest commits, in order, as many as reach back to the first wanted position."""
        commits = Commits(self._files)
        seen = {manifest.token: manifest for manifest in self._recent}
        found: list[Manifest] = []
        for tokens in commits.backwards():
            for token in reversed(_before(tokens, found)):
                found.insert(0, seen.get(token) or commits.read(token))
                if _covers(found, wanted):
                    return found
        if not _ends_beyond(found, wanted):
            held = found[-1].positions if found else {}
            raise ArchiveError(
                f"the archive {self._root} holds the log up to {held}, but events up to {wanted} were asked for: "
                "the served statistics are ahead of the archive; run `gridstead rebuild`"
            )
        return found


def increment(spark: SparkSession, root: str, after: Positions, upto: Positions) -> DataFrame:
    """One range of positions: see :meth:`Increments.read`."""
    return Increments(spark, root).read(after, upto)


def _before(tokens: list[Token], found: list[Manifest]) -> list[Token]:
    return [token for token in tokens if not found or token.last < found[0].token.first]


def _covers(chain: Iterable[Manifest], wanted: Ranges) -> bool:
    """Whether an unbroken chain of commits up to the newest holds all these positions."""
    manifests = list(chain)
    if not manifests or not _ends_beyond(manifests, wanted):
        return False
    starts: dict[tuple[str, int], int] = {}
    for manifest in manifests:
        for topic, partitions in manifest.ranges.items():
            for partition, (first, _) in partitions.items():
                starts.setdefault((topic, partition), first)
    return all(
        starts.get((topic, partition), end) <= first
        for topic, partitions in wanted.items()
        for partition, (first, end) in partitions.items()
    )


def _ends_beyond(chain: list[Manifest], wanted: Ranges) -> bool:
    held = chain[-1].positions if chain else {}
    return all(
        held.get(topic, {}).get(partition, 0) >= end
        for topic, partitions in wanted.items()
        for partition, (_, end) in partitions.items()
    )
