"""The control record of the serving layer: how far its documents go, what is being written, which batch is under way.

There is one, stored beside the documents, so that whoever loses the documents loses it too. It only changes by
compare-and-set, so that two writers cannot both believe in an old one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Protocol

from gridstead.serving.documents import NO_CUT

Positions = dict[str, dict[int, int]]
"""topic -> partition -> next offset."""

FORMAT: Final = 1
FORMAT_GIVEN_UP: Final = 2
"""With ``served_after_ms``: a release that does not know it has to stop, not to bring back what was given up."""
DEAD_AFTER_MS: Final = 60_000
"""A batch that has not said for so long that it lives is taken for dead."""
TAKEN_OVER: Final = "another batch has taken the place of this one, which was thought dead: run it again"


class ControlError(Exception):
    """The serving layer cannot be used by this writer; the text says why and what to do."""


class Conflict(Exception):
    """Somebody else changed the record first."""


@dataclass(frozen=True)
class Point:
    """A place between two transactions: the number of the one before it, and the positions of the log up to there."""

    seq: int
    positions: Positions


@dataclass(frozen=True)
class BatchRun:
    """A batch that is under way. It counts up to ``cut`` and writes the documents of ``generation``.

    ``first_day`` and ``last_day`` (YYYY-MM-DD, UTC, both included) are its bins; ``beat_ms`` (ms since epoch) is when
    it last said that it lives.
    """

    run: str
    cut: Point
    generation: int
    first_day: str
    last_day: str
    beat_ms: int


@dataclass(frozen=True)
class Merged:
    """The last batch that was merged: its range, up to where it counted, and when it was done (ms since epoch)."""

    run: str
    first_day: str
    last_day: str
    positions: Positions
    done_ms: int


@dataclass(frozen=True)
class Control:
    """The record. ``done`` is the last committed transaction, ``intent`` the one whose documents are being written.

    ``writer`` names the one process that may write transactions. ``generation`` is the set of indices that readers
    see; ``newest`` the highest generation ever begun. ``fingerprint`` says by which definitions (statistics, bin width)
    the documents were made. Nothing is served of bins that end at or before ``served_after_ms`` (ms since epoch): they
    were given up by age, and neither streams nor batches write them again.
    """

    writer: str
    fingerprint: str
    done: Point
    intent: Point | None = None
    generation: int = 1
    newest: int = 1
    batch: BatchRun | None = None
    merged: Merged | None = None
    served_after_ms: int = 0

    def cut_for(self, seq: int) -> int:
        """After which transaction changes of transaction ``seq`` are to be noted for a batch; NO_CUT if for none."""
        return self.batch.cut.seq if self.batch is not None and self.batch.cut.seq < seq else NO_CUT

    def generations_for(self, seq: int) -> tuple[int, ...]:
        """The generations that transaction ``seq`` writes: the served one, and the one that a rebuild fills."""
        if self.batch is None or self.batch.generation == self.generation or self.batch.cut.seq >= seq:
            return (self.generation,)
        return (self.generation, self.batch.generation)

    def next_cut(self) -> Point:
        """Where a batch that begins now must cut: after the transaction that is being written, if there is one."""
        return self.intent if self.intent is not None else self.done

    def to_json(self) -> dict[str, Any]:
        """The stored form."""
        record = asdict(self)
        if not self.served_after_ms:
            del record["served_after_ms"]
        form = FORMAT_GIVEN_UP if self.served_after_ms else FORMAT
        return {"format": form, "record": json.dumps(record, sort_keys=True)}

    @staticmethod
    def from_json(document: dict[str, Any]) -> Control:
        """Read the stored form. Raises ControlError for one of another format."""
        if document.get("format") not in (FORMAT, FORMAT_GIVEN_UP):
            raise ControlError(
                f"the serving layer has format {document.get('format')!r}, this release writes {FORMAT_GIVEN_UP}: "
                "use the release that wrote it, or delete its indices and let it be made anew from the archive"
            )
        record = json.loads(document["record"])
        record["done"] = _point(record["done"])
        record["intent"] = _point(record["intent"])
        if record["batch"] is not None:
            record["batch"] = BatchRun(**{**record["batch"], "cut": _point(record["batch"]["cut"])})
        if record["merged"] is not None:
            merged = record["merged"]
            record["merged"] = Merged(**{**merged, "positions": _positions(merged["positions"])})
        return Control(**record)


class ControlStore(Protocol):
    """Where the record is kept."""

    def read_control(self) -> tuple[Control, Any] | None:
        """The record and its version; None if there is none."""

    def write_control(self, control: Control, version: Any) -> Any:
        """Replace the record of this version (None: there must be none); returns the new version. Raises Conflict."""


def change(store: ControlStore, update: Callable[[Control], Control]) -> Control:
    """Apply a change to the record, again on the newest one for as long as others change it first.

    ``update`` may raise to give up. Raises ControlError if there is no record.
    """
    while True:
        found = store.read_control()
        if found is None:
            raise ControlError("the serving layer has no control record: start the stream, it makes one")
        control, version = found
        wanted = update(control)
        if wanted == control:
            return control
        try:
            store.write_control(wanted, version)
            return wanted
        except Conflict:
            continue


def check_definitions(control: Control, fingerprint: str) -> None:
    """Raise ControlError if what is served was computed by other definitions than these."""
    if control.fingerprint != fingerprint:
        raise ControlError(
            f"what is served was computed with {control.fingerprint}, the configuration says {fingerprint}: set it "
            "back, or delete the served indices with their control record (docs/operations/jobs.md) and restart the "
            "stream, which makes them anew from the archive"
        )


def begin_batch(store: ControlStore, run: BatchRun, now_ms: int, dead_after_ms: int = DEAD_AFTER_MS) -> Control:
    """Note that a batch begins; its cut and (for a rebuild, generation 0) its generation are chosen here.

    Raises ControlError while another batch lives, i.e. said so less than ``dead_after_ms`` ago.
    """

    def update(control: Control) -> Control:
        _refuse_beside(control.batch, run.run, now_ms, dead_after_ms)
        newest = control.newest + 1 if run.generation == 0 else control.newest
        generation = newest if run.generation == 0 else control.generation
        begun = replace(run, cut=control.next_cut(), generation=generation, beat_ms=now_ms)
        return replace(control, batch=begun, newest=newest)

    return change(store, update)


def beat(store: ControlStore, run: str, now_ms: int) -> Control:
    """Say that a batch lives. Raises ControlError if another one has taken its place."""
    return change(store, lambda control: replace(control, batch=replace(own_batch(control, run), beat_ms=now_ms)))


def end_batch(store: ControlStore, run: str, now_ms: int) -> Control:
    """Note that a batch is merged; the generation that it filled is the served one from now on."""

    def update(control: Control) -> Control:
        batch = own_batch(control, run)
        merged = Merged(batch.run, batch.first_day, batch.last_day, batch.cut.positions, now_ms)
        return replace(control, batch=None, merged=merged, generation=batch.generation)

    return change(store, update)


def abandon_batch(store: ControlStore, run: str) -> Control:
    """Forget a batch that failed; a rebuild's half-filled generation is left to the next clean-up."""
    return change(store, lambda c: replace(c, batch=None) if c.batch is not None and c.batch.run == run else c)


def give_up(store: ControlStore, served_after_ms: int, now_ms: int, dead_after_ms: int = DEAD_AFTER_MS) -> Control:
    """Serve nothing more of bins that end at or before ``served_after_ms``, nor of those given up before.

    What is stored of them is to be deleted once the transaction under way is done. Raises ControlError while a batch
    lives; one that is dead has to be begun anew.
    """

    def update(control: Control) -> Control:
        if served_after_ms <= control.served_after_ms:
            return control
        _refuse_beside(control.batch, "", now_ms, dead_after_ms)
        return replace(control, batch=None, served_after_ms=served_after_ms)

    return change(store, update)


def _refuse_beside(other: BatchRun | None, run: str, now_ms: int, dead_after_ms: int) -> None:
    """Raise ControlError if another batch than ``run`` lives, i.e. said so less than ``dead_after_ms`` ago."""
    if other is not None and other.run != run and now_ms - other.beat_ms < dead_after_ms:
        raise ControlError(
            f"a batch over {other.first_day} to {other.last_day} is under way (it said so "
            f"{max(0, now_ms - other.beat_ms) / 1000:.0f} s ago): wait for it, see `gridstead batch status`"
        )


def own_batch(control: Control, run: str) -> BatchRun:
    """The batch that is under way. Raises ControlError if it is not ``run``."""
    if control.batch is None or control.batch.run != run:
        raise ControlError(TAKEN_OVER)
    return control.batch


def _point(value: dict[str, Any] | None) -> Any:
    return None if value is None else Point(int(value["seq"]), _positions(value["positions"]))


def _positions(value: dict[str, dict[str, int]]) -> Positions:
    return {topic: {int(p): int(o) for p, o in parts.items()} for topic, parts in value.items()}
