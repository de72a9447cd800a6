"""``gridstead release``: the versions of the jobs on HDFS."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
from rich.table import Table

from gridstead import __version__
from gridstead.cli.session import EXIT_USAGE, Failure, Session, command, unreachable
from gridstead.hdfs import HdfsError
from gridstead.release import Release, ReleaseError, build, releases

T = TypeVar("T")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def release() -> None:
    """List, publish and choose the versions of the jobs (wheel, libraries, applications) on HDFS."""


@release.command(
    "list",
    epilog="""\b
Examples:
  gridstead release list
  gridstead release list --json | jq -r .current""",
)
@command
def list_releases(session: Session) -> None:
    """List the versions on HDFS; the one in use is marked."""
    store = releases(session.config)
    versions, current = _try(lambda: (store.list(), store.current()))
    data = {"root": session.config.release.root, "current": current, "versions": versions}
    session.emit(data, lambda: _table(versions, current) if versions else "No release. gridstead release publish")


@release.command(
    "use",
    epilog="""\b
Examples:
  gridstead release use 0.1.0    also the way back to an older version""",
)
@click.argument("version")
@command
def use_release(session: Session, version: str) -> None:
    """Make VERSION the one that jobs run from now on; running jobs keep theirs."""
    store = releases(session.config)

    def change() -> str | None:
        before = store.current()
        if before != version:
            store.use(version)
        return before

    before = _try(change)
    data = {"current": version, "before": before, "changed": before != version}
    text = f"{version} is in use already." if before == version else f"{version} is in use, was {before or 'none'}."
    session.emit(data, lambda: text)


@release.command(
    "publish",
    epilog="""\b
Examples:
  gridstead release publish                   what is installed here, and use it
  gridstead release publish --no-use          for `gridstead release use` later
  gridstead release publish --wheel dist/gridstead-0.1.0-py3-none-any.whl""",
)
@click.option(
    "--wheel", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Publish this wheel with it."
)
@click.option("--no-use", is_flag=True, help="Do not make it the current version.")
@click.option("--build", "build_id", default="", metavar="ID", help="What it was made from; kept in release.json.")
@click.option("--replace", is_flag=True, help="Replace a release of this version that has other content.")
@command
def publish_release(session: Session, wheel: Path | None, no_use: bool, build_id: str, replace: bool) -> None:
    """Pack the libraries installed here and upload them as this version; nothing changes where it is there already."""
    config = session.config
    if not config.spark.pythonpath:
        raise Failure(f"spark.pythonpath is not set in {config.path}", "make up", EXIT_USAGE)

    def work() -> tuple[Release, bool]:
        with tempfile.TemporaryDirectory(prefix="gridstead-release-") as directory:
            built = build(Path(config.spark.pythonpath), Path(directory), __version__, wheel, build_id)
            return built, releases(config).publish(Path(directory), use=not no_use, replace=replace)

    built, changed = _try(work)
    data = {
        "version": built.version,
        "published": changed,
        "files": [{"name": file.name, "sha256": file.sha256, "size": file.size} for file in built.files],
    }
    done = "published" if changed else "there already, unchanged"
    session.emit(data, lambda: f"{built.version}: {done} ({len(built.files)} files under {config.release.root}).")


def _try(work: Callable[[], T]) -> T:
    try:
        return work()
    except ReleaseError as error:
        raise Failure(str(error), "gridstead release list") from error
    except HdfsError as error:
        raise unreachable("HDFS", error, "hdfs-namenode") from error


def _table(versions: list[str], current: str | None) -> Table:
    table = Table(title="Releases of the jobs", title_justify="left")
    table.add_column("version", no_wrap=True)
    table.add_column("in use", no_wrap=True)
    for version in versions:
        table.add_row(version, "current" if version == current else "")
    return table
