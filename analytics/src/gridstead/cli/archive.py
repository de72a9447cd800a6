"""``gridstead archive``: what is in the archive on HDFS, and its upkeep by the job of the same name."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click
from rich.table import Table

from gridstead.cli import sparkrun
from gridstead.cli.session import EXIT_FAILED, Failure, Session, command, unreachable
from gridstead.cli.units import exact, human_bytes, human_seconds, utc
from gridstead.hdfs import HdfsError, HdfsShell
from gridstead.release import ReleaseError, spark_submit_command

_SHOWN = 20


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def archive() -> None:
    """Show, verify, compact and trim the archive of events on HDFS."""


@archive.command(
    epilog="""\b
Examples:
  gridstead archive verify
  gridstead archive verify --json | jq -r '.findings[]'"""
)
@sparkrun.job_options
@command
def verify(session: Session, version: str | None, master: str | None, verbose: bool) -> None:
    """Read every file, count every row, and check that each position of the log is there once.

    Reads the whole archive and changes nothing; exit code 1 where something is wrong.
    """
    answer, used = _job(session, "verifying the archive", ["verify"], version, master, verbose)
    session.emit({"release": used, **answer}, lambda: _verified(answer))
    if answer["findings"]:
        what = f"{exact(len(answer['findings']))} findings in {session.config.stream.archive}"
        raise Failure(what, "gridstead archive verify --json    # all of them", EXIT_FAILED)


@archive.command(
    epilog="""\b
Examples:
  gridstead archive compact
  gridstead archive compact --master local[2]"""
)
@sparkrun.job_options
@command
def compact(session: Session, version: str | None, master: str | None, verbose: bool) -> None:
    """Merge the stream's small files into large ones, and delete those that were merged a day ago (archive.grace_h).

    The stream and readers go on meanwhile. It may be stopped and started again at any time.
    """
    answer, used = _job(session, "compacting the archive", ["compact"], version, master, verbose)
    session.emit({"release": used, **answer}, lambda: _compacted(answer))
    if answer["refused"]:
        raise Failure("; ".join(answer["refused"]), "gridstead archive verify", EXIT_FAILED)


@archive.command(
    epilog="""\b
Examples:
  gridstead archive retain    by archive.retention_days and archive.malformed_retention_days in gridstead.toml"""
)
@sparkrun.job_options
@command
def retain(session: Session, version: str | None, master: str | None, verbose: bool) -> None:
    """Give up the days that are older than configured.

    What is given up counts no longer at once, and is deleted by a run a day later (archive.grace_h). Nothing is given
    up where the configuration says 0 days.
    """
    answer, used = _job(session, "trimming the archive", ["retain"], version, master, verbose)
    session.emit({"release": used, **answer}, lambda: _retained(answer))


@archive.command(
    "accept-gap",
    epilog="""\b
Examples:
  gridstead archive accept-gap gridstead.events 0 123456 --yes""",
)
@click.argument("topic")
@click.argument("partition", type=click.IntRange(0))
@click.argument("offset", type=click.IntRange(1))
@click.option("--yes", is_flag=True, help="Do it: the records before OFFSET will never be archived.")
@sparkrun.job_options
@command
def accept_gap(
    session: Session,
    topic: str,
    partition: int,
    offset: int,
    yes: bool,
    version: str | None,
    master: str | None,
    verbose: bool,
) -> None:
    """Let the archive go on at OFFSET although it lacks records before it, which Kafka has no longer.

    Only where the stream says so. The gap is on record; `verify` counts it as given up.
    """
    if not yes:
        raise Failure(
            f"records before offset {offset} of partition {partition} of {topic} would be given up for good",
            f"gridstead archive accept-gap {topic} {partition} {offset} --yes",
        )
    arguments = ["accept-gap", topic, str(partition), str(offset)]
    answer, used = _job(session, "accepting the gap", arguments, version, master, verbose)
    session.emit({"release": used, **answer}, lambda: f"{exact(answer['positions'])} positions are given up.")


@archive.command(
    epilog="""\b
Examples:
  gridstead archive status
  gridstead archive status --json | jq .positions"""
)
@command
def status(session: Session) -> None:
    """Show how far the archive reaches, its days, files and size, and what compaction has still to do."""
    config = session.config
    try:
        data = survey(HdfsShell(config.hadoop.cli), config.stream.archive)
    except HdfsError as error:
        raise unreachable("HDFS", error, "hdfs-namenode") from error
    session.emit(data, lambda: _surveyed(data))


def survey(shell: HdfsShell, root: str) -> dict[str, Any]:
    """What a few listings of HDFS tell of the archive. Raises HdfsError."""
    from gridstead.archive.manifest import Manifest, Token, counted

    root = root.rstrip("/")
    if not shell.exists(f"{root}/commits"):
        return {"archive": root, "commits": 0}
    with ThreadPoolExecutor(3) as pool:  # each call starts a JVM
        commits = pool.submit(shell.run, "-ls", "-R", "-C", f"{root}/commits")
        days = pool.submit(shell.run, "-count", f"{root}/events/*/*")
        other = pool.submit(shell.run, "-ls", "-R", "-C", root + "/{staging,retention,locks,writers}")
        paths = {token: path for path in commits.result().split() if (token := Token.of(path.rpartition("/")[2]))}
        rows = [line.split() for line in days.result().splitlines() if "/date=" in line]
        beside = _best(other)
    chosen, faults = counted(paths)
    newest = Manifest.from_json(shell.read(paths[chosen[-1]])) if chosen else None
    dates = sorted({row[3].rpartition("date=")[2] for row in rows if "/source=malformed/" not in row[3]})
    return {
        "archive": root,
        "positions": newest.positions if newest else {},
        "newest_ms": newest.committed_ms if newest else None,
        "first_day": dates[0] if dates else None,
        "last_day": dates[-1] if dates else None,
        "files": sum(int(row[1]) for row in rows),
        "bytes": sum(int(row[2]) for row in rows),
        "commits": len(chosen),
        "not_compacted": sum(token.first == token.last for token in chosen),
        "awaiting_deletion": len(paths) - len(chosen),
        "given_up_before": _after(beside, "/retention/"),
        "unfinished": [name for name in _after(beside, "/staging/") if "/" not in name],
        "locked": bool(_after(beside, "/locks/")),
        "faults": faults,
    }


def _best(listing: Any) -> list[str]:
    """The lines of a listing; none where there is nothing to list."""
    try:
        return [str(line) for line in listing.result().split()]
    except HdfsError as error:
        if "No such file" in str(error):
            return []
        raise


def _after(paths: Iterable[str], directory: str) -> list[str]:
    return [path.partition(directory)[2] for path in paths if directory in path]


def _job(
    session: Session, title: str, arguments: list[str], version: str | None, master: str | None, verbose: bool
) -> tuple[dict[str, Any], str | None]:
    config = session.config
    master = master or config.spark.master
    used = sparkrun.chosen_version(config, version, master)
    try:
        line = spark_submit_command(config, "archive", arguments, master, "client", used)
    except ReleaseError as error:
        raise sparkrun.refused(error) from error
    done_codes = (0, EXIT_FAILED)  # with findings it is done as well
    answer = sparkrun.answer_of(session, title, verbose, "archive", line, "gridstead archive status", done_codes)
    return answer, used


def _facts(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("", no_wrap=True)
    table.add_column("", justify="right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _verified(answer: dict[str, Any]) -> Table:
    found = answer["findings"]
    rows = [
        ("commits", exact(answer["commits"])),
        ("files read", exact(answer["files"])),
        ("rows", exact(answer["rows"])),
        ("size", f"{human_bytes(answer['bytes'])} ({exact(answer['bytes'])} bytes)"),
        ("positions given up", exact(answer["absent"])),
        ("replaced files, deleted later", exact(answer["awaiting_deletion"])),
        ("leftovers of killed attempts", exact(len(answer["leftovers"]))),
        *(("leftover", name) for name in answer["leftovers"][:_SHOWN]),
        ("findings", exact(len(found)) if found else "none"),
        *(("finding", text) for text in found[:_SHOWN]),
        ("time", human_seconds(answer["seconds"])),
    ]
    return _facts("The archive is damaged" if found else "The archive is sound", rows)


def _compacted(answer: dict[str, Any]) -> Table:
    rows = [
        ("merges", exact(answer["merges"])),
        ("commits merged", exact(answer["commits"])),
        ("files", f"{exact(answer['files_before'])} → {exact(answer['files_after'])}"),
        ("size", f"{human_bytes(answer['bytes_before'])} → {human_bytes(answer['bytes_after'])}"),
        ("files deleted, merged before", exact(answer["deleted_files"])),
        ("time", human_seconds(answer["seconds"])),
    ]
    return _facts("Compacted", rows)


def _retained(answer: dict[str, Any]) -> Table:
    rows = [
        ("events count from", answer["events_from"] or "the beginning"),
        ("malformed rows count from", answer["malformed_from"] or "the beginning"),
        ("directories deleted", exact(len(answer["deleted"]))),
        ("files deleted", exact(answer["deleted_files"])),
        ("freed", human_bytes(answer["deleted_bytes"])),
        ("time", human_seconds(answer["seconds"])),
    ]
    return _facts("Trimmed", rows)


def _surveyed(data: dict[str, Any]) -> Table | str:
    if not data["commits"]:
        return f"Nothing is archived under {data['archive']} yet."
    rows = [
        ("days", f"{data['first_day']} to {data['last_day']}"),
        ("newest commit", utc(data["newest_ms"])),
        ("files", exact(data["files"])),
        ("size", human_bytes(data["bytes"])),
        ("commits", f"{exact(data['commits'])}, of them {exact(data['not_compacted'])} not compacted"),
        ("replaced commits, deleted later", exact(data["awaiting_deletion"])),
        *(
            (f"{topic}, partition {partition}", f"up to offset {exact(offset)}")
            for topic, partitions in data["positions"].items()
            for partition, offset in sorted(partitions.items())
        ),
        *(("given up", name.replace("-before-", " before ")) for name in data["given_up_before"]),
        *(("unfinished", name) for name in data["unfinished"]),
        ("being rearranged", "yes" if data["locked"] else "no"),
        *(("fault", text) for text in data["faults"]),
    ]
    return _facts(f"Archive {data['archive']}", rows)
