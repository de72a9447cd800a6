"""The page of figures: never stale, every figure of ours from the results of a benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gridstead.formats import PAIRS

ROOT = Path(__file__).resolve().parents[2]


def figures(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    tool = ROOT / "tools" / "figures.py"
    return subprocess.run([sys.executable, tool, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)


def result(benchmark: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {"cpu": "x", "cores": 2, "memory_mib": 1, "load_1m": 0.5}
    return {"benchmark": benchmark, "date": "2026-01-01", "machine": machine, "parameters": {"n": 1}, "results": rows}


def test_the_page_is_what_the_results_say() -> None:
    checked = figures("--check")
    assert checked.returncode == 0, checked.stderr


def test_results_are_taken_in_and_what_is_missing_is_marked(tmp_path: Path) -> None:
    def row(name: str, cpu: float, seconds: float = 1, events: int = 1_000_000) -> dict[str, Any]:
        return {"name": name, "seconds": seconds, "events": events, "cpu_us_per_event": cpu, "documents": 1_500}

    day = row("1 day", 6.1, 77.5, 20_000_000)
    spark = [row(f"Spark: {name}", 5) for name in ("transfers", "access", "users", "presence")]
    together = row("Spark: all statistics, doubles found once", 18)
    many = [row("1 day of few events", 8, 10), row("7 days", 8, 50, 7_000_000), row("30 days", 7, 200, 30_000_000)]
    rows = [day, *spark, row("Spark: transfers", 9), row("DuckDB: transfers", 2), together, *many]
    (tmp_path / "batch.json").write_text(json.dumps(result("batch", rows)))
    assert figures("--reference", tmp_path, "add", tmp_path / "batch.json").returncode == 0
    page = (tmp_path / "figures.md").read_text()
    assert "77.5 s for 20,000,000 events and 1,500 documents, 6.1 µs CPU an event" in page
    assert "7.0 µs CPU an event, DuckDB 2.0 on the same files (3.5 times)" in page  # the median of two rounds
    assert "18.0 µs CPU an event, one run for each 22.0" in page
    assert "7 days 5.0 times the seconds and 7.0 times the CPU of 1, 30 days 20.0 times the seconds and 26.2 times" in page
    assert "not measured yet <!-- stream -->" in page and "<!-- batch -->" not in page
    assert figures("--reference", tmp_path, "--check").returncode == 0
    day["seconds"] = 80
    (tmp_path / "batch.json").write_text(json.dumps(result("batch", rows)))
    stale = figures("--reference", tmp_path, "--check", "add", tmp_path / "batch.json")
    assert stale.returncode == 1 and "is stale" in stale.stderr


def test_what_the_stream_keeps_is_shown_by_quarters_of_the_hour(tmp_path: Path) -> None:
    row = {"events_per_s": 1, "latency_p50_ms": 2, "latency_p95_ms": 3, "caught_up_after_s": 4, "lag_max": 5}
    names = [f"{rate} events/s" for rate in (250, 1000, 10000)]
    rows = [row | {"name": name} for name in (*names, "1000 events/s, 5 times that for a minute")]
    kept = {"stream_rss": [10, 11, 12, 13, 14, 15, 16, 17], "identity_index": [1, 2, 3, 4, 5, 6, 7, 8]}
    rows.append({"name": "2000 events/s, clock 10 times as fast", "kept_mib": kept, "checkpoint_kib": [9, 17]})
    document = result("stream", rows)
    document["parameters"] = {"statistics": ["transfers"]}
    (tmp_path / "stream.json").write_text(json.dumps(document))
    assert figures("--reference", tmp_path, "add", tmp_path / "stream.json").returncode == 0
    page = (tmp_path / "figures.md").read_text()
    assert "the stream's memory 11, 13, 15, 17 MiB; the identity index 2, 4, 6, 8 MiB; the checkpoint 17 KiB at the end" in page


def ingest_rows() -> list[dict[str, Any]]:
    """Results as bench_ingest writes them: way 3 analyses 1 s longer than way 2, whose transformation takes 2 s."""
    rows = []
    for number, (format_, codec) in enumerate(PAIRS):
        for way in (1, 2, 3):
            step = {"tasks": 3, "stored_bytes": 1, "shuffle_bytes": 1 << 20, "peak_execution_mib": 2.0}
            steps = {"store": step | {"seconds": 1.0}, "analyse": step | {"seconds": 4.0 + (way == 3) + number}}
            if way == 2:
                steps["transform"] = step | {"seconds": 2.0}
            seconds = sum(one["seconds"] for one in steps.values())
            rows.append({
                "name": f"way {way}, {format_}, {codec}", "events": 100, "seconds": seconds, "cpu_us_per_event": 10.0,
                "way": way, "format": format_, "codec": codec, "seconds_least": seconds, "seconds_most": seconds,
                "bytes_per_message": 100.0 * way + number, "tasks": 9, "steps": steps,
            })  # fmt: skip
    return rows


def test_the_ways_and_formats_are_compared_from_the_results(tmp_path: Path) -> None:
    (tmp_path / "ingest.json").write_text(json.dumps(result("ingest", ingest_rows())))
    assert figures("--reference", tmp_path, "add", tmp_path / "ingest.json").returncode == 0
    page = (tmp_path / "figures.md").read_text()
    for part in (
        "| way 2, whole cycle | 282 s (2.15 of way 3), 100,000 messages | 3.4.4, table 3.2 | 7.0 s (1.17 of way 3)",
        "| size: CSV over Avro | +12.88 % | 4.4.3, fig. 4.5 | +3 % |",
        "| batch time: JSON over Avro | +64 % (Spark) | 5.4.3 | +125 % |",
        "(`raw-json-2-pre-trans-avro-mr`) | 83, 155, 44, 282 | 1.00, 2.00, 4.00, 7.00 |",
        "| avro | none | 5.00 (5.00–5.00) | 7.00 (7.00–7.00) | 6.00 (6.00–6.00) | 10, 10, 10 | 2.0 |",
        "| csv | snappy | 104 | +3 % | 304 | +1 % | 8.00 | +60 % | 3 | 1.0 | 2.0 |",
    ):
        assert part in page, part
    assert [line for line in page.splitlines() if line.startswith("| csv | zstd")] == []


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (result("batch", []), "have no '1 day'"),
        (result("nonesuch", []), "give it a row"),
        ({"benchmark": "batch"}, "is no result of a benchmark"),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path: Path, document: dict[str, Any], reason: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps(document))
    refused = figures("--reference", tmp_path, "add", tmp_path / "x.json")
    assert refused.returncode == 1 and reason in refused.stderr
    assert not (tmp_path / "figures.md").exists()
