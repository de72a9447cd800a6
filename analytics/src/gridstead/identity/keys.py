"""Which accesses a chunk of the index holds, in memory: 8 bytes an access, found for a whole increment at once.

An entry is an unsigned 64-bit number: the upper 36 bits of the access, and below them the number of the block that
holds its record. Entries are kept in a few sorted runs; a new run is merged with the last ones while these are not much
longer, so that an entry is moved a logarithmic number of times. Accesses are hashes: two that share 36 bits are rare,
and cost a look into a block, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

ACCESS_BYTES: Final = 8
BLOCK_BITS: Final = 28
NO_BLOCK: Final = (1 << BLOCK_BITS) - 1
"""In place of a block: all that is known of the access is in the tables of versions and heads."""
_ACCESS_MASK: Final = ((1 << 64) - 1) ^ NO_BLOCK
_MERGE_RATIO: Final = 2


def masked(accesses: pa.Array) -> pa.Array:
    """The part of accesses (uint64) that entries hold, the block's bits being 0."""
    return pc.bit_wise_and(accesses, pa.scalar(_ACCESS_MASK, pa.uint64()))


def to_uint64(raw: bytes) -> pa.Array:
    """Numbers in the machine's byte order as an array, without copying."""
    return pa.Array.from_buffers(pa.uint64(), len(raw) // 8, [None, pa.py_buffer(raw)])


def sorted_run(entries: pa.Array) -> pa.Array:
    """The entries in order."""
    return entries.take(pc.array_sort_indices(entries))


class Keys:
    """The entries of one chunk."""

    def __init__(self, runs: Iterable[pa.Array] = ()) -> None:
        """Begin with the runs of another."""
        self._runs = list(runs)

    @property
    def runs(self) -> tuple[pa.Array, ...]:
        """The runs as they are now."""
        return tuple(self._runs)

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def add(self, run: pa.Array) -> None:
        """Add entries, which must be sorted."""
        last = [run]
        length = len(run)
        while self._runs and len(self._runs[-1]) < _MERGE_RATIO * length:
            last.append(self._runs.pop())
            length += len(last[-1])
        self._runs.append(run if len(last) == 1 else sorted_run(pa.concat_arrays(last)))

    def find(self, needles: pa.Array) -> Iterator[tuple[int, int]]:
        """Of masked accesses (sorted, or it is slow) those with an entry: (index of the needle, block)."""
        for run in self._runs:
            at = pc.search_sorted(run, needles)
            index = pc.indices_nonzero(pc.is_valid(needles))
            while len(index):
                here = pc.indices_nonzero(pc.less(at, pa.scalar(len(run), pa.uint64())))
                at, index = at.take(here), index.take(here)
                entries = run.take(at)
                equal = pc.indices_nonzero(pc.equal(masked(entries), needles.take(index)))
                at, index, entries = at.take(equal), index.take(equal), entries.take(equal)
                yield from zip(
                    index.to_pylist(),
                    pc.bit_wise_and(entries, pa.scalar(NO_BLOCK, pa.uint64())).to_pylist(),
                    strict=True,
                )
                at = pc.add(at, pa.scalar(1, pa.uint64()))
