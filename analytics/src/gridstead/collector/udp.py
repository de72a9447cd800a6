"""The way in over UDP: datagrams are looked at (MSG_PEEK), committed to the store, and only then taken off the socket.

The socket outlives the worker (its parent holds it), so a kill -9 at any moment leaves the datagram either in the
socket or in the store. A worker that starts on a used socket recognises the datagrams which its predecessor had
committed but not taken off, by their digests, so they are counted once as well.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import sqlite3
import time
from collections.abc import Callable

from gridstead.collector.store import Store, Transaction
from gridstead.sources.xrootd import XrootdJoiner
from gridstead.xrootd import DecodeError, OtherStreamError, Packet, decode_packet

log = logging.getLogger("gridstead.collector")

BATCH_DATAGRAMS = 256
BATCH_BYTES = 512 << 10
_SO_PEEK_OFF = 42
"""Linux: successive peeks return successive datagrams (socket(7)); Python's socket module does not name it."""

Datagram = tuple[bytes, str]


class UdpReceiver:
    """Moves datagrams of one socket into the store."""

    def __init__(self, sock: socket.socket, store: Store, *, used: bool = False) -> None:
        """Receive on a bound socket; ``used`` if another worker received on it before."""
        self.sock = sock
        self.store = store
        self.dropping = False
        self.failing = ""
        self._buffer = bytearray(65536)
        self._committed = store.last_batch() if used else []
        sock.setblocking(False)

    def receive(self, before_consume: Callable[[], None] | None = None) -> int:
        """Process the datagrams that are there, one batch at most; returns how many were taken off the socket.

        ``before_consume`` is called between the commit and the taking off.
        If the store refuses (disk full, for one) they stay in the socket, ``failing`` says why, and 0 is returned.
        """
        batch = self._peek()
        if not batch:
            return 0
        repeated = self._repeated(batch)
        try:
            if repeated < len(batch):
                self._commit(batch[repeated:])
        except sqlite3.Error as error:
            if not self.failing:
                log.error("cannot write %s (%s): packets wait in the socket; free disk space", self.store.path, error)
            self.failing = f"cannot write the queue: {error}"
            return 0
        if self.failing:
            log.info("%s can be written again", self.store.path)
            self.failing = ""
        if before_consume is not None:
            before_consume()
        return self._consume(batch)

    def _peek(self) -> list[Datagram]:
        batch: list[Datagram] = []
        size = 0
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
            while len(batch) < BATCH_DATAGRAMS and size < BATCH_BYTES:
                data, address = self.sock.recvfrom(65536, socket.MSG_PEEK)
                batch.append((data, address[0]))
                size += len(data)
        except OSError:
            pass  # no more datagrams (EAGAIN), or an ICMP error of a peer, which says nothing about ours
        if not batch:
            # An empty datagram that was peeked before hides from peeks with an offset: look at the head without one.
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, -1)
            except OSError:
                pass  # a kernel without this option peeks at the head anyway, so batches are of one there
            try:
                data, address = self.sock.recvfrom(65536, socket.MSG_PEEK)
                batch.append((data, address[0]))
            except OSError:
                pass
        return batch

    def _repeated(self, batch: list[Datagram]) -> int:
        """How many datagrams at the head of the socket the predecessor had committed: the longest end of its last
        batch.
        """
        committed, self._committed = self._committed, []
        if not committed:
            return 0
        digests = [_digest(datagram) for datagram in batch]
        for start in range(len(committed)):
            rest = committed[start:]
            if digests[: len(rest)] == rest:
                log.info("%d packets were committed before the last worker ended", len(rest))
                return len(rest)
        return 0

    def _commit(self, batch: list[Datagram]) -> None:
        received_ms = time.time_ns() // 1_000_000
        decoded = [decode(data) for data, _ in batch]
        with self.store.transaction() as change:
            change.put("last_batch", b"".join(map(_digest, batch)))
            for (data, host), packet in zip(batch, decoded, strict=True):
                change.count("packets")
                if change.full:
                    change.count("dropped_full")
                else:
                    process_packet(change, data, host, packet, received_ms)
            full = change.full
        if full != self.dropping:
            self.dropping = full
            if full:
                log.error("the queue is full: dropping packets until the broker takes events")
            else:
                log.info("the queue has room again: packets are kept")

    def _consume(self, batch: list[Datagram]) -> int:
        taken = 0
        strays: list[Datagram] = []
        while taken < len(batch):
            try:
                size, address = self.sock.recvfrom_into(self._buffer)
            except BlockingIOError:
                break
            except OSError:
                continue
            data = memoryview(self._buffer)[:size]
            if data == batch[taken][0]:
                taken += 1
            else:
                strays.append((bytes(data), address[0]))
        if strays:
            self._commit(strays)
        return taken + len(strays)


def _digest(datagram: Datagram) -> bytes:
    data, host = datagram
    return hashlib.blake2b(data, digest_size=16, key=host.encode()[:64]).digest()


def decode(data: bytes) -> Packet | DecodeError:
    """Decode a packet; what is wrong with it is returned."""
    try:
        return decode_packet(data)
    except DecodeError as error:
        return error


def process_packet(change: Transaction, data: bytes, host: str, packet: Packet | DecodeError, received_ms: int) -> None:
    """Queue the events of a decoded packet that ``host`` sent; what was refused of it, or all, as a dead letter."""
    if isinstance(packet, OtherStreamError):
        change.count("packets_other")
        return
    if isinstance(packet, DecodeError):
        change.count("packets_bad")
        change.add_dead_letter(str(packet), "xrootd-udp", host, received_ms, data)
        return
    joined = XrootdJoiner(change).join(packet, host, received_ms)
    for name in ("records", "opens", "opens_duplicate", "closes", "closes_duplicate", "open_missing"):
        change.count(name, getattr(joined, name))
    change.add_events(joined.events)
    if joined.errors:
        change.count("packets_bad")
        reason = (
            f"{joined.errors[0]} ({len(joined.errors)} of {joined.records} records refused, the others were processed)"
        )
        change.add_dead_letter(reason, "xrootd-udp", host, received_ms, data, partial=bool(joined.events))


def kernel_drops(sock: socket.socket) -> int:
    """Datagrams which the kernel dropped since the socket exists because its buffer was full; 0 where it does not
    tell.
    """
    inode = str(os.fstat(sock.fileno()).st_ino)
    table = "/proc/net/udp6" if sock.family == socket.AF_INET6 else "/proc/net/udp"
    try:
        with open(table, encoding="ascii") as lines:
            for line in lines:
                columns = line.split()
                if len(columns) > 12 and columns[9] == inode:
                    return int(columns[-1])
    except OSError:
        pass
    return 0
