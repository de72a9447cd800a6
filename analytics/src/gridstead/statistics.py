"""Statistics of events by time bin: pure DataFrame functions, the same for batch, stream and tests.

All of them are additive: each value is a sum of integers over events, so a change of the counted events is a change of
the sums. What a bin is and how an event is shared out over bins: :mod:`gridstead.shares`. The definitions are those of
DOMAIN; "unknown" stands for what is null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType, DataType, StringType, StructField, StructType

from gridstead.shares import BIN_MS, MAX_BINS, by_bin
from gridstead.statistic import STATISTICS, Statistic

UNKNOWN: Final = "unknown"

LABEL_CHARACTERS: Final = 255
"""A name in a key is cut after this many characters: no VO or domain is longer, and a search engine's terms are
bounded."""

FILE_CHARACTERS: Final = 4096
"""The same for a file's name: no file system takes a longer path, and in UTF-8 it stays below 32,766 bytes, a search
engine's longest term."""

KEY_BYTES: Final = 512
"""A longer key is replaced by its SHA-256 (the bin stays readable): the search engine takes ids up to this size."""

LONG_MAX: Final = (1 << 63) - 1

_DIMENSIONS: Final = ("vo", "src", "dst", "server_domain", "file", "user_domain", "user", "is_remote", "is_transfer",
                      "activity")  # fmt: skip
"""All dimensions, in an order that contains that of every statistic."""

_SUMMED: Final = {"active": "events", "bytes": "moved", "active_time": "time"}
"""Values of a statistic that are the sum of a column of another name."""

_NEEDS: Final = {"transfers": ("moved",), "access": ("read_bytes", "write_bytes"), "presence": (),
                 "users": ("read_single_bytes", "read_vector_bytes")}  # fmt: skip
"""The amounts to be shared out over bins."""


def statistics(
    events: DataFrame, which: Sequence[str] = tuple(STATISTICS), bin_ms: int = BIN_MS, max_bins: int = MAX_BINS
) -> DataFrame:
    """Statistics of events, any of :data:`STATISTICS` in one pass and one shuffle.

    Input: distinct well-formed events (schema.EVENT). A column ``sign`` (+1: counted now, -1: no longer counted) makes
    it changes, and the result is what to add; then rows whose values are all 0 are left out. Output:

    - ``statistic``: its name; ``key``: the key's parts and ``bin_end_ms`` joined by "|" (in names % and | are written
      %25 and %7C), a key of over :data:`KEY_BYTES` as ``sha256-<hex>|<bin_end_ms>``; the id of the document
    - ``bin_end_ms``: bigint; ``dimensions``: a JSON object of the key's parts without the bin, names in full
    - ``values``: array of bigint in the order of ``STATISTICS[statistic].values``. A sum that leaves 64 bits reads
      2**63 - 1

    Dimensions:

    - ``src``, ``dst``: domains, or the host where only that is known. Data flows client -> server on activity "w",
      server -> client otherwise. ``activity``: "w" if bytes were written, else "r" if bytes were read, else "u"
    - ``server_domain``: as in src and dst. ``user_domain``: the client's domain, else the user name on the server (and
      not the client's host: the statistic asks who reads a file, and a farm has thousands of hosts). ``file``: the
      logical name
    - ``is_remote``: both domains are known and differ. ``is_transfer``: read + written = file size > 0

    Values, each of the events that overlap the bin:

    - ``active``, ``events``: their number; ``finished``: of those whose last bin it is; ``capped``: of those whose part
      before the cap is booked here
    - ``bytes``: read + written, shared out; ``active_time``: overlap, ms
    - ``reads``, ``read_bytes``, ``read_time``: events that read anything, the bytes they read here, and their overlap,
      ms; ``writes``, ``write_bytes``, ``write_time`` likewise
    - ``read_single_bytes``, ``read_vector_bytes``: shared out, each by itself; unknown counts 0
    - ``file_size_sum``: the sum of the known file sizes, whole in every bin; ``file_size_known``: how many are known

    ``presence`` leaves out events of an unknown user: its documents of a bin are the distinct active users.
    """
    wanted = _wanted(which)
    signed = "sign" in events.columns
    described = _described(events.withColumn("sign", (F.col("sign") if signed else F.lit(1)).cast("long")), "sign")
    amounts = sorted({amount for statistic in wanted for amount in _NEEDS[statistic.name]})
    dimensions = [name for name in _DIMENSIONS if any(name in statistic.dimensions for statistic in wanted)]
    carried = [*dimensions, "size", "did_read", "did_write", "sign"]
    binned = by_bin(described, amounts, carried, bin_ms, max_bins)
    contributions = _contributions(binned, amounts)
    summed = {_SUMMED.get(value, value) for statistic in wanted for value in statistic.values}
    sums = [F.try_sum(name).alias(name) for name in sorted(summed)]
    if len(wanted) == 1:  # a grouping set copies each row
        totals = contributions.groupBy(*dimensions, "bin_end_ms").agg(F.lit(wanted[0].name).alias("statistic"), *sums)
    else:
        sets = [[*statistic.dimensions, "bin_end_ms"] for statistic in wanted]
        which_one = _which(wanted, dimensions).alias("statistic")
        totals = contributions.groupingSets(sets, *dimensions, "bin_end_ms").agg(which_one, *sums)
    if "presence" in which:
        totals = totals.where((F.col("statistic") != "presence") | (F.col("user") != UNKNOWN))
    table = totals.select(
        "statistic",
        _key(dimensions).alias("key"),
        "bin_end_ms",
        F.to_json(F.struct(*dimensions), {"ignoreNullFields": "true"}).alias("dimensions"),
        _values(wanted).alias("values"),
    )
    return table.where(F.exists("values", lambda value: value != 0)) if signed else table


def typed(table: DataFrame, name: str, bin_ms: int = BIN_MS) -> DataFrame:
    """One statistic as a flat table: ``key``, its dimensions, ``bin_end_ms``, ``bin_ms``, its values.

    ``table`` is what :func:`statistics` gave, with the same ``bin_ms``. ``access`` gets a last column
    ``average_file_size`` (double, bytes; null where no size is known). Raises KeyError for an unknown name.
    """
    statistic = STATISTICS[name]
    schema = StructType([StructField(part, _type(part)) for part in statistic.dimensions])
    parts = table.where(F.col("statistic") == name).withColumn("_d", F.from_json("dimensions", schema))
    average = F.try_divide(F.col("file_size_sum").cast("double"), F.col("file_size_known").cast("double"))
    flat = parts.select(
        "key",
        *[F.col("_d")[part].alias(part) for part in statistic.dimensions],
        "bin_end_ms",
        F.lit(bin_ms).cast("long").alias("bin_ms"),
        *[F.col("values")[index].alias(value) for index, value in enumerate(statistic.values)],
    )
    return flat.withColumn("average_file_size", average) if "file_size_known" in statistic.values else flat


def _wanted(which: Sequence[str]) -> list[Statistic]:
    unknown = sorted(set(which) - STATISTICS.keys())
    if unknown or not which:
        raise ValueError(f"no such statistics: {unknown or 'none given'}; there are {', '.join(STATISTICS)}")
    return [statistic for name, statistic in STATISTICS.items() if name in which]


def _described(events: DataFrame, carried: str) -> DataFrame:
    """Events with the dimensions and amounts of all statistics, and ``carried``; unused ones the optimiser drops."""
    wrote, read = F.col("write_bytes") > 0, F.col("read_bytes") > 0
    moved = F.col("read_bytes") + F.col("write_bytes")
    client = _label(F.coalesce("client_domain", "client_host"))
    server = _label(F.coalesce("server_domain", "server_host"))
    return events.select(
        "start_ms", "end_ms", "read_bytes", "write_bytes",
        moved.alias("moved"),
        *[F.greatest(F.coalesce(name, F.lit(0)), F.lit(0)).alias(name)
          for name in ("read_single_bytes", "read_vector_bytes")],
        F.when(F.col("file_size") >= 0, F.col("file_size")).alias("size"),
        read.alias("did_read"),
        wrote.alias("did_write"),
        carried,
        _label(F.col("vo")).alias("vo"),
        F.when(wrote, client).otherwise(server).alias("src"),
        F.when(wrote, server).otherwise(client).alias("dst"),
        server.alias("server_domain"),
        _label(F.col("file_lfn"), FILE_CHARACTERS).alias("file"),
        _label(F.coalesce("client_domain", "server_username")).alias("user_domain"),
        _label(F.col("user")).alias("user"),
        F.coalesce(F.col("client_domain") != F.col("server_domain"), F.lit(False)).alias("is_remote"),
        F.coalesce((moved == F.col("file_size")) & (moved > 0), F.lit(False)).alias("is_transfer"),
        F.when(wrote, "w").when(read, "r").otherwise("u").alias("activity"),
    )  # fmt: skip


def _contributions(binned: DataFrame, amounts: Sequence[str]) -> DataFrame:
    """What each event adds to each value in each bin, its sign included."""
    sign = F.col("sign")

    def only(condition: Column, value: Column) -> Column:
        return F.when(condition, value).otherwise(F.lit(0).cast("long"))

    return binned.withColumns({
        **{name: F.col(name) * sign for name in amounts},
        "events": sign,
        "finished": only(F.col("ends"), sign),
        "capped": only(F.col("cut"), sign),
        "time": F.col("time") * sign,
        "file_size_sum": only(F.col("size").isNotNull(), F.col("size") * sign),
        "file_size_known": only(F.col("size").isNotNull(), sign),
        "reads": only(F.col("did_read"), sign),
        "read_time": only(F.col("did_read"), F.col("time") * sign),
        "writes": only(F.col("did_write"), sign),
        "write_time": only(F.col("did_write"), F.col("time") * sign),
    })  # fmt: skip


def _which(wanted: Sequence[Statistic], dimensions: Sequence[str]) -> Column:
    """The name of the statistic that a grouping set belongs to: the dimensions that it groups by tell."""
    grouping = F.grouping_id(*dimensions, "bin_end_ms")
    name = F.lit(None).cast("string")
    for statistic in wanted:
        absent = "".join("0" if dimension in statistic.dimensions else "1" for dimension in dimensions)
        name = F.when(grouping == int(absent + "0", 2), statistic.name).otherwise(name)
    return name


def _values(wanted: Sequence[Statistic]) -> Column:
    values = F.lit(None).cast("array<bigint>")
    for statistic in wanted:
        sums = [F.coalesce(_SUMMED.get(value, value), F.lit(LONG_MAX)) for value in statistic.values]
        values = F.when(F.col("statistic") == statistic.name, F.array(*sums)).otherwise(values)
    return values


def _label(name: Column, characters: int = LABEL_CHARACTERS) -> Column:
    known = F.coalesce(name, F.lit(UNKNOWN))
    return F.when(F.octet_length(known) <= characters, known).otherwise(F.substring(known, 1, characters))


def _type(dimension: str) -> DataType:
    return BooleanType() if dimension.startswith("is_") else StringType()


def _key(dimensions: Sequence[str]) -> Column:
    """The key's parts joined; null is what a statistic does not group by."""

    def escaped(name: str) -> Column:
        if isinstance(_type(name), BooleanType):
            return F.col(name).cast("string")
        return F.replace(F.replace(F.col(name), F.lit("%"), F.lit("%25")), F.lit("|"), F.lit("%7C"))

    key = F.concat_ws("|", *[escaped(name) for name in dimensions], F.col("bin_end_ms").cast("string"))
    short = F.concat(F.lit("sha256-"), F.sha2(key, 256), F.lit("|"), F.col("bin_end_ms").cast("string"))
    return F.when(F.octet_length(key) > KEY_BYTES, short).otherwise(key)
