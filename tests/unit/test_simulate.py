"""The generator: what it says it made is what the pipeline's own rules find."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridstead.events import ValidationError
from gridstead.simulate import simulate, simulate_packets
from gridstead.simulate_transfers import FtsSimulation, RucioSimulation, TransferSimulation
from gridstead.sources import normalise
from gridstead.sources.xrootd import MemoryOpenTable, XrootdJoiner
from gridstead.xrootd import TransferRecord, decode_packet

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

START = 1_700_000_000_000
NOW = START + 86_400_000


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, 300), st.integers(1, 200_000))
def test_distinct_events_are_exactly_as_many_as_asked(seed: int, events: int, span_s: int) -> None:
    simulation = simulate(seed, events, START, span_s, duplicates=0.3, late=0.1, future=0.05, invalid=0.1)
    identities: set[str] = set()
    refused = 0
    for record in simulation:
        json.dumps(record, allow_nan=False)
        try:
            identities.add(normalise(record, NOW)["event_id"])
        except ValidationError:
            refused += 1
    assert len(identities) == simulation.distinct == events
    assert refused == simulation.refused


def test_the_same_seed_gives_the_same_records() -> None:
    assert list(simulate(7, 500, START, 3600)) == list(simulate(7, 500, START, 3600))
    assert list(simulate(7, 500, START, 3600)) != list(simulate(8, 500, START, 3600))


def test_every_trait_that_is_promised_occurs() -> None:
    simulation = simulate(3, 4000, START, 86_400, duplicates=0.2, late=0.1, future=0.02, invalid=0.02)
    seen: Counter[str] = Counter()
    ids: Counter[str] = Counter()
    producer_ids: dict[str, set[str]] = {}
    last_end = 0
    for record in simulation:
        data = record.get("data", record)
        seen["enveloped" if "data" in record else "bare"] += 1
        try:
            event = normalise(record, NOW)
        except ValidationError:
            seen["invalid"] += 1
            continue
        ids[event["event_id"]] += 1
        producer_ids.setdefault(event["event_id"], set()).add(event["producer_id"])
        seen["ms" if data["end_time"] > 1e11 else "s"] += 1
        seen["clamped"] += event["clock_clamped"]
        seen["open missing"] += event["open_missing"]
        seen["hours"] += event["end_ms"] - event["start_ms"] > 2 * 3_600_000
        seen["late"] += not event["clock_clamped"] and event["end_ms"] < last_end - 60_000
        seen["idle"] += event["read_bytes"] == event["write_bytes"] == 0
        seen["written"] += event["write_bytes"] > 0
        seen["read"] += event["read_bytes"] > 0
        seen["only at close"] += data["read_bytes"] == 0 and event["read_bytes"] > 0
        seen["no vo"] += event["vo"] is None
        seen["no client"] += event["client_host"] is None
        if not event["clock_clamped"]:
            last_end = max(last_end, event["end_ms"])
    seen["again"] = sum(count > 1 for count in ids.values())
    seen["again with a new id"] = sum(len(known) > 1 for known in producer_ids.values())
    assert len(ids) == 4000
    traits = "enveloped bare invalid ms s clamped hours late idle written read again".split()
    traits += ["open missing", "only at close", "no vo", "no client", "again with a new id"]
    assert {trait for trait in traits if seen[trait] < 10} == set()


def test_clean_input_has_each_event_once() -> None:
    simulation = simulate(1, 300, START, 60, duplicates=0, late=0, future=0, missing_open=0)
    assert len(list(simulation)) == 300 == simulation.records


@settings(max_examples=20)
@given(
    st.integers(0, 2**32),
    st.integers(0, 400),
    st.integers(1, 5),
    st.sampled_from([1024, 1472, 65535]),
    st.sampled_from([0.0, 0.3]),
)
def test_packets_hold_exactly_the_files_promised(seed: int, files: int, servers: int, size: int, repeat: float) -> None:
    simulation = simulate_packets(
        seed, files, START, 7200, servers=servers, max_packet_bytes=size, missing_open=0.1, repeat=repeat
    )
    joiner = XrootdJoiner(MemoryOpenTable())
    events = {}
    packets = 0
    for raw in simulation:
        packets += 1
        assert len(raw) <= size
        packet = decode_packet(raw)
        assert packet.time.total == len(packet.records) - 1
        assert packet.time.transfers == sum(isinstance(record, TransferRecord) for record in packet.records)
        joined = joiner.join(packet, "h", NOW)
        assert joined.errors == []
        for event in joined.events:
            assert events.setdefault(event["event_id"], event) == event
    assert packets == simulation.packets
    assert len(events) == simulation.distinct == files
    assert sum(event["open_missing"] for event in events.values()) == simulation.missing
    assert sum(event["read_bytes"] + event["write_bytes"] for event in events.values()) == simulation.bytes


def test_packets_of_a_seed_are_the_same_bytes() -> None:
    assert list(simulate_packets(5, 200, START, 600)) == list(simulate_packets(5, 200, START, 600))


def test_senseless_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="span_s"):
        simulate(1, 10, START, 0)
    with pytest.raises(ValueError, match="max_packet_bytes"):
        simulate_packets(1, 10, START, 10, max_packet_bytes=70000)


@pytest.mark.parametrize(("kind", "source"), [(FtsSimulation, "fts"), (RucioSimulation, "rucio")])
def test_transfers_and_traces_are_as_many_as_asked_and_move_what_is_said(kind: type[TransferSimulation], source: str) -> None:
    simulation = kind(5, 400, START, 7200, duplicates=0.3, late=0.2)
    records = list(simulation)
    assert simulation.records == len(records) > simulation.distinct == 400
    events = {event["event_id"]: event for event in (normalise(record, NOW) for record in records)}
    assert len(events) == 400 and {event["source"] for event in events.values()} == {source}
    assert sum(event["read_bytes"] + event["write_bytes"] for event in events.values()) == simulation.bytes
    assert all(START <= event["end_ms"] <= START + 7_200_000 for event in events.values())
    ends = [normalise(record, NOW)["end_ms"] for record in records]
    assert ends != sorted(ends), "some come late"
    assert records == list(kind(5, 400, START, 7200, duplicates=0.3, late=0.2)) != list(kind(6, 400, START, 7200))
