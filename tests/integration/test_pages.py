"""Commands of the pages, typed on the appliance as they stand there."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import documented
from appliance import Appliance, run, wait_until
from gridstead.simulate import AccessSimulation

pytestmark = pytest.mark.appliance

START_MS = 1_078_099_200_000  # 2004-03-01
FIRST, LAST = "2004-03-01", "2004-03-02"
DAYS = {"2025-06-01": FIRST, "2025-06-07": LAST}


class Operator:
    """Types commands in a shell that finds the appliance's programs."""

    def __init__(self, appliance: Appliance, directory: Path) -> None:
        self.appliance, self.directory = appliance, directory
        opt = appliance.root / "opt"
        self.path = os.pathsep.join([str(opt / "gridstead/bin"), str(opt / "hadoop/bin"), os.environ["PATH"]])

    def types(self, page: str, number: int, **replaced: str) -> str:
        text = documented.command(page, number, **replaced)
        return run(["sh", "-ec", text], env={**self.appliance.environment, "PATH": self.path}, timeout=600, cwd=self.directory)


@pytest.fixture
def operator(appliance: Appliance, tmp_path: Path) -> Operator:
    records = AccessSimulation(seed=77, events=300, start_ms=START_MS, span_s=86_400, future=0.0)
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return Operator(appliance, tmp_path)


def test_feed(operator: Operator) -> None:
    operator.types("feed", 0)
    operator.types("feed", 1, **{"10000": "300"})
    operator.types("feed", 2)
    operator.types("feed", 3)
    operator.types("feed", 4)


def test_look(operator: Operator) -> None:
    assert "Path of events" in operator.types("look", 0)
    operator.types("look", 1)
    operator.types("look", 2)
    assert "Transaction" in operator.types("look", 3)


def test_archive_on_hdfs(operator: Operator, appliance: Appliance) -> None:
    """Also with commits that are old enough to be merged: on HDFS a merge is renames."""
    own = operator.directory / "gridstead.toml"
    own.write_text(re.sub(r"compact_after_h = \d+", "compact_after_h = 0", appliance.config.read_text()))
    operator.types("archive", 0)
    assert "sound" in operator.types("archive", 1)
    assert appliance.json("--config", str(own), "archive", "compact", timeout=600)["merges"] > 0
    operator.types("archive", 2)
    operator.types("archive", 3)
    assert "sound" in operator.types("archive", 1)


@pytest.mark.long
def test_jobs(operator: Operator, appliance: Appliance) -> None:
    operator.types("feed", 0)
    operator.types("jobs", 0)
    operator.types("jobs", 1, **DAYS)
    assert "/tmp/june" in appliance.hdfs("-ls", "/tmp")
    operator.types("jobs", 2)
    operator.types("jobs", 3)
    operator.types("jobs", 4)
    operator.types("jobs", 5)
    (version,) = re.findall(r"\d+\.\d+\.\d+", operator.types("jobs", 6))[:1]
    operator.types("jobs", 7, **{"0.1.0": version})
    operator.types("jobs", 8)
    operator.types("jobs", 9, **DAYS)
    appliance.hdfs("-mkdir", "-p", "/in")
    appliance.hdfs("-put", "-f", str(operator.directory / "events.jsonl"), "/in")
    operator.types("jobs", 10)
    assert "statistics" in appliance.hdfs("-ls", "/out")
    operator.types("jobs", 11, **{"localhost:9200": f"localhost:{appliance.port(9200)}"})
    operator.types("feed", 0)  # the next transaction finds nothing to build on
    wait_until(lambda: _served(appliance), "what is served is made anew", 300)
    for path in ("/tmp/june", "/in", "/out"):
        appliance.hdfs("-rm", "-r", "-skipTrash", path)


def _served(appliance: Appliance) -> Any:
    try:
        return appliance.documents(START_MS - 8 * 86_400_000, START_MS + 2 * 86_400_000)
    except OSError:
        return None


def test_privacy(operator: Operator, appliance: Appliance) -> None:
    """A rotated key is taken by the running collector; nothing else of the event changes."""
    before = operator.types("privacy", 0)
    operator.types("privacy", 1)
    operator.types("privacy", 2)
    generation = max(appliance.json("pseudonyms", "of", "jdoe")["jdoe"], key=int)
    assert f"p{generation}-" not in before
    name = f"rotated-{generation}"
    record = {"user": name, "vo": name, "start_time": START_MS, "end_time": START_MS + 1000, "file_lfn": "/a", "server_domain": "s.example"}
    wanted = json.loads(appliance.gridstead("--json", "pseudonyms", "of", name))[name][generation]

    def seen() -> bool:
        record["end_time"] += 1000
        (operator.directory / "one.jsonl").write_text(json.dumps(record) + "\n")
        appliance.gridstead("replay", str(operator.directory / "one.jsonl"), "--wait")
        appliance.refresh()
        users = {row["user"] for row in appliance.documents(START_MS - 1, START_MS + 86_400_000, "users").values() if row["vo"] == name}
        return wanted in users and name not in users

    wait_until(seen, "the collector gives pseudonyms under the new key", 60)
