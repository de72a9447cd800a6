"""Requests are put together from the calls of sockets, and their times are told right."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from gridstead.cli.io import drawn
from gridstead.wire import READ, WRITE, Request, duration_ns, percentile, percentiles, requests, time_ns, transfers

STORE = ("192.0.2.1", 9000)


def call(kind: str, begin_us: int, amount: int, took_us: int = 10, thread: int = 1, server: tuple[str, int] = STORE) -> dict[str, Any]:
    """One event, as the flight recorder prints it."""
    values = {
        "startTime": f"2026-01-02T03:04:05.{begin_us:06d}Z",
        "duration": f"PT0.{took_us:06d}S",
        "eventThread": {"javaThreadId": thread},
        "host": "store.example.org",
        "address": server[0],
        "port": server[1],
    }
    return {"type": kind, "values": {**values, ("bytesRead" if kind == READ else "bytesWritten"): amount}}


def seen(*events: dict[str, Any]) -> list[tuple[float, float, int, int]]:
    """First byte and end in ms, calls of read, and bytes, of each request to STORE."""
    found = requests(transfers({"recording": {"events": list(events)}}, [STORE]))
    return [(round(r.first_byte_ms, 3), round(r.took_ms, 3), r.reads, r.bytes) for r in found]


def test_a_request_is_from_what_is_written_to_what_is_read_before_the_next() -> None:
    first = [call(WRITE, 1000, 80), call(WRITE, 1100, 5), call(READ, 1500, 4000), call(READ, 1700, 4000)]
    second = [call(WRITE, 3000, 80), call(READ, 3100, 100)]
    assert seen(*first, *second) == [(0.51, 0.71, 2, 8000), (0.11, 0.11, 1, 100)]
    assert seen(*reversed([*first, *second])) == seen(*first, *second)


def test_threads_do_not_mix_and_other_servers_do_not_count() -> None:
    one = [call(WRITE, 1000, 80), call(READ, 5000, 10)]
    other = [call(WRITE, 2000, 80, thread=2), call(READ, 3000, 7, thread=2)]
    away = [call(WRITE, 1500, 9, server=("192.0.2.1", 22)), call(READ, 1600, 9, server=("192.0.2.2", 9000))]
    assert seen(*one, *other, *away) == [(4.01, 4.01, 1, 10), (1.01, 1.01, 1, 7)]
    named = transfers({"recording": {"events": away}}, [("store.example.org", 22)])
    assert [transfer.server for transfer in named] == [("192.0.2.1", 22)]


def test_what_has_no_answer_is_no_request_and_an_end_is_no_byte() -> None:
    assert seen(call(WRITE, 1000, 3), call(READ, 1100, -1), call(WRITE, 2000, 3)) == []
    assert seen(call(READ, 1000, 5)) == [(0.01, 0.01, 1, 5)]  # what was written before the recording began


def test_times_and_durations_are_read_to_the_nanosecond() -> None:
    assert time_ns("1970-01-01T00:00:01.000000002Z") == 1_000_000_002
    assert time_ns("1970-01-01T02:00:01.5+02:00") == 1_500_000_000
    assert time_ns("1970-01-01T00:00:00Z") == 0
    assert duration_ns("PT0.000000007S") == 7
    assert duration_ns("PT1H2M3.5S") == 3_723_500_000_000
    for wrong in ("now", "2026-01-02T03:04:05"):
        with pytest.raises(ValueError):
            time_ns(wrong)


def test_a_percentile_is_one_of_the_values() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, p) for p in (0, 20, 21, 50, 100)] == [1, 1, 2, 3, 5]
    assert percentiles(values, (50, 99.5)) == {"p50": 3, "p99.5": 5}
    assert percentiles([]) == {}
    with pytest.raises(ValueError):
        percentile([], 50)


def test_the_plot_has_a_curve_for_each_measurement() -> None:
    results = [
        {"place": place, "format": format_, "query": query, "first_byte_steps_ms": [0.2, 1.0, 30.0]}
        for place in ("hdfs:///a", "s3a://b/<c>")
        for format_ in ("csv", "parquet")
        for query in ("one column", "all columns")
    ]
    root = ElementTree.fromstring(drawn(results))
    name = "{http://www.w3.org/2000/svg}"
    curves = [node.attrib["points"].split() for node in root.iter(f"{name}polyline")]
    assert len(curves) == 8 and all(len(points) == 3 for points in curves)
    assert len(list(root.iter(f"{name}rect"))) == 4
    for points in curves:
        pairs = [tuple(map(float, point.split(","))) for point in points]
        assert [x for x, _ in pairs] == sorted(x for x, _ in pairs) and [y for _, y in pairs] == sorted((y for _, y in pairs), reverse=True)


def test_an_end_is_after_a_first_byte() -> None:
    request = Request(0, 2_000_000, 5_000_000, 3, 10)
    assert (request.first_byte_ms, request.took_ms) == (2.0, 5.0)
