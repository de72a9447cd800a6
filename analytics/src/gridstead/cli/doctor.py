"""``gridstead doctor``: what is wrong, in the order of the path, and the next command to type."""

from __future__ import annotations

import sys

import click
from rich.table import Table
from rich.text import Text

from gridstead.cli.diagnosis import Finding, Verdict, examine
from gridstead.cli.session import EXIT_FAILED, Session, command

_STYLE = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.WRONG: "bold red"}


@click.command(
    epilog="""\b
Examples:
  gridstead doctor
  gridstead doctor --json | jq '.findings[] | select(.verdict == "wrong")'"""
)
@command
def doctor(session: Session) -> None:
    """Examine the appliance in the order of an event's path; say what is wrong and what to type next.

    Exits with 1 where something is wrong; notes are worth knowing and change nothing.
    """
    findings = list(examine(session.config))
    wrong = [finding for finding in findings if finding.verdict is Verdict.WRONG]
    data = {"healthy": not wrong, "findings": [finding.as_dict() for finding in findings]}
    session.emit(data, lambda: _table(findings))
    if wrong:
        if not session.as_json:
            click.echo(f"{len(wrong)} wrong; begin with:\n  {wrong[0].next_command}", err=True)
        sys.exit(EXIT_FAILED)


def _table(findings: list[Finding]) -> Table:
    table = Table(show_lines=False)
    table.add_column("", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("found", overflow="fold", ratio=3)
    table.add_column("next", overflow="fold", ratio=2)
    for finding in findings:
        verdict = Text(finding.verdict, style=_STYLE[finding.verdict])
        table.add_row(verdict, finding.check, Text(finding.message), Text(finding.next_command))
    return table
