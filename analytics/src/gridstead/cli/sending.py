"""Sending messages at a rate, with progress: events to the broker in transactions, packets over UDP."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from gridstead.cli.broker import Broker, BrokerError
from gridstead.cli.metrics import packets_counter
from gridstead.cli.packets import PacketSender
from gridstead.cli.units import exact, human_bytes
from gridstead.config import Config, stomp_client

BATCH_MESSAGES = 500
BATCH_BYTES = 4 << 20
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0
FINISH_S = 5.0
_LINE_EVERY_S = 5.0


class Sink(Protocol):
    """Takes messages; ``sent`` and ``sent_bytes`` count what the receiver has taken, ``resent`` what went twice."""

    sent: int
    sent_bytes: int
    resent: int

    def send(self, message: bytes) -> None:
        """Take one message."""

    def flush(self) -> None:
        """Return when every message was taken over."""

    def finish(self) -> None:
        """After an interrupt: try for a few seconds to have taken over what was begun, so that the counts are exact."""


class EventSender:
    """Sends JSON messages to the broker's raw queue, many in one transaction, and again after a broken connection.

    A transaction whose receipt got lost is sent once more: the events' identities make the second copy harmless.
    """

    def __init__(
        self,
        config: Config,
        *,
        rate: float = 0.0,
        patience_s: float = 300.0,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Connect when the first batch is full; ``note`` is told when the broker is away and when it is back.

        ``rate`` is the pace of the messages, 0 for none: a slow one makes batches of a second.
        """
        self.sent = self.sent_bytes = self.resent = 0
        self._batch_messages = min(max(int(rate), 1), BATCH_MESSAGES) if rate else BATCH_MESSAGES
        self._queue = config.stomp.raw_queue
        self._settings = stomp_client(config)
        self._patience_s = patience_s
        self._note = note
        self._broker: Broker | None = None
        self._batch: list[bytes] = []
        self._bytes = 0

    def __enter__(self) -> EventSender:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Disconnect; what was not flushed is not sent."""
        self._drop()

    def send(self, message: bytes) -> None:
        """Take one message; a full batch is sent."""
        self._batch.append(message)
        self._bytes += len(message)
        if len(self._batch) >= self._batch_messages or self._bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what was taken, and wait for the broker's receipt. Raises BrokerError when patience is over."""
        started, wait, away = time.monotonic(), FIRST_WAIT_S, False
        while self._batch:
            try:
                if self._broker is None:
                    self._broker = Broker(self._settings)
                self._broker.send(self._queue, self._batch)
            except BrokerError as error:
                self._drop()
                if time.monotonic() - started > self._patience_s:
                    raise
                if not away:
                    away = True
                    self._note(f"the broker is away, waiting ({error})")
                self.resent += len(self._batch)
                time.sleep(wait)
                wait = min(wait * 2, LONGEST_WAIT_S)
                continue
            if away:
                self._note("the broker answers again")
            self.sent += len(self._batch)
            self.sent_bytes += self._bytes
            self._batch, self._bytes = [], 0

    def finish(self) -> None:
        """After an interrupt: send what is left over a new connection (the old one may have half a message in it)."""
        self._drop()
        self._patience_s = FINISH_S
        try:
            self.flush()
        except BrokerError as error:
            self._note(f"{len(self._batch)} messages were not sent ({error})")

    def _drop(self) -> None:
        if self._broker is not None:
            self._broker.close()
            self._broker = None


def packet_sender(config: Config, patience_s: float, note: Callable[[str], None]) -> PacketSender:
    """Make a sender to the collector's UDP port, confirmed by the collector's own counter."""
    collector = config.collector
    return PacketSender(
        collector.bind,
        collector.xrootd_port,
        received=packets_counter(config),
        patience_s=patience_s,
        note=note,
    )


@dataclass
class Pace:
    """Keeps to a rate of messages a second, on average since the begin; 0 is as fast as it goes."""

    per_second: float
    _started: float = field(default_factory=time.monotonic)
    _sent: int = 0

    def wait(self) -> None:
        """Sleep until the next message is due."""
        if self.per_second > 0:
            due = self._started + self._sent / self.per_second
            self._sent += 1
            delay = due - time.monotonic()
            if delay > 0:
                time.sleep(delay)


class Meter:
    """Shows progress: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, console: Console, total: int | None, what: str) -> None:
        """Prepare; ``total`` None where it is not known."""
        self.messages = 0
        self.bytes = 0
        self._console = console
        self._total = total
        self._what = what
        self._started = self._shown = time.monotonic()
        self._progress: Progress | None = None
        if console.is_terminal:
            columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
            columns += [TextColumn("{task.fields[rate]}"), TimeRemainingColumn()]
            self._progress = Progress(SpinnerColumn(), *columns, console=console, transient=True)
            self._task = self._progress.add_task(what, total=total, rate="")

    def __enter__(self) -> Meter:
        """Begin to show."""
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop showing."""
        if self._progress:
            self._progress.stop()

    @property
    def seconds(self) -> float:
        """Time since the begin."""
        return time.monotonic() - self._started

    def advance(self, message: bytes) -> None:
        """Count one message as sent."""
        self.messages += 1
        self.bytes += len(message)
        now = time.monotonic()
        if self._progress:
            if now - self._shown > 0.1 or self.messages == self._total:
                self._shown = now
                self._progress.update(self._task, completed=self.messages, rate=self._rate())
        elif now - self._shown > _LINE_EVERY_S:
            self._shown = now
            of = f" of {exact(self._total)}" if self._total is not None else ""
            self._console.print(f"{self._what}: {exact(self.messages)}{of}, {human_bytes(self.bytes)}, {self._rate()}")

    def _rate(self) -> str:
        return f"{self.messages / max(self.seconds, 1e-9):,.0f}/s"


@dataclass(frozen=True)
class Sent:
    """What was sent: messages and bytes taken over by their receivers, how many went twice, in how many seconds.

    ``stalled_s`` is the longest time in seconds for which a receiver took nothing that was to be sent.
    """

    messages: int
    bytes: int
    resent: int
    seconds: float
    stalled_s: float
    interrupted: bool

    def as_dict(self) -> dict[str, Any]:
        """Give the fields for JSON."""
        return asdict(self) | {"seconds": round(self.seconds, 3), "stalled_s": round(self.stalled_s, 3)}


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM interrupt as Ctrl-C does; in the main thread, the only one that may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def send_all(streams: Iterable[tuple[Sink, Iterator[bytes]]], pace: Pace, meter: Meter) -> Sent:
    """Send streams of messages, one after the other, each to its sink.

    SIGINT or SIGTERM ends it; what was sent counts.
    Raises SendError or BrokerError where a receiver is away for too long.
    """
    sinks: list[Sink] = []
    interrupted, stalled_s = False, 0.0
    with meter, _interruptible():
        try:
            for sink, stream in streams:
                if sink not in sinks:
                    sinks.append(sink)
                for message in stream:
                    pace.wait()
                    began = time.monotonic()
                    sink.send(message)
                    stalled_s = max(stalled_s, time.monotonic() - began)
                    meter.advance(message)
                began = time.monotonic()
                sink.flush()
                stalled_s = max(stalled_s, time.monotonic() - began)
        except KeyboardInterrupt:
            interrupted = True
            for sink in sinks:
                sink.finish()
    messages, size, resent = (sum(getattr(sink, name) for sink in sinks) for name in ("sent", "sent_bytes", "resent"))
    return Sent(messages, size, resent, meter.seconds, stalled_s, interrupted)
