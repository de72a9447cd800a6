#!/usr/bin/env python3
"""Write the README of every role from its argument_specs, defaults and handlers; --check tells which are stale."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[1] / "roles"
DO_NOT_EDIT = "<!-- Written by tools/role_docs.py from meta/argument_specs.yml: change that, then run the tool again. -->"


class DocsError(Exception):
    """A role cannot be documented; the text says what is missing and where."""


def load(path: Path) -> Any:
    """Read a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def default_files(role: Path) -> list[Path]:
    """List the files of a role's defaults: main.yml, or those of main/."""
    return [*role.glob("defaults/main.yml"), *sorted(role.glob("defaults/main/*.yml"))]


def home_of(role: Path, variable: str) -> str:
    """Name the file below the role in which a variable has its default."""
    for path in default_files(role):
        if variable in load(path):
            return str(path.relative_to(role))
    spec = role / "meta" / "argument_specs.yml"
    raise DocsError(f"{spec} describes {variable}, which has no default. Next: delete it there, or give it one in defaults/")


def plain(text: str | list[str]) -> str:
    """Turn Ansible's markup C(x), O(x) and I(x) into Markdown's code; a list is paragraphs."""
    paragraphs = [text] if isinstance(text, str) else text
    return "\n\n".join(re.sub(r"\b[COIV]\(([^)]+)\)", r"`\1`", paragraph.strip()) for paragraph in paragraphs)


def cell(text: str) -> str:
    """Make a text fit into one cell of a table."""
    return text.replace("|", r"\|").replace("\n", " ")


def default_cell(role: Path, variable: str, option: dict[str, Any]) -> str:
    """Show the default, or where it is when the spec leaves it out for its length."""
    if "default" not in option:
        home = home_of(role, variable)
        return f"see [{home}]({home})"
    default = option["default"]
    if option.get("no_log"):
        return cell(default)
    return f"`{cell(default if isinstance(default, str) and default else json.dumps(default, ensure_ascii=False))}`"


def type_cell(option: dict[str, Any]) -> str:
    """Show the type with that of its elements, and the choices."""
    shown = f"{option['type']} of {option['elements']}" if "elements" in option else option["type"]
    choices = ", ".join(f"`{choice}`" for choice in option.get("choices", []))
    return f"{shown}: {choices}" if choices else shown


def readme(role: Path) -> str:
    """Compose the README of a role."""
    path = role / "meta" / "argument_specs.yml"
    if not path.exists():
        raise DocsError(f"{path} is missing. Next: describe every variable of {role.name}/defaults there")
    spec = load(path)["argument_specs"]["main"]
    handlers = [handler["name"] for file in role.glob("handlers/main.yml") for handler in load(file)]
    lines = [f"# {role.name}", "", DO_NOT_EDIT, "", f"{spec['short_description']}.", ""]
    lines += ["## What it does", "", plain(spec["description"]), ""]
    lines += ["## Variables", "", "| name | type | default | description |", "|---|---|---|---|"]
    for name, option in spec["options"].items():
        row = [f"`{name}`", type_cell(option), default_cell(role, name, option), cell(plain(option["description"]))]
        lines.append(f"| {' | '.join(row)} |")
    if handlers:
        lines += ["", "## Handlers", "", *(f"- `{name}`" for name in handlers)]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Command line of the tool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail and name the READMEs that are stale")
    parser.add_argument("--roles", type=Path, default=ROLES, help="directory of the roles")
    options = parser.parse_args(arguments)
    roles = sorted(path.parent for path in options.roles.glob("*/tasks"))
    try:
        wanted = {role / "README.md": readme(role) for role in roles}
    except DocsError as error:
        print(f"role_docs: ERROR: {error}", file=sys.stderr)
        return 1
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if options.check:
        for path in stale:
            print(f"role_docs: {path} is stale. Next: python3 tools/role_docs.py", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    print(f"role_docs: {len(stale)} of {len(wanted)} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
