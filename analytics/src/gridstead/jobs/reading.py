"""How long Spark waits for storage: requests, bytes and times to the first byte, by place and file format.

One table is written to each place (a directory of HDFS, of an object store) in each format, then read in two ways, one
column and all of them, each several times. Meanwhile the JVM's own flight recorder notes every call of its sockets
(:mod:`gridstead.wire`). Spark runs in this process (``--master local[N]``): what is measured is the way from this host
to the storage. The pages of files may be in memory of the servers: what is compared is the way to them, not disks.

Prints one JSON object; progress goes to standard error. Exit status: 0 done, 1 failed, 2 wrong use or configuration.
"""

from __future__ import annotations

import argparse
import json
import logging
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from gridstead import config as configuration
from gridstead import formats, wire
from gridstead.archive.files import Files
from gridstead.jobs.session import log_to_stderr, session
from gridstead.jobs.usage import stored

log = logging.getLogger("gridstead.reading")

SETTINGS: Final = {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "2", "spark.eventLog.enabled": "false"}
QUERIES: Final = ("one column", "all columns")
STEPS: Final = tuple(percent / 2 for percent in range(1, 201))
"""Percentiles of the times to the first byte that a plot is made of."""
_TOOL: Final = "jdk.jfr/jdk.jfr.internal.tool.Main"


class ReadingError(Exception):
    """Something cannot be measured; the text says what, and what can."""


def table(spark: SparkSession, rows: int, files: int) -> DataFrame:
    """A table like that of events: texts of few and of many values, times and sizes."""
    number = F.xxhash64("id")

    def one_of(count: int) -> Column:
        return F.pmod(number, F.lit(count)).cast("string")

    name = F.hex(F.xxhash64(one_of(50_000)))
    start = F.lit(1_700_000_000_000) + F.col("id") * 40
    return spark.range(0, rows, 1, files).select(
        F.hex(number).alias("event_id"),
        F.concat(F.lit("/store/data/run"), one_of(900), F.lit("/"), name, F.lit(".root")).alias("file"),
        F.concat(F.lit("user"), one_of(700)).alias("user"),
        F.concat(F.lit("client"), one_of(3_000), F.lit(".example.org")).alias("client_host"),
        F.concat(F.lit("server"), one_of(300), F.lit(".example.org")).alias("server_host"),
        start.alias("start_ms"),
        (start + F.pmod(number, F.lit(4_000_000))).alias("end_ms"),
        F.pmod(number, F.lit(1 << 31)).alias("read_bytes"),
        F.pmod(number, F.lit(7)).alias("opens"),
        (F.pmod(number, F.lit(2)) == 0).alias("remote"),
    )


@dataclass(frozen=True)
class Place:
    """Where files are, and the servers that the bytes come from."""

    url: str
    servers: frozenset[tuple[str, int]]


def servers_of(spark: SparkSession, url: str) -> frozenset[tuple[str, int]]:
    """The servers, by address and port, that files below a place are read from. Raises ReadingError."""
    jvm: Any = spark._jvm
    conf: Any = spark._jsc.hadoopConfiguration()
    path = jvm.org.apache.hadoop.fs.Path(url)
    system = path.getFileSystem(conf)
    scheme = system.getScheme()
    names: set[tuple[str, int]] = set()
    if scheme == "s3a":
        bucket = path.toUri().getHost()
        endpoint = conf.get(f"fs.s3a.bucket.{bucket}.endpoint") or conf.get("fs.s3a.endpoint") or ""
        region = conf.get("fs.s3a.endpoint.region") or "us-east-1"
        parts = urlsplit(endpoint if "//" in endpoint else f"https://{endpoint or f's3.{region}.amazonaws.com'}")
        host = parts.hostname or ""
        if conf.get("fs.s3a.path.style.access") != "true":
            host = f"{bucket}.{host}"
        names.add((host, parts.port or (80 if parts.scheme == "http" else 443)))
    elif scheme in ("hdfs", "webhdfs"):
        listed = system.listFiles(path, True)
        while listed.hasNext():
            for block in listed.next().getBlockLocations():
                for name in block.getNames():
                    host, _, port = name.rpartition(":")
                    names.add((host, int(port)))
    else:
        raise ReadingError(f"{url} is on {scheme}://: only what comes over the network can be measured, hdfs:// and s3a://")
    addresses = {(str(entry[4][0]), port) for host, port in names for entry in socket.getaddrinfo(host, port)}
    return frozenset(names | addresses)


class Recorder:
    """The flight recorder of this process's JVM, for one measurement after the other."""

    def __init__(self, spark: SparkSession, directory: Path) -> None:
        jvm: Any = spark._jvm
        self._jvm = jvm
        self._file = directory / "recording.jfr"
        self._java = f"{self._jvm.java.lang.System.getProperty('java.home')}/bin/java"

    def __enter__(self) -> Recorder:
        """Begin."""
        self._recording = self._jvm.jdk.jfr.Recording()
        settings = self._recording.getSettings()
        for name in (wire.READ, wire.WRITE):
            for key, value in (("enabled", "true"), ("threshold", "0 ns"), ("stackTrace", "false")):
                settings.put(f"{name}#{key}", value)
        self._recording.setSettings(settings)
        self._recording.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._recording.stop()
        self._recording.dump(self._jvm.java.io.File(str(self._file)).toPath())
        self._recording.close()

    def requests(self, servers: frozenset[tuple[str, int]]) -> list[wire.Request]:
        """The requests to these servers of the measurement that has ended. Raises ReadingError."""
        command = [self._java, "-m", _TOOL, "print", "--json", "--events", f"{wire.READ},{wire.WRITE}", str(self._file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ReadingError(f"the flight recorder of {self._java} cannot be read: {done.stderr.strip()[-500:]}")
        return wire.requests(wire.transfers(json.loads(done.stdout), servers))


def query(frame: DataFrame, which: str) -> int:
    """Read one column or all of them; the result depends on every value."""
    columns = ["read_bytes"] if which == QUERIES[0] else frame.columns
    return int(frame.agg(F.bit_xor(F.xxhash64(*columns)).alias("digest")).first()["digest"])  # type: ignore[index]


def measure(
    spark: SparkSession, recorder: Recorder, place: Place, path: str, format_: str, schema: Any, which: str, repeat: int
) -> dict[str, Any]:
    """Run one query several times; the first run, which starts code and connections, is not counted."""
    digests, seconds, found = set(), [], []
    for attempt in range(repeat + 1):
        frame = formats.read(spark, path, schema, format_)
        with recorder:
            begun = time.monotonic()
            digests.add(query(frame, which))
            took = time.monotonic() - begun
        if attempt:
            seconds.append(round(took, 3))
            found.append(recorder.requests(place.servers))
    if len(digests) != 1:
        raise ReadingError(f"{path} was read {repeat + 1} times and not always the same came")
    every = [request for run in found for request in run]
    if not every:
        servers = ", ".join(f"{host}:{port}" for host, port in sorted(place.servers))
        raise ReadingError(f"reading {path}, no request to {servers} was seen")
    first = [request.first_byte_ms for request in every]
    return {
        "digest": digests.pop(),
        "seconds": seconds,
        "requests": round(len(every) / repeat, 1),
        "reads": round(sum(request.reads for request in every) / repeat, 1),
        "bytes": round(sum(request.bytes for request in every) / repeat),
        "first_byte_ms": wire.percentiles(first),
        "request_ms": wire.percentiles([request.took_ms for request in every]),
        "request_bytes": wire.percentiles([request.bytes for request in every]),
        "first_byte_steps_ms": list(wire.percentiles(first, STEPS).values()),
    }


def run(spark: SparkSession, options: argparse.Namespace) -> dict[str, Any]:
    """Write, measure and delete, place by place and format by format. Raises ReadingError."""
    results: list[dict[str, Any]] = []
    digests: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="gridstead-reading-") as scratch:
        recorder = Recorder(spark, Path(scratch))
        for url in options.at:
            if Files(spark, url).exists(""):
                raise ReadingError(f"{url} is there; name a directory that is not, since it is deleted at the end")
            frame = table(spark, options.rows, options.files)
            try:
                for format_ in options.formats:
                    path = f"{url.rstrip('/')}/{format_}"
                    log.info("writing %s", path)
                    formats.write(frame, path, format_, options.codec)
                    place = Place(url, servers_of(spark, path))
                    files, size = stored(spark, path)
                    for which in QUERIES:
                        log.info("reading %s of %s", which, path)
                        answer = measure(spark, recorder, place, path, format_, frame.schema, which, options.repeat)
                        if digests.setdefault(which, answer["digest"]) != answer.pop("digest"):
                            raise ReadingError(f"{which} of {path} are not what the other places or formats hold")
                        head = {"place": url, "format": format_, "query": which, "files": files, "stored_bytes": size}
                        results.append(head | answer)
            finally:
                Files(spark, url).delete("")
    return {"rows": options.rows, "codec": options.codec, "repeat": options.repeat, "results": results}


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="gridstead-reading", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", metavar="FILE", help="gridstead.toml (default: as found by every command)")
    parser.add_argument("--at", metavar="URL", action="append", required=True, help="a directory that is not there yet")
    parser.add_argument("--rows", type=int, default=500_000, help="rows of the table (default: %(default)s)")
    parser.add_argument("--files", type=int, default=8, help="files of the table (default: %(default)s)")
    parser.add_argument("--formats", nargs="+", choices=formats.FORMATS, default=list(formats.FORMATS))
    parser.add_argument("--codec", choices=("none", "snappy"), default="snappy")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each query (default: %(default)s)")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Entry point of the application."""
    options = arguments(list(given) if given is not None else None)
    log_to_stderr("reading")
    try:
        configuration.load(options.config)
    except configuration.ConfigError as error:
        log.error("%s", error)
        return 2
    spark = session("gridstead-reading", "local[2]", SETTINGS)
    try:
        spark.sparkContext.setLogLevel("ERROR")
        if not str(spark.sparkContext.master).startswith("local"):
            raise ReadingError(f"the master is {spark.sparkContext.master}: only local[N] is measured, from this host")
        print(json.dumps(run(spark, options)), flush=True)
    except (ReadingError, OSError, PySparkException, Py4JJavaError) as error:
        print(json.dumps({"error": str(error).strip().partition("\n")[0]}), flush=True)
        return 1
    finally:
        spark.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
