"""Verification: every file decoded, every row counted, every position of the log there once and in its place.

The record is checked first, in the driver: the commits join, their ranges join, their counts add up. Then every file
of every commit that counts is read whole by Spark, some commits at a time: all columns of all row groups are decoded
(checksums of pages included), and per file and partition the rows, their positions and their days are compared with
the manifest. Positions are ticked off in bitmaps, so a duplicate or a hole costs one bit, not a sort. Nothing is
changed; writing, compaction and reading may go on meanwhile.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from gridstead.archive.commits import Commits
from gridstead.archive.files import Files
from gridstead.archive.layout import directory_of, row_day
from gridstead.archive.manifest import CommittedFile, Manifest, Positions, Token, counted
from gridstead.archive.positions import furthest, length
from gridstead.archive.reader import expired_before, rows_of
from gridstead.schema import MALFORMED_SOURCE

log = logging.getLogger("gridstead.archive")

CHUNK_BYTES: Final = 1 << 30
CHUNK_FILES: Final = 5_000
"""How much is read at once between two lines of progress; whole commits, at least one."""

_STRICT: Final = {"parquet.page.verify-checksum.enabled": "true"}
_TOLERANT: Final = {**_STRICT, "ignoreCorruptFiles": "true"}


@dataclass
class Verified:
    """What was checked and found. ``findings`` say what is wrong, a sentence each, with the name of the file;
    ``leftovers`` are files that no commit names (of killed attempts): harmless, and never read.
    """

    commits: int = 0
    files: int = 0
    rows: int = 0
    bytes: int = 0
    absent: int = 0
    awaiting_deletion: int = 0
    positions: Positions = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)


class Verifier:
    """Verifies one archive; ``tell`` is given a line of progress now and then."""

    def __init__(self, spark: SparkSession, root: str, tell: Callable[[str], None] = log.info) -> None:
        self._spark = spark
        self._files = Files(spark, root)
        self._tell = tell
        self._found = Verified()
        self._strays: list[str] = []

    def run(self) -> Verified:
        """Check everything; what is wrong is in the result's ``findings``."""
        commits = Commits(self._files)
        tokens = commits.since()
        manifests = self._manifests(commits, tokens)
        self._check_record(manifests)
        there = self._listed(manifests)
        self._check_strays({m.token for m in manifests}, set(tokens), commits)
        chunks = list(_chunks(manifests, there))
        for number, chunk in enumerate(chunks, 1):
            self._tell(
                f"reading {number} of {len(chunks)}: commits {chunk[0][0].token.first} to {chunk[-1][0].token.last}, "
                f"{sum(len(files) for _, files in chunk)} files"
            )
            self._check_content(chunk)
        return self._found

    def _finding(self, text: str) -> None:
        self._found.findings.append(text)

    def _manifests(self, commits: Commits, tokens: Iterable[Token]) -> list[Manifest]:
        chosen, faults = counted(tokens)
        self._found.findings += faults
        manifests = []
        for number, token in enumerate(chosen, 1):
            try:
                manifests.append(commits.read(token))
            except Exception as error:
                self._finding(f"{commits.path(token)} cannot be read: {brief(error)}")
            if number % 2_000 == 0:
                self._tell(f"reading manifests: {number} of {len(chosen)}")
        return manifests

    def _check_record(self, manifests: list[Manifest]) -> None:
        """That ranges join from commit to commit, and counts add up inside each."""
        known: Positions = {}
        for manifest in manifests:
            name = f"commit {manifest.token}"
            for topic, partitions in manifest.ranges.items():
                for partition, (first, _) in partitions.items():
                    end = known.get(topic, {}).get(partition, first)
                    where = f"partition {partition} of topic {topic}"
                    if first > end:
                        self._finding(f"{name}: {where} lacks the offsets {end} to {first - 1}, which no commit has")
                    elif first < end:
                        self._finding(f"{name}: {where} has the offsets {first} to {end - 1}, as the one before it")
            known = furthest(known, {t: {p: end for p, (_, end) in ps.items()} for t, ps in manifest.ranges.items()})
            named = {(t, p): o for t, ps in manifest.positions.items() for p, o in ps.items()}
            if any(named.get((t, p)) != o for t, ps in known.items() for p, o in ps.items()):
                self._finding(f"{name}: its positions {manifest.positions} are not where the ranges end, {known}")
            rows = sum(file.rows for file in manifest.files)
            if rows != manifest.rows or manifest.rows + manifest.absent != length(manifest.ranges):
                self._finding(
                    f"{name}: {length(manifest.ranges)} positions, but {rows} rows in its files, {manifest.rows} in "
                    f"all, and {manifest.absent} given up"
                )
            known = furthest(known, manifest.positions)
        self._found.commits = len(manifests)
        self._found.absent = sum(manifest.absent for manifest in manifests)
        self._found.positions = known

    def _listed(self, manifests: list[Manifest]) -> dict[str, CommittedFile]:
        """The files that are to be read and are there, by path; missing ones are findings, others are noted."""
        horizon = expired_before(self._files)
        wanted = {file.path: file for manifest in manifests for file in manifest.files}
        present: set[str] = set()
        for source in self._files.names("events"):
            first = horizon.malformed if source == f"source={MALFORMED_SOURCE}" else horizon.events
            for day in self._files.names(f"events/{source}"):
                if day.removeprefix("date=") >= first:
                    present.update(f"events/{source}/{day}/{n}" for n in self._files.names(f"events/{source}/{day}"))
        self._strays = sorted(present - wanted.keys())
        there = {}
        for path, file in wanted.items():
            source, day = directory_of(path)
            if day < (horizon.malformed if source == MALFORMED_SOURCE else horizon.events):
                self._found.absent += file.rows
            elif path not in present:
                self._finding(f"{path} is missing: its commit says that it has {file.rows} rows")
            else:
                there[path] = file
        return there

    def _check_strays(self, read: set[Token], tokens: set[Token], commits: Commits) -> None:
        """What no manifest names that counts: replaced, committed since we began, left by a killed attempt, or bad."""
        replaced = tokens - set(counted(tokens)[0])
        newer = set(commits.since()) - tokens if self._strays else set()
        for path in self._strays:
            token = Token.of(path.rpartition("/")[2])
            if token in replaced:
                self._found.awaiting_deletion += 1
            elif token in read:
                self._finding(f"{path} is named as a file of commit {token}, but its manifest does not have it")
            elif token not in newer and token not in tokens:
                self._found.leftovers.append(path)

    def _check_content(self, chunk: list[tuple[Manifest, list[CommittedFile]]]) -> None:
        files = {file.path: file for _, named in chunk for file in named}
        if not files:
            return
        ranges = {file.path: manifest.ranges for manifest, named in chunk for file in named}
        facts = self._facts(files)
        facts.persist()
        try:
            rows: Counter[str] = Counter()
            by_file = facts.groupBy("file", "topic", "partition").agg(
                F.sum("rows").alias("rows"), F.min("low").alias("low"), F.max("high").alias("high"),
                F.sum("misplaced").alias("misplaced"), F.max("decoded").alias("decoded"),
            )  # fmt: skip
            for row in by_file.collect():
                path = f"events/{row['file']}"
                rows[path] += row["rows"]
                self._check_rows(path, row, ranges[path])
            self._check_duplicates(facts, files)
        finally:
            facts.unpersist()
        for path, file in files.items():
            if rows[path] != file.rows:
                self._finding(self._why(path, file, rows[path]))
        self._found.files += len(files)
        self._found.rows += sum(rows.values())
        self._found.bytes += sum(file.bytes for file in files.values())

    def _rows(self, files: dict[str, CommittedFile]) -> DataFrame:
        """The rows of files, with what is to be known of each; the hash makes Spark decode every column."""
        rows = rows_of(self._spark, self._files, map(self._files.url, files), _TOLERANT)
        wrong = (F.col("date") != row_day()) | ((F.col("source") == MALFORMED_SOURCE) != F.col("malformed").isNotNull())
        return rows.select(
            F.substring_index(F.col("_metadata.file_path"), "/events/", -1).alias("file"),
            "topic",
            "partition",
            "offset",
            F.call_function("bitmap_bucket_number", F.col("offset")).alias("stretch"),
            F.call_function("bitmap_bit_position", F.col("offset")).alias("bit"),
            F.coalesce(wrong, F.lit(True)).alias("wrong"),
            F.xxhash64(*rows.columns).alias("hash"),
        )

    def _facts(self, files: dict[str, CommittedFile]) -> DataFrame:
        """One pass over the files: per file, partition and stretch of 32,768 offsets what its rows say.

        A file that cannot be read gives fewer rows than it should; it is then read alone to learn why.
        """
        return (
            self._rows(files)
            .groupBy("file", "topic", "partition", "stretch")
            .agg(
                F.count(F.lit(1)).alias("rows"),
                F.min("offset").alias("low"),
                F.max("offset").alias("high"),
                F.count_if("wrong").alias("misplaced"),
                F.max("hash").alias("decoded"),
                F.call_function("bitmap_construct_agg", F.col("bit")).alias("ticked"),
            )
        )

    def _check_rows(self, path: str, row: Row, ranges: dict[str, dict[int, tuple[int, int]]]) -> None:
        where = f"partition {row['partition']} of topic {row['topic']}"
        if row["misplaced"]:
            self._finding(f"{path}: {row['misplaced']} rows do not belong to this source and day")
        if row["low"] is None or row["topic"] is None or row["partition"] is None:
            self._finding(f"{path}: {row['rows']} rows without a position")
            return
        allowed = ranges.get(row["topic"], {}).get(row["partition"])
        if allowed is None or row["low"] < allowed[0] or row["high"] >= allowed[1]:
            held = "none" if allowed is None else f"{allowed[0]} to {allowed[1] - 1}"
            self._finding(f"{path}: {where} has offsets {row['low']} to {row['high']}, its commit has {held}")

    def _check_duplicates(self, facts: DataFrame, files: dict[str, CommittedFile]) -> None:
        stretch = ("topic", "partition", "stretch")
        ticked = facts.groupBy(*stretch).agg(
            F.sum("rows").alias("rows"),
            F.call_function("bitmap_count", F.call_function("bitmap_or_agg", F.col("ticked"))).alias("distinct"),
        )
        crowded = ticked.where(F.col("rows") != F.col("distinct")).select(*stretch)
        if crowded.isEmpty():
            return
        positions = self._rows(files).select("file", *stretch, "offset").join(F.broadcast(crowded), list(stretch))
        doubled = positions.groupBy("topic", "partition", "offset").agg(
            F.count(F.lit(1)).alias("rows"), F.sort_array(F.collect_set("file")).alias("files")
        )
        several = doubled.where(F.col("rows") > 1).groupBy("topic", "partition", "files")
        for row in several.agg(F.count(F.lit(1)).alias("n"), F.min("offset"), F.max("offset")).collect():
            self._finding(
                f"{row['n']} positions of partition {row['partition']} of topic {row['topic']}, between "
                f"{row['min(offset)']} and {row['max(offset)']}, are there more than once, in "
                + ", ".join(f"events/{name}" for name in row["files"])
            )

    def _why(self, path: str, file: CommittedFile, rows: int) -> str:
        try:
            read = rows_of(self._spark, self._files, [self._files.url(path)], _STRICT)
            read.agg(F.max(F.xxhash64(*read.columns))).collect()
        except Exception as error:
            return f"{path} cannot be read: {brief(error)}"
        return f"{path} has {rows} rows, its commit says {file.rows}"


def _chunks(
    manifests: Iterable[Manifest], there: dict[str, CommittedFile]
) -> Iterator[list[tuple[Manifest, list[CommittedFile]]]]:
    chunk: list[tuple[Manifest, list[CommittedFile]]] = []
    sums: dict[str, int] = defaultdict(int)
    for manifest in manifests:
        named = [file for file in manifest.files if file.path in there]
        size = sum(file.bytes for file in named)
        if chunk and (sums["bytes"] + size > CHUNK_BYTES or sums["files"] + len(named) > CHUNK_FILES):
            yield chunk
            chunk = []
            sums.clear()
        chunk.append((manifest, named))
        sums["bytes"] += size
        sums["files"] += len(named)
    if chunk:
        yield chunk


def brief(error: BaseException) -> str:
    """The line of an error, its own or the JVM's, that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = (
        [line for line in lines if "Caused by" in line] or [line for line in lines if "Exception" in line] or lines
    )
    return (telling[-1] if telling else type(error).__name__)[:300]
