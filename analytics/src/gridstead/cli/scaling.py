"""``gridstead scaling``: how the batch gets faster with executors, cores and memory; a table, JSON, and a plot.

The sweeps and the figures beside ours are those of U. Suthakar's thesis, 5.4.5 and figures 5.25 to 5.27 (a cluster of
four virtual nodes of 8 cores and 32 GB on EC2). Nodes are swept by running it again after nodes were added.
"""

from __future__ import annotations

import datetime as dt
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
from rich.table import Table

from gridstead.cli import sparkrun
from gridstead.cli.session import EXIT_USAGE, Failure, Session, command, write_file
from gridstead.cli.units import Day, human_seconds
from gridstead.hdfs import HdfsError, HdfsShell
from gridstead.release import ReleaseError, spark_submit_command

SWEEPS: Final = ("executors", "cores", "memory", "nodes")
THESIS: Final = {"executors": (1, 4, -0.76), "cores": (2, 8, -0.69), "memory": (2, 8, -0.48), "nodes": (1, 3, -0.64)}
"""By sweep: from, to (cores and GB: an executor's), and how the time changed; nodes: figure 5.16, on other hosts."""

WAIT: Final = "120s"
"""How long a run waits for its executors; it then goes on with those that it has, and the answer tells how many."""

_PANEL, _MARGIN = (260, 180), 48
_OURS, _THEIRS = "#1b6ca8", "#999999"


@dataclass(frozen=True)
class Shape:
    """What a run asks for: executors, and of each the cores and the GB of heap."""

    executors: int
    cores: int
    memory: int

    def settings(self) -> dict[str, str]:
        """Spark's settings for it; a run waits until it has all its executors."""
        return {
            "spark.dynamicAllocation.enabled": "false",
            "spark.executor.instances": str(self.executors),
            "spark.executor.cores": str(self.cores),
            "spark.executor.memory": f"{self.memory}g",
            "spark.scheduler.minRegisteredResourcesRatio": "1.0",
            "spark.scheduler.maxRegisteredResourcesWaitingTime": WAIT,
        }


class Numbers(click.ParamType):
    """Whole numbers of at least 1, such as 1,2,4."""

    name = "N,N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse; fails with what is wrong."""
        numbers = _numbers(str(value))
        if not numbers:
            self.fail(f"{value!r} is not whole numbers of at least 1, such as 1,2,4", param, ctx)
        return tuple(sorted(set(numbers)))


@click.command(
    epilog="""\b
Examples:
  gridstead scaling --from 2025-06-01 --to 2025-06-07 --plot scaling.svg
  gridstead scaling --from 2025-06-01 --to 2025-06-01 --executors 1,2 --cores 1,2 --memory 1,2 --fixed 2,1,1
  gridstead scaling --from 2025-06-01 --to 2025-06-07 --output 3-nodes.json --beside 2-nodes.json"""
)
@click.option("--from", "first", type=Day(), required=True, help="First day of the archive to compute, UTC.")
@click.option("--to", "last", type=Day(), required=True, help="Last day, included.")
@click.option("--executors", type=Numbers(), default="1,2,3,4", show_default=True, help="Executors of the first sweep.")
@click.option("--cores", type=Numbers(), default="2,4,8", show_default=True, help="Cores of an executor, second sweep.")
@click.option("--memory", type=Numbers(), default="2,4,8", show_default=True, help="GB of an executor, third sweep.")
@click.option("--fixed", default="4,2,4", show_default=True, metavar="E,C,M", help="Executors, cores and GB elsewhere.")
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1), help="Runs of each; the median counts.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Keep the results (JSON).")
@click.option("--beside", multiple=True, type=click.Path(path_type=Path, dir_okay=False, exists=True),
              help="Results of the same days on other numbers of nodes.")  # fmt: skip
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw them beside the thesis's (SVG).")
@sparkrun.release_option
@click.option("--verbose", "-v", is_flag=True, help="Show the log of each run as it comes.")
@command
def scaling(
    session: Session,
    first: str,
    last: str,
    executors: tuple[int, ...],
    cores: tuple[int, ...],
    memory: tuple[int, ...],
    fixed: str,
    repeat: int,
    output: Path | None,
    beside: tuple[Path, ...],
    plot: Path | None,
    version: str | None,
    verbose: bool,
) -> None:
    """Compute the same days with one, two, more executors; then with more cores, and with more memory, of each.

    Runs on YARN, writes below /tmp on HDFS and deletes it; what is served stays as it is. A run that failed or
    got fewer executors than it asked for is shown, and does not count. Counted is the time of the
    computation, without the start.
    """
    base = _shape(fixed)
    if first > last:
        raise Failure(f"--from {first} is after --to {last}", "gridstead scaling --help", EXIT_USAGE)
    others = [_read(path, first, last) for path in beside]
    used = sparkrun.chosen_version(session.config, version, "yarn")

    place = f"/tmp/gridstead-scaling-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}"

    def run(shape: Shape, title: str) -> dict[str, Any]:
        arguments = ["--from", first, "--to", last, "--output", place]
        try:
            line = spark_submit_command(session.config, "batch", arguments, "yarn", "client", used, shape.settings())
        except ReleaseError as error:
            raise sparkrun.refused(error) from error
        try:
            return sparkrun.answer_of(session, title, verbose, "batch", line, "gridstead batch status", (0,))
        except Failure as failure:  # such as an executor that no node has room for: the other runs count all the same
            session.log.print(failure.message)
            return {"executors": [], "seconds": {"compute": 0.0}}

    sweeps = {"executors": executors, "cores": cores, "memory": memory}
    try:
        results = list(measure(sweeps, base, repeat, run, session.log.print))
    finally:
        try:
            HdfsShell(session.config.hadoop.cli).remove(place)
        except HdfsError as error:
            session.log.print(f"{place} is left on HDFS: {error}")
    answer = {"from": first, "to": last, "release": used, "fixed": asdict(base), "repeat": repeat, "results": results}
    if not any(row["seconds"] for row in results):
        raise Failure("no run had the executors that it asked for; why stands above", "gridstead doctor")
    lines = curves([answer, *others])
    session.emit({**answer, "relative": lines}, lambda: _told(results, lines))
    if output is not None:
        write_file(output, json.dumps(answer, indent=1) + "\n")
    if plot is not None:
        write_file(plot, drawn(lines))


def measure(
    sweeps: dict[str, tuple[int, ...]],
    base: Shape,
    repeat: int,
    run: Callable[[Shape, str], dict[str, Any]],
    tell: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Run each shape of the sweeps, all once, then all again, so that what changes by the hour touches all alike.

    ``run`` returns the job's answer. Yields for each value of each sweep its shape, ``seconds`` of the runs that had
    all their executors, ``got`` (the fewest executors that a run had) and ``nodes`` (the hosts these were on).
    """
    shapes = [(name, replace(base, **{name: value})) for name, values in sweeps.items() for value in values]
    answers: dict[Shape, list[dict[str, Any]]] = {shape: [] for _, shape in shapes}
    for number in range(repeat):
        for shape in answers:
            what = f"executors {shape.executors}, cores {shape.cores}, memory {shape.memory} GB"
            if any(len(answer["executors"]) < shape.executors for answer in answers[shape]):
                continue  # the cluster has no room for it, and will not have it in the next round
            answer = run(shape, f"round {number + 1} of {repeat}: {what}")
            answers[shape].append(answer)
            got = len(answer["executors"])
            short = f", with only {got} executors" if got < shape.executors else ""
            tell(f"{what}: {human_seconds(answer['seconds']['compute'])}{short}")
    for name, shape in shapes:
        found = answers[shape]
        yield {
            "sweep": name,
            **asdict(shape),
            "got": min(len(answer["executors"]) for answer in found),
            "nodes": max(len(set(answer["executors"])) for answer in found),
            "seconds": [a["seconds"]["compute"] for a in found if len(a["executors"]) == shape.executors],
        }


def curves(answers: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float, float]]]:
    """By sweep: value, median seconds, and these over those of the sweep's least value.

    The first of ``answers`` gives executors, cores and memory. Nodes: of each answer the run with the most executors
    for each number of nodes.
    """
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in SWEEPS}
    widest: dict[int, tuple[int, float]] = {}
    for number, answer in enumerate(answers):
        for row in answer["results"]:
            if not row["seconds"]:
                continue
            median = statistics.median(row["seconds"])
            if number == 0:
                found[row["sweep"]].append((row[row["sweep"]], median))
            if row["sweep"] == "executors":
                if row["executors"] > widest.get(row["nodes"], (0, 0.0))[0]:  # of as many the first answer's
                    widest[row["nodes"]] = (row["executors"], median)
    found["nodes"] = sorted((nodes, median) for nodes, (_, median) in widest.items())
    return {name: [(x, y, y / rows[0][1]) for x, y in rows] for name, rows in found.items()}


def drawn(lines: dict[str, list[tuple[int, float, float]]]) -> str:
    """An SVG: the time over that of the least value, a panel a sweep; the thesis's two points in grey."""
    (width, height), gap = _PANEL, _MARGIN
    units = {"executors": "executors", "cores": "cores an executor", "memory": "GB an executor", "nodes": "nodes"}
    parts = []
    for number, name in enumerate(SWEEPS):
        low, high, change = THESIS[name]
        theirs = [(low, 1.0), (high, 1.0 + change)]
        ours = [(x, share) for x, _, share in lines[name]]
        right, top = max(x for x, _ in theirs + ours), 1.15 * max(share for _, share in theirs + ours)
        left = gap + number * (width + gap)
        parts.append(f'<rect x="{left}" y="{gap}" width="{width}" height="{height}" fill="none" stroke="#999"/>')
        parts.append(f'<text x="{left}" y="{gap - 6}">time by {units[name]}</text>')
        for colour, points in ((_THEIRS, theirs), (_OURS, ours)):
            places = [(left + x / right * width, gap + height * (1 - share / top)) for x, share in points]
            joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            for (x, y), (value, share) in zip(places, points, strict=True):
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>')
                parts.append(f'<text x="{x:.1f}" y="{gap + height + 14}" text-anchor="middle">{value}</text>')
                if share != 1:
                    label = f'text-anchor="middle" fill="{colour}">{share:.0%}'
                    parts.append(f'<text x="{x:.1f}" y="{y - 5:.1f}" {label}</text>')
    bottom = gap + height + 34
    parts.append(f'<text x="{gap}" y="{bottom}" fill="{_OURS}">ours</text>')
    parts.append(
        f'<text x="{gap + 40}" y="{bottom}" fill="{_THEIRS}">the thesis (5.4.5; nodes: 5.4.3, other hosts)</text>'
    )
    size = f'width="{gap + len(SWEEPS) * (width + gap)}" height="{bottom + 10}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    return "\n".join([head, "<title>Time of the batch over that of the least value</title>", *parts, "</svg>", ""])


def _told(results: Sequence[dict[str, Any]], lines: dict[str, list[tuple[int, float, float]]]) -> Table:
    table = Table(title="Time of the batch by what it had", title_justify="left")
    table.add_column("sweep")
    for name in ("value", "time", "change", "thesis"):
        table.add_column(name, justify="right")
    for name in SWEEPS:
        low, high, change = THESIS[name]
        short = {row[name]: row["got"] for row in results if row["sweep"] == name and not row["seconds"]}
        measured = [(x, human_seconds(y), f"{share - 1:+.0%}") for x, y, share in lines[name]]
        for x, time, change_here in sorted([*measured, *((x, f"got {got} executors", "") for x, got in short.items())]):
            theirs = f"{change:+.0%} from {low}" if x == high else ""
            table.add_row(name, str(x), time, change_here, theirs)
    return table


def _shape(fixed: str) -> Shape:
    numbers = _numbers(fixed)
    if len(numbers) != 3:
        what = f"--fixed {fixed!r} is not three whole numbers: executors, cores and GB of each, such as 4,2,4"
        raise Failure(what, "gridstead scaling --help", EXIT_USAGE)
    return Shape(*numbers)


def _numbers(text: str) -> list[int]:
    """Whole numbers of at least 1 between commas; none where anything else is among them."""
    parts = [part.strip() for part in text.split(",")]
    return [int(part) for part in parts] if all(part.isdecimal() and int(part) for part in parts) else []


def _read(path: Path, first: str, last: str) -> dict[str, Any]:
    """Earlier results; raises Failure where they are none, or of other days."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        days = (found["from"], found["to"])
        assert isinstance(found["results"], list)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        what = f"{path} holds no results of gridstead scaling"
        raise Failure(what, "gridstead scaling --output FILE", EXIT_USAGE) from error
    if days != (first, last):
        what = f"{path} is about {days[0]} to {days[1]}, not about {first} to {last}"
        raise Failure(what, f"gridstead scaling --from {days[0]} --to {days[1]}", EXIT_USAGE)
    return dict(found)
