"""The writer of batch results: every document of a range becomes what the batch says plus what was streamed since.

May run beside the stream, in another process: each document is changed on the condition that it is as it was read,
else it is read and computed again. May be killed and repeated: the result is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from gridstead.serving.control import TAKEN_OVER, BatchRun, Control, ControlError, ControlStore, own_batch
from gridstead.serving.documents import Delta, Document, based
from gridstead.serving.store import KEEP, DocumentStore, Place, Settlement, settle


@dataclass
class Merged:
    """What became of the documents of the slices merged."""

    computed: int = 0
    written: int = 0
    deleted: int = 0

    def __iadd__(self, other: Merged) -> Merged:
        self.computed += other.computed
        self.written += other.written
        self.deleted += other.deleted
        return self


def await_cut(store: DocumentStore, run: BatchRun, deadline_s: float, pause_s: float = 0.5) -> int:
    """Wait until the transaction after which a batch cuts is done; returns the number of the last one done.

    Raises ControlError after the deadline: the stream that had begun it does not run; and if another batch has taken
    the place of this one.
    """
    return await_done(store, run.cut.seq, deadline_s, pause_s, lambda control: own_batch(control, run.run))


def await_done(
    store: ControlStore,
    seq: int,
    deadline_s: float,
    pause_s: float = 0.5,
    check: Callable[[Control], object] = lambda control: None,
) -> int:
    """Wait until a transaction is done; returns the number of the last one done. ``check`` may raise to give up.

    Raises ControlError after the deadline.
    """
    until = time.monotonic() + deadline_s
    while True:
        found = store.read_control()
        if found is None:
            raise ControlError("the control record of the serving layer is gone: run this again")
        check(found[0])
        if found[0].done.seq >= seq:
            return found[0].done.seq
        if time.monotonic() > until:
            raise ControlError(
                f"transaction {seq} of the stream is begun and not finished: see `gridstead doctor`, start the stream, "
                "run this again"
            )
        time.sleep(pause_s)


def merge_slice(
    store: DocumentStore,
    run: BatchRun,
    statistic: str,
    low_ms: int,
    high_ms: int,
    base: Iterable[Delta],
    known: bool = True,
) -> Merged:
    """Merge all documents of one statistic whose bins begin in [low, high); ``base`` is all that the batch has there.

    Call :func:`await_cut` first. ``known`` is false where nothing was stored in the range after that: what the stream
    has put there since is met when it is written, and what only the stream has stays as it is. Only documents that
    change are written; those that are in neither are deleted.

    Raises ControlError if another batch has taken the place of this one: then changes are no longer noted as streamed
    since its cut, and its values would erase them.
    """
    generation = run.generation
    held: Mapping[Place, Document] = dict(store.scan(generation, statistic, low_ms, high_ms)) if known else {}
    wanted = {Place(generation, statistic, delta.key, delta.bin_end_ms): delta for delta in base}
    done_seq = await_cut(store, run, 0.0)
    deleted = 0

    def change(place: Place, stored: Document | None) -> Settlement:
        nonlocal deleted
        if stored is not None and stored.seq > run.cut.seq and stored.cut != run.cut.seq:
            raise ControlError(TAKEN_OVER)
        document = based(stored, wanted.get(place), run.cut.seq)
        if document is None or document == stored:
            return KEEP
        if document.empty and document.seq <= done_seq:  # else a transaction under way has to find its number there
            deleted += 1
            return None
        return document

    places = list(wanted | {place: None for place in held})
    written = settle(store, places, held, change).written
    return Merged(len(wanted), written - deleted, deleted)
