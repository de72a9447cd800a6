"""What the stream says of itself: the state of its parts, as /health and /metrics.json show it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from gridstead.archive.manifest import Positions
from gridstead.follower import Step

PARTS = ("archive", "statistics")


class Status:
    """The progress of the archive's query and of the statistics. Thread-safe; counters count since the start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started_ms = int(time.time() * 1000)
        self._parts: dict[str, dict[str, Any]] = {name: {"state": "starting", "rows": 0} for name in PARTS}
        self._parts["archive"] |= {"malformed": 0, "archived_rows": 0}
        self._batch: int | None = None

    def begin(self, name: str, positions: Positions) -> None:
        """A part runs from these positions."""
        with self._lock:
            self._parts[name].update(state="running", offsets=_named(positions))

    def ends(self, end: Positions | None) -> None:
        """The log's present end offsets; None while Kafka does not answer: the last known then stand."""
        with self._lock:
            for entry in self._parts.values():
                if end is not None:
                    entry["end_offsets"] = _named(end)
                entry["lag"] = _lag(entry.get("end_offsets", {}), entry.get("offsets", {}))

    def progress(self, progress: Mapping[str, Any]) -> None:
        """The last progress of the archive's query, in Spark's JSON; the same one may come again."""
        with self._lock:
            entry = self._parts["archive"]
            entry["offsets"] = (progress.get("sources") or [{}])[0].get("endOffset") or entry.get("offsets") or {}
            entry["batch_id"] = progress.get("batchId")
            entry["updated_at"] = progress.get("timestamp")
            entry["input_rows_per_s"] = progress.get("inputRowsPerSecond")
            entry["processed_rows_per_s"] = progress.get("processedRowsPerSecond")
            entry["batch_duration_ms"] = (progress.get("durationMs") or {}).get("triggerExecution")
            entry["duration_ms"] = progress.get("durationMs")
            if self._batch != progress.get("batchId") and progress.get("numInputRows"):
                self._batch = progress.get("batchId")
                observed = (progress.get("observedMetrics") or {}).get("archive") or {}
                entry["rows"] += observed.get("rows", 0)
                entry["malformed"] += observed.get("malformed", 0)

    def archived(self, files: int, rows: int) -> None:
        """A micro-batch is committed to the archive."""
        with self._lock:
            entry = self._parts["archive"]
            entry["archived_rows"] += rows
            entry["files"] = entry.get("files", 0) + files

    def step(self, positions: Positions, step: Step) -> None:
        """The follower has served a range of the log."""
        with self._lock:
            entry = self._parts["statistics"]
            entry["offsets"] = _named(positions)
            entry["updated_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            entry["rows"] += step.rows
            entry["documents"] = entry.get("documents", 0) + step.documents
            for name, count in step.changes.items():
                entry[name] = entry.get(name, 0) + count
            entry["step_rows"] = step.rows
            entry["batch_duration_ms"] = round(1000 * sum(step.seconds.values()))
            entry["duration_ms"] = {name: round(1000 * seconds) for name, seconds in step.seconds.items()}

    def fail(self, name: str, reason: str) -> None:
        """Note that a part has died."""
        with self._lock:
            self._parts[name].update(state="failed", error=reason)

    def healthy(self) -> bool:
        """Whether every part runs."""
        with self._lock:
            return all(entry["state"] == "running" for entry in self._parts.values())

    def document(self) -> dict[str, Any]:
        """The content of /metrics.json."""
        with self._lock:
            parts = json.loads(json.dumps(self._parts))
        lags = [entry["lag"] for entry in parts.values() if "lag" in entry]
        return {"service": "stream", "started_ms": self._started_ms, "lag": max(lags, default=None), "queries": parts}


def _named(positions: Positions) -> dict[str, dict[str, int]]:
    return {
        topic: {str(partition): offset for partition, offset in parts.items()} for topic, parts in positions.items()
    }


def _lag(end: Mapping[str, Mapping[str, int]], done: Mapping[str, Mapping[str, int]]) -> int:
    return sum(
        max(0, int(offset) - int((done.get(topic) or {}).get(partition, 0)))
        for topic, parts in end.items()
        for partition, offset in parts.items()
    )
