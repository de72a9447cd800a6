"""The normalised event as Spark sees it: one table of fields, the StructType made from it, and the parser of Kafka
rows; and the StructTypes of the sources' records.

:data:`FIELDS` is the only place where a field's type, unit, meaning and origin are written, as each source's FIELDS is
for its records; the StructTypes and the data dictionary (``tools/data_dictionary.py``) come from them.
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
    DoubleType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from gridstead.events import EVENT_ID_DIGITS
from gridstead.sources import SOURCES


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
    Field(
        "event_id",
        _S,
        "",
        "made of the content: 16 hex digits for the access, 16 for its version",
        "events.event_id",
        required=True,
    ),
    Field("source", _S, "", "access, xrootd, fts or rucio; the first level of the archive", "collector", required=True),
    Field(
        "producer_id",
        _S,
        "",
        "the producer's own id; drawn anew when an access record is converted again",
        "unique_id; FTS: tr_id; Rucio: uuid",
    ),
    Field(
        "server_host",
        _S,
        "",
        "host that served the file",
        "server_host; XRootD: address of the sender; FTS: the source; Rucio: the storage element",
    ),
    Field("server_domain", _S, "", "domain of the server", "server_domain; FTS: of its host name; Rucio: site"),
    Field("server_username", _S, "", "account on the server", "server_username"),
    Field("client_host", _S, "", "host that read or wrote", "client_host; FTS: the destination; Rucio: hostname"),
    Field("client_domain", _S, "", "domain of the client", "client_domain; FTS: of its host name; Rucio: localSite"),
    Field("user", _S, "", "user name", "user; Rucio: account"),
    Field("user_dn", _S, "", "distinguished name of the user's certificate", "user_dn; Rucio: usrdn"),
    Field("vo", _S, "", "virtual organisation", "vo"),
    Field("app_info", _S, "", "what the application said", "app_info; FTS: activity; Rucio: eventType"),
    Field(
        "file_lfn",
        _S,
        "",
        "logical file name",
        "file_lfn; XRootD: name in the open record; FTS: Rucio's name or the path at the source; Rucio: scope:filename",
    ),
    Field(
        "file_ref",
        _S,
        "",
        "XRootD: one open of one file in one run of one server; FTS: one attempt",
        "file id, server start, server id; tr_id",
    ),
    Field("file_size", _L, "bytes", "size of the file", "file_size; XRootD: open record; FTS: f_size; Rucio: filesize"),
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

_SOURCE_TYPES: Final[dict[str, DataType]] = {
    "string": _S,
    "bigint": _L,
    "boolean": _B,
    "double": DoubleType(),
    "struct<scope:string,name:string>": StructType([StructField("scope", _S), StructField("name", _S)]),
}

SOURCE_RECORDS: Final = {
    source.name: StructType([StructField(f.name, _SOURCE_TYPES[f.type]) for f in source.fields])
    for source in SOURCES.values()
}
"""A source's records as they come, without their envelope; by the name of the source."""

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

_IDENTITY_PATTERN = rf"^[0-9a-f]{{{EVENT_ID_DIGITS}}}\z"
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
    reason = F.when(~F.col("event_id").rlike(_IDENTITY_PATTERN), F.lit("event_id is not 32 hex digits"))
    for name in required:
        reason = reason.when(F.col(name).isNull(), F.lit(f"{name} is missing, or the row is not a JSON object"))
    reason = reason.when(F.col("start_ms") > F.col("end_ms"), F.lit("start_ms is after end_ms"))
    reason = reason.when(
        (F.col("start_ms") < 0) | (F.col("end_ms") > MAX_TIME_MS), F.lit("a time is before 1970 or after 9999")
    )
    for name in ("read_bytes", "write_bytes"):
        reason = reason.when(~F.col(name).between(0, MAX_BYTES), F.lit(f"{name} is not from 0 to {MAX_BYTES}"))
    return reason
