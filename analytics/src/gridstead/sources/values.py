"""Producers' JSON and its values, read strictly; null, "" and "unknown" all mean unknown (None).

Every function raises ``ValidationError`` that names the field. Reasons hold no names of persons or hosts, since they
are shown: only types, numbers and the names of fields.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from gridstead.events import INT64_MAX, TIME_MAX_MS, ValidationError

MS_THRESHOLD = 100_000_000_000
"""A time above this is in ms, otherwise in s (1e11 s would be the year 5138, 1e11 ms is 1973)."""

_END_OF_TRANSMISSION = b"\x04"
_DECIMAL = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?")


def type_name(value: object) -> str:
    """What JSON calls the type of a value, with its article."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def parse_json(raw: bytes) -> dict[str, Any]:
    """Parse one JSON object from UTF-8 bytes.

    An EOT behind it, which FTS sends, is no part of it. Raises ValidationError for invalid UTF-8 or JSON, NaN and
    Infinity, numbers too long to read, nesting too deep, and for anything that is not an object.
    """
    try:
        text = raw.rstrip(_END_OF_TRANSMISSION).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValidationError(f"invalid UTF-8 at byte {error.start}") from error
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except ValidationError:
        raise
    except RecursionError as error:
        raise ValidationError("the JSON is nested too deeply") from error
    except ValueError as error:
        raise ValidationError(f"invalid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValidationError(f"a JSON object is expected, not {type_name(value)}")
    return value


def _refuse_constant(name: str) -> float:
    raise ValidationError(f"{name} is not a JSON number")


def string(value: object, name: str) -> str | None:
    """A string as it is; half a surrogate pair, which JSON can spell and UTF-8 cannot, is spelt out."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValidationError(f"a string is expected, not {type_name(value)}", name)
    if value.strip().lower() in ("", "unknown"):
        return None
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value


def identifier(value: object, name: str) -> str | None:
    """A string, or an integer written as one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(in_int64(value, name))
    return string(value, name)


def number(value: object, name: str) -> int | float | None:
    """A finite number."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "unknown")):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValidationError(f"a number is expected, not {type_name(value)}", name)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValidationError("the number is too large", name)
    return value


def unquoted(value: object) -> object:
    """The number in a string such as "1466632860151.000000", as producers of FTS and Rucio write some; else the value
    as it is.
    """
    if isinstance(value, str) and _DECIMAL.fullmatch(text := value.strip()):
        whole, _, fraction = text.partition(".")
        return float(text) if fraction.strip("0") else int(whole)
    return value


def in_int64(value: int, name: str) -> int:
    """The number, if it fits 64 bits."""
    if not -INT64_MAX - 1 <= value <= INT64_MAX:
        raise ValidationError("the number does not fit 64 bits", name)
    return value


def count(value: object, name: str) -> int | None:
    """A whole number from 0 that fits 64 bits."""
    given = number(value, name)
    if given is None:
        return None
    if given < 0:
        raise ValidationError(f"{_shown(given)} is negative", name)
    if isinstance(given, float):
        if not given.is_integer():
            raise ValidationError(f"{given} is not a whole number of bytes", name)
        given = int(given)
    return in_int64(given, name)


def largest(data: Mapping[str, Any], *names: str) -> int | None:
    """The largest of the counts that are given."""
    given = [value for value in (count(data.get(name), name) for name in names) if value is not None]
    return max(given) if given else None


def time_ms(value: object, name: str) -> int | None:
    """A time in s or ms as ms since the epoch; 0 means unknown, as it does with producers."""
    given = number(value, name)
    if given is None or given == 0:
        return None
    if given < 0:
        raise ValidationError(f"{_shown(given)} is negative", name)
    if given <= MS_THRESHOLD:
        given = given * 1000
    if given > TIME_MAX_MS:
        raise ValidationError(f"{_shown(given)} is later than the year 9999", name)
    ms = math.floor(given + 0.5) if isinstance(given, float) else given
    if ms == 0:
        raise ValidationError("the time is less than a ms after 1970", name)
    return ms


def first_time(data: Mapping[str, Any], *names: str) -> int | None:
    """The first time that is given, numbers in strings included."""
    for name in names:
        ms = time_ms(unquoted(data.get(name)), name)
        if ms is not None:
            return ms
    return None


def in_order(start: int | None, end: int, name: str) -> tuple[int, bool]:
    """The start, or the end where the start is unknown, and whether it was unknown. ``name`` is the start's field."""
    if start is None:
        return end, True
    if start > end:
        raise ValidationError(f"{start} ms is after the end, {end} ms", name)
    return start, False


def _shown(value: int | float) -> str:
    return str(value) if isinstance(value, float) or abs(value) < 10**30 else "the number"
