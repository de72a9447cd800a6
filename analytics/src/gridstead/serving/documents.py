"""The arithmetic of a served document: what a streamed change and what a batch value make of it. Pure functions.

A document holds ``values`` (sums of int64 over events, the first one the number of events), the number ``seq`` of the
last transaction that changed it, and what was streamed since a cut, ``since``, while a batch is under way. Everything
that the merge has to be exact about is in these two functions:

- :func:`added`: a transaction adds its delta once, however often it is repeated.
- :func:`based`: a batch value replaces everything up to its cut, and what was streamed after the cut stays.
"""

from __future__ import annotations

from operator import add
from typing import Final, NamedTuple

NO_CUT: Final = -1

Values = tuple[int, ...]
Version = tuple[int, int]
"""Elasticsearch's sequence number and primary term of a document: what a conditional write names."""


class Document(NamedTuple):
    """One served document.

    ``dimensions`` is the JSON object of the key's parts as the statistics made it; ``bin_end_ms`` the end of its bin,
    ms since epoch UTC. ``since`` is what transactions after the one numbered ``cut`` have added (meaningless while cut
    is NO_CUT). ``version`` is None for a document that is not stored yet.
    """

    dimensions: str
    bin_end_ms: int
    values: Values
    seq: int
    cut: int = NO_CUT
    since: Values = ()
    version: Version | None = None

    def at(self, version: Version | None) -> Document:
        """The same document as stored under this version."""
        return Document(*self[:-1], version)

    @property
    def empty(self) -> bool:
        """Whether nothing is left: readers do not see such a document, and a merge deletes it."""
        return not any(self.values)


class Delta(NamedTuple):
    """What a range of the log changes in one document, or what a batch says of it. Units as the statistic's values."""

    statistic: str
    key: str
    bin_end_ms: int
    dimensions: str
    values: Values


def added(document: Document | None, delta: Delta, seq: int, cut: int) -> Document | None:
    """The document after transaction ``seq``; None if it has this transaction already.

    ``cut`` is the transaction after which a batch that is under way counts as streamed, NO_CUT if there is none; it
    must be below ``seq``.
    """
    if document is not None and document.seq >= seq:
        return None
    values = delta.values if document is None else _sum(document.values, delta.values)
    if cut == NO_CUT:
        since: Values = ()
    elif document is not None and document.cut == cut:
        since = _sum(document.since, delta.values)
    else:
        since = delta.values
    version = document.version if document is not None else None
    return Document(delta.dimensions, delta.bin_end_ms, values, seq, cut, since, version)


def based(document: Document | None, base: Delta | None, cut: int) -> Document | None:
    """The document when a batch that counted up to transaction ``cut`` says ``base`` of it (None: it has no such key).

    None only where there is neither. A document that comes out empty is the caller's to delete or to keep. Safe to
    repeat: what was streamed since stays noted.
    """
    if document is None:
        return None if base is None else Document(base.dimensions, base.bin_end_ms, base.values, cut)
    since = document.since if document.cut == cut else (0,) * len(document.values)
    return document._replace(values=since if base is None else _sum(base.values, since))


def _sum(left: Values, right: Values) -> Values:
    if len(left) != len(right):
        raise ValueError(f"{len(left)} and {len(right)} values of one document")
    return tuple(map(add, left, right))
