"""The sources: how a message tells which it is of, and what FTS transfers and Rucio traces become."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from gridstead.events import FIELDS, Event, ValidationError, access_of
from gridstead.schema import SOURCE_RECORDS
from gridstead.sources import SOURCES, normalise, normalise_json
from oracle import distinct, oracle_statistics
from samples import FTS_2016, FTS_2017, FTS_TODAY, TRACE

NOW = 1_700_000_000_000
BIN_MS = 600_000


def flow(*events: Event) -> dict[tuple[str, str, str, bool, bool], int]:
    """Bytes by (source, destination, activity, is_remote, is_transfer), as the oracle of the statistics has them."""
    sums: dict[tuple[str, str, str, bool, bool], int] = {}
    for name, (_, _, moved, *_) in oracle_statistics(distinct(events))["transfers"].items():
        _, src, dst, is_remote, is_transfer, activity, _ = name.split("|")
        key = (src, dst, activity, is_remote == "true", is_transfer == "true")
        sums[key] = sums.get(key, 0) + moved
    return sums


def content(event: Event) -> Event:
    """An event without what its arrival adds."""
    return {name: value for name, value in event.items() if name != "received_ms"}


# --- which source ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "header", "source"),
    [
        ({"end_time": 1_600_000_000}, None, "access"),
        (FTS_2016, None, "fts"),
        (TRACE, None, "rucio"),
        ({"data": FTS_2016, "metadata": {"producer": "fts", "type": "complete"}}, None, "fts"),
        ({"data": TRACE, "metadata": {"producer": "monitoring", "type": "rucio"}}, None, "rucio"),
        ({"data": TRACE}, None, "rucio"),
        ({"data": {"end_time": 1_600_000_000}, "metadata": {"type": "access"}}, None, "access"),
        ({**TRACE, "end_time": 1_600_000_000}, "access", "access"),  # what is said goes before what it looks like
        ({"data": {**TRACE, "end_time": 1_600_000_000}, "metadata": {"source": "access", "producer": "rucio"}}, None, "access"),
        ({"data": TRACE, "metadata": "none"}, None, "rucio"),
        ({"data": TRACE, "metadata": {"producer": "fts", "source": "xrootd", "type": 7}}, "rucio", "rucio"),
    ],
)
def test_a_message_tells_its_source(record: dict[str, Any], header: str | None, source: str) -> None:
    event = normalise(record, NOW, header)
    assert event["source"] == source
    assert tuple(event) == FIELDS


@pytest.mark.parametrize(
    ("record", "header", "reason"),
    [
        ({}, None, "tells no source: a file access has end_time, an FTS message tr_id and src_url, a Rucio trace eventType"),
        ({"data": {"jobs": 3}, "metadata": {"producer": "crab"}}, None, "tells no source"),
        ({"end_time": 1}, "xrootd", "header gridstead-source: is none of access, fts, rucio"),
        ({"end_time": 1}, "Access", "header gridstead-source: is none of access, fts, rucio"),
        (TRACE, "access", "end_time: is required"),
        ({"data": {"throughput": 1.5}, "metadata": {"producer": "fts"}}, None, "src_hostname: neither it nor src_url"),
    ],
)
def test_what_tells_no_source_is_refused_with_what_is_missing(record: dict[str, Any], header: str | None, reason: str) -> None:
    with pytest.raises(ValidationError) as raised:
        normalise(record, NOW, header)
    assert reason in str(raised.value)


# --- FTS -------------------------------------------------------------------------------------------------------------


def test_an_fts_transfer_reads_from_the_source_into_the_destination() -> None:
    event = normalise(FTS_2016, NOW)
    assert content(event) | {"event_id": ""} == {
        "event_id": "", "source": "fts", "producer_id": FTS_2016["tr_id"], "file_ref": FTS_2016["tr_id"],
        "server_host": "se1.site-a.example", "server_domain": "site-a.example", "server_username": None,
        "client_host": "se2.grid.site-b.example", "client_domain": "grid.site-b.example",
        "user": None, "user_dn": FTS_2016["user_dn"], "vo": "atlas", "app_info": None,
        "file_lfn": "mc15:EVNT.08775130.pool.root.1", "file_size": 10565043,
        "start_ms": 1466632862284, "end_ms": 1466632865616,
        "read_bytes": 10565043, "read_single_bytes": 0, "read_vector_bytes": 0, "write_bytes": 0,
        "open_missing": False, "clock_clamped": False,
    }  # fmt: skip
    assert flow(event) == {("site-a.example", "grid.site-b.example", "r", True, True): 10565043}


def test_three_layouts_of_fts_are_one_event() -> None:
    """Numbers in strings or not, other names, fields added, dropped and in another order, an envelope, FTS's EOT."""
    first = normalise(FTS_2016, NOW)
    assert normalise(FTS_2017, NOW) == first
    assert normalise(FTS_TODAY, NOW) == first
    enveloped = {"data": FTS_2017, "metadata": {"producer": "fts", "type": "complete", "type_prefix": "raw"}}
    assert normalise_json(json.dumps(enveloped).encode() + b"\x04", NOW) == first


@pytest.mark.parametrize(
    ("change", "moved", "size"),
    [
        ({"tr_bt_transfered": 4_000_000}, 4_000_000, 10565043),
        ({"tr_bt_transfered": 0, "f_size": 0}, 0, None),  # failed before it learnt the size
        ({"tr_bt_transfered": 0, "f_size": -1}, 0, None),
        ({"tr_bt_transfered": None}, 0, 10565043),  # not told: none is invented
    ],
)
def test_a_failed_transfer_is_kept_with_what_it_moved_and_flows_the_same_way(change: dict[str, Any], moved: int, size: int) -> None:
    failed = FTS_2017 | {"t_final_transfer_state": "Error", "t__error_message": "TRANSFER Operation timed out"} | change
    event = normalise(failed, NOW)
    assert (event["read_bytes"], event["file_size"]) == (moved, size)
    assert flow(event) == {("site-a.example", "grid.site-b.example", "r" if moved else "u", True, False): moved}


def test_an_ok_transfer_without_its_bytes_moved_the_whole_file() -> None:
    assert normalise({name: value for name, value in FTS_2017.items() if name != "tr_bt_transfered"}, NOW)["read_bytes"] == 10565043
    empty = normalise(FTS_2017 | {"tr_bt_transfered": 0, "f_size": 0}, NOW)
    assert (empty["read_bytes"], empty["file_size"]) == (0, 0)


def test_of_the_times_of_an_attempt_the_inner_ones_count_where_they_are_known() -> None:
    never_moved = normalise(FTS_2017 | {"timestamp_tr_st": 0, "timestamp_tr_comp": 0}, NOW)
    assert (never_moved["start_ms"], never_moved["end_ms"]) == (1466632860151, 1466632866232)
    broke_off = normalise(FTS_2017 | {"timestamp_tr_comp": "0"}, NOW)
    assert (broke_off["start_ms"], broke_off["end_ms"]) == (1466632862284, 1466632866232)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"src_hostname": "", "file_metadata": ""},
         ("se1.site-a.example", "site-a.example", "/dpm/atlas/rucio/mc15/5d/cb/EVNT.08775130.pool.root.1")),
        ({"src_hostname": "SE1.Site-A.example.", "file_metadata": {"scope": "x"}, "src_url": "davs://other:443//eos/f"},
         ("se1.site-a.example", "site-a.example", "/eos/f")),
        ({"src_hostname": "192.0.2.1", "file_metadata": None, "src_url": None}, ("192.0.2.1", None, None)),
        ({"src_hostname": "", "file_metadata": None, "src_url": "root://[2001:db8::1]:1094//eos/f"}, ("2001:db8::1", None, "/eos/f")),
        ({"src_hostname": "se1", "file_metadata": None, "src_url": "gsiftp://se1"}, ("se1", None, None)),
        ({"src_hostname": "site.example"}, ("site.example", None, "mc15:EVNT.08775130.pool.root.1")),
    ],
)  # fmt: skip
def test_storage_domain_and_file_of_an_fts_transfer(change: dict[str, Any], expected: tuple[str | None, ...]) -> None:
    event = normalise(FTS_2017 | change, NOW)
    assert (event["server_host"], event["server_domain"], event["file_lfn"]) == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"file_state": "ACTIVE"}, "file_state: tells of a change of state"),
        ({"timestamp_tr_comp": None, "tr_timestamp_complete": ""}, "tr_timestamp_complete: is required; a start message has none"),
        ({"src_hostname": "unknown", "src_url": "http://[::1"}, "src_hostname: neither it nor src_url names the storage"),
        ({"dst_hostname": None, "dst_url": None}, "dst_hostname: neither it nor dst_url names the storage"),
        ({"tr_bt_transfered": "many"}, "tr_bt_transfered: a number is expected, not a string"),
        ({"tr_bt_transfered": "1e999"}, "tr_bt_transfered: a number is expected"),
        ({"tr_bt_transfered": -1}, "tr_bt_transfered: -1 is negative"),
        ({"timestamp_tr_st": 1466632865617}, "timestamp_tr_st: 1466632865617 ms is after the end"),
        ({"file_metadata": [1]}, "file_metadata: an object or a string is expected"),
        ({"vo": 7}, "vo: a string is expected"),
    ],
)
def test_what_is_no_finished_transfer_is_refused_by_name(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as raised:
        normalise(FTS_2017 | change, NOW)
    assert reason in str(raised.value)


def test_attempts_are_told_apart_and_repeats_are_not() -> None:
    retry = FTS_2017 | {"tr_id": FTS_2017["tr_id"].replace("2201", "2210")}
    assert normalise(retry, NOW)["event_id"] != normalise(FTS_2017, NOW)["event_id"]
    assert normalise(FTS_2017, NOW + 9_999)["event_id"] == normalise(FTS_2016, NOW)["event_id"]
    corrected = normalise(FTS_2017 | {"tr_bt_transfered": 5}, NOW)["event_id"]
    assert corrected != normalise(FTS_2017, NOW)["event_id"]
    assert access_of(corrected) == access_of(normalise(FTS_2017, NOW)["event_id"])
    without_id = {name: value for name, value in FTS_2017.items() if name != "tr_id"}
    assert normalise(without_id, NOW)["file_ref"] == "4d964812-2576-58e0-92d0-a2ef2e24afac/856147523"


# --- Rucio -----------------------------------------------------------------------------------------------------------


def test_a_rucio_download_reads_from_the_storage_element() -> None:
    event = normalise(TRACE, NOW)
    assert content(event) | {"event_id": ""} == {
        "event_id": "", "source": "rucio", "producer_id": TRACE["uuid"], "file_ref": None,
        "server_host": "SITE-A_DATADISK", "server_domain": "SITE-A_DATADISK", "server_username": None,
        "client_host": "wn17.site-b.example", "client_domain": "SITE-B", "user": "jdoe", "user_dn": "/DC=example/CN=jdoe",
        "vo": None, "app_info": "download", "file_lfn": "mc20:AOD.000017.pool.root.1", "file_size": 2_000_000_000,
        "start_ms": 1699999000250, "end_ms": 1699999100750,
        "read_bytes": 2_000_000_000, "read_single_bytes": 0, "read_vector_bytes": 0, "write_bytes": 0,
        "open_missing": False, "clock_clamped": False,
    }  # fmt: skip
    assert flow(event) == {("SITE-A_DATADISK", "SITE-B", "r", True, True): 2_000_000_000}


@pytest.mark.parametrize(
    ("kind", "written"), [("upload", True), ("PUT_SM_A", True), ("sm_put", True), ("get_sm", False), ("sm_get_a", False)]
)
def test_the_kind_of_a_trace_gives_the_direction(kind: str, written: bool) -> None:
    event = normalise(TRACE | {"eventType": kind}, NOW)
    assert (event["read_bytes"], event["write_bytes"]) == ((0, 2_000_000_000) if written else (2_000_000_000, 0))
    ways = ("SITE-B", "SITE-A_DATADISK", "w") if written else ("SITE-A_DATADISK", "SITE-B", "r")
    assert [key[:3] for key in flow(event)] == [ways]


@pytest.mark.parametrize("change", [
    {"clientState": "FAILED"}, {"clientState": "ALREADY_DONE"}, {"clientState": "FOUND_ROOT"}, {"clientState": None},
    {"filesize": None}, {"eventType": "touch"},
])  # fmt: skip
def test_bytes_that_a_trace_does_not_tell_are_not_invented(change: dict[str, Any]) -> None:
    event = normalise(TRACE | change, NOW)
    assert event["read_bytes"] == event["write_bytes"] == 0
    assert list(flow(event).values()) == [0]


def test_a_list_of_storage_elements_stays_one_event_and_names_all_of_them() -> None:
    event = normalise(TRACE | {"remoteSite": " SITE-C_DISK, SITE-A_DATADISK,,SITE-C_DISK,unknown"}, NOW)
    assert (event["server_host"], event["server_domain"]) == ("SITE-A_DATADISK,SITE-C_DISK", None)
    assert flow(event) == {("SITE-A_DATADISK,SITE-C_DISK", "SITE-B", "r", False, True): 2_000_000_000}
    assert event["event_id"] == normalise(TRACE | {"remoteSite": "SITE-A_DATADISK,SITE-C_DISK"}, NOW)["event_id"]
    nowhere = normalise(TRACE | {"remoteSite": ","}, NOW)
    assert (nowhere["server_host"], nowhere["server_domain"]) == (None, None)


@pytest.mark.parametrize("element", ["SITE-B", "SITE-B_SCRATCHDISK"])
def test_a_storage_element_of_the_clients_site_is_not_remote(element: str) -> None:
    event = normalise(TRACE | {"remoteSite": element}, NOW)
    assert (event["server_host"], event["server_domain"]) == (element, "SITE-B")
    assert list(flow(event)) == [("SITE-B", "SITE-B", "r", False, True)]


def test_three_layouts_of_rucio() -> None:
    """Rucio's own client, a pilot (other times and names, a size in a string, DN but no account), a touch of 2015."""
    pilot = {
        "eventType": "get_sm_a", "eventVersion": "3.7", "clientState": "DONE", "localSite": "SITE-B", "remoteSite": "SITE-B_DATADISK",
        "timeStart": 1699999000.25, "transferStart": None, "timeEnd": 1699999100.75, "dataset": "mc20.AOD", "scope": "mc20",
        "name": "AOD.000017.pool.root.1", "filesize": "2000000000", "hostname": "", "ip": "192.0.2.17", "usrdn": "/DC=example/CN=jdoe",
        "traceId": "5f1c0b9a7e3d4f2a8c6b1d0e9f7a3b5c", "vo": "atlas", "suspicious": "0", "guid": None,
    }  # fmt: skip
    event = normalise(pilot, NOW)
    same = ("file_lfn", "file_size", "start_ms", "end_ms", "read_bytes", "user_dn", "client_domain")
    assert [event[name] for name in same] == [normalise(TRACE, NOW)[name] for name in same]
    assert (event["client_host"], event["user"], event["vo"], event["producer_id"]) == ("192.0.2.17", None, "atlas", pilot["traceId"])
    touch = {"eventType": "touch", "clientState": "DONE", "account": "jdoe", "dataset": "mc20.AOD", "traceTimeentryUnix": 1.699999102e9}
    event = normalise(touch, NOW)
    assert (event["file_lfn"], event["start_ms"], event["end_ms"], event["open_missing"]) == (None, 1699999102000, 1699999102000, True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"eventType": "sfo2eos"}, "eventType: is none of download, get"),
        ({"eventType": None}, "eventType: is required"),
        ({"transferEnd": None, "timeEnd": 0, "traceTimeentryUnix": ""}, "transferEnd: is required"),
        ({"transferStart": 1699999200.0}, "transferStart: 1699999200000 ms is after the end"),
        ({"filesize": 0.5}, "filesize: 0.5 is not a whole number"),
        ({"remoteSite": ["A"]}, "remoteSite: a string is expected, not an array"),
    ],
)
def test_a_trace_that_cannot_be_read_is_refused_by_name(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as raised:
        normalise(TRACE | change, NOW)
    assert reason in str(raised.value)


def test_traces_of_one_operation_on_several_files_are_several_accesses() -> None:
    records = [
        TRACE,
        TRACE | {"filename": "other"},
        TRACE | {"eventType": "touch"},
        TRACE | {"hostname": "wn18"},
        TRACE | {"transferStart": 1699999001},
    ]
    assert len({access_of(normalise(record, NOW)["event_id"]) for record in records}) == len(records)
    again = TRACE | {"traceId": "ffffffffffffffffffffffffffffffff", "traceTimeentryUnix": 1699999999.0}
    assert normalise(again, NOW)["event_id"] == normalise(TRACE, NOW)["event_id"]


# --- any source ------------------------------------------------------------------------------------------------------

SAMPLES: dict[str, list[dict[str, Any]]] = {
    "access": [
        {"file_lfn": "/a", "end_time": 1600000100, "start_time": 1600000000, "read_bytes": 5, "vo": "cms", "read_average": 1},
        {"end_time": 1600000100000, "start_time": 1600000000000, "read_bytes": 0, "read_bytes_at_close": 5, "file_lfn": "/a", "vo": "cms",
         "read_average": 1.5},
        {"vo": "cms", "write_bytes": 0, "file_lfn": "/a", "start_time": 1600000000, "end_time": 1600000100, "read_single_bytes": 5,
         "dst_tier": -1, "new": {"x": [1]}},
    ],
    "fts": [FTS_2016, FTS_2017, FTS_TODAY],
    "rucio": [
        TRACE, dict(reversed(TRACE.items())),
        {name: value for name, value in TRACE.items() if name not in ("timeStart", "timeEnd", "protocol", "ip")} | {"new": [1]},
    ],
}  # fmt: skip


@pytest.mark.parametrize("source", SAMPLES)
def test_fields_added_dropped_and_reordered_change_no_event(source: str) -> None:
    draw = random.Random(source)
    events = [normalise(record, NOW) for record in SAMPLES[source]]
    moved = {(event["event_id"], event["read_bytes"], event["start_ms"], event["end_ms"], event["file_lfn"]) for event in events}
    assert len(moved) == 1
    read = {field.name for field in SOURCES[source].fields if field.becomes}
    for record in SAMPLES[source]:
        names = [*record, "a_field_of_tomorrow"]
        draw.shuffle(names)
        changed = {name: record.get(name, {"deep": [None]}) for name in names if name in read or draw.random() < 0.5}
        assert normalise(changed, NOW, source) == normalise(record, NOW)


@pytest.mark.parametrize("source", SAMPLES)
def test_spark_reads_the_records_of_every_layout_with_one_schema(spark: SparkSession, source: str, tmp_path: Path) -> None:
    (tmp_path / "records").write_text("".join(json.dumps(record) + "\n" for record in SAMPLES[source][1:]))
    rows = spark.read.schema(SOURCE_RECORDS[source]).json(str(tmp_path / "records")).collect()
    for row, record in zip(rows, SAMPLES[source][1:], strict=True):
        assert row.asDict().keys() == set(SOURCE_RECORDS[source].names)
        for name, value in row.asDict().items():
            given = record.get(name)
            if not isinstance(given, dict) and given is not None:
                assert value == given, name
