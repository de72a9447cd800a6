"""The identity index's file: an SQLite database in chunks of log time, of which whole ones are dropped.

A chunk covers a quarter of the horizon and has three tables, named by its number (log time // width):

``block_N``: the records that were made in the chunk, 32 of them in a row: first the *alone* ones, the only record of
    their access when they were made, and then others, of which only the payload is read here.
``note_N``: what is known of a record otherwise, that is not alone or to which something happened since, and of a
    carrier (access and producer id) whose latest version is not simply its alone record. The notes of an access are
    neighbours, so that they change a page together.
``keys_N``: the entries of :class:`gridstead.identity.keys.Keys`, a run for each increment.

Alone records, nearly all, so cost a few large rows appended at the end; only the others cost a row each.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sqlite3
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from gridstead.identity import blocks
from gridstead.identity.blocks import BLOCK_ROWS
from gridstead.identity.keys import ACCESS_BYTES, NO_BLOCK, Keys, sorted_run, to_uint64

log = logging.getLogger("gridstead.identity")

Positions = dict[str, dict[int, int]]
"""topic -> partition -> offset of the next row."""

FORMAT: Final = 1
"""Raise it when the tables or the layout of a block change: a file of another format is begun anew."""
CHUNKS_PER_HORIZON: Final = 4
BUSY_TIMEOUT_S: Final = 5.0
"""How long a predecessor that is just ending may keep the file."""
_KEYS_A_QUERY: Final = 500
_MIB: Final = 1 << 20

_TABLES: Final = """
CREATE TABLE block_{n} (id INTEGER PRIMARY KEY, alone INTEGER, scalars BLOB, payload BLOB);
CREATE TABLE note_{n} (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE keys_{n} (id INTEGER PRIMARY KEY, run BLOB);
"""


class IdentityIndexError(Exception):
    """The file cannot be used now; the message says why and what to do."""


class _Unusable(Exception):
    """Why a file must be begun anew."""


def is_damage(error: BaseException) -> bool:
    """Whether an error means that what the file holds is not what was written; else it is the disk or a lock."""
    if isinstance(error, sqlite3.OperationalError):
        return error.sqlite_errorname == "SQLITE_ERROR"  # such as a table that is missing
    return isinstance(error, sqlite3.DatabaseError | struct.error | OSError)  # Arrow raises OSError for broken LZ4


@dataclass(slots=True)
class Version:
    """A record: one version of an access, as the row that counts for it told it.

    ``size``: bytes moved. ``block`` is NO_BLOCK where there is no payload, so that it is never superseded. ``index``:
    its row in the increment at hand, -1 if it is older.
    """

    event: bytes
    chunk: int
    block: int
    row: int
    timestamp_ms: int
    end_ms: int
    size: int
    counted: bool = True
    index: int = -1

    @property
    def order(self) -> tuple[int, int, bytes]:
        """The greater is the later version."""
        return self.end_ms, self.size, self.event


@dataclass(slots=True)
class _Chunk:
    keys: Keys
    next_block: int


class Store:
    """The file and the keys in memory; every change is within one transaction, until ``commit`` or ``rollback``."""

    def __init__(self, path: Path, horizon_ms: int) -> None:
        """Open or begin the file; see :class:`gridstead.identity.IdentityIndex`."""
        self.width_ms = max(1, -(-horizon_ms // CHUNKS_PER_HORIZON))
        self.started_empty = ""
        self._path = path
        self._horizon_ms = horizon_ms
        try:
            self._open()
        except _Unusable as reason:
            self.started_empty = str(reason)
            log.warning("%s: %s; it is begun anew", path, reason)
            self.clear()

    def _open(self) -> None:
        try:
            self._db = sqlite3.connect(self._path, BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        except sqlite3.OperationalError as error:
            raise IdentityIndexError(f"{self._path}: {error}: look at its directory") from error
        try:
            for setting in (
                "locking_mode = EXCLUSIVE",
                "journal_mode = WAL",  # keeps all commits through a kill; a power failure may take back the last ones
                "synchronous = NORMAL",
                f"wal_autocheckpoint = {16 * _MIB // 4096}",
                f"journal_size_limit = {64 * _MIB}",
                "secure_delete = OFF",
                f"cache_size = {-64 * 1024}",
                f"mmap_size = {1 << 40}",
            ):
                self._db.execute(f"PRAGMA {setting}")
            self._db.execute("BEGIN IMMEDIATE")
            self._meta()
            self._load()
            self._remember()
        except sqlite3.DatabaseError as error:
            self._db.close()
            if not is_damage(error):
                remedy = "another process has it open" if "locked" in str(error) else "look at its directory and disk"
                raise IdentityIndexError(f"{self._path}: {error}: {remedy}") from error
            raise _Unusable(f"it is no usable database ({error})") from error
        except _Unusable:
            self._db.close()
            raise

    def _meta(self) -> None:
        """Check whose file it is, or make it so."""
        wanted = {"format": FORMAT, "horizon_ms": self._horizon_ms}
        if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            self._db.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
            self.mark_ms = 0
            self._put(wanted | {"mark_ms": 0, "upto": {}})
            self._db.execute("COMMIT")
            self._db.execute("BEGIN IMMEDIATE")
        try:
            found = {name: json.loads(value) for name, value in self._db.execute("SELECT name, value FROM meta")}
            self._upto = {topic: {int(p): offset for p, offset in of.items()} for topic, of in found["upto"].items()}
            self.mark_ms = int(found["mark_ms"])
        except (ValueError, KeyError, AttributeError) as error:
            raise _Unusable(f"it is no file of this program ({error})") from error
        for name, value in wanted.items():
            if found.get(name) != value:
                raise _Unusable(f"it was made for {name} = {found.get(name)}, not {value}")

    def _put(self, values: dict[str, object]) -> None:
        rows = [(name, json.dumps(value)) for name, value in values.items()]
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def _load(self) -> None:
        """Read the keys of every chunk."""
        self.chunks: dict[int, _Chunk] = {}
        names = self._db.execute("SELECT name FROM sqlite_master WHERE name LIKE 'keys/_%' ESCAPE '/'").fetchall()
        for number in sorted(int(re.sub(r"\D", "", name)) for (name,) in names):
            keys = Keys()
            runs = [to_uint64(run) for (run,) in self._db.execute(f"SELECT run FROM keys_{number}")]
            if runs:
                keys.add(sorted_run(pa.concat_arrays(runs)))
            (last,) = self._db.execute(f"SELECT max(id) FROM block_{number}").fetchone()
            self.chunks[number] = _Chunk(keys, 0 if last is None else last + 1)

    def _remember(self) -> None:
        """Note what is in memory, to go back to it; the keys' runs never change."""
        self._before = {number: (chunk.keys.runs, chunk.next_block) for number, chunk in self.chunks.items()}

    # --- transactions ------------------------------------------------------------------------------------------------

    @property
    def upto(self) -> Positions:
        """What was committed last."""
        return {topic: dict(offsets) for topic, offsets in self._upto.items()}

    def commit(self, upto: Positions) -> None:
        """Make everything since the last commit last, and begin the next transaction."""
        self._put({"upto": upto, "mark_ms": self.mark_ms})
        self._db.execute("COMMIT")
        self._upto = {topic: dict(offsets) for topic, offsets in upto.items()}
        self._db.execute("BEGIN IMMEDIATE")
        self._remember()

    def rollback(self) -> None:
        """Forget everything since the last commit."""
        self._db.execute("ROLLBACK")
        self._db.execute("BEGIN IMMEDIATE")
        self._meta()
        self.chunks = {number: _Chunk(Keys(runs), block) for number, (runs, block) in self._before.items()}

    def close(self) -> None:
        """Close without committing."""
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")
        self._db.close()

    def clear(self) -> None:
        """Begin the file anew."""
        self.discard()
        self._open()

    def discard(self) -> None:
        """Close and delete the file."""
        self._db.close()
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    # --- chunks ------------------------------------------------------------------------------------------------------

    @property
    def first_chunk(self) -> int:
        """The oldest chunk that is kept: one more than the horizon before the mark asks for."""
        return (self.mark_ms - self._horizon_ms) // self.width_ms - 1

    def evict(self) -> None:
        """Drop the chunks before the first that is kept."""
        for number in [number for number in self.chunks if number < self.first_chunk]:
            for table in ("block", "note", "keys"):
                self._db.execute(f"DROP TABLE {table}_{number}")
            del self.chunks[number]

    def _chunk(self, number: int) -> _Chunk:
        chunk = self.chunks.get(number)
        if chunk is None:
            for statement in _TABLES.format(n=number).split(";"):
                self._db.execute(statement)
            chunk = self.chunks[number] = _Chunk(Keys(), 0)
        return chunk

    # --- reading -----------------------------------------------------------------------------------------------------

    def find(self, needles: pa.Array) -> Iterator[tuple[int, int, int]]:
        """Of masked accesses (sorted) those that may be known: (index of the needle, chunk, block)."""
        for number, chunk in self.chunks.items():
            for index, block in chunk.keys.find(needles):
                yield index, number, block

    def versions(self, chunk: int, events: Iterable[bytes]) -> Iterator[Version]:
        """What the notes of a chunk know of events."""
        for key, value in self._select(f"SELECT key, value FROM note_{chunk} WHERE key", map(_event_key, events)):
            block, row, timestamp_ms, end_ms, size, counted = _VERSION.unpack(value)
            event = key[:ACCESS_BYTES] + key[ACCESS_BYTES + 1 :]
            yield Version(event, chunk, block, row, timestamp_ms, end_ms, size, counted)

    def heads(self, chunk: int, carriers: Iterable[bytes]) -> Iterator[tuple[bytes, int, bytes]]:
        """Of carriers of which a chunk notes the latest version: the carrier, and the chunk and event of that."""
        for key, value in self._select(f"SELECT key, value FROM note_{chunk} WHERE key", map(_carrier_key, carriers)):
            made_in, version = _HEAD.unpack(value)
            yield key[:ACCESS_BYTES] + key[ACCESS_BYTES + 1 :], made_in, key[:ACCESS_BYTES] + version

    def alone(self, chunk: int, wanted: Mapping[int, Iterable[bytes]]) -> Iterator[tuple[Version, bytes | None]]:
        """Of accesses that may be in blocks, the alone records as they were made, and their producer ids."""
        query = f"SELECT id, alone, scalars FROM block_{chunk} WHERE id"
        for block, alone, scalars in self._select(query, wanted):
            for access in wanted[block]:
                row = blocks.find(scalars, alone, access)
                if row is not None:
                    event, timestamp_ms, end_ms, size, has_payload, producer = blocks.scalars(scalars, row)
                    place = block if has_payload else NO_BLOCK
                    yield Version(event, chunk, place, row, timestamp_ms, end_ms, size), producer

    def payloads(self, versions: Sequence[Version]) -> list[str]:
        """The payloads of records, in their order."""
        wanted: dict[int, dict[int, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
        for index, version in enumerate(versions):
            wanted[version.chunk][version.block].append((index, version.row))
        texts = [""] * len(versions)
        for chunk, of_chunk in wanted.items():
            query = f"SELECT id, payload FROM block_{chunk} WHERE id"
            for block, payload in self._select(query, of_chunk):
                unpacked = blocks.unpack(payload)
                for index, row in of_chunk[block]:
                    texts[index] = unpacked(row)
        return texts

    def _select(self, query: str, keys: Iterable[Any]) -> Iterator[Any]:
        """Run a query that ends in a column, for keys of that column."""
        remaining = list(keys)
        for begin in range(0, len(remaining), _KEYS_A_QUERY):
            some = remaining[begin : begin + _KEYS_A_QUERY]
            yield from self._db.execute(f"{query} IN ({','.join('?' * len(some))})", some)

    # --- writing -----------------------------------------------------------------------------------------------------

    def add_blocks(self, number: int, rows: pa.Table, ids: bytes, alone: int) -> int:
        """Append records to a chunk, of which the first ``alone`` are alone; returns the number of the first block.

        ``ids`` are the rows' identities, 16 bytes each.
        """
        chunk = self._chunk(number)
        first = chunk.next_block
        made = list(blocks.pack(rows, ids))
        chunk.next_block = first + len(made)
        if chunk.next_block >= NO_BLOCK:
            raise OverflowError(f"a chunk has no room for more than {NO_BLOCK} blocks: the horizon is too long")
        numbered = ((first + n, max(0, alone - n * BLOCK_ROWS), *parts) for n, parts in enumerate(made))
        self._db.executemany(f"INSERT INTO block_{number} VALUES (?, ?, ?, ?)", numbered)
        return first

    def add_keys(self, number: int, entries: pa.Array) -> None:
        """Add entries to the keys of a chunk."""
        run = sorted_run(entries)
        self._chunk(number).keys.add(run)
        self._db.execute(f"INSERT INTO keys_{number} (run) VALUES (?)", (run.buffers()[1],))

    def put_versions(self, versions: Iterable[Version]) -> None:
        """Note what is known of records, each in its chunk."""
        notes: dict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
        for v in versions:
            value = _VERSION.pack(v.block, v.row, v.timestamp_ms, v.end_ms, v.size, v.counted)
            notes[v.chunk].append((_event_key(v.event), value))
        for number, of_chunk in notes.items():
            self._note(number, of_chunk)

    def put_heads(self, number: int, heads: Iterable[tuple[bytes, Version]]) -> None:
        """Note in a chunk which version is the latest of a carrier."""
        self._note(number, ((_carrier_key(name), _HEAD.pack(v.chunk, v.event[ACCESS_BYTES:])) for name, v in heads))

    def _note(self, number: int, notes: Iterable[tuple[bytes, bytes]]) -> None:
        self._chunk(number)
        self._db.executemany(f"INSERT OR REPLACE INTO note_{number} VALUES (?, ?)", notes)


# A note's key: access, "v" and version, or access, "h" and producer id. Values: a record's block, row, log time, end,
# bytes and whether it counts; of a head the chunk where its record was made, and its version.
_VERSION: Final = struct.Struct("=5q?")
_HEAD: Final = struct.Struct("=q8s")


def _event_key(event: bytes) -> bytes:
    return event[:ACCESS_BYTES] + b"v" + event[ACCESS_BYTES:]


def _carrier_key(carrier: bytes) -> bytes:
    return carrier[:ACCESS_BYTES] + b"h" + carrier[ACCESS_BYTES:]
