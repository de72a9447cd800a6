"""What the identity index costs an event, with millions of identities present, and whether its file stays flat.

``python tests/bench/bench_identity.py --output DIR``. The events are made up, their payloads the simulation's; of the
rows a share are duplicates (half of them under a new producer id) and later versions of earlier events, half of them of
events just seen and half of any within the horizon. CPU and time are those of apply and commit alone. Exit code 1 above
``--goal`` us CPU an event.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pyarrow as pa
import record

from gridstead.events import encode_event
from gridstead.identity import IdentityIndex
from gridstead.identity.increment import ROWS
from gridstead.simulate import simulate
from gridstead.sources import normalise

START_MS = 1_700_000_000_000
PAYLOADS = 5_000
SAMPLE = 200_000
RECENT = 50_000


class Log:
    """A log of one partition, one row a ms, cut into increments of any size."""

    def __init__(self, seed: int, duplicates: float, updates: float) -> None:
        self.rows = 0
        self._random = random.Random(seed)
        self._again = duplicates, duplicates + updates
        records = simulate(seed, PAYLOADS, START_MS, 3600, duplicates=0)
        self._payloads = [encode_event(normalise(item, START_MS)).decode() for item in records]
        self._old: list[tuple[str, str, int]] = []
        self._recent: list[tuple[str, str, int]] = []

    def increment(self, count: int) -> pa.Table:
        """The next rows."""
        draw = self._random
        events, producers, ends = [], [], []
        fresh = draw.randbytes(28 * count).hex()
        for number in range(count):
            event, producer = fresh[56 * number : 56 * number + 32], fresh[56 * number + 32 : 56 * number + 56]
            end = self.rows + number
            chance = draw.random()
            if chance < self._again[1] and self._old:
                past = self._recent if draw.random() < 0.5 else self._old
                at = draw.randrange(len(past))
                before, carrier, ended = past[at]
                if chance < self._again[0]:
                    event, end, producer = before, ended, carrier if draw.random() < 0.5 else producer
                else:
                    event, producer = before[:16] + event[16:], carrier
                    past[at] = event, producer, end
            events.append(event)
            producers.append(producer)
            ends.append(end)
        self._remember(list(zip(events, producers, ends, strict=True)))
        begin, self.rows = self.rows, self.rows + count
        times = [START_MS + row for row in range(begin, begin + count)]
        payloads = [self._payloads[row % len(self._payloads)] for row in range(begin, begin + count)]
        columns = (events, producers, ends, [1000] * count, ["events"] * count, [0] * count, range(begin, begin + count))
        arrays = [pa.array(column, field.type) for column, field in zip((*columns, times, payloads), ROWS, strict=True)]
        return pa.Table.from_arrays(arrays, schema=ROWS)

    def _remember(self, rows: list[tuple[str, str, int]]) -> None:
        self._recent = (self._recent + rows)[-RECENT:]
        for row in self._random.sample(rows, min(len(rows), 1 + len(rows) // 20)):
            if len(self._old) < SAMPLE:
                self._old.append(row)
            else:
                self._old[self._random.randrange(SAMPLE)] = row


def measure(name: str, index: IdentityIndex, log: Log, increments: int, rows: int, path: Path) -> dict[str, Any]:
    """Apply and commit increments; what it cost."""
    counts = dict.fromkeys(("duplicates", "superseded", "retracted"), 0)
    cpu_s, times = 0.0, []
    for _ in range(increments):
        increment = log.increment(rows)
        began, used = time.monotonic(), time.process_time()
        changes = index.apply(increment)
        index.commit({"events": {0: log.rows}})
        cpu_s += time.process_time() - used
        times.append(time.monotonic() - began)
        for key in counts:
            counts[key] += getattr(changes, key)
    events = increments * rows
    slowest = round(sorted(times)[int(0.95 * len(times))] * 1000, 1)
    more = {"present": index.records, "p95_ms": slowest, "file_mib": size(path) // record.MIB}
    shares = {f"{key}_share": round(value / events, 4) for key, value in counts.items()}
    return record.result(name, events, sum(times), cpu_s, record.usage(os.getpid()).rss_bytes, **more, **shares)


def size(path: Path) -> int:
    """Bytes of the database and its write-ahead log."""
    return sum(part.stat().st_size for part in path.parent.iterdir())


def run(options: argparse.Namespace, path: Path) -> Iterator[dict[str, Any]]:
    """The phases."""
    log = Log(options.seed, options.duplicates, options.updates)
    with IdentityIndex(path, options.present) as index:
        filled = options.present // options.rows
        yield measure("filling", index, log, filled, options.rows, path)
        yield measure(f"increments of {options.rows}", index, log, options.increments, options.rows, path)
        yield measure("increments of 500", index, log, options.increments, 500, path)
        for turn in range(1, options.turns + 1):
            yield measure(f"horizon {turn} later", index, log, filled, options.rows, path)
    began, used = time.monotonic(), time.process_time()
    with IdentityIndex(path, options.present) as index:
        rss = record.usage(os.getpid()).rss_bytes
        yield record.result("opening", index.records, time.monotonic() - began, time.process_time() - used, rss)


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--present", type=int, default=5_000_000, help="rows within the horizon (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=20_000, help="rows of an increment (default: %(default)s)")
    parser.add_argument("--increments", type=int, default=50, help="increments measured (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=0, help="horizons to go on for, to see the file's size")
    parser.add_argument("--duplicates", type=float, default=0.05, help="share of the rows (default: %(default)s)")
    parser.add_argument("--updates", type=float, default=0.05, help="share of the rows (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--goal", type=float, default=8.0, help="most us CPU an event (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the dated JSON file goes")
    options = parser.parse_args()
    described = record.machine()
    results = []
    with tempfile.TemporaryDirectory(dir=options.output) as directory:
        for row in run(options, Path(directory) / "identity.db"):
            results.append(row)
            print(
                f"{row['name']:24} {row['events_per_s']:>8} events/s {row['cpu_us_per_event']:>6} us CPU/event"
                f" {row['rss_mib']:>5} MiB resident {row.get('file_mib', 0):>6} MiB file",
                flush=True,
            )
    parameters = {name: getattr(options, name) for name in ("present", "rows", "increments", "duplicates", "updates", "goal")}
    if options.output:
        print(record.write(options.output, "identity", described, parameters, results))
    if results[1]["cpu_us_per_event"] > options.goal:
        print(f"FAILED: more than {options.goal} us CPU an event", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
