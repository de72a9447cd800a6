"""The file operations of the archive: Hadoop's, and the local ones that other tests put in their place, do the same."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from pyspark.sql import SparkSession

from archive_log import LocalFiles
from gridstead.archive.files import Entry, Files
from gridstead.archive.manifest import ArchiveError


@pytest.fixture(params=[Files, LocalFiles])
def files(request: pytest.FixtureRequest, spark: SparkSession, tmp_path: Path) -> Files:
    made: Files = request.param(spark, f"file://{tmp_path}/root/")
    return made


def test_text_goes_in_and_comes_out(files: Files) -> None:
    assert not files.exists("a/b/c") and files.names("a/b") == [] and files.files("a") == []
    files.write("a/b/c", "é1")
    files.write("a/b/c", "é2\n")
    files.write("a/b/A", "")
    assert files.read("a/b/c") == "é2\n" and files.exists("a/b/c") and files.exists("a/b")
    assert files.names("a/b") == ["A", "c"] and files.names("a") == ["b"]
    assert files.files("a") == [Entry("b/A", 0), Entry("b/c", 4)]
    assert files.modified_ms("a/b/c") > 1_700_000_000_000 and files.url("a/b").startswith("file:/")


def test_a_new_file_is_made_once(files: Files) -> None:
    assert files.create("locks/x", "mine") and not files.create("locks/x", "yours")
    assert files.read("locks/x") == "mine"


def test_deleting_tells_whether_there_was_something(files: Files) -> None:
    files.write("a/b/c", "1")
    assert not files.delete("a/d") and files.delete("a/b/c") and not files.exists("a/b/c")
    files.mkdirs("a/e/f")
    assert files.delete("a") and not files.exists("a")


def test_renaming_makes_the_directory_and_needs_a_source(files: Files) -> None:
    files.write("staging/x/one", "1")
    files.rename("staging/x/one", "events/day/one")
    assert files.read("events/day/one") == "1" and files.names("staging/x") == []
    files.rename("staging/x", "staging/dead-x")
    assert files.names("staging") == ["dead-x"]
    with pytest.raises(ArchiveError, match="cannot rename"):
        files.rename("staging/x/one", "events/day/two")


def test_rows_are_counted_by_the_footer(files: Files, tmp_path: Path) -> None:
    files.mkdirs("")
    duckdb.execute(f"copy (select * from range(7)) to '{tmp_path}/root/seven.parquet' (format parquet)")
    assert files.parquet_rows("seven.parquet") == 7


def test_many_names_come_at_once(files: Files) -> None:
    for number in range(50):
        files.write(f"many/{number:03d}", "")
    assert files.names("many") == [f"{number:03d}" for number in range(50)]
