"""A receiver of webhooks: a real HTTP server in a thread, which verifies what it gets and replies as it is told."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.support.ports import LOOPBACK
from tests.support.process import wait_until
from tusd_py.webhooks import WebhookEvent, verify

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class WebhookReceiver:
    """A context manager; `status` is what it replies to whoever comes next."""

    name: str = "app"
    status: int = 204
    events: list[WebhookEvent] = field(default_factory=list)
    """What it has accepted, in the order of arrival."""
    bodies: list[bytes] = field(default_factory=list)
    refused: int = 0
    """How often it has replied with a status other than 2xx."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(receiver._receive(body, dict(self.headers.items())))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._server.daemon_threads = True

    def _receive(self, body: bytes, headers: dict[str, str]) -> int:
        event = verify(body, headers, SECRET)
        with self._lock:
            if self.status // 100 == 2:
                self.events.append(event)
                self.bodies.append(body)
            else:
                self.refused += 1
            return self.status

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self._server.server_address[1]}/in"

    @property
    def config(self) -> dict[str, Any]:
        """The `[[webhooks]]` that sends to it."""
        return {"name": self.name, "url": self.url, "secret": SECRET}

    def kinds_of(self, upload_id: str) -> list[str]:
        """Return what it has accepted of an upload, in the order of arrival."""
        return [event.type.removeprefix("tusd_py.upload.") for event in self.events if event.subject == upload_id]

    def wait_for(self, upload_id: str, kinds: list[str], *, deadline: float = 30) -> None:
        """Wait until these kinds have arrived of an upload, in this order and nothing else."""
        wait_until(
            lambda: self.kinds_of(upload_id) == kinds,
            deadline=deadline,
            what=f"{self.name} has {kinds} of {upload_id}, not {self.kinds_of(upload_id)}",
        )

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
