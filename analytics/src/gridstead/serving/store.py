"""What the merge asks of the place where documents are kept; Elasticsearch's is in elastic.py."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

from gridstead.serving.control import ControlStore
from gridstead.serving.documents import Document, Version


class Place(NamedTuple):
    """Where a document is: generation, statistic, key, and the end of its bin (ms), which chooses the index."""

    generation: int
    statistic: str
    key: str
    bin_end_ms: int


class Write(NamedTuple):
    """A conditional write: the document, or None to delete it, if what is stored still has this version.

    ``version`` None: only if there is none.
    """

    place: Place
    document: Document | None
    version: Version | None


class DocumentStore(ControlStore, Protocol):
    """Documents by place, changed only on the condition that nobody else has changed them since they were read."""

    def read(self, places: Sequence[Place]) -> dict[Place, Document]:
        """The stored documents of these places, as they are now (not as a search last saw them)."""

    def write(self, writes: Iterable[Write]) -> Mapping[Place, Version | None]:
        """Do what can be done; returns the new versions (None: deleted) of what was done. What is missing in the
        answer has been changed by somebody else: read it again."""

    def scan(self, generation: int, statistic: str, low_ms: int, high_ms: int) -> Iterator[tuple[Place, Document]]:
        """All documents whose bin begins in [low, high), those included that were written just now."""


class _Keep(enum.Enum):
    KEEP = "keep"


KEEP: Final = _Keep.KEEP
"""A change that leaves the document as it is."""

Settlement = Document | None | Literal[_Keep.KEEP]
"""What is to be stored at a place: a document, nothing (None), or what is there already (KEEP)."""

Change = Callable[[Place, Document | None], Settlement]
"""From what is stored at a place (None: nothing) to what is to be stored there."""


class Settled(NamedTuple):
    """The documents stored after :func:`settle`, how many writes it took, and the places that others had changed."""

    stored: dict[Place, Document]
    written: int
    surprises: list[Place]


def settle(store: DocumentStore, places: Sequence[Place], held: Mapping[Place, Document], change: Change) -> Settled:
    """Bring documents to what ``change`` makes of them, reading again those that others change meanwhile.

    ``held`` are documents believed to be stored (a cache or a scan); places of ``places`` not in it are taken for not
    stored. Returns what is stored afterwards.
    """
    current = {place: held[place] for place in places if place in held}
    left: Sequence[Place] = places
    written = 0
    surprises: list[Place] = []
    while left:
        writes = []
        for place in left:
            stored = current.get(place)
            wanted = change(place, stored)
            if wanted is not KEEP:
                writes.append(Write(place, wanted, stored.version if stored is not None else None))
        if not writes:
            break
        done = store.write(writes)
        for write in writes:
            if write.place in done:
                written += 1
                if write.document is None:
                    current.pop(write.place, None)
                else:
                    current[write.place] = write.document.at(done[write.place])
        left = [write.place for write in writes if write.place not in done]
        if left:
            surprises += left
            again = store.read(left)
            for place in left:
                current.pop(place, None)
            current.update(again)
    return Settled(current, written, surprises)
