"""The one way into a lab from programs of this machine that do not know of it: a port on loopback that leads to one port of a host.

It runs in the lab's monitor. The port is open in the machine's network; connections go out from the lab's, which one thread has entered.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

import kernel
from state import Lab


def listen(lab: Lab) -> socket.socket:
    """Open the gate in the network namespace of the caller; its port is in the lab's file `gate`."""
    server = socket.create_server(("127.0.0.1", 0))
    (lab.directory / "gate").write_text(f"{server.getsockname()[1]}\n")
    return server


def serve(server: socket.socket, lab: Lab, holder: int) -> None:
    """Let through what comes to the gate, in threads."""
    host, port = lab.definition["gate"]
    threading.Thread(target=_accept, args=(server, holder, (host, port)), daemon=True).start()


def _accept(server: socket.socket, holder: int, target: tuple[str, int]) -> None:
    kernel.enter_network(f"/proc/{holder}/ns/net")  # this thread only
    while True:
        client, _ = server.accept()
        threading.Thread(target=_join, args=(client, target), daemon=True).start()  # it inherits the network of this one


def _join(client: socket.socket, target: tuple[str, int]) -> None:
    with client, suppress(OSError), socket.create_connection(target, timeout=10) as upstream:
        upstream.settimeout(None)
        back = threading.Thread(target=_pour, args=(upstream, client), daemon=True)
        back.start()
        _pour(client, upstream)
        back.join()


def _pour(source: socket.socket, target: socket.socket) -> None:
    """Copy what comes from one side to the other, up to its end."""
    with suppress(OSError):
        while data := source.recv(1 << 18):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
