"""The oracle: what the transfer statistics must be, computed by DuckDB in SQL, written apart from the Spark code.

It shares nothing with the product but the definitions in DOMAIN: 128-bit integers instead of care about overflow, a
join with a table of bins instead of an explode.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import duckdb

_COLUMNS = {
    "server_host": "VARCHAR",
    "server_domain": "VARCHAR",
    "client_host": "VARCHAR",
    "client_domain": "VARCHAR",
    "vo": "VARCHAR",
    "file_size": "BIGINT",
    "start_ms": "BIGINT",
    "end_ms": "BIGINT",
    "read_bytes": "BIGINT",
    "write_bytes": "BIGINT",
    "timestamp_ms": "BIGINT",
}

_STATISTICS = """
WITH event AS (
  SELECT row_number() OVER () AS id,
         left(coalesce(vo, 'unknown'), 255) AS vo,
         left(coalesce(client_domain, client_host, 'unknown'), 255) AS client,
         left(coalesce(server_domain, server_host, 'unknown'), 255) AS server,
         (client_domain IS NOT NULL AND server_domain IS NOT NULL AND client_domain <> server_domain) AS is_remote,
         (file_size IS NOT NULL AND file_size > 0 AND read_bytes + write_bytes = file_size) AS is_transfer,
         CASE WHEN write_bytes > 0 THEN 'w' WHEN read_bytes > 0 THEN 'r' ELSE 'u' END AS activity,
         start_ms::HUGEINT AS s, end_ms::HUGEINT AS e,
         (read_bytes::HUGEINT + write_bytes) AS total,
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
), shared AS (
  SELECT *,
         CASE WHEN e = s THEN total
              ELSE total * c1 // (e - s) - total * c0 // (e - s) END AS bytes
  FROM cumulated
), summed AS (
  SELECT vo, CASE activity WHEN 'w' THEN client ELSE server END AS src,
         CASE activity WHEN 'w' THEN server ELSE client END AS dst,
         is_remote, is_transfer, activity, ((bin + 1) * $bin)::BIGINT AS bin_end_ms,
         count(*) AS active,
         count(*) FILTER (bin = last_bin) AS finished,
         least(sum(bytes), 9223372036854775807)::BIGINT AS bytes,
         least(sum(c1 - c0), 9223372036854775807)::BIGINT AS active_time,
         count(*) FILTER (earliest AND over_cap) AS capped,
         max(timestamp_ms) AS update_time
  FROM shared GROUP BY ALL
), keyed AS (
  SELECT concat(replace(replace(vo, '%', '%25'), '|', '%7C'), '|',
                replace(replace(src, '%', '%25'), '|', '%7C'), '|',
                replace(replace(dst, '%', '%25'), '|', '%7C'), '|',
                is_remote::VARCHAR, '|', is_transfer::VARCHAR, '|', activity, '|', bin_end_ms) AS k, *
  FROM summed
)
SELECT CASE WHEN strlen(k) > 512 THEN concat('sha256-', sha256(k), '|', bin_end_ms) ELSE k END AS key,
       vo, src, dst, is_remote, is_transfer, activity, bin_end_ms, $bin::BIGINT AS bin_ms,
       active, finished, bytes, active_time, capped, update_time
FROM keyed ORDER BY key
"""


def distinct(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first of the events of each ``event_id``, in the order given."""
    first: dict[str, Mapping[str, Any]] = {}
    for event in events:
        first.setdefault(event["event_id"], event)
    return list(first.values())


def oracle_transfer_statistics(
    events: Iterable[Mapping[str, Any]], bin_ms: int = 600_000, max_bins: int = 1008
) -> list[dict[str, Any]]:
    """The transfer statistics of these (distinct) events, one dict a key, in the order of the keys.

    Events are dicts of the normalised event; ``timestamp_ms`` (time in the log) may be added and gives ``update_time``.
    """
    columns = ", ".join(f"{name}: '{kind}'" for name, kind in _COLUMNS.items())
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "events.json"
        with file.open("w", encoding="utf-8") as out:
            for event in events:
                out.write(json.dumps({name: event.get(name) for name in _COLUMNS}) + "\n")
        with duckdb.connect() as db:
            if file.stat().st_size == 0:
                return []
            db.execute(
                "CREATE TABLE events AS SELECT * FROM "
                f"read_json('{file}', format='newline_delimited', columns={{{columns}}})"
            )
            result = db.execute(_STATISTICS, {"bin": bin_ms, "cap": max_bins})
            names = [column[0] for column in result.description]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
