"""``gridstead rebuild``: make the served statistics equal to the archive, over a range of days."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from datetime import date
from typing import Any

import click
from rich.status import Status
from rich.table import Table

from gridstead.cli import sparkrun
from gridstead.cli.session import EXIT_FAILED, EXIT_USAGE, Failure, Session, command
from gridstead.cli.units import Day, exact, human_seconds
from gridstead.release import ReleaseError, spark_submit_command

_LINE_EVERY_S = 15.0
_UNPROVEN = 3


@click.command(
    epilog="""\b
Examples:
  gridstead rebuild --from 2025-06-01 --to 2025-06-30
  gridstead rebuild --from yesterday --to today --verbose"""
)
@click.option("--from", "first", type=Day(), required=True, help="First day, UTC: 2025-06-03, yesterday, today.")
@click.option("--to", "last", type=Day(), required=True, help="Last day, included.")
@click.option("--release", "version", metavar="VERSION", help="A release on HDFS (default: the current one).")
@click.option("--master", default="yarn", show_default=True, help="yarn, or local[N] for this machine alone.")
@click.option("--verbose", "-v", is_flag=True, help="Show the log of the job as it comes.")
@command
def rebuild(session: Session, first: str, last: str, version: str | None, master: str, verbose: bool) -> None:
    """Compute the statistics of the bins of these days from the archive, and replace what is served.

    Documents that the archive does not have are deleted where it is proved that they hold nothing newer than the
    archive. Statistics of other days stay. It can be repeated, and stopped and started again, at any time.
    """
    days = (date.fromisoformat(last) - date.fromisoformat(first)).days + 1
    if days < 1:
        raise Failure(f"--from {first} is after --to {last}", "gridstead rebuild --help", EXIT_USAGE)
    config = session.config
    used = sparkrun.chosen_version(config, version, master)
    arguments = ["--from", first, "--to", last, "--rebuild"]
    try:
        line = spark_submit_command(config, "batch", arguments, master, "client", used)
    except ReleaseError as error:
        raise sparkrun.refused(error) from error
    title = f"rebuilding {days} day{'s' if days > 1 else ''}, {first} to {last}"
    begun = time.monotonic()
    run = _with_progress(session, title, verbose, line)
    answer = run.answer()
    if run.code not in (0, _UNPROVEN) or not isinstance(answer, dict):
        if not verbose:
            for text in run.log:
                click.echo(text, err=True)
        what = f"the rebuild failed with exit code {run.code} after {human_seconds(time.monotonic() - begun)}"
        raise Failure(what, "gridstead doctor    # the end of the job's log stands above", EXIT_FAILED)
    session.emit({"release": used, "complete": run.code == 0, **answer}, lambda: _table(answer, used, days))
    if run.code == _UNPROVEN:
        what = f"{exact(answer['unproven'])} documents were left alone, as Kafka did not say whether they are newer"
        raise Failure(what, f"gridstead rebuild --from {first} --to {last}", EXIT_FAILED)


def _with_progress(session: Session, title: str, verbose: bool, line: list[str]) -> sparkrun.Run:
    """Run the job under a spinner with the time on a terminal, with a line now and then elsewhere."""
    console = session.log
    over = threading.Event()
    begun = time.monotonic()
    spinner = Status(title, console=console) if console.is_terminal else None

    def tell() -> None:
        while not over.wait(1.0 if spinner else _LINE_EVERY_S):
            text = f"{title}: {human_seconds(time.monotonic() - begun)}"
            if spinner:
                spinner.update(text)
            else:
                console.print(text)

    def on_log(text: str) -> None:
        if verbose:
            console.print(text)

    teller = threading.Thread(target=tell, daemon=True)
    with spinner if spinner else nullcontext():
        teller.start()
        try:
            return sparkrun.run(session.config, line, on_log, on_print=lambda text: None)
        finally:
            over.set()
            teller.join(2)


def _table(answer: dict[str, Any], version: str | None, days: int) -> Table:
    table = Table(
        title=f"Rebuilt {answer['first_day']} to {answer['last_day']}", title_justify="left", show_header=False
    )
    table.add_column("", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    written = answer["written"]
    rows: list[tuple[str, str]] = [
        ("days", exact(days)),
        ("release", version or "local"),
        ("documents computed", exact(answer["documents"])),
        ("written", exact(written["written"])),
        ("had counted more already", exact(written["superseded"])),
        ("deleted, not in the archive", exact(answer["deleted"])),
        ("lowered to the archive", exact(answer["lowered"])),
        ("left alone, not proved older", exact(answer["unproven"])),
        ("time", human_seconds(answer["seconds"])),
    ]
    for row in rows:
        table.add_row(*row)
    return table
