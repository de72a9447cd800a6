"""The identity index beside two references: the definition over the whole log, and the horizon row by row."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridstead.identity import IdentityIndex, IdentityIndexError, Positions, store
from gridstead.identity.increment import ROWS
from gridstead.identity.store import CHUNKS_PER_HORIZON
from oracle import distinct

FOREVER = 10**12
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Many small databases are made: not on a disk, where there is another place."""


class Row(NamedTuple):
    """A row of the log; the names are the index's columns."""

    event_id: str
    producer_id: str | None
    end_ms: int
    bytes: int
    topic: str
    partition: int
    offset: int
    timestamp_ms: int

    @property
    def payload(self) -> str:
        return json.dumps(self)

    @property
    def order(self) -> tuple[int, int, str]:
        return self.end_ms, self.bytes, self.event_id


def table(rows: Iterable[Row]) -> pa.Table:
    return pa.Table.from_pylist([{**row._asdict(), "payload": row.payload} for row in rows], ROWS)


def by_definition(log: Iterable[Row]) -> Counter[str]:
    """What counts of a whole log, without a horizon."""
    rows = sorted(log, key=lambda row: (row.topic, row.partition, row.offset))
    events = ({**row._asdict(), "read_bytes": row.bytes, "write_bytes": 0, "payload": row.payload} for row in rows)
    return Counter(event["payload"] for event in distinct(events))


class Reference:
    """The definition with a horizon, row by row."""

    def __init__(self, horizon_ms: int) -> None:
        self.horizon_ms = horizon_ms
        self.counted: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.records: dict[str, Row] = {}
        self.heads: dict[tuple[str, str], Row] = {}
        self.superseded: set[Row] = set()

    def take(self, rows: Iterable[Row]) -> None:
        for row in sorted(rows, key=lambda row: (row.topic, row.partition, row.offset)):
            record = self.records.get(row.event_id)
            if record is not None and self._knows(row, record):
                self.counts["duplicates"] += 1
            else:
                record = self.records[row.event_id] = row
                self.counted[row.payload] += 1
            if row.producer_id is not None:
                self._carry(row, record, (row.event_id[:16], row.producer_id))

    def _knows(self, row: Row, record: Row) -> bool:
        return row.timestamp_ms - record.timestamp_ms <= self.horizon_ms

    def _carry(self, row: Row, record: Row, carrier: tuple[str, str]) -> None:
        head = self.heads.get(carrier)
        if head is not None and self._knows(row, head):
            if head.order > record.order:
                self._supersede(record)
                return
            if head != record:
                self._supersede(head)
        self.heads[carrier] = record

    def _supersede(self, record: Row) -> None:
        if record not in self.superseded:
            self.superseded.add(record)
            self.counted[record.payload] -= 1


class Follower:
    """Keeps the sum of what an index says, as the served statistics would."""

    def __init__(self, path: Path, horizon_ms: int) -> None:
        self.path, self.horizon_ms = path, horizon_ms
        self.index = IdentityIndex(path, horizon_ms)
        self.counted: Counter[str] = Counter()
        self.served: Counter[str] = Counter()
        self.upto: Positions = {}

    def apply(self, rows: Sequence[Row]) -> None:
        changes = self.index.apply(table(rows))
        excluded = set(changes.excluded)
        assert len(excluded) == len(changes.excluded) == changes.duplicates + changes.superseded
        assert changes.rows == len(rows) and changes.retracted == len(changes.retractions)
        self.counted.update(row.payload for row in rows if (row.topic, row.partition, row.offset) not in excluded)
        self.counted.subtract(changes.retractions)
        assert min(self.counted.values(), default=0) >= 0, "something was retracted that did not count"
        self._reach(rows)

    def learn(self, rows: Sequence[Row], counted: Counter[str]) -> None:
        self.index.learn(table(rows))
        self.counted = counted.copy()
        self._reach(rows)

    def _reach(self, rows: Sequence[Row]) -> None:
        for row in rows:
            offsets = self.upto.setdefault(row.topic, {})
            offsets[row.partition] = max(offsets.get(row.partition, 0), row.offset + 1)

    def commit(self) -> None:
        self.index.commit(self.upto)
        self.served = self.counted.copy()

    def crash(self) -> None:
        self.index.close()
        self.index = IdentityIndex(self.path, self.horizon_ms)
        assert self.index.started_empty == ""
        self._back()

    def rollback(self) -> None:
        self.index.rollback()
        self._back()

    def _back(self) -> None:
        self.counted = self.served.copy()
        self.upto = self.index.upto


ACCESSES = ("0123456789abcdef", "0123456789abcdee", "ffffffffffffffff", "8000000000000000", "0" * 16)
"""The first two share the bits that the keys in memory hold."""


@st.composite
def logs(draw: st.DrawFn, horizon_ms: int) -> list[Row]:
    """Rows in the order of their log times; an access stays in its partition."""
    step = st.sampled_from([0, 1, horizon_ms // 7, horizon_ms // 2, horizon_ms + 1] if horizon_ms < FOREVER else [0, 5])
    accesses = draw(st.sampled_from([ACCESSES, ACCESSES[:2], ACCESSES[:1]]))
    now, offsets, log = 1000, [0, 0], []
    for _ in range(draw(st.integers(1, 45))):
        access = draw(st.sampled_from(accesses))
        end, size = draw(st.integers(1, 4)), draw(st.integers(0, 1))
        version = f"{(end * 7919 + size * 104729) % 65536:016x}"
        clamped = draw(st.integers(0, 9)) == 0
        partition = ACCESSES.index(access) % 2
        producer = draw(st.sampled_from([None, "p", "p", "q", "ü"]))
        row = (access + version, producer, end + 2 * clamped, size, "t", partition, offsets[partition])
        log.append(Row(*row, now))
        offsets[partition] += draw(st.sampled_from([1, 1, 3]))
        now += draw(step)
    return log


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[Row], list[tuple[list[Row], str]]]:
    """A horizon, a log, and increments of it, each with what happens then; a partition may lag by a chunk."""
    horizon_ms = draw(st.sampled_from([1, 20, 100, FOREVER]))
    log = draw(logs(horizon_ms))
    width = -(-horizon_ms // CHUNKS_PER_HORIZON)
    increments = []
    taken = {0: 0, 1: 0}
    rows_of = {number: [row for row in log if row.partition == number] for number in taken}
    marks = sorted(draw(st.lists(st.integers(0, len(log) - 1), max_size=8)))
    for mark in [*(log[index].timestamp_ms for index in marks), FOREVER]:
        lags = {number: draw(st.sampled_from([0, 0, width])) if mark < FOREVER else 0 for number in taken}
        rows = []
        for number, begin in taken.items():
            end = sum(row.timestamp_ms <= mark - lags[number] for row in rows_of[number])
            rows += rows_of[number][begin : max(begin, end)]
            taken[number] = max(begin, end)
        then = draw(st.sampled_from(["commit", "commit", "commit", "go on", "rollback", "crash", "learn"]))
        increments.append((draw(st.permutations(rows)), then))
    return horizon_ms, log, increments


@settings(max_examples=150, deadline=None)
@given(histories())
def test_any_history_gives_what_the_reference_counts(history: tuple[int, list[Row], list[tuple[list[Row], str]]]) -> None:
    horizon_ms, log, increments = history
    reference = Reference(horizon_ms)
    with tempfile.TemporaryDirectory(dir=FAST) as directory:
        follower = Follower(Path(directory) / "identity.db", horizon_ms)
        open_rows: list[list[Row]] = []
        for rows, then in increments:
            reference.take(rows)
            open_rows.append(rows)
            if then == "learn":
                follower.learn(rows, reference.counted)
                continue
            follower.apply(rows)
            if then in ("rollback", "crash"):
                getattr(follower, then)()
                for again in open_rows:
                    follower.apply(again)
            if then != "go on":
                follower.commit()
                open_rows = []
            assert +follower.counted == +reference.counted
        follower.index.close()
    if horizon_ms == FOREVER:
        assert +reference.counted == by_definition(log)


@pytest.mark.parametrize("seed", range(4))
def test_dense_histories_of_few_accesses(seed: int) -> None:
    """What needs several rows of one access in one order, with kept and forgotten ones between."""
    draw = random.Random(seed)
    for _ in range(40):
        horizon_ms = draw.choice([1, 20, 100, FOREVER])
        steps = [0, 1, horizon_ms // 7, horizon_ms // 3, horizon_ms] if horizon_ms < FOREVER else [1]
        events = [access + f"{draw.getrandbits(64):016x}" for access in ACCESSES[: draw.randint(1, 2)] for _ in range(4)]
        reference = Reference(horizon_ms)
        with tempfile.TemporaryDirectory(dir=FAST) as directory:
            follower = Follower(Path(directory) / "identity.db", horizon_ms)
            now, offset = 1000, 0
            for _ in range(30):
                rows = []
                for _ in range(draw.choice([1, 1, 1, 2, 5])):
                    end = draw.randint(1, 3)
                    rows.append(Row(draw.choice(events), draw.choice([None, *"pqr"]), end, 0, "t", 0, offset, now))
                    offset += 1
                    now += draw.choice(steps)
                reference.take(rows)
                follower.apply(rows)
                follower.commit()
                if draw.random() < 0.1:
                    follower.crash()
                assert +follower.counted == +reference.counted
            follower.index.close()


def made_log(seed: int, count: int, again: float, step_ms: int = 1, accesses: int = 10**9) -> list[Row]:
    """A long log of four partitions: new accesses, and a share of duplicates and later versions of earlier rows."""
    draw = random.Random(seed)
    log: list[Row] = []
    offsets = [0] * 4
    for number in range(count):
        past = draw.choice(log) if log and draw.random() < again else None
        access = f"{draw.randrange(accesses) * 0x9E3779B97F4A7C15 % 2**64:016x}" if past is None else past.event_id[:16]
        event = access + f"{draw.getrandbits(64):016x}"
        producer = draw.choice([None, f"{draw.getrandbits(40):010x}"])
        end, size = number, 7
        if past is not None:
            producer = draw.choice([past.producer_id, producer])
            if draw.random() < 0.5:
                event, end = past.event_id, past.end_ms
        partition = int(access[-1], 16) % 4
        log.append(Row(event, producer, end, size, "t", partition, offsets[partition], 10**6 + number * step_ms))
        offsets[partition] += 1
    return log


@pytest.mark.parametrize("horizon_ms", [3000, FOREVER])
def test_large_increments_and_small_ones(tmp_path: Path, horizon_ms: int) -> None:
    log = made_log(1, 40_000, 0.3)
    reference, follower = Reference(horizon_ms), Follower(tmp_path / "identity.db", horizon_ms)
    begin = 0
    for count in (18_000, 1, 40, 700, 20_000, 1259):
        rows = log[begin : begin + count]
        begin += count
        reference.take(rows)
        follower.apply(rows)
        follower.commit()
        assert +follower.counted == +reference.counted
        follower.crash()
    assert begin == len(log) and reference.counts["duplicates"] > 1000
    if horizon_ms == FOREVER:
        assert +reference.counted == by_definition(log)


A, B = "a" * 16, "b" * 16


def row(offset: int, at: int, event: str = A + B, producer: str | None = "p", end: int = 1, partition: int = 0) -> Row:
    return Row(event, producer, end, 0, "t", partition, offset, at)


def test_an_entry_is_known_up_to_the_horizon_and_no_longer(tmp_path: Path) -> None:
    with IdentityIndex(tmp_path / "i", 100) as index:
        assert index.apply(table([row(0, 1000)])).excluded == []
        assert index.apply(table([row(1, 1100)])).excluded == [("t", 0, 1)]
        later = A + "c" * 16
        assert index.apply(table([row(2, 1100, later, end=2)])).retractions == [row(0, 1000).payload]
        assert index.apply(table([row(3, 1101)])).duplicates == 0, "its record is of 1000"
        assert index.apply(table([row(4, 1201, later, end=2)])).duplicates == 0, "its record is of 1100"
        assert index.apply(table([row(5, 1202, A + "d" * 16, end=1)])).superseded == 1, "the head is of 1201"


def apply_after_the_older_chunk_went(index: IdentityIndex, first: list[Row], last: Row) -> list[int]:
    """Rows of 1024 and 1025 are in two chunks of a quarter of the horizon, 100; of these the older is dropped before
    the last row. Which offsets of that do not count.
    """
    for number, item in enumerate(first):
        index.apply(table([item._replace(offset=number)]))
    index.apply(table([row(0, 1150, "e" * 32, partition=1)]))
    return [position.offset for position in index.apply(table([last._replace(offset=9)])).excluded]


def test_an_older_word_of_a_head_does_not_hold_again(tmp_path: Path) -> None:
    alone, head = row(0, 1025, end=5), row(0, 1024, A + "c" * 16, end=9)
    with IdentityIndex(tmp_path / "i", 100) as index:
        last = row(0, 1125, A + "d" * 16, end=3)
        assert apply_after_the_older_chunk_went(index, [alone, head], last) == [], "it does not know the head of 1024"


def test_a_head_is_noted_as_long_as_its_record_is_known(tmp_path: Path) -> None:
    record, carried = row(0, 1025, producer="q", end=5), row(0, 1024, producer="p", end=5)
    with IdentityIndex(tmp_path / "i", 100) as index:
        last = row(0, 1125, A + "d" * 16, producer="p", end=3)
        assert apply_after_the_older_chunk_went(index, [record, carried], last) == [9], "it knows the head of 1025"


def test_accesses_that_share_what_the_keys_hold_are_told_apart(tmp_path: Path) -> None:
    others = [row(10 + number, 1000, f"{number:016x}{B}") for number in range(1, 41)]
    two = row(0, 1000, ACCESSES[0] + B), row(90, 1000, ACCESSES[1] + B)
    with IdentityIndex(tmp_path / "i", 100) as index:
        assert index.apply(table([two[0], *others, two[1]])).excluded == []
        again = [item._replace(offset=item.offset + 100) for item in two]
        assert index.apply(table([*again, row(200, 1000, ACCESSES[0] + A)])).duplicates == 2


def test_an_access_within_another_identity_is_not_taken_for_one(tmp_path: Path) -> None:
    within = row(0, 1000, "1" * 8 + ACCESSES[0] + "1" * 8)
    with IdentityIndex(tmp_path / "i", 100) as index:
        index.apply(table([within, row(1, 1000, ACCESSES[0] + B)]))
        assert index.apply(table([row(2, 1000, ACCESSES[0] + B)])).duplicates == 1


def test_what_may_have_been_forgotten_is_counted(tmp_path: Path) -> None:
    with IdentityIndex(tmp_path / "i", 100) as index:
        rows = [row(0, 1000, end=900), row(1, 1000, "c" * 32, end=899), row(2, 1001, "c" * 32, end=899)]
        assert index.apply(table(rows)).beyond_horizon == 1


def test_one_partition_with_a_clock_ahead_evicts_nothing_of_the_others(tmp_path: Path) -> None:
    with IdentityIndex(tmp_path / "i", 100) as index:
        index.apply(table([row(0, 1000), row(0, 10**9, "c" * 32, partition=1)]))
        index.apply(table([row(1, 1001, "d" * 32), row(1, 10**9, "e" * 32, partition=1)]))
        assert index.apply(table([row(2, 1100)])).duplicates == 1


def test_a_record_without_a_payload_is_never_superseded(tmp_path: Path) -> None:
    bare = table([row(0, 1000, producer=None)]).set_column(8, "payload", pa.nulls(1, pa.large_string()))
    with IdentityIndex(tmp_path / "i", 100) as index:
        index.apply(bare)
        changes = index.apply(table([row(1, 1000), row(2, 1000, A + "c" * 16, end=2)]))
        assert (changes.excluded, changes.retractions) == ([("t", 0, 1)], [])


def test_record_batches_and_nothing_at_all(tmp_path: Path) -> None:
    rows = table([row(0, 1000), row(1, 1001)])
    with IdentityIndex(tmp_path / "i", 100) as index:
        assert index.apply([]).rows == index.apply(ROWS.empty_table()).rows == 0
        assert index.apply(rows.to_batches(max_chunksize=1)).excluded == [("t", 0, 1)]


def replaced(column: str, value: object) -> pa.Table:
    rows = table([row(5, 1000), row(6, 1000, B + A)])
    at = rows.column_names.index(column)
    return rows.set_column(at, column, pa.array([rows[column][0].as_py(), value], ROWS.field(at).type))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (table([row(5, 1000), row(5, 1000)]), "row t/0/5 is given twice"),
        (table([row(3, 1000)]), "row t/0/3 was given before: the next of its partition is 4"),
        (replaced("event_id", "A" * 32), "not 32 hex digits"),
        (replaced("event_id", "a" * 31), "not 32 hex digits"),
        (replaced("event_id", "a" * 31 + " "), "not 32 hex digits"),
        (replaced("event_id", None), "1 rows have no event_id"),
        (replaced("timestamp_ms", None), "1 rows have no timestamp_ms"),
        (replaced("payload", None), "a row with a producer_id has no payload"),
        (table([]).drop_columns(["end_ms"]), "columns are missing: end_ms"),
    ],
)
def test_rows_that_cannot_be_are_refused_and_change_nothing(tmp_path: Path, rows: pa.Table, reason: str) -> None:
    with IdentityIndex(tmp_path / "i", 100) as index:
        index.apply(table([row(3, 1000, "c" * 32)]))
        index.commit({"t": {0: 4}})
        with pytest.raises(ValueError, match=reason):
            index.apply(rows)
        assert index.upto == {"t": {0: 4}}
        assert index.apply(table([row(4, 1000), row(5, 1000, "c" * 32)])).excluded == [("t", 0, 5)]


def test_the_file_stays_flat(tmp_path: Path) -> None:
    horizon_ms = 20_000
    log = made_log(2, 6 * horizon_ms, 0.1)
    sizes = []
    for begin in range(0, len(log), horizon_ms // 4):
        with IdentityIndex(tmp_path / "i", horizon_ms) as index:  # closing it empties the write-ahead log into the file
            for part in range(begin, begin + horizon_ms // 4, 1000):
                index.learn(table(log[part : part + 1000]))
            index.commit({})
            assert index.records < 2 * horizon_ms
        sizes.append((tmp_path / "i").stat().st_size)
    settled = max(sizes[:8])
    assert settled > 1 << 20 and max(sizes) <= 1.1 * settled, sizes


def test_an_access_with_thousands_of_versions_costs_a_row_no_more(tmp_path: Path) -> None:
    count, quarters = 500, []
    with IdentityIndex(tmp_path / "i", FOREVER) as index:
        for quarter in range(4):
            used = time.process_time()
            for part in range(8):
                first = (quarter * 8 + part) * count
                numbers = range(first, first + count)
                ends = [number if part % 2 else first + count - number for number in numbers]  # rising and falling
                rows = [row(n, 1000 + n, f"{A}{n:016x}", "pq"[n % 2], end) for n, end in zip(numbers, ends, strict=True)]
                index.apply(table(rows))
                index.commit({})
            quarters.append(time.process_time() - used)
        assert index.records == 1
    assert quarters[3] < 3 * quarters[0] + 0.5, quarters


def sql(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(statement)


def another(path: Path) -> None:
    path.unlink()
    sql(path, "CREATE TABLE x (y)")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b"no database at all" * 1000), "no usable database"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "no usable database"),
        (lambda path: sql(path, "DROP TABLE block_40"), "no usable database"),
        (lambda path: sql(path, "UPDATE meta SET value = '0' WHERE name = 'format'"), "made for format = 0, not 1"),
        (lambda path: sql(path, "DELETE FROM meta WHERE name = 'upto'"), "no file of this program"),
        (another, "no usable database"),
    ],
)
def test_a_file_that_cannot_be_used_is_begun_anew(tmp_path: Path, spoil: Any, reason: str) -> None:
    path = tmp_path / "i"
    with IdentityIndex(path, 100) as index:
        assert index.started_empty == ""
        index.apply(table([row(0, 1000)]))
        index.commit({"t": {0: 1}})
    spoil(path)
    with IdentityIndex(path, 100) as index:
        assert reason in index.started_empty
        assert index.upto == {}
        assert index.apply(table([row(0, 1000)])).excluded == []
        index.commit({"t": {0: 1}})
    with IdentityIndex(path, 100) as index:
        assert (index.started_empty, index.upto) == ("", {"t": {0: 1}})
    with IdentityIndex(path, 101) as index:
        assert index.started_empty == "it was made for horizon_ms = 100, not 101"
        assert index.upto == {}


def test_damage_found_later_deletes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "i"
    with IdentityIndex(path, FOREVER) as index:
        index.apply(table([row(0, 1000)]))
        index.commit({"t": {0: 1}})
    sql(path, "UPDATE block_0 SET payload = substr(payload, 1, 30)")
    with IdentityIndex(path, FOREVER) as index:
        with pytest.raises(IdentityIndexError, match="the file is deleted; open it and learn the log anew"):
            index.apply(table([row(1, 1000, A + "c" * 16, end=2)]))
    assert not path.exists()


def test_clear_forgets_everything(tmp_path: Path) -> None:
    with IdentityIndex(tmp_path / "i", 100) as index:
        index.apply(table([row(0, 1000)]))
        index.commit({"t": {0: 1}})
        index.clear()
        assert index.upto == {}
        assert index.apply(table([row(0, 1000)])).excluded == []


def test_a_file_in_use_and_a_place_that_is_none_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_TIMEOUT_S", 0)
    with IdentityIndex(tmp_path / "i", 100) as index:
        index.apply(table([row(0, 1000)]))
        with pytest.raises(IdentityIndexError, match="another process has it open"):
            IdentityIndex(tmp_path / "i", 100)
        index.commit({"t": {0: 1}})
        assert index.upto == {"t": {0: 1}}
    with pytest.raises(IdentityIndexError, match="look at its directory"):
        IdentityIndex(tmp_path / "missing" / "i", 100)
    with pytest.raises(ValueError, match="at least 1 ms"):
        IdentityIndex(tmp_path / "j", 0)


VICTIM = """
import sys, time
import test_identity_index as here
log = here.made_log(3, 6000, 0.3)
index = here.IdentityIndex(sys.argv[1], 2000)
index.apply(here.table(log[:2000]))
index.commit({"t": {0: 1}})
index.apply(here.table(log[2000:4000]))
index.commit({"t": {0: 2}})
index.apply(here.table(log[4000:]))
print("applied", flush=True)
time.sleep(600)
"""


def test_a_kill_between_apply_and_commit_takes_back_the_apply(tmp_path: Path) -> None:
    log = made_log(3, 6000, 0.3)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(tmp_path / "i")], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    ) as victim:
        assert victim.stdout is not None and victim.stdout.readline() == b"applied\n"
        victim.send_signal(signal.SIGKILL)
    with IdentityIndex(tmp_path / "i", 2000) as index, IdentityIndex(tmp_path / "whole", 2000) as whole:
        assert (index.started_empty, index.upto) == ("", {"t": {0: 2}})
        for begin in (0, 2000, 4000):
            expected = whole.apply(table(log[begin : begin + 2000]))
        assert index.apply(table(log[4000:])) == expected
