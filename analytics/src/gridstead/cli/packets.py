"""Sending captured packets over UDP without losing any to a full socket buffer or a receiver that is away.

UDP tells nothing of its own, so two things are watched. A closed port answers on the same host with an ICMP message,
which the kernel reports as ECONNREFUSED on the connected socket: the packet is sent again, later. And where the
collector's counter of committed packets can be read, packets go in small rounds: the next round begins when the counter
has grown by the whole of this one. Where it stands still before, some were lost, nobody knows which: the round is sent
again (events have identities, so a packet that comes twice does no harm). Other senders at the same time make the
counter grow as well, so a loss may then go unnoticed.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

ROUND_PACKETS = 64
ROUND_BYTES = 128 << 10
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 2.0
STANDSTILL_S = 2.0
SETTLED_S = 0.5
FINISH_S = 5.0


class SendError(ConnectionError):
    """Packets could not be delivered within the time allowed."""


class PacketSender:
    """Sends packets to one address. ``received`` reads the receiver's counter of packets, None while it cannot."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        received: Callable[[], int | None] | None = None,
        patience_s: float = 300.0,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Open the socket; nothing is sent yet. ``note`` is told when the receiver is away and when it is back."""
        self.where = f"{host}:{port}/udp"
        self.sent = self.sent_bytes = self.resent = 0
        self._received = received
        self._patience_s = patience_s
        self._note = note
        self._round: list[bytes] = []
        self._round_bytes = 0
        self._base: int | None = None
        self._doubtful = False
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        self._socket = socket.socket(family, kind, protocol)
        self._socket.connect(address)

    def __enter__(self) -> PacketSender:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, packet: bytes) -> None:
        """Send one packet, waiting where the receiver is away or behind. Raises SendError when patience is over."""
        if self._received is None:
            self._put(packet)
            self._count([packet])
            return
        if self._round and (len(self._round) >= ROUND_PACKETS or self._round_bytes + len(packet) > ROUND_BYTES):
            self.flush()
        if not self._round:
            self._base = self._received()
            self._doubtful = self._base is None
        self._round.append(packet)
        self._round_bytes += len(packet)
        self._put(packet)

    def flush(self) -> None:
        """Return when every packet is confirmed, or at once where the receiver's counter cannot be read."""
        if self._round and self._received is not None:
            deadline = time.monotonic() + self._patience_s
            while self._doubtful or not self._confirmed(self._received, deadline):
                self._base = self._settled(self._received, deadline)
                self._doubtful = False
                self.resent += len(self._round)
                for packet in self._round:
                    self._put(packet)
        self._count(self._round)
        self._round, self._round_bytes = [], 0

    def finish(self) -> None:
        """After an interrupt: have the packets of the last round confirmed, so that the counts are exact."""
        self._patience_s = FINISH_S
        self._doubtful = bool(self._round)  # one of them may not have been sent
        try:
            self.flush()
        except SendError as error:
            self._note(str(error))

    def _count(self, packets: list[bytes]) -> None:
        self.sent += len(packets)
        self.sent_bytes += sum(map(len, packets))

    def _put(self, packet: bytes) -> None:
        """Hand one packet to the kernel, again and again while the port is closed."""
        started, wait, away = time.monotonic(), FIRST_WAIT_S, False
        while True:
            try:
                self._socket.send(packet)
                problem = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            except OSError as error:
                problem = error.errno or errno.EIO
            if problem == 0:
                if away:
                    self._note(f"{self.where} answers again")
                return
            if problem not in (errno.ECONNREFUSED, errno.ENOBUFS, errno.EHOSTUNREACH, errno.ENETUNREACH):
                name = errno.errorcode.get(problem, problem)
                raise SendError(f"{self.where}: {name} on a packet of {len(packet)} bytes")
            if time.monotonic() - started > self._patience_s:
                raise SendError(f"{self.where}: the port is closed, for {self._patience_s:g} s now")
            if not away:
                away = True
                self._note(f"{self.where}: the port is closed, waiting")
            self._doubtful = True  # what was sent just before may have been in the socket that is gone
            self.resent += 1
            time.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT_S)

    def _confirmed(self, received: Callable[[], int | None], deadline: float) -> bool:
        """Wait until the counter has grown by the round; False where it stands still before, or runs backwards."""
        base = self._base or 0
        last, moved, wait = base, time.monotonic(), 0.001
        while True:
            count = received()
            now = time.monotonic()
            if count is not None:
                if count >= base + len(self._round):
                    return True
                if count < base or (count == last and now - moved > STANDSTILL_S):
                    return False
                if count != last:
                    last, moved, wait = count, now, 0.001
            else:
                moved = now  # it is away: no standstill before it has had its time after it is back
            if now > deadline:
                raise self._unconfirmed()
            time.sleep(wait)
            wait = min(wait * 2, 0.1)

    def _settled(self, received: Callable[[], int | None], deadline: float) -> int:
        """Return the counter when it has stood still for a moment: nothing is left in the receiver's socket then."""
        last: int | None = None
        since = time.monotonic()
        while True:
            count = received()
            now = time.monotonic()
            if count is None or count != last:
                last, since = count, now
            elif now - since > SETTLED_S:
                return count
            if now > deadline:
                raise self._unconfirmed()
            time.sleep(0.05)

    def _unconfirmed(self) -> SendError:
        return SendError(f"{self.where}: {len(self._round)} packets not confirmed within {self._patience_s:g} s")
