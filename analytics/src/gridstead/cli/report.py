"""``gridstead report``: who moved how much from where to where, and when."""

from __future__ import annotations

import csv
import io
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gridstead.cli import transfers
from gridstead.cli.session import EXIT_USAGE, Failure, Session, command, unreachable
from gridstead.cli.transfers import DIMENSIONS, Document, Selection, Sums
from gridstead.cli.units import Moment, bar, exact, human_bytes, human_seconds, sparkline, utc
from gridstead.config import elasticsearch_client

_POINTS = 72
_ROWS = 24


@click.command(
    epilog="""\b
Examples:
  gridstead report                                  all that is served
  gridstead report --from 24h --vo cms              the last day of one VO
  gridstead report --from 2025-06-01 --to 2025-06-08 --by vo,activity
  gridstead report --csv > matrix.csv               or --csv series, --json"""
)
@click.option("--from", "from_ms", type=Moment(), help="Begin, UTC: 2025-06-03[T10:20], or 24h (ago).")
@click.option("--to", "to_ms", type=Moment(), help="End, in the same forms.")
@click.option("--vo", help="Only this virtual organisation.")
@click.option("--src", help="Only from this domain.")
@click.option("--dst", help="Only to this domain.")
@click.option("--activity", type=click.Choice(["r", "w", "u"]), help="r: reads, w: writes, u: neither.")
@click.option("--by", default="src,dst", show_default=True, help=f"Dimensions of the matrix: {', '.join(DIMENSIONS)}.")
@click.option("--limit", default=25, show_default=True, type=click.IntRange(1), help="Rows shown in the terminal.")
@click.option(
    "--csv", "as_csv", is_flag=False, flag_value="matrix", type=click.Choice(["matrix", "series"]), help="Print CSV."
)
@command
def report(
    session: Session,
    from_ms: int | None,
    to_ms: int | None,
    vo: str | None,
    src: str | None,
    dst: str | None,
    activity: str | None,
    by: str,
    limit: int,
    as_csv: str | None,
) -> None:
    """Show the transfer matrix and the time series of the served statistics.

    Bytes and counts are exact sums over all bins chosen; an event counts in the bin in which it ended.
    """
    names = _dimensions(by)
    if from_ms is not None and to_ms is not None and from_ms >= to_ms:
        raise Failure(f"--from {utc(from_ms)} is not before --to {utc(to_ms)}", "gridstead report --help", EXIT_USAGE)
    chosen = {"vo": vo, "src": src, "dst": dst, "activity": activity}
    selection = Selection(from_ms, to_ms, tuple((name, value) for name, value in chosen.items() if value is not None))
    rows = read(session, selection)
    if as_csv:
        click.echo(to_csv(rows, names, as_csv), nl=False)
    else:
        session.emit(to_json(rows, names, selection), lambda: to_terminal(rows, names, limit))


def read(session: Session, selection: Selection) -> list[Document]:
    """Read the selected documents; a Failure names the service where Elasticsearch does not answer."""
    from elasticsearch import ApiError, TransportError

    index = f"{session.config.elasticsearch.index_prefix}-transfers"
    client = elasticsearch_client(session.config, request_timeout=30, max_retries=2, retry_on_timeout=True)
    try:
        return list(transfers.documents(client, index, selection))
    except TransportError as error:
        raise unreachable("Elasticsearch", error, "elasticsearch") from error
    except ApiError as error:
        raise Failure(f"Elasticsearch refused the query on {index}: {error}", "gridstead doctor") from error
    finally:
        client.close()


def to_json(rows: list[Document], by: list[str], selection: Selection) -> dict[str, Any]:
    """Make the report as one document; times in ms since the epoch (begin of the step) and as UTC."""
    step_ms, points = _series(rows)
    return {
        "from_ms": selection.from_ms,
        "to_ms": selection.to_ms,
        "filters": dict(selection.equal),
        "documents": len(rows),
        "totals": _total(rows).as_dict(),
        "matrix": [
            dict(zip(by, key, strict=True)) | sums.as_dict() for key, sums in transfers.matrix(rows, by).items()
        ],
        "step_ms": step_ms,
        "series": [{"begin_ms": begin, "begin": utc(begin)} | sums.as_dict() for begin, sums in points.items()],
    }


def to_csv(rows: list[Document], by: list[str], which: str) -> str:
    """Make the matrix or the series as CSV with a header; every dimension and sum in its exact form."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if which == "matrix":
        writer.writerow([*by, *Sums().as_dict()])
        writer.writerows([*key, *sums.as_dict().values()] for key, sums in transfers.matrix(rows, by).items())
    else:
        writer.writerow(["begin_ms", "begin", *Sums().as_dict()])
        writer.writerows([begin, utc(begin), *sums.as_dict().values()] for begin, sums in _series(rows)[1].items())
    return text.getvalue()


def to_terminal(rows: list[Document], by: list[str], limit: int) -> RenderableType:
    """Draw the matrix as a table and the series as a line and bars."""
    if not rows:
        return "No statistics are served for this selection. Send some in: gridstead replay FILE --wait"
    return Group(_matrix_table(rows, by, limit), Text(), _series_table(rows))


def _matrix_table(rows: list[Document], by: list[str], limit: int) -> Table:
    sums = transfers.matrix(rows, by)
    total = _total(rows)
    table = Table(title="Transfers", title_justify="left", show_footer=True)
    for position, name in enumerate(by):
        table.add_column(name, footer="total" if position == 0 else "", overflow="fold")
    table.add_column("moved", footer=human_bytes(total.bytes), justify="right", no_wrap=True)
    table.add_column("bytes", footer=exact(total.bytes), justify="right", no_wrap=True)
    table.add_column("events", footer=exact(total.events), justify="right", no_wrap=True)
    table.add_column("active time", footer=human_seconds(total.active_ms / 1000), justify="right", no_wrap=True)
    shown = list(sums.items())[:limit]
    for key, row in shown:
        active = human_seconds(row.active_ms / 1000)
        table.add_row(*key, human_bytes(row.bytes), exact(row.bytes), exact(row.events), active)
    if len(sums) > limit:
        table.caption = f"{len(sums) - limit} more rows: --limit {len(sums)}"
    return table


def _series_table(rows: list[Document]) -> RenderableType:
    step_ms, points = _series(rows)
    begins = list(points)
    values = [points.get(begin, Sums()).bytes for begin in range(begins[0], begins[-1] + 1, step_ms)]
    line = Text(f"{utc(begins[0])}  {sparkline(values)}  {utc(begins[-1] + step_ms)}")
    top = max(sums.bytes for sums in points.values())
    table = Table(title=f"Bytes by {human_seconds(step_ms / 1000)}", title_justify="left", box=None, padding=(0, 1))
    table.add_column("begin (UTC)", no_wrap=True)
    for name in ("moved", "bytes", "events"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for begin in begins[-_ROWS:]:
        sums = points[begin]
        table.add_row(utc(begin), human_bytes(sums.bytes), exact(sums.bytes), exact(sums.events), bar(sums.bytes, top))
    if len(begins) > _ROWS:
        table.caption = f"the latest {_ROWS} of {len(begins)} steps; all: gridstead report --csv series"
    return Group(line, Text(), table)


def _series(rows: list[Document]) -> tuple[int, dict[int, Sums]]:
    if not rows:
        return 0, {}
    bin_ms = max(int(row["bin_ms"]) for row in rows)
    begins = [int(row["bin_end_ms"]) - int(row["bin_ms"]) for row in rows]
    step_ms = transfers.step_for(min(begins), max(begins), bin_ms, _POINTS)
    return step_ms, transfers.series(rows, step_ms)


def _total(rows: list[Document]) -> Sums:
    return transfers.matrix(rows, ()).get((), Sums())


def _dimensions(by: str) -> list[str]:
    names = [name.strip() for name in by.split(",") if name.strip()]
    wrong = [name for name in names if name not in DIMENSIONS]
    if wrong or not names:
        what = f"--by {by!r}: unknown dimension {', '.join(wrong)}" if wrong else "--by names no dimension"
        raise Failure(f"{what}; there are {', '.join(DIMENSIONS)}", "gridstead report --by vo,src,dst", EXIT_USAGE)
    return names
