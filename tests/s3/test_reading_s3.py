"""What `gridstead io` counts is what the server got."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from gridstead import formats
from gridstead.jobs import reading
from s3server import Server

pytestmark = pytest.mark.long


def test_requests_are_those_of_the_servers_own_log(spark: SparkSession, server: Server, tmp_path: Path) -> None:
    path = f"s3a://archive/{tmp_path.name}/csv"
    frame = reading.table(spark, 50_000, 3)
    formats.write(frame, path, "csv", "none")
    servers = reading.servers_of(spark, path)
    files = [key for key in server.keys("archive", tmp_path.name) if key.endswith(".csv")]
    stored = sum(server.client().head_object(Bucket="archive", Key=key)["ContentLength"] for key in files)
    recorder = reading.Recorder(spark, tmp_path)
    for _ in range(2):  # the first one opens connections
        before = len(server.requests())
        with recorder:
            reading.query(formats.read(spark, path, frame.schema, "csv"), "all columns")
        logged = server.requests()[before:]
    found = recorder.requests(servers)
    assert len(found) == len(logged)
    assert logged.count("s3_GetObject") >= 3
    assert stored < sum(request.bytes for request in found) < 1.1 * stored + 10_000 * len(found)
    assert all(0 < request.first_byte_ms <= request.took_ms for request in found)


def test_places_and_formats_are_compared_and_nothing_stays(spark: SparkSession, server: Server, tmp_path: Path) -> None:
    places = [f"s3a://archive/{tmp_path.name}-{number}" for number in range(2)]
    options = ["--rows", "20000", "--files", "2", "--repeat", "1", "--formats", "csv", "parquet"]
    given = reading.arguments([*(part for place in places for part in ("--at", place)), *options])
    results = reading.run(spark, given)["results"]
    assert [(r["place"], r["format"], r["query"]) for r in results] == [
        (place, format_, query) for place in places for format_ in ("csv", "parquet") for query in reading.QUERIES
    ]
    by = {(r["place"], r["format"], r["query"]): r["bytes"] for r in results}
    for place in places:
        assert by[place, "parquet", "one column"] < by[place, "parquet", "all columns"] / 2
        assert by[place, "csv", "one column"] == pytest.approx(by[place, "csv", "all columns"], rel=0.1)
    assert not [key for key in server.keys("archive", tmp_path.name) if not key.endswith("/")]


def test_what_is_there_is_not_overwritten(spark: SparkSession, server: Server, tmp_path: Path) -> None:
    server.client().put_object(Bucket="archive", Key=f"{tmp_path.name}/precious", Body=b"1")
    with pytest.raises(reading.ReadingError, match="is there; name a directory that is not"):
        reading.run(spark, reading.arguments(["--at", f"s3a://archive/{tmp_path.name}"]))
    assert server.keys("archive", f"{tmp_path.name}/") == [f"{tmp_path.name}/precious"]
    with pytest.raises(reading.ReadingError, match="only what comes over the network"):
        reading.run(spark, reading.arguments(["--at", f"file://{tmp_path}/io", "--rows", "10", "--formats", "csv"]))
