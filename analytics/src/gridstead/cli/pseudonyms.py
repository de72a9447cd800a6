"""``gridstead pseudonyms``: the keys behind the pseudonyms of users and their machines."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from gridstead.cli.session import EXIT_CONFIG, Failure, Session, command
from gridstead.config import pseudonym_keys
from gridstead.pseudonyms import KeyringError, add_key, pseudonyms_of, read_keys


@click.group()
def pseudonyms() -> None:
    """Look names up, and put a new key in force. Needs the right to read the file of keys."""


@pseudonyms.command(
    "of",
    epilog="""\b
Examples:
  gridstead pseudonyms of jdoe      how jdoe is called in reports, under every key
  gridstead pseudonyms of "/DC=example/CN=Jane Doe" --json""",
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@command
def of(session: Session, names: tuple[str, ...]) -> None:
    """Show the pseudonyms of names (of users, certificates, hosts, as producers write them) under every key."""
    keys = _keys(pseudonym_keys(session.config))
    found = {name: pseudonyms_of(name, keys) for name in names}

    def table() -> Table:
        shown = Table()
        for title in ("name", "key", "pseudonym"):
            shown.add_column(title, overflow="fold")
        for name, by_key in found.items():
            for generation, alias in by_key.items():
                shown.add_row(name, str(generation), alias)
        return shown

    session.emit(found, table)


@pseudonyms.command(
    "rotate",
    epilog="""\b
Examples:
  gridstead pseudonyms rotate       from now on, nobody can be followed from before to after""",
)
@command
def rotate(session: Session) -> None:
    """Put a new key in force; older ones are kept. The collector takes it within seconds, without a restart."""
    path = pseudonym_keys(session.config)
    try:
        generation = add_key(path)
    except KeyringError as error:
        raise _failed(error) from error
    done = {"generation": generation, "file": str(path)}
    others = "run `playbooks/pipeline.yml`, which gives it to the other gateways"
    shared = others if session.config.failover.zookeeper else "to any further collector"
    sentence = f"Key {generation} is in force, in {path}: copy this file to a safe place, and {shared}."
    session.emit(done, lambda: sentence)


def _keys(path: Path) -> dict[int, bytes]:
    try:
        return read_keys(path)
    except FileNotFoundError as error:
        what = f"{path} does not exist: the collector makes it when it first starts"
        raise Failure(what, "gridstead status", EXIT_CONFIG) from error
    except KeyringError as error:
        raise _failed(error) from error


def _failed(error: KeyringError) -> Failure:
    return Failure(str(error), "gridstead pseudonyms --help", EXIT_CONFIG)
