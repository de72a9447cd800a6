"""One increment's rows as columns: which of them need a look one by one, and the records that they make."""

from __future__ import annotations

import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from gridstead.events import EVENT_ID_DIGITS
from gridstead.identity.blocks import BLOCK_ROWS, has_payload
from gridstead.identity.keys import ACCESS_BYTES, NO_BLOCK, masked, to_uint64
from gridstead.identity.resolve import NO_PLACE, Places, Resolver, Row
from gridstead.identity.store import Store, Version

SLICE_ROWS: Final = 1 << 14
"""How many records are written at a time, a multiple of BLOCK_ROWS."""
_EVENT_BYTES: Final = EVENT_ID_DIGITS // 2
ROWS: Final = pa.schema(
    [
        ("event_id", pa.large_string()),
        ("producer_id", pa.large_string()),
        ("end_ms", pa.int64()),
        ("bytes", pa.int64()),
        ("topic", pa.large_string()),
        ("partition", pa.int64()),
        ("offset", pa.int64()),
        ("timestamp_ms", pa.int64()),
        ("payload", pa.large_string()),
    ]
)
"""The rows of an increment of the log; only ``producer_id`` and ``payload`` may be null."""
_RECORD: Final = ("event_id", "producer_id", "timestamp_ms", "end_ms", "bytes", "payload")
_BLOCK_OF: Final = pa.array([row // BLOCK_ROWS for row in range(SLICE_ROWS)], pa.uint64())


class Increment:
    """Rows of :data:`ROWS`, of which all but the ``slow`` ones make alone records."""

    def __init__(self, rows: pa.Table, store: Store) -> None:
        """Look up the accesses of all rows at once. Raises ValueError for an event_id that is not 32 hex digits."""
        self._rows = rows
        self._store = store
        self._ids = identities(rows)
        accesses = _accesses(self._ids).tolist()
        counts = Counter(accesses)
        self.places = _places(store, counts)
        slow = {access for access, count in counts.items() if count > 1} if len(counts) < len(accesses) else set()
        slow.update(int.from_bytes(access, "big") for access in self.places)
        self._slow = [index for index, access in enumerate(accesses) if access in slow] if slow else []
        self._fast: Sequence[int] = range(len(accesses))
        if slow:
            self._fast = [index for index, access in enumerate(accesses) if access not in slow]

    def slow_rows(self) -> list[Row]:
        """The rows to look at one by one, in the order of the log. Raises ValueError for a row that is there twice."""
        names = ("topic", "partition", "offset", "producer_id", "timestamp_ms", "end_ms", "bytes")
        taken = self._rows.select((*names, "payload")).take(pa.array(self._slow, pa.int64()))
        columns = [taken[name].to_pylist() for name in names[:3]]
        columns += [self._slow, taken["producer_id"].cast(pa.large_binary()).to_pylist()]
        columns += [taken[name].to_pylist() for name in names[4:]]
        columns.append(has_payload(taken).to_pylist())
        rows: list[Row] = []
        before = None
        for topic, partition, offset, index, *rest in sorted(zip(*columns, strict=True)):
            if before == (topic, partition, offset):
                raise ValueError(f"row {topic}/{partition}/{offset} is given twice")
            before = topic, partition, offset
            rows.append(Row(index, self._ids[_EVENT_BYTES * index : _EVENT_BYTES * (index + 1)], *rest))
        return rows

    def write(self, resolver: Resolver) -> None:
        """Write the records that the rows make, and what else the resolver changed, in the chunks that are kept."""
        first = self._store.first_chunk
        entries: dict[int, list[pa.Array]] = defaultdict(list)
        others: dict[int, list[Version]] = defaultdict(list)
        for version in resolver.made:
            if version.block == NO_PLACE:
                others[version.chunk].append(version)
        alone = self._fast_by_chunk()
        for chunk in sorted(number for number in alone.keys() | others.keys() if number >= first):
            entries[chunk] += self._write_chunk(chunk, alone.get(chunk, ()), others.get(chunk, ()))
        for chunk, accesses in resolver.write(first).items():
            numbers = to_uint64(_swapped(array("Q", b"".join(accesses))).tobytes())
            entries[chunk].append(pc.bit_wise_or(numbers, pa.scalar(NO_BLOCK, pa.uint64())))
        for chunk, parts in entries.items():
            if parts:
                self._store.add_keys(chunk, pa.concat_arrays(parts))

    def _fast_by_chunk(self) -> dict[int, Sequence[int]]:
        chunks = pc.divide(self._rows["timestamp_ms"], self._store.width_ms)
        extremes = pc.min_max(chunks).as_py()
        if extremes["min"] == extremes["max"]:
            return {extremes["min"]: self._fast} if self._fast else {}
        found: dict[int, list[int]] = defaultdict(list)
        numbers = chunks.to_pylist()
        for index in self._fast:
            found[numbers[index]].append(index)
        return dict(found)

    def _write_chunk(self, chunk: int, alone: Sequence[int], others: Sequence[Version]) -> Iterator[pa.Array]:
        """Write records into blocks, the alone ones first; gives the keys of these, and the others their places."""
        order = [*alone, *(version.index for version in others)]
        for begin in range(0, len(order), SLICE_ROWS):
            rows = self._rows.select(_RECORD).take(pa.array(order[begin : begin + SLICE_ROWS], pa.int64()))
            ids = identities(rows)
            count = min(max(0, len(alone) - begin), len(rows))
            first = self._store.add_blocks(chunk, rows, ids, count)
            if count:
                accesses = to_uint64(_accesses(ids)[:count].tobytes())
                blocks = pc.add(_BLOCK_OF.slice(0, count), pa.scalar(first, pa.uint64()))
                yield pc.bit_wise_or(masked(accesses), blocks)
            for row, version in enumerate(others[max(0, begin - len(alone)) :][: len(rows) - count], count):
                version.block, version.row = first + row // BLOCK_ROWS, row % BLOCK_ROWS


def to_rows(given: pa.Table | Iterable[pa.RecordBatch]) -> pa.Table:
    """The rows as a table of :data:`ROWS`. Raises ValueError for a column that is missing or holds what it may not."""
    if not isinstance(given, pa.Table):
        batches = list(given)
        given = pa.Table.from_batches(batches) if batches else ROWS.empty_table()
    missing = [name for name in ROWS.names if name not in given.column_names]
    if missing:
        raise ValueError(f"columns are missing: {', '.join(missing)}")
    rows = given.select(ROWS.names).cast(ROWS)
    for name in ROWS.names:
        if name not in ("producer_id", "payload") and rows[name].null_count:
            raise ValueError(f"{rows[name].null_count} rows have no {name}")
    bare = pc.and_not(pc.is_valid(rows["producer_id"]), has_payload(rows))
    if pc.any(bare).as_py():
        raise ValueError("a row with a producer_id has no payload")
    return rows


def identities(rows: pa.Table) -> bytes:
    """The event_ids of rows, 16 bytes each. Raises ValueError for one that is not 32 lower-case hex digits."""
    column = rows["event_id"]
    lengths = pc.min_max(pc.binary_length(column)).as_py()
    text = "".join(column.to_pylist())
    try:
        ids = bytes.fromhex(text)
    except ValueError:
        ids = b""
    if {lengths["min"], lengths["max"]} != {EVENT_ID_DIGITS} or ids.hex() != text:
        raise ValueError(f"an event_id is not {EVENT_ID_DIGITS} hex digits")
    return ids


def _accesses(ids: bytes) -> array[int]:
    return _swapped(array("Q", ids))[::2]


def _swapped(numbers: array[int]) -> array[int]:
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def _places(store: Store, accesses: Iterable[int]) -> dict[bytes, Places]:
    """Where the accesses may be known, of those for which there is such a place."""
    numbers = array("Q", accesses)
    needles = masked(to_uint64(numbers.tobytes()))
    order = pc.array_sort_indices(needles)
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for index, chunk, block in store.find(needles.take(order)):
        found[index].append((chunk, block))
    indices = order.take(pa.array(found, pa.int64())).to_pylist()
    known = (numbers[index].to_bytes(ACCESS_BYTES, "big") for index in indices)
    return dict(zip(known, found.values(), strict=True))
