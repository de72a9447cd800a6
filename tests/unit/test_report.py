"""report: exact sums, series, selections, and their forms."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from appliance_files import write_appliance
from gridstead.cli import main, report, transfers
from gridstead.cli.report import to_csv, to_json, to_terminal
from gridstead.cli.transfers import Selection, Sums
from gridstead.cli.units import Moment, human_bytes, human_seconds, sparkline, utc
from gridstead.smoke import reference

BIN_MS = 600_000
JUNE_MS = 1_748_736_000_000  # 2025-06-01T00:00:00Z


def document(bin_number: int, moved: int, **values: object) -> dict[str, object]:
    base = {"vo": "cms", "src": "a", "dst": "b", "activity": "r", "is_remote": True, "is_transfer": False}
    counts = {"bytes": moved, "finished": 1, "active": 1, "active_time": 1000}
    return {**base, **counts, "bin_end_ms": JUNE_MS + (bin_number + 1) * BIN_MS, "bin_ms": BIN_MS, **values}


def test_sums_stay_exact_where_doubles_do_not() -> None:
    rows = [document(0, 2**53), document(0, 1), document(1, 1)]
    assert float(2**53) + 1.0 + 1.0 != 2**53 + 2
    assert transfers.matrix(rows, ["src", "dst"]) == {("a", "b"): Sums(2**53 + 2, 3, 3000)}
    assert to_json(rows, ["src"], Selection())["totals"]["bytes"] == 2**53 + 2


def test_the_matrix_is_ordered_by_bytes_and_names_values_as_keys_do() -> None:
    rows = [document(0, 5), document(0, 9, src="c", is_remote=False), document(1, 1, vo=None)]
    assert list(transfers.matrix(rows, ["src", "is_remote"])) == [("c", "false"), ("a", "true")]
    assert ("unknown",) in transfers.matrix(rows, ["vo"])


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 2**62)), min_size=1))
def test_the_series_keeps_every_byte_and_is_short_enough_to_draw(bins: list[tuple[int, int]]) -> None:
    rows = [document(number, moved) for number, moved in bins]
    answer = to_json(rows, ["src"], Selection())
    assert sum(point["bytes"] for point in answer["series"]) == sum(moved for _, moved in bins)
    begins = [point["begin_ms"] for point in answer["series"]]
    assert begins == sorted(begins) and all(begin % answer["step_ms"] == 0 for begin in begins)
    assert (begins[-1] - begins[0]) // answer["step_ms"] < 72
    assert answer["step_ms"] % BIN_MS == 0


def test_the_terminal_shows_human_and_exact_bytes() -> None:
    rows = [document(0, 3 << 40), document(7, 1234, src="c")]
    console = Console(file=io.StringIO(), width=140)
    console.print(to_terminal(rows, ["src", "dst"], limit=1))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3.00 TiB" in text and f"{3 << 40:,}" in text and f"{(3 << 40) + 1234:,}" in text
    assert "1 more rows" in text and "█" in text
    console.print(to_terminal([], ["src"], 1))
    assert "No statistics" in console.file.getvalue()  # type: ignore[attr-defined]


def test_csv_holds_the_same_numbers() -> None:
    rows = [document(0, 2**60), document(1, 7, src="c,d")]
    table = list(csv.DictReader(io.StringIO(to_csv(rows, ["src", "dst"], "matrix"))))
    assert [int(row["bytes"]) for row in table] == [2**60, 7]
    assert table[1]["src"] == "c,d"
    series = list(csv.DictReader(io.StringIO(to_csv(rows, ["src"], "series"))))
    assert [row["begin"] for row in series] == ["2025-06-01T00:00:00Z", "2025-06-01T00:10:00Z"]


def test_a_selection_takes_whole_bins() -> None:
    query = Selection(JUNE_MS, JUNE_MS + BIN_MS, (("vo", "cms"),)).query()
    limits = {"format": "epoch_millis", "gt": JUNE_MS, "lte": JUNE_MS + BIN_MS}
    assert query == {"bool": {"filter": [{"term": {"vo": "cms"}}, {"range": {"bin_end_ms": limits}}]}}
    assert Selection().query() == {"match_all": {}}


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2025-06-01", JUNE_MS),
        ("2025-06-01T00:10", JUNE_MS + BIN_MS),
        ("2025-06-01T02:00+02:00", JUNE_MS),
        (str(JUNE_MS), JUNE_MS),
    ],
)
def test_moments(text: str, ms: int) -> None:
    assert Moment().convert(text, None, None) == ms


def test_units() -> None:
    assert [human_bytes(count) for count in (0, 1023, 1536, 10 << 20, 2**63 - 1)] == [
        *("0 B", "1023 B", "1.50 KiB", "10.0 MiB", "8.00 EiB"),
    ]
    assert [human_seconds(seconds) for seconds in (0.25, 59, 61, 3725, 90_000)] == [
        *("0.2s", "59s", "1m 01s", "1h 02m", "1d 01h"),
    ]
    assert utc(JUNE_MS) == "2025-06-01T00:00:00Z"
    assert sparkline([0, 1, 8]) == "▁▁█" and sparkline([0, 0]) == "▁▁"


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--by", "src,colour"], 2, "unknown dimension colour"),
        (["--from", "2025-06-02", "--to", "2025-06-01"], 2, "is not before"),
        (["--from", "soon"], 2, "is not a time"),
        ([], 4, "Elasticsearch does not answer"),
    ],
)
def test_errors_say_what_and_what_next(tmp_path: Path, arguments: list[str], code: int, part: str) -> None:
    file = write_appliance(tmp_path)
    result = CliRunner().invoke(main, ["report", "--config", str(file), *arguments])
    assert result.exit_code == code
    assert part in result.output
    assert "next:" in result.output or "--help" in result.output


def test_errors_are_json_too(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["report", "--config", str(write_appliance(tmp_path)), "--json"])
    assert result.exit_code == 4
    assert json.loads(result.stderr)["next"].startswith("gridstead doctor")


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_the_reference_of_the_smoke_test_conserves_bytes_and_time(seed: int, count: int) -> None:
    draw = random.Random(seed)
    events = []
    for _ in range(count):
        start = JUNE_MS + draw.randrange(10**7)
        moved = draw.randrange(10**13)
        events.append(
            {
                **{"vo": "v", "server": draw.choice("ab"), "client": draw.choice("ab"), "size": 10},
                **{"start_ms": start, "end_ms": start + draw.choice((0, 1, draw.randrange(5 * BIN_MS)))},
                **{"read": moved, "write": draw.choice((0, 5))},
            }
        )
    found = reference.transfer_statistics(events, BIN_MS)
    assert sum(value["finished"] for value in found.values()) == count
    assert sum(value["bytes"] for value in found.values()) == sum(event["read"] + event["write"] for event in events)
    assert sum(value["active_time"] for value in found.values()) == sum(e["end_ms"] - e["start_ms"] for e in events)


def test_the_command_is_the_one_of_its_module() -> None:
    assert report.report.name == "report"
