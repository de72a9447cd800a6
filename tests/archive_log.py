"""A log of one topic with two partitions, the checkpoint of a query that reads it, and the archive of both, on the
local disk; and kills at any call of the file system."""

from __future__ import annotations

import datetime as dt
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
from pyspark.sql import DataFrame, SparkSession

from gridstead.archive.commits import Staging
from gridstead.archive.compaction import Compaction, Compactor
from gridstead.archive.files import Entry, Files
from gridstead.archive.layout import COLUMNS
from gridstead.archive.manifest import ArchiveError, CommittedFile
from gridstead.archive.reader import committed_files
from gridstead.archive.writer import ArchiveWriter
from gridstead.schema import EVENT, MALFORMED_SOURCE, PARSED, parse_events

DAY = dt.date(2023, 11, 14)
DAY_MS = 1_699_920_000_000  # midnight UTC of DAY
STAMP = dt.datetime(2023, 11, 20, 1, tzinfo=dt.UTC)  # when the log got its rows
FIRST, LAST = dt.date(2023, 1, 1), dt.date(2024, 12, 31)
KAFKA = "value binary, topic string, partition int, offset long, timestamp timestamp"


class Killed(BaseException):
    """Stands for kill -9: no handler of the product catches it."""


def event(number: int, **fields: Any) -> dict[str, Any]:
    """An event of DAY; odd numbers are of XRootD, even ones of the other source."""
    base: dict[str, Any] = dict.fromkeys(EVENT.names)
    base.update(
        event_id=f"{number:032x}",
        source="xrootd" if number % 2 else "access",
        start_ms=DAY_MS,
        end_ms=DAY_MS + 5,
        read_bytes=1,
        write_bytes=0,
    )
    return base | fields


class Log:
    """What is in the log, and what the query planned to read of it, micro-batch by micro-batch."""

    def __init__(self, spark: SparkSession | None, directory: Path, checkpoint: str = "0123abcd") -> None:
        self.spark: Any = spark  # None where LocalFiles, QuickWriter and QuickCompactor do without
        self.directory = directory / "archive"
        self.root = f"file://{self.directory}"
        self.rows: dict[int, list[bytes]] = {0: [], 1: []}
        self.start_query(directory / f"checkpoint-{checkpoint}", {0: 0, 1: 0})

    def start_query(self, checkpoint: Path, begin: dict[int, int]) -> None:
        """A new query with a checkpoint of its own, which begins at these offsets."""
        self.checkpoint = checkpoint
        for name in ("offsets", "commits", "sources/0"):
            (checkpoint / name).mkdir(parents=True)
        (checkpoint / "metadata").write_text(json.dumps({"id": f"{checkpoint.name[-8:]}-0000-0000-0000-000000000000"}))
        (checkpoint / "sources/0/0").write_bytes(b"\x00v1\n" + json.dumps({"t": begin}).encode())
        self.ends = [dict(begin)]

    def add(self, *events: dict[str, Any] | bytes, partition: int = 0) -> None:
        self.rows[partition] += [e if isinstance(e, bytes) else json.dumps(e).encode() for e in events]

    def plan(self, upto: dict[int, int] | None = None) -> int:
        """Plan a micro-batch of all rows there are (or up to these offsets); returns its number."""
        batch = len(self.ends) - 1
        self.ends.append(upto or {partition: len(rows) for partition, rows in self.rows.items()})
        offsets = json.dumps({"t": {str(p): o for p, o in self.ends[-1].items()}})
        (self.checkpoint / "offsets" / str(batch)).write_text(f'v1\n{{"batchWatermarkMs":0}}\n{offsets}')
        return batch

    def planned(self, batch: int) -> list[tuple[int, int, bytes]]:
        """The rows of a micro-batch: partition, offset, value."""
        start, end = self.ends[batch], self.ends[batch + 1]
        return [(p, o, self.rows[p][o]) for p in self.rows for o in range(start[p], end[p])]

    def frame(self, batch: int) -> DataFrame:
        rows = [(bytearray(value), "t", p, o, STAMP + dt.timedelta(seconds=o)) for p, o, value in self.planned(batch)]
        return parse_events(self.spark.createDataFrame(rows, KAFKA))

    def writer(self) -> ArchiveWriter:
        return ArchiveWriter(self.spark, self.root, f"file://{self.checkpoint}")

    def write(self, *events: dict[str, Any] | bytes, partition: int = 0) -> Any:
        """Add events, plan a micro-batch and archive it with a new writer."""
        self.add(*events, partition=partition)
        batch = self.plan()
        return self.writer().write_batch(self.frame(batch), batch)

    def files(self) -> list[str]:
        """All data files in place, whether they count or not."""
        return [f"events/{entry.path}" for entry in _files(self.spark, self.root).files("events")]

    @property
    def on_objects(self) -> bool:
        """Whether the archive is kept as on an object store."""
        return _files is LocalObjects

    def names(self, path: str) -> list[str]:
        """The names in a directory of the archive."""
        return sorted(os.listdir(self.directory / path))

    def archived(self, kinds: Sequence[bool] = (False, True)) -> list[tuple[int, int]]:
        """Partition and offset of every row that a reader would get, events (False) or malformed (True); read without
        Spark. Each kind is listed on its own, as readers do: while somebody writes, the later one reaches further."""
        paths = [
            path.removeprefix("file:")
            for malformed in kinds
            for path in committed_files(self.spark, self.root, FIRST, LAST, malformed)
        ]
        if not paths:
            return []
        with duckdb.connect() as connection:  # of its own, since it may be a thread that reads
            return sorted(connection.execute('select partition, "offset" from read_parquet(?)', [paths]).fetchall())


class QuickWriter(ArchiveWriter):
    """The writer with its Parquet files made by DuckDB instead of Spark: everything but that is the product's."""

    def __init__(self, log: Log) -> None:
        super().__init__(log.spark, log.root, f"file://{log.checkpoint}")
        self._of = log
        self.batch = 0

    def _write(self, parsed: Any, rows: int, staging: Staging) -> None:
        staging.begin()
        ranges = self._missing(self._log.ranges(self.batch))["t"]
        planned = [(p, o, value) for p, o, value in self._of.planned(self.batch) if p in ranges and ranges[p][0] <= o < ranges[p][1]]
        by_directory: dict[str, list[tuple[int, int]]] = {}
        for p, o, value in planned:
            source, day = place(value)
            by_directory.setdefault(f"source={source}/date={day}", []).append((p, o))
        for directory, positions in by_directory.items():
            target = self._of.directory / staging.data / directory
            target.mkdir(parents=True, exist_ok=True)
            staging.days.add(directory.rpartition("date=")[2])
            write_positions(target / f"{staging.prefix}-0.parquet", positions)


class AllRows:
    """Stands for a DataFrame where :class:`QuickWriter` looks up the rows itself."""

    def where(self, condition: Any) -> AllRows:
        return self


def quick_write(log: Log, batch: int, writer: QuickWriter | None = None) -> Any:
    """Archive a micro-batch by :class:`QuickWriter`."""
    writer = writer or QuickWriter(log)
    writer.batch = batch
    return writer.write_batch(AllRows(), batch)  # type: ignore[arg-type]


def place(value: bytes) -> tuple[str, str]:
    """Source and day under which a row of the log is archived."""
    try:
        document = json.loads(value)
    except ValueError:
        return MALFORMED_SOURCE, STAMP.date().isoformat()
    return document["source"], dt.datetime.fromtimestamp(document["end_ms"] / 1000, dt.UTC).date().isoformat()


def write_positions(path: Path, positions: list[tuple[int, int]]) -> None:
    """A Parquet file with these rows, of which only the position is filled."""
    given = {"partition": "p", "offset": "o", "topic": "'t'"}
    kinds = {"string": "varchar", "timestamp": "timestamptz", "binary": "blob"}
    columns = [
        f'{given.get(f.name, "null")}::{kinds.get(f.dataType.simpleString(), f.dataType.simpleString())} as "{f.name}"'
        for f in PARSED
        if f.name in COLUMNS
    ]
    values = ", ".join(f"({p}, {o})" for p, o in positions)
    duckdb.execute(f"copy (select {', '.join(columns)} from (values {values}) v(p, o)) to '{path}' (format parquet)")


class LocalFiles(Files):
    """The same operations by Python on the local disk, a hundred times quicker than through the JVM."""

    def __init__(self, spark: SparkSession, root: str) -> None:
        self.root = root.rstrip("/")
        self._base = Path(root.removeprefix("file://"))

    def url(self, path: str) -> str:
        return f"file:{self._base / path}"

    def exists(self, path: str) -> bool:
        return (self._base / path).exists()

    def mkdirs(self, path: str) -> None:
        (self._base / path).mkdir(parents=True, exist_ok=True)

    def delete(self, path: str) -> bool:
        target = self._base / path
        if target.is_dir():
            shutil.rmtree(target)
            return True
        there = target.exists()
        target.unlink(missing_ok=True)
        return there

    def names(self, path: str) -> list[str]:
        target = self._base / path
        return sorted(os.listdir(target)) if target.is_dir() else []

    def files(self, path: str) -> list[Entry]:
        base = self._base / path
        found = (Path(at) / name for at, _, names in os.walk(base) for name in names)
        return sorted((Entry(str(f.relative_to(base)), f.stat().st_size) for f in found), key=lambda e: e.path)

    def modified_ms(self, path: str) -> int:
        return (self._base / path).stat().st_mtime_ns // 1_000_000

    def read(self, path: str) -> str:
        return (self._base / path).read_text()

    def write(self, path: str, text: str) -> None:
        self.mkdirs(path.rpartition("/")[0])
        (self._base / path).write_text(text)

    def create(self, path: str, text: str) -> bool:
        if self.exists(path):
            return False
        self.write(path, text)
        return True

    def rename(self, source: str, target: str) -> None:
        self.mkdirs(target.rpartition("/")[0])
        if self.exists(target) or not self.exists(source):
            raise ArchiveError(f"cannot rename {source} to {target}")
        (self._base / source).rename(self._base / target)

    def parquet_rows(self, path: str) -> int:
        rows = duckdb.execute("select num_rows from parquet_file_metadata(?)", [str(self._base / path)]).fetchone()
        return int(rows[0]) if rows else 0


class LocalObjects(LocalFiles):
    """As on an object store: nothing is renamed, and of several who create a file at once each may succeed."""

    renames = False

    def write(self, path: str, text: str) -> None:
        partial = f"partial-{secrets.token_hex(8)}"
        super().write(partial, text)
        self.mkdirs(path.rpartition("/")[0])
        (self._base / partial).replace(self._base / path)

    def create(self, path: str, text: str) -> bool:
        self.write(path, text)
        return True

    def rename(self, source: str, target: str) -> None:
        raise AssertionError(f"{source} would be copied to {target}")


@contextmanager
def local_files(kind: type[LocalFiles] = LocalFiles) -> Iterator[None]:
    """Let the archive work with :class:`LocalFiles`, or with another kind of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("gridstead.archive") and getattr(module, "Files", None) is Files:
                patch.setattr(module, "Files", kind)
        patch.setattr(sys.modules[__name__], "_files", kind)
        patch.setattr("gridstead.archive.writer.within", lambda ranges: None)  # a column, which needs a JVM
        yield


_files: type[Files] = Files

CALLS = ("write", "create", "rename", "delete", "mkdirs")


@contextmanager
def kill_at(step: int, whole: bool = False) -> Iterator[list[int]]:
    """Raise Killed at the so-manieth call that changes the file system; a file being written is then cut short (an object,
    or if ``whole``, not), and every second time another call is done before the kill. The list holds the calls left."""
    left = [step]

    def killing(operation: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if name in ("write", "create") and _files.renames and not whole:
                    operation(*arguments[:2], arguments[2][:7])
                elif step % 2:
                    operation(*arguments)
                raise Killed
            if left[0] < 0:
                raise Killed  # nothing is done after death, not even by a finally
            return operation(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(_files, name, killing(getattr(_files, name), name))
        yield left


class QuickCompactor(Compactor):
    """The compactor with its Parquet files merged by DuckDB instead of Spark."""

    def __init__(self, log: Log, settings: Compaction) -> None:
        super().__init__(log.spark, log.root, settings)
        self._of = log

    def _write(self, kept: Sequence[CommittedFile], staging: Staging) -> None:
        staging.begin()
        by_directory: dict[str, list[str]] = {}
        for file in kept:
            directory = file.path.rpartition("/")[0].removeprefix("events/")
            by_directory.setdefault(directory, []).append(str(self._of.directory / file.path))
        for directory, paths in by_directory.items():
            target = self._of.directory / staging.data / directory
            target.mkdir(parents=True, exist_ok=True)
            staging.days.add(directory.rpartition("date=")[2])
            rows = f"select * from read_parquet({paths}, hive_partitioning=false)"
            duckdb.execute(f"copy ({rows}) to '{target}/{staging.prefix}-0.parquet' (format parquet)")
