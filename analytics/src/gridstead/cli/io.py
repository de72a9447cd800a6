"""``gridstead io``: how long Spark waits for storage, by the job ``reading``; a table, JSON, and a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

import click
from rich.table import Table

from gridstead.cli import sparkrun
from gridstead.cli.session import Session, command, write_file
from gridstead.cli.units import exact, human_bytes, human_seconds
from gridstead.release import spark_submit_command

_COLOURS: Final = ("#1b6ca8", "#c8553d", "#3c8d5a", "#7b4fa3")
_PANEL, _MARGIN = (300, 180), 48


@click.command(
    epilog="""\b
Examples:
  gridstead io --at hdfs:///tmp/io --at s3a://bucket/tmp/io
  gridstead io --at s3a://bucket/tmp/io --formats parquet --rows 2000000 --plot io.svg"""
)
@click.option("--at", "places", multiple=True, required=True, metavar="URL", help="A directory to be; several times.")
@click.option("--rows", default=500_000, show_default=True, type=click.IntRange(1), help="Rows of the table.")
@click.option("--files", default=8, show_default=True, type=click.IntRange(1), help="Files of the table.")
@click.option("--formats", "chosen", metavar="NAME,NAME", help="Such as avro,csv,json,parquet.  [default: all]")
@click.option("--codec", default="snappy", show_default=True, type=click.Choice(["none", "snappy"]))
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1), help="Runs of each query.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the times to the first byte (SVG).")
@click.option("--verbose", "-v", is_flag=True, help="Show the log of the job as it comes.")
@command
def io(
    session: Session,
    places: tuple[str, ...],
    rows: int,
    files: int,
    chosen: str | None,
    codec: str,
    repeat: int,
    plot: Path | None,
    verbose: bool,
) -> None:
    """Write a table to each place in each format, read it with Spark on this host, and delete it.

    Counted is what goes over the network: requests, their bytes, the time to their first and to their last byte.
    """
    arguments = [part for place in places for part in ("--at", place)]
    arguments += ["--rows", str(rows), "--files", str(files), "--codec", codec, "--repeat", str(repeat)]
    arguments += ["--formats", *chosen.split(",")] if chosen else []
    line = spark_submit_command(session.config, "reading", arguments, "local[2]")
    answer = sparkrun.answer_of(session, "measuring storage", verbose, "reading", line, "gridstead io --help", (0,))
    session.emit(answer, lambda: _told(answer))
    if plot is not None:
        write_file(plot, drawn(answer["results"]))


def _told(answer: dict[str, Any]) -> Table:
    table = Table(title=f"Reading {exact(answer['rows'])} rows, a run", title_justify="left")
    table.add_column("place", overflow="fold")
    for name in ("format", "query"):
        table.add_column(name)
    numbers = ("stored", "time", "requests", "read calls", "read", "first byte p50", "p95", "p99", "whole p50", "p99")
    for name in numbers:
        table.add_column(name, justify="right")
    for entry in answer["results"]:
        first, whole = entry["first_byte_ms"], entry["request_ms"]
        table.add_row(
            entry["place"],
            entry["format"],
            entry["query"],
            human_bytes(entry["stored_bytes"]),
            human_seconds(sorted(entry["seconds"])[len(entry["seconds"]) // 2]),
            exact(round(entry["requests"])),
            exact(round(entry["reads"])),
            human_bytes(entry["bytes"]),
            *(f"{value:.2f} ms" for value in (first["p50"], first["p95"], first["p99"], whole["p50"], whole["p99"])),
        )
    return table


def drawn(results: Sequence[dict[str, Any]]) -> str:
    """An SVG: the share of requests by their time to the first byte, a panel for each format and query."""
    panels = list(dict.fromkeys((entry["format"], entry["query"]) for entry in results))
    places = list(dict.fromkeys(entry["place"] for entry in results))
    queries = list(dict.fromkeys(query for _, query in panels))
    rows = list(dict.fromkeys(format_ for format_, _ in panels))
    times = [value for entry in results for value in entry["first_byte_steps_ms"]]
    low = math.floor(math.log10(max(min(times), 0.001)))
    high = max(math.ceil(math.log10(max(times))), low + 1)
    (width, height), gap = _PANEL, _MARGIN
    parts = []
    for format_, query in panels:
        left = gap + queries.index(query) * (width + gap)
        top = gap + rows.index(format_) * (height + gap)
        parts.append(f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>')
        parts.append(f'<text x="{left}" y="{top - 6}">{escape(format_)}, {escape(query)}</text>')
        for power in range(low, high + 1):
            x = left + (power - low) / (high - low) * width
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + height}" stroke="#ddd"/>')
            parts.append(f'<text x="{x:.1f}" y="{top + height + 14}" text-anchor="middle">{10.0**power:g} ms</text>')
        for entry in results:
            if (entry["format"], entry["query"]) == (format_, query):
                steps = entry["first_byte_steps_ms"]
                points = " ".join(
                    f"{left + (math.log10(max(value, 0.001)) - low) / (high - low) * width:.1f},"
                    f"{top + height - (number + 1) / len(steps) * height:.1f}"
                    for number, value in enumerate(steps)
                )
                colour = _COLOURS[places.index(entry["place"]) % len(_COLOURS)]
                parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    bottom = gap + len(rows) * (height + gap)
    for number, place in enumerate(places):
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(f'<text x="{gap}" y="{bottom + 16 * number}" fill="{colour}">{escape(place)}</text>')
    size = f'width="{gap + len(queries) * (width + gap)}" height="{bottom + 16 * len(places)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    title = "<title>Share of requests by their time to the first byte</title>"
    return "\n".join([head, title, *parts, "</svg>", ""])
