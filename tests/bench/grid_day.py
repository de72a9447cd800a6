"""A day of a grid's file accesses as an archive: deterministic, of any size, made by Spark's own expressions.

Cardinalities as of a large grid: 4 VOs carry nearly everything, 170 domains, each read from by at most PEERS others
(3,500 pairs), 3,000 users and 3 million files, all of them Zipf-like; 95 % of the accesses last two minutes on average,
5 % from ten minutes to twelve hours. Some rows come twice (3 %, half of them under a new producer's id), some are later versions
of an access with more bytes (2 %).
"""

from __future__ import annotations

import datetime as dt
import math

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from gridstead.schema import PARSED

DAY = dt.date(2024, 6, 3)
DAY_MS = int(dt.datetime(DAY.year, DAY.month, DAY.day, tzinfo=dt.UTC).timestamp()) * 1000
ROWS_PER_FILE = 1_250_000
FILES = 3_000_000
PEERS = 20
VOS = ("cms", "atlas", "lhcb", "alice")
TOPIC = "gridstead.events"
PARTITIONS = 3
AGAIN_WITHIN = 100_000
"""A row that comes again does so at most this many rows later."""


def events(spark: SparkSession, count: int, peers: int = PEERS) -> DataFrame:
    """``count`` rows of schema.PARSED in the order of the log (column ``offset``), without malformed ones."""
    row = F.col("id")
    chance = _uniform("kind", row)
    earlier = F.greatest(row - 1 - (_uniform("back", row) * AGAIN_WITHIN).cast("long"), F.lit(0).cast("long"))
    rows = spark.range(0, count, 1, max(1, math.ceil(count / ROWS_PER_FILE))).select(
        row,
        F.when(chance < 0.05, earlier).otherwise(row).alias("n"),  # which access it is
        chance.between(0.03, 0.05).alias("later"),
        (chance < 0.015).alias("renamed"),
    )
    n = F.col("n")
    span = F.when(
        _uniform("tail", n) < 0.05, F.exp(_uniform("length", n) * math.log(72)) * 600_000
    ).otherwise(-120_000 * F.log(1 - _uniform("length", n)))
    base_end = DAY_MS + (n.cast("double") / count * (86_400_000 - 400_000)).cast("long")
    size = F.exp(_uniform("size", n) * math.log(10_000) + math.log(1_000_000)).cast("long")
    kind = _uniform("activity", n)
    moved = (size * F.when(_uniform("whole", n) < 0.3, 1.0).otherwise(_uniform("part", n) * 0.9)).cast("long")
    server, near = _rank("server", n, 170), _uniform("near", n) < 0.7
    client = F.when(near, server).otherwise((server * 7 + _rank("client", n, peers) * 11) % 170)
    vo = F.pmod(F.floor(server / 3) + _rank("vo", n, 2), F.lit(4))  # a site serves two of the large VOs
    user = _rank("user", n, 3000)
    file = _rank("file", n, FILES)
    made = rows.select(
        "*",
        (base_end - span.cast("long")).alias("start"),
        (base_end + F.when(F.col("later"), 60_000).otherwise(0) + F.pmod(row, F.lit(977))).alias("arrival"),
        (base_end + F.when(F.col("later"), 60_000).otherwise(0)).alias("end"),
        size.alias("size"),
        moved.alias("moved"),
        kind.alias("kind"),
        F.concat(F.lit("site"), server, F.lit(".grid.example.org")).alias("server"),
        F.concat(F.lit("site"), client, F.lit(".grid.example.org")).alias("client"),
        F.when(_uniform("small", n) < 0.01, F.concat(F.lit("vo"), _rank("smaller", n, 40)))
        .when(_uniform("small", n) < 0.99, F.element_at(F.array(*map(F.lit, VOS)), (vo + 1).cast("int"))).alias("vo"),
        F.concat(F.lit("user"), user).alias("user"),
        file.alias("file"),
    )  # fmt: skip
    wrote, read = F.col("kind") < 0.2, F.col("kind").between(0.2, 0.95)
    more = F.when(F.col("later"), F.lit(4096)).otherwise(0).cast("long")
    bytes_read = F.when(read, F.col("moved") + more).otherwise(0).cast("long")
    columns = {
        "event_id": F.concat(_hex("access", n), F.lower(F.lpad(F.hex(F.xxhash64(F.lit("version"), n, "later")), 16, "0"))),
        "source": F.lit("access"),
        "producer_id": F.concat(_hex("producer", n), _hex("renamed", F.when(F.col("renamed"), row).otherwise(0))),
        "server_host": F.concat(F.lit("se"), _among("se", n, 32), F.lit("."), F.col("server")),
        "server_domain": F.col("server"),
        "server_username": F.concat(F.lit("pool"), _among("pool", n, 64)),
        "client_host": F.concat(F.lit("wn"), _among("wn", n, 1024), F.lit("."), F.col("client")),
        "client_domain": F.when(_uniform("nameless", n) >= 0.02, F.col("client")),
        "user": F.when(_uniform("anonymous", n) >= 0.01, F.col("user")),
        "user_dn": F.concat(F.lit("/DC=org/DC=example/OU=Users/CN="), F.col("user")),
        "vo": F.col("vo"),
        "app_info": F.when(_uniform("app", n) < 0.5, "job-runner/1.2"),
        "file_lfn": F.concat(
            F.lit("/store/data/Run"), F.col("file") % 10, F.lit("/Dataset"), F.col("file") % 2000,
            F.lit("/MINIAOD/v1-"), F.col("file") % 17, F.lit("/"), F.col("file"), F.lit(".root"),
        ),
        "file_ref": F.lit(None).cast("string"),
        "file_size": F.when(_uniform("sized", n) >= 0.02, F.col("size")),
        "start_ms": F.col("start"),
        "end_ms": F.col("end"),
        "read_bytes": bytes_read,
        "read_single_bytes": F.when(F.col("kind") < 0.6, bytes_read).otherwise(bytes_read % 1000),
        "read_vector_bytes": F.when(F.col("kind") < 0.6, F.lit(0)).otherwise(bytes_read - bytes_read % 1000).cast("long"),
        "write_bytes": F.when(wrote, F.col("moved") + more).otherwise(0).cast("long"),
        "open_missing": F.lit(False),
        "clock_clamped": F.lit(False),
        "received_ms": F.col("arrival"),
        "topic": F.lit(TOPIC),
        "partition": _among("partition", n, PARTITIONS).cast("int"),
        "offset": row,
        "timestamp": F.timestamp_millis(F.col("arrival") + 1500),
        "malformed": F.lit(None).cast("string"),
        "raw": F.lit(None).cast("binary"),
    }  # fmt: skip
    return made.select(*[columns[name].alias(name) for name in PARSED.names])


def _uniform(seed: str, n: Column) -> Column:
    """A number in [0, 1) that depends on the seed and n alone."""
    return F.pmod(F.xxhash64(F.lit(seed), n), F.lit(1 << 40)) / float(1 << 40)


def _among(seed: str, n: Column, count: int) -> Column:
    """A number from 0 to count - 1."""
    return F.pmod(F.xxhash64(F.lit(seed), n), F.lit(count))


def _rank(seed: str, n: Column, most: int) -> Column:
    """A rank from 0 to most - 1, the probability of rank r about 1 / r."""
    return F.least((F.exp(_uniform(seed, n) * math.log(most + 1)) - 1).cast("long"), F.lit(most - 1))


def _hex(seed: str, n: Column) -> Column:
    return F.lower(F.lpad(F.hex(F.xxhash64(F.lit(seed), n)), 16, "0"))
