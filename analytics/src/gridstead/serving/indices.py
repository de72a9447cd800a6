"""Names, templates and aliases of the served indices.

One index a statistic, generation and month (of the bin's start): ``<prefix>-<statistic>-g<generation>-<yyyy.MM>``.
Readers use the alias ``<prefix>-<statistic>``: it shows the documents of the served generation that are not empty. A
rebuild fills the next generation beside it; :func:`serve` then moves all aliases in one step. New indices are made by
templates: one for those of any generation, and above it one for the served generation, with the readers' alias.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final

from elasticsearch import Elasticsearch

from gridstead.serving.patience import patient
from gridstead.statistic import STATISTICS

CONTROL_ID: Final = "serving"
DELETED_AT_ONCE: Final = 10
"""Indices of one request to delete: their names stand in its line, which may have 4,096 bytes."""
LONGEST_TERM: Final = 8000
"""Names longer than this (characters) are stored and shown, but not searched: a term has at most 32,766 bytes."""


@dataclass(frozen=True)
class Indices:
    """The names of one appliance's indices, and how new ones are made. ``bin_ms``: width of a bin."""

    prefix: str
    bin_ms: int
    shards: int = 1
    replicas: int = 0

    @property
    def control(self) -> str:
        """The index of the control record."""
        return f"{self.prefix}-control"

    def alias(self, statistic: str) -> str:
        """What readers search."""
        return f"{self.prefix}-{statistic}"

    def pattern(self, statistic: str, generation: int | str) -> str:
        """All months of one generation."""
        return f"{self.prefix}-{statistic}-g{generation}-*"

    def index(self, statistic: str, generation: int, bin_end_ms: int) -> str:
        """The index that holds a document, by the month in which its bin begins."""
        return f"{self.prefix}-{statistic}-g{generation}-{month_of(bin_end_ms - self.bin_ms)}"

    def generation_of(self, index: str) -> int | None:
        """The generation of an index of ours, None for another."""
        parts = self._parts(index)
        return int(parts[0]) if parts else None

    def month(self, index: str) -> str:
        """The month (``yyyy.MM``) of an index of ours, "" for another."""
        parts = self._parts(index)
        return parts[1] if parts else ""

    def _parts(self, index: str) -> tuple[str, str] | None:
        names = "|".join(map(re.escape, STATISTICS))
        match = re.fullmatch(rf"{re.escape(self.prefix)}-(?:{names})-g(\d+)-(\d+\.\d\d)", index)
        return (match[1], match[2]) if match else None

    def template(self, statistic: str, generation: int | None) -> dict[str, Any]:
        """The index template of one statistic: of the served generation, with the readers' alias, or (None) of others.

        Values are columns for sorting and aggregation; only what readers filter by has a search tree, which would
        have to be written and merged for each of them (docs/decisions/0009-speed.md).
        """
        keyword = {"type": "keyword", "ignore_above": LONGEST_TERM}
        date = {"type": "date", "format": "epoch_millis"}
        amount = {"type": "long", "index": False}
        flags = {"is_remote": {"type": "boolean"}, "is_transfer": {"type": "boolean"}}
        properties: dict[str, Any] = {
            **{name: flags.get(name, keyword) for name in STATISTICS[statistic].dimensions},
            **{name: amount for name in STATISTICS[statistic].values},
            STATISTICS[statistic].values[0]: {"type": "long"},
            "bin_end_ms": date,
            "bin_ms": amount,
            "update_time": {**date, "index": False},
            "seq": {"type": "long", "index": False, "doc_values": False},
            "since": {"type": "object", "enabled": False},
        }
        if statistic == "access":
            properties["average_file_size"] = {"type": "double", "index": False}
        settings = {
            "number_of_shards": self.shards,
            "number_of_replicas": self.replicas,
            "refresh_interval": "1s",
        }
        return {
            "index_patterns": [self.pattern(statistic, "*" if generation is None else generation)],
            "priority": 100 if generation is None else 200,
            "template": {
                "settings": settings,
                "mappings": {"dynamic": False, "properties": properties},
                **({} if generation is None else {"aliases": {self.alias(statistic): self._filter(statistic)}}),
            },
        }

    def _filter(self, statistic: str) -> dict[str, Any]:
        return {"filter": {"range": {STATISTICS[statistic].values[0]: {"gt": 0}}}}

    def alias_actions(self, existing: Iterable[str], generation: int) -> list[dict[str, Any]]:
        """The steps after which every alias shows exactly the existing indices of one generation."""
        actions: list[dict[str, Any]] = []
        for name in STATISTICS:
            alias = self.alias(name)
            for index in existing:
                if index.startswith(f"{self.prefix}-{name}-g") and self.generation_of(index) is not None:
                    if self.generation_of(index) == generation:
                        actions.append({"add": {"index": index, "alias": alias, **self._filter(name)}})
                    else:
                        actions.append({"remove": {"index": index, "alias": alias, "must_exist": False}})
        return actions


@lru_cache(maxsize=4096)
def month_of(ms: int) -> str:
    """UTC year and month of a time, ``yyyy.MM``."""
    moment = time.gmtime(ms // 1000)
    return f"{moment.tm_year:04d}.{moment.tm_mon:02d}"


def prepare_control(client: Elasticsearch, indices: Indices, deadline_s: float) -> None:
    """Put the template of the control record's index. Waits for Elasticsearch; raises ServingError."""
    template = {
        "settings": {"number_of_shards": 1, "number_of_replicas": indices.replicas},
        "mappings": {"dynamic": False},
    }
    patient(
        lambda: client.indices.put_index_template(
            name=indices.control, index_patterns=[indices.control], priority=200, template=template
        ),
        "put the index template of the control record",
        deadline_s,
    )


def prepare(client: Elasticsearch, indices: Indices, generation: int | None, deadline_s: float) -> None:
    """Put the templates of the served generation, or (None) those of any other, which have to be there before a rebuild
    begins: from then on the stream writes into its indices too.

    Waits for Elasticsearch; raises ServingError after the deadline.
    """
    for name in STATISTICS:
        body = indices.template(name, generation)
        template = f"{indices.alias(name)}-{'any' if generation is None else f'g{generation}'}"
        patient(
            lambda template=template, body=body: client.indices.put_index_template(name=template, **body),  # type: ignore[misc]
            f"put the index template {template}",
            deadline_s,
        )


def serve(client: Elasticsearch, indices: Indices, generation: int, deadline_s: float) -> None:
    """Show readers a generation: all aliases in one step, then the templates, so that new months are shown too.

    Safe to repeat; the stream does at each start what a killed rebuild left undone.
    """
    prepare(client, indices, None, deadline_s)
    prepare(client, indices, generation, deadline_s)
    actions = indices.alias_actions(existing(client, indices, deadline_s), generation)
    if actions:
        patient(lambda: client.indices.update_aliases(actions=actions), "move the aliases", deadline_s)


def drop(client: Elasticsearch, indices: Indices, before: int | None, deadline_s: float) -> list[str]:
    """Delete indices and templates of the generations before this one, or (None) all; returns the names of the indices.

    Generations after it are left: they may be a rebuild's that has begun meanwhile.
    """

    def old(generation: int | None) -> bool:
        return generation is not None and (before is None or generation < before)

    gone = _delete(client, indices, lambda index: old(indices.generation_of(index)), deadline_s)
    for name in STATISTICS:
        pattern = f"{indices.alias(name)}-*"
        answer = patient(
            lambda p=pattern: client.options(ignore_status=404).indices.get_index_template(name=p),  # type: ignore[misc]
            "list templates",
            deadline_s,
        )
        for template in answer.get("index_templates", []):  # 404: there is none
            number = template["name"].rpartition("-g")[2]
            if before is None or (number.isdigit() and old(int(number))):
                patient(
                    lambda t=template: client.options(ignore_status=404).indices.delete_index_template(name=t["name"]),  # type: ignore[misc]
                    "delete an old template",
                    deadline_s,
                )
    return gone


def drop_months(client: Elasticsearch, indices: Indices, before: str, deadline_s: float) -> list[str]:
    """Delete the indices, of every generation, of the months before this one (``yyyy.MM``); returns their names."""
    return _delete(client, indices, lambda index: indices.month(index) < before, deadline_s)


def _delete(client: Elasticsearch, indices: Indices, which: Callable[[str], bool], deadline_s: float) -> list[str]:
    gone = [index for index in existing(client, indices, deadline_s) if which(index)]
    for at in range(0, len(gone), DELETED_AT_ONCE):
        part = gone[at : at + DELETED_AT_ONCE]
        patient(partial(client.indices.delete, index=part, ignore_unavailable=True), "delete old indices", deadline_s)
    return gone


def existing(client: Elasticsearch, indices: Indices, deadline_s: float) -> list[str]:
    """The names of all indices of ours that hold documents, of every generation."""
    found = patient(
        lambda: client.indices.get_settings(
            index=[f"{indices.alias(name)}-g*" for name in STATISTICS],
            name="index.number_of_shards",
            ignore_unavailable=True,
            allow_no_indices=True,
        ),
        "list the indices",
        deadline_s,
    )
    return sorted(index for index in found.body if indices.generation_of(index) is not None)
