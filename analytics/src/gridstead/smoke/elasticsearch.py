"""Elasticsearch: index documents into an index of our own, aggregate them, delete them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gridstead.config import elasticsearch_client
from gridstead.smoke.probe import Probe, SmokeError

DOCUMENTS = 500
SITES = ("a", "b", "c", "d", "e")


def check(probe: Probe) -> str:
    """Run the check; returns what was seen, raises SmokeError."""
    from elasticsearch import ApiError, TransportError

    index = f"{probe.config.elasticsearch.index_prefix}-{probe.name}"
    client = elasticsearch_client(probe.config, request_timeout=20)
    probe.later(client.close)
    probe.later(lambda: client.indices.delete(index=index, ignore_unavailable=True))
    try:
        return _work(probe, client, index)
    except (ApiError, TransportError) as error:
        raise SmokeError(f"Elasticsearch: {' '.join(str(error).split())}") from error


def _work(probe: Probe, client: Any, index: str) -> str:
    properties = {"site": {"type": "keyword"}, "bytes": {"type": "long"}}
    client.indices.create(index=index, mappings={"properties": properties}, settings={"number_of_replicas": 0})
    rows: list[dict[str, Any]] = [
        {"site": SITES[number % len(SITES)], "bytes": number * 1000} for number in range(DOCUMENTS)
    ]
    operations: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        operations += [{"index": {"_id": str(number)}}, row]
    answer = client.bulk(index=index, operations=operations, refresh="true")
    probe.expect(answer["errors"], False, "errors of the bulk request")
    sums = {"bytes": {"sum": {"field": "bytes"}}}
    by_site = {"sites": {"terms": {"field": "site", "size": 10}, "aggs": sums}}
    found = client.search(index=index, size=0, aggs=by_site)["aggregations"]["sites"]["buckets"]
    wanted: Counter[str] = Counter()
    for row in rows:
        wanted[row["site"]] += row["bytes"]
    probe.expect({entry["key"]: int(entry["bytes"]["value"]) for entry in found}, dict(wanted), "bytes by site")
    deletions = [{"delete": {"_id": str(number)}} for number in range(DOCUMENTS)]
    client.bulk(index=index, operations=deletions, refresh="true")
    probe.expect(client.count(index=index)["count"], 0, "documents after the deletion")
    return f"{DOCUMENTS} documents indexed, {len(found)} sums exact, all deleted"
