"""The slices of a day that a batch merges at once: every bin in one of them, bounded by documents."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gridstead.jobs.batch import slices

BIN = 600_000


@given(st.dictionaries(st.integers(0, 200).map(lambda n: n * BIN), st.integers(1, 100)), st.integers(1, 150))
def test_every_bin_is_in_one_slice_and_none_is_too_large(counts: dict[int, int], most: int) -> None:
    found = list(slices(counts, most))
    for begin, end in found:
        inside = {bin_end: count for bin_end, count in counts.items() if begin <= bin_end <= end}
        assert begin in inside and end in inside
        assert sum(inside.values()) <= most or len(inside) == 1
    covered = [bin_end for begin, end in found for bin_end in sorted(counts) if begin <= bin_end <= end]
    assert covered == sorted(counts)


def test_small_bins_share_a_slice() -> None:
    assert list(slices({BIN: 4, 2 * BIN: 4, 3 * BIN: 4, 9 * BIN: 20}, 10)) == [
        (BIN, 2 * BIN), (3 * BIN, 3 * BIN), (9 * BIN, 9 * BIN),
    ]  # fmt: skip
    assert list(slices({}, 10)) == []
