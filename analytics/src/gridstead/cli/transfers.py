"""Served transfer statistics: read from Elasticsearch page by page, and summed in exact integers.

Elasticsearch sums in doubles, which are exact only up to 2**53 (8 PiB); the documents are read whole and summed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PAGE = 5_000
DIMENSIONS = ("vo", "src", "dst", "activity", "is_remote", "is_transfer")
_FIELDS = [*DIMENSIONS, "bin_end_ms", "bin_ms", "active", "finished", "bytes", "active_time"]

# The parts of a document's key: together they are unique, so paging by them reads every document once.
_ORDER = [
    {"bin_end_ms": {"order": "asc", "format": "epoch_millis", "unmapped_type": "date"}},
    *({name: {"order": "asc", "unmapped_type": "keyword"}} for name in DIMENSIONS),
]

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Selection:
    """Which documents to read: bins within [from_ms, to_ms], and exact values of dimensions; None and () mean all."""

    from_ms: int | None = None
    to_ms: int | None = None
    equal: tuple[tuple[str, str], ...] = ()

    def query(self) -> dict[str, Any]:
        """Write the selection in Elasticsearch's query language. A bin is named by its end."""
        limits: dict[str, Any] = {"format": "epoch_millis"}
        if self.from_ms is not None:
            limits["gt"] = self.from_ms
        if self.to_ms is not None:
            limits["lte"] = self.to_ms
        filters: list[dict[str, Any]] = [{"term": {name: value}} for name, value in self.equal]
        if len(limits) > 1:
            filters.append({"range": {"bin_end_ms": limits}})
        return {"bool": {"filter": filters}} if filters else {"match_all": {}}


@dataclass(frozen=True)
class Sums:
    """Exact sums: bytes moved, events that ended, and active time in ms."""

    bytes: int = 0
    events: int = 0
    active_ms: int = 0

    def __add__(self, other: Sums) -> Sums:
        """Add field by field."""
        return Sums(self.bytes + other.bytes, self.events + other.events, self.active_ms + other.active_ms)

    def as_dict(self) -> dict[str, int]:
        """Give the sums their names in JSON and CSV."""
        return {"bytes": self.bytes, "events": self.events, "active_ms": self.active_ms}


def documents(client: Any, index: str, selection: Selection) -> Iterator[Document]:
    """Yield every selected document, paging by their keys so that none is read twice or missed."""
    after: list[Any] | None = None
    while True:
        answer = client.search(
            index=index,
            query=selection.query(),
            sort=_ORDER,
            search_after=after,
            size=PAGE,
            source=_FIELDS,
            track_total_hits=False,
            ignore_unavailable=True,
            allow_no_indices=True,
        )
        hits = answer["hits"]["hits"]
        for hit in hits:
            yield hit["_source"]
        if len(hits) < PAGE:
            return
        after = hits[-1]["sort"]


def matrix(rows: Iterable[Document], by: Sequence[str]) -> dict[tuple[str, ...], Sums]:
    """Sum by the chosen dimensions; the largest first, equal ones by name."""
    sums: dict[tuple[str, ...], Sums] = {}
    for row in rows:
        key = tuple(_text(row.get(name)) for name in by)
        sums[key] = sums.get(key, Sums()) + _sums(row)
    return dict(sorted(sums.items(), key=lambda item: (-item[1].bytes, -item[1].events, item[0])))


def series(rows: Iterable[Document], step_ms: int) -> dict[int, Sums]:
    """Sum by time steps, named by their begin in ms, in order, without those in which nothing happened."""
    sums: dict[int, Sums] = {}
    for row in rows:
        begin = (int(row["bin_end_ms"]) - int(row["bin_ms"])) // step_ms * step_ms
        sums[begin] = sums.get(begin, Sums()) + _sums(row)
    return dict(sorted(sums.items()))


def step_for(begin_ms: int, end_ms: int, bin_ms: int, points: int) -> int:
    """Choose the shortest usual step, a multiple of the bin, that covers the span in at most this many points."""
    minute = 60_000
    usual = [minute * count for count in (10, 20, 30, 60, 120, 180, 360, 720, 1440, 2880, 10_080, 40_320)]
    for step in usual:
        if step % bin_ms == 0 and end_ms // step - begin_ms // step + 1 <= points:
            return step
    step = bin_ms
    while end_ms // step - begin_ms // step + 1 > points:
        step *= 2
    return step


def _sums(row: Document) -> Sums:
    return Sums(int(row["bytes"]), int(row["finished"]), int(row["active_time"]))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "unknown" if value is None else str(value)
