"""The archive: micro-batches of the log as Parquet, and the record of what is committed.

Layout under the archive's root::

    events/source=<source>/date=<YYYY-MM-DD of end_ms, UTC>/<writer>-<batch>-<n>.parquet
    commits/<YYYY-MM-DD of the commit, UTC>/<writer>-<batch>.json
    staging/<writer>-<batch>/

``writer`` is the first 8 hex digits of the streaming query's id: a new checkpoint numbers its batches from 0 again,
and must not overwrite the files of the old one. Rows that are no events are kept under source=malformed, with their
date in the log, so that the archive has every position.

A micro-batch is written to staging/, the list of its final names is noted there, its files are renamed into place,
and last its manifest is renamed into commits/. A file counts only if the manifest of its batch is there, so readers
never see half a batch. After a kill the same batch is written again: files of the earlier attempt (the noted list)
are deleted first, and a batch whose manifest is there is not written again. No step lists the history; only the start
of a writer lists the newest days of commits/.

All access is by Hadoop's FileSystem inside the JVM of Spark, thus the same on HDFS, file:// and S3A. On an object
store a rename is a copy: correct, since only the manifest (one object) decides, but slower.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.types import DateType, StructField, StructType

from gridstead.schema import EVENT, FAULT, MALFORMED_SOURCE, PARSED, POSITION

Positions = dict[str, dict[int, int]]
"""topic -> partition -> next offset."""
Ranges = dict[str, dict[int, tuple[int, int]]]
"""topic -> partition -> (first offset, offset after the last)."""

ARCHIVED: Final = StructType([*PARSED.fields, StructField("date", DateType())])
"""What a file and its path hold together."""

DAY_MS: Final = 86_400_000
_COMMIT_SLACK_DAYS: Final = 2  # an event may end up to a day after it was received, and clocks differ
_TOKEN = re.compile(r"^(?P<writer>[0-9a-z]+)-(?P<batch>\d{10})")


class ArchiveError(Exception):
    """The archive is not as it must be; the text says what, where, and what to do."""


@dataclass(frozen=True)
class CommittedFile:
    """One data file: path relative to the archive's root, and its number of rows."""

    path: str
    rows: int


@dataclass(frozen=True)
class Manifest:
    """The commit of one micro-batch: what it wrote, the positions it was to read (``ranges``, without empty ones),
    and up to where its writer has read the whole log (``positions``).
    """

    writer: str
    batch: int
    committed_ms: int
    rows: int
    files: tuple[CommittedFile, ...]
    ranges: Ranges
    positions: Positions

    @property
    def token(self) -> str:
        """The prefix that its files and its manifest share."""
        return _token(self.writer, self.batch)

    def to_json(self) -> str:
        """The manifest's file: one JSON object."""
        document = asdict(self) | {"version": 1}
        return json.dumps(document, sort_keys=True, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Read a manifest; raises ArchiveError if it is none."""
        try:
            d = json.loads(text)
            return Manifest(
                writer=d["writer"],
                batch=int(d["batch"]),
                committed_ms=int(d["committed_ms"]),
                rows=int(d["rows"]),
                files=tuple(CommittedFile(f["path"], int(f["rows"])) for f in d["files"]),
                ranges={t: {int(p): (int(r[0]), int(r[1])) for p, r in ps.items()} for t, ps in d["ranges"].items()},
                positions={t: {int(p): int(o) for p, o in ps.items()} for t, ps in d["positions"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArchiveError(f"not a commit manifest ({error!r}): {text[:200]}") from error


def _token(writer: str, batch: int) -> str:
    return f"{writer}-{batch:010d}"


class Files:
    """Hadoop's FileSystem for one root, through the JVM of a Spark session. Paths are relative to the root.

    Any error of the file system (NameNode away, safe mode, no permission) comes as Py4JJavaError.
    """

    def __init__(self, spark: SparkSession, root: str) -> None:
        self._jvm: Any = spark._jvm
        self._conf: Any = spark._jsc.hadoopConfiguration()
        self.root = root.rstrip("/") or "/"
        self._fs: Any = self._path("").getFileSystem(self._conf)

    def _path(self, relative: str) -> Any:
        full = f"{self.root.rstrip('/')}/{relative}" if relative else self.root
        return self._jvm.org.apache.hadoop.fs.Path(full)

    def url(self, relative: str) -> str:
        """The full address of a path, scheme included."""
        return str(self._fs.makeQualified(self._path(relative)).toString())

    def exists(self, path: str) -> bool:
        """Whether there is a file or directory."""
        return bool(self._fs.exists(self._path(path)))

    def mkdirs(self, path: str) -> None:
        """Make a directory and its parents."""
        self._fs.mkdirs(self._path(path))

    def delete(self, path: str) -> bool:
        """Delete a file or a whole directory; false if there was none."""
        return bool(self._fs.delete(self._path(path), True))

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted; empty if there is no such directory."""
        try:
            found = self._fs.listStatus(self._path(path))
        except Exception as error:
            if "FileNotFoundException" in str(error):
                return []
            raise
        return sorted(status.getPath().getName() for status in found)

    def files(self, path: str) -> list[str]:
        """All files under a directory, relative to it, sorted."""
        base = self.url(path).rstrip("/") + "/"
        found = self._fs.listFiles(self._path(path), True)
        result = []
        while found.hasNext():
            result.append(str(found.next().getPath().toString()).removeprefix(base))
        return sorted(result)

    def read(self, path: str) -> str:
        """The text of a file (UTF-8)."""
        stream = self._fs.open(self._path(path))
        try:
            return str(self._jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8"))
        finally:
            stream.close()

    def write(self, path: str, text: str) -> None:
        """Write a file (UTF-8), replacing what is there; not atomic."""
        stream = self._fs.create(self._path(path), True)
        try:
            stream.write(bytearray(text.encode("utf-8")))
        finally:
            stream.close()

    def rename(self, source: str, target: str) -> None:
        """Move a file, replacing what is at the target; the target's directory must exist. Raises ArchiveError."""
        to = self._path(target)
        if self._fs.rename(self._path(source), to):
            return
        self._fs.delete(to, False)
        if not self._fs.rename(self._path(source), to):
            raise ArchiveError(f"cannot rename {self.url(source)} to {self.url(target)}: look at the NameNode's log")

    def parquet_rows(self, path: str) -> int:
        """The number of rows of a Parquet file, from its footer."""
        file = self._jvm.org.apache.parquet.hadoop.util.HadoopInputFile.fromPath(self._path(path), self._conf)
        reader = self._jvm.org.apache.parquet.hadoop.ParquetFileReader.open(file)
        try:
            return int(reader.getRecordCount())
        finally:
            reader.close()


class CheckpointLog:
    """What Spark noted in the checkpoint of one streaming query: its id, and the positions of each micro-batch."""

    def __init__(self, spark: SparkSession, checkpoint: str) -> None:
        self._files = Files(spark, checkpoint)

    def writer(self) -> str:
        """The first 8 hex digits of the query's id."""
        return str(json.loads(self._files.read("metadata"))["id"]).replace("-", "")[:8]

    def committed(self) -> Positions:
        """Up to where the log is read by the last micro-batch that is done; empty if none is."""
        done = [int(name) for name in self._files.names("commits") if name.isdigit()]
        return self.positions(max(done)) if done else {}

    def ranges(self, batch: int) -> Ranges:
        """The positions that a micro-batch reads, from the first to after the last, without the empty ones."""
        ends = self.positions(batch)
        starts = self._offsets(f"offsets/{batch - 1}") if batch > 0 else self._offsets("sources/0/0")
        ranges: Ranges = {}
        for topic, partitions in ends.items():
            for partition, end in partitions.items():
                start = starts.get(topic, {}).get(partition, 0)
                if start != end:
                    ranges.setdefault(topic, {})[partition] = (start, end)
        return ranges

    def positions(self, batch: int) -> Positions:
        """Up to where the log is read when this micro-batch is done."""
        return self._offsets(f"offsets/{batch}")

    def _offsets(self, path: str) -> Positions:
        last = self._files.read(path).strip().splitlines()[-1]
        start = last.find("{")
        if start < 0:
            return {}
        return {t: {int(p): int(o) for p, o in ps.items()} for t, ps in json.loads(last[start:]).items()}


class ArchiveWriter:
    """Writes the micro-batches of one streaming query, each exactly once.

    ``checkpoint`` is the query's checkpoint: its id names the writer, its offset log gives the ranges. Use
    ``write_batch`` as the function of foreachBatch.
    """

    def __init__(self, spark: SparkSession, root: str, checkpoint: str, codec: str = "zstd") -> None:
        self._files = Files(spark, root)
        self._spark = spark
        self._checkpoint = checkpoint
        self._codec = codec
        self._log: CheckpointLog | None = None
        self._writer = ""
        self._committed: Manifest | None = None
        self._directories: set[str] = set()

    def write_batch(self, parsed: DataFrame, batch_id: int) -> Manifest:
        """Archive one micro-batch of schema.PARSED and commit it; returns its manifest.

        Repeating a batch is harmless: if it was committed it is left as it is, if not it is written anew.
        """
        if self._log is None:
            self._open()
        assert self._log is not None
        token = _token(self._writer, batch_id)
        ranges = self._log.ranges(batch_id)
        if self._committed is not None and batch_id <= self._committed.batch:
            return self._again(batch_id, ranges)
        staging = f"staging/{token}"
        self._discard(staging)
        self._write(parsed, f"{staging}/data")
        staged = [name for name in self._files.files(f"{staging}/data") if name.endswith(".parquet")]
        moves = {name: _final_name(name, token, number) for number, name in enumerate(staged)}
        rows = {name: self._files.parquet_rows(f"{staging}/data/{name}") for name in staged}
        self._files.mkdirs(staging)
        self._files.write(f"{staging}/files.json", json.dumps(sorted(moves.values())))
        for name, target in moves.items():
            self._directory(target.rpartition("/")[0])
            self._files.rename(f"{staging}/data/{name}", target)
        now = dt.datetime.now(dt.UTC)
        manifest = Manifest(
            self._writer,
            batch_id,
            int(now.timestamp() * 1000),
            sum(rows.values()),
            tuple(CommittedFile(moves[name], rows[name]) for name in staged),
            ranges,
            self._log.positions(batch_id),
        )
        self._files.write(f"{staging}/manifest.json", manifest.to_json())
        day = f"commits/{now:%Y-%m-%d}"
        self._directory(day)
        self._files.rename(f"{staging}/manifest.json", f"{day}/{token}.json")
        self._committed = manifest
        self._files.delete(staging)
        return manifest

    def _open(self) -> None:
        self._log = CheckpointLog(self._spark, self._checkpoint)
        self._writer = self._log.writer()
        self._committed = _newest(self._files, {self._writer}).get(self._writer)

    def _again(self, batch_id: int, ranges: Ranges) -> Manifest:
        committed = self._committed
        assert committed is not None
        if batch_id == committed.batch and committed.ranges == ranges:
            self._files.delete(f"staging/{committed.token}")
            return committed
        raise ArchiveError(
            f"the archive {self._files.root} has committed batch {committed.batch} of writer {self._writer} with "
            f"positions {committed.ranges}, but the checkpoint {self._checkpoint} repeats batch {batch_id} with "
            f"{ranges}: the checkpoint was set back or copied; move it away and start again (events archived twice "
            f"are recognised by their identity)"
        )

    def _discard(self, staging: str) -> None:
        """Remove what an earlier attempt of this batch left, in staging and in place."""
        if not self._files.exists(staging):
            return
        if self._files.exists(f"{staging}/files.json"):
            text = self._files.read(f"{staging}/files.json")
            try:
                targets = json.loads(text)
            except ValueError:  # killed while the list was written: nothing was renamed yet
                targets = []
            for target in targets:
                self._files.delete(target)
        self._files.delete(staging)

    def _write(self, parsed: DataFrame, staging: str) -> None:
        day = F.when(F.col("malformed").isNull(), _day(F.col("end_ms"))).otherwise(_day(F.unix_millis("timestamp")))
        dated = parsed.select(*PARSED.names, day.alias("date"))
        writer = dated.repartition("source", "date").write.partitionBy("source", "date").mode("overwrite")
        writer.option("compression", self._codec).option(
            "mapreduce.fileoutputcommitter.marksuccessfuljobs", "false"
        ).parquet(self._files.url(staging))

    def _directory(self, path: str) -> None:
        if path not in self._directories:
            self._files.mkdirs(path)
            if len(self._directories) > 10_000:
                self._directories.clear()
            self._directories.add(path)


def _day(ms: Any) -> Any:
    """UTC date of a time in ms, whatever the session's time zone."""
    days = F.call_function("div", ms - F.pmod(ms, F.lit(DAY_MS).cast("long")), F.lit(DAY_MS).cast("long"))
    return F.date_from_unix_date(days.cast("int"))


def _final_name(staged: str, token: str, number: int) -> str:
    return f"events/{staged.rpartition('/')[0]}/{token}-{number:04d}.parquet"


def _commit_days(files: Files) -> list[str]:
    return [name for name in files.names("commits") if re.fullmatch(r"\d{4}-\d\d-\d\d", name)]


def _newest(files: Files, writers: set[str] | None) -> dict[str, Manifest]:
    """The newest manifest of each writer; from the newest day backwards, until all wanted writers are found."""
    newest: dict[str, tuple[int, str]] = {}
    for day in reversed(_commit_days(files)):
        found: dict[str, tuple[int, str]] = {}
        for name in files.names(f"commits/{day}"):
            match = _TOKEN.match(name)
            if match and name.endswith(".json"):
                batch = int(match["batch"])
                if batch >= found.get(match["writer"], (-1, ""))[0]:
                    found[match["writer"]] = (batch, f"commits/{day}/{name}")
        for writer, entry in found.items():
            if entry[0] > newest.get(writer, (-1, ""))[0]:
                newest[writer] = entry
        if writers is not None and writers <= newest.keys():
            break
    return {
        writer: Manifest.from_json(files.read(path))
        for writer, (_, path) in newest.items()
        if writers is None or writer in writers
    }


def manifests(spark: SparkSession, root: str, first_day: dt.date | None = None) -> Iterator[Manifest]:
    """All commits from a day (of the commit) on, one file read each: for verification, not for every reader."""
    files = Files(spark, root)
    for day in _commit_days(files):
        if first_day is None or day >= first_day.isoformat():
            for name in files.names(f"commits/{day}"):
                if _TOKEN.match(name) and name.endswith(".json"):
                    yield Manifest.from_json(files.read(f"commits/{day}/{name}"))


def committed_positions(spark: SparkSession, root: str) -> Positions:
    """Up to which position the archive holds each partition of the log (the next offset).

    Batches of a writer are contiguous, so its newest manifest tells. Of several writers (an older checkpoint's, the
    present one's) the furthest counts: each began where the log began, or failed at a gap.
    """
    positions: Positions = {}
    for manifest in _newest(Files(spark, root), None).values():
        for topic, partitions in manifest.positions.items():
            known = positions.setdefault(topic, {})
            for partition, end in partitions.items():
                known[partition] = max(end, known.get(partition, 0))
    return positions


def committed_files(
    spark: SparkSession, root: str, first_day: dt.date, last_day: dt.date, malformed: bool = False
) -> list[str]:
    """Addresses of the committed files of these days of ``date`` (both included), by names alone.

    Commits are listed before the data, so every file of a commit that was seen is found; ``malformed`` reads the rows
    that are no events instead of the events.
    """
    files = Files(spark, root)
    earliest = (first_day - dt.timedelta(days=_COMMIT_SLACK_DAYS)).isoformat()
    committed = {
        match[0]
        for day in _commit_days(files)
        if day >= earliest
        for match in map(_TOKEN.match, files.names(f"commits/{day}"))
        if match
    }
    result = []
    for source in files.names("events"):
        if not source.startswith("source=") or (source == f"source={MALFORMED_SOURCE}") != malformed:
            continue
        for day in files.names(f"events/{source}"):
            if f"date={first_day.isoformat()}" <= day <= f"date={last_day.isoformat()}":
                for name in files.names(f"events/{source}/{day}"):
                    match = _TOKEN.match(name)
                    if match and match[0] in committed:
                        result.append(files.url(f"events/{source}/{day}/{name}"))
    return result


def read_events(spark: SparkSession, root: str, first_day: dt.date, last_day: dt.date) -> DataFrame:
    """The archived events that ended on these days (UTC, both included): schema.EVENT, schema.POSITION and ``date``.

    Only committed files are read. An event may be there more than once: see :func:`distinct_events`. Columns that an
    older file does not have are null.
    """
    names = [*EVENT.names, *POSITION.names, "date"]
    return _read(spark, root, committed_files(spark, root, first_day, last_day)).select(*names)


def read_malformed(spark: SparkSession, root: str, first_day: dt.date, last_day: dt.date) -> DataFrame:
    """The archived rows that were no events, by their day in the log: schema.POSITION, schema.FAULT and ``date``."""
    files = committed_files(spark, root, first_day, last_day, malformed=True)
    return _read(spark, root, files).select(*POSITION.names, *FAULT.names, "date")


def _read(spark: SparkSession, root: str, files: Iterable[str]) -> DataFrame:
    paths = list(files)
    if not paths:
        return spark.createDataFrame([], ARCHIVED)
    base = Files(spark, root).url("events")
    return spark.read.schema(ARCHIVED).option("basePath", base).parquet(*paths)


def distinct_events(events: DataFrame) -> DataFrame:
    """Keep of each ``event_id`` the row with the lowest position in the log; the order is total, so the choice is
    stable."""
    order = Window.partitionBy("event_id").orderBy("topic", "partition", "offset")
    return events.withColumn("_rank", F.row_number().over(order)).where(F.col("_rank") == 1).drop("_rank")
