"""A cluster on the hosts of a test lab as tests see it, through the console of its gateway."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent / "lab"))
import open_files
from appliance import ROOT, STATISTICS, Appliance, Stall, Statistics, assert_served, run, wait_until
from gridstead import sources
from gridstead.pseudonyms import Pseudonyms
from gridstead.simulate import AccessSimulation
from hosts import Hosts
from oracle import distinct, oracle_statistics

GRIDSTEAD = "/opt/gridstead/gridstead/bin/gridstead"
HADOOP = "/opt/gridstead/hadoop/bin/hadoop"
PYTHON_GET = "python3 -c 'import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=20).read().decode())'"
DAY_MS = 86_400_000
FIRST_DAY_MS, LAST_DAY_MS = 1_262_304_000_000, 1_577_836_800_000
"""Simulated events are of the years 2010 to 2019; what else is served is of today."""

SMALL: dict[str, Any] = yaml.safe_load((ROOT / "molecule/cluster/group_vars/all.yml").read_text())
"""What makes six hosts fit into 12 GiB."""

OTHER_KAFKA = "4.3.0"
"""Another version than the bundle's."""


def pretend_open_files(hosts: Hosts, names: Sequence[str], directory: Path) -> None:
    """Give Elasticsearch on these hosts the limit of open files that it insists on, in its own eyes; nothing where they have it."""
    if open_files.LIMIT >= open_files.NEEDED:
        return
    library = open_files.library(directory)
    unit = "/etc/systemd/system/gridstead-elasticsearch.service.d"
    script = (
        f"cat > /usr/local/lib/nofile.so.new && mv /usr/local/lib/nofile.so.new /usr/local/lib/nofile.so && mkdir -p {unit} && "
        f"printf '[Service]\\nEnvironment=LD_PRELOAD=/usr/local/lib/nofile.so\\n' > {unit}/lab.conf"
    )
    for name in names:
        command = hosts.command("exec", name, "--", "sh", "-c", script)
        subprocess.run(command, input=library.read_bytes(), check=True, timeout=60)


def bundle_with_kafka(version: str, directory: Path) -> Path:
    """A bundle that has nothing but Kafka in this version, made as a site that changes artifacts/kafka/pom.xml makes it."""
    (directory / "tools").mkdir()
    tool = shutil.copy(ROOT / "tools" / "bundle.py", directory / "tools")
    pom = Path(shutil.copytree(ROOT / "artifacts" / "kafka", directory / "artifacts" / "kafka")) / "pom.xml"
    pom.write_text(re.sub(r"<version>4\.[\d.]+</version>", f"<version>{version}</version>", pom.read_text()))
    for verb in ("lock", "build"):
        run([sys.executable, str(tool), "--directory", str(directory / "bundle"), verb, "kafka"])
    return directory / "bundle"


@dataclass(frozen=True)
class Simulated:
    """Records in a file of a gateway, and the range of the bins of their statistics."""

    path: str
    records: Callable[[], Iterable[dict[str, Any]]]
    pseudonyms: Pseudonyms
    from_ms: int
    to_ms: int

    def expected(self, sent: int | None = None) -> Statistics:
        """The statistics of the first so many records, or of all."""
        now = int(time.time() * 1000)
        came = islice(self.records(), sent)
        return oracle_statistics(distinct(self.pseudonyms.protect(sources.normalise(record, received_ms=now)) for record in came))


class HostedCluster(Appliance):
    """A cluster whose gateway is a host of a lab. Elasticsearch is asked from there, whichever node answers."""

    def __init__(self, hosts: Hosts, *gateways: str) -> None:
        super().__init__(Path("/"), 0)
        self.hosts = hosts
        self.gateways = gateways
        self.gateway = gateways[0]  # whose console is used
        self._moved = {gateway: [0, 0] for gateway in gateways}  # by its earlier processes, by the present one

    def elasticsearch(self, path: str, body: Any = None, method: str | None = None) -> Any:
        script = (
            "import json, sys, urllib.request as u\n"
            "path, body, method = json.load(sys.stdin)\n"
            "for host in json.load(open('/etc/gridstead/clients/elasticsearch.json'))['hosts']:\n"
            "    data = None if body is None else json.dumps(body).encode()\n"
            "    request = u.Request(f'{host}/{path}', data, {'Content-Type': 'application/json'}, method=method)\n"
            "    try:\n"
            "        print(u.urlopen(request, timeout=20).read().decode())\n"
            "        break\n"
            "    except OSError as error:\n"
            "        print(host, error, file=sys.stderr)\n"
        )
        command = self.hosts.command("exec", self.gateway, "--", "python3", "-c", script)
        asked = json.dumps([path, body, method])
        done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120, check=False)
        if not done.stdout:
            raise OSError(f"no node of Elasticsearch answers: {done.stderr}")
        return json.loads(done.stdout)

    def on(self, host: str, script: str, timeout: float = 300) -> str:
        """Run a shell script at the console of a host; return what it printed."""
        return self.hosts.on(host, script, timeout=timeout)

    def moved(self) -> int:
        """How many messages the gateways' bridges are known to have moved to Kafka."""
        there = self.hosts.status()
        for gateway, moved in self._moved.items():
            script = f"{PYTHON_GET} http://{there[gateway]['address']}:9942/metrics.json"
            with suppress(ValueError, subprocess.TimeoutExpired):
                count = json.loads(self.hosts.attempt("exec", gateway, "--", "sh", "-c", script).stdout)["moved"]
                moved[:] = [moved[0] + (moved[1] if count < moved[1] else 0), count]
        return sum(map(sum, self._moved.values()))

    def replay(self, path: str, rate: int, timeout_s: int = 600) -> subprocess.Popen[str]:
        """Start to replay a file of the gateway."""
        words = ["replay", path, "--rate", str(rate), "--timeout", str(timeout_s)]
        command = self.hosts.command("exec", self.gateway, "--", GRIDSTEAD, *words)
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finished(self, from_ms: int, to_ms: int) -> int:
        """Sum of a range's served transfers that are finished; 0 where none is served yet."""
        query = {"query": {"range": {"bin_end_ms": {"gt": from_ms, "lte": to_ms}}}, "aggs": {"all": {"sum": {"field": "finished"}}}}
        page = self.elasticsearch("gridstead-transfers/_search?size=0&ignore_unavailable=true&allow_no_indices=true", query)
        return int(page.get("aggregations", {}).get("all", {}).get("value", 0))

    @contextmanager
    def traffic(self, directory: Path, events: int, rate: int = 1000) -> Iterator[None]:
        """Replay events at ``rate`` a second as long as the block takes; then the statistics must be exactly those of what was sent.

        ``events`` are enough for the block. Each is sent once, beside the simulation's own duplicates. Prints for how long nothing
        reached Kafka, and for how long no further event was served.
        """
        simulated = self.simulated(directory, events)
        before, sending_over, all_over = self.moved(), threading.Event(), threading.Event()
        stalls = {
            "reached Kafka": Stall(self.moved, sending_over),
            "was served": Stall(lambda: self.finished(simulated.from_ms, simulated.to_ms), all_over),
        }
        with self.replay(simulated.path, rate) as replay:
            try:
                wait_until(lambda: self.moved() >= before + rate, "the replay is under way", 120)
                for stall in stalls.values():
                    stall.start()
                yield
                assert replay.poll() is None, f"ended before its time: {replay.communicate()[0]}"
                self.on(self.gateway, "pkill -f '[g]ridstead.* replay'")
                said, _ = replay.communicate(timeout=120)
                sending_over.set()
                waited = re.search(r"nothing was taken for ([\d.]+) s", said)
                print(f"\nthe producer waited for {waited[1] if waited else 'less than 1'} s at the most")
                sent = int(re.search(r"^Sent ([\d,]+) messages.*interrupted", said, re.MULTILINE)[1].replace(",", ""))
                ended = time.monotonic()
                expected = simulated.expected(sent)
                column = STATISTICS["transfers"].values.index("finished")
                finished = sum(values[column] for values in expected["transfers"].values())
                wait_until(lambda: self.finished(simulated.from_ms, simulated.to_ms) >= finished, "as many are served", 600)
                print(f"\n{sent} events were sent; the last was served {time.monotonic() - ended:.0f} s after it was sent")
            finally:
                replay.kill()
                sending_over.set()
                all_over.set()
        for what, stall in stalls.items():
            stall.join()
            print(f"nothing {what} for {stall.longest_s:.0f} s at the most")
        assert_served(self, expected, simulated.from_ms, simulated.to_ms, timeout_s=300)

    def live_datanodes(self) -> int:
        """How many DataNodes the NameNode has heard of lately."""
        report = self.on(self.gateway, f"{HADOOP} dfsadmin -report 2>/dev/null | grep ^Live || :")
        return int("".join(re.findall(r"\((\d+)\)", report)) or 0)

    def simulated(self, directory: Path, events: int = 8000) -> Simulated:
        """A file of records with duplicates on the gateway. Their times are in six hours of a day after all that is served by now."""
        query = {
            "query": {"range": {"bin_end_ms": {"lt": LAST_DAY_MS}}},
            "aggs": {"last": {"max": {"field": "bin_end_ms"}}},
        }
        page = self.elasticsearch("gridstead-transfers/_search?size=0&ignore_unavailable=true&allow_no_indices=true", query)
        last_ms = int(page.get("aggregations", {}).get("last", {}).get("value") or FIRST_DAY_MS)
        start_ms = (last_ms // DAY_MS + 10) * DAY_MS  # events that are up to a week long reach back
        seed = start_ms // DAY_MS  # never the same again: the stream knows a producer's ids for two days

        def records() -> Iterator[dict[str, Any]]:
            return iter(AccessSimulation(seed=seed, events=events, start_ms=start_ms, span_s=21_600, future=0.0, duplicates=0.1))

        path = f"/tmp/events-{seed}.jsonl"
        command = self.hosts.command("exec", self.gateway, "--", "sh", "-c", f"cat > {path}")
        with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as writing:
            assert writing.stdin is not None
            writing.stdin.writelines(json.dumps(record) + "\n" for record in records())
        assert writing.returncode == 0
        keys = directory / "keys"
        keys.touch(mode=0o600)
        keys.write_text(self.on(self.gateway, "cat /etc/gridstead/pseudonyms/keys"))
        return Simulated(path, records, Pseudonyms(keys), start_ms - 8 * DAY_MS, start_ms + 2 * DAY_MS - 1)
