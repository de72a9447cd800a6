#!/usr/bin/env python3
"""Make the charts: charts/ and what the roles know become build/charts/, which helm can lint, install and package.

    tools/charts.py build [DIRECTORY]   the charts, whole, each with the charts that it needs inside
    tools/charts.py docs [--check]      docs/reference/charts.md; --check tells whether it is stale

Sizes of heaps and ports have their home in the roles. Values have theirs in charts/*/values.schema.yaml, of which values.yaml,
values.schema.json and the reference page are made.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CHARTS = ROOT / "charts"
PAGE = ROOT / "docs" / "reference" / "charts.md"
LAYERS = ("zookeeper", "hdfs", "kafka", "artemis", "elasticsearch", "spark", "metrics", "pipeline")
OWN_PORTS = {"spark_driver": 7078, "spark_blocks": 7079}
"""Ports that only pods have: on hosts a driver takes any."""
SIZES = {"medium": "medium", "ha": "small"}
"""Profiles beside the defaults, which are those of size small: the size of the roles that gives their heaps."""


class ChartError(Exception):
    """The charts cannot be made; the text says what is wrong and where."""


def load(path: Path) -> Any:
    """Read a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


class Roles:
    """What the charts take from the roles."""

    def __init__(self) -> None:
        """Read the ports, and the sizes of heaps."""
        common = ROOT / "roles" / "common" / "defaults" / "main"
        self.ports: dict[str, int] = load(common / "ports.yml")["gridstead_base_ports"]
        self.sizes: dict[str, dict[str, str]] = load(common / "profiles.yml")["gridstead_profiles"]
        self._defaults: dict[str, Any] = {}
        for path in ROOT.glob("roles/*/defaults/main.yml"):
            self._defaults |= load(path) or {}

    def default(self, variable: str) -> Any:
        """The default of a role's variable; it must be a plain value."""
        value = self._defaults[variable]
        if isinstance(value, str) and "{{" in value:
            raise ChartError(f"{variable} depends on the inventory, so it is no default of a chart")
        return value


class Schemas:
    """The schemas of all charts, with their references replaced and the roles' values as defaults."""

    def __init__(self, roles: Roles) -> None:
        """Read what the charts share."""
        self._roles = roles
        shared = load(CHARTS / "common" / "values.schema.yaml")
        self._definitions: dict[str, Any] = shared["definitions"]
        self._global = shared["global"]

    def of(self, chart: str, size: str = "small") -> dict[str, Any]:
        """The JSON schema of a chart's values; its defaults are those of a size."""
        described = load(CHARTS / chart / "values.schema.yaml")
        properties = {name: self._whole(node, size) for name, node in described["properties"].items()}
        for layer in described.get("layers", []):
            properties[layer] = {"description": self.title(layer), **self._object(load(CHARTS / layer / "values.schema.yaml"), size)}
        properties["global"] = self._whole(self._global, size)
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": self.title(chart), "type": "object",
                "additionalProperties": False, "properties": {"common": {"type": "object"}, **properties}}  # fmt: skip

    def title(self, chart: str) -> str:
        """What a chart says of itself."""
        return str(load(CHARTS / chart / "Chart.yaml")["description"])

    def _object(self, described: dict[str, Any], size: str) -> dict[str, Any]:
        own = {name: self._whole(node, size) for name, node in described["properties"].items()}
        passed = {"common": {"type": "object"}, "global": {"type": "object"}}
        return {"type": "object", "additionalProperties": False, "properties": {**passed, **own}}

    def _whole(self, node: Any, size: str) -> Any:
        if isinstance(node, list):
            return [self._whole(item, size) for item in node]
        if not isinstance(node, dict):
            return node
        node = dict(node)
        if isinstance(node.get("$ref"), str):
            node = {**self._definitions[node.pop("$ref")], **node}
        if isinstance(node.get("x-profile"), str):
            node["default"] = self._roles.sizes[size][node.pop("x-profile")]
        if isinstance(node.get("x-role"), str):
            node["default"] = self._roles.default(node.pop("x-role"))
        return {key: self._whole(value, size) if key != "default" else value for key, value in node.items()}


def defaults(schema: dict[str, Any]) -> Any:
    """The default values that a schema gives; an object without one is that of its properties."""
    if "default" in schema:
        return schema["default"]
    if "properties" not in schema:
        return {}
    return {name: defaults(node) for name, node in schema["properties"].items() if name != "common" and (node.keys() - {"type"})}


def values_yaml(schema: dict[str, Any]) -> str:
    """The values.yaml of a schema: every value with its default, and what it means."""
    return "".join(_yaml_lines(schema, 0))


def _yaml_lines(schema: dict[str, Any], depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, node in schema["properties"].items():
        if not node.keys() - {"type"}:
            continue
        if node.get("description"):
            yield f"{indent}# {node['description']}\n"
        if "properties" in node and "default" not in node:
            yield f"{indent}{name}:\n"
            yield from _yaml_lines(node, depth + 1)
        else:
            yield f"{indent}{name}: {json.dumps(defaults(node))}\n"


def profile(schemas: Schemas, name: str) -> dict[str, Any]:
    """The values of a profile: what differs from the defaults by the size, and what charts/gridstead/profiles/NAME.yaml adds."""
    differing = _differing(defaults(schemas.of("gridstead")), defaults(schemas.of("gridstead", SIZES[name])))
    return _merged(differing, load(CHARTS / "gridstead" / "profiles" / f"{name}.yaml") or {})


def _differing(small: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in other.items():
        if isinstance(value, dict):
            below = _differing(small[name], value)
            if below:
                found[name] = below
        elif value != small[name]:
            found[name] = value
    return found


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    found = dict(one)
    for name, value in other.items():
        found[name] = _merged(found.get(name, {}), value) if isinstance(value, dict) else value
    return found


def build(target: Path) -> None:
    """Lay all charts into a directory; what is there of them is replaced."""
    roles = Roles()
    schemas = Schemas(roles)
    common = target / "common"
    _copy("common", common)
    ports = "".join(f"{name}: {port}\n" for name, port in sorted({**roles.ports, **OWN_PORTS}.items()))
    define = '{{/* The ports of the roles: written by tools/charts.py. */}}\n{{- define "common.ports" -}}\n'
    (common / "templates" / "_ports.tpl").write_text(define + ports + "{{- end -}}\n", encoding="utf-8")
    for layer in LAYERS:
        _chart(schemas, layer, target / layer, [common])
    umbrella = target / "gridstead"
    _chart(schemas, "gridstead", umbrella, [common, *(target / layer for layer in LAYERS)])
    for name in SIZES:
        text = f"# Profile {name}: helm install … --values this file\n" + yaml.safe_dump(profile(schemas, name), sort_keys=False)
        (umbrella / "profiles" / f"{name}.yaml").write_text(text, encoding="utf-8")


def _chart(schemas: Schemas, name: str, target: Path, needed: list[Path]) -> None:
    _copy(name, target)
    schema = schemas.of(name)
    (target / "values.schema.json").write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")
    (target / "values.yaml").write_text(values_yaml(schema), encoding="utf-8")
    for chart in needed:
        shutil.copytree(chart, target / "charts" / chart.name)


def _copy(name: str, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(CHARTS / name, target, ignore=shutil.ignore_patterns("values.schema.yaml"))
    (target / ".helmignore").write_text("/tests/\n", encoding="utf-8")


def page() -> str:
    """The reference page of all values."""
    schemas = Schemas(Roles())
    text = "# Values of the charts\n\n"
    text += "<!-- Written by tools/charts.py from charts/*/values.schema.yaml: change those, then run the tool again. -->\n"
    text += "\nAs keys of the chart `gridstead`. A layer installed alone has the same ones without its name in front, and `global`.\n"
    schema = schemas.of("gridstead")
    for name in ("global", *LAYERS, "test"):
        node = schema["properties"][name]
        text += f"\n## {name}\n\n{node.get('description', '')}\n\n| value | type | default | meaning |\n|---|---|---|---|\n"
        text += "".join(_rows(node, name))
    return text


def _rows(schema: dict[str, Any], path: str) -> Iterator[str]:
    for name, node in schema["properties"].items():
        if not node.keys() - {"type"}:
            continue
        if "properties" in node and "default" not in node:
            yield from _rows(node, f"{path}.{name}")
            continue
        kind = " or ".join(f"`{value}`" for value in node["enum"]) if "enum" in node else str(node["type"])
        meaning = str(node.get("description", "")).replace("|", r"\|")
        yield f"| `{path}.{name}` | {kind} | `{json.dumps(defaults(node))}` | {meaning} |\n"


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build")
    building.add_argument("directory", type=Path, nargs="?", default=ROOT / "build" / "charts")
    documenting = commands.add_parser("docs")
    documenting.add_argument("--check", action="store_true")
    options = parser.parse_args()
    try:
        if options.command == "build":
            build(options.directory)
        elif not options.check:
            PAGE.write_text(page(), encoding="utf-8")
        elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
            raise ChartError(f"{PAGE.relative_to(ROOT)} is stale. Next: tools/charts.py docs")
    except ChartError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
