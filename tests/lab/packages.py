"""The package proxy: the one way out of a lab, and it leads to this machine's package mirrors only.

It listens inside the lab's network namespace and connects in the machine's, so that the machine needs neither forwarding nor address
translation. The hosts' apt is set to use it (image.py).
"""

from __future__ import annotations

import http.client
import http.server
import shutil
import socket
import threading
import urllib.parse
from collections.abc import Set

from image import mirrors

PORT = 3128
TIMEOUT_S = 60
_BETWEEN_TWO_ONLY = {"connection", "proxy-connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}


class Proxy(http.server.ThreadingHTTPServer):
    """An HTTP proxy that knows a few servers."""

    daemon_threads = True
    servers: Set[str] = frozenset()


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection of a host's apt."""

    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_S
    server: Proxy

    def do_GET(self) -> None:
        """Fetch from a mirror."""
        url = urllib.parse.urlsplit(self.path)
        if not self._allowed(url.scheme, url.hostname, url.port):
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _BETWEEN_TWO_ONLY}
        upstream = http.client.HTTPConnection(url.hostname or "", url.port or 80, timeout=TIMEOUT_S)
        try:
            upstream.request(self.command, urllib.parse.urlunsplit(("", "", url.path, url.query, "")), headers=headers)
            response = upstream.getresponse()
        except OSError as error:
            self.send_error(502, f"{url.hostname}: {error}")
            return
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in _BETWEEN_TWO_ONLY:
                self.send_header(name, value)
        self.close_connection = response.getheader("Content-Length") is None and response.status not in (204, 304)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        shutil.copyfileobj(response, self.wfile, 1 << 18)
        upstream.close()

    do_HEAD = do_GET

    def do_CONNECT(self) -> None:
        """Pass an encrypted connection on to a mirror."""
        name, _, port = self.path.partition(":")
        if not self._allowed("https", name, int(port)):
            return
        self.close_connection = True
        try:
            upstream = socket.create_connection((name, int(port)), timeout=TIMEOUT_S)
        except OSError as error:
            self.send_error(502, f"{name}: {error}")
            return
        with upstream:
            self.send_response_only(200, "connected")
            self.end_headers()
            back = threading.Thread(target=_pour, args=(upstream, self.connection), daemon=True)
            back.start()
            _pour(self.connection, upstream)
            back.join()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: apt reports what it got."""

    def _allowed(self, scheme: str, name: str | None, port: int | None) -> bool:
        usual = {"http": 80, "https": 443}.get(scheme)
        if usual is not None and (port or usual) == usual and f"{scheme}://{name}" in self.server.servers:
            return True
        self.send_error(403, f"the lab reaches {', '.join(sorted(self.server.servers)) or 'no mirror'} only")
        return False


def _pour(source: socket.socket, target: socket.socket) -> None:
    """Copy what comes from one side to the other, up to its end."""
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # one side has gone; the other sees it by its own end


def listen(address: str) -> Proxy:
    """Open the proxy's port in the network namespace of the caller."""
    return Proxy((address, PORT), Handler)


def serve(proxy: Proxy) -> None:
    """Serve from the network namespace of the caller, in threads."""
    proxy.servers = {"{0.scheme}://{0.hostname}".format(urllib.parse.urlsplit(mirror.uri)) for mirror in mirrors()}
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
