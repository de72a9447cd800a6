"""Each command on the pages of operations is run by a test; where that is another way round, or cannot be, it is said here."""

from __future__ import annotations

import re

import pytest

from documented import commands
from role_files import ROOT

PAGES = sorted(path.stem for path in (ROOT / "docs" / "operations").glob("*.md"))
SOURCES = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
OTHERWISE: dict[str, dict[str, str]] = {  # beginning of the command: the test that runs what is behind it, or why none does
    "bundle": {
        "make bundle": "tests/integration/test_bundle.py::test_a_second_call_does_nothing",
        "tools/bundle.py build debian": "tests/lab/test_single.py::cut_off_from_packages",
        "tools/bundle.py verify": "tests/integration/test_bundle.py::test_verify_names_the_tarball_both_hashes_and_the_remedy",
        "tools/bundle.py lock": "tests/lab/test_ha.py::test_kafka_is_upgraded_and_taken_back_while_events_arrive",
        "make lock": "none: it asks registries for newer versions",
    },
    "ec2": {
        "export AWS_PROFILE": "none: of the account",
        "cp clusters/small.yml": "tests/ec2/test_cluster_file.py::test_examples_are_valid_and_priced",
        "make ec2-plan": "tests/ec2/test_life.py::test_up",
        "make ec2-up": "tests/ec2/test_hosts.py::test_up",
        "make ec2-install": "tests/ec2/test_hosts.py::test_the_site_is_installed_over_ssh",
        "make ec2-smoke": "tests/ec2/test_hosts.py::test_smoke_tests_pass",
        "CLUSTER=mine.yml .venv/bin/ansible ": "none: Ansible's own way; test_hosts.py pings the nodes so",
        "make ec2-scale": "tests/ec2/test_hosts.py::test_scale_out_adds_a_worker",
        "make ec2-stop": "tests/ec2/test_hosts.py::test_everything_is_back_after_stop_and_start",
        "make ec2-start": "tests/ec2/test_hosts.py::test_everything_is_back_after_stop_and_start",
        "make ec2-down": "tests/ec2/test_hosts.py::test_down_leaves_nothing",
    },
    "images": {
        "make images PUSH": "tests/unit/test_images.py::test_images_are_pushed_to_a_registry_under_the_same_digest",
        "make images": "tests/lab/test_kube.py::test_an_image_built_again_is_the_same",
        "images/build.py kafka": "tests/lab/test_kube.py::test_an_image_built_again_is_the_same",
    },
    "kubernetes": {
        "make images && make charts": "tests/lab/test_kube.py::test_an_image_built_again_is_the_same",
        "helm install": "tests/charts/test_release.py::test_helm_test_runs_the_smoke_tests",
        "helm test": "tests/charts/test_release.py::test_helm_test_runs_the_smoke_tests",
        "kubectl -n grid exec": "tests/charts/test_release.py::test_status_and_doctor_know_the_release",
        "kubectl -n grid port-forward": "none: kubectl's own",
        "helm upgrade": "tests/charts/test_release.py::test_another_release_of_the_jobs_and_back_lose_nothing",
        "helm rollback": "tests/charts/test_release.py::test_another_release_of_the_jobs_and_back_lose_nothing",
        "kubectl -n grid get secret": "tests/charts/test_release.py::test_the_dashboard_shows_the_batch_and_its_executor",
    },
    "lab": {
        "": "tests/lab/test_lab.py::test_the_page_shows_every_verb_as_it_is",  # and each verb by the tests beside it
    },
    "look": {
        "tools/bundle.py build victoriametrics": "tests/integration/test_metrics.py::appliance",
        "ansible-playbook": "tests/integration/test_metrics.py::appliance",
        "curl": "tests/integration/test_metrics.py::test_the_numbers_are_those_that_spark_counted",
    },
    "test": {
        "make smoke": "tests/integration/test_pipeline.py::test_the_smoke_tests_pass_and_write_junit",
        "make bench": "none: hours; figures.md says when it ran",
        "make ": "none: it runs the tests themselves",
        "tests/lab/kube.py run -- python": "none: it runs the tests themselves",
        "cd roles/kafka": "tests/lab/test_molecule.py::test_role",
        "molecule ": "tests/lab/test_molecule.py::test_role",
        "../../tests/lab/lab.py --lab molecule ssh": "tests/lab/test_lab.py::test_ssh_knows_the_hosts_and_their_keys",
    },
}


@pytest.mark.parametrize("page", PAGES)
def test_each_command_of_a_page_is_run_by_a_test(page: str) -> None:
    used = {int(number) for text in SOURCES for number in re.findall(rf'(?:documented(?:\.command)?|types)\("{page}", (\d+)', text)}
    found = commands(page)
    otherwise = OTHERWISE.get(page, {})
    missing = [text for number, text in enumerate(found) if number not in used and not any(text.startswith(begin) for begin in otherwise)]
    assert missing == [] and used <= set(range(len(found))), missing
    assert [begin for begin in otherwise if not any(text.startswith(begin) for text in found)] == []
    for where in otherwise.values():
        path, _, test = where.partition("::")
        assert where.startswith("none: ") or f"def {test}(" in (ROOT / path).read_text(), where
