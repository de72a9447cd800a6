"""Old archives stay readable: files whose columns are fewer, more, or in another order than today's."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import duckdb
from pyspark.sql import SparkSession

from archive_log import DAY, DAY_MS, Log, event
from gridstead.archive.reader import read_events
from gridstead.schema import EVENT, POSITION
from gridstead.sources import normalise
from samples import FTS_2017, TRACE

NOW = 1_700_000_000_000
WHOLE: dict[str, Any] = {
    "producer_id": "u-1", "server_host": "disk01", "user": "p1-00", "app_info": "job", "file_lfn": "/a", "file_ref": "r", "file_size": 9,
    "read_bytes": 7, "read_single_bytes": 7, "read_vector_bytes": 0, "open_missing": False, "clock_clamped": False, "received_ms": 3,
}  # fmt: skip

# What the select of DuckDB makes of a file of today, and which columns that file then lacks.
LAYOUTS: dict[str, tuple[str, set[str]]] = {
    "today": ("*", set()),
    "before XRootD": ("* EXCLUDE (file_ref, open_missing, clock_clamped)", {"file_ref", "open_missing", "clock_clamped"}),
    "of tomorrow": ("'x' AS a_new_column, *, 17 AS another, {'deep': [1]} AS nested", set()),
    "reordered": ("received_ms, * EXCLUDE (received_ms, app_info)", {"app_info"}),
}


def rewrite(path: Path, select: str) -> None:
    """Write a Parquet file anew, in its place, with other columns."""
    new = path.with_suffix(".new")
    duckdb.execute(f"COPY (SELECT {select} FROM read_parquet('{path}', hive_partitioning = false)) TO '{new}' (FORMAT parquet, CODEC zstd)")
    new.rename(path)
    (path.parent / f".{path.name}.crc").unlink(missing_ok=True)


def test_files_of_four_layouts_are_read_as_one_table(spark: SparkSession, tmp_path: Path) -> None:
    written = [event(2 * number, **WHOLE, end_ms=DAY_MS + number * 86_400_000) for number in range(len(LAYOUTS))]
    log = Log(spark, tmp_path)
    log.write(*written)
    for path, (select, _) in zip(sorted(log.files()), LAYOUTS.values(), strict=True):  # a file a day
        rewrite(log.directory / path, select)
    found = read_events(spark, log.root, DAY, DAY + dt.timedelta(len(LAYOUTS)))
    assert found.columns == [*EVENT.names, *POSITION.names, "date"]
    rows = {row["offset"]: row.asDict() for row in found.collect()}
    for number, (_, missing) in enumerate(LAYOUTS.values()):
        for name, value in written[number].items():
            assert rows[number][name] == (None if name in missing else value), name


def test_events_of_every_source_come_back_as_they_were(spark: SparkSession, tmp_path: Path) -> None:
    events = [normalise(record, NOW) for record in (FTS_2017, TRACE, {"end_time": NOW, "file_lfn": "/a", "vo": "cms"})]
    log = Log(spark, tmp_path)
    log.write(*events)
    assert sorted(path.split("/")[1] for path in log.files()) == ["source=access", "source=fts", "source=rucio"]
    days = read_events(spark, log.root, dt.date(2016, 1, 1), dt.date(2024, 1, 1)).select(*EVENT.names).collect()
    assert {row["event_id"]: row.asDict() for row in days} == {event["event_id"]: event for event in events}
