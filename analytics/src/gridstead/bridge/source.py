"""The broker's side of the bridge: a subscription to one queue over STOMP 1.2, acknowledged cumulatively by batch.

Our own reader of frames, because stomp.py costs seven times the CPU an event (docs/decisions/0004-bridge.md).
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

from gridstead.bridge.frames import Frame, FrameError, FrameReader, encode
from gridstead.config import STOMP_CONNECT_TIMEOUT_S, STOMP_HEARTBEAT_S, STOMP_SILENT_BEATS, StompClient

SILENCE_S = STOMP_SILENT_BEATS * STOMP_HEARTBEAT_S
ANSWER_TIMEOUT_S = 10.0
DISCONNECT_TIMEOUT_S = 2.0
IDLE_S = 0.2
RECEIVE_BYTES = 1 << 20


class SourceError(Exception):
    """The broker cannot be used; what it had delivered and was not acknowledged, it will deliver again."""


class Source:
    """One connection with one subscription, from its making to its end; never used again after a SourceError."""

    def __init__(self, client: StompClient, queue: str, window_bytes: int) -> None:
        """Connect to the first of the client's hosts that answers, and subscribe.

        ``window_bytes`` is how much the broker may send ahead of acknowledgements. Raises SourceError.
        """
        self.queue = queue
        self._reader = FrameReader()
        self._socket, self._address = _connect(client.hosts)
        self._written = self._heard = time.monotonic()
        try:
            self._open(client, window_bytes)
        except SourceError:
            self._socket.close()
            raise

    def _open(self, client: StompClient, window_bytes: int) -> None:
        beat = str(int(STOMP_HEARTBEAT_S * 1000))
        headers = {"accept-version": "1.2", "host": client.hosts[0][0], "heart-beat": f"{beat},{beat}"}
        if client.username is not None:
            headers |= {"login": client.username, "passcode": client.password or ""}
        self._write(encode("CONNECT", headers))
        self._expect("CONNECTED", ANSWER_TIMEOUT_S)
        subscription = {
            "id": "bridge",
            "destination": self.queue,
            "subscription-type": "ANYCAST",
            "ack": "client",
            "consumer-window-size": str(window_bytes),
            "receipt": "subscribed",
        }
        self._write(encode("SUBSCRIBE", subscription))
        self._expect("RECEIPT", ANSWER_TIMEOUT_S)

    def receive(
        self, max_messages: int, max_bytes: int, linger_s: float, stopping: Callable[[], bool] = lambda: False
    ) -> list[Frame]:
        """Return the next messages in order: a full batch, or what came within ``linger_s`` of the first one.

        The batch ends with the message that reaches ``max_bytes``. An empty list if nothing came for a moment, or
        once ``stopping`` is true. Raises SourceError.
        """
        batch: list[Frame] = []
        size = 0
        deadline = time.monotonic() + IDLE_S
        while len(batch) < max_messages and size < max_bytes:
            frame = self._next()
            if frame is not None:
                if frame.command == "MESSAGE":
                    if not batch:
                        deadline = time.monotonic() + linger_s
                    batch.append(frame)
                    size += len(frame.body)
                continue
            if stopping() or not self._read(deadline - time.monotonic()):
                break
        self.beat()
        return batch

    def acknowledge(self, last: Frame) -> None:
        """Acknowledge this message and all before it."""
        self._write(encode("ACK", {"id": last.headers["ack"]}))

    def beat(self) -> None:
        """Send a heart-beat if one is due; to be called at least every few seconds. Raises SourceError."""
        if time.monotonic() - self._written > STOMP_HEARTBEAT_S / 2:
            self._write(b"\n")

    def close(self) -> None:
        """Say goodbye, so that the acknowledgements sent are seen to be processed, and close; never fails."""
        with contextlib.suppress(SourceError):
            self._write(encode("DISCONNECT", {"receipt": "bye"}))
            self._expect("RECEIPT", DISCONNECT_TIMEOUT_S)
        self._socket.close()

    def _expect(self, command: str, timeout_s: float) -> None:
        """Wait for a frame of this command; messages that come before it are dropped."""
        deadline = time.monotonic() + timeout_s
        while True:
            frame = self._next()
            if frame is not None:
                if frame.command == command:
                    return
            elif not self._read(deadline - time.monotonic()) and time.monotonic() > deadline:
                raise SourceError(f"{self._where()}: no {command} within {timeout_s:.0f} s")

    def _next(self) -> Frame | None:
        try:
            frame = self._reader.next()
        except FrameError as error:
            raise SourceError(f"{self._where()}: {error}") from error
        if frame is not None and frame.command == "ERROR":
            text = frame.headers.get("message") or frame.body.decode("utf-8", "replace")
            raise SourceError(f"{self._where()} reports an error: {' '.join(text.split())[:300]}")
        return frame

    def _read(self, timeout_s: float) -> bool:
        """Read what is there; False if nothing came in time."""
        try:
            self._socket.settimeout(max(timeout_s, 0.001))
            data = self._socket.recv(RECEIVE_BYTES)
        except TimeoutError:
            if time.monotonic() - self._heard > SILENCE_S:
                raise SourceError(f"{self._where()}: silent for {SILENCE_S:.0f} s") from None
            return False
        except OSError as error:
            raise SourceError(f"{self._where()}: {error}") from error
        if not data:
            raise SourceError(f"{self._where()}: the connection was closed")
        self._heard = time.monotonic()
        self._reader.feed(data)
        return True

    def _write(self, data: bytes) -> None:
        try:
            self._socket.settimeout(SILENCE_S)
            self._socket.sendall(data)
        except OSError as error:
            raise SourceError(f"{self._where()} cannot be written to ({error})") from error
        self._written = time.monotonic()

    def _where(self) -> str:
        return f"the broker at {self._address}"


def _connect(hosts: tuple[tuple[str, int], ...]) -> tuple[socket.socket, str]:
    failures = []
    for host, port in hosts:
        try:
            connected = socket.create_connection((host, port), STOMP_CONNECT_TIMEOUT_S)
        except OSError as error:
            failures.append(f"{host}:{port} ({error})")
            continue
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected, f"{host}:{port}"
    raise SourceError(f"no connection to the broker: {', '.join(failures)}")
