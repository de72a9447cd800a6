"""Statistics of events by time bin: pure DataFrame functions, the same for batch, stream and tests.

Bins are half-open, ``[k * bin_ms, (k + 1) * bin_ms)``, and are named by their end, ``bin_end_ms = (k + 1) * bin_ms``.
An event is the half-open interval [start, end): one that ends exactly on an edge ends in the bin that this edge closes
and does not touch the next. An event of zero length belongs whole to the bin that holds its start.

Shares are integers that add up: with T = end - start, B = bytes, and c(i) the overlap accumulated up to the end of
bin i, bytes(i) = f(c(i)) - f(c(i - 1)), f(c) = q * c + floor(r * c / T), q = B div T, r = B mod T. No term overflows
64 bits: q * c <= B, and r * c < T * T, which fits while T <= 3,037,000,499 ms (35 days); a longer event (never seen,
but a lost clock can make one) takes the same formula in decimal(38).

Cap: of an event that touches more than ``max_bins`` bins the latest ``max_bins`` are kept, and what was moved before
them (bytes and time) is booked whole on the first bin kept. Thus the sum over bins is always the sum over events;
each such event adds 1 to ``capped`` of that bin.
"""

from __future__ import annotations

from typing import Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

BIN_MS: Final = 600_000
MAX_BINS: Final = 1008
"""7 days of 10-minute bins."""

LABEL_CHARACTERS: Final = 255
"""A name in a key is cut after this many characters: no VO or domain is longer, and a search engine's terms are
bounded."""

KEY_BYTES: Final = 512
"""A longer key is replaced by its SHA-256 (the bin stays readable): the search engine takes ids up to this size."""

LONG_MAX: Final = (1 << 63) - 1

TRANSFER_KEY: Final = ("vo", "src", "dst", "is_remote", "is_transfer", "activity", "bin_end_ms")
TRANSFER_COLUMNS: Final = (
    "key",
    *TRANSFER_KEY,
    "bin_ms",
    "active",
    "finished",
    "bytes",
    "active_time",
    "capped",
    "update_time",
)

_SQUARE_FITS: Final = 3_037_000_499  # the largest T whose square is below 2**63


def transfer_statistics(events: DataFrame, bin_ms: int = BIN_MS, max_bins: int = MAX_BINS) -> DataFrame:
    """Transfer statistics by VO, source, destination and bin; source of the definitions: docs of the module, DOMAIN.

    Input: distinct well-formed events (schema.EVENT, and ``timestamp`` of the log where there is one). Output columns,
    in the order of :data:`TRANSFER_COLUMNS`:

    - ``key``: the key's parts joined by "|" (in them % and | are written %25 and %7C); the document id
    - ``vo``, ``src``, ``dst``: null reads "unknown"; the domains, or the host where only that is known. Data flows
      client -> server on activity "w", server -> client otherwise
    - ``is_remote``: both domains are known and differ. ``is_transfer``: read + written = file size > 0
    - ``activity``: "w" if bytes were written, else "r" if bytes were read, else "u"
    - ``bin_end_ms``, ``bin_ms``: end and length of the bin, ms
    - ``active``: events that overlap the bin; ``finished``: events whose last bin it is
    - ``bytes``: read + written, apportioned; ``active_time``: ms, apportioned. Both stop at 2**63 - 1
    - ``capped``: events whose part before the cap is booked here
    - ``update_time``: the latest log timestamp among the events counted, ms; null where the input has none

    One aggregation, native expressions only, so that it is allowed on a stream in update mode.
    """
    if bin_ms < 1 or max_bins < 1:
        raise ValueError(f"bin_ms and max_bins must be at least 1, not {bin_ms} and {max_bins}")
    logged = F.col("timestamp") if "timestamp" in events.columns else F.lit(None).cast("timestamp")
    wrote = F.col("write_bytes") > 0
    moved = F.col("read_bytes") + F.col("write_bytes")
    client = _label(F.coalesce("client_domain", "client_host"))
    server = _label(F.coalesce("server_domain", "server_host"))
    start, end = F.col("start_ms"), F.col("end_ms")
    first = _bin(start, bin_ms)
    last = F.greatest(first, _bin(end - 1, bin_ms))  # a zero-length event on an edge stays in the bin that begins there
    spans = events.select(
        _label(F.col("vo")).alias("vo"),
        F.when(wrote, client).otherwise(server).alias("src"),
        F.when(wrote, server).otherwise(client).alias("dst"),
        F.coalesce(F.col("client_domain") != F.col("server_domain"), F.lit(False)).alias("is_remote"),
        F.coalesce((moved == F.col("file_size")) & (moved > 0), F.lit(False)).alias("is_transfer"),
        F.when(wrote, "w").when(F.col("read_bytes") > 0, "r").otherwise("u").alias("activity"),
        start.alias("start"),
        end.alias("end"),
        moved.alias("moved"),
        F.greatest(first, last - (max_bins - 1)).alias("kept"),
        (last - first >= max_bins).alias("over"),
        last.alias("last"),
        logged.alias("logged"),
    )
    shares = spans.select("*", F.explode(F.sequence("kept", "last")).alias("k"))
    length = F.col("end") - F.col("start")
    upto = F.least(F.col("end"), (F.col("k") + 1) * bin_ms) - F.col("start")
    is_first = F.col("k") == F.col("kept")
    before = F.when(is_first, F.lit(0).cast("long")).otherwise(F.col("k") * bin_ms - F.col("start"))
    shares = shares.select(*TRANSFER_KEY[:-1], "k", "last", "over", "moved", "logged",
                           length.alias("length"), upto.alias("upto"), before.alias("before"),
                           is_first.alias("is_first"))  # fmt: skip
    share = (
        F.when(F.col("length") == 0, F.col("moved"))
        .when(F.col("is_first") & (F.col("k") == F.col("last")), F.col("moved"))
        .otherwise(_cumulative(F.col("upto")) - _cumulative(F.col("before")))
    )
    binned = shares.select(
        *TRANSFER_KEY[:-1],
        ((F.col("k") + 1) * bin_ms).alias("bin_end_ms"),
        (F.col("k") == F.col("last")).cast("long").alias("ends"),
        (F.col("is_first") & F.col("over")).cast("long").alias("cut"),
        share.alias("share"),
        (F.col("upto") - F.col("before")).alias("time"),
        "logged",
    )
    totals = binned.groupBy(*TRANSFER_KEY).agg(
        F.count(F.lit(1)).alias("active"),
        F.sum("ends").alias("finished"),
        F.try_sum("share").alias("bytes"),
        F.try_sum("time").alias("active_time"),
        F.sum("cut").alias("capped"),
        F.max("logged").alias("logged"),
    )
    return totals.select(
        _key().alias("key"),
        *TRANSFER_KEY,
        F.lit(bin_ms).cast("long").alias("bin_ms"),
        "active",
        "finished",
        F.coalesce("bytes", F.lit(LONG_MAX)).alias("bytes"),
        F.coalesce("active_time", F.lit(LONG_MAX)).alias("active_time"),
        "capped",
        F.unix_millis("logged").alias("update_time"),
    )


def _label(name: Column) -> Column:
    return F.substring(F.coalesce(name, F.lit("unknown")), 1, LABEL_CHARACTERS)


def _bin(ms: Column, bin_ms: int) -> Column:
    """The number of the bin that holds a time: floor division in integers (``div`` alone truncates towards zero)."""
    return F.call_function("div", ms - F.pmod(ms, F.lit(bin_ms).cast("long")), F.lit(bin_ms).cast("long"))


def _cumulative(c: Column) -> Column:
    """f(c) of the module's documentation, with columns ``moved`` (B) and ``length`` (T > 0)."""
    # HotSpot's compiler may hoist a division above the guard of its divisor, and crash: so this is never zero.
    moved, length = F.col("moved"), F.greatest(F.col("length"), F.lit(1))
    q, r = F.call_function("div", moved, length), F.pmod(moved, length)
    narrow = F.call_function("div", r * c, length)
    wide = F.call_function("div", _wide(r) * _wide(c), _wide(length))
    return q * c + F.when(length <= _SQUARE_FITS, narrow).otherwise(wide)


def _wide(value: Column) -> Column:
    return value.cast("decimal(19,0)")


def _key() -> Column:
    def escaped(name: str) -> Column:
        return F.replace(F.replace(F.col(name), F.lit("%"), F.lit("%25")), F.lit("|"), F.lit("%7C"))

    parts = [escaped(name) for name in ("vo", "src", "dst")]
    parts += [F.col(name).cast("string") for name in ("is_remote", "is_transfer", "activity", "bin_end_ms")]
    key = F.concat_ws("|", *parts)
    short = F.concat(F.lit("sha256-"), F.sha2(key, 256), F.lit("|"), F.col("bin_end_ms").cast("string"))
    return F.when(F.octet_length(key) > KEY_BYTES, short).otherwise(key)
