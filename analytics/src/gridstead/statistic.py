"""What the statistics are called and made of; needs no Spark. How they are computed is in gridstead.statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Statistic:
    """One statistic: the names of its key's parts without the bin, and of its values in the order of the table.

    The first value counts the events that overlap the bin: where it is 0 the key is gone.
    """

    name: str
    dimensions: tuple[str, ...]
    values: tuple[str, ...]


STATISTICS: Final[dict[str, Statistic]] = {
    statistic.name: statistic
    for statistic in (
        Statistic(
            "transfers",
            ("vo", "src", "dst", "is_remote", "is_transfer", "activity"),
            ("active", "finished", "bytes", "active_time", "capped"),
        ),
        Statistic(
            "access",
            ("vo", "server_domain", "file", "user_domain", "is_remote", "is_transfer"),
            ("events", "file_size_sum", "file_size_known", "reads", "read_bytes", "read_time", "writes",
             "write_bytes", "write_time", "capped"),
        ),
        Statistic(
            "users",
            ("vo", "user", "is_remote", "is_transfer"),
            ("events", "read_single_bytes", "read_vector_bytes", "file_size_sum", "capped"),
        ),
        Statistic("presence", ("user",), ("events",)),
    )
}  # fmt: skip
"""The statistics by name; see gridstead.statistics.statistics for what the dimensions and values mean."""
