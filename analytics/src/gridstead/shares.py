"""The share of each time bin in an event: integers that add up. DataFrame in, DataFrame out, native expressions only.

Bins are half-open, ``[k * bin_ms, (k + 1) * bin_ms)``, and are named by their end, ``bin_end_ms = (k + 1) * bin_ms``.
An event is the half-open interval [start, end): one that ends exactly on an edge ends in the bin that this edge closes
and does not touch the next. An event of zero length belongs whole to the bin that holds its start.

Shares: with T = end - start, B = an amount (bytes), and c(i) the overlap accumulated up to the end of bin i,
share(i) = f(c(i)) - f(c(i - 1)), f(c) = q * c + floor(r * c / T), q = B div T, r = B mod T. No term overflows
64 bits: q * c <= B, and r * c < T * T, which fits while T <= 3,037,000,499 ms (35 days); a longer event (never seen,
but a lost clock can make one) takes the same formula in decimal(38).

Cap: of an event that touches more than ``max_bins`` bins the latest ``max_bins`` are kept, and what was moved before
them (amounts and time) is booked whole on the first bin kept. Thus the sum over bins is always the sum over events;
``cut`` says where that happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

BIN_MS: Final = 600_000
MAX_BINS: Final = 1008
"""7 days of 10-minute bins."""

_SQUARE_FITS: Final = 3_037_000_499  # the largest T whose square is below 2**63


def by_bin(
    events: DataFrame, amounts: Sequence[str], carried: Sequence[str], bin_ms: int = BIN_MS, max_bins: int = MAX_BINS
) -> DataFrame:
    """One row for each event and bin that it overlaps.

    Input: ``start_ms`` and ``end_ms`` (0 <= start <= end), the columns ``amounts`` (bigint, not negative, not null) and
    ``carried``. Output columns:

    - ``carried``, unchanged
    - each of ``amounts``: the share of this bin
    - ``bin_end_ms``: end of the bin; ``time``: overlap with it, ms (both bigint)
    - ``ends``: whether it is the event's last bin; ``cut``: whether what was before the cap is booked here (boolean)

    Raises ValueError where ``bin_ms`` or ``max_bins`` is below 1.
    """
    if bin_ms < 1 or max_bins < 1:
        raise ValueError(f"bin_ms and max_bins must be at least 1, not {bin_ms} and {max_bins}")
    start, end, number = F.col("start_ms"), F.col("end_ms"), F.col("_bin")
    first = _div(start, F.lit(bin_ms))
    last = F.greatest(first, _div(end - 1, F.lit(bin_ms)))  # of zero length on an edge: the bin that begins there
    kept = events.select(
        *carried, *amounts, start, end,
        last.alias("_last"),
        F.greatest(first, last - (max_bins - 1)).alias("_first"),
    )  # fmt: skip
    exploded = kept.select("*", F.explode(F.sequence("_first", "_last")).alias("_bin"))
    edges = exploded.select(
        *carried, *amounts,
        (end - start).alias("_length"),
        (F.least(end, (number + 1) * bin_ms) - start).alias("_upto"),
        F.when(number == F.col("_first"), F.lit(0).cast("long")).otherwise(number * bin_ms - start).alias("_before"),
        ((number + 1) * bin_ms).alias("bin_end_ms"),
        (number == F.col("_last")).alias("ends"),
        ((number == F.col("_first")) & (number * bin_ms > start)).alias("cut"),
    )  # fmt: skip
    return edges.select(
        *carried,
        *[_share(F.col(name)).alias(name) for name in amounts],
        "bin_end_ms",
        (F.col("_upto") - F.col("_before")).alias("time"),
        "ends",
        "cut",
    )


def _share(amount: Column) -> Column:
    """f(upto) - f(before) of the module's documentation; f(0) = 0 and f(T) = B need no division."""
    upto, before, length = F.col("_upto"), F.col("_before"), F.col("_length")
    until = F.when(upto == length, amount).otherwise(_cumulative(amount, upto))
    return until - F.when(before == 0, F.lit(0).cast("long")).otherwise(_cumulative(amount, before))


def _cumulative(amount: Column, c: Column) -> Column:
    # HotSpot's compiler may hoist a division above the guard of its divisor, and crash: so this is never zero.
    length = F.greatest(F.col("_length"), F.lit(1))
    q, r = _div(amount, length), amount % length
    wide = _div(_wide(r) * _wide(c), _wide(length))
    return q * c + F.when(length <= _SQUARE_FITS, _div(r * c, length)).otherwise(wide)


def _div(dividend: Column, divisor: Column) -> Column:
    return F.call_function("div", dividend, divisor)


def _wide(value: Column) -> Column:
    return value.cast("decimal(19,0)")
