"""Three ways to ingest in every format and codec, on this machine: time, bytes stored, tasks, memory, CPU an event.

``python tests/bench/bench_ingest.py --events N --repeat R --output DIR`` needs Spark and no running appliance. Each
candidate (way, format, codec) runs the product's job once a round, in one warm session, all candidates in turn and
each round in another order: what is given is the median over the rounds and the least and the most, so that a change
of the machine's speed meets all alike. No round begins that would end after ``--minutes``, but one is always counted:
``rounds`` in the results says how many were. Exit code 1 if any candidate gives other statistics than the first.

CPU is that of Spark and its Python workers together (proc(5)); memory: Spark's own account of a stage's sorts, hash
tables and shuffles, and the largest Python worker. The heap is the same for all: its size says nothing of a candidate.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics as measures
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

import record
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from gridstead import formats, simulate
from gridstead.jobs import ingest
from gridstead.jobs.ingest import Plan, Summary

START_MS = 1_748_736_000_000
SPAN_S = 86_400
FILES = 4


class Run(NamedTuple):
    """One run of one candidate."""

    summary: Summary
    cpu_s: float
    worker_bytes: int
    digest: str


def produce(directory: Path, events: int, seed: int) -> tuple[list[str], int, int]:
    """Write producers' messages of one day as ``gridstead simulate`` does; returns the files, messages and bytes."""
    records = simulate.simulate(seed, events, START_MS, SPAN_S, invalid=0.001)
    paths = [directory / f"messages-{number}.jsonl" for number in range(FILES)]
    outs = [path.open("wb") for path in paths]
    messages = size = 0
    part = -(-events // FILES)
    for one in records:
        line = json.dumps(one, ensure_ascii=False).encode() + b"\n"
        outs[min(messages // part, FILES - 1)].write(line)
        messages += 1
        size += len(line)
    for out in outs:
        out.close()
    return [f"file://{path}" for path in paths], messages, size


def session(cores: int, heap: str, directory: Path) -> SparkSession:
    """A local session as the appliance's batch has it."""
    import pyspark

    home = Path(pyspark.__file__).resolve().parents[2]
    if (home / "jars").is_dir():
        os.environ["SPARK_HOME"] = str(home)
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.ui.retainedStages": "100",
        "spark.driver.memory": heap,
        "spark.sql.shuffle.partitions": str(2 * cores),
        "spark.sql.session.timeZone": "UTC",
        "spark.local.dir": str(directory / "local"),
        "spark.sql.warehouse.dir": str(directory / "warehouse"),
    }
    builder = SparkSession.builder.master(f"local[{cores}]").appName("bench-ingest")
    spark = builder.config(map=dict(settings)).getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def descendants(root: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds of these processes and of their children that have ended."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def largest_worker(pids: Sequence[int]) -> int:
    """The largest resident size that any of the Python workers has had, bytes."""
    sizes = [0]
    for pid in pids:
        try:
            sizes.append(record.usage(pid).rss_bytes)
        except (OSError, KeyError):
            continue
    return max(sizes)


def run(spark: SparkSession, plan: Plan, paths: Sequence[str], directory: Path) -> Run:
    """Run one candidate into a new directory, and delete that afterwards."""
    output = directory / "output"
    jvm: Any = spark._jvm
    root = int(jvm.java.lang.ProcessHandle.current().pid())
    before = cpu_s(descendants(root))
    summary = ingest.run(spark, plan, paths, f"file://{output}", START_MS + SPAN_S * 1000)
    tree = descendants(root)
    used = cpu_s(tree) - before
    table = spark.read.parquet(f"file://{output}/statistics")
    row_hash = F.xxhash64(*sorted(table.columns)).cast("decimal(38,0)")
    digest = table.agg(F.count(F.lit(1)), F.sum(row_hash)).first()
    shutil.rmtree(output)
    return Run(summary, used, largest_worker(tree[1:]), str(digest))


def condensed(plan: Plan, runs: Sequence[Run], messages: int) -> dict[str, Any]:
    """The row of one candidate: medians, spreads, and what does not change between runs."""
    seconds = [one.summary.seconds for one in runs]
    last = runs[-1].summary
    cpu = measures.median(one.cpu_s for one in runs)
    peak = max(one.worker_bytes for one in runs)
    steps = {
        stage.name: {
            "seconds": round(measures.median(one.summary.stages[index].seconds for one in runs), 3),
            "tasks": stage.usage.tasks,
            "stored_bytes": stage.stored_bytes,
            "shuffle_bytes": stage.usage.shuffle_bytes,
            "peak_execution_mib": round(stage.usage.peak_execution_bytes / record.MIB, 1),
        }
        for index, stage in enumerate(last.stages)
    }
    name = f"way {plan.way}, {plan.format}, {plan.codec}"
    return record.result(
        name,
        messages,
        measures.median(seconds),
        cpu,
        peak,
        way=plan.way,
        format=plan.format,
        codec=plan.codec,
        seconds_least=round(min(seconds), 2),
        seconds_most=round(max(seconds), 2),
        stored_bytes=last.stored_bytes,
        bytes_per_message=round(last.stored_bytes / messages, 1),
        tasks=sum(stage.usage.tasks for stage in last.stages),
        gc_s=round(measures.median(sum(stage.usage.gc_s for stage in one.summary.stages) for one in runs), 2),
        peak_execution_mib=max(step["peak_execution_mib"] for step in steps.values()),
        refused=last.refused,
        documents=last.documents,
        steps=steps,
    )


def candidates(only: Sequence[str]) -> list[Plan]:
    """Every way in every format and codec that exists; of the formats only those wanted."""
    pairs = [pair for pair in formats.PAIRS if pair[0] in only]
    return [Plan(way, *pair) for pair in pairs for way in ingest.WAYS]


def measure(arguments: argparse.Namespace, directory: Path) -> tuple[list[dict[str, Any]], dict[str, Any], bool]:
    """Run all candidates; returns their rows, what the input was, and whether all gave the same statistics."""
    paths, messages, size = produce(directory, arguments.events, arguments.seed)
    spark = session(arguments.cores, arguments.heap, directory)
    plans = candidates(arguments.formats)
    runs: dict[Plan, list[Run]] = {plan: [] for plan in plans}
    began = time.monotonic()
    longest = 0.0
    try:
        for number in range(arguments.repeat + 1):  # round 0 warms up, with a part of the input, and is not counted
            round_began = time.monotonic()
            if number > 1 and round_began - began + longest > arguments.minutes * 60:
                break
            turn = number * 7 % len(plans)
            for plan in itertools.chain(plans[turn:], plans[:turn]):
                one = run(spark, plan, paths if number else paths[:1], directory)
                if number:
                    runs[plan].append(one)
            longest = max(longest, time.monotonic() - round_began)
            print(f"round {number} of {arguments.repeat} done after {time.monotonic() - began:.0f} s", file=sys.stderr)
    finally:
        spark.stop()
    same = len({one.digest for several in runs.values() for one in several}) == 1
    rows = [condensed(plan, several, messages) for plan, several in runs.items()]
    counted = len(next(iter(runs.values())))
    return rows, {"messages": messages, "message_bytes": size, "rounds": counted}, same


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=30_000, help="distinct events of the input (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="rounds to count, at most (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=6, help="time for all rounds (default: %(default)s)")
    parser.add_argument("--formats", nargs="+", default=formats.FORMATS, choices=formats.FORMATS, help="default: all")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="default: %(default)s")
    parser.add_argument("--heap", default="1g", help="heap of Spark (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the input (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the dated JSON file goes")
    arguments = parser.parse_args()
    if arguments.repeat < 1 or arguments.events < 1:
        parser.error("--repeat and --events must be at least 1")
    described = record.machine()
    with tempfile.TemporaryDirectory(prefix="bench-ingest-") as directory:
        rows, given, same = measure(arguments, Path(directory))
    for row in rows:
        print(
            f"{row['name']:26} {row['seconds']:>6.2f} s ({row['seconds_least']:.2f} to {row['seconds_most']:.2f})"
            f" {row['cpu_us_per_event']:>6} us CPU/message {row['bytes_per_message']:>7} bytes {row['tasks']:>4} tasks"
        )
    if arguments.output:
        parameters = {name: getattr(arguments, name) for name in ("events", "cores", "heap", "seed")} | given
        print(record.write(arguments.output, "ingest", described, parameters, rows))
    if not same:
        print("FAILED: not all candidates gave the same statistics", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
