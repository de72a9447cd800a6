"""Transfer statistics of a few events in plain Python: what the pipeline's answer is compared with.

It is written from the definitions (domain: statistics in bins), apart from the Spark code and from SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Key = tuple[str, str, str, bool, bool, str, int]
Value = dict[str, int]


def transfer_statistics(events: Iterable[Mapping[str, Any]], bin_ms: int) -> dict[Key, Value]:
    """Compute the values by key: vo, src, dst, is_remote, is_transfer, activity, end of the bin in ms.

    An event has vo, server and client (domains), size, start_ms, end_ms, read and write (bytes); nothing is unknown,
    and no event lasts longer than the cap.
    """
    found: dict[Key, Value] = {}
    for event in events:
        start, end = event["start_ms"], event["end_ms"]
        moved = event["read"] + event["write"]
        activity = "w" if event["write"] else "r" if event["read"] else "u"
        route = (event["server"], event["client"])
        src, dst = route[::-1] if activity == "w" else route
        first, last = start // bin_ms, max(start // bin_ms, (end - 1) // bin_ms)
        for number in range(first, last + 1):
            key = (
                *(event["vo"], src, dst, event["server"] != event["client"]),
                *(moved == event["size"] > 0, activity, (number + 1) * bin_ms),
            )
            before = max(start, number * bin_ms) - start
            upto = min(end, (number + 1) * bin_ms) - start
            value = found.setdefault(key, {"active": 0, "finished": 0, "bytes": 0, "active_time": 0})
            value["active"] += 1
            value["finished"] += number == last
            value["bytes"] += moved * upto // (end - start) - moved * before // (end - start) if end > start else moved
            value["active_time"] += upto - before
    return found
