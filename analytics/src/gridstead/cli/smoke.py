"""``gridstead smoke``: prove that every part of the appliance works."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from gridstead.cli.session import EXIT_FAILED, Session, command
from gridstead.smoke import CHECKS, Outcome, junit, run

_NAMES = [check.name for check in CHECKS]


@click.command(
    epilog="""\b
Examples:
  gridstead smoke
  gridstead smoke --only pipeline --only kafka
  gridstead smoke --junit build/smoke.xml"""
)
@click.option("--only", multiple=True, type=click.Choice(_NAMES), help="Only this check; may be given several times.")
@click.option("--junit", "junit_path", type=click.Path(path_type=Path), help="Also write JUnit XML to this file.")
@command
def smoke(session: Session, only: tuple[str, ...], junit_path: Path | None) -> None:
    """Let every part of the running appliance do real work, and compare the result with what it must be.

    Each check cleans up after itself. A failure comes with the last log lines of the services concerned.
    """
    config = session.config
    outcomes = []
    for outcome in run(config, only):
        word = "ok" if outcome.ok else "FAILED"
        session.log.print(f"{outcome.name}: {word} in {outcome.seconds:.1f} s", style="" if outcome.ok else "bold red")
        outcomes.append(outcome)
    failed = [outcome for outcome in outcomes if not outcome.ok]
    if junit_path:
        junit.write(outcomes, junit_path)
    data = {"ok": not failed, "checks": [vars(outcome) for outcome in outcomes]}
    session.emit(data, lambda: _table(outcomes))
    if not session.as_json:
        for outcome in failed:
            _explain(session, outcome)
    if failed:
        if not session.as_json:
            click.echo(f"{len(failed)} of {len(outcomes)} checks failed\nnext:  gridstead doctor", err=True)
        sys.exit(EXIT_FAILED)


def _table(outcomes: list[Outcome]) -> Table:
    table = Table(title="Smoke tests", title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("seen", overflow="fold")
    for outcome in outcomes:
        result = Text("ok", style="green") if outcome.ok else Text("FAILED", style="bold red")
        table.add_row(outcome.name, result, f"{outcome.seconds:.1f} s", Text(outcome.message or outcome.meaning))
    return table


def _explain(session: Session, outcome: Outcome) -> None:
    """Print the log lines that belong to a failure."""
    for service, lines in outcome.logs.items():
        session.log.print(f"\n{outcome.name}: the last lines of {service}", style="bold")
        for line in lines:
            session.log.print(f"  {line}", soft_wrap=True)
