"""``gridstead stream``: what the stream does, in numbers."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from gridstead.cli import metrics
from gridstead.cli.session import Session, command, unreachable
from gridstead.cli.units import exact

_SHOWN = (
    ("state", "state"), ("lag", "rows behind the log"), ("rows", "rows since the start"),
    ("archived_rows", "rows archived"), ("files", "files written"), ("malformed", "malformed rows"),
    ("documents", "documents written"), ("duplicates", "duplicates"), ("superseded", "superseded versions"),
    ("retracted", "taken back"), ("beyond_horizon", "later than the horizon"),
    ("batch_duration_ms", "last step, ms"), ("updated_at", "last step at"), ("error", "error"),
)  # fmt: skip


@click.group()
def stream() -> None:
    """See what the stream does."""


@stream.command(
    epilog="""\b
Examples:
  gridstead stream status
  gridstead stream status --json"""
)
@command
def status(session: Session) -> None:
    """Show the archive's query and the statistics: progress, lag, duplicates, versions, what came too late."""
    try:
        document = metrics.stream(session.config)
    except metrics.MetricsError as error:
        raise unreachable("the stream", error, "stream") from error
    session.emit(document, lambda: _table(document["queries"]))


def _table(parts: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="Stream", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in parts:
        table.add_column(name, justify="right", overflow="fold")
    for key, title in _SHOWN:
        values = [part.get(key) for part in parts.values()]
        if any(value is not None for value in values):
            table.add_row(title, *[_text(value) for value in values])
    return table


def _text(value: Any) -> str:
    return "" if value is None else exact(value) if isinstance(value, int) else str(value)
