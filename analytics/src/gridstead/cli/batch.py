"""``gridstead batch``: compute days of statistics from the archive, and see how the last batch went."""

from __future__ import annotations

import time
from datetime import date
from typing import Any

import click
from rich.table import Table

from gridstead.cli import metrics, sparkrun
from gridstead.cli.serving import read_control
from gridstead.cli.session import EXIT_USAGE, Failure, Session, command
from gridstead.cli.units import Day, exact, human_seconds, utc
from gridstead.release import ReleaseError, spark_submit_command


@click.group()
def batch() -> None:
    """Compute days of statistics from the archive on YARN; see how the last batch went."""


@batch.command(
    epilog="""\b
Examples:
  gridstead batch run --from 2025-06-01 --to 2025-06-30
  gridstead batch run --from yesterday --to today --verbose
  gridstead batch run --from today --to today --output /tmp/statistics"""
)
@click.option("--from", "first", type=Day(), required=True, help="First day, UTC: 2025-06-03, yesterday, today.")
@click.option("--to", "last", type=Day(), required=True, help="Last day, included.")
@click.option("--output", metavar="PATH", help="Write Parquet to this path on HDFS; what is served stays as it is.")
@sparkrun.job_options
@command
def run(
    session: Session, first: str, last: str, output: str | None, version: str | None, master: str | None, verbose: bool
) -> None:
    """Compute the statistics of the bins of these days, and merge them into what is served.

    Every document of the days becomes what the archive says plus what was streamed since the batch began. It can be
    repeated, and stopped and started again, at any time, beside the stream. Other days stay as they are.
    """
    days = (date.fromisoformat(last) - date.fromisoformat(first)).days + 1
    if days < 1:
        raise Failure(f"--from {first} is after --to {last}", "gridstead batch run --help", EXIT_USAGE)
    arguments = ["--from", first, "--to", last, *(["--output", output] if output else [])]
    title = f"batch over {days} day{'s' if days > 1 else ''}, {first} to {last}"
    submit_batch(session, title, arguments, version, master, verbose)


def submit_batch(
    session: Session, title: str, arguments: list[str], version: str | None, master: str | None, verbose: bool
) -> None:
    """Run the job ``batch`` with progress, and print its summary. Raises Failure."""
    config = session.config
    master = master or config.spark.master
    used = sparkrun.chosen_version(config, version, master)
    try:
        line = spark_submit_command(config, "batch", arguments, master, "client", used)
    except ReleaseError as error:
        raise sparkrun.refused(error) from error
    answer = sparkrun.answer_of(session, title, verbose, "batch", line, "gridstead batch status", (0,))
    session.emit({"release": used, **answer}, lambda: _summary(answer, used))


def _summary(answer: dict[str, Any], version: str | None) -> Table:
    table = Table(title=f"{answer['first_day']} to {answer['last_day']}", title_justify="left", show_header=False)
    table.add_column("", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    merged = answer["merged"]
    table.add_row("release", version or "local")
    table.add_row("documents computed", exact(merged["computed"]))
    table.add_row("written, as they differed", exact(merged["written"]))
    table.add_row("deleted, not in the archive", exact(merged["deleted"]))
    for name, seconds in answer["seconds"].items():
        table.add_row(f"time, {name}", human_seconds(seconds))
    return table


@batch.command(
    epilog="""\b
Examples:
  gridstead batch status
  gridstead batch status --json"""
)
@command
def status(session: Session) -> None:
    """Show the batch that is under way, the last one that was merged, and when the next one is due."""
    data = freshness(session)
    session.emit(data, lambda: in_words(data))


def freshness(session: Session) -> dict[str, Any]:
    """The batch that is under way, the last one merged and the scheduled one, as JSON; raises Failure."""
    control = read_control(session)
    try:
        scheduled = metrics.scheduler(session.config)["tasks"].get("batch")
    except (metrics.MetricsError, KeyError):
        scheduled = None
    running, merged = control.batch, control.merged
    now = time.time()
    return {
        "running": running and {"run": running.run, "first_day": running.first_day, "last_day": running.last_day,
                                "cut": running.cut.seq, "seen_s_ago": round(now - running.beat_ms / 1000, 1)},
        "merged": merged and {"run": merged.run, "first_day": merged.first_day, "last_day": merged.last_day,
                              "done_ms": merged.done_ms, "age_s": round(now - merged.done_ms / 1000, 1)},
        "scheduled": scheduled,
    }  # fmt: skip


def in_words(data: dict[str, Any]) -> str:
    """What :func:`freshness` gave, a line each."""
    running, merged, scheduled = data["running"], data["merged"], data["scheduled"]
    lines = []
    if running:
        ago = human_seconds(running["seen_s_ago"])
        lines.append(f"Batch under way: {running['first_day']} to {running['last_day']}, seen alive {ago} ago.")
    if merged:
        age = human_seconds(merged["age_s"])
        done = utc(merged["done_ms"])
        lines.append(f"Last batch merged: {merged['first_day']} to {merged['last_day']}, {done}, {age} ago.")
    if not running and not merged:
        lines.append("No batch was merged yet: all that is served was streamed.")
    if scheduled:
        due = scheduled["due"] - time.time()
        lines.append(f"Next batch by schedule: {'in ' + human_seconds(due) if due > 0 else 'now'}.")
        if scheduled["last"].get("exit_code"):
            lines.append(f"The last scheduled batch failed: {scheduled['last'].get('error')}")
    else:
        lines.append("No batch is scheduled (schedule.batch_interval_s is 0, or the scheduler does not answer).")
    return "\n".join(lines)
