"""The charts by helm's own tools: lint, kubeconform against the cluster's schemas, helm-unittest, and refusals by templates."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts import schemas
from charts.release import MISSING, HelmError, build, helm, tool

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(MISSING), reason=MISSING or "there is helm")]
CHARTS = ["zookeeper", "hdfs", "kafka", "artemis", "elasticsearch", "spark", "metrics", "pipeline", "gridstead"]
PROFILES = ["", "medium", "ha"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("charts")).parent


def rendered(built: Path, profile: str = "", *settings: str) -> str:
    chosen = ["--values", str(built / "gridstead" / "profiles" / f"{profile}.yaml")] if profile else []
    return helm("template", "grid", str(built / "gridstead"), "--namespace", "site", *chosen, *settings)


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.mark.parametrize("chart", CHARTS)
def test_helm_lint_is_content(built: Path, chart: str) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(built / chart))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("profile", PROFILES)
def test_kubeconform_knows_every_field(built: Path, profile: str, tmp_path: Path) -> None:
    assert schemas.write(schemas.of_cluster(), tmp_path) > 100
    (tmp_path / "all.yaml").write_text(rendered(built, profile))
    location = f"{tmp_path}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json"
    command = [tool("kubeconform"), "-summary", "-schema-location", location, tmp_path / "all.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "Skipped: 0" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("chart", CHARTS)
def test_the_suites_of_helm_unittest_pass(built: Path, chart: str) -> None:
    done = subprocess.run([tool("helm-unittest"), str(built / chart)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("kafka.replicas=2", "several brokers keep copies only with global.highAvailability"),
        ("elasticsearch.replicas=2", "several nodes keep copies only with global.highAvailability"),
        ("global.highAvailability=true", "global.highAvailability needs"),
        ("hdfs.replication=3", "give hdfs.datanode.replicas at least as many"),
        ("elasticsearch.resources.limits.memory=1Gi", "give at least 1536Mi, or a smaller elasticsearch.heap"),
        ("kafka.heap=1", "got number, want string"),
        ("kafka.heapp=1g", "additional properties 'heapp' not allowed"),
        ("global.image.tags.jobs=1", "'jobs'|value must be one of|propertyNames"),
        ("nonsense=1", "additional properties 'nonsense' not allowed"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(built: Path, setting: str, why: str) -> None:
    with pytest.raises(HelmError, match=why):
        rendered(built, "", "--set", setting)


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("kafka.replicas=2", "kafka.replicas is 2, but global.highAvailability needs 3: with two brokers"),
        ("elasticsearch.replicas=1", "elasticsearch.replicas is 1, but global.highAvailability needs 3"),
        ("hdfs.namenode.replicas=1", "global.highAvailability needs another that takes over: give 2 or 3"),
        ("hdfs.journalnode.replicas=2", "value must be one of 3, 5"),
        ("hdfs.datanode.replicas=2", "hdfs.replication is 3, but there are only 2 DataNodes"),
    ],
)
def test_what_is_not_highly_available_is_refused(built: Path, setting: str, why: str) -> None:
    with pytest.raises(HelmError, match=why):
        rendered(built, "ha", "--set", setting)


def test_every_server_that_keeps_data_is_there_three_times_and_disrupted_one_at_a_time(built: Path) -> None:
    found = documents(rendered(built, "ha"))
    sets = {item["metadata"]["name"].removeprefix("grid-"): item["spec"] for item in found if item["kind"] == "StatefulSet"}
    apart = {name for name, spec in sets.items() if spec["replicas"] == 3}
    assert apart == {"zookeeper", "hdfs-journalnode", "hdfs-namenode", "hdfs-datanode", "kafka", "elasticsearch"}
    budgets = {item["metadata"]["name"].removeprefix("grid-") for item in found if item["kind"] == "PodDisruptionBudget"}
    assert budgets == apart
    for name in apart:
        affinity = sets[name]["template"]["spec"]["affinity"]["podAntiAffinity"]
        assert "requiredDuringSchedulingIgnoredDuringExecution" in affinity, name


def pods(text: str) -> dict[str, dict[str, Any]]:
    """The pods' specifications by component."""
    found = {}
    for document in documents(text):
        if document["kind"] == "Pod":
            found["test"] = document["spec"]
        if document["kind"] == "CronJob":
            found["batch"] = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        if document["kind"] in ("StatefulSet", "Deployment"):
            template = document["spec"]["template"]
            found[template["metadata"]["labels"]["app.kubernetes.io/component"]] = template["spec"]
    return found


def test_no_container_has_a_right_that_it_does_not_need(built: Path) -> None:
    found = pods(rendered(built, "ha", "--set", "global.metrics=true"))
    assert len(found) >= 13
    for component, spec in found.items():
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec.get("automountServiceAccountToken") is False or spec["serviceAccountName"] in ("grid-observer", "grid-spark"), component
        for container in spec["containers"] + spec.get("initContainers", []):
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] is True and rights["allowPrivilegeEscalation"] is False, component
            assert rights["capabilities"] == {"drop": ["ALL"]}, component
            resources = container["resources"]
            assert resources["requests"].keys() >= {"cpu", "memory"} and "memory" in resources["limits"], component


def test_policies_let_through_what_must_talk_and_nobody_else(built: Path) -> None:
    found = [item for item in documents(rendered(built, "ha", "--set", "global.metrics=true")) if item["kind"] == "NetworkPolicy"]
    policies = {item["metadata"]["name"].removeprefix("grid-"): item["spec"] for item in found}
    allowed = {
        (peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"], component)
        for component, spec in policies.items()
        for rule in spec.get("ingress", [])
        for peer in rule["from"]
        if "podSelector" in peer
    }
    stores = ("hdfs-namenode", "hdfs-datanode", "elasticsearch")
    needed = {
        *((reader, store) for reader in ("stream", "batch", "executor", "test") for store in stores),
        ("stream", "kafka"), ("test", "kafka"), ("stream", "activemq"), ("stream", "collector"), ("stream", "bridge"),
        ("executor", "batch"), ("executor", "test"), ("batch", "executor"), ("test", "executor"),
        ("hdfs-datanode", "hdfs-namenode"), ("collector", "activemq"), ("bridge", "activemq"), ("bridge", "kafka"),
        ("test", "activemq"), ("test", "collector"), ("test", "bridge"), ("test", "stream"),
        ("hdfs-namenode", "zookeeper"), ("hdfs-namenode", "hdfs-journalnode"), ("hdfs-namenode", "hdfs-namenode"),
        *((server, server) for server in ("zookeeper", "hdfs-journalnode", "kafka", "elasticsearch")),
        *((reporter, "victoriametrics") for reporter in ("stream", "batch", "executor", "test")),
    }  # fmt: skip
    assert needed <= allowed
    assert not {pair for pair in allowed if pair in {("collector", "kafka"), ("activemq", "kafka"), ("bridge", "elasticsearch")}}
    assert policies["default"]["policyTypes"] == ["Ingress"] and "ingress" not in policies["default"]
    assert set(pods(rendered(built))) - {"test"} <= policies.keys()
