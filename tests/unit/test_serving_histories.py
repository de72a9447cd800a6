"""The merge against a model: random histories of stream, batches, rebuilds, retention and kills at any call end exact.

The log is a list of small changes to a few keys; what is served after any history must be their sum. ``wrong`` changes
are those that the stream got wrong (beyond its horizon): they must be gone after the next batch over everything.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from gridstead.serving.control import BatchRun, Control, ControlError, Point, begin_batch, end_batch, give_up
from gridstead.serving.documents import Delta
from gridstead.serving.merge import await_cut, await_done, merge_slice
from gridstead.serving.transactions import Writer
from memory_store import MemoryStore

DAYS = 4
DAY_MS = 86_400_000
KEYS = [f"{name}|{day}" for day in range(DAYS) for name in "abc"]


class Killed(Exception):
    """The process ends here."""


def delta(key: str, count: int, amount: int) -> Delta:
    end_ms = int(key.rpartition("|")[2]) * DAY_MS + 1
    return Delta("transfers", key, end_ms, "{}", (count, amount))


def summed(entries: Iterable[tuple[str, int, int]]) -> dict[str, tuple[int, int]]:
    counts: Counter[str] = Counter()
    amounts: Counter[str] = Counter()
    for key, count, amount in entries:
        counts[key] += count
        amounts[key] += amount
    return {key: (counts[key], amounts[key]) for key in counts}


class History:
    """One random history. Two processes, stream and batch, share the store and interrupt each other at its calls."""

    def __init__(self, seed: int, errors: bool, retention: bool = False) -> None:
        self.errors = errors
        self.retention = retention
        self.draw = random.Random(seed)
        self.store = MemoryStore()
        self.store.before = self.store.after = self.disturb
        self.log: list[tuple[str, int, int]] = []
        self.wrong: dict[int, tuple[str, int, int]] = {}
        self.writer: Writer | None = None
        self.kill = 0.03
        self.nested = False
        self.runs = 0
        self.deleted_to_ms = 0  # nothing that ends by then is stored
        self.clean_from = 0  # before this position nothing wrong is served any more

    def disturb(self, call: str) -> None:
        if self.draw.random() < self.kill:
            raise Killed
        if not self.nested and self.draw.random() < 0.15:
            self.nested = True
            try:
                streams = self.acting == "batch" and (self.retention or self.draw.random() >= 0.3)  # else another takes its place
                keeps = self.retention and self.draw.random() < 0.2
                self.attempt(self.retain if keeps else self.stream if streams else self.batch)
            finally:
                self.nested = False

    def attempt(self, act: object) -> None:
        """Let a process do something; if it is killed or gives up, that is the end of it."""
        before = getattr(self, "acting", "")
        self.acting = "stream" if act == self.stream else "batch"
        try:
            act()  # type: ignore[operator]
        except (Killed, ControlError):
            if act == self.stream:
                self.writer = None
        finally:
            self.acting = before

    def grow(self) -> None:
        for _ in range(self.draw.randint(1, 6)):
            key = self.draw.choice(KEYS)
            present = summed(self.log).get(key, (0, 0))
            if present[0] > 0 and self.draw.random() < 0.4:  # a retraction, of everything at times
                gone = present if self.draw.random() < 0.5 else (1, min(1, present[1]))
                self.log.append((key, -gone[0], -gone[1]))
            else:
                self.log.append((key, 1, self.draw.randint(0, 9)))
            if self.errors and self.draw.random() < 0.1:
                self.wrong[len(self.log) - 1] = (self.draw.choice(KEYS), 1, 5)

    def seen_by_stream(self, low: int, high: int) -> dict[str, tuple[int, int]]:
        extra = [self.wrong[at] for at in range(low, high) if at in self.wrong]
        return summed([*self.log[low:high], *extra])

    def stream(self) -> None:
        """One transaction; a new writer where there is none."""
        if self.writer is None:
            self.writer = Writer(self.store, f"w{self.draw.random()}", "model", cache_documents=4)
        done = self.writer.control.done.positions.get("t", {}).get(0, 0)
        pending = self.writer.pending
        upto = pending["t"][0] if pending else self.draw.randint(done, len(self.log))
        if upto > done:
            deltas = [delta(key, *values) for key, values in self.seen_by_stream(done, upto).items()]
            self.writer.transact({"t": {0: upto}}, deltas)

    def batch(self) -> None:
        """A whole batch over a range of days, or a rebuild of everything into a new generation."""
        if self.store.control is None:
            return
        self.runs += 1
        fresh = self.draw.random() < 0.4
        first = self.served_from() if fresh else self.draw.randint(0, DAYS - 1)
        last = DAYS - 1 if fresh else self.draw.randint(first, DAYS - 1)
        wanted = BatchRun(f"r{self.runs}", Point(0, {}), 0 if fresh else 1, str(first), str(last), 0)
        control = begin_batch(self.store, wanted, self.runs * 1000, dead_after_ms=0)
        run = control.batch
        assert run is not None
        if first < self.served_from():
            raise ControlError("given up")
        cut = run.cut.positions.get("t", {}).get(0, 0)
        truth = {key: values for key, values in summed(self.log[:cut]).items() if any(values)}
        await_cut(self.store, run, 0.0)
        for day in range(first, last + 1):
            base = [delta(key, *values) for key, values in truth.items() if key.endswith(f"|{day}")]
            low, high = day * DAY_MS, (day + 1) * DAY_MS
            known = any(True for _ in self.store.scan(run.generation, "transfers", low, high))
            merge_slice(self.store, run, "transfers", low, high, base, known)
        end_batch(self.store, run.run, self.runs * 1000)
        if first <= self.served_from() and last == DAYS - 1:
            self.clean_from = max(self.clean_from, cut)

    def retain(self) -> None:
        """A day more is given up, as gridstead.serving.retention does it, or what is left of those given up.

        Batches live while they act: what one that was thought dead still writes, only the next retention deletes.
        """
        if self.store.control is None:
            return
        day = min(self.served_from() + self.draw.randint(0, 1), DAYS - 1)
        control = give_up(self.store, day * DAY_MS, self.runs * 1000, dead_after_ms=1 if self.nested and self.kill else 0)
        if control.intent is not None:
            await_done(self.store, control.intent.seq, 0.0)
        for place in [place for place in self.store.documents if place.bin_end_ms <= control.served_after_ms]:
            del self.store.documents[place]
        self.deleted_to_ms = control.served_after_ms

    def served_from(self) -> int:
        return self.store.control[0].served_after_ms // DAY_MS if self.store.control is not None else 0

    def kept(self) -> dict[str, tuple[int, int]]:
        """What is to be served."""
        first = self.served_from()
        return {k: v for k, v in summed(self.log).items() if any(v) and int(k.rpartition("|")[2]) >= first}

    def served(self) -> dict[str, tuple[int, ...]]:
        assert self.store.control is not None
        generation = self.store.control[0].generation
        found = {p.key: d.values for p, d in self.store.documents.items() if p.generation == generation}
        return {key: values for key, values in found.items() if any(values)}

    def quiet(self) -> None:
        """Let the stream finish what is begun and take all of the log, undisturbed."""
        kill, self.kill, self.nested = self.kill, 0.0, True
        while self.writer is None or self.writer.control.done.positions.get("t", {}).get(0, 0) < len(self.log):
            self.attempt(self.stream)
        self.kill, self.nested = kill, False


def steps(history: History) -> Iterator[None]:
    for _ in range(30):
        actions = ["grow", "grow", "stream", "stream", "batch", "kill stream", *(["retain"] if history.retention else [])]
        action = history.draw.choice(actions)
        if action == "grow":
            history.grow()
        elif action == "kill stream":
            history.writer = None
        else:
            history.attempt(getattr(history, action))
        yield


@pytest.mark.parametrize("seed", range(400))
def test_any_history_ends_exact(seed: int) -> None:
    history = History(seed, errors=False)
    for _ in steps(history):
        pass
    history.quiet()
    assert history.served() == history.kept()


@pytest.mark.parametrize("seed", range(200))
def test_what_was_given_up_does_not_come_back_and_all_else_is_exact(seed: int) -> None:
    history = History(seed, errors=False, retention=True)
    for _ in steps(history):
        pass
    history.quiet()
    history.kill, history.nested = 0.0, True
    assert not [place for place in history.store.documents if place.bin_end_ms <= history.deleted_to_ms]
    while history.served_from() < 2:
        history.attempt(history.retain)
    history.attempt(history.retain)  # does what a killed one has left
    history.grow()
    history.quiet()
    assert history.served() == history.kept()


@pytest.mark.parametrize("seed", range(100))
def test_a_batch_over_everything_mends_what_the_stream_got_wrong(seed: int) -> None:
    history = History(seed, errors=True)
    for _ in steps(history):
        pass
    history.quiet()
    wrong = dict(history.wrong)
    history.kill, history.nested = 0.0, True
    while history.clean_from < len(history.log):
        history.attempt(history.batch)
    assert history.served() == history.kept(), wrong


def test_the_record_survives_its_stored_form() -> None:
    cut = Point(7, {"t": {0: 5, 3: 2}})
    run = BatchRun("r", cut, 2, "2025-01-01", "2025-01-02", 3)
    control = Control("w", "f", cut, Point(8, {"t": {0: 9}}), 1, 2, run, None)
    assert Control.from_json(control.to_json()) == control
    assert control.to_json()["format"] == 1 and "served_after_ms" not in control.to_json()["record"], "older releases read it"
    given_up = replace(control, served_after_ms=5)
    assert Control.from_json(given_up.to_json()) == given_up
    assert given_up.to_json()["format"] == 2, "older releases stop"
    with pytest.raises(ControlError, match="format 99"):
        Control.from_json({**control.to_json(), "format": 99})


def test_a_second_batch_is_refused_while_the_first_lives() -> None:
    store = MemoryStore()
    Writer(store, "w", "f")
    first = BatchRun("a", Point(0, {}), 1, "2025-01-01", "2025-01-01", 0)
    begin_batch(store, first, 1000, dead_after_ms=60_000)
    with pytest.raises(ControlError, match="under way"):
        begin_batch(store, BatchRun("b", Point(0, {}), 1, "2025-01-01", "2025-01-01", 0), 2000, dead_after_ms=60_000)
    taken = begin_batch(store, BatchRun("b", Point(0, {}), 1, "2025-01-01", "2025-01-01", 0), 99_000, dead_after_ms=60_000)
    assert taken.batch is not None and taken.batch.run == "b"
    with pytest.raises(ControlError, match="taken the place"):
        end_batch(store, "a", 100_000)


def test_nothing_is_given_up_beside_a_batch_that_lives_and_never_less_than_before() -> None:
    store = MemoryStore()
    Writer(store, "w", "f")
    begin_batch(store, BatchRun("a", Point(0, {}), 1, "2025-01-01", "2025-01-01", 0), 1000)
    with pytest.raises(ControlError, match="under way"):
        give_up(store, 5, 2000)
    assert give_up(store, 5, 99_000).batch is None
    assert give_up(store, 3, 99_000).served_after_ms == 5


def test_a_writer_that_was_replaced_writes_no_more() -> None:
    store = MemoryStore()
    old = Writer(store, "old", "f")
    Writer(store, "new", "f")
    with pytest.raises(ControlError, match="another stream"):
        old.transact({"t": {0: 1}}, [delta("a|0", 1, 1)])
    assert not store.documents


def test_other_definitions_are_refused() -> None:
    store = MemoryStore()
    Writer(store, "a", "bins of 600 s")
    with pytest.raises(ControlError, match="bins of 300 s"):
        Writer(store, "b", "bins of 300 s")


def test_a_begun_range_has_to_be_finished_before_another() -> None:
    store = MemoryStore()
    writer = Writer(store, "a", "f")

    def die(call: str) -> None:
        if call == "write":
            raise Killed

    store.before = die
    with pytest.raises(Killed):
        writer.transact({"t": {0: 5}}, [delta("a|0", 1, 1)])
    store.before = lambda call: None
    after = Writer(store, "b", "f")
    assert after.pending == {"t": {0: 5}}
    with pytest.raises(ControlError, match="has to be finished"):
        after.transact({"t": {0: 9}}, [delta("a|0", 2, 2)])
    after.transact({"t": {0: 5}}, [delta("a|0", 1, 1)])
    assert after.pending is None and [d.values for d in store.documents.values()] == [(1, 1)]


def test_documents_that_mostly_are_new_are_written_without_being_read() -> None:
    store = MemoryStore()
    calls: list[str] = []
    store.before = calls.append
    writer = Writer(store, "stream", "same", cache_documents=0)

    def step(number: int, names: str) -> Counter[str]:
        calls.clear()
        writer.transact({"t": {0: number}}, [delta(f"{name}|0", 1, 1) for name in names])
        return Counter(calls)

    assert step(1, "abcd") == {"read control": 2, "write control": 2, "read": 1, "write": 4}
    assert step(2, "efgh")["read"] == 0
    assert step(3, "abcd") == {"read control": 2, "write control": 2, "read": 1, "write": 8}  # wrong: found out, and learnt
    assert step(4, "abcd") == {"read control": 2, "write control": 2, "read": 1, "write": 4}
    assert {place.key: document.values for place, document in store.documents.items()} == {
        **{f"{name}|0": (3, 3) for name in "abcd"},
        **{f"{name}|0": (1, 1) for name in "efgh"},
    }
