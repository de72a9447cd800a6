"""Histories on the running appliance, each of which must end with what DuckDB computes over the distinct events.

Every statistic, every key, every integer. Each history has days of its own, and a server of its own in its records, so
that they do not meet.
"""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import subprocess
import threading
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import Appliance, Statistics, assert_served, statistics_of_records, wait_until
from gridstead.simulate import AccessSimulation
from gridstead.simulate_transfers import FtsSimulation, RucioSimulation, TransferSimulation

pytestmark = [pytest.mark.appliance, pytest.mark.fault]

DAY_MS = 86_400_000
FIRST_DAY_MS = 1_041_379_200_000  # 2003-01-01
GIVEN_UP = -120  # the history whose months are given up


class History:
    """Records of one history with their file, what is expected of them, and the range of their bins."""

    def __init__(self, directory: Path, case: int, events: int = 1500, future: float = 0.0) -> None:
        self.start_ms = FIRST_DAY_MS + 30 * case * DAY_MS
        self.records = list(self._records(case, events, future))
        self.path = directory / f"history-{case}.jsonl"
        self.path.write_text("".join(json.dumps(record) + "\n" for record in self.records))
        self.range = (self.start_ms - 9 * DAY_MS, self.start_ms + 9 * DAY_MS - 1)

    def _records(self, case: int, events: int, future: float) -> Iterator[dict[str, Any]]:
        """Simulated records with duplicates, lateness and lost opens; some are updated later with larger counters."""
        draw = random.Random(case)
        waiting: list[dict[str, Any]] = []
        simulation = AccessSimulation(case, events, self.start_ms, 86_400, duplicates=0.1, late=0.05, future=future)
        for record in simulation:
            inner = record.get("data", record)
            inner["server_host"] = f"history-{case}.{inner['server_host']}"
            inner["unique_id"] = f"{case}-{inner['unique_id']}"
            yield record
            if draw.random() < 0.1:
                waiting.append(updated(record, draw))
            if waiting and draw.random() < 0.1:
                again = waiting.pop(draw.randrange(len(waiting)))
                if draw.random() < 0.3:
                    waiting.append(updated(again, draw))
                yield again
        yield from waiting

    @property
    def days(self) -> tuple[str, str]:
        """First and last day of the range, as commands take them."""
        first, last = (time.strftime("%Y-%m-%d", time.gmtime(ms / 1000)) for ms in self.range)
        return first, last

    def expected(self, appliance: Appliance) -> Statistics:
        """What is expected in the range (events with clocks a year ahead have most of their bins outside)."""
        low, high = self.range
        computed = statistics_of_records(appliance, self.records)
        return {
            name: {key: values for key, values in rows.items() if low < int(key.rpartition("|")[2]) <= high}
            for name, rows in computed.items()
        }

    def assert_served(self, appliance: Appliance, timeout_s: float = 240) -> None:
        assert_served(appliance, self.expected(appliance), *self.range, timeout_s=timeout_s)


def updated(record: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The same access under the same id, reported again later: it lasted longer and moved more."""
    again = copy.deepcopy(record)
    inner = again.get("data", again)
    longer_s = draw.randint(1, 20_000)
    inner["end_time"] += longer_s * (1000 if inner["end_time"] > 1e11 else 1)
    for name in ("read_bytes_at_close", "read_bytes", "read_single_bytes"):
        inner[name] = int(inner.get(name) or 0) + draw.randint(1, 10**9)
    return again


def replay(appliance: Appliance, path: Path, rate: int) -> subprocess.Popen[str]:
    command = [str(appliance.root / "opt/gridstead/bin/gridstead"), "replay", str(path), "--rate", str(rate)]
    return subprocess.Popen(command, env=appliance.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def test_streamed_alone(appliance: Appliance, tmp_path: Path) -> None:
    """Duplicates, new ids, cumulative updates, late events, clocks far in the future."""
    history = History(tmp_path, 0, future=0.01)
    appliance.gridstead("replay", str(history.path), "--wait")
    history.assert_served(appliance)
    counters = appliance.json("stream", "status")["queries"]["statistics"]
    assert counters["duplicates"] > 0 and counters["superseded"] > 0


@pytest.mark.parametrize(("kind", "day"), [(FtsSimulation, -400), (RucioSimulation, -300)])
def test_transfers_of_fts_and_traces_of_rucio(
    appliance: Appliance, tmp_path: Path, kind: type[TransferSimulation], day: int
) -> None:
    """The other producers of JSON, each on days of its own, from the broker to the documents."""
    start_ms = FIRST_DAY_MS + day * DAY_MS
    records = list(kind(5, 500, start_ms, 86_400))
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    appliance.gridstead("replay", str(path), "--as", "events", "--wait")
    expected = statistics_of_records(appliance, records)
    assert len(records) > 500 and all(expected[name] for name in ("transfers", "access", "users"))
    assert_served(appliance, expected, start_ms - 9 * DAY_MS, start_ms + 9 * DAY_MS - 1)


def test_a_batch_beside_the_stream(appliance: Appliance, tmp_path: Path) -> None:
    """Events before, during and after a batch over their days; a batch over what was served exactly changes nothing."""
    history = History(tmp_path, 1)
    sending = replay(appliance, history.path, 100)
    try:
        first, last = history.days
        summary = appliance.json("batch", "run", "--from", first, "--to", last, timeout=600)
        finished(sending)
    finally:
        sending.kill()
    assert summary["merged"]["deleted"] == 0
    history.assert_served(appliance)
    counters = appliance.json("stream", "status")["queries"]["statistics"]
    assert counters["retracted"] > 0, "versions came in steps of their own"
    appliance.gridstead("replay", str(history.path), "--wait")  # all of it once more
    again = appliance.json("batch", "run", "--from", first, "--to", last, timeout=600)
    assert again["merged"]["computed"] > 0 and (again["merged"]["written"], again["merged"]["deleted"]) == (0, 0)
    history.assert_served(appliance)
    assert appliance.json("status")["batch"]["merged"]["age_s"] < 600


def test_a_stream_killed_again_and_again(appliance: Appliance, tmp_path: Path) -> None:
    """kill -9 at random moments: between the write of documents and the commit, too."""
    history = History(tmp_path, 2, events=4000)
    draw = random.Random(2)
    sending = replay(appliance, history.path, 200)
    try:
        while sending.poll() is None:
            wait_until(lambda: stream_runs(appliance), "the stream serves", 120)
            time.sleep(draw.uniform(0.5, 4))  # not a wait for anything: the moment of the kill is what is drawn
            appliance.kill("stream")
        finished(sending)
    finally:
        sending.kill()
    history.assert_served(appliance)


def test_without_checkpoint_and_identity_index(appliance: Appliance, tmp_path: Path) -> None:
    """Both are lost while events wait in the log; what was sent before comes again."""
    history = History(tmp_path, 3)
    half = tmp_path / "half.jsonl"
    half.write_text("".join(history.path.read_text().splitlines(keepends=True)[: len(history.records) // 2]))
    appliance.gridstead("replay", str(half), "--wait")
    appliance.supervisorctl("stop", "stream")
    finished(replay(appliance, history.path, 2000))
    appliance.hdfs("-rm", "-r", "-skipTrash", "/gridstead/checkpoints/archive")
    for file in (appliance.root / "var/lib/stream").glob("identity*"):
        file.unlink()
    appliance.supervisorctl("start", "stream")
    history.assert_served(appliance)


def test_an_emptied_serving_layer_comes_back_by_itself(appliance: Appliance, tmp_path: Path) -> None:
    history = History(tmp_path, 4)
    appliance.gridstead("replay", str(history.path), "--wait")
    history.assert_served(appliance)
    indices = ",".join(name for name in appliance.elasticsearch("gridstead-*/_settings"))
    appliance.elasticsearch(indices, method="DELETE")
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps(history.records[0]) + "\n")
    appliance.gridstead("replay", str(more))  # the next transaction finds nothing to build on
    history.assert_served(appliance, timeout_s=300)


def test_a_killed_batch_and_the_next(appliance: Appliance, tmp_path: Path) -> None:
    history = History(tmp_path, 5)
    appliance.gridstead("replay", str(history.path), "--wait")
    first, last = history.days
    command = [str(appliance.root / "opt/gridstead/bin/gridstead"), "batch", "run", "--from", first, "--to", last]
    with subprocess.Popen(command, env=appliance.environment, start_new_session=True, stderr=subprocess.DEVNULL) as doomed:
        wait_until(lambda: appliance.json("batch", "status")["running"], "the batch has begun", 120)
        os.killpg(doomed.pid, signal.SIGKILL)
    sending = replay(appliance, history.path, 2000)
    finished(sending)
    wait_until(lambda: dead(appliance), "the batch is thought dead", 120)
    appliance.json("batch", "run", "--from", first, "--to", last, timeout=600)
    history.assert_served(appliance)
    assert appliance.hdfs("-ls", "/gridstead/batch") == "", "what the killed one had computed is gone too"


def test_days_that_retention_has_given_up_stay_served_until_they_are_to_be_forgotten(appliance: Appliance, tmp_path: Path) -> None:
    history = History(tmp_path, -100)  # years before the others
    appliance.gridstead("replay", str(history.path), "--wait")
    history.assert_served(appliance)
    first, last = history.days
    kept = time.strftime("%Y-%m-%d", time.gmtime(history.range[1] / 1000 + 86_400))
    mark = f"/gridstead/retention/events-before-{kept}"
    appliance.hdfs("-mkdir", "-p", "/gridstead/retention")
    appliance.hdfs("-touchz", mark)
    try:
        for words in (["batch", "run", "--from", first, "--to", last], ["rebuild"]):
            command = [str(appliance.root / "opt/gridstead/bin/gridstead"), *words]
            done = subprocess.run(command, env=appliance.environment, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 1 and f"days before {kept}, which retention has given up" in done.stderr, done.stderr
        history.assert_served(appliance)
        appliance.json("rebuild", "--forget", timeout=900)
        assert appliance.documents(*history.range) == {}
    finally:
        appliance.hdfs("-rm", "-skipTrash", mark)
    appliance.json("batch", "run", "--from", first, "--to", last, timeout=600)
    history.assert_served(appliance)


def test_months_that_are_given_up_are_served_no_more_whatever_comes_late(appliance: Appliance, tmp_path: Path) -> None:
    gone, kept, late = (History(tmp_path, case) for case in (GIVEN_UP, 8, GIVEN_UP + 1))
    for history in (gone, kept):
        appliance.gridstead("replay", str(history.path), "--wait")
        history.assert_served(appliance)
    until = time.gmtime(late.range[1] / 1000 + 31 * 86_400)  # a day of the first month that is kept
    today = time.gmtime()
    months = (today.tm_year - until.tm_year) * 12 + today.tm_mon - until.tm_mon
    file = tmp_path / "gridstead.toml"
    file.write_text(appliance.config.read_text().replace("[elasticsearch]", f"[elasticsearch]\nretention_months = {months}"))
    file.chmod(0o600)
    done = json.loads(appliance.gridstead("--config", str(file), "--json", "merge", "retain"))
    begin = f"{until.tm_year}-{until.tm_mon:02d}-01"
    assert done["served_from"] == appliance.json("merge", "status")["served_from"] == begin
    assert done["deleted"] and appliance.documents(*gone.range) == {}
    appliance.gridstead("replay", str(late.path), "--wait")
    assert appliance.documents(late.range[0], late.range[1]) == {}
    first, last = gone.days
    command = [str(appliance.root / "opt/gridstead/bin/gridstead"), "batch", "run", "--from", first, "--to", last]
    refused = subprocess.run(command, env=appliance.environment, capture_output=True, text=True, timeout=300, check=False)
    assert refused.returncode == 1 and f"nothing is served of days before {begin}" in refused.stderr, refused.stderr
    kept.assert_served(appliance)


def test_a_rebuild_has_no_gap_for_readers(appliance: Appliance, tmp_path: Path) -> None:
    """While all days are made anew and events still come, a reader always finds what was served before."""
    history, later = History(tmp_path, 6), History(tmp_path, 7)
    appliance.gridstead("replay", str(history.path), "--wait")
    history.assert_served(appliance)
    generation = appliance.json("merge", "status")["generation"]
    served = len(appliance.documents(*history.range))
    seen: list[int] = []
    failures: list[Exception] = []
    over = threading.Event()

    def read() -> None:
        while not over.wait(0.2):
            try:
                seen.append(len(appliance.documents(*history.range)))
            except urllib.error.HTTPError as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    sending = replay(appliance, later.path, 60)
    try:
        appliance.json("rebuild", timeout=900)
        finished(sending)
    finally:
        sending.kill()
        over.set()
        reader.join()
    assert not failures and len(seen) > 20 and set(seen) == {served}
    assert appliance.json("merge", "status")["generation"] == generation + 1
    history.assert_served(appliance)
    later.assert_served(appliance)
    assert appliance.documents(*History(tmp_path, GIVEN_UP).range) == {}, "nor does a rebuild bring back what was given up"


def stream_runs(appliance: Appliance) -> bool:
    try:
        return appliance.metrics(9943)["queries"]["statistics"]["state"] == "running"
    except OSError:
        return False


def dead(appliance: Appliance) -> bool:
    running = appliance.json("batch", "status")["running"]
    return running is None or running["seen_s_ago"] > 61
