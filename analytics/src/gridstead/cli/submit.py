"""``gridstead submit``: run a job of the current release, or a script of your own, on YARN."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import click

from gridstead.cli import sparkrun
from gridstead.cli.session import EXIT_FAILED, EXIT_USAGE, Failure, Session, command
from gridstead.cli.units import human_seconds
from gridstead.config import Config
from gridstead.release import JOBS, ReleaseError, spark_submit_command


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="""\b
Examples:
  gridstead submit batch --from 2025-06-01 --to 2025-06-07
  gridstead submit --deploy-mode cluster batch --from 2025-06-01 --to 2025-06-07
  gridstead submit analysis.py --input /gridstead/events
Options of submit stand before JOB; what follows JOB is the job's own.""",
)
@sparkrun.release_option
@sparkrun.master_option
@click.option("--deploy-mode", default="client", show_default=True, type=click.Choice(["client", "cluster"]))
@click.option("--conf", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of Spark; several times.")
@click.option("--dry-run", is_flag=True, help="Print the command instead of running it.")
@click.argument("job")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@command
def submit(
    session: Session,
    version: str | None,
    master: str | None,
    deploy_mode: str,
    settings: tuple[str, ...],
    dry_run: bool,
    job: str,
    arguments: tuple[str, ...],
) -> None:
    """Run JOB by spark-submit, with the release's libraries.

    JOB is archive, batch, ingest, reading or stream of a release, or a local .py file.
    The log goes to standard error, what the job prints to standard output. Exits with 1 where the job fails.
    """
    config = session.config
    wrong = [setting for setting in settings if "=" not in setting]
    if wrong:
        raise Failure(f"--conf {wrong[0]!r} is not NAME=VALUE", "gridstead submit --help", EXIT_USAGE)
    conf = dict(setting.split("=", 1) for setting in settings)
    script = _script(job)
    master = master or config.spark.master
    used = sparkrun.chosen_version(config, version, master)
    try:
        line = command_line(config, job, script, arguments, master, deploy_mode, used, conf)
    except ReleaseError as error:
        raise sparkrun.refused(error) from error
    if dry_run:
        session.emit({"command": line, "release": used}, lambda: shlex.join(line))
        return
    begun = time.monotonic()
    run = sparkrun.run(
        config,
        line,
        on_log=lambda text: click.echo(text, err=True),
        on_print=lambda text: click.echo(text, err=session.as_json),
    )
    seconds = time.monotonic() - begun
    summary = {"job": job, "release": used, "exit_code": run.code, "seconds": round(seconds, 1), "answer": run.answer()}
    if session.as_json:
        session.emit(summary, str)
    if run.code != 0:
        what = f"{job} failed with exit code {run.code} after {human_seconds(seconds)}; its log says why"
        raise Failure(what, "gridstead doctor", EXIT_FAILED)
    session.log.print(f"{job} done in {human_seconds(seconds)}.")


def command_line(
    config: Config,
    job: str,
    script: Path | None,
    arguments: tuple[str, ...],
    master: str,
    deploy_mode: str,
    version: str | None,
    settings: dict[str, str],
) -> list[str]:
    """Write the command: that of the release's job, or for a script the same with the script in the job's place."""
    if script is None:
        return spark_submit_command(config, job, arguments, master, deploy_mode, version, settings)
    marker = "{main}"
    line = spark_submit_command(config, JOBS[0], [marker], master, deploy_mode, version, settings)
    options = line[: -len(["main file", "--config", "file", marker])]
    options[options.index("--name") + 1] = script.stem
    return [*options, str(script), *arguments]


def _script(job: str) -> Path | None:
    """Return the local file that JOB names, None where it is a job of a release."""
    if job in JOBS:
        return None
    path = Path(job)
    if not job.endswith(".py"):
        what = f"{job!r} is neither a job of a release ({', '.join(JOBS)}) nor a .py file"
        raise Failure(what, "gridstead submit --help", EXIT_USAGE)
    if not path.is_file():
        raise Failure(f"{path} is not there", "ls *.py", EXIT_USAGE)
    return path
