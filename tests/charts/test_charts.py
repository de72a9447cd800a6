"""The charts without helm: what they take from the roles, and what their values' schemas refuse."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import play
import pytest
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "charts.py"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("charts")
    subprocess.run([sys.executable, TOOL, "build", str(directory)], check=True)
    return directory


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@functools.cache
def validator(schema: Path) -> Draft202012Validator:
    content = json.loads(schema.read_text())
    Draft202012Validator.check_schema(content)
    return Draft202012Validator(content)


def refusals(built: Path, chart: str, values: Any) -> list[str]:
    return [error.message for error in validator(built / chart / "values.schema.json").iter_errors(values)]


@pytest.mark.parametrize("chart", ["zookeeper", "hdfs", "kafka", "artemis", "elasticsearch", "spark", "metrics", "pipeline", "gridstead"])
def test_the_defaults_of_a_chart_are_values_that_its_schema_takes(built: Path, chart: str) -> None:
    assert refusals(built, chart, load(built / chart / "values.yaml")) == []


@pytest.mark.parametrize(("profile", "heap"), [("medium", "4g"), ("ha", "1g")])
def test_a_profile_is_made_of_values_that_the_schema_takes(built: Path, profile: str, heap: str) -> None:
    values = load(built / "gridstead" / "profiles" / f"{profile}.yaml")
    whole = load(built / "gridstead" / "values.yaml")
    assert {**whole["elasticsearch"], **values["elasticsearch"]}["heap"] == heap
    assert refusals(built, "gridstead", values) == []


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("kafka.heapp", "1g", "'heapp' was unexpected"),
        ("kafka.heap", 1, "1 is not of type 'string'"),
        ("kafka.heap", "1GB", "does not match"),
        ("kafka.replicas", 0, "less than the minimum"),
        ("hdfs.namenode.storage.size", "0Gi", "does not match"),
        ("hdfs.datanode.scheduling.antiAffinity", "maybe", "is not one of"),
        ("pipeline.batch.enabled", "yes", "is not of type 'boolean'"),
        ("global.image.pullPolicy", "Sometimes", "is not one of"),
        ("test.checks", ["mapreduce"], "is not one of"),
        ("kibana", {}, "'kibana' was unexpected"),
    ],
)
def test_a_wrong_value_is_refused(built: Path, path: str, value: Any, why: str) -> None:
    values = load(built / "gridstead" / "values.yaml")
    place = values
    *above, last = path.split(".")
    for name in above:
        place = place[name]
    place[last] = value
    assert [message for message in refusals(built, "gridstead", values) if why in message]


def test_an_unknown_key_is_refused_wherever_it_stands(built: Path) -> None:
    values = load(built / "gridstead" / "values.yaml")
    for place in list(sections(values)):
        wrong = copy.deepcopy(values)
        inner = wrong
        for name in place:
            inner = inner[name]
        inner["unheard-of"] = 1
        assert refusals(built, "gridstead", wrong), f"{'.'.join(place)} takes an unknown key"


FREE = {"nodeSelector", "annotations", "settings", "resources"}
"""Objects whose keys are the site's own, or whose own schema looks at them below."""


def sections(values: Any, place: tuple[str, ...] = ()) -> Any:
    """The places of all objects that have keys of ours."""
    yield place
    for name, value in values.items():
        if isinstance(value, dict) and name not in FREE:
            yield from sections(value, (*place, name))


def test_every_port_that_a_chart_names_is_one_of_the_roles(built: Path) -> None:
    known = load(ROOT / "roles/common/defaults/main/ports.yml")["gridstead_base_ports"]
    text = (built / "common" / "templates" / "_ports.tpl").read_text()
    assert {name: port for name, port in known.items() if f"{name}: {port}\n" in text} == known
    named = set()
    for path in sorted((ROOT / "charts").rglob("templates/**/*.yaml")):
        body = path.read_text()
        named |= set(re.findall(r"\$ports\.(\w+)", body))
        for listed in re.findall(r'"ports" \(list ([^)]*)\)', body):
            named |= set(re.findall(r'"(\w+)"', listed))
    assert len(named) >= 12
    assert named - {"spark_driver", "spark_blocks"} <= known.keys()  # on hosts a driver takes any port


SERVERS = {"kafka": "kafka/tasks/run.yml", "elasticsearch": "elasticsearch/tasks/run.yml", "stream": "analytics/tasks/stream.yml"}


@pytest.mark.parametrize("component", SERVERS)
def test_a_pod_has_as_long_to_stop_as_the_service_on_a_host(component: str) -> None:
    tasks = load(ROOT / "roles" / SERVERS[component])
    [wanted] = [task["vars"]["service_stop_timeout"] for task in tasks if "service_stop_timeout" in task.get("vars", {})]
    [template] = (ROOT / "charts").glob(f"*/templates/{component}.yaml")
    assert f'"grace" {wanted}' in template.read_text()


def test_the_id_of_the_namespace_is_that_of_the_roles() -> None:
    cluster = load(ROOT / "roles/hdfs/defaults/main.yml")["hdfs_cluster_name"]
    assert f"-clusterid {cluster}\n" in (ROOT / "charts/hdfs/files/format.sh").read_text()


def test_jobs_report_to_the_store_of_metrics_as_on_hosts() -> None:
    on_hosts = load(ROOT / "roles/spark/vars/main.yml")["_spark_metrics"]
    template = (ROOT / "charts/spark/templates/_defaults.tpl").read_text()
    here = dict(line.split(" ", 1) for line in re.findall(r"^(spark\.metrics.*)$", template, re.MULTILINE))
    assert here.keys() == on_hosts.keys()
    assert {key: value for key, value in on_hosts.items() if "{{" not in value}.items() <= here.items()


def test_several_namenodes_are_set_up_as_on_hosts() -> None:
    on_hosts = load(ROOT / "roles/hdfs/vars/main.yml")
    template = (ROOT / "charts/hdfs/templates/_ha.tpl").read_text()
    here = dict(re.findall(r"<name>(.+?)</name><value>(.+?)</value>", template))
    of_images = {"dfs.journalnode.edits.dir", "dfs.journalnode.rpc-address", "dfs.journalnode.http-address", "dfs.ha.zkfc.port"}
    assert on_hosts["_hdfs_hdfs_site_ha"].keys() - of_images <= here.keys()
    plain = {name: value for name, value in on_hosts["_hdfs_hdfs_site_ha"].items() if "{{" not in value}
    assert plain and plain.items() <= here.items()
    assert here["dfs.nameservices"] == load(ROOT / "roles/hdfs/defaults/main.yml")["hdfs_nameservice"]
    client = (ROOT / "charts/hdfs/templates/client.yaml").read_text()
    given = dict(re.findall(r"<name>(.+?)</name><value>(.+?)</value>", client))
    cluster = {name: value for name, value in on_hosts["_hdfs_hdfs_site_cluster"].items() if "stale" in name or "client" in name}
    assert len(cluster) == 5 and cluster.items() <= given.items()
    assert set(re.findall(r"<name>(.+?)</name>", client)) >= on_hosts["_hdfs_core_site_ha"].keys()


def test_the_services_of_a_release_are_looked_at_as_on_a_host() -> None:
    known = {entry["name"]: entry for entry in load(ROOT / "roles/gridstead/vars/main.yml")["_gridstead_all_services"]}
    for service in load(ROOT / "charts/pipeline/files/services.yaml"):
        on_host = known[service["name"]]
        assert service["role"] == on_host["role"]
        assert on_host["check"] == ("http" if "path" in service else "tcp")
        assert on_host["url"].endswith(service.get("path", "}}"))


def test_the_smoke_tests_of_the_chart_are_all_but_mapreduce(built: Path) -> None:
    from gridstead.smoke import CHECKS

    wanted = [check.name for check in CHECKS if check.name != "mapreduce"]  # there is no YARN
    assert load(built / "gridstead" / "values.yaml")["test"]["checks"] == wanted


def test_all_charts_have_one_version_that_of_the_distribution() -> None:
    spec = importlib.util.spec_from_file_location("gridstead_version", ROOT / "analytics/src/gridstead/__init__.py")
    assert spec and spec.loader
    package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    charts = [load(path) for path in (ROOT / "charts").glob("*/Chart.yaml")]
    assert {chart["appVersion"] for chart in charts} == {package.__version__}
    needed = {need["version"] for chart in charts for need in chart.get("dependencies", [])}
    assert len({chart["version"] for chart in charts} | needed) == 1


def test_the_reference_page_is_what_the_schemas_say() -> None:
    subprocess.run([sys.executable, TOOL, "docs", "--check"], check=True)


def test_every_template_has_a_suite_of_helm_unittest() -> None:
    untested = {
        f"{chart.name}/{template.stem}"
        for chart in (ROOT / "charts").iterdir()
        for template in chart.glob("templates/**/*.yaml")
        if not (chart / "tests" / f"{template.stem}_test.yaml").exists()
    }
    assert untested == set()


def test_every_image_can_have_a_tag_of_its_own() -> None:
    image = load(ROOT / "charts/common/values.schema.yaml")["global"]["properties"]["image"]
    assert set(image["properties"]["tags"]["propertyNames"]["enum"]) == set(play.ENTRIES)
