"""``gridstead rebuild``: make everything that is served anew from the archive."""

from __future__ import annotations

import click

from gridstead.cli import sparkrun
from gridstead.cli.batch import submit_batch
from gridstead.cli.session import Session, command


@click.command(
    epilog="""\b
Examples:
  gridstead rebuild
  gridstead rebuild --master 'local[2]' --verbose"""
)
@click.option(
    "--forget", is_flag=True, help="Also where days are served whose events retention has given up: lose them."
)
@sparkrun.job_options
@command
def rebuild(session: Session, forget: bool, version: str | None, master: str | None, verbose: bool) -> None:
    """Compute all days of the archive into fresh indices, and show them to readers in one step.

    Readers see the present documents until then, and the stream goes on. Stopped or killed, it leaves what is served
    as it is, and can be run again. For some days only: gridstead batch run.
    """
    submit_batch(
        session, "rebuild of all days", ["--fresh", *(["--forget"] if forget else [])], version, master, verbose
    )
