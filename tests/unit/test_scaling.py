"""The scaling study counts only runs that had what they asked for, and draws them beside the thesis's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from gridstead.cli.scaling import Shape, curves, drawn, measure, scaling

BASE = Shape(2, 1, 1)
SWEEPS = {"executors": (1, 2, 4), "cores": (1, 2), "memory": (1, 2)}


def cluster(executors: int, hosts: int) -> Any:
    """The answers of a cluster that has room for so many executors on so many hosts, and computes 60 s alone."""

    def run(shape: Shape, _title: str) -> dict[str, Any]:
        got = min(shape.executors, executors)
        return {"seconds": {"compute": 60.0 / got / shape.cores}, "executors": sorted(f"w{n % hosts}" for n in range(got))}

    return run


def results(hosts: int, executors: int = 3, repeat: int = 2) -> dict[str, Any]:
    told: list[str] = []
    rows = list(measure(SWEEPS, BASE, repeat, cluster(executors, hosts), told.append))
    shapes = {replace(BASE, **{name: value}) for name, values in SWEEPS.items() for value in values}
    assert len(told) == sum(repeat if shape.executors <= executors else 1 for shape in shapes)
    return {"results": rows}


def test_each_shape_runs_once_a_round_and_what_has_no_room_does_not_count() -> None:
    rows = {(row["sweep"], row[row["sweep"]]): row for row in results(2)["results"]}
    assert rows["executors", 2]["seconds"] == rows["cores", 1]["seconds"] == [30.0, 30.0]
    assert rows["executors", 4] | {"seconds": []} == rows["executors", 4]
    assert (rows["executors", 4]["got"], rows["executors", 2]["nodes"]) == (3, 2)
    assert rows["cores", 2]["seconds"] == [15.0, 15.0]


def test_times_are_over_that_of_the_least_value_and_nodes_come_from_several_results() -> None:
    lines = curves([results(3), results(1, executors=1)])
    assert lines["executors"] == [(1, 60.0, 1.0), (2, 30.0, 0.5)]
    assert lines["cores"] == [(1, 30.0, 1.0), (2, 15.0, 0.5)]
    assert lines["nodes"] == [(1, 60.0, 1.0), (2, 30.0, 0.5)]


def test_the_plot_has_a_panel_a_sweep_with_the_theses_points(tmp_path: Path) -> None:
    root = ElementTree.fromstring(drawn(curves([results(2)])))
    names = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert names.count("rect") == 4 and names.count("polyline") == 8
    texts = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"24%", "31%", "52%", "36%", "50%"} <= texts  # 1 - 0.76, ...; and ours
    ElementTree.fromstring(drawn(curves([{"results": []}])))  # nothing had room


def test_a_run_that_failed_does_not_count_and_is_not_tried_again() -> None:
    runs: list[Shape] = []

    def run(shape: Shape, title: str) -> dict[str, Any]:
        runs.append(shape)
        return {"executors": [], "seconds": {"compute": 0.0}} if shape.memory == 2 else cluster(4, 2)(shape, title)

    rows = {(row["sweep"], row[row["sweep"]]): row for row in measure(SWEEPS, BASE, 3, run, lambda text: None)}
    assert (rows["memory", 2]["got"], rows["memory", 2]["nodes"], rows["memory", 2]["seconds"]) == (0, 0, [])
    assert runs.count(replace(BASE, memory=2)) == 1 and rows["memory", 1]["seconds"] == [30.0] * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--executors", "0,1"], "whole numbers of at least 1"),
        (["--cores", "two"], "whole numbers of at least 1"),
        (["--fixed", "4,2"], "three whole numbers"),
        (["--to", "2025-05-01"], "is after --to"),
        (["--beside", "{tmp}/none.json"], "does not exist"),
        (["--beside", "{tmp}/text"], "holds no results"),
        (["--beside", "{tmp}/other.json"], "is about 2024-01-01 to 2024-01-02"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    (tmp_path / "text").write_text("none")
    (tmp_path / "other.json").write_text(json.dumps({"from": "2024-01-01", "to": "2024-01-02", "results": []}))
    monkeypatch.setenv("GRIDSTEAD_CONFIG", str(tmp_path / "absent.toml"))
    days = ["--from", "2025-06-01", "--to", "2025-06-01"]
    done = CliRunner().invoke(scaling, [*days, *(part.replace("{tmp}", str(tmp_path)) for part in arguments)])
    assert done.exit_code == 2 and said in " ".join(done.output.split()), done.output
