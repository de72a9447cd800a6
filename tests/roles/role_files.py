"""The roles as files: what their defaults, argument specs, handlers and tasks say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.parent for path in ROOT.glob("roles/*/tasks"))


def load(path: Path) -> Any:
    """Read a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def defaults_of(role: Path) -> dict[str, Any]:
    """Return the public defaults of a role, in their order."""
    merged: dict[str, Any] = {}
    for path in [*role.glob("defaults/main.yml"), *sorted(role.glob("defaults/main/*.yml"))]:
        merged |= load(path)
    return {name: value for name, value in merged.items() if not name.startswith("_")}


def options_of(role: Path) -> dict[str, Any]:
    """Return what the argument spec of a role says of each variable."""
    return dict(load(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"])


def handlers_of(role: Path) -> list[dict[str, Any]]:
    """Return the handlers of a role."""
    return [handler for path in role.glob("handlers/main.yml") for handler in load(path)]


@dataclass
class Rendered:
    """An appliance's tree, as the roles wrote it."""

    root: Path
    log: str

    @property
    def etc(self) -> Path:
        """Directory of the configuration."""
        return self.root / "etc"

    def launchers(self) -> list[Path]:
        """Return the launchers of all services."""
        return sorted((self.etc / "services").iterdir())
