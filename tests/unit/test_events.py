"""Normalisation, validation and identity of events, and the join of XRootD opens and closes."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridstead.events import (
    DAY_MS,
    EVENT_ID_DIGITS,
    FIELDS,
    INT64_MAX,
    TIME_MAX_MS,
    ValidationError,
    access_of,
    encode_event,
    event_id,
)
from gridstead.sources import normalise, normalise_json, parse_json
from gridstead.sources.xrootd import MemoryOpenTable, ServerKey, XrootdJoiner
from gridstead.xrootd import CloseRecord, DisconnectRecord, OpenRecord, Packet, Record, TimeRecord, TransferRecord

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

NOW = 1_700_000_000_000
RECORD: dict[str, Any] = {
    "unique_id": "ae5f87f8-1ffd-11e9-9717-47f48e80beef-32bd5a",
    "file_lfn": "/store/mc/file.root",
    "file_size": 327039,
    "start_time": 1548441643,
    "end_time": 1548441709,
    "read_bytes": 0,
    "read_bytes_at_close": 327039,
    "read_single_bytes": 327039,
    "read_vector_bytes": 0,
    "write_bytes": 0,
    "write_bytes_at_close": 0,
    "client_host": "wna220",
    "client_domain": "jinr-t1.example",
    "server_host": "lxfsre14c04",
    "server_domain": "cern.example",
    "server_username": "",
    "user": "",
    "user_dn": None,
    "vo": "unknown",
    "app_info": "",
}


def _with(**changes: Any) -> dict[str, Any]:
    return {**RECORD, **changes}


def test_a_record_is_normalised_field_by_field() -> None:
    event = normalise(RECORD, NOW)
    assert tuple(event) == FIELDS
    identity = event.pop("event_id")
    assert len(identity) == 32 and int(identity, 16) >= 0
    assert event == {
        "source": "access",
        "producer_id": "ae5f87f8-1ffd-11e9-9717-47f48e80beef-32bd5a",
        "server_host": "lxfsre14c04",
        "server_domain": "cern.example",
        "server_username": None,
        "client_host": "wna220",
        "client_domain": "jinr-t1.example",
        "user": None,
        "user_dn": None,
        "vo": None,
        "app_info": None,
        "file_lfn": "/store/mc/file.root",
        "file_ref": None,
        "file_size": 327039,
        "start_ms": 1548441643000,
        "end_ms": 1548441709000,
        "read_bytes": 327039,
        "read_single_bytes": 327039,
        "read_vector_bytes": 0,
        "write_bytes": 0,
        "open_missing": False,
        "clock_clamped": False,
        "received_ms": NOW,
    }


def _identity(access: str, version: str) -> str:
    first, second = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (access, access + version))
    return first + second


def test_the_identity_is_pinned() -> None:
    """It is stored in the archive for years: a change of its definition must be seen."""
    access = '["access","lxfsre14c04","/store/mc/file.root","client","wna220",1548441643000]'
    assert normalise(RECORD, NOW)["event_id"] == _identity(access, "[1548441709000,327039,0]")
    access = '["access","lxfsre14c04","/store/mc/file.root","user","me",null]'
    lost = normalise(_with(start_time=0, client_host=None, user="me"), NOW)
    assert lost["event_id"] == _identity(access, "[1548441709000,327039,0]")
    (event,) = XrootdJoiner(MemoryOpenTable()).join(_packet(CloseRecord(7, 1, 2, 4)), "10.0.0.1", NOW).events
    access = '["xrootd","10.0.0.1","fileid:7@1500000000.42"]'
    assert event["event_id"] == _identity(access, "[1600000030000,3,4]")


@pytest.mark.parametrize("start", [1548441643, None, 0])
def test_reports_of_one_access_share_its_half_and_no_other_does(start: int | None) -> None:
    first = normalise(_with(start_time=start), NOW)["event_id"]
    assert len(first) == EVENT_ID_DIGITS
    for change in ({"end_time": 1548441710}, {"read_bytes": 327040}, {"write_bytes": 1}):
        later = normalise(_with(start_time=start, **change), NOW)["event_id"]
        assert later != first and access_of(later) == access_of(first)
    for other in ({"server_host": "b"}, {"file_lfn": "/b"}, {"client_host": "b"}, {"start_time": 1548441644}):
        assert access_of(normalise(_with(**{"start_time": start, **other}), NOW)["event_id"]) != access_of(first)
    same = {"vo": "cms", "file_size": 1, "unique_id": "b", "user": "b", "client_domain": "b"}
    assert normalise(_with(start_time=start, **same), NOW)["event_id"] == first


def test_a_lost_open_is_the_same_in_both_spellings() -> None:
    assert normalise(_with(start_time=None), NOW)["event_id"] == normalise(_with(start_time=1548441709), NOW)["event_id"]


def test_client_and_user_of_one_name_are_two() -> None:
    client, user = _with(client_host="x", user=None), _with(client_host=None, user="x")
    assert access_of(normalise(client, NOW)["event_id"]) != access_of(normalise(user, NOW)["event_id"])


counts = st.integers(0, INT64_MAX)
words = st.none() | st.text(max_size=12)
seconds = st.integers(1, 4_000_000_000)
record_strategy = st.fixed_dictionaries(
    {"end_time": seconds},
    optional={
        "start_time": st.integers(0, 1_000_000),
        "read_bytes": counts,
        "read_bytes_at_close": counts,
        "write_bytes": counts,
        "write_bytes_at_close": st.none() | counts,
        "file_size": st.none() | counts,
        "file_lfn": words,
        "server_host": words,
        "client_host": words,
        "user": words,
        "vo": words,
        "unique_id": words,
    },
).map(lambda record: {**record, "start_time": min(record.get("start_time") or record["end_time"], record["end_time"])})


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return {**a, "producer_id": 0} == {**b, "producer_id": 0}


@given(record_strategy, st.randoms(use_true_random=False))
def test_the_identity_does_not_depend_on_the_form(record: dict[str, Any], shuffler: Any) -> None:
    event = normalise(record, NOW)
    items = list(record.items())
    shuffler.shuffle(items)
    assert _same(normalise(dict(items), NOW), event)
    enveloped = {"metadata": {"producer": "x", "end_time": "ignored"}, "data": record}
    assert _same(normalise(enveloped, NOW), event)
    if record["start_time"] * 1000 > 1e11:
        in_ms = {**record, "start_time": record["start_time"] * 1000, "end_time": record["end_time"] * 1000}
        assert _same(normalise(in_ms, NOW), event)
    as_float = {**record, "start_time": float(record["start_time"]), "end_time": float(record["end_time"])}
    assert _same(normalise(as_float, NOW), event)
    other_id = normalise({**record, "unique_id": "drawn anew"}, NOW + 5)
    assert other_id["event_id"] == event["event_id"]
    assert normalise_json(json.dumps(record).encode(), NOW) == event


@given(record_strategy)
def test_events_keep_their_promises_and_survive_the_wire(record: dict[str, Any]) -> None:
    event = normalise(record, NOW)
    assert event["start_ms"] <= event["end_ms"] <= NOW + DAY_MS
    for name in ("read_bytes", "write_bytes", "read_single_bytes", "read_vector_bytes", "start_ms", "end_ms"):
        assert type(event[name]) is int and 0 <= event[name] <= INT64_MAX
    wire = encode_event(event)
    assert b"\n" not in wire
    assert json.loads(wire) == event


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"file_lfn": "/store/other"}, "file"),
        ({"server_host": "other"}, "server"),
        ({"client_host": "other"}, "client"),
        ({"start_time": 1548441642}, "start"),
        ({"end_time": 1548441710}, "end"),
        ({"read_bytes": 327040}, "read"),
        ({"write_bytes": 1}, "write"),
        ({"client_host": None, "user": "wna220"}, "a user is not a client of the same name"),
    ],
)
def test_what_differs_in_content_is_another_event(change: dict[str, Any], field: str) -> None:
    assert normalise(_with(**change), NOW)["event_id"] != normalise(RECORD, NOW)["event_id"], field


def test_the_user_stands_in_for_an_unknown_client_only() -> None:
    assert normalise(_with(user="u1"), NOW)["event_id"] == normalise(_with(user="u2"), NOW)["event_id"]
    one, two = _with(client_host="", user="u1"), _with(client_host=None, user="u2")
    assert normalise(one, NOW)["event_id"] != normalise(two, NOW)["event_id"]


@pytest.mark.parametrize("unknown", [None, "", "unknown", " ", "Unknown"])
def test_unknown_becomes_none(unknown: Any) -> None:
    event = normalise(_with(vo=unknown, file_lfn=unknown, file_size=unknown, client_host=unknown), NOW)
    assert (event["vo"], event["file_lfn"], event["file_size"], event["client_host"]) == (None,) * 4


@pytest.mark.parametrize(
    ("given_bytes", "moved"),
    [
        ({"read_bytes": 0, "read_bytes_at_close": 9}, 9),
        ({"read_bytes": 9, "read_bytes_at_close": 0}, 9),
        ({"read_bytes": None, "read_bytes_at_close": None, "read_single_bytes": 3, "read_vector_bytes": 4}, 7),
        ({"read_bytes": 9.0, "read_bytes_at_close": "unknown"}, 9),
        ({"read_bytes": INT64_MAX, "read_bytes_at_close": 1}, INT64_MAX),
    ],
)
def test_bytes_moved_are_the_larger_candidate(given_bytes: dict[str, Any], moved: int) -> None:
    assert normalise(_with(**given_bytes), NOW)["read_bytes"] == moved


@pytest.mark.parametrize("start", [None, 0, "", "unknown", 0.0])
def test_a_lost_open_makes_start_equal_end(start: Any) -> None:
    event = normalise(_with(start_time=start), NOW)
    assert event["start_ms"] == event["end_ms"] == 1548441709000
    assert event["open_missing"] is True


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (1548441709, 1548441709000),
        (1548441709.25, 1548441709250),
        (1548441709000, 1548441709000),
        (100_000_000_000, 100_000_000_000_000),
        (100_000_000_001, 100_000_000_001),
        (TIME_MAX_MS, TIME_MAX_MS),
    ],
)
def test_times_in_s_or_ms(value: float, ms: int) -> None:
    event = normalise(_with(start_time=None, end_time=value), TIME_MAX_MS)
    assert event["end_ms"] == ms


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"end_time": None}, "end_time"),
        ({"end_time": "2019-01-25"}, "end_time"),
        ({"end_time": True}, "end_time"),
        ({"end_time": -5}, "end_time"),
        ({"end_time": TIME_MAX_MS + 1}, "end_time"),
        ({"end_time": 10**400}, "end_time"),
        ({"end_time": math.inf}, "end_time"),
        ({"end_time": 1e-9}, "end_time"),
        ({"start_time": 1548441710}, "start_time"),
        ({"start_time": []}, "start_time"),
        ({"read_bytes": -1}, "read_bytes"),
        ({"read_bytes_at_close": -1}, "read_bytes_at_close"),
        ({"write_bytes": 2**63}, "write_bytes"),
        ({"write_bytes_at_close": "12"}, "write_bytes_at_close"),
        ({"read_bytes": 1.5}, "read_bytes"),
        ({"read_bytes": 1e300}, "read_bytes"),
        ({"read_single_bytes": False}, "read_single_bytes"),
        ({"file_size": -1}, "file_size"),
        ({"file_size": {"bytes": 5}}, "file_size"),
        ({"file_lfn": 7}, "file_lfn"),
        ({"vo": ["cms"]}, "vo"),
        ({"user": {}}, "user"),
        ({"unique_id": 1.5}, "unique_id"),
        ({"read_bytes": None, "read_bytes_at_close": None, "read_single_bytes": INT64_MAX, "read_vector_bytes": 1},
         "read_bytes"),
        ({"data": 5, "metadata": {}}, "data"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        normalise(_with(**change), NOW)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a": "\xff"}', "invalid UTF-8 at byte 7"),
        (b'{"read_bytes": NaN}', "NaN is not a JSON number"),
        (b'{"read_bytes": -Infinity}', "-Infinity is not a JSON number"),
        (b"[1]", "an array"),
        (b"null", "null"),
        (b'"x"', "a string"),
        (b"", "invalid JSON"),
        (b'{"a": 1', "invalid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "invalid JSON"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    ],
)
def test_bad_json_is_refused_with_its_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        parse_json(raw)


@given(st.binary(max_size=200))
def test_random_bytes_are_an_event_or_a_validation_error(raw: bytes) -> None:
    try:
        encode_event(normalise_json(raw, NOW))
    except ValidationError:
        pass


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*RECORD, "data", "metadata"]), values, max_size=8))
def test_any_types_are_an_event_or_a_validation_error(changes: dict[str, Any]) -> None:
    try:
        event = normalise(_with(**changes), NOW)
    except ValidationError as error:
        assert error.reason
    else:
        assert json.loads(encode_event(event)) == event


def test_half_a_surrogate_pair_and_newlines_are_kept_as_text() -> None:
    event = normalise_json(b'{"end_time": 1548441709, "file_lfn": "/a\\nb\\ud800c\\u0000"}', NOW)
    assert event["file_lfn"] == "/a\nb\\ud800c\0"
    assert json.loads(encode_event(event)) == event


def test_a_clock_ahead_is_clamped_after_the_identity_was_taken() -> None:
    ahead = _with(start_time=NOW + 2 * DAY_MS, end_time=NOW + 3 * DAY_MS)
    first, second = normalise(ahead, NOW), normalise(ahead, NOW + 60_000)
    assert (first["start_ms"], first["end_ms"], first["clock_clamped"]) == (NOW, NOW, True)
    assert second["end_ms"] == NOW + 60_000
    assert first["event_id"] == second["event_id"]
    longer = normalise(_with(start_time=NOW - 5, end_time=NOW + 3 * DAY_MS), NOW)
    assert (longer["start_ms"], longer["end_ms"], longer["clock_clamped"]) == (NOW - 5, NOW, True)
    in_time = normalise(_with(end_time=NOW + DAY_MS), NOW)
    assert (in_time["end_ms"], in_time["clock_clamped"]) == (NOW + DAY_MS, False)


# --- the join --------------------------------------------------------------------------------------------------------

BEGIN, END = 1_600_000_000, 1_600_000_030


def _packet(*records: Record, begin: int = BEGIN, end: int = END, start: int = 1_500_000_000, sid: int = 42) -> Packet:
    return Packet(0, start, (TimeRecord(begin, end, sid), *records))


def test_a_close_is_joined_with_its_open() -> None:
    joiner = XrootdJoiner(MemoryOpenTable())
    assert joiner.join(_packet(OpenRecord(7, 100, 3, "/store/a", True)), "10.0.0.1", NOW).events == []
    later = _packet(CloseRecord(7, 60, 5, 9), begin=END, end=END + 100)
    (event,) = joiner.join(later, "10.0.0.1", NOW).events
    assert tuple(event) == FIELDS
    assert (event["start_ms"], event["end_ms"]) == (BEGIN * 1000, (END + 100) * 1000)
    assert (event["file_lfn"], event["file_size"], event["server_host"]) == ("/store/a", 100, "10.0.0.1")
    assert (event["read_bytes"], event["read_single_bytes"], event["read_vector_bytes"], event["write_bytes"]) == (
        65,
        60,
        5,
        9,
    )
    assert event["file_ref"] == "fileid:7@1500000000.42"
    assert (event["source"], event["open_missing"], event["client_host"]) == ("xrootd", False, None)
    assert event["event_id"] == event_id(event)


@pytest.mark.parametrize(
    "other",
    [
        (_packet(CloseRecord(7, 1, 0, 0), sid=43), "10.0.0.1"),
        (_packet(CloseRecord(7, 1, 0, 0), start=1_500_000_001), "10.0.0.1"),
        (_packet(CloseRecord(7, 1, 0, 0)), "10.0.0.2"),
        (_packet(CloseRecord(8, 1, 0, 0)), "10.0.0.1"),
    ],
)
def test_an_open_of_another_server_run_or_file_is_not_taken(other: tuple[Packet, str]) -> None:
    joiner = XrootdJoiner(MemoryOpenTable())
    joiner.join(_packet(OpenRecord(7, 100, 3, "/store/a")), "10.0.0.1", NOW)
    result = joiner.join(other[0], other[1], NOW)
    (event,) = result.events
    assert result.open_missing == 1
    assert (event["file_lfn"], event["file_size"], event["open_missing"]) == (None, None, True)
    assert event["start_ms"] == event["end_ms"] == END * 1000


def test_two_accesses_of_one_file_in_one_second_are_two_events() -> None:
    records = [OpenRecord(1, 9, 3, "/f"), OpenRecord(2, 9, 3, "/f"), CloseRecord(1, 9, 0, 0), CloseRecord(2, 9, 0, 0)]
    one, two = XrootdJoiner(MemoryOpenTable()).join(_packet(*records), "h", NOW).events
    assert one["event_id"] != two["event_id"]
    assert {**one, "event_id": 0, "file_ref": 0} == {**two, "event_id": 0, "file_ref": 0}


def test_a_late_open_does_not_change_an_event_already_made() -> None:
    joiner = XrootdJoiner(MemoryOpenTable())
    close = _packet(CloseRecord(7, 1, 0, 0))
    first = joiner.join(close, "h", NOW)
    late = joiner.join(_packet(OpenRecord(7, 100, 3, "/store/a")), "h", NOW)
    assert late.opens_duplicate == 1
    again = joiner.join(close, "h", NOW)
    assert again.events == first.events
    assert again.closes_duplicate == 1


def test_the_identity_of_a_close_does_not_depend_on_its_open() -> None:
    close = _packet(CloseRecord(7, 1, 0, 0))
    without = XrootdJoiner(MemoryOpenTable()).join(close, "h", NOW).events[0]
    joiner = XrootdJoiner(MemoryOpenTable())
    joiner.join(_packet(OpenRecord(7, 100, 3, "/store/a"), begin=BEGIN - 500), "h", NOW)
    assert joiner.join(close, "h", NOW).events[0]["event_id"] == without["event_id"]


small_ids = st.integers(1, 6)
some_records = st.lists(
    st.one_of(
        st.builds(OpenRecord, small_ids, st.integers(0, 9), st.just(1), st.sampled_from(["/a", "/b"])),
        st.builds(CloseRecord, small_ids, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
        st.builds(TransferRecord, small_ids, st.just(1), st.just(1), st.just(1)),
        st.builds(DisconnectRecord, small_ids),
    ),
    max_size=8,
)


@given(st.lists(some_records, max_size=6), st.data())
def test_processing_a_packet_again_gives_the_same_bytes(contents: list[list[Record]], data: st.DataObject) -> None:
    joiner = XrootdJoiner(MemoryOpenTable())
    for number, records in enumerate(contents):
        packet = _packet(*records, begin=BEGIN + number, end=END + number)
        first = [encode_event(event) for event in joiner.join(packet, "h", NOW).events]
        if data.draw(st.booleans()):
            assert [encode_event(event) for event in joiner.join(packet, "h", NOW).events] == first


@given(st.lists(some_records, min_size=1, max_size=6))
def test_every_close_is_one_event_with_its_bytes(contents: list[list[Record]]) -> None:
    joiner = XrootdJoiner(MemoryOpenTable())
    results = [joiner.join(_packet(*records), "h", NOW) for records in contents]
    closes = [record for records in contents for record in records if isinstance(record, CloseRecord)]
    events = [event for result in results for event in result.events]
    assert sum(result.closes for result in results) == len(events) == len(closes)
    moved = [(close.read + close.readv, close.write) for close in closes]
    assert [(event["read_bytes"], event["write_bytes"]) for event in events] == moved


def test_bad_values_refuse_their_record_alone() -> None:
    joiner = XrootdJoiner(MemoryOpenTable())
    result = joiner.join(
        _packet(
            OpenRecord(1, -5, 3, "/f"),
            CloseRecord(2, -1, 0, 0),
            CloseRecord(3, INT64_MAX, 1, 0),
            CloseRecord(4, 1, 1, 1),
            CloseRecord(5, 0, 0, -(2**63)),
        ),
        "h",
        NOW,
    )
    assert [event["file_ref"] for event in result.events] == ["fileid:4@1500000000.42"]
    assert [error.field for error in result.errors] == [
        "file size of open 1",
        "read bytes of close 2",
        "read bytes of close 3",
        "write bytes of close 5",
    ]
    no_time = joiner.join(_packet(CloseRecord(9, 0, 0, 0), end=0), "h", NOW)
    assert no_time.events == [] and no_time.errors[0].field == "window end"


def test_a_clock_that_went_back_keeps_start_before_end() -> None:
    joiner = XrootdJoiner(MemoryOpenTable())
    joiner.join(_packet(OpenRecord(7, 100, 3, "/f"), begin=END + 500), "h", NOW)
    (event,) = joiner.join(_packet(CloseRecord(7, 1, 0, 0)), "h", NOW).events
    assert event["start_ms"] == event["end_ms"] == END * 1000
    assert event["clock_clamped"] is True


def test_states_are_kept_per_server_run() -> None:
    table = MemoryOpenTable()
    XrootdJoiner(table).join(_packet(OpenRecord(7, 100, 3, "/f")), "h", NOW)
    assert list(table.states) == [(ServerKey("h", 1_500_000_000, 42), 7)]
