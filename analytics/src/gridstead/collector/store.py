"""The collector's disk: outgoing queue, open files and counters in one SQLite database, so that one commit covers all
three.

Write-ahead log with ``synchronous=NORMAL``: what was committed survives a kill -9 of any process. A power loss may lose
the commits since the last checkpoint of the log (not corrupt the file); the packets received in that time are lost with
it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gridstead.events import Event, encode_event
from gridstead.sources.xrootd import FileState, ServerKey

EVENT, DEAD_LETTER = 0, 1
"""Kinds of rows of the queue."""

COUNTERS = (
    "packets", "packets_other", "packets_bad", "records", "opens", "opens_duplicate", "closes", "closes_duplicate",
    "open_missing", "messages", "events", "dead_letters", "dropped_full", "sent", "dead_letters_sent", "queue_rows",
    "queue_bytes", "file_rows", "files_evicted", "last_event_ms",
)  # fmt: skip

ROW_OVERHEAD_BYTES = 96
"""What a row of the queue costs beside its body: id, event id, b-tree cell; used to bound the file, not to measure
it.
"""
RAW_MAX_BYTES = 16 << 20
MAX_FILE_ROWS = 4_000_000
"""Open-file rows (some 250 bytes each) above which closed ones are forgotten after a minute; at twice this, opens
too.
"""
CROWDED_HORIZON_MS = 60_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS queue (
    id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, event_id TEXT NOT NULL, body BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS servers (
    no INTEGER PRIMARY KEY AUTOINCREMENT, host TEXT NOT NULL, start_s INTEGER NOT NULL, server_id INTEGER NOT NULL,
    seen_ms INTEGER NOT NULL, UNIQUE (host, start_s, server_id)
);
CREATE TABLE IF NOT EXISTS files (
    key INTEGER PRIMARY KEY, open_ms INTEGER, file_size INTEGER, lfn TEXT, closed INTEGER NOT NULL,
    seen_ms INTEGER NOT NULL
);
"""
# files.key is (servers.no << 32) | file id: one b-tree, nearly sequential inserts, no second index.


class StoreError(Exception):
    """The database cannot be used; the message says file, reason and remedy."""


class Row(NamedTuple):
    """One row of the queue."""

    id: int
    kind: int
    event_id: str
    body: bytes


class FairLock:
    """A mutex that two threads get in turns; threading.Lock lets a busy thread starve the others."""

    def __init__(self) -> None:
        """Make it, free."""
        self._turn = threading.Lock()
        self._mutex = threading.Lock()

    def __enter__(self) -> None:
        """Wait for the turn, then for the mutex."""
        with self._turn:
            self._mutex.acquire()

    def __exit__(self, *_: object) -> None:
        """Free the mutex."""
        self._mutex.release()


class Store:
    """The database. Thread-safe: writes are transactions under one fair lock, the queue is read over its own
    connection.
    """

    def __init__(
        self,
        path: Path,
        *,
        queue_max_bytes: int,
        join_horizon_s: int,
        protect: Callable[[Event], Event] | None = None,
    ) -> None:
        """Open or make the database at ``path``; ``protect`` takes names out of each event that is queued. Raises
        StoreError.
        """
        self.path = path
        self.queue_max_bytes = queue_max_bytes
        self.join_horizon_ms = join_horizon_s * 1000
        self.protect = protect
        self.arrived = threading.Event()
        self._lock = FairLock()
        self._servers: dict[ServerKey, tuple[int, int]] = {}
        self._sweep_at = -1
        try:
            self._write = self._connect()
            self._write.execute("PRAGMA auto_vacuum=INCREMENTAL")
            self._write.execute("PRAGMA journal_mode=WAL")
            self._write.executescript(_SCHEMA)
            self._read = self._connect()
            self._sweeper = self._connect()
            stored = self._get("counters")
        except sqlite3.Error as error:
            raise StoreError(
                f"{path} cannot be used ({error}): free disk space or give the file to this user; if it is damaged, "
                "move it away (the events in it that were not yet sent go with it) and start again"
            ) from error
        self.counters: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        self.counters.update(json.loads(stored) if stored else {})

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=10, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA cache_size=-16000")
        db.execute("PRAGMA wal_autocheckpoint=4000")
        db.execute("PRAGMA journal_size_limit=67108864")
        return db

    def _get(self, key: str) -> bytes | None:
        row = self._write.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        value: bytes | str = row[0]
        return value.encode("utf-8") if isinstance(value, str) else value

    @property
    def full(self) -> bool:
        """Whether the queue has reached its bound."""
        return self.counters["queue_bytes"] >= self.queue_max_bytes

    @property
    def queued(self) -> int:
        """Rows that were ever queued, by the last commit."""
        return self.counters["events"] + self.counters["dead_letters"]

    @property
    def sent(self) -> int:
        """Rows that were ever sent; the queue gives them away in the order in which it got them."""
        return self.counters["sent"] + self.counters["dead_letters_sent"]

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """One atomic change; counters become visible with the commit. Any exception rolls back and is passed on."""
        with self._lock:
            self._write.execute("BEGIN IMMEDIATE")
            try:
                change = Transaction(self, self._write)
                yield change
                counters = change.finish()
                self._write.execute("COMMIT")
            except BaseException:
                if self._write.in_transaction:
                    self._write.execute("ROLLBACK")
                self._servers.clear()
                raise
            self.counters = counters
        if change.queued:
            self.arrived.set()

    def last_batch(self) -> list[bytes]:
        """Digests of the datagrams of the last committed batch, 16 bytes each."""
        with self._lock:
            blob = self._get("last_batch") or b""
        return [blob[at : at + 16] for at in range(0, len(blob), 16)]

    def read_batch(self, max_rows: int, max_bytes: int) -> list[Row]:
        """The oldest rows of the queue: up to these limits, but one at least. To be called by one thread only."""
        rows: list[Row] = []
        size = 0
        cursor = self._read.execute("SELECT id, kind, event_id, body FROM queue ORDER BY id LIMIT ?", (max_rows,))
        for values in cursor:
            row = Row._make(values)
            size += len(row.body)
            if rows and size > max_bytes:
                break
            rows.append(row)
        cursor.close()
        return rows

    def delete_batch(self, rows: Sequence[Row]) -> None:
        """Delete rows as :meth:`read_batch` gave them (they are consecutive), and count them as sent."""
        with self.transaction() as change:
            change.delete(rows)

    def sweep(self, now_ms: int, limit: int = 20_000) -> int:
        """Look at the next ``limit`` files and forget those last seen before the join horizon; returns how many
        went.
        """
        crowd = self.counters["file_rows"]
        keep_open = now_ms - self.join_horizon_ms
        keep_closed = max(keep_open, now_ms - CROWDED_HORIZON_MS) if crowd > MAX_FILE_ROWS else keep_open
        if crowd > 2 * MAX_FILE_ROWS:
            keep_open = keep_closed
        rows = self._sweeper.execute(
            "SELECT key, closed, seen_ms FROM files WHERE key > ? ORDER BY key LIMIT ?", (self._sweep_at, limit)
        ).fetchall()
        self._sweep_at = rows[-1][0] if len(rows) == limit else -1
        old = [(key, seen) for key, closed, seen in rows if seen < (keep_closed if closed else keep_open)]
        stale_servers = now_ms - self.join_horizon_ms - 3_600_000
        with self.transaction() as change:
            change.forget_files(old)
            if self._sweep_at == -1:
                self._servers.clear()
                self._write.execute("DELETE FROM servers WHERE seen_ms < ?", (stale_servers,))
        if self.counters["queue_rows"] == 0:
            with self._lock:  # give disk space back after a long absence of the broker
                self._write.execute("PRAGMA incremental_vacuum(2000)").fetchall()
        return len(old)

    def close(self) -> None:
        """Close the database; the log is folded into the file by the last connection."""
        for db in (self._read, self._sweeper, self._write):
            db.close()


class Transaction:
    """Changes within one commit. Also the joiner's table of open files (``gridstead.sources.xrootd.OpenTable``)."""

    def __init__(self, store: Store, db: sqlite3.Connection) -> None:
        """Begin with nothing changed; made by :meth:`Store.transaction` only."""
        self._store = store
        self._db = db
        self._delta: dict[str, int] = {}
        self._loaded: set[int] = set()
        self._last_event_ms = 0
        self.queued = False

    @property
    def full(self) -> bool:
        """Whether the queue has reached its bound, with what this transaction added so far."""
        return self._store.counters["queue_bytes"] + self._delta.get("queue_bytes", 0) >= self._store.queue_max_bytes

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        self._delta[name] = self._delta.get(name, 0) + by

    def finish(self) -> dict[str, int]:
        """Write the counters and return them as they are after the commit."""
        counters = dict(self._store.counters)
        for name, by in self._delta.items():
            counters[name] += by
        counters["last_event_ms"] = max(counters["last_event_ms"], self._last_event_ms)
        self.put("counters", json.dumps(counters))
        return counters

    def put(self, key: str, value: str | bytes) -> None:
        """Set a value of the table ``meta``."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def add_events(self, events: Sequence[Event]) -> None:
        """Queue events, in order; names are taken out of them here, so that none goes past it."""
        if not events:
            return
        protect = self._store.protect
        if protect is not None:
            for event in events:
                protect(event)
        rows = [(EVENT, event["event_id"], encode_event(event)) for event in events]
        self._add(rows)
        self.count("events", len(rows))
        self._last_event_ms = max(self._last_event_ms, events[-1]["received_ms"])

    def add_dead_letter(self, reason: str, source: str, origin: str, received_ms: int, raw: bytes, **more: Any) -> None:
        """Queue what could not be decoded or validated; the arguments are those of :func:`dead_letter`."""
        letter = dead_letter(reason, source, origin, received_ms, raw, **more)
        digest = hashlib.sha256(raw).hexdigest()[:32]
        self._add([(DEAD_LETTER, digest, json.dumps(letter).encode("ascii"))])
        self.count("dead_letters")

    def _add(self, rows: list[tuple[int, str, bytes]]) -> None:
        self._db.executemany("INSERT INTO queue (kind, event_id, body) VALUES (?, ?, ?)", rows)
        self.count("queue_rows", len(rows))
        self.count("queue_bytes", sum(len(row[2]) for row in rows) + ROW_OVERHEAD_BYTES * len(rows))
        self.queued = True

    def delete(self, rows: Sequence[Row]) -> None:
        """Delete consecutive rows of the queue, counted as sent."""
        gone = self._db.execute("DELETE FROM queue WHERE id BETWEEN ? AND ?", (rows[0].id, rows[-1].id)).rowcount
        if gone != len(rows):
            reason = f"{gone} rows deleted instead of {len(rows)}: is another collector using it?"
            raise StoreError(f"{self._store.path}: {reason}")
        letters = sum(row.kind == DEAD_LETTER for row in rows)
        self.count("sent", len(rows) - letters)
        self.count("dead_letters_sent", letters)
        self.count("queue_rows", -len(rows))
        self.count("queue_bytes", -sum(len(row.body) for row in rows) - ROW_OVERHEAD_BYTES * len(rows))

    def _server(self, key: ServerKey) -> int:
        now_ms = time.time_ns() // 1_000_000
        known = self._store._servers.get(key)
        if known is not None and now_ms - known[1] < 60_000:
            return known[0]
        self._db.execute(
            "INSERT INTO servers (host, start_s, server_id, seen_ms) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (host, start_s, server_id) DO UPDATE SET seen_ms = excluded.seen_ms",
            (*key, now_ms),
        )
        no: int = self._db.execute(
            "SELECT no FROM servers WHERE host = ? AND start_s = ? AND server_id = ?", tuple(key)
        ).fetchone()[0]
        if len(self._store._servers) > 100_000:
            self._store._servers.clear()
        self._store._servers[key] = (no, now_ms)
        return no

    def load(self, server: ServerKey, file_ids: Iterable[int]) -> dict[int, FileState]:
        """The known states of these files of a server."""
        base = self._server(server) << 32
        keys = [base | file_id for file_id in file_ids]
        found: dict[int, FileState] = {}
        for at in range(0, len(keys), 10_000):
            part = keys[at : at + 10_000]
            marks = ",".join("?" * len(part))
            for key, open_ms, size, lfn, closed, seen in self._db.execute(
                f"SELECT key, open_ms, file_size, lfn, closed, seen_ms FROM files WHERE key IN ({marks})", part
            ):
                self._loaded.add(key)
                found[key & 0xFFFFFFFF] = FileState(open_ms, size, lfn, bool(closed), seen)
        return found

    def save(self, server: ServerKey, states: Mapping[int, FileState]) -> None:
        """Insert or overwrite states of files of a server."""
        base = self._server(server) << 32
        rows = [(base | file_id, *state) for file_id, state in states.items()]
        self._db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)
        new = {row[0] for row in rows} - self._loaded
        self._loaded |= new
        self.count("file_rows", len(new))

    def forget_files(self, old: Sequence[tuple[int, int]]) -> None:
        """Delete files by (key, last seen), unless they were seen again since."""
        if not old:
            return
        before = self._db.total_changes
        self._db.executemany("DELETE FROM files WHERE key = ? AND seen_ms = ?", old)
        gone = self._db.total_changes - before
        self.count("file_rows", -gone)
        self.count("files_evicted", gone)


def dead_letter(
    reason: str,
    source: str,
    origin: str,
    received_ms: int,
    raw: bytes,
    header: str | None = None,
    partial: bool = False,
) -> dict[str, Any]:
    """The dead-letter record: what was wrong in words, the entrance it came by, from where and when (ms), the bytes.

    ``raw`` is kept whole up to 16 MiB, and ``truncated`` says whether it was longer. ``header`` is what the message's
    :data:`~gridstead.sources.SOURCE_HEADER` said, without which a replay would not be the same message.
    ``partial``: it gave events; later, without the opens that were known then, it would give poorer ones.
    """
    return {
        "reason": reason,
        "source": source,
        "origin": origin,
        "received_ms": received_ms,
        "header": header,
        "raw_base64": base64.b64encode(raw[:RAW_MAX_BYTES]).decode("ascii"),
        "truncated": len(raw) > RAW_MAX_BYTES,
        "partial": partial,
    }
