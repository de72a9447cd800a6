"""The oracle: what the statistics must be, computed by DuckDB in SQL, written apart from the Spark code.

It shares nothing with the product but the definitions in DOMAIN: 128-bit integers instead of care about overflow, a
join with a table of bins instead of an explode, a query for each statistic instead of grouping sets.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import duckdb

_COLUMNS = {
    "server_host": "VARCHAR",
    "server_domain": "VARCHAR",
    "server_username": "VARCHAR",
    "client_host": "VARCHAR",
    "client_domain": "VARCHAR",
    "user": "VARCHAR",
    "vo": "VARCHAR",
    "file_lfn": "VARCHAR",
    "file_size": "BIGINT",
    "start_ms": "BIGINT",
    "end_ms": "BIGINT",
    "read_bytes": "BIGINT",
    "read_single_bytes": "BIGINT",
    "read_vector_bytes": "BIGINT",
    "write_bytes": "BIGINT",
    "timestamp_ms": "BIGINT",
}

_SHARED = """
CREATE TABLE shared AS
WITH event AS (
  SELECT left(coalesce(vo, 'unknown'), 255) AS vo,
         left(coalesce(client_domain, client_host, 'unknown'), 255) AS client,
         left(coalesce(server_domain, server_host, 'unknown'), 255) AS server,
         left(coalesce(client_domain, server_username, 'unknown'), 255) AS user_domain,
         left(coalesce("user", 'unknown'), 255) AS "user",
         left(coalesce(file_lfn, 'unknown'), 4096) AS file,
         (client_domain IS NOT NULL AND server_domain IS NOT NULL AND client_domain <> server_domain) AS is_remote,
         (file_size IS NOT NULL AND file_size > 0 AND read_bytes + write_bytes = file_size) AS is_transfer,
         CASE WHEN write_bytes > 0 THEN 'w' WHEN read_bytes > 0 THEN 'r' ELSE 'u' END AS activity,
         read_bytes > 0 AS has_read, write_bytes > 0 AS has_written, CASE WHEN file_size >= 0 THEN file_size END AS size,
         start_ms::HUGEINT AS s, end_ms::HUGEINT AS e,
         read_bytes::HUGEINT AS r, write_bytes::HUGEINT AS w,
         greatest(coalesce(read_single_bytes, 0), 0)::HUGEINT AS single,
         greatest(coalesce(read_vector_bytes, 0), 0)::HUGEINT AS vector,
         timestamp_ms
  FROM events
), numbered AS (
  SELECT *, s // $bin AS first_bin, CASE WHEN e = s THEN s // $bin ELSE (e - 1) // $bin END AS last_bin FROM event
), spread AS (
  SELECT n.*, last_bin - b.i AS bin, last_bin - first_bin + 1 > $cap AS over_cap,
         (b.i = $cap - 1 OR last_bin - b.i = first_bin) AS earliest
  FROM numbered n JOIN (SELECT unnest(range(0, $cap)) AS i) b ON b.i <= last_bin - first_bin
), cumulated AS (
  SELECT *,
         least(e, (bin + 1) * $bin) - s AS c1,
         CASE WHEN earliest THEN 0 ELSE bin * $bin - s END AS c0
  FROM spread
)
SELECT * EXCLUDE (r, w, single, vector), ((bin + 1) * $bin)::BIGINT AS bin_end_ms, bin = last_bin AS ends,
       earliest AND over_cap AS cut, c1 - c0 AS time,
       CASE WHEN e = s THEN r + w ELSE (r + w) * c1 // (e - s) - (r + w) * c0 // (e - s) END AS bytes,
       CASE WHEN e = s THEN r ELSE r * c1 // (e - s) - r * c0 // (e - s) END AS read,
       CASE WHEN e = s THEN w ELSE w * c1 // (e - s) - w * c0 // (e - s) END AS written,
       CASE WHEN e = s THEN single ELSE single * c1 // (e - s) - single * c0 // (e - s) END AS single,
       CASE WHEN e = s THEN vector ELSE vector * c1 // (e - s) - vector * c0 // (e - s) END AS vector
FROM cumulated;
"""

_MACROS = r"""
CREATE MACRO safe(name) AS replace(replace(name, '%', '%25'), '|', '%7C');
CREATE MACRO short(k, bin_end_ms) AS
  CASE WHEN strlen(k) > 512 THEN concat('sha256-', sha256(k), '|', bin_end_ms) ELSE k END;
CREATE MACRO total(x) AS least(coalesce(sum(x), 0), 9223372036854775807)::BIGINT;
"""

_QUERIES = {
    "transfers": """
SELECT short(concat(safe(vo), '|', safe(CASE activity WHEN 'w' THEN client ELSE server END), '|',
                    safe(CASE activity WHEN 'w' THEN server ELSE client END), '|',
                    is_remote, '|', is_transfer, '|', activity, '|', bin_end_ms), bin_end_ms) AS key,
       count(*), count(*) FILTER (ends), total(bytes), total(time), count(*) FILTER (cut)
FROM shared GROUP BY vo, client, server, is_remote, is_transfer, activity, bin_end_ms
""",
    "access": """
SELECT short(concat(safe(vo), '|', safe(server), '|', safe(file), '|', safe(user_domain), '|',
                    is_remote, '|', is_transfer, '|', bin_end_ms), bin_end_ms) AS key,
       count(*), total(size), count(size),
       count(*) FILTER (has_read), total(read), total(CASE WHEN has_read THEN time END),
       count(*) FILTER (has_written), total(written), total(CASE WHEN has_written THEN time END), count(*) FILTER (cut)
FROM shared GROUP BY vo, server, file, user_domain, is_remote, is_transfer, bin_end_ms
""",
    "users": """
SELECT short(concat(safe(vo), '|', safe("user"), '|', is_remote, '|', is_transfer, '|', bin_end_ms), bin_end_ms) AS key,
       count(*), total(single), total(vector), total(size), count(*) FILTER (cut)
FROM shared GROUP BY vo, "user", is_remote, is_transfer, bin_end_ms
""",
    "presence": """
SELECT short(concat(safe("user"), '|', bin_end_ms), bin_end_ms) AS key, count(*)
FROM shared WHERE "user" <> 'unknown' GROUP BY "user", bin_end_ms
""",
}


def distinct(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The events that count, of events in the order of the log.

    Of equal ``event_id`` only the first counts. The first 16 characters of an ``event_id`` name the access; a version of
    an access is superseded if a ``producer_id`` that carried it also carried a later one of the same access: later by
    (end, bytes, event_id).
    """
    first: dict[str, Mapping[str, Any]] = {}
    carriers: dict[str, set[Any]] = defaultdict(set)
    for event in events:
        first.setdefault(event["event_id"], event)
        if event.get("producer_id") is not None:
            carriers[event["event_id"]].add(event["producer_id"])
    versions: dict[str, list[str]] = defaultdict(list)
    for event_id in first:
        versions[event_id[:16]].append(event_id)

    def age(event_id: str) -> tuple[int, int, str]:
        event = first[event_id]
        return event["end_ms"], event["read_bytes"] + event["write_bytes"], event_id

    def superseded(event_id: str) -> bool:
        return any(
            carriers[event_id] & carriers[other] and age(other) > age(event_id)
            for other in versions[event_id[:16]]
            if other != event_id
        )

    return [event for event_id, event in first.items() if not superseded(event_id)]


def oracle_statistics(
    events: Iterable[Mapping[str, Any]], bin_ms: int = 600_000, max_bins: int = 1008
) -> dict[str, dict[str, tuple[int, ...]]]:
    """All statistics of these (distinct) events, dicts of the normalised event: name -> key -> values."""
    with duckdb.connect() as db:
        _share_out(db, events, bin_ms, max_bins)
        return {name: {row[0]: row[1:] for row in db.execute(query).fetchall()} for name, query in _QUERIES.items()}


def _share_out(db: duckdb.DuckDBPyConnection, events: Iterable[Mapping[str, Any]], bin_ms: int, max_bins: int) -> None:
    columns = ", ".join(f"\"{name}\": '{kind}'" for name, kind in _COLUMNS.items())
    db.execute(_MACROS)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "events.json"
        with file.open("w", encoding="utf-8") as out:
            for event in events:
                out.write(json.dumps({name: event.get(name) for name in _COLUMNS}) + "\n")
        source = f"read_json('{file}', format='newline_delimited', columns={{{columns}}})"
        db.execute(f"CREATE TABLE events AS SELECT * FROM {source}")
        db.execute(_SHARED, {"bin": bin_ms, "cap": max_bins})
