"""The f-stream decoder: every record both ways, every length checked, and nothing but DecodeError on bad bytes."""

from __future__ import annotations

import base64
import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridstead.xrootd import (
    CaptureError,
    CloseRecord,
    DecodeError,
    DisconnectRecord,
    OpenRecord,
    Operations,
    OtherStreamError,
    Packet,
    SumsOfSquares,
    TimeRecord,
    TransferRecord,
    decode_packet,
    encode_packet,
    encode_record,
    read_capture,
)

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

CAPTURE = Path(
    os.environ.get("GRIDSTEAD_XROOTD_CAPTURE", Path(__file__).parents[3] / "shared/data/xrootd/shoveler_use_case.jsonl")
)

u16, u32 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)
i16, i32 = st.integers(-(2**15), 2**15 - 1), st.integers(-(2**31), 2**31 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
f64 = st.floats(allow_nan=False)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)

times = st.builds(TimeRecord, i32, i32, i64, u16, u16, st.sampled_from([0, 1]))
old_times = st.builds(TimeRecord, i32, i32, st.none(), u16, u16, st.just(0))
operations = st.builds(Operations, i32, i32, i32, i16, i16, i64, i32, i32, i32, i32, i32, i32)
squares = st.builds(SumsOfSquares, f64, f64, f64, f64)
closes = st.builds(CloseRecord, u32, i64, i64, i64, st.booleans(), st.none() | operations, st.none() | squares)
opens = st.builds(OpenRecord, u32, i64, u32, names, st.booleans()) | st.builds(
    OpenRecord, u32, i64, st.none(), st.none(), st.booleans()
)
transfers = st.builds(TransferRecord, u32, i64, i64, i64)
records = st.one_of(times, old_times, closes, opens, transfers, st.builds(DisconnectRecord, u32))
packets = st.builds(
    lambda first, rest, start, sequence: (
        Packet(sequence, start, (first, *rest)),
        encode_packet([first, *rest], server_start_s=start, sequence=sequence),
    ),
    times | old_times,
    st.lists(records, max_size=12),
    u32,
    st.integers(0, 255),
)


@given(packets)
def test_decoding_undoes_encoding(pair: tuple[Packet, bytes]) -> None:
    packet, data = pair
    assert decode_packet(data) == packet


@given(packets, st.data())
def test_every_truncation_is_refused(pair: tuple[Packet, bytes], data: st.DataObject) -> None:
    _, raw = pair
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(DecodeError):
        decode_packet(raw[:cut])
    if (
        cut >= 8
    ):  # a truncation that also lies about the length must be found by the records, unless it falls between two
        lying = raw[:2] + struct.pack(">H", cut) + raw[4:cut]
        try:
            shorter = decode_packet(lying)
        except DecodeError as error:
            assert 0 <= error.offset <= cut
        else:
            assert shorter.records == pair[0].records[: len(shorter.records)]
            assert len(shorter.records) < len(pair[0].records)


@given(st.binary(max_size=300))
def test_random_bytes_raise_only_decode_errors(raw: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_packet(raw + b"\xff")  # no packet ends in a record that fits by chance here: see the next test


@settings(max_examples=300)
@given(packets, st.data())
def test_flipped_bytes_decode_or_raise_decode_errors(pair: tuple[Packet, bytes], data: st.DataObject) -> None:
    raw = bytearray(pair[1])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        packet = decode_packet(bytes(raw))
    except DecodeError as error:
        assert error.reason
        assert 0 <= error.offset <= len(raw)
    else:
        assert isinstance(packet.records[0], TimeRecord)


TIME = TimeRecord(1_700_000_000, 1_700_000_030, 77)


def _packet(*pieces: bytes) -> bytes:
    body = encode_record(TIME) + b"".join(pieces)
    return struct.pack(">BBHI", 0x66, 0, 8 + len(body), 1) + body


@pytest.mark.parametrize(
    ("raw", "reason", "offset"),
    [
        (b"", "0 bytes are too few", 0),
        (b"f\0\0\x08", "4 bytes are too few", 0),
        (struct.pack(">BBHI", 0x66, 0, 9, 0), "the header says 9 bytes, the packet has 8", 2),
        (struct.pack(">BBHI", 0x66, 0, 8, 0), "no records", 8),
        (struct.pack(">BBHI", 0x00, 0, 8, 0), "code 0x00", 0),
        (
            _packet(struct.pack(">BBHI", 0, 0, 31, 1) + bytes(23)),
            "close record with flags 0x00 has 31 bytes, not 32",
            34,
        ),
        (_packet(struct.pack(">BBHI", 0, 2, 32, 1) + bytes(24)), "has 32 bytes, not 80", 34),
        (_packet(struct.pack(">BBHI", 0, 7, 80, 1) + bytes(72)), "has 80 bytes, not 112", 34),
        (_packet(struct.pack(">BBHI", 1, 0, 24, 1) + bytes(16)), "without a name has 24 bytes, not 16", 34),
        (_packet(struct.pack(">BBHI", 1, 1, 20, 1) + bytes(12)), "at least 21", 34),
        (_packet(struct.pack(">BBHI", 1, 1, 24, 1) + bytes(12) + b"name"), "not ended by a NUL", 52),
        (_packet(struct.pack(">BBHI", 2, 1, 16, 1) + bytes(8)), "time record with flags 0x01 has 16 bytes", 34),
        (_packet(struct.pack(">BBHI", 3, 0, 24, 1) + bytes(16)), "transfer record has 24 bytes", 34),
        (_packet(struct.pack(">BBHI", 4, 0, 16, 1) + bytes(8)), "disconnect record has 16 bytes", 34),
        (_packet(struct.pack(">BBHI", 5, 0, 8, 1)), "record type 5 is unknown", 32),
        (_packet(struct.pack(">BBHI", 4, 0, 0, 1)), "record size 0 is smaller", 34),
        (_packet(struct.pack(">BBHI", 4, 0, 12, 1)), "exceeds the packet by 4", 34),
        (_packet(b"\4\0\0"), "3 bytes are too few for a record header", 32),
    ],
)
def test_each_fault_is_named_with_its_place(raw: bytes, reason: str, offset: int) -> None:
    with pytest.raises(DecodeError, match=reason) as caught:
        decode_packet(raw)
    assert caught.value.offset == offset
    assert not isinstance(caught.value, OtherStreamError)


def test_the_first_record_must_be_a_time_record() -> None:
    body = encode_record(DisconnectRecord(1))
    with pytest.raises(DecodeError, match="first record is of type 4"):
        decode_packet(struct.pack(">BBHI", 0x66, 0, 8 + len(body), 1) + body)
    with pytest.raises(ValueError, match="begins with a time record"):
        encode_packet([DisconnectRecord(1)], server_start_s=1)


def test_other_streams_are_told_apart_from_garbage() -> None:
    with pytest.raises(OtherStreamError, match="'u' is another XRootD stream"):
        decode_packet(struct.pack(">BBHI", ord("u"), 0, 12, 1) + b"abcd")
    with pytest.raises(DecodeError, match="header says 13") as caught:
        decode_packet(struct.pack(">BBHI", ord("u"), 0, 13, 1) + b"abcd")
    assert not isinstance(caught.value, OtherStreamError)


def test_names_keep_newlines_and_show_bytes_that_are_not_utf8() -> None:
    name = b"/store/a\nb\xff\xc3\x28\t.root"
    body = struct.pack(">qI", 5, 9) + name + b"\0\0\0"
    packet = decode_packet(_packet(struct.pack(">BBHI", 1, 3, 8 + len(body), 4) + body))
    assert packet.records[1] == OpenRecord(4, 5, 9, "/store/a\nb\\xff\\xc3(\t.root", True)
    packet.records[1].lfn.encode("utf-8")  # type: ignore[union-attr]


def test_encoder_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit its field"):
        encode_record(CloseRecord(1, 2**63, 0, 0))
    with pytest.raises(ValueError, match="NUL"):
        encode_record(OpenRecord(1, 1, 1, "a\0b"))
    with pytest.raises(ValueError, match="65535 fit"):
        encode_packet([TIME, *[CloseRecord(1, 0, 0, 0)] * 3000], server_start_s=1)


def _capture() -> list[bytes]:
    if not CAPTURE.exists():
        pytest.skip(f"the real capture is not here ({CAPTURE}): set GRIDSTEAD_XROOTD_CAPTURE to its path")
    return [captured.data for captured in read_capture(CAPTURE)]


def test_the_real_capture_decodes_whole() -> None:
    counts: dict[str, int] = {}
    for raw in _capture():
        packet = decode_packet(raw)
        assert packet.time.total == len(packet.records) - 1  # the server's own count of its records
        for record in packet.records:
            counts[type(record).__name__] = counts.get(type(record).__name__, 0) + 1
        # What we encode from it decodes to the same; only the padding of the names may differ in length.
        again = encode_packet(packet.records[:200], server_start_s=packet.server_start_s, sequence=packet.sequence)
        assert decode_packet(again).records == packet.records[:200]
    assert counts == {"TimeRecord": 10, "OpenRecord": 2219, "CloseRecord": 2229, "DisconnectRecord": 69}


def test_closes_of_the_real_capture_encode_to_the_same_bytes() -> None:
    for raw in _capture():
        for record in decode_packet(raw).records:
            if isinstance(record, CloseRecord):
                assert encode_record(record) in raw


def test_capture_errors_say_file_line_and_reason(tmp_path: Path) -> None:
    good = {"data": base64.b64encode(b"abc").decode(), "remote": "[2001:db8::1]:1094"}
    file = tmp_path / "capture.jsonl"
    file.write_text(json.dumps(good) + "\n\n" + json.dumps({"data": "AAAA"}) + "\n{}\n")
    packets = read_capture(file)
    assert next(packets) == (b"abc", "2001:db8::1", 1094)
    assert next(packets) == (b"\0\0\0", None, None)
    with pytest.raises(CaptureError, match=r"capture\.jsonl, line 4: .*data"):
        next(packets)
