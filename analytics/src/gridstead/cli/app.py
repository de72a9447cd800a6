"""The command group. Commands are imported when they are called, so that ``gridstead --help`` is quick."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from gridstead import __version__
from gridstead.cli.session import EXIT_CODES

COMMANDS = {
    "status": "Every service, the lag of each stage, events in and out.",
    "doctor": "What is wrong, in the order of the path, and the next command.",
    "replay": "Send recorded events or captured packets into the appliance.",
    "simulate": "Generate realistic events from a seed.",
    "report": "Transfer matrix and time series from the served statistics.",
    "submit": "Run a job of the current release, or a script, on YARN.",
    "batch": "Compute days of statistics from the archive and merge them; status.",
    "stream": "What the stream does: status.",
    "merge": "How far the served documents go; give up old months: status, retain.",
    "rebuild": "Make everything that is served anew from the archive.",
    "archive": "Show, verify, compact and trim the archive.",
    "io": "Measure how long Spark waits for storage, by place and file format.",
    "scaling": "Measure how the batch gets faster with executors, cores, memory and nodes.",
    "dlq": "List and replay what could not be decoded.",
    "pseudonyms": "Look names up, and rotate the key behind their pseudonyms.",
    "release": "List, publish and choose the versions of the jobs.",
    "smoke": "Prove that every part of the appliance works.",
}


class LazyGroup(click.Group):
    """A group whose commands live in the module of their name, as the object of their name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands, in the order in which one needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"gridstead.cli.{cmd_name}")
        return getattr(module, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXIT_CODES,
)
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="The appliance's gridstead.toml.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; may also be given after the command.")
@click.version_option(__version__, prog_name="gridstead")
def main(config_path: Path | None, as_json: bool) -> None:
    """Gridstead: monitoring of data transfers and data access on a computing grid.

    \b
    A first look:
      gridstead status                     is everything up, and how far behind
      gridstead replay capture.jsonl       send recorded traffic in
      gridstead report                     who moved how much from where to where
      gridstead doctor                     what is wrong, and what to type next
    """
