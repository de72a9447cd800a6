"""The writer of streamed changes: numbered transactions over whole documents, safe to be killed at any point.

A transaction covers a range of the log. It notes its number and the end of its range in the control record (the
intent), writes the documents, each with its number in it, and notes that it is done. After a kill the next writer
finds the intent, and must compute the same range once more; documents that have the number already are left alone. So
each range is added exactly once, with or without a checkpoint, and whatever was written of it before the kill.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gridstead.serving.control import Control, ControlError, Point, Positions, change, check_definitions
from gridstead.serving.documents import Delta, Document, added
from gridstead.serving.store import KEEP, DocumentStore, Place, Settlement, settle

CACHE_DOCUMENTS: Final = 200_000


@dataclass(frozen=True)
class Transacted:
    """What a transaction did: documents written, and how many were read for it."""

    documents: int
    read: int


class _Guess:
    """Whether documents that the cache does not know are worth reading before they are written, by statistic.

    A document taken for new costs one request if it is, and three (create, read, write) if it is not; read first it
    costs two. So what mostly turned out to be new is not read.
    """

    def __init__(self) -> None:
        self._stored: dict[str, float] = {}

    def read_first(self, statistic: str) -> bool:
        return self._stored.get(statistic, 1.0) >= 0.5

    def learn(self, unknown: Iterable[Place], stored: Collection[Place]) -> None:
        """Of the documents that the cache did not know, ``stored`` were there."""
        asked = Counter(place.statistic for place in unknown)
        there = Counter(place.statistic for place in stored)
        for statistic, count in asked.items():
            before = self._stored.get(statistic, there[statistic] / count)
            self._stored[statistic] = (before + there[statistic] / count) / 2


class Writer:
    """The one writer of transactions. Opening it takes the right to write from any earlier one."""

    def __init__(
        self, store: DocumentStore, name: str, fingerprint: str, cache_documents: int = CACHE_DOCUMENTS
    ) -> None:
        """Open under a unique name; makes the control record where there is none (its documents begin with nothing).

        Raises ControlError if the documents were made by other definitions (``fingerprint``).
        """
        self._store = store
        self._name = name
        self._cache: OrderedDict[Place, Document] = OrderedDict()
        self._cache_documents = cache_documents
        self._guess = _Guess()
        if store.read_control() is None:
            store.write_control(Control(name, fingerprint, Point(0, {})), None)
        self.control = change(store, lambda control: replace(control, writer=name))
        check_definitions(self.control, fingerprint)

    @property
    def pending(self) -> Positions | None:
        """The end of the range that an earlier writer had begun and not finished: it has to come first."""
        return self.control.intent.positions if self.control.intent is not None else None

    def transact(self, upto: Positions, deltas: Sequence[Delta]) -> Transacted:
        """Add the changes of the range from the last transaction's end to ``upto``.

        Raises ControlError if another writer has taken over, or if ``upto`` is not the end of a pending range.
        """
        pending = self.pending
        if pending is not None and pending != upto:
            raise ControlError(f"the range up to {pending} was begun and has to be finished before {upto}")
        if pending is None:
            self._change(lambda control: replace(control, intent=Point(control.done.seq + 1, upto)))
        intent = self.control.intent
        assert intent is not None
        done = self._add(deltas, intent.seq)
        self._change(lambda control: replace(control, done=intent, intent=None))
        return done

    def _change(self, update: Callable[[Control], Control]) -> None:
        def checked(control: Control) -> Control:
            if control.writer != self._name:
                raise ControlError(f"another stream ({control.writer}) writes the served documents now")
            return update(control)

        self.control = change(self._store, checked)

    def _add(self, deltas: Sequence[Delta], seq: int) -> Transacted:
        cut = self.control.cut_for(seq)
        by_place = {
            Place(generation, delta.statistic, delta.key, delta.bin_end_ms): delta
            for generation in self.control.generations_for(seq)
            for delta in deltas
            if delta.bin_end_ms > self.control.served_after_ms
        }
        places = list(by_place)
        unknown = [place for place in places if place not in self._cache]
        asked = [place for place in unknown if self._guess.read_first(place.statistic)]
        found = self._store.read(asked) if asked else {}
        held = {place: self._cache[place] for place in places if place in self._cache} | found

        def add(place: Place, stored: Document | None) -> Settlement:
            wanted = added(stored, by_place[place], seq, cut)
            return KEEP if wanted is None else wanted

        settled = settle(self._store, places, held, add)
        self._guess.learn(unknown, found.keys() | (set(settled.surprises) - self._cache.keys()))
        self._remember(settled.stored)
        return Transacted(settled.written, len(asked) + len(settled.surprises))

    def _remember(self, documents: dict[Place, Document]) -> None:
        for place, document in documents.items():
            self._cache[place] = document
            self._cache.move_to_end(place)
        while len(self._cache) > self._cache_documents:
            self._cache.popitem(last=False)
