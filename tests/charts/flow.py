"""Events that flow through a release while something happens to it, and what is served of them at the end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance import Stall, assert_served, wait_until
from charts.release import Release
from gridstead import sources
from gridstead.simulate import AccessSimulation

DAY_MS = 86_400_000
Y2010_MS = 1_262_304_000_000
EVENTS = 6000


def numbers(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What documents count, by their ids."""
    return {key: {name: value for name, value in row.items() if isinstance(value, int)} for key, row in documents.items()}


def assert_uninstalling_keeps_the_data(grid: Release) -> None:
    """Uninstall the release and install it again: what was served is served, what was archived is archived."""
    served, archived = numbers(grid.documents(0, 2 * Y2010_MS)), grid.archived()
    assert served and archived
    grid.stop_client()
    grid.uninstall()
    print(f"installed again after {grid.apply('install'):.0f} s")
    grid.start_client()
    assert numbers(grid.documents(0, 2 * Y2010_MS)) == served
    assert set(archived) <= set(grid.archived())


class Flow:
    """Events that flow while something happens, and how long nothing of them was served."""

    def __init__(self, grid: Release, case: int, seconds: float, directory: Path) -> None:
        """Begin to send."""
        self._grid = grid
        start_ms = Y2010_MS + 10 * case * DAY_MS
        records = list(AccessSimulation(case, EVENTS, start_ms, 86_400, future=0.0, duplicates=0.1))
        normalised = [sources.normalise(record, received_ms=int(time.time() * 1000)) for record in records]
        self._expected = grid.expected(normalised)
        self._range = (start_ms - 8 * DAY_MS, start_ms + 2 * DAY_MS - 1)
        grid.put("".join(json.dumps(record) + "\n" for record in records).encode(), f"/tmp/events-{case}.jsonl")
        self._trouble: list[Exception] = []
        self._sent = threading.Event()
        self._command = ["gridstead", "replay", f"/tmp/events-{case}.jsonl", "--rate", f"{len(records) / seconds:.0f}", "--timeout", "600"]
        self._thread = threading.Thread(target=self._send)
        self._stall = Stall(self._served, self._sent)
        self._thread.start()
        self._stall.start()
        wait_until(lambda: self._stall.seen > 0, "events are served")

    def _send(self) -> None:
        try:
            self._grid.exec(*self._command, timeout_s=1200)
        except Exception as error:
            self._trouble.append(error)
        finally:
            self._sent.set()

    def _served(self) -> int:
        return sum(document["finished"] for document in self._grid.documents(*self._range).values())

    def flowing(self) -> bool:
        """Whether events are still being sent."""
        return not self._sent.is_set()

    def finish(self) -> float:
        """Wait until all is sent and served exactly; returns the longest time in s for which no more was served than before."""
        self._thread.join()
        self._stall.join()
        if self._trouble:
            raise self._trouble[0]
        assert_served(self._grid, self._expected, *self._range, timeout_s=600)
        return self._stall.longest_s
