"""The HTTP page of the collector: GET /health (200, or 503 with the reason) and GET /metrics.json (flat counters)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, Any]]


def serve(bind: str, port: int, pages: dict[str, Callable[[], Answer]]) -> ThreadingHTTPServer:
    """Serve JSON pages by path in a daemon thread; raises OSError if the port is taken. Stop it with ``shutdown()``."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            page = pages.get(self.path.split("?", 1)[0])
            code, body = page() if page else (404, {"error": f"no such page; there are {', '.join(sorted(pages))}"})
            data = json.dumps(body, indent=1).encode() + b"\n"
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = 10 if ":" in bind else 2

    server = Server((bind, port), Handler)
    threading.Thread(target=server.serve_forever, name="status", daemon=True).start()
    return server
