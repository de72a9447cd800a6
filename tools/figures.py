#!/usr/bin/env python3
"""Write docs/reference/figures.md, the thesis's figures beside ours, from docs/reference/figures.json.

``tools/figures.py add FILE…`` takes benchmarks' results (JSON as tests/bench/record.py writes it) into figures.json, one
a benchmark, and writes the page; without arguments it writes the page alone, and ``--check`` only tells whether it is
stale. Every figure of ours on the page comes from that file; what is not measured yet is marked ``<!-- benchmark -->``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"
DO_NOT_EDIT = "<!-- Written by tools/figures.py from figures.json: `tools/figures.py add build/bench/….json`. -->"

Document = dict[str, Any]
Figures = dict[str, Document]

FLAT = "2000 events/s, clock 10 times as fast"
STEPS = ("store", "transform", "analyse")
WAYS = {
    1: ("transform in the pipeline, then store", "pre-trans-avro-mr"),
    2: ("store raw, transform by a job, analyse", "raw-json-2-pre-trans-avro-mr"),
    3: ("store raw, transform inside the analysis", "raw-avro-mr"),
}
THESIS_STEPS = {1: (100, 0, 43, 143), 2: (83, 155, 44, 282), 3: (80, 0, 51, 131)}
"""Thesis table 3.2: seconds of storing, transforming, analysing and in all, 100,000 messages."""


class FiguresError(Exception):
    """The figures cannot be shown; the text says what is missing and what to do."""


@dataclass(frozen=True)
class Row:
    """One figure of the thesis, and how ours is read from the results of a benchmark."""

    what: str
    thesis: str
    where: str
    benchmark: str
    ours: Callable[[Document], str]
    options: str = ""  # of the benchmark's command


COMMANDS = {
    "batch": "python tests/bench/bench_batch.py",
    "stream": "python tests/bench/bench_stream.py",
    "bridge": "python tests/bench/bench_bridge.py",
    "ingest": "python tests/bench/bench_ingest.py",
    "serving": "python tests/bench/bench_serving.py",
}


def named(document: Document, name: str) -> Document:
    """Find a result by its name. Raises FiguresError."""
    for row in document["results"]:
        if row["name"] == name:
            return dict(row)
    there = ", ".join(str(row["name"]) for row in document["results"])
    raise FiguresError(f"the results of {document['benchmark']} have no {name!r}, only: {there}")


def percent(value: float, base: float) -> str:
    """Write how much more or less a value is than its base: +12 %."""
    return f"{(value / base - 1) * 100:+.0f} %"


def ingested(document: Document, way: int, format_: str, codec: str) -> Document:
    """Find the result of one way, format and codec."""
    return named(document, f"way {way}, {format_}, {codec}")


def analysing(document: Document, format_: str, codec: str) -> float:
    """Tell the seconds of the analysis of normalised events in a format."""
    return float(ingested(document, 1, format_, codec)["steps"]["analyse"]["seconds"])


def stored(document: Document, way: int, format_: str, codec: str) -> float:
    """Tell the bytes stored for a message: 1 normalised, 3 as it came."""
    return float(ingested(document, way, format_, codec)["bytes_per_message"])


def batch_of(name: str) -> Callable[[Document], str]:
    """Show a batch: expects a result of this name with seconds, events, documents and cpu_us_per_event."""

    def show(document: Document) -> str:
        row = named(document, name)
        what = f"{row['events']:,} events and {row['documents']:,} documents"
        return f"{row['seconds']} s for {what}, {row['cpu_us_per_event']} µs CPU an event"

    return show


def cpu_of(document: Document, name: str) -> float:
    """Tell the median of the CPU an event (µs) over the rounds of a candidate. Raises FiguresError."""
    named(document, name)
    return statistics.median(float(row["cpu_us_per_event"]) for row in document["results"] if row["name"] == name)


def beside_duckdb(document: Document) -> str:
    """Show the computation of one statistic, with that of the peer on the same files in the same run."""
    ours, peer = cpu_of(document, "Spark: transfers"), cpu_of(document, "DuckDB: transfers")
    return f"{ours:.1f} µs CPU an event, DuckDB {peer:.1f} on the same files ({ours / peer:.1f} times)"


def at_once(document: Document) -> str:
    """Show what all statistics cost in one run, beside the sum of runs of one each."""
    alone = sum(cpu_of(document, f"Spark: {name}") for name in ("transfers", "access", "users", "presence"))
    return f"{cpu_of(document, 'Spark: all statistics, doubles found once'):.1f} µs CPU an event, one run for each {alone:.1f}"


def linear(document: Document) -> str:
    """Show the cost of more days as multiples of that of one: expects results of days with as many events each."""
    first = named(document, "1 day of few events")
    shown = []
    for days in (7, 30):
        row = named(document, f"{days} days")
        dearer = row["cpu_us_per_event"] * row["events"] / (first["cpu_us_per_event"] * first["events"])
        shown.append(f"{days} days {row['seconds'] / first['seconds']:.1f} times the seconds and {dearer:.1f} times the CPU of 1")
    return f"{', '.join(shown)} ({first['events']:,} events a day)"


def spike(document: Document) -> str:
    """Show how a spike is caught up: expects a result with caught_up_after_s and lag_max."""
    row = named(document, "1000 events/s, 5 times that for a minute")
    return f"caught up {row['caught_up_after_s']} s after its end, at the most {row['lag_max']:,} events behind"


def flat(document: Document) -> str:
    """Show what the stream keeps over an hour of events: expects a result with samples of it, and the checkpoint's size."""
    row = named(document, FLAT)
    shown = []
    for name, what in (("stream_rss", "the stream's memory"), ("identity_index", "the identity index")):
        samples = row["kept_mib"][name]
        shown.append(f"{what} {', '.join(f'{samples[len(samples) * n // 4 - 1]:,}' for n in (1, 2, 3, 4))} MiB")
    return f"after each quarter {'; '.join(shown)}; the checkpoint {row['checkpoint_kib'][-1]} KiB at the end"


def stream_at(name: str) -> Callable[[Document], str]:
    """Show a stream: expects a result of this name with events_per_s, latency_p50_ms and latency_p95_ms."""

    def show(document: Document) -> str:
        row = named(document, name)
        latency = f"{row['latency_p50_ms']:,} ms (p50), {row['latency_p95_ms']:,} ms (p95) from sent to visible"
        return f"{row['events_per_s']:,} events/s, {latency}; statistics: {', '.join(document['parameters']['statistics'])}"

    return show


def served(name: str) -> Callable[[Document], str]:
    """Show a part of the serving benchmark."""

    def show(document: Document) -> str:
        row = named(document, name)
        spread = f"{row['seconds_least']} to {row['seconds_most']}"
        return f"{row['seconds']} s ({spread}) for {row['events']:,} documents: {name}"

    return show


def larger(way: int, format_: str, codec: str, than: tuple[str, str]) -> Callable[[Document], str]:
    """Show how much more a format stores than another."""
    return lambda document: percent(stored(document, way, format_, codec), stored(document, way, *than))


def slower(format_: str, codec: str, than: tuple[str, str]) -> Callable[[Document], str]:
    """Show how much longer the analysis of a format takes than that of another."""
    return lambda document: percent(analysing(document, format_, codec), analysing(document, *than))


def bridge_rate(document: Document) -> str:
    """Show what the bridge moves from the broker to the log."""
    row = named(document, "gridstead bridge")
    return f"{row['events_per_s']:,} events/s from the broker to Kafka, {row['cpu_us_per_event']} µs CPU an event"


def total(way: int) -> Callable[[Document], str]:
    """Show the whole cycle of a way in Avro, and its ratio to way 3."""

    def show(document: Document) -> str:
        row, third = ingested(document, way, "avro", "none"), ingested(document, 3, "avro", "none")
        return f"{row['seconds']} s ({row['seconds'] / third['seconds']:.2f} of way 3) for {row['events']:,} messages"

    return show


ROWS = (
    Row("batch, 1 day", "under 1 minute (Avro, CSV)", "4.5.2, fig. 4.9", "batch", batch_of("1 day"), " --parts day"),
    Row("batch, 30 days", "about 2 minutes (Spark)", "5.4.3, fig. 5.11", "batch", batch_of("30 days"),
        " --parts days --small 250000"),
    Row("batch, transfers, without reading from HDFS and without documents", "not given", "", "batch", beside_duckdb,
        " --parts compute --events 5000000 --rounds 4"),
    Row("batch, four statistics at once", "not given", "", "batch", at_once, " --parts compute --events 5000000 --rounds 4"),
    Row("batch, cost of more days", "linear", "5.4.3, fig. 5.11", "batch", linear,
        " --parts days --small 250000"),
    Row("streaming", "116 events/s; 88 ms to process a batch of 2 s, 105 ms with the wait for it",
        "5.4.3, fig. 5.19–5.22", "stream", stream_at("250 events/s"), " --rates 250"),
    Row("streaming, four times the average", "not given", "", "stream", stream_at("1000 events/s"), " --rates 1000"),
    Row("streaming, the most", "about 600 events/s (Esper, one node of 4 cores)", "4.5.6, table 4.3", "stream",
        stream_at("10000 events/s"), " --rates 10000 --seconds 600"),
    Row("streaming, 5,000 events/s for a minute in 1,000 events/s", "not given", "", "stream", spike,
        " --rates 1000 --seconds 180 --spike 5"),
    Row("streaming, an hour of events in six minutes, with a horizon of ten", "not given", "", "stream", flat,
        " --rates 2000 --seconds 360 --compress 10"),
    Row("input: average, spikes", "250 events/s; above 1,000 events/s taken by Flume on one machine",
        "4.5.6; 3.4.5, fig. 3.8", "bridge", bridge_rate),
    Row("Elasticsearch, create 500,000 documents", "47 s (Oracle 485 s)", "4.5.5, table 4.2", "serving", served("create")),
    Row("Elasticsearch, query 500,000 documents", "18 s (Oracle 93 s)", "4.5.5, table 4.2", "serving", served("read all")),
    Row("Elasticsearch, sums by source and destination", "not given", "", "serving", served("matrix")),
    Row("Elasticsearch, sums by hour and VO", "not given", "", "serving", served("series")),
    Row("way 1, whole cycle", "143 s (1.09 of way 3), 100,000 messages", "3.4.4, table 3.2", "ingest", total(1)),
    Row("way 2, whole cycle", "282 s (2.15 of way 3), 100,000 messages", "3.4.4, table 3.2", "ingest", total(2)),
    Row("way 3, whole cycle", "131 s, 100,000 messages (before: 390 s)", "3.4.4, table 3.2", "ingest", total(3)),
    Row("size: CSV over Avro", "+12.88 %", "4.4.3, fig. 4.5", "ingest", larger(1, "csv", "none", ("avro", "none"))),
    Row("size: JSON over Avro", "+122.21 % (the sizes printed, 2669 and 1211 MB, give +120 %)", "4.4.3, fig. 4.5",
        "ingest", larger(1, "json", "none", ("avro", "none"))),
    Row("size with snappy: CSV over Avro", "+20.90 %", "4.4.3", "ingest",
        larger(1, "csv", "snappy", ("avro", "snappy"))),
    Row("size of Avro: snappy over none", "over 5 times smaller", "4.4.3", "ingest",
        larger(1, "avro", "snappy", ("avro", "none"))),
    Row("batch time: CSV over Avro", "+14 % (Spark)", "5.4.3", "ingest", slower("csv", "none", ("avro", "none"))),
    Row("batch time: JSON over Avro", "+64 % (Spark)", "5.4.3", "ingest", slower("json", "none", ("avro", "none"))),
    Row("batch time of Avro: snappy over none", "+21 % (MapReduce)", "4.5.2, fig. 4.15", "ingest",
        slower("avro", "snappy", ("avro", "none"))),
    Row("batch time of CSV: snappy over none", "+5 % (MapReduce)", "4.5.2, fig. 4.15", "ingest",
        slower("csv", "snappy", ("csv", "none"))),
    Row("batch time of JSON: snappy over none", "+94 % (MapReduce)", "4.5.2, fig. 4.15", "ingest",
        slower("json", "snappy", ("json", "none"))),
    Row("Parquet over Avro: size, batch time", "not measured", "", "ingest",
        lambda document: f"{larger(1, 'parquet', 'none', ('avro', 'none'))(document)}, "
                         f"{slower('parquet', 'none', ('avro', 'none'))(document)}"),
)  # fmt: skip

INTRODUCTION = """\
The thesis is *A Scalable Data Store and Analytic Platform for Real-Time Monitoring of Data-Intensive Scientific
Infrastructure* (Brunel University London, 2017); the numbers of its sections, figures and tables are given.

**The machines differ, so compare ratios.** The thesis's cluster had 15 nodes (8 with 32 cores and 64 GB, 7 with 4 cores
and 8 GB: 284 cores) with Hadoop 2.6 and Spark 1.6, shared with others; its Elasticsearch three nodes of 4 cores and
13.5 GB with two replicas; its Esper one node of 4 cores. Ours is one machine of 2 cores on which everything runs,
without replicas. A time of ours below the thesis's says something; one above it says nothing until it is multiplied.

**The workloads differ too.** The thesis's messages are those of the grid in 2015, ours are simulated (`gridstead
simulate`) with the same fields, so sizes and their ratios depend on ours being shorter or longer. The thesis does not
say how many events its one day had: 20 million a day is the average of all of its sources (4.4.1), while the data set
that it scaled nodes with had 3.3 million (4.5.3). Ours also remove repeated events and share bytes out exactly.

**Streaming is measured from Kafka on**: events are written into the log, so the collector and the broker are idle and the
bridge has a row of its own (input). Where a row leaves out `access`, the batch makes it: with it about 2,800 events/s were
served ([decision 9](../decisions/0009-speed.md)).
"""

NOT_REPEATED = """\
## What is not repeated here
They need more cores than this machine has; the thesis's figures, for whoever has them:

| what | thesis | where |
|---|---|---|
| Spark instead of MapReduce, same data | Avro -43 %, CSV -38 %, JSON -23 % of the time | 5.4.3, fig. 5.12 |
| 3 and 9 executors instead of 1, 7.5 GB | -64 % and -84 % | 5.4.3, fig. 5.16 |
| cached on disk, or in memory and on disk, instead of in memory | +104 %, +83 % | 5.4.3, fig. 5.15 |
| EC2, 4 executors instead of 1 | -76 % | 5.4.5, fig. 5.26 |
| EC2, 8 cores instead of 2 | -69 % | 5.4.5, fig. 5.27 |
| EC2, 8 GB an executor instead of 2 GB, 24 GB of data | -48 % | 5.4.5, fig. 5.25 |
| MapReduce, JSON over Avro: memory used, CPU used, tasks | +294 %, +294 %, 4 times | 4.5.2, fig. 4.10–4.13 |
"""


def glance(figures: Figures) -> str:
    """Write the table of all figures."""
    lines = ["| what | thesis | where | ours | command |", "|---|---|---|---|---|"]
    for row in ROWS:
        document = figures.get(row.benchmark)
        ours = f"not measured yet <!-- {row.benchmark} --> |"
        if document:
            ours = f"{row.ours(document)} | `{COMMANDS[row.benchmark]}{row.options}`"
        lines.append(f"| {row.what} | {row.thesis} | {row.where} | {ours} |")
    return "\n".join(lines) + "\n"


def measured(figures: Figures) -> str:
    """Write on what and when each benchmark was run."""
    lines = ["| benchmark | run | machine | parameters |", "|---|---|---|---|"]
    for name, document in sorted(figures.items()):
        machine = document["machine"]
        described = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_mib']} MiB, load before {machine['load_1m']}"
        parameters = ", ".join(f"{key} {value}" for key, value in document["parameters"].items())
        lines.append(f"| {name} | {document['date']} | {described} | {parameters} |")
    return "\n".join(lines) + "\n"


def ways(document: Document) -> str:
    """Write the three ways in Avro beside table 3.2."""
    lines = [
        "| way | thesis: store, transform, analyse, all (s) | ours: store, transform, analyse, all (s) | µs CPU a message "
        "| bytes stored a message | tasks |",
        "|---|---|---|---|---|---|",
    ]
    for way, (what, name) in WAYS.items():
        row = ingested(document, way, "avro", "none")
        seconds = [row["steps"].get(step, {"seconds": 0})["seconds"] for step in STEPS]
        ours = ", ".join(f"{value:.2f}" for value in [*seconds, row["seconds"]])
        theirs = ", ".join(str(value) for value in THESIS_STEPS[way])
        lines.append(
            f"| {way}: {what} (`{name}`) | {theirs} | {ours} | {row['cpu_us_per_event']} | {row['bytes_per_message']} | {row['tasks']} |"
        )
    return "\n".join(lines) + "\n"


def pairs(document: Document) -> list[tuple[str, str]]:
    """List the formats and codecs measured, in the order of the results."""
    return list(dict.fromkeys((row["format"], row["codec"]) for row in document["results"]))


def break_even(document: Document, format_: str, codec: str) -> str:
    """Tell after how many analyses it pays to have stored the transformed events (way 2 against way 3)."""
    second, third = (ingested(document, way, format_, codec)["steps"] for way in (2, 3))
    saved = third["analyse"]["seconds"] - second["analyse"]["seconds"]
    return f"{second['transform']['seconds'] / saved:.1f}" if saved > 0 else "never"


def matrix(document: Document) -> str:
    """Write all ways in all formats and codecs."""
    lines = [
        "| format | codec | way 1 (s) | way 2 (s) | way 3 (s) | µs CPU a message, ways 1, 2, 3 | way 2 pays after analyses |",
        "|---|---|---|---|---|---|---|",
    ]
    for format_, codec in pairs(document):
        rows = [ingested(document, way, format_, codec) for way in WAYS]
        times = " | ".join(f"{row['seconds']:.2f} ({row['seconds_least']:.2f}–{row['seconds_most']:.2f})" for row in rows)
        cpu = ", ".join(f"{row['cpu_us_per_event']:.0f}" for row in rows)
        lines.append(f"| {format_} | {codec} | {times} | {cpu} | {break_even(document, format_, codec)} |")
    return "\n".join(lines) + "\n"


def format_table(document: Document) -> str:
    """Write what each format stores and what its analysis takes."""
    lines = [
        "| format | codec | event (bytes) | over Avro | raw message (bytes) | over Avro | analysis (s) | over Avro "
        "| tasks | shuffled (MiB) | sorts and tables (MiB) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for format_, codec in pairs(document):
        first = ingested(document, 1, format_, codec)
        step = first["steps"]["analyse"]
        event, raw = (stored(document, way, format_, codec) for way in (1, 3))
        base = [stored(document, way, "avro", codec) for way in (1, 3)]
        took = analysing(document, format_, codec)
        lines.append(
            f"| {format_} | {codec} | {event:.0f} | {percent(event, base[0])} | {raw:.0f} | {percent(raw, base[1])} | {took:.2f} "
            f"| {percent(took, analysing(document, 'avro', codec))} | {step['tasks']} | {step['shuffle_bytes'] / (1 << 20):.1f} "
            f"| {step['peak_execution_mib']} |"
        )
    return "\n".join(lines) + "\n"


INGEST_TEXT = """\
## Three ways to ingest
Avro without compression, as in the thesis. In its way 2 the raw messages are JSON and only the result is Avro; ours
stores both in one format. In all ways the transformation is the same code (the collector's, in Python, then the
archive's parser), run by Spark; so they differ in where and how often it is done, and in what is stored and read. Its
cost here is therefore that of Python; the thesis's was Java's. Store, transform and analyse include what Spark needs to
plan and start them; the thesis's include MapReduce's start, which is most of its transform. `rounds` below says how often
each was measured: of one round, times that differ by less than half say nothing; bytes, tasks and memory are exact.

{ways}
What way 1 loses is not in a table: messages as they came, so that a transformation found wrong cannot be repeated, and
those refused. The appliance is way 1, with refused messages kept as dead letters: identity, time and place must be known
before the log for duplicates to be recognised, and each message is then transformed once, however often it is analysed.
The last column below says how many analyses of the same data make way 2 cheaper than way 3.

{matrix}
## Formats
`over Avro` compares within one codec. Way 1's rows: normalised events; raw messages from way 3. The analysis is the
transfer statistics of the distinct events. Memory is Spark's account of the largest stage; the heap is the same for all.
CSV and JSON with zstd do not exist here: text is compressed by Hadoop's codecs, of which zstd is native code, and the
appliance's Hadoop is jars alone.

{formats}
"""


def page(figures: Figures) -> str:
    """Write the page. Raises FiguresError where a result lacks what a row shows."""
    parts = ["# The thesis's figures beside ours", DO_NOT_EDIT, INTRODUCTION, glance(figures)]
    ingest = figures.get("ingest")
    if ingest:
        tables = {"ways": ways(ingest), "matrix": matrix(ingest), "formats": format_table(ingest)}
        parts.append(INGEST_TEXT.format(**tables).strip() + "\n")
    parts.append("## What was measured, and on what\n" + measured(figures))
    parts.append(NOT_REPEATED)
    return "\n".join(parts)


def load(path: Path) -> Figures:
    """Read figures.json, nothing where it is not there."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def dump(figures: Figures) -> str:
    """Write figures.json with a result a line, so that a change can be read."""
    out = []
    for name, document in sorted(figures.items()):
        head = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items() if key != "results"]
        rows = ",\n".join(f"   {json.dumps(row)}" for row in document["results"])
        out.append(f" {json.dumps(name)}: {{\n" + ",\n".join(head) + f',\n  "results": [\n{rows}\n  ]\n }}')
    return "{\n" + ",\n".join(out) + "\n}\n"


def add(figures: Figures, paths: Iterable[Path]) -> Figures:
    """Take in results, each in the place of an earlier run of its benchmark; parts given together are one result."""
    taken = dict(figures)
    given: set[str] = set()
    for path in paths:
        document = json.loads(path.read_text(encoding="utf-8"))
        wanted = {"benchmark", "date", "machine", "parameters", "results"}
        if not isinstance(document, dict) or not wanted <= document.keys():
            raise FiguresError(f"{path} is no result of a benchmark: tests/bench/record.py writes them")
        if document["benchmark"] not in COMMANDS:
            raise FiguresError(f"{path} is of the benchmark {document['benchmark']!r}: give it a row in {Path(__file__).name}")
        name = document["benchmark"]
        if name in given:
            again = {row["name"] for row in document["results"]}
            earlier = [row for row in taken[name]["results"] if row["name"] not in again]
            document["results"] = earlier + document["results"]
        given.add(name)
        taken[name] = document
    return taken


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only tell whether the page is stale")
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="directory of figures.json and figures.md")
    parser.add_argument("command", nargs="?", choices=["add"])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="results to take in")
    options = parser.parse_args(arguments)
    source, target = options.reference / "figures.json", options.reference / "figures.md"
    try:
        figures = add(load(source), options.files)
        text = page(figures)
    except (FiguresError, OSError, ValueError) as error:
        print(f"figures: {error}", file=sys.stderr)
        return 1
    if options.check:
        stale = not target.exists() or target.read_text(encoding="utf-8") != text
        if stale:
            print(f"figures: {target} is stale. Next: python tools/figures.py", file=sys.stderr)
        return int(stale)
    if options.files:
        source.write_text(dump(figures), encoding="utf-8")
    target.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
