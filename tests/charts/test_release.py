"""A release of profile small on a real cluster: the capture's exact statistics, the smoke tests, kills, upgrades, lost volumes.

With KUBECONFIG set that cluster is used, whichever it is; the images must be there, or in the registry of GRIDSTEAD_IMAGE_PREFIX. Else
the tests make a cluster of one node, and load the images that `make images` has built.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes import client

from appliance import CAPTURE, ROOT, assert_served, bin_ends, wait_until
from charts.flow import DAY_MS, Y2010_MS, Flow, assert_uninstalling_keeps_the_data, numbers
from charts.release import IMAGES, MISSING, SERVERS, HelmError, Release, build, build_of, released
from gridstead import xrootd
from gridstead.sources.xrootd import MemoryOpenTable, XrootdJoiner

pytestmark = [pytest.mark.long, pytest.mark.kubernetes]
PREVIOUS = "5fa6142710a2"
"""The last commit with the charts that are upgraded from."""


@pytest.fixture(scope="module")
def grid(cluster: Callable[..., bool], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The release under test."""
    if MISSING:
        pytest.skip(MISSING)
    cluster()
    registry = os.environ.get("GRIDSTEAD_IMAGE_PREFIX")
    image = {"image": {"registry": registry}} if registry else {}
    before = build_of(PREVIOUS, tmp_path_factory.mktemp("previous"))
    with released(before, "gridstead-test", **{"global": image}) as release:
        if not release.pods():
            print(f"\nthe previous charts were ready after {release.apply('install'):.0f} s")
        release.start_client()
        release.chart, release.values = build(tmp_path_factory.mktemp("charts")), {"global": {"metrics": True, **image}}
        yield release


def test_an_upgrade_from_the_previous_charts_keeps_volumes_and_counts(grid: Release, tmp_path: Path) -> None:
    volumes = grid.volumes()
    flow = Flow(grid, 3, 150, tmp_path)
    print(f"upgrade from the previous charts ready after {grid.apply('upgrade'):.0f} s; longest stall {flow.finish():.0f} s")
    assert volumes <= grid.volumes()
    grid.stop_client()  # it was told how to reach the servers when it began
    grid.start_client()


def test_helm_test_runs_the_smoke_tests(grid: Release) -> None:
    begun = time.monotonic()
    told = grid.helm("test", "--logs", "--timeout", "600s")
    print(f"helm test: {time.monotonic() - begun:.0f} s\n{told}")
    assert "Succeeded" in told
    assert told.count(" ok ") >= 5


def test_the_real_capture_gives_what_duckdb_computes_from_its_packets(grid: Release) -> None:
    if not CAPTURE.exists():
        pytest.skip(f"the capture is not at {CAPTURE}")
    joiner = XrootdJoiner(MemoryOpenTable())
    now_ms = int(time.time() * 1000)
    packets = [captured.data for captured in xrootd.read_capture(CAPTURE)]
    expected = grid.expected(
        [event for data in packets for event in joiner.join(xrootd.decode_packet(data), grid.client_address, now_ms).events]
    )
    ends = bin_ends(expected)
    grid.put(CAPTURE.read_bytes(), "/tmp/capture.jsonl")
    for _ in range(2):  # the same packets again are the same events
        grid.exec("gridstead", "replay", "/tmp/capture.jsonl", "--wait")
        assert_served(grid, expected, ends[0] - DAY_MS, ends[-1])
    moved = sum(values[2] for values in expected["transfers"].values())
    finished = sum(values[1] for values in expected["transfers"].values())
    assert moved == 3_661_934_732
    print(f"{finished:,} events, {moved:,} bytes, all four statistics equal")


def test_status_and_doctor_know_the_release(grid: Release) -> None:
    found = grid.gridstead("status")
    assert {service["name"] for service in found["services"]} == set(SERVERS)
    assert all(service["healthy"] and service["state"] == "Running" for service in found["services"])
    assert grid.gridstead("doctor")["healthy"]


def run_now(grid: Release, name: str, command: str = "") -> str:
    """Run a scheduled job at once, or another command in its place; returns the end of what it logged."""
    cron = grid.batch.read_namespaced_cron_job(f"{grid.name}-{name}", grid.namespace)
    now = f"{name}-now"
    job = client.V1Job(metadata=client.V1ObjectMeta(name=now), spec=cron.spec.job_template.spec)
    if command:
        job.spec.template.spec.containers[0].args[2] = command
    grid.batch.create_namespaced_job(grid.namespace, job)
    done = wait_until(
        lambda: (
            (status := grid.batch.read_namespaced_job(now, grid.namespace).status) and (status.succeeded or status.failed) and status
        ),
        f"{name} is done",
        600,
    )
    pods = grid.core.list_namespaced_pod(grid.namespace, label_selector=f"job-name={now}").items
    logs = "\n".join(grid.core.read_namespaced_pod_log(pod.metadata.name, grid.namespace, tail_lines=60) for pod in pods)
    assert done.succeeded == 1, logs
    grid.batch.delete_namespaced_job(now, grid.namespace, propagation_policy="Foreground")
    return logs


def test_a_scheduled_batch_leaves_what_is_served_as_it_is(grid: Release) -> None:
    before = grid.documents(0, 2 * Y2010_MS)
    run_now(grid, "batch", "exec gridstead batch run --from 2020-01-01 --to 2030-12-31 --verbose")
    assert numbers(grid.documents(0, 2 * Y2010_MS)) == numbers(before)


def test_upkeep_reaches_archive_and_statistics_and_leaves_what_is_served(grid: Release) -> None:
    before = grid.documents(0, 2 * Y2010_MS)
    assert "all months are kept" in run_now(grid, "upkeep")
    assert numbers(grid.documents(0, 2 * Y2010_MS)) == numbers(before)


def test_the_dashboard_shows_the_batch_and_its_executor(grid: Release) -> None:
    dashboard = json.loads((ROOT / "roles/victoriametrics/files/spark.json").read_text())
    of_batch = 'name="gridstead-batch"'
    for row in dashboard["rows"]:
        for panel in row["panels"]:
            for expression in panel["expr"]:
                names = [series["metric"]["name"] for series in grid.metrics(expression) if "name" in series["metric"]]
                assert "gridstead-batch" in names, f"{row['title']}, {panel['title']}: {expression}"
    processes = {series["metric"]["process"] for series in grid.metrics(f"spark_executor_cpuTime_count{{{of_batch}}}")}
    assert processes - {"driver"}, "an executor in a pod of its own reports too"


def test_every_pod_is_killed_once_while_events_flow_and_the_counts_are_exact(grid: Release, tmp_path: Path) -> None:
    flow = Flow(grid, 1, 240, tmp_path)
    for component in (*SERVERS, "spark-history"):
        killed = grid.kill(component)
        begun = time.monotonic()
        wait_until(functools.partial(grid.replaced, component, killed), f"{component} is back", 300)
        print(f"{component}: ready again after {time.monotonic() - begun:.0f} s{'' if flow.flowing() else ', when all was sent'}")
    print(f"longest stall {flow.finish():.0f} s")


def test_an_upgrade_that_changes_a_heap_and_its_rollback_lose_nothing(grid: Release, tmp_path: Path) -> None:
    volumes = grid.volumes()
    ids = {component: grid.pod(component).metadata.uid for component in SERVERS}
    password = grid.core.read_namespaced_secret(f"{grid.name}-activemq", grid.namespace).data
    flow = Flow(grid, 2, 150, tmp_path)
    print(f"upgrade ready after {grid.apply('upgrade', kafka={'heap': '400m'}):.0f} s")
    assert {component for component in SERVERS if grid.pod(component).metadata.uid != ids[component]} == {"kafka"}
    assert "-Xmx400m" in grid.exec("sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline", pod=f"{grid.name}-kafka-0")
    begun = time.monotonic()
    grid.helm("rollback", "--wait", "--timeout", "300s")
    wait_until(grid.ready, "the rollback is ready", 300)
    print(f"rollback ready after {time.monotonic() - begun:.0f} s; longest stall {flow.finish():.0f} s")
    assert "-Xmx384m" in grid.exec("sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline", pod=f"{grid.name}-kafka-0")
    assert grid.volumes() == volumes
    assert grid.core.read_namespaced_secret(f"{grid.name}-activemq", grid.namespace).data == password


def layout_of_another_release(directory: Path) -> Path:
    """A layout with the image of the jobs alone, under the tag `next`."""
    index = json.loads((IMAGES / "index.json").read_text())
    index["manifests"] = [entry for entry in index["manifests"] if "/pipeline:" in entry["annotations"]["io.containerd.image.name"]]
    for entry in index["manifests"]:
        entry["annotations"] = {"io.containerd.image.name": "localhost/gridstead/pipeline:next"}
    (directory / "blobs").symlink_to(IMAGES / "blobs")
    (directory / "oci-layout").write_text((IMAGES / "oci-layout").read_text())
    (directory / "index.json").write_text(json.dumps(index))
    return directory


def test_another_release_of_the_jobs_and_back_lose_nothing(grid: Release, cluster: Callable[..., bool], tmp_path: Path) -> None:
    if not cluster(layout_of_another_release(tmp_path)) and not os.environ.get("GRIDSTEAD_TEST_JOBS"):
        pytest.skip("the cluster has no other release of the jobs: push one, and say its tag as GRIDSTEAD_TEST_JOBS")
    tag = os.environ.get("GRIDSTEAD_TEST_JOBS", "next")
    image = {**grid.values["global"].get("image", {}), "tags": {"pipeline": tag}}
    ids = {component: grid.pod(component).metadata.uid for component in SERVERS}
    flow = Flow(grid, 4, 150, tmp_path)
    print(f"another release of the jobs ready after {grid.apply('upgrade', **{'global': {**grid.values['global'], 'image': image}}):.0f} s")
    changed = {component for component in SERVERS if grid.pod(component).metadata.uid != ids[component]}
    assert changed == {"collector", "bridge", "stream"}
    assert grid.pod("stream").spec.containers[0].image.endswith(f"/pipeline:{tag}")
    grid.helm("rollback", "--wait", "--timeout", "300s")
    wait_until(grid.ready, "the rollback is ready", 300)
    assert not grid.pod("stream").spec.containers[0].image.endswith(f":{tag}")
    print(f"longest stall {flow.finish():.0f} s")


def test_an_upgrade_that_changes_nothing_restarts_nothing(grid: Release) -> None:
    before = {pod.metadata.name: pod.metadata.uid for pod in grid.pods()}
    grid.apply("upgrade")
    assert {pod.metadata.name: pod.metadata.uid for pod in grid.pods()} == before


def test_what_is_uninstalled_and_installed_again_finds_its_data(grid: Release) -> None:
    assert_uninstalling_keeps_the_data(grid)


def test_no_namespace_is_made_where_the_volume_of_the_namenode_is_lost(grid: Release) -> None:
    grid.stop_client()
    grid.uninstall()
    grid.core.delete_namespaced_persistent_volume_claim(f"data-{grid.name}-hdfs-namenode-0", grid.namespace)
    with pytest.raises(HelmError, match="is empty, but this release has volumes of HDFS: .*-hdfs-datanode-0"):
        grid.apply("install", "--timeout", "60s")
