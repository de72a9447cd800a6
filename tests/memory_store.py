"""A document store in memory with the conditions of the real one, in which a test can stop or interleave any call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from gridstead.serving.control import Conflict, Control
from gridstead.serving.documents import Document, Version
from gridstead.serving.store import Place, Write


class MemoryStore:
    """What Elasticsearch promises: each document changes only if it still has the version that was read.

    ``before`` and ``after`` are called around every effect with its name; they may raise, or use the store themselves.
    A bulk write is not atomic: they are called around each document of it.
    """

    def __init__(self) -> None:
        self.documents: dict[Place, Document] = {}
        self.control: tuple[Control, int] | None = None
        self.before: Callable[[str], None] = lambda call: None
        self.after: Callable[[str], None] = lambda call: None
        self._versions = 0

    def read_control(self) -> tuple[Control, int] | None:
        self.before("read control")
        return self.control

    def write_control(self, control: Control, version: int | None) -> None:
        self.before("write control")
        if (self.control[1] if self.control is not None else None) != version:
            raise Conflict
        self._versions += 1
        self.control = (Control.from_json(control.to_json()), self._versions)
        self.after("write control")

    def read(self, places: Sequence[Place]) -> dict[Place, Document]:
        self.before("read")
        return {place: self.documents[place] for place in places if place in self.documents}

    def write(self, writes: Iterable[Write]) -> Mapping[Place, Version | None]:
        done: dict[Place, Version | None] = {}
        for place, document, version in writes:
            self.before("write")
            stored = self.documents.get(place)
            if (stored.version if stored is not None else None) != version:
                continue
            self._versions += 1
            if document is None:
                del self.documents[place]
                done[place] = None
            else:
                done[place] = (self._versions, 1)
                self.documents[place] = document.at(done[place])
            self.after("write")
        return done

    def scan(self, generation: int, statistic: str, low_ms: int, high_ms: int) -> Iterator[tuple[Place, Document]]:
        self.before("scan")
        found = [
            (place, document)
            for place, document in self.documents.items()
            if (place.generation, place.statistic) == (generation, statistic) and low_ms < place.bin_end_ms <= high_ms
        ]
        for entry in found:
            self.before("scan")
            yield entry
