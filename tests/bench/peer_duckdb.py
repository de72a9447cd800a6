"""The peer of the batch: the transfer statistics of distinct events by DuckDB, as fast as it can be said in SQL.

``python tests/bench/peer_duckdb.py GLOB`` prints one JSON object. It counts the same as gridstead.identity.batch and
gridstead.statistics: events of which an access has one row go straight through, the others are sorted out first.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import duckdb

BIN = 600_000
CAP = 1008

_DISTINCT = """
CREATE TEMP TABLE suspicious AS SELECT hash(left(event_id, 16)) AS a FROM log GROUP BY 1 HAVING count(*) > 1;
CREATE TEMP TABLE repeated AS
  SELECT event_id, producer_id, end_ms, read_bytes + write_bytes AS moved, ("partition", "offset") AS position
  FROM log WHERE hash(left(event_id, 16)) IN (SELECT a FROM suspicious);
CREATE TEMP TABLE firsts AS
  SELECT event_id, min(position) AS position, arg_min((end_ms, moved), position) AS age FROM repeated GROUP BY 1;
CREATE TEMP TABLE latest AS
  SELECT left(r.event_id, 16) AS access, r.producer_id, max((f.age, f.event_id)) AS top
  FROM repeated r JOIN firsts f USING (event_id) WHERE r.producer_id IS NOT NULL GROUP BY 1, 2;
CREATE TEMP TABLE superseded AS
  SELECT DISTINCT r.event_id FROM repeated r JOIN firsts f USING (event_id)
  JOIN latest l ON l.access = left(r.event_id, 16) AND l.producer_id = r.producer_id
  WHERE (f.age, f.event_id) < l.top;
CREATE TEMP TABLE kept AS SELECT position FROM firsts WHERE event_id NOT IN (SELECT event_id FROM superseded);
"""

_TRANSFERS = """
WITH described AS (
  SELECT left(coalesce(vo, 'unknown'), 255) AS vo,
         left(coalesce(client_domain, client_host, 'unknown'), 255) AS client,
         left(coalesce(server_domain, server_host, 'unknown'), 255) AS server,
         coalesce(client_domain <> server_domain, false) AS is_remote,
         coalesce(read_bytes + write_bytes = file_size AND file_size > 0, false) AS is_transfer,
         CASE WHEN write_bytes > 0 THEN 'w' WHEN read_bytes > 0 THEN 'r' ELSE 'u' END AS activity,
         read_bytes + write_bytes AS moved, start_ms, end_ms, end_ms - start_ms AS length,
         start_ms // $bin AS first, greatest(start_ms // $bin, (end_ms - 1) // $bin) AS last
  FROM log
  WHERE hash(left(event_id, 16)) NOT IN (SELECT a FROM suspicious)
     OR ("partition", "offset") IN (SELECT position FROM kept)
), binned AS (
  SELECT *, unnest(range(greatest(first, last - $cap + 1), last + 1)) AS bin FROM described
), edges AS (
  SELECT *, least(end_ms, (bin + 1) * $bin) - start_ms AS upto,
         CASE WHEN bin = greatest(first, last - $cap + 1) THEN 0 ELSE bin * $bin - start_ms END AS before
  FROM binned
)
SELECT vo, CASE activity WHEN 'w' THEN client ELSE server END AS src,
       CASE activity WHEN 'w' THEN server ELSE client END AS dst,
       is_remote, is_transfer, activity, (bin + 1) * $bin AS bin_end_ms,
       count(*) AS active, count(*) FILTER (bin = last) AS finished,
       sum(CASE WHEN upto = length THEN moved ELSE moved // length * upto + moved % length * upto // length END
           - CASE WHEN before = 0 THEN 0 ELSE moved // length * before + moved % length * before // length END
          )::BIGINT AS bytes,
       sum(upto - before)::BIGINT AS active_time, count(*) FILTER (bin > first AND before = 0) AS capped
FROM edges GROUP BY ALL
"""


def main() -> None:
    """Compute once and print what came out and what it cost."""
    began = time.monotonic()
    connection = duckdb.connect()
    connection.execute("SET threads = 2; SET memory_limit = '6GB'; SET preserve_insertion_order = false")
    connection.execute(f"CREATE TEMP VIEW log AS SELECT * FROM read_parquet('{sys.argv[1]}')")
    connection.execute(_DISTINCT)
    found = connection.execute(
        f"SELECT count(*), sum(active), sum(bytes) FROM ({_TRANSFERS})", {"bin": BIN, "cap": CAP}
    ).fetchone()
    assert found is not None
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({
        "documents": int(found[0]), "active": int(found[1]), "bytes": int(found[2]),
        "seconds": time.monotonic() - began, "cpu_s": used.ru_utime + used.ru_stime, "rss_bytes": used.ru_maxrss * 1024,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
