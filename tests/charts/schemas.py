"""JSON schemas for kubeconform, made of what an API server itself says of its kinds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubernetes import client

from charts.release import connect

KINDS = "x-kubernetes-group-version-kind"
_FREE = {"io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": ["string", "number"]},
         "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"type": ["string", "integer"]}}  # fmt: skip


def of_cluster() -> dict[str, Any]:
    """The definitions of the cluster of KUBECONFIG."""
    connect()
    answer: Any = client.ApiClient().call_api(
        "/openapi/v2", "GET", response_type="object", auth_settings=["BearerToken"], _return_http_data_only=True
    )
    return dict(answer["definitions"])


def write(definitions: Mapping[str, Any], directory: Path) -> int:
    """Write a schema a kind, KIND-GROUP-VERSION.json, in which unknown fields are errors; returns how many."""
    strict = {name: _FREE.get(name) or _strict(definition) for name, definition in definitions.items()}
    (directory / "definitions.json").write_text(json.dumps({"definitions": strict}))
    count = 0
    for name, definition in definitions.items():
        kinds = definition.get(KINDS, [])
        if len(kinds) != 1:
            continue  # options of requests, which belong to every group
        group, version, kind = kinds[0]["group"].partition(".")[0], kinds[0]["version"], kinds[0]["kind"]
        file = "-".join(part for part in (kind, group, version) if part).lower()
        (directory / f"{file}.json").write_text(json.dumps({"$ref": f"definitions.json#/definitions/{name}", "required": ["kind"]}))
        count += 1
    return count


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("$ref"), str):
        return {"$ref": f"definitions.json{node['$ref']}"}
    found = {key: _strict(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and not node.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found
