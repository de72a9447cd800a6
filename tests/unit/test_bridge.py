"""The bridge's pure parts: STOMP frames from pieces of any size, and the record a message becomes."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridstead.bridge.frames import Frame, FrameError, FrameReader, encode
from gridstead.bridge.mover import Route, to_record
from gridstead.bridge.source import Source, SourceError
from gridstead.config import StompClient

EVENTS = Route("q.events", "t.events", "t.dead", 1000, 1 << 20)
LETTERS = Route("q.dead", "t.dead", "t.dead", 100, 1 << 20)
LIMITS = {"t.events": 20_000, "t.dead": 40_000}

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
headers = st.dictionaries(words.filter(lambda word: word != "content-length"), words | st.just(""), max_size=5)
frames = st.builds(Frame, st.sampled_from(["MESSAGE", "SEND", "RECEIPT"]), headers, st.binary(max_size=200))


def read_all(reader: FrameReader) -> Iterator[Frame]:
    while (frame := reader.next()) is not None:
        yield frame


@given(st.lists(frames, max_size=6), st.lists(st.integers(1, 60), min_size=1, max_size=8), st.booleans())
def test_frames_survive_any_split(sent: list[Frame], sizes: list[int], beats: bool) -> None:
    data = (b"\n" if beats else b"").join(encode(*frame) for frame in sent)
    reader = FrameReader()
    got: list[Frame] = []
    turn = 0
    while data:
        size = sizes[turn % len(sizes)]
        reader.feed(data[:size])
        data = data[size:]
        got += read_all(reader)
        turn += 1
    assert [(frame.command, frame.body) for frame in got] == [(frame.command, frame.body) for frame in sent]
    for frame, original in zip(got, sent, strict=True):
        assert {name: value for name, value in frame.headers.items() if name != "content-length"} == original.headers


@given(st.binary(max_size=300))
def test_random_bytes_never_raise_but_frame_error(data: bytes) -> None:
    reader = FrameReader()
    reader.feed(data)
    try:
        list(read_all(reader))
    except FrameError:
        pass


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"MESSAGE\na:1\na:2\n\nbody\0", Frame("MESSAGE", {"a": "1"}, b"body")),
        (b"\r\n\nRECEIPT\r\nreceipt-id:7\r\n\r\n\0", Frame("RECEIPT", {"receipt-id": "7"}, b"")),
        (b"M\ncontent-length:3\n\na\0b\0", Frame("M", {"content-length": "3"}, b"a\0b")),
        (b"M\nk\\cx:a\\nb\\\\c\n\n\0", Frame("M", {"k:x": "a\nb\\c"}, b"")),
        (b"M\nk:a\\tb\n\n\0", Frame("M", {"k": "a\\tb"}, b"")),
        (b"CONNECTED\nsession:a\\nb\n\n\0", Frame("CONNECTED", {"session": "a\\nb"}, b"")),
        (b"M\nk:\xff\n\n\0", Frame("M", {"k": "\ufffd"}, b"")),
    ],
)
def test_frames_as_brokers_write_them(data: bytes, expected: Frame) -> None:
    reader = FrameReader()
    reader.feed(data)
    assert reader.next() == expected
    assert reader.next() is None


@pytest.mark.parametrize(
    "data", [b"M\ncontent-length:-1\n\n\0", b"M\ncontent-length:x\n\n\0", b"M\ncontent-length:1\n\nab\0"]
)
def test_broken_framing_is_refused(data: bytes) -> None:
    reader = FrameReader()
    reader.feed(data)
    with pytest.raises(FrameError):
        reader.next()


IDENTITY = "0123456789abcdef" * 2


def message(body: bytes, **extra: str) -> Frame:
    return Frame("MESSAGE", {"event-id": IDENTITY, "ack": "1", "destination": "q", "content-length": "1", **extra}, body)


def test_record_has_the_key_and_only_the_senders_headers() -> None:
    record = to_record(message(b"{}", site="x", _AMQ_LARGE_SIZE="2"), EVENTS, LIMITS)
    assert record == ("t.events", "0123456789abcdef", b"{}", {"site": "x"})


def test_the_key_of_an_event_is_its_access_and_of_a_dead_letter_its_identity() -> None:
    reports = [IDENTITY, IDENTITY[:16] + "f" * 16, "f" + IDENTITY[1:]]
    events = [to_record(Frame("MESSAGE", {"event-id": name}, b"{}"), EVENTS, LIMITS).key for name in reports]
    assert events == [IDENTITY[:16], IDENTITY[:16], "f" + IDENTITY[1:16]]
    letters = [to_record(Frame("MESSAGE", {"event-id": name}, b"{}"), LETTERS, LIMITS).key for name in reports]
    assert letters == reports


def test_record_without_identity_has_no_key() -> None:
    assert to_record(Frame("MESSAGE", {"ack": "1"}, b"{}"), EVENTS, LIMITS).key is None


def test_too_large_becomes_a_whole_dead_letter() -> None:
    body = bytes(range(256)) * 100
    record = to_record(message(body), EVENTS, LIMITS, lambda: 77)
    letter = json.loads(record.value)
    assert (record.topic, record.key) == ("t.dead", IDENTITY)
    assert base64.b64decode(letter["raw_base64"]) == body
    assert (letter["truncated"], letter["source"], letter["origin"], letter["received_ms"]) == (
        False,
        "stomp",
        "q.events",
        77,
    )
    assert letter["reason"] == "message of 25600 bytes exceeds max.message.bytes = 20000 of topic t.events"


@given(st.integers(0, 120_000), st.sampled_from([EVENTS, LETTERS]))
def test_every_record_fits_its_topic(size: int, route: Route) -> None:
    body = b"x" * size
    record = to_record(message(body), route, LIMITS)
    assert record.size() <= LIMITS[record.topic]
    if record.value != body:
        letter = json.loads(record.value)
        kept = base64.b64decode(letter["raw_base64"])
        assert body.startswith(kept)
        assert letter["truncated"] == (len(kept) < size)


@pytest.fixture
def broker() -> Iterator[Callable[[bytes], tuple[StompClient, list[bytes]]]]:
    """A listener that answers CONNECT and SUBSCRIBE, then writes the bytes given and records what it is sent."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def start(then: bytes) -> tuple[StompClient, list[bytes]]:
        received: list[bytes] = []

        def talk() -> None:
            connection, _ = listener.accept()
            with connection:
                reader = FrameReader()
                while data := connection.recv(4096):
                    received.append(data)
                    reader.feed(data)
                    for frame in read_all(reader):
                        if frame.command == "CONNECT":
                            connection.sendall(encode("CONNECTED", {"version": "1.2"}))
                        elif "receipt" in frame.headers:
                            connection.sendall(encode("RECEIPT", {"receipt-id": frame.headers["receipt"]}))
                            if frame.command == "SUBSCRIBE":
                                connection.sendall(then)

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        threads.append(thread)
        return StompClient((("127.0.0.1", listener.getsockname()[1]),), "user", "secret"), received

    yield start
    listener.close()
    for thread in threads:
        thread.join(5)


def test_source_batches_by_count_and_bytes_and_acknowledges_the_last(
    broker: Callable[[bytes], tuple[StompClient, list[bytes]]],
) -> None:
    bodies = [b"a", b"b", b"c", b"x" * 100, b"d", b"e"]
    sent = b"".join(encode("MESSAGE", {"ack": str(number)}, body) for number, body in enumerate(bodies))
    client, received = broker(sent)
    source = Source(client, "q", 1000)
    batches = [source.receive(2, 1000, 0.2), source.receive(10, 50, 0.2), source.receive(10, 50, 0.2)]
    assert [[frame.body for frame in batch] for batch in batches] == [[b"a", b"b"], [b"c", b"x" * 100], [b"d", b"e"]]
    assert source.receive(10, 50, 0.05) == []
    source.acknowledge(batches[-1][-1])
    source.close()
    heard = b"".join(received)
    assert b"login:user\npasscode:secret\n" in heard
    assert b"ACK\nid:5\n\n\0" in heard
    assert heard.endswith(b"DISCONNECT\nreceipt:bye\n\n\0")


def test_source_reports_what_the_broker_says(broker: Callable[[bytes], tuple[StompClient, list[bytes]]]) -> None:
    client, _ = broker(encode("ERROR", {"message": "no permission"}))
    source = Source(client, "q", 1000)
    with pytest.raises(SourceError, match="reports an error: no permission"):
        source.receive(10, 1000, 0.5)
    source.close()


def test_source_names_every_host_it_tried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(SourceError, match=rf"127\.0\.0\.1:{port} .*refused"):
        Source(StompClient((("127.0.0.1", port),)), "q", 1000)
