"""The normalised event as Spark sees it: one table of fields, the StructType made from it, and the parser of Kafka
rows.

:data:`FIELDS` is the only place where a field's type, unit, meaning and origin are written; :data:`EVENT` and the data
dictionary (:func:`dictionary_markdown`) come from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    BinaryType,
    BooleanType,
    DataType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)


@dataclass(frozen=True)
class Field:
    """One field of the normalised event: Spark type, unit ("" where it has none), meaning, and where it comes from."""

    name: str
    type: DataType
    unit: str
    meaning: str
    origin: str
    required: bool = False


_S, _L, _B = StringType(), LongType(), BooleanType()

FIELDS: Final[tuple[Field, ...]] = (
    Field("event_id", _S, "", "identity made of the content: 32 hex digits", "events.event_id", required=True),
    Field("source", _S, "", "xrootd or access; the first level of the archive", "collector", required=True),
    Field("producer_id", _S, "", "the producer's own id; drawn anew when a record is converted again", "unique_id"),
    Field("server_host", _S, "", "host that served the file", "server_host; XRootD: address of the sender"),
    Field("server_domain", _S, "", "domain of the server", "server_domain"),
    Field("server_username", _S, "", "account on the server", "server_username"),
    Field("client_host", _S, "", "host that read or wrote", "client_host"),
    Field("client_domain", _S, "", "domain of the client", "client_domain"),
    Field("user", _S, "", "user name", "user"),
    Field("user_dn", _S, "", "distinguished name of the user's certificate", "user_dn"),
    Field("vo", _S, "", "virtual organisation", "vo"),
    Field("app_info", _S, "", "what the application said of itself", "app_info"),
    Field("file_lfn", _S, "", "logical file name", "file_lfn; XRootD: name in the open record"),
    Field(
        "file_ref", _S, "", "XRootD: one open of one file in one run of one server", "file id, server start, server id"
    ),
    Field("file_size", _L, "bytes", "size of the file when opened", "file_size; XRootD: open record"),
    Field(
        "start_ms", _L, "ms since epoch UTC", "start of the access", "start_time; XRootD: window begin", required=True
    ),
    Field("end_ms", _L, "ms since epoch UTC", "end of the access", "end_time; XRootD: window end", required=True),
    Field("read_bytes", _L, "bytes", "bytes read: the larger of the producer's counters", "read_bytes*", required=True),
    Field("read_single_bytes", _L, "bytes", "bytes read by single reads", "read_single_bytes; XRootD: read"),
    Field("read_vector_bytes", _L, "bytes", "bytes read by vector reads", "read_vector_bytes; XRootD: readv"),
    Field("write_bytes", _L, "bytes", "bytes written", "write_bytes*; XRootD: write", required=True),
    Field("open_missing", _B, "", "the open was lost, so start = end", "collector"),
    Field("clock_clamped", _B, "", "the producer's clock was over a day ahead and was set back", "collector"),
    Field("received_ms", _L, "ms since epoch UTC", "when the collector had it; not part of the identity", "collector"),
)

EVENT: Final = StructType([StructField(f.name, f.type, nullable=True) for f in FIELDS])
"""The normalised event on the wire. All nullable: what is missing is found by :func:`parse_events`, not by a crash."""

POSITION: Final = StructType(
    [
        StructField("topic", StringType()),
        StructField("partition", IntegerType()),
        StructField("offset", LongType()),
        StructField("timestamp", TimestampType()),
    ]
)
"""Where in the log a row stands; ``timestamp`` is the broker's (the topic has message.timestamp.type=LogAppendTime)."""

FAULT: Final = StructType([StructField("malformed", StringType()), StructField("raw", BinaryType())])
"""Why a row is no event (null: it is one), and then its bytes as they were in the log."""

PARSED: Final = StructType([*EVENT.fields, *POSITION.fields, *FAULT.fields])
"""What :func:`parse_events` returns."""

MAX_BYTES: Final = 1 << 60
"""A single event of more bytes than this (1 EiB) is no measurement; it also keeps read + write inside 64 bits."""

MAX_TIME_MS: Final = 253_402_300_799_999
"""The last ms of the year 9999; the date of a later time has no place in the archive."""

MALFORMED_SOURCE: Final = "malformed"
"""``source`` of rows that are no events: they are archived too, so that no position of the log is missing."""

_SOURCE_PATTERN = "^[a-z0-9_-]{1,32}$"


def parse_events(kafka: DataFrame) -> DataFrame:
    """Turn Kafka rows into typed rows of :data:`PARSED`; every input row gives exactly one output row.

    Input: columns ``value`` (binary), ``topic``, ``partition``, ``offset``, ``timestamp``. JSON is parsed in the JVM,
    one pass for all fields. A row that is no event (not JSON, a required field missing or of a wrong type, start
    after end, a negative or absurd count) has ``event_id`` null, ``source`` :data:`MALFORMED_SOURCE`, the reason in
    ``malformed`` and its bytes in ``raw``; nothing here raises. Use :func:`well_formed` to leave such rows out.
    """
    position = [F.col(name) for name in POSITION.names]
    parsed = kafka.select(F.from_json(F.col("value").cast("string"), EVENT).alias("e"), "value", *position)
    flat = parsed.select(*[F.col("e")[name].alias(name) for name in EVENT.names], "value", *POSITION.names)
    judged = flat.withColumn("malformed", _fault())
    good = F.col("malformed").isNull()
    fields = [F.when(good, F.col(name)).alias(name) for name in EVENT.names if name != "source"]
    source = (
        F.when(~good, F.lit(MALFORMED_SOURCE))
        .when(F.col("source").rlike(_SOURCE_PATTERN) & (F.col("source") != MALFORMED_SOURCE), F.col("source"))
        .otherwise(F.lit("other"))
    )
    fields.insert(EVENT.names.index("source"), source.alias("source"))
    return judged.select(*fields, *POSITION.names, "malformed", F.when(~good, F.col("value")).alias("raw"))


def well_formed(parsed: DataFrame) -> DataFrame:
    """Keep the rows that are events: schema :data:`EVENT` followed by :data:`POSITION`."""
    return parsed.where(F.col("event_id").isNotNull()).select(*EVENT.names, *POSITION.names)


def _fault() -> Column:
    required = [f.name for f in FIELDS if f.required]
    reason = F.when(F.length("event_id") != 32, F.lit("event_id is not 32 characters"))
    for name in required:
        reason = reason.when(F.col(name).isNull(), F.lit(f"{name} is missing, or the row is not a JSON object"))
    reason = reason.when(F.col("start_ms") > F.col("end_ms"), F.lit("start_ms is after end_ms"))
    reason = reason.when(
        (F.col("start_ms") < 0) | (F.col("end_ms") > MAX_TIME_MS), F.lit("a time is before 1970 or after 9999")
    )
    for name in ("read_bytes", "write_bytes"):
        reason = reason.when(~F.col(name).between(0, MAX_BYTES), F.lit(f"{name} is not from 0 to {MAX_BYTES}"))
    return reason


def dictionary_markdown() -> str:
    """The data dictionary of the normalised event: a Markdown table made from :data:`FIELDS`."""
    lines = ["| field | type | unit | meaning | from |", "|---|---|---|---|---|"]
    for f in FIELDS:
        kind = f.type.simpleString() + (", required" if f.required else "")
        lines.append(f"| `{f.name}` | {kind} | {f.unit} | {f.meaning} | {f.origin} |")
    return "\n".join(lines) + "\n"
