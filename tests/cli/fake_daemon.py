"""A daemon's local API without a daemon: whatever the test wants said, on a real Unix socket."""

from __future__ import annotations

import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any


class FakeDaemon:
    """Answers ``/v1/status`` and ``/v1/now`` with what the test puts in ``answers``.

    A ``bytes`` answer is sent as it is, in place of a whole HTTP response; ``delay_s`` is waited before each part.
    """

    def __init__(self, directory: Path) -> None:
        self.answers: dict[str, Any] = {}
        self.parts_delay_s = 0.0
        self.ended = threading.Event()
        self.socket_path = directory / "skewd.sock"
        self.config_path = directory / "skewd.toml"
        self.config_path.write_text(f'[node]\nname = "inference"\nruntime_dir = "{directory}"\n')
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def address_string(self) -> str:
                return "local"

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that gave up, as several tests want it to

        self._server = Server(str(self.socket_path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Sends what is to be said for the handler's path."""
        said = self.answers.get(handler.path)
        if isinstance(said, bytes):
            handler.close_connection = True
            for byte in said:
                handler.wfile.write(bytes([byte]))
                if self.parts_delay_s and self.ended.wait(self.parts_delay_s):
                    return
            return
        body = b"not here" if said is None else json.dumps(said).encode()
        handler.send_response(404 if said is None else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def close(self) -> None:
        """Ends it; the socket's file stays, as a daemon that was killed leaves it."""
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def status_of(
    lower_ns: int | None,
    upper_ns: int | None,
    *,
    node: str = "inference",
    reference: str | None = "node:producer",
    rtt_min_ns: int | None = 200_000,
    age_s: float | None = 0.3,
    **more: Any,
) -> dict[str, Any]:
    """A daemon's status in which the reference, which is a peer too, lies within the given bound."""
    known = lower_ns is not None and upper_ns is not None
    offset = (lower_ns + upper_ns) // 2 if lower_ns is not None and upper_ns is not None else None
    bound = {"offset_ns": offset, "lower_ns": lower_ns, "upper_ns": upper_ns}
    return {
        "node": node,
        "era": 1,
        "status": "synchronized" if known else "unsynchronized",
        "reference": reference,
        **bound,
        "uncertainty_ns": None if lower_ns is None or upper_ns is None else (upper_ns - lower_ns + 1) // 2,
        "peers": [
            {
                "name": "producer",
                "address": "127.0.0.1:9957",
                **bound,
                "drift_ppb": 1200,
                "rtt_min_ns": rtt_min_ns,
                "age_s": age_s,
                "trust": "first-hand",
                "state": "synchronized",
            }
        ],
        "sources": [],
        "links": [],
        "virtual": False,
        "messages": [],
        "metrics": "127.0.0.1:9956",
        **more,
    }
