"""``gridstead merge``: how far the served documents go, and what is being merged into them."""

from __future__ import annotations

from typing import Any

import click

from gridstead.cli.serving import read_control
from gridstead.cli.session import Session, command
from gridstead.serving.control import Positions


@click.group()
def merge() -> None:
    """See how far the served documents go, and what is being merged into them."""


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
        if control.intent:
            lines.append(f"Transaction {control.intent.seq} is being written, up to {_text(control.intent.positions)}.")
        if control.batch:
            where = "the served documents" if control.batch.generation == control.generation else "fresh indices"
            lines.append(f"Batch {control.batch.run} is under way, cut after {control.batch.cut.seq}, into {where}.")
        if control.merged:
            lines.append(f"Batch {control.merged.run} was merged, up to {_text(control.merged.positions)}.")
        return "\n".join(lines)

    session.emit(data, human)


def _text(positions: Positions) -> str:
    parts = [f"{topic}-{p}: {o:,}" for topic, offsets in positions.items() for p, o in sorted(offsets.items())]
    return ", ".join(parts) or "the beginning"
