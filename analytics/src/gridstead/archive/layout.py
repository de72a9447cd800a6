"""Where things are under the archive's root, and the days that name directories."""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import BinaryType, DateType, StringType, StructField, StructType

from gridstead.archive.manifest import Token
from gridstead.schema import PARSED

ARCHIVED: Final = StructType([*PARSED.fields, StructField("date", DateType())])
"""What a file and its path hold together."""

COLUMNS: Final = tuple(name for name in PARSED.names if name != "source")
"""What a file holds; ``source`` and ``date`` are in its path."""

PARQUET: Final = {
    "mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
    "parquet.size.statistics.enabled": "false",
    **{
        f"parquet.column.statistics.enabled#{field.name}": "false"
        for field in PARSED.fields
        if isinstance(field.dataType, (StringType, BinaryType))
    },
}
"""How files are written. The least and the greatest of a text column help no reader of ours, and comparing every value
with them took most of writing in a profile of the stream (docs/decisions/0009-speed.md)."""

DAY_MS: Final = 86_400_000
COMMIT_SLACK_DAYS: Final = 3
"""How many days before an event's date its commit can be: an event may end up to a day after it was received, clocks
differ, and a day more lets :func:`gridstead.archive.manifest.live` see who took over from whom."""

_DAY = re.compile(r"\d{4}-\d\d-\d\d")


def is_day(name: str) -> bool:
    """Whether a name is a day, YYYY-MM-DD."""
    return _DAY.fullmatch(name) is not None


def day_text(ms: int) -> str:
    """The UTC day of a time in ms, YYYY-MM-DD."""
    return (dt.datetime(1970, 1, 1) + dt.timedelta(milliseconds=ms)).strftime("%Y-%m-%d")


def time_text(ms: int) -> str:
    """A time in ms as UTC to the second."""
    return (dt.datetime(1970, 1, 1) + dt.timedelta(milliseconds=ms)).strftime("%Y-%m-%dT%H:%M:%SZ")


def day_of(ms: Column) -> Column:
    """UTC date of a time in ms, whatever the session's time zone."""
    days = F.call_function("div", ms - F.pmod(ms, F.lit(DAY_MS).cast("long")), F.lit(DAY_MS).cast("long"))
    return F.date_from_unix_date(days.cast("int"))


def row_day() -> Column:
    """The day of a row of schema.PARSED: that of its end, and of its place in the log if it is no event."""
    return F.when(F.col("malformed").isNull(), day_of(F.col("end_ms"))).otherwise(day_of(F.unix_millis("timestamp")))


def final_path(staged: str, token: Token, number: int) -> str:
    """The path of a data file in place, from its path in staging (source=…/date=…/part-….parquet)."""
    return f"events/{staged.rpartition('/')[0]}/{token}-{number:04d}.parquet"


def commit_path(day: str, token: Token) -> str:
    """The path of a manifest."""
    return f"commits/{day}/{token}.json"


def directory_of(path: str) -> tuple[str, str]:
    """Source and day of a data file's path: events/source=S/date=D/… gives (S, D)."""
    _, source, day, *_ = path.split("/")
    return source.removeprefix("source="), day.removeprefix("date=")
