"""A server in the place of EC2's instance metadata service, which only an instance of EC2 has.

Also a program, for a host of a lab: ``python3 metadata_service.py ADDRESS PORT FILE`` serves the notice that FILE holds once it is there.
It needs nothing but Python.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NOTICE = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"


@dataclass
class MetadataService:
    """An instance metadata service, version 2: it wants a token, and knows of a notice when a test gives it one."""

    url: str = ""
    notice: str | None = None
    notice_file: Path | None = None
    rebalance: str | None = None
    tokens: set[str] = field(default_factory=set)
    issued: int = 0
    asked: int = 0
    refused: int = 0
    answer: Callable[[str], tuple[int, bytes]] | None = None  # instead of all that
    delay_s: float = 0.0

    def respond(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        """Answer one request."""
        time.sleep(self.delay_s)
        if self.answer:
            return self.answer(path)
        if (method, path) == ("PUT", "/latest/api/token"):
            if not 1 <= int(headers.get("x-aws-ec2-metadata-token-ttl-seconds", 0)) <= 21600:
                return 400, b""
            self.issued += 1
            self.tokens.add(f"AQAEA{self.issued}==")
            return 200, f"AQAEA{self.issued}==".encode()
        if headers.get("x-aws-ec2-metadata-token") not in self.tokens:
            self.refused += 1
            return 401, b""
        self.asked += 1
        if self.notice_file:
            self.notice = self.notice_file.read_text() if self.notice_file.exists() else None
        text = {NOTICE: self.notice, REBALANCE: self.rebalance}.get(path) if method == "GET" else None
        return (404, b"<html>404 - Not Found</html>") if text is None else (200, text.encode())


@contextmanager
def serving(service: MetadataService, port: int = 0, address: str = "127.0.0.1") -> Iterator[MetadataService]:
    """Serve it, on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body = service.respond(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
            try:
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # the agent did not wait

        do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer((address, port), Handler)
    server.daemon_threads = True
    service.url = f"http://{address}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def in_seconds(seconds: float, action: str = "terminate") -> str:
    """What the metadata service says when the host goes in so many seconds."""
    at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    return json.dumps({"action": action, "time": f"{at:%Y-%m-%dT%H:%M:%S}Z"})


if __name__ == "__main__":
    with serving(MetadataService(notice_file=Path(sys.argv[3])), int(sys.argv[2]), sys.argv[1]):
        threading.Event().wait()
