"""The collector's worker: receives on the inherited socket until it is told to stop, or until a new parent takes over.

Its parent may die (kill -9). The worker then keeps receiving, so that no packet is lost, and offers the socket to the
next parent on a UNIX socket in the data directory; if none comes, it empties the socket and ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, TextIO

from gridstead.collector.broker import Input, Sender
from gridstead.collector.status import Answer, serve
from gridstead.collector.store import Store, StoreError
from gridstead.collector.udp import UdpReceiver, kernel_drops
from gridstead.config import Config, pseudonym_keys, stomp_client
from gridstead.pseudonyms import KeyringError, Pseudonyms

log = logging.getLogger("gridstead.collector")

SOCKET_ENVIRONMENT = "GRIDSTEAD_COLLECTOR_SOCKET"
"""Set by the parent for its worker: "<file descriptor>:<1 if an earlier worker used the socket>"."""
DATABASE = "collector.sqlite"
HANDOVER = "handover.sock"
LOCK_WAIT_S = 30.0
ORPHAN_WAIT_S = 60.0
DRAIN_S = 10.0


class WorkerError(Exception):
    """The worker cannot run; the message says why and what to do."""


@contextmanager
def data_lock(data_dir: Path) -> Iterator[TextIO]:
    """Hold the data directory for one worker; wait for a predecessor that is ending. Raises WorkerError."""
    with open(data_dir / "collector.lock", "w", encoding="ascii") as file:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise WorkerError(f"{data_dir} is in use by another collector: stop that one first") from None
                time.sleep(0.1)
        yield file


@contextmanager
def short_path(directory: Path, name: str) -> Iterator[str]:
    """A path to a file of a directory that fits a UNIX socket's 107 bytes, however long the directory's own path is."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


class Worker:
    """All parts of the worker together."""

    def __init__(self, config: Config, sock: socket.socket, *, used: bool) -> None:
        """Open the store and prepare the links. Raises StoreError, ConfigError, KeyringError."""
        settings = config.collector
        self.config = config
        self.sock = sock
        self.data_dir = Path(settings.data_dir)
        self.pseudonyms = Pseudonyms(pseudonym_keys(config)) if settings.pseudonymise else None
        self.store = Store(
            self.data_dir / DATABASE,
            queue_max_bytes=settings.queue_max_bytes,
            join_horizon_s=settings.join_horizon_s,
            protect=self.pseudonyms.protect if self.pseudonyms else None,
        )
        self.udp = UdpReceiver(sock, self.store, used=used)
        client = stomp_client(config)
        stomp = config.stomp
        self.sender = Sender(client, self.store, stomp.events_queue, stomp.deadletter_queue)
        self.input = Input(client, self.store, stomp.raw_queue, settings.max_message_bytes)
        self.started = time.time()
        self.stopping = False
        self._parent = os.getppid()
        self._threads: list[threading.Thread] = []
        self._end = threading.Event()
        self._status: ThreadingHTTPServer | None = None

    def run(self) -> None:
        """Work until SIGTERM, or until the socket is handed over to a new parent."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop_signal)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        self._serve_status()
        for name, run in (("sender", self.sender.run), ("input", self.input.run), ("housekeeping", self._keep_house)):
            thread = threading.Thread(target=_fatal, args=(name, run), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        address = self.sock.getsockname()
        size = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        log.info("receiving XRootD packets on %s port %d (socket buffer %d bytes)", address[0], address[1], size)
        taker = self._receive()
        self._shut_down()
        if taker is not None:
            socket.send_fds(taker, [b"socket"], [self.sock.fileno()])
            taker.close()
            log.info("handed the socket over to the new collector")
        else:
            log.info("stopped")

    def _on_stop_signal(self, *_: object) -> None:
        self.stopping = True

    def _serve_status(self) -> None:
        settings = self.config.collector
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                self._status = serve(
                    settings.bind, settings.status_port, {"/health": self.health, "/metrics.json": self.metrics}
                )
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise WorkerError(
                        f"cannot serve the status page on {settings.bind} port {settings.status_port} ({error}): free "
                        "the port or change collector.status_port"
                    ) from error
                time.sleep(0.2)

    def _receive(self) -> socket.socket | None:
        """The main loop; returns the connection of a new parent to hand the socket to, or None to stop."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        orphan: socket.socket | None = None
        orphan_until = 0.0
        stop_by = 0.0
        while True:
            ready = bool(poll.poll(0 if stop_by else 200))
            taken = self.udp.receive() if ready else 0
            if ready and not taken:
                time.sleep(0.5 if self.udp.failing else 0.001)
            if self.stopping:
                # Empty the socket, within a bound: a busy sender must not hold the stop for ever.
                stop_by = stop_by or time.monotonic() + DRAIN_S
                if not ready or time.monotonic() > stop_by or self.udp.failing:
                    return None
                continue
            if orphan is None and os.getppid() != self._parent:
                log.warning("the parent process is gone: receiving until a new one takes over")
                orphan = self._listen_for_parent()
                orphan_until = time.monotonic() + ORPHAN_WAIT_S
            if orphan is not None:
                try:
                    taker, _ = orphan.accept()
                    taker.setblocking(True)
                    return taker
                except BlockingIOError:
                    pass
                if time.monotonic() > orphan_until:
                    log.warning("no new parent within %.0f s", ORPHAN_WAIT_S)
                    self.stopping = True

    def _listen_for_parent(self) -> socket.socket:
        (self.data_dir / HANDOVER).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with short_path(self.data_dir, HANDOVER) as path:
            listener.bind(path)
        os.chmod(self.data_dir / HANDOVER, 0o600)
        listener.listen(1)
        listener.setblocking(False)
        return listener

    def _shut_down(self) -> None:
        self.input.stop()
        self._end.set()
        sender, *others = self._threads
        for thread in others:
            thread.join(5)
        self.sender.stop()  # last: what the input has taken is acknowledged when it is sent
        sender.join(5)
        if self._status is not None:
            self._status.shutdown()
            self._status.server_close()
        (self.data_dir / HANDOVER).unlink(missing_ok=True)
        if not any(thread.is_alive() for thread in self._threads):
            self.store.close()

    def _keep_house(self) -> None:
        while not self._end.wait(5):
            if self.pseudonyms is not None:
                self.pseudonyms.refresh()
            try:
                self.store.sweep(time.time_ns() // 1_000_000)
            except Exception as error:  # a full disk passes; the receiver reports it
                log.warning("housekeeping: %s", error)

    def health(self) -> Answer:
        """200 while input is accepted (``status`` "ok", or "degraded" with the broker away), 503 when it is not."""
        settings = self.config.collector
        counters = self.store.counters
        refused: list[str] = []
        if self.store.full:
            refused.append(
                f"the queue is full: {counters['queue_bytes']} of {settings.queue_max_bytes} bytes; packets are "
                f"dropped ({counters['dropped_full']} so far) and messages stay with the broker until it takes events"
            )
        if self.udp.failing:
            refused.append(self.udp.failing)
        degraded = [f"{link.name}: {link.state}" for link in (self.sender, self.input) if not link.connected]
        status = "failed" if refused else "degraded" if degraded else "ok"
        return (503 if refused else 200), {"status": status, "reasons": refused + degraded}

    def metrics(self) -> Answer:
        """All counters since the data directory was made, and the present state."""
        drops = kernel_drops(self.sock)
        state: dict[str, Any] = {
            "queue_max_bytes": self.config.collector.queue_max_bytes,
            "kernel_drops": drops,
            "sender_connected": self.sender.connected,
            "input_connected": self.input.connected,
            "pseudonym_key": self.pseudonyms.generation if self.pseudonyms else None,
            "uptime_s": round(time.time() - self.started, 1),
            "pid": os.getpid(),
        }
        return 200, {**self.store.counters, **state}


def _fatal(name: str, run: Callable[[], None]) -> None:
    """Run a thread; if it fails, end the process, so that the parent starts a whole worker again."""
    try:
        run()
    except Exception:
        log.critical("%s failed:\n%s", name, traceback.format_exc())
        sys.stderr.flush()
        os._exit(70)


def run_worker(config: Config) -> None:
    """Run as the worker of a parent which passed the socket in the environment.

    Raises WorkerError, StoreError, KeyringError.
    """
    number, _, used = os.environ[SOCKET_ENVIRONMENT].partition(":")
    sock = socket.socket(fileno=int(number))
    os.set_inheritable(sock.fileno(), False)
    sys.setswitchinterval(0.001)
    with data_lock(Path(config.collector.data_dir)):
        Worker(config, sock, used=used == "1").run()


__all__ = ["SOCKET_ENVIRONMENT", "KeyringError", "StoreError", "Worker", "WorkerError", "run_worker"]
