"""Numbers for people: bytes, durations, counts and times; the exact figure always stands beside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB")
_BARS = "▁▂▃▄▅▆▇█"


def human_bytes(count: int) -> str:
    """Write bytes in binary units with three significant digits: 1536 is "1.50 KiB"."""
    value, unit = float(count), _BYTE_UNITS[0]
    for unit in _BYTE_UNITS:
        if abs(value) < 1024 or unit == _BYTE_UNITS[-1]:
            break
        value /= 1024
    if unit == "B":
        return f"{count} B"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f} {unit}"


def exact(count: int) -> str:
    """Write an integer with thin grouping: 1234567 is "1,234,567"."""
    return f"{count:,}"


def human_seconds(seconds: float) -> str:
    """Write a duration with its two largest units: 3725 is "1h 02m"."""
    total = int(seconds)
    if total < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{total}s"
    if total < 3600:
        return f"{total // 60}m {total % 60:02d}s"
    if total < 86_400:
        return f"{total // 3600}h {total % 3600 // 60:02d}m"
    return f"{total // 86_400}d {total % 86_400 // 3600:02d}h"


def utc(ms: int) -> str:
    """Write milliseconds since the epoch as UTC to the second."""
    return (datetime(1970, 1, 1) + timedelta(milliseconds=ms)).strftime("%Y-%m-%dT%H:%M:%SZ")


def sparkline(values: list[int]) -> str:
    """Draw one character a value, the highest value as a full block; zero is the lowest line."""
    top = max(values, default=0)
    if top <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(7, (value * 8 - 1) // top if value > 0 else 0)] for value in values)


def bar(value: int, top: int, width: int = 24) -> str:
    """Draw a bar of at most ``width`` blocks, at least one where the value is not zero."""
    if value <= 0 or top <= 0:
        return ""
    return "█" * max(1, value * width // top)


class Moment(click.ParamType):
    """A time in UTC: 2025-06-03, 2025-06-03T10:20[:30][Z], milliseconds since the epoch, or 90m, 24h, 7d ago."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return milliseconds since the epoch."""
        if isinstance(value, int):
            return value
        text = str(value).strip()
        try:
            return int(_moment(text).timestamp() * 1000)
        except (ValueError, OverflowError):
            self.fail(f"{text!r} is not a time: write 2025-06-03, 2025-06-03T10:20, or 24h (ago)", param, ctx)


def _moment(text: str) -> datetime:
    if text.isdecimal() and len(text) > 8:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=int(text))
    if text[:-1].isdecimal() and text[-1:] in _AGO:
        return datetime.now(UTC) - timedelta(seconds=int(text[:-1]) * _AGO[text[-1]])
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


_AGO = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Day(click.ParamType):
    """A day in UTC: 2025-06-03, today or yesterday; given on as the same text."""

    name = "day"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return YYYY-MM-DD."""
        text = str(value).strip()
        today = datetime.now(UTC).date()
        if text in ("today", "yesterday"):
            return (today - timedelta(days=text == "yesterday")).isoformat()
        try:
            return datetime.strptime(text, "%Y-%m-%d").date().isoformat()
        except ValueError:
            self.fail(f"{text!r} is not a day: write it as 2025-06-03", param, ctx)
