"""Records in blocks of 32: columns of fixed width one after the other, and the payloads, compressed together.

A block's scalars: number of rows (4 bytes), identities (16 each), log time, end, bytes (8 each), flags (1 each),
offsets of the producer ids (8 each and one more), producer ids. Its payload: number of rows (4), offsets of the texts
(8 each and one more), the texts by LZ4.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

BLOCK_ROWS: Final = 32
_CODEC: Final = "lz4_raw"
_HEAD: Final = 4
_EVENT: Final = 16
_HAS_PRODUCER: Final = 1
_HAS_PAYLOAD: Final = 2

_count = struct.Struct("=i")
_number = struct.Struct("=q")
_pair = struct.Struct("=2q")


def pack(rows: pa.Table, ids: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Scalars and payload of each block of these records; ``ids`` are their identities, 16 bytes each.

    The columns must begin at the beginning of their buffers, as those of a table just made do.
    """
    times, ends, sizes = (memoryview(_column(rows, name).buffers()[1]) for name in ("timestamp_ms", "end_ms", "bytes"))
    flags = memoryview(_flags(rows))
    producers, producer_at, producer_offsets = _text(rows, "producer_id")
    payloads, payload_at, payload_offsets = _text(rows, "payload")
    for begin in range(0, len(rows), BLOCK_ROWS):
        end = min(begin + BLOCK_ROWS, len(rows))
        count = _count.pack(end - begin)
        fixed = slice(8 * begin, 8 * end)
        offsets = slice(8 * begin, 8 * (end + 1))
        names = producers[producer_at[begin] : producer_at[end]]
        parts = (count, ids[_EVENT * begin : _EVENT * end], times[fixed], ends[fixed], sizes[fixed], flags[begin:end])
        texts = pa.compress(payloads[payload_at[begin] : payload_at[end]], codec=_CODEC, asbytes=True)
        yield b"".join((*parts, producer_offsets[offsets], names)), b"".join((count, payload_offsets[offsets], texts))


def _column(rows: pa.Table, name: str) -> pa.Array:
    column = rows[name]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies even a single chunk


def _text(rows: pa.Table, name: str) -> tuple[memoryview, array[int], memoryview]:
    """The bytes of a column of strings, and the offsets of each in them, as numbers and as bytes."""
    _, offsets, texts = _column(rows, name).buffers()
    raw = memoryview(offsets)[: 8 * (len(rows) + 1)]
    return memoryview(texts or b""), array("q", bytes(raw)), raw


def _flags(rows: pa.Table) -> pa.Buffer:
    producer = pc.multiply(pc.is_valid(rows["producer_id"]).cast(pa.uint8()), pa.scalar(_HAS_PRODUCER, pa.uint8()))
    payload = pc.multiply(has_payload(rows).cast(pa.uint8()), pa.scalar(_HAS_PAYLOAD, pa.uint8()))
    return pc.add(producer, payload).combine_chunks().buffers()[1]


def has_payload(rows: pa.Table) -> pa.ChunkedArray:
    """Whether there is a payload: null and "" mean none."""
    return pc.fill_null(pc.greater(pc.binary_length(rows["payload"]), 0), False)


def find(scalars: bytes, among: int, access: bytes) -> int | None:
    """The row of an access among the first rows of a block."""
    end = _HEAD + _EVENT * min(among, _count.unpack_from(scalars)[0])
    at = scalars.find(access, _HEAD, end)
    while at >= 0 and (at - _HEAD) % _EVENT:
        at = scalars.find(access, at + 1, end)
    return None if at < 0 else (at - _HEAD) // _EVENT


def scalars(scalars: bytes, row: int) -> tuple[bytes, int, int, int, bool, bytes | None]:
    """Identity, log time, end, bytes, whether there is a payload, and producer id of a row."""
    (rows,) = _count.unpack_from(scalars)
    event = scalars[_HEAD + _EVENT * row : _HEAD + _EVENT * (row + 1)]
    at = _HEAD + _EVENT * rows + 8 * row
    numbers = [_number.unpack_from(scalars, at + 8 * rows * column)[0] for column in range(3)]
    flags = scalars[_HEAD + (_EVENT + 24) * rows + row]
    producer = None
    if flags & _HAS_PRODUCER:
        table = _HEAD + (_EVENT + 25) * rows
        names = table + 8 * (rows + 1) - _number.unpack_from(scalars, table)[0]
        begin, end = _pair.unpack_from(scalars, table + 8 * row)
        producer = scalars[names + begin : names + end]
    return event, *numbers, bool(flags & _HAS_PAYLOAD), producer


def unpack(payload: bytes) -> Callable[[int], str]:
    """Decompress a block's payload; gives a function from row to text."""
    (rows,) = _count.unpack_from(payload)
    offsets = struct.unpack_from(f"={rows + 1}q", payload, _HEAD)
    packed = pa.py_buffer(payload)[_HEAD + 8 * (rows + 1) :]
    texts = pa.decompress(packed, decompressed_size=offsets[-1] - offsets[0], codec=_CODEC, asbytes=True)
    return lambda row: texts[offsets[row] - offsets[0] : offsets[row + 1] - offsets[0]].decode()
