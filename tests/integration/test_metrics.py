"""Spark's metrics in the store: every panel of the dashboard shows a real job, and its numbers are those that Spark itself counted."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import ROOT, Appliance, run, wait_until

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not shutil.which("go"), reason="the store of metrics is built with Go 1.21 or later"),
]
DASHBOARD = json.loads((ROOT / "roles/victoriametrics/files/spark.json").read_text())
PANELS = [(row["title"], panel["title"], expr) for row in DASHBOARD["rows"] for panel in row["panels"] for expr in panel["expr"]]
DAY = "2024-06-03"
IN_MEMORY = ('vm_pending_rows{type="storage"}', 'vm_rows{type="storage/inmemory"}')
ON_DISK = ('vm_rows{type="storage/small"}', 'vm_rows{type="storage/big"}')


class Store:
    """The store of metrics of an appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self.url = f"http://127.0.0.1:{appliance.port(8428)}"
        (holder,) = appliance.root.rglob("etc/**/victoriametrics/password")
        self._password = holder.read_text().strip()

    def get_bytes(self, path: str, password: str | None = None, **query: Any) -> bytes:
        request = urllib.request.Request(f"{self.url}{path}?{urllib.parse.urlencode(query)}")
        login = f"gridstead:{self._password if password is None else password}".encode()
        request.add_header("Authorization", f"Basic {b64encode(login).decode()}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())

    def get(self, path: str, password: str | None = None, **query: Any) -> Any:
        return json.loads(self.get_bytes(path, password, **query))

    def rows(self, *kinds: str) -> int:
        """How many samples it holds of these kinds, of what it says of itself."""
        lines = self.get_bytes("/metrics").decode().splitlines()
        return sum(int(line.split()[-1]) for line in lines if line.rpartition(" ")[0] in kinds)

    def series(self, expression: str, since_s: float) -> list[dict[str, Any]]:
        """What a panel shows of the time since then."""
        found = self.get("/api/v1/query_range", query=expression, start=since_s, end=time.time(), step="5s")
        return list(found["data"]["result"])

    def last(self, expression: str) -> int:
        """The one value that an expression had last in the last ten minutes."""
        (row,) = self.get("/api/v1/query", query=f"last_over_time(({expression})[10m])")["data"]["result"]
        return int(row["value"][1])


@pytest.fixture(scope="module")
def appliance() -> Iterator[Appliance]:
    """An appliance with the store, on ports of its own, removed at the end."""
    run([sys.executable, "tools/bundle.py", "build", "victoriametrics"], timeout=1200)
    under_test = Appliance(Path(tempfile.mkdtemp(prefix="gridstead-metrics-")), 3000)
    under_test.root.chmod(0o755)
    try:
        for new in (True, False):
            printed = under_test.playbook("site", "-e", "gridstead_metrics=true")
            assert ("changed=0 " in printed) != new, printed[-3000:]
        yield under_test
    finally:
        under_test.playbook("down")
        shutil.rmtree(under_test.root)


@pytest.fixture(scope="module")
def job(appliance: Appliance) -> tuple[str, float]:
    """A batch on YARN over a day of events: the id of its application, and when it began."""
    arguments = ["--events", "20000", "--start", DAY, "--future", "0", "--send", "--wait"]
    appliance.gridstead("simulate", *arguments)
    began = time.time()
    appliance.gridstead("batch", "run", "--from", DAY, "--to", DAY, timeout=600)

    def ended() -> list[str]:
        listed = appliance.get(18080, "/api/v1/applications?status=completed")
        batches = [entry for entry in listed if entry["name"] == "gridstead-batch"]
        return [entry["id"] for entry in batches if entry["attempts"][0]["startTimeEpoch"] > began * 1000]

    (application,) = wait_until(ended, "the history server knows the batch")
    return application, began


def test_the_store_is_one_of_the_services_and_wants_its_password(appliance: Appliance) -> None:
    services = {service["name"]: service for service in appliance.json("status")["services"]}
    assert services["victoriametrics"]["healthy"], services["victoriametrics"]
    store = Store(appliance)
    assert store.get("/api/v1/status/tsdb")["status"] == "success"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        store.get("/api/v1/status/tsdb", password="wrong")
    assert DASHBOARD["title"] in [entry["title"] for entry in store.get("/vmui/custom-dashboards")["dashboardsSettings"]]


@pytest.mark.parametrize(("row", "panel", "expression"), PANELS, ids=[f"{row}-{panel}-{n}" for n, (row, panel, _) in enumerate(PANELS)])
def test_every_panel_shows_the_job(appliance: Appliance, job: tuple[str, float], row: str, panel: str, expression: str) -> None:
    application, began = job
    shown = [series for series in Store(appliance).series(expression, began) if series["metric"].get("application") == application]
    assert shown, f"{row}, {panel}: {expression} shows nothing of {application}"
    assert {series["metric"]["name"] for series in shown} == {"gridstead-batch"}


def test_the_numbers_are_those_that_spark_counted(appliance: Appliance, job: tuple[str, float]) -> None:
    application, _ = job
    stages = appliance.get(18080, f"/api/v1/applications/{application}/stages")
    store, of = Store(appliance), f'{{application="{application}"}}'
    tasks, written = (sum(stage[name] for stage in stages) for name in ("numCompleteTasks", "shuffleWriteBytes"))
    wait_until(lambda: store.last(f"spark_appStatus_tasks_completedTasks_count{of}") == tasks, f"the store has {tasks} tasks", 60)
    wait_until(lambda: store.last(f"spark_executor_shuffleBytesWritten_count{of}") == written, f"and {written} bytes of shuffles", 60)


def test_metrics_outlive_a_kill_of_the_store(appliance: Appliance, job: tuple[str, float]) -> None:
    question = f'spark_appStatus_tasks_completedTasks_count{{application="{job[0]}"}}'
    store = Store(appliance)
    before, held = store.last(question), store.rows(*IN_MEMORY, *ON_DISK)
    wait_until(lambda: store.rows(*ON_DISK) >= held, "what it holds now is on disk", 60)
    pid = appliance.kill("victoriametrics")
    wait_until(lambda: appliance.pid("victoriametrics") not in (0, pid), "the store is started again", 60)
    wait_until(lambda: reached(Store(appliance)), "the store answers", 60)
    assert Store(appliance).last(question) == before


def reached(store: Store) -> bool:
    """Whether the store answers."""
    try:
        return bool(store.get("/api/v1/status/tsdb"))
    except OSError:
        return False
