"""What every command shares: options, output, errors and exit codes."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar

import click
from rich.console import Console, RenderableType

from gridstead import config as configuration

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CONFIG = 3
EXIT_UNREACHABLE = 4
EXIT_INTERRUPTED = 130

EXIT_CODES = """\b
Exit codes:
  0    done, and nothing is wrong
  1    the command ran and the answer is no: unhealthy, failed, timed out
  2    wrong usage, or input that cannot be used
  3    the configuration is missing or wrong
  4    a server does not answer
  130  interrupted"""

_WIDTH_OF_PIPES = 160


class Failure(click.ClickException):
    """An error for people: one sentence what is wrong and where, then the next command to type."""

    def __init__(self, what: str, next_command: str = "", code: int = EXIT_FAILED) -> None:
        """Keep the sentence, the remedy and the exit code."""
        super().__init__(what)
        self.next_command = next_command
        self.exit_code = code  # type: ignore[misc]  # click's own exceptions set it so
        self.as_json = False

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the error to standard error, as JSON where the command was asked for JSON."""
        if self.as_json:
            problem = {"error": self.message, "next": self.next_command or None, "exit_code": self.exit_code}
            click.echo(json.dumps(problem), file=file, err=file is None)
            return
        click.echo(f"error: {self.message}", file=file, err=file is None)
        if self.next_command:
            click.echo(f"next:  {self.next_command}", file=file, err=file is None)


def write_file(path: Path, text: str) -> None:
    """Write a file that the user has named. Raises Failure."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(f"{path} cannot be written ({error.strerror})") from error


def unreachable(what: str, error: BaseException, service: str) -> Failure:
    """Make the Failure for a server that does not answer; ``service`` is its name in ``gridstead status``."""
    reason = " ".join(str(error).split()) or type(error).__name__
    next_command = f"gridstead doctor    # then look at {service}"
    return Failure(f"{what} does not answer ({reason})", next_command, EXIT_UNREACHABLE)


def make_console(*, stderr: bool = False) -> Console:
    """Make a console that does not squeeze tables into 80 columns where the output is a pipe or a file."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDTH_OF_PIPES
    return Console(file=stream, width=width, highlight=False, soft_wrap=False, emoji=False, markup=False)


@dataclass
class Session:
    """One run of a command: its configuration (read when first asked for) and its output."""

    config_path: Path | None = None
    as_json: bool = False
    _console: Console | None = field(default=None, repr=False)

    @cached_property
    def config(self) -> configuration.Config:
        """The checked configuration; raises ConfigError."""
        return configuration.load(self.config_path)

    @cached_property
    def console(self) -> Console:
        """Standard output, for results."""
        return make_console()

    @cached_property
    def log(self) -> Console:
        """Standard error, for progress and notes, so that results can be piped."""
        return make_console(stderr=True)

    def emit(self, data: Any, human: Callable[[], RenderableType]) -> None:
        """Print a result: ``data`` as one JSON document under --json, else what ``human`` returns (text unbroken)."""
        if self.as_json:
            click.echo(json.dumps(data, indent=2, ensure_ascii=False, sort_keys=False))
            return
        shown = human()
        if isinstance(shown, str):
            click.echo(shown)
        else:
            self.console.print(shown)


F = TypeVar("F", bound=Callable[..., Any])


def command(function: F) -> F:
    """Give a command --config and --json, and a Session as its first argument; explain errors of the configuration."""

    @click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        help="The appliance's gridstead.toml (else $GRIDSTEAD_CONFIG, $GRIDSTEAD_ROOT, ~/.gridstead, /etc/gridstead).",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document (progress goes to standard error).")
    @click.pass_context
    @functools.wraps(function)
    def wrapper(context: click.Context, /, *args: Any, config_path: Path | None, as_json: bool, **options: Any) -> Any:
        outer = context.find_root().params
        session = Session(config_path or outer.get("config_path"), as_json or bool(outer.get("as_json")))
        try:
            return function(session, *args, **options)
        except configuration.ConfigError as error:
            failure = Failure("\n       ".join(error.problems), "make up", EXIT_CONFIG)
            failure.as_json = session.as_json
            raise failure from error
        except Failure as failure:
            failure.as_json = session.as_json
            raise

    return wrapper  # type: ignore[return-value]  # a decorated function is no F to mypy
