"""Running spark-submit from the command line: its log goes on to standard error line by line, its answer is kept."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import IO, Any

import click
from rich.status import Status

from gridstead.cli.session import EXIT_FAILED, EXIT_UNREACHABLE, Failure, Session
from gridstead.cli.units import human_seconds
from gridstead.config import Config
from gridstead.hdfs import HdfsError
from gridstead.release import ReleaseError, releases, spark_environment

_KEPT_LINES = 40
_LINE_EVERY_S = 15.0


@dataclass(frozen=True)
class Run:
    """How a run of spark-submit ended: exit code, the lines it printed, and the last lines of its log."""

    code: int
    printed: tuple[str, ...]
    log: tuple[str, ...]

    def answer(self) -> Any:
        """Return the last line printed that is a JSON object, None where there is none."""
        for line in reversed(self.printed):
            if line.startswith("{"):
                try:
                    return json.loads(line)
                except ValueError:
                    continue
        return None


def release_option(function: Any) -> Any:
    """Add ``--release``, the parameter ``version``."""
    told = "A release on HDFS (default: the current one)."
    return click.option("--release", "version", metavar="VERSION", help=told)(function)


def master_option(function: Any) -> Any:
    """Add ``--master``; None is the configuration's ``spark.master``."""
    told = "yarn, k8s://…, or local[N] (default: spark.master of the configuration)."
    return click.option("--master", help=told)(function)


def job_options(function: Any) -> Any:
    """Add what every command takes that runs a job and waits: ``--release``, ``--master``, ``--verbose``."""
    verbose = click.option("--verbose", "-v", is_flag=True, help="Show the log of the job as it comes.")
    return release_option(master_option(verbose(function)))


def chosen_version(config: Config, version: str | None, master: str) -> str | None:
    """Return the release to run: the one asked for, else the current one; None where YARN is not used."""
    if version or master != "yarn":
        return version
    try:
        current = releases(config).current()
    except HdfsError as error:
        raise Failure(str(error), "gridstead doctor", EXIT_UNREACHABLE) from error
    if current is None:
        raise Failure(f"no release is in use under {config.release.root} on HDFS", "gridstead release publish")
    return current


def run(config: Config, command: Sequence[str], on_log: Callable[[str], None], on_print: Callable[[str], None]) -> Run:
    """Run spark-submit and hand on each line of its log and of its output as it comes.

    An interrupt reaches the child too (same terminal); this waits until it has ended and lets the interrupt go on.
    """
    try:
        process = subprocess.Popen(
            command,
            env=spark_environment(config),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise Failure(f"{command[0]} does not start: {error.strerror}", "make up") from error
    log: list[str] = []
    printed: list[str] = []
    assert process.stdout is not None and process.stderr is not None
    reader = threading.Thread(target=_follow, args=(process.stderr, log, on_log, _KEPT_LINES))
    reader.start()
    try:
        _follow(process.stdout, printed, on_print, None)
        code = process.wait()
    except KeyboardInterrupt:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.terminate()
        raise
    finally:
        reader.join(5)
    return Run(code, tuple(printed), tuple(log))


def run_with_progress(session: Session, title: str, verbose: bool, command: Sequence[str], mark: str) -> Run:
    """Run spark-submit under a spinner with the time on a terminal, with a line now and then elsewhere.

    Beside the time stands what the job said last: what follows ``mark`` in a line of its log.
    """
    console = session.log
    over = threading.Event()
    begun = time.monotonic()
    spinner = Status(title, console=console) if console.is_terminal else None
    doing = [""]

    def tell() -> None:
        while not over.wait(1.0 if spinner else _LINE_EVERY_S):
            text = f"{title}: {human_seconds(time.monotonic() - begun)}{doing[0]}"
            if spinner:
                spinner.update(text)
            else:
                console.print(text)

    def on_log(text: str) -> None:
        if mark in text:
            doing[0] = f", {text.partition(mark)[2]}"
        if verbose:
            console.print(text)

    def on_print(text: str) -> None:
        if not text.startswith("{"):  # the answer; the rest is what a driver in Python logs (see answer_of)
            on_log(text)

    teller = threading.Thread(target=tell, daemon=True)
    with spinner if spinner else nullcontext():
        teller.start()
        try:
            return run(session.config, command, on_log, on_print)
        finally:
            over.set()
            teller.join(2)


def answer_of(
    session: Session,
    title: str,
    verbose: bool,
    job: str,
    command: Sequence[str],
    remedy: str,
    done_codes: Sequence[int],
) -> dict[str, Any]:
    """Run a job as :func:`run_with_progress` does and return its answer, a JSON object.

    Raises Failure with ``remedy`` where the answer is an error, and with the end of the log shown where there is no
    answer or the exit code is not one of ``done_codes``.
    """
    begun = time.monotonic()
    done = run_with_progress(session, title, verbose, command, f" {job} INFO ")
    answer = done.answer()
    if isinstance(answer, dict) and "error" in answer:
        raise Failure(answer["error"], remedy, EXIT_FAILED)
    if isinstance(answer, dict) and done.code in done_codes:
        return answer
    if not verbose:
        # spark-submit hands on what a driver in Python logs as output, not as errors
        for text in (*done.log, *done.printed[-_KEPT_LINES:]):
            click.echo(text, err=True)
    what = f"{title} failed with exit code {done.code} after {human_seconds(time.monotonic() - begun)}"
    raise Failure(what, "gridstead doctor    # the end of the job's log stands above", EXIT_FAILED)


def refused(error: ReleaseError) -> Failure:
    """Make the Failure for a release that cannot be used."""
    return Failure(str(error), "gridstead release list")


def _follow(stream: IO[str], lines: list[str], tell: Callable[[str], None], keep: int | None) -> None:
    for line in stream:
        text = line.rstrip("\n")
        lines.append(text)
        if keep is not None:
            del lines[:-keep]
        tell(text)
