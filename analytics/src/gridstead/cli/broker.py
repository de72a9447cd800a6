"""A small STOMP client: transactions with receipts, durable subscriptions, and queue depths by management message."""

from __future__ import annotations

import itertools
import json
import logging
import queue
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import stomp

from gridstead.config import STOMP_CONNECT_TIMEOUT_S, STOMP_HEARTBEAT_S, STOMP_SILENT_BEATS, StompClient

HEARTBEAT_MS = int(STOMP_HEARTBEAT_S * 1000)
_numbers = itertools.count(1)
logging.getLogger("stomp.py").setLevel(logging.CRITICAL)  # what it would log comes as BrokerError


class BrokerError(ConnectionError):
    """The broker cannot be reached, went away, or refused a frame."""


class Message(NamedTuple):
    """A received message: headers, and the body in bytes."""

    headers: Mapping[str, str]
    body: bytes


class _Inbox(stomp.ConnectionListener):
    """Sorts what the broker sends: messages, receipts and errors."""

    def __init__(self) -> None:
        self.messages: queue.Queue[Message] = queue.Queue()
        self.changed = threading.Condition()
        self.receipts: set[str] = set()
        self.connected = False
        self.problem: str | None = None

    def on_message(self, frame: Any) -> None:
        body = frame.body if isinstance(frame.body, bytes) else str(frame.body or "").encode()
        self.messages.put(Message(dict(frame.headers), body))

    def on_connected(self, frame: Any) -> None:
        with self.changed:
            self.connected = True
            self.changed.notify_all()

    def on_receipt(self, frame: Any) -> None:
        with self.changed:
            self.receipts.add(frame.headers.get("receipt-id", ""))
            self.changed.notify_all()

    def on_error(self, frame: Any) -> None:
        body = frame.body if isinstance(frame.body, str) else (frame.body or b"").decode(errors="replace")
        text = frame.headers.get("message") or body or "refused"
        self._end(" ".join(text.split())[:500])

    def on_disconnected(self) -> None:
        self._end("the connection was lost")

    def _end(self, problem: str) -> None:
        with self.changed:
            self.problem = self.problem or problem
            self.changed.notify_all()


class Broker:
    """One STOMP 1.2 connection. Every call that changes something waits for the broker's receipt."""

    def __init__(self, settings: StompClient, *, client_id: str | None = None, timeout_s: float = 30.0) -> None:
        """Connect; raises BrokerError, also where nothing answers within ``timeout_s``.

        ``client_id`` is needed for durable subscriptions.
        """
        self._timeout_s = timeout_s
        self._inbox = _Inbox()
        self._connection = stomp.Connection12(
            list(settings.hosts),
            reconnect_attempts_max=1,
            timeout=STOMP_CONNECT_TIMEOUT_S,
            heartbeats=(HEARTBEAT_MS, HEARTBEAT_MS),
            heart_beat_receive_scale=STOMP_SILENT_BEATS,
            auto_decode=False,
            auto_content_length=False,
            try_loopback_connect=False,
        )
        self._connection.set_listener("inbox", self._inbox)
        headers = {"client-id": client_id} if client_id else {}
        inbox = self._inbox
        try:
            with self._sending():
                self._connection.connect(settings.username, settings.password, wait=False, headers=headers)
            with inbox.changed:  # stomp.py's own wait has no time limit: a broker may accept and never answer
                inbox.changed.wait_for(lambda: inbox.connected or inbox.problem, timeout_s)
            if not inbox.connected or inbox.problem:
                raise BrokerError(inbox.problem or f"no answer within {timeout_s:g} s")
        except BrokerError as error:
            self.close()
            where = ", ".join(f"{host}:{port}" for host, port in settings.hosts)
            raise BrokerError(f"{where}: {error}") from error

    def __enter__(self) -> Broker:
        """Return itself, connected."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Disconnect."""
        self.close()

    def close(self) -> None:
        """Disconnect, without waiting for anything that is on its way."""
        try:
            self._connection.disconnect(receipt=None)
        except (stomp.exception.StompException, OSError):
            pass

    def send(self, queue_name: str, bodies: Sequence[bytes], headers: Mapping[str, str] | None = None) -> None:
        """Send persistent messages in one transaction; returns when the broker has committed it. Raises BrokerError."""
        transaction = f"gridstead-{next(_numbers)}"
        common = {"persistent": "true", "destination-type": "ANYCAST", **(headers or {})}
        receipt = _new_receipt()
        with self._sending():
            self._connection.begin(transaction=transaction)
            for body in bodies:
                self._connection.send(
                    queue_name, body, transaction=transaction, **common, **{"content-length": str(len(body))}
                )
            self._connection.commit(transaction=transaction, receipt=receipt)
        self._wait(receipt)

    def publish(self, topic: str, bodies: Iterable[bytes]) -> None:
        """Send persistent messages to every subscription of an address. Raises BrokerError."""
        self.send(topic, list(bodies), {"destination-type": "MULTICAST"})

    def subscribe(self, destination: str, *, durable_name: str | None = None, **headers: str) -> str:
        """Subscribe and return the subscription's id; with ``durable_name`` it outlives the connection."""
        identifier = durable_name or f"gridstead-{next(_numbers)}"
        if durable_name:
            headers |= {"durable-subscription-name": durable_name, "subscription-type": "MULTICAST"}
        receipt = _new_receipt()
        with self._sending():
            self._connection.subscribe(destination, identifier, ack="client-individual", receipt=receipt, **headers)
        self._wait(receipt)
        return identifier

    def unsubscribe(self, identifier: str, *, durable: bool = False) -> None:
        """End a subscription; a durable one is deleted, with what it still holds."""
        extra = {"durable-subscription-name": identifier} if durable else {}
        receipt = _new_receipt()
        with self._sending():
            self._connection.unsubscribe(identifier, receipt=receipt, **extra)
        self._wait(receipt)

    def receive(self, timeout_s: float) -> Message | None:
        """Return the next message and acknowledge it; None where none comes in time."""
        try:
            message = self._inbox.messages.get(timeout=timeout_s)
        except queue.Empty:
            if self._inbox.problem:
                raise BrokerError(self._inbox.problem) from None
            return None
        if "ack" in message.headers:
            with self._sending():
                self._connection.ack(message.headers["ack"])
        return message

    def manage(self, resource: str, *, attribute: str = "", operation: str = "", arguments: Sequence[Any] = ()) -> Any:
        """Ask the broker's management for an attribute or an operation's result; raises BrokerError if it refuses."""
        reply_to = f"reply.gridstead.{uuid.uuid4().hex}"
        identifier = self.subscribe(reply_to, **{"subscription-type": "ANYCAST"})
        headers = {"_AMQ_ResourceName": resource, "reply-to": reply_to}
        headers |= {"_AMQ_OperationName": operation} if operation else {"_AMQ_Attribute": attribute}
        # Without a content length the broker takes the body as text, which its management wants.
        with self._sending():
            self._connection.send("activemq.management", json.dumps(list(arguments)), **headers)
        reply = self.receive(self._timeout_s)
        self.unsubscribe(identifier)
        if reply is None:
            raise BrokerError(f"the broker's management gave no answer about {resource}")
        text = reply.body.decode("utf-8", errors="replace")
        if reply.headers.get("_AMQ_OperationSucceeded") != "true":
            raise BrokerError(f"the broker's management refused {resource}: {text[:300]}")
        values = json.loads(text or "null")
        return values[0] if isinstance(values, list) and values else values

    def depth(self, queue_name: str) -> int:
        """Count the messages in a queue, with those delivered and not yet acknowledged. Raises BrokerError."""
        return int(self.manage(f"queue.{queue_name}", attribute="messageCount"))

    @contextmanager
    def _sending(self) -> Iterator[None]:
        """What stomp.py raises becomes BrokerError, with what the broker said before it went."""
        try:
            yield
        except (stomp.exception.StompException, OSError) as error:
            refused = isinstance(error, stomp.exception.ConnectFailedException)
            reason = str(error) or ("connection refused" if refused else type(error).__name__)
            raise BrokerError(self._inbox.problem or reason) from error

    def _wait(self, receipt: str) -> None:
        inbox = self._inbox
        with inbox.changed:
            answered = inbox.changed.wait_for(lambda: receipt in inbox.receipts or inbox.problem, self._timeout_s)
            if receipt in inbox.receipts:
                inbox.receipts.discard(receipt)
                return
        raise BrokerError(inbox.problem if answered and inbox.problem else f"no receipt within {self._timeout_s:g} s")


def _new_receipt() -> str:
    return f"receipt-{next(_numbers)}"
