"""``gridstead merge``: how far the served documents go, what is being merged into them, and giving up old ones."""

from __future__ import annotations

import datetime as dt
from typing import Any

import click

from gridstead.cli.serving import read_control, served
from gridstead.cli.session import Session, command
from gridstead.serving import retention
from gridstead.serving.control import Control, Positions


@click.group()
def merge() -> None:
    """See how far the served documents go and what is being merged into them; give up old ones."""


@merge.command(
    epilog="""\b
Examples:
  gridstead merge status
  gridstead merge status --json"""
)
@command
def status(session: Session) -> None:
    """Show the control record: transactions, positions in the log, generation, writer and batch."""
    control = read_control(session)
    data: dict[str, Any] = {
        "writer": control.writer,
        "definitions": control.fingerprint,
        "generation": control.generation,
        "transaction": control.done.seq,
        "positions": control.done.positions,
        "served_from": _day(control),
        "being_written": control.intent and {"transaction": control.intent.seq, "positions": control.intent.positions},
        "batch": control.batch and {"run": control.batch.run, "cut": control.batch.cut.seq,
                                    "generation": control.batch.generation},
        "merged": control.merged and {"run": control.merged.run, "positions": control.merged.positions},
    }  # fmt: skip

    def human() -> str:
        lines = [
            f"Served: generation {control.generation}, {control.fingerprint}.",
            f"Transaction {control.done.seq} is done, up to {_text(control.done.positions)}.",
            f"The writer is {control.writer}.",
        ]
        if _day(control):
            lines.append(f"Days before {_day(control)} were given up.")
        if control.intent:
            lines.append(f"Transaction {control.intent.seq} is being written, up to {_text(control.intent.positions)}.")
        if control.batch:
            where = "the served documents" if control.batch.generation == control.generation else "fresh indices"
            lines.append(f"Batch {control.batch.run} is under way, cut after {control.batch.cut.seq}, into {where}.")
        if control.merged:
            lines.append(f"Batch {control.merged.run} was merged, up to {_text(control.merged.positions)}.")
        return "\n".join(lines)

    session.emit(data, human)


@merge.command(
    epilog="""\b
Examples:
  gridstead merge retain
  gridstead merge retain --json"""
)
@command
def retain(session: Session) -> None:
    """Give up the months that are older than elasticsearch.retention_months in gridstead.toml.

    Their indices are deleted for good, and neither stream nor batch brings a part of them back. The archive is not
    touched: see gridstead archive retain.
    """
    months, now = session.config.elasticsearch.retention_months, dt.datetime.now(dt.UTC)
    first = retention.first_month(now.date(), months) if months else None
    with served(session, deadline_s=60.0) as (client, store):
        gone = retention.retain(client, store, first, int(now.timestamp() * 1000))
    control = read_control(session)

    def human() -> str:
        first = f"what is served begins with {_day(control)}" if _day(control) else "all months are kept"
        return f"Deleted {len(gone)} indices; {first}."

    session.emit({"served_from": _day(control), "deleted": gone}, human)


def _day(control: Control) -> str:
    """The first day that is served; "" where no month was given up."""
    day = retention.served_from(control)
    return day.isoformat() if day else ""


def _text(positions: Positions) -> str:
    parts = [f"{topic}-{p}: {o:,}" for topic, offsets in positions.items() for p, o in sorted(offsets.items())]
    return ", ".join(parts) or "the beginning"
