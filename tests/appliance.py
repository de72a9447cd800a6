"""The running embedded appliance as tests see it: commands, processes, documents."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gridstead import sources, xrootd
from gridstead.config import load, pseudonym_keys
from gridstead.pseudonyms import Pseudonyms
from gridstead.sources.xrootd import MemoryOpenTable, XrootdJoiner
from gridstead.statistic import STATISTICS
from oracle import distinct, oracle_statistics

ROOT = Path(__file__).resolve().parents[1]
CAPTURE = ROOT.parent / "shared" / "data" / "xrootd" / "shoveler_use_case.jsonl"
Statistics = Mapping[str, Mapping[str, tuple[int, ...]]]
"""By the statistic's name: the values by key."""
SERVICES = (
    "hdfs-namenode hdfs-datanode yarn-resourcemanager yarn-nodemanager mapreduce-jobhistory spark-history activemq kafka "
    "elasticsearch collector bridge stream scheduler"
).split()


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 120) -> Any:
    """Poll a condition until it is true; fail with what was awaited."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.5)


class Stall(threading.Thread):
    """Looks again and again at a count, and keeps the longest time for which it did not grow.

    What keeps the count from being read, as OSError, ValueError or the end of a command, is an absence like others.
    """

    def __init__(self, count: Callable[[], int], over: threading.Event) -> None:
        """Look, once started, until ``over``."""
        super().__init__(daemon=True)
        self._count, self._over = count, over
        self.seen = 0
        self.longest_s = 0.0

    def run(self) -> None:
        """Look."""
        grown = time.monotonic()
        while not self._over.wait(1):
            try:
                count = self._count()
            except (OSError, ValueError, subprocess.SubprocessError):
                count = self.seen
            now = time.monotonic()
            if count > self.seen:
                self.seen, grown = count, now
            self.longest_s = max(self.longest_s, now - grown)


@dataclasses.dataclass
class Appliance:
    """One embedded appliance: its directory, the shift of its ports, and what is said to it."""

    root: Path
    offset: int

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which make and ansible-playbook know this appliance."""
        ours = {"GRIDSTEAD_ROOT": str(self.root), "GRIDSTEAD_PORT_OFFSET": str(self.offset), "GRIDSTEAD_CONFIG": str(self.config)}
        return {**os.environ, **ours}

    @property
    def config(self) -> Path:
        """The appliance's gridstead.toml."""
        return self.root / "etc" / "gridstead" / "gridstead.toml"

    def port(self, base: int) -> int:
        """A port of this appliance."""
        return base + self.offset

    def playbook(self, name: str, *arguments: str) -> str:
        """Run a playbook; return what it printed."""
        return run(["ansible-playbook", f"playbooks/{name}.yml", *arguments], env=self.environment, timeout=900)

    def gridstead(self, *arguments: str, timeout: float = 420) -> str:
        """Run the command line; return what it printed on standard output."""
        return run([str(self.root / "opt/gridstead/bin/gridstead"), *arguments], env=self.environment, timeout=timeout)

    def json(self, *arguments: str, timeout: float = 420) -> Any:
        """Run the command line with --json; return the document."""
        return json.loads(self.gridstead("--json", *arguments, timeout=timeout))

    def supervisorctl(self, *arguments: str) -> str:
        """Run supervisorctl; return what it printed."""
        command = [self.root / "opt/supervisor/bin/supervisorctl", "-c", self.root / "etc/supervisor/supervisord.conf", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def pid(self, service: str) -> int:
        """The process that the supervisor started for a service."""
        return int(self.supervisorctl("pid", service).strip())

    def pids(self) -> dict[str, int]:
        """Processes of all services."""
        return {service: self.pid(service) for service in SERVICES}

    def kill(self, service: str) -> int:
        """kill -9 the server itself (Elasticsearch's is a child of its launcher); return its process id."""
        pid = self.pid(service)
        assert pid > 0, f"{service} does not run"
        if service == "elasticsearch":
            pid = max(child for child in descendants(pid) if b"org.elasticsearch.bootstrap.Elasticsearch" in command_line(child))
        os.kill(pid, signal.SIGKILL)
        return pid

    def get(self, port: int, path: str) -> Any:
        """GET JSON from a server of the appliance."""
        return json.loads(self.get_bytes(port, path))

    def get_bytes(self, port: int, path: str) -> bytes:
        """GET from a server of the appliance."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port(port)}{path}", timeout=30) as answer:
            return answer.read()

    def metrics(self, port: int) -> Any:
        """The metrics of the collector (9941), the bridge (9942) or the stream (9943)."""
        return self.get(port, "/metrics.json")

    def documents(self, from_ms: int, to_ms: int, statistic: str = "transfers") -> dict[str, dict[str, Any]]:
        """Served documents of a statistic whose bin ends in (from_ms, to_ms], by id, as readers see them."""
        after: list[Any] = []
        found: dict[str, dict[str, Any]] = {}
        while True:
            query = {
                "size": 5000,
                "query": {"range": {"bin_end_ms": {"gt": from_ms, "lte": to_ms}}},
                "sort": ["bin_end_ms", *STATISTICS[statistic].dimensions],
                **({"search_after": after} if after else {}),
            }
            options = "ignore_unavailable=true&allow_no_indices=true&allow_partial_search_results=false"
            hits = self.elasticsearch(f"gridstead-{statistic}/_search?{options}", query)["hits"]["hits"]
            found |= {hit["_id"]: hit["_source"] for hit in hits}
            if len(hits) < 5000:
                return found
            after = hits[-1]["sort"]

    def elasticsearch(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """A request to Elasticsearch; returns the JSON answered."""
        data = json.dumps(body).encode() if body is not None else None
        url = f"http://127.0.0.1:{self.port(9200)}/{path}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def refresh(self) -> None:
        """Make what was indexed visible to the next search."""
        self.elasticsearch("gridstead-*/_refresh?ignore_unavailable=true", method="POST")

    def hdfs(self, *arguments: str) -> str:
        """Run ``hadoop fs``; return what it printed."""
        return run([str(self.root / "opt/hadoop/bin/hadoop"), "fs", *arguments], env=self.environment, timeout=120)

    def healthy(self) -> bool:
        """Whether every service runs and is healthy."""
        return all(service["healthy"] for service in self.json("status")["services"])


def command_line(pid: int) -> bytes:
    """The command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def descendants(pid: int) -> list[int]:
    """A process and everything below it."""
    found = [pid]
    for parent in found:
        try:
            for children in Path(f"/proc/{parent}/task").glob("*/children"):  # a child belongs to the thread that made it
                found += [int(child) for child in children.read_text().split()]
        except OSError:
            continue
    return found


def run(command: list[str], env: dict[str, str] | None = None, timeout: float = 600, cwd: Path = ROOT) -> str:
    """Run a command; on failure fail with everything it printed."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def statistics_of_packets(appliance: Appliance, packets: Iterable[tuple[bytes, str]]) -> Statistics:
    """What DuckDB computes from these (packet, sender's address), decoded and joined in the order of their arrival."""
    joiner = XrootdJoiner(MemoryOpenTable())
    joined = [event for data, host in packets for event in joiner.join(xrootd.decode_packet(data), host, int(time.time() * 1000)).events]
    return _computed(appliance, joined)


def statistics_of_records(appliance: Appliance, records: Iterable[Mapping[str, Any]]) -> Statistics:
    """What DuckDB computes from these producers' records, normalised in the order of their arrival."""
    return _computed(appliance, [sources.normalise(record, received_ms=int(time.time() * 1000)) for record in records])


def _computed(appliance: Appliance, events: Iterable[dict[str, Any]]) -> Statistics:
    """The statistics of these events with the appliance's own pseudonyms."""
    pseudonyms = Pseudonyms(pseudonym_keys(load(appliance.config)))
    return oracle_statistics(distinct([pseudonyms.protect(event) for event in events]))


def bin_ends(expected: Statistics) -> Sequence[int]:
    """The ends of all bins of the expected statistics, in ms."""
    return sorted({int(key.rpartition("|")[2]) for rows in expected.values() for key in rows})


class Served(Protocol):
    """Where served documents are read: an appliance, or a release on Kubernetes."""

    def refresh(self) -> None:
        """Make visible what was written."""

    def documents(self, from_ms: int, to_ms: int, statistic: str = "transfers") -> dict[str, dict[str, Any]]:
        """Served documents of a statistic whose bin ends in (from_ms, to_ms], by id."""


def assert_served(
    appliance: Served,
    expected: Statistics,
    from_ms: int,
    to_ms: int,
    only: Callable[[Mapping[str, Any]], bool] = lambda document: True,
    timeout_s: float = 240,
) -> None:
    """Wait until the served documents of a range are exactly the expected ones: same keys, same integers, every statistic.

    ``only`` chooses documents where the range holds others; statistics that are not in ``expected`` are not looked at.
    """
    deadline = time.monotonic() + timeout_s
    trouble = ""
    while time.monotonic() < deadline:
        try:
            appliance.refresh()
            different = [text for name in expected for text in _different(appliance, name, expected[name], from_ms, to_ms, only)]
            if not different:
                return
            trouble = "\n".join(different)
        except OSError as error:
            trouble = f"{error} {error.read().decode()[:500] if isinstance(error, urllib.error.HTTPError) else ''}"
        time.sleep(1)
    raise AssertionError(f"not as expected after {timeout_s:.0f} s\n{trouble}")


def _agrees(name: str, key: str, document: Mapping[str, Any]) -> bool:
    """Whether the other fields of a document say what its key (unless that is a hash) and its values say."""
    parts = [document[dimension] for dimension in STATISTICS[name].dimensions]
    texts = [str(part).lower() if isinstance(part, bool) else part.replace("%", "%25").replace("|", "%7C") for part in parts]
    if not key.startswith("sha256-") and key != "|".join([*texts, str(document["bin_end_ms"])]):
        return False
    if document["bin_end_ms"] % document["bin_ms"] or document["update_time"] <= 0:
        return False
    known = document.get("file_size_known", 0)
    return name != "access" or document["average_file_size"] == (document["file_size_sum"] / known if known else None)


def _different(
    appliance: Served,
    name: str,
    wanted: Mapping[str, tuple[int, ...]],
    from_ms: int,
    to_ms: int,
    only: Callable[[Mapping[str, Any]], bool],
) -> list[str]:
    found = appliance.documents(from_ms, to_ms, name)
    values = STATISTICS[name].values
    chosen = {key: document for key, document in found.items() if only(document)}
    served = {key: tuple(int(document[value]) for value in values) for key, document in chosen.items()}
    crooked = [f"{name}: {key} has the fields {document}" for key, document in chosen.items() if not _agrees(name, key, document)][:5]
    if served == wanted:
        return crooked
    missing = sorted(wanted.keys() - served.keys())[:5]
    surplus = sorted(served.keys() - wanted.keys())[:5]
    wrong = [(key, wanted[key], served[key]) for key in sorted(wanted.keys() & served.keys()) if wanted[key] != served[key]][:5]
    return [
        f"{name}: served {len(served)} documents, expected {len(wanted)}; missing {missing}; surplus {surplus}; "
        f"(key, expected, served) of {values}: {wrong}"
    ]
