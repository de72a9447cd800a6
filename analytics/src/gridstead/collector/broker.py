"""The broker side over STOMP 1.2: the sender empties the store's queue, the input takes producers' JSON.

Sender: a batch is one STOMP transaction with a receipt on COMMIT; its rows are deleted after the receipt. If the
connection breaks in between, the batch is sent again: the broker may get it twice, never in part (the identity makes
that harmless). Input: messages are acknowledged (cumulatively) once the broker has the events made of them: until then
they are the broker's, and if this host is lost another collector gets them. Both reconnect for ever, and log once a
change of state.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import stomp
from stomp.exception import ConnectFailedException, StompException
from stomp.utils import Frame

from gridstead.collector.store import DEAD_LETTER, Row, Store
from gridstead.collector.udp import decode, process_packet
from gridstead.config import STOMP_CONNECT_TIMEOUT_S, STOMP_HEARTBEAT_S, STOMP_SILENT_BEATS, StompClient
from gridstead.events import Event, ValidationError
from gridstead.sources import PACKET_HEADER, SOURCE_HEADER, normalise_json

log = logging.getLogger("gridstead.collector")
logging.getLogger("stomp.py").setLevel(logging.CRITICAL)  # it logs each attempt; the links below log changes of state

HEARTBEAT_MS = int(STOMP_HEARTBEAT_S * 1000)
ANSWER_TIMEOUT_S = 10.0
BACKOFF_MAX_S = 3.0
RECEIPT_TIMEOUT_S = 60.0
BATCH_ROWS = 1000
BATCH_BYTES = 2 << 20
INPUT_BATCH = 500
INPUT_WINDOW_BYTES = 4 << 20
"""Bytes the broker may send ahead of our acknowledgements: with the queue full nothing is acknowledged, and it
stops. They have to last for the way of a message through the store and back to the broker.
"""
ACKNOWLEDGE_S = 3.0
"""How long a stop waits for the events of messages that were taken; later they would only come again."""


class LinkError(Exception):
    """The connection cannot be used any more."""


class _Link(stomp.ConnectionListener):
    """One connection, from its making to its end; never used again after an error."""

    def __init__(self, client: StompClient) -> None:
        self.messages: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self.broken = ""
        self._answered = False
        self._receipts: set[str] = set()
        self._changed = threading.Condition()
        self._connection = stomp.Connection12(
            list(client.hosts),
            reconnect_attempts_max=1,
            timeout=STOMP_CONNECT_TIMEOUT_S,
            heartbeats=(HEARTBEAT_MS, HEARTBEAT_MS),
            heart_beat_receive_scale=STOMP_SILENT_BEATS,
            keepalive=True,
            auto_decode=False,
        )
        self._connection.set_listener("link", self)
        where = ", ".join(f"{host}:{port}" for host, port in client.hosts)
        try:
            self._connection.connect(client.username, client.password, wait=False, with_connect_command=True)
        except (StompException, OSError) as error:
            self.close()
            raise LinkError(f"no STOMP connection to {where} ({_why(error)})") from error
        with self._changed:  # stomp.py's own wait has no time limit: a broker may accept and never answer
            self._changed.wait_for(lambda: self._answered or bool(self.broken), ANSWER_TIMEOUT_S)
        if not self._answered:
            self.close()
            raise LinkError(self.broken or f"{where} does not answer within {ANSWER_TIMEOUT_S:.0f} s")

    def on_connected(self, frame: Frame) -> None:
        """The broker accepted the connection."""
        with self._changed:
            self._answered = True
            self._changed.notify_all()

    def _break(self, reason: str) -> None:
        with self._changed:
            self.broken = self.broken or reason
            self._changed.notify_all()

    def on_error(self, frame: Frame) -> None:
        """The broker refused something; it closes the connection after it."""
        body = frame.body.decode("utf-8", "replace") if isinstance(frame.body, bytes) else str(frame.body)
        self._break(f"the broker reports an error: {frame.headers.get('message') or body[:300]}")

    def on_disconnected(self) -> None:
        """The connection is gone."""
        self._break("the connection was closed")

    def on_heartbeat_timeout(self) -> None:
        """The broker is silent."""
        self._break("no heart-beat from the broker")

    def on_receipt(self, frame: Frame) -> None:
        """A receipt came."""
        with self._changed:
            self._receipts.add(frame.headers["receipt-id"])
            self._changed.notify_all()

    def on_message(self, frame: Frame) -> None:
        """A message came; the window of the subscription bounds how many can wait here."""
        self.messages.put(frame)

    def check(self) -> None:
        """Raise LinkError if the connection is broken."""
        if self.broken:
            raise LinkError(self.broken)

    def write(self, frames: bytes) -> None:
        """Send encoded frames."""
        self.check()
        transport = self._connection.transport
        try:
            if transport.blocking:
                transport.send(frames)
            else:  # TLS: stomp.py's own thread writes
                transport.send_queue.put(frames)
        except (StompException, OSError) as error:
            self._break(f"cannot write to the broker ({_why(error)})")
            raise LinkError(self.broken) from error

    def wait_receipt(self, receipt: str, timeout: float) -> None:
        """Wait for a receipt; LinkError if the connection breaks or the time is up."""
        with self._changed:
            done = self._changed.wait_for(lambda: receipt in self._receipts or bool(self.broken), timeout)
            if receipt in self._receipts:
                self._receipts.discard(receipt)
                return
            if not done:
                self.broken = f"no receipt from the broker within {timeout:.0f} s"
            raise LinkError(self.broken)

    def close(self) -> None:
        """End the connection, in the ordinary way if it still works."""
        if self._answered and not self.broken:
            try:
                self.write(frame("DISCONNECT", {"receipt": "goodbye"}))
                self.wait_receipt("goodbye", 2)
            except LinkError:
                pass  # it is going anyway
        try:
            self._connection.transport.disconnect_socket()
            self._connection.transport.stop()
        except (StompException, OSError):
            pass  # it is gone already


def frame(command: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    """Encode a STOMP 1.2 frame with a content-length; header values are escaped."""
    lines = [command]
    lines += [f"{name}:{_escape(value)}" for name, value in headers.items()]
    if command == "SEND":
        lines.append(f"content-length:{len(body)}")
    return "\n".join(lines).encode() + b"\n\n" + body + b"\0"


def _why(error: Exception) -> str:
    if isinstance(error, ConnectFailedException):  # stomp.py gives no reason with it
        return "refused or unreachable"
    return str(error) or type(error).__name__


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n").replace(":", "\\c")


class _Reconnecting:
    """A thread that keeps a link: connects, works, and connects again with back-off."""

    def __init__(self, name: str, client: StompClient) -> None:
        self.name = name
        self.connected = False
        self.state = "not connected yet"
        self._client = client
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ask the thread to end; what it is at, it finishes."""
        self._stop.set()

    def run(self) -> None:
        """Connect and work until :meth:`stop`."""
        pause = 0.2
        while not self._stop.is_set():
            link: _Link | None = None
            try:
                link = _Link(self._client)
                self.started(link)
                self._set_state(True, "connected")
                pause = 0.2
                self.work(link)
            except LinkError as error:
                self._set_state(False, str(error))
            finally:
                if link is not None:
                    link.close()
            self._stop.wait(pause)
            pause = min(pause * 2, BACKOFF_MAX_S)
        self.connected = False

    def _set_state(self, connected: bool, state: str) -> None:
        changed = connected != self.connected or self.state == "not connected yet"
        self.connected, self.state = connected, state
        if changed:
            log.log(logging.INFO if connected else logging.WARNING, "%s: %s", self.name, state)

    def started(self, link: _Link) -> None:
        """Prepare a fresh link."""

    def work(self, link: _Link) -> None:
        """Use a link until stopped or LinkError."""
        raise NotImplementedError


class Sender(_Reconnecting):
    """Sends the store's queue to the broker, oldest first."""

    def __init__(self, client: StompClient, store: Store, events_queue: str, deadletter_queue: str) -> None:
        """Prepare; ``run`` connects."""
        super().__init__("sender", client)
        self._store = store
        self._events_queue = events_queue
        self._deadletter_queue = deadletter_queue
        self._number = 0

    def work(self, link: _Link) -> None:
        """Send batches until stopped."""
        while not self._stop.is_set():
            link.check()
            self._store.arrived.clear()
            try:
                batch = self._store.read_batch(BATCH_ROWS, BATCH_BYTES)
                if not batch:
                    self._store.arrived.wait(0.5)
                    continue
                self._send(link, batch)
                self._store.delete_batch(batch)
            except sqlite3.Error as error:
                log.error("sender: %s: %s; trying again", self._store.path, error)
                self._stop.wait(1)

    def _send(self, link: _Link, batch: Sequence[Row]) -> None:
        self._number += 1
        transaction, receipt = "batch", f"r{self._number}"  # Artemis keeps a session for each id it has seen
        link.write(frame("BEGIN", {"transaction": transaction}))
        pieces: list[bytes] = []
        size = 0
        for row in batch:
            pieces.append(
                frame(
                    "SEND",
                    {
                        "destination": self._deadletter_queue if row.kind == DEAD_LETTER else self._events_queue,
                        "destination-type": "ANYCAST",
                        "persistent": "true",
                        "content-type": "application/json",
                        "event-id": row.event_id,
                        "transaction": transaction,
                    },
                    row.body,
                )
            )
            size += len(row.body)
            if size > 256 << 10:
                link.write(b"".join(pieces))
                pieces, size = [], 0
        pieces.append(frame("COMMIT", {"transaction": transaction, "receipt": receipt}))
        link.write(b"".join(pieces))
        link.wait_receipt(receipt, RECEIPT_TIMEOUT_S)


class Input(_Reconnecting):
    """Takes producers' JSON from the broker's raw queue."""

    def __init__(
        self,
        client: StompClient,
        store: Store,
        raw_queue: str,
        max_message_bytes: int,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Prepare; ``run`` connects. ``now_ms`` is the clock of ``received_ms``."""
        super().__init__("input", client)
        self._store = store
        self._raw_queue = raw_queue
        self._max_message_bytes = max_message_bytes
        self._now_ms = now_ms
        self.waiting = False

    def started(self, link: _Link) -> None:
        """Subscribe, and wait until the broker has done it."""
        headers = {
            "id": "raw",
            "destination": self._raw_queue,
            "subscription-type": "ANYCAST",
            "ack": "client",
            "consumer-window-size": str(INPUT_WINDOW_BYTES),
            "receipt": "subscribed",
        }
        link.write(frame("SUBSCRIBE", headers))
        link.wait_receipt("subscribed", RECEIPT_TIMEOUT_S)

    def work(self, link: _Link) -> None:
        """Take messages until stopped. With the queue full, or the disk, nothing is taken and the broker holds them."""
        frames: list[Frame] = []
        taken: deque[tuple[int, str]] = deque()
        while not self._stop.is_set():
            link.check()
            self._acknowledge(link, taken)
            if self._store.full:
                if not self.waiting:
                    log.error("input: the queue is full: leaving messages with the broker")
                self.waiting = True
                self._stop.wait(0.2)
                continue
            if self.waiting:
                log.info("input: the queue has room again")
                self.waiting = False
            if not frames:
                frames = self._collect(link)
            if not frames:
                continue
            try:
                accept_messages(self._store, frames, self._raw_queue, self._max_message_bytes, self._now_ms())
            except sqlite3.Error as error:
                log.error("input: cannot write %s (%s); trying again", self._store.path, error)
                self._stop.wait(1)
                continue
            taken.append((self._store.queued, frames[-1].headers["ack"]))
            frames = []
        deadline = time.monotonic() + ACKNOWLEDGE_S
        while taken and time.monotonic() < deadline:
            link.check()
            self._acknowledge(link, taken)
            time.sleep(0.02)

    def _acknowledge(self, link: _Link, taken: deque[tuple[int, str]]) -> None:
        """Acknowledge what the broker has the events of; ``taken``: rows ever queued by then, what to acknowledge."""
        last = ""
        sent = self._store.sent
        while taken and taken[0][0] <= sent:
            last = taken.popleft()[1]
        if last:
            link.write(frame("ACK", {"id": last}))

    def _collect(self, link: _Link) -> list[Frame]:
        frames: list[Frame] = []
        size = 0
        try:
            frames.append(link.messages.get(timeout=0.05))
            while len(frames) < INPUT_BATCH and size < BATCH_BYTES:
                size += len(frames[-1].body or b"")
                frames.append(link.messages.get_nowait())
        except queue.Empty:
            pass
        return frames


def accept_messages(store: Store, frames: Sequence[Any], origin: str, max_message_bytes: int, received_ms: int) -> None:
    """Normalise messages (objects with a ``body`` of bytes and ``headers``) and queue them in one commit, the bad ones
    as dead letters. Packets that come again are processed as those of UDP, for the host that had sent them.
    """
    outcomes: list[Event | tuple[str, bytes, str | None]] = []
    packets: list[tuple[str, bytes]] = []
    for message in frames:
        body: bytes = message.body or b""
        if PACKET_HEADER in message.headers:
            packets.append((message.headers[PACKET_HEADER], body))
            continue
        header: str | None = message.headers.get(SOURCE_HEADER)
        if len(body) > max_message_bytes:
            reason = f"message of {len(body)} bytes exceeds max_message_bytes = {max_message_bytes}"
            outcomes.append((reason, body, header))
            continue
        try:
            outcomes.append(normalise_json(body, received_ms, header))
        except ValidationError as error:
            outcomes.append((str(error), body, header))
    with store.transaction() as change:
        events: list[Event] = []
        for outcome in outcomes:
            if isinstance(outcome, dict):
                events.append(outcome)
                continue
            change.add_events(events)
            events = []
            reason, body, header = outcome
            change.add_dead_letter(reason, "stomp", origin, received_ms, body, header=header)
        change.add_events(events)
        for host, data in packets:
            process_packet(change, data, host, decode(data), received_ms)
        change.count("messages", len(frames))
