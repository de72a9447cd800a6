"""The CLI's clients of our own servers when these accept and do not answer, go away in the middle, or have nothing to say."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from appliance_files import free_ports
from gridstead.cli import metrics
from gridstead.cli.broker import Broker, BrokerError
from gridstead.collector.status import serve
from gridstead.config import StompClient

CONNECTED = b"CONNECTED\nversion:1.2\nheart-beat:0,0\n\n\0"


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[StompClient]:
    """Accept connections and do with each what the test says; they stay open until the end."""
    opened: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            opened.append(connection)
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield StompClient((("127.0.0.1", server.getsockname()[1]),), "user", "password")
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    for connection in opened:
        connection.close()


def test_a_broker_that_accepts_and_says_nothing_is_given_up() -> None:
    began = time.monotonic()
    with answering(lambda connection: None) as client, pytest.raises(BrokerError, match="no answer within 1 s"):
        Broker(client, timeout_s=1)
    assert time.monotonic() - began < 20


def test_a_broker_that_goes_away_while_it_is_asked_is_an_error_that_can_be_told() -> None:
    def leave(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(CONNECTED)
        connection.recv(1 << 16)
        connection.shutdown(socket.SHUT_RDWR)

    with answering(leave) as client, Broker(client, timeout_s=5) as broker:
        with pytest.raises(BrokerError, match="the connection was lost"):
            broker.depth("a.queue")
        for call in (lambda: broker.unsubscribe("1"), lambda: broker.manage("broker", attribute="version")):
            with pytest.raises(BrokerError):
                call()


def test_a_gateway_that_stands_by_has_no_counters() -> None:
    (port,) = free_ports(socket.SOCK_STREAM, 1)
    server = serve("127.0.0.1", port, {"/metrics.json": lambda: (503, {"reason": "nobody is elected yet"})})
    try:
        with pytest.raises(metrics.MetricsError, match="nobody is elected yet"):
            metrics.fetch("127.0.0.1", port)
    finally:
        server.shutdown()
        server.server_close()
    server = serve("127.0.0.1", port, {"/metrics.json": lambda: (200, {"queries": {}})})
    try:
        assert metrics.fetch("127.0.0.1", port) == {"queries": {}}
    finally:
        server.shutdown()
        server.server_close()
