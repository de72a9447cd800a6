"""Which months are kept, by the calendar and by bins that end beyond midnight."""

from __future__ import annotations

import datetime as dt

import pytest

from gridstead.serving.control import Control, Point
from gridstead.serving.retention import first_month, served_after_ms, served_from

MARCH_MS = 1_772_323_200_000  # 2026-03-01


@pytest.mark.parametrize(
    ("today", "months", "first"),
    [
        ("2026-03-31", 1, "2026-02-01"),
        ("2026-03-01", 12, "2025-03-01"),
        ("2026-01-15", 1, "2025-12-01"),
        ("2026-12-31", 25, "2024-11-01"),
    ],
)
def test_so_many_months_are_kept_beside_the_present_one(today: str, months: int, first: str) -> None:
    assert first_month(dt.date.fromisoformat(today), months).isoformat() == first


@pytest.mark.parametrize(("bin_ms", "after_ms"), [(600_000, MARCH_MS), (7_000_000, MARCH_MS // 7_000_000 * 7_000_000 + 7_000_000)])
def test_the_last_bin_that_goes_is_the_last_that_begins_before_the_month(bin_ms: int, after_ms: int) -> None:
    first = dt.date(2026, 3, 1)
    assert served_after_ms(first, bin_ms) == after_ms
    assert after_ms - bin_ms < MARCH_MS <= after_ms
    control = Control("w", "f", Point(0, {}), served_after_ms=after_ms)
    assert served_from(control) == first
    assert served_from(Control("w", "f", Point(0, {}))) is None
