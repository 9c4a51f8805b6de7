"""What a request brings: its body, and somebody who asks."""

from __future__ import annotations

from typing import Protocol

from tusd_py.authorization import Principal
from tusd_py.protocol.upload import Upload


class Body(Protocol):
    """The body of a request."""

    length: int | None
    """Bytes announced, None for a chunked body."""

    async def accept(self) -> None:
        """Say that the body is wanted: `100 Continue`, if the client waits for it."""

    async def read(self, wait_seconds: float | None = None) -> bytes | None:
        """Return what has arrived, at least one byte; `b""` at the end; None after `wait_seconds`.

        Raises:
            BodyError: the body ended without its end. What had arrived was answered before.
        """

    def acknowledge(self, upload: Upload) -> None:
        """Say how much is durable, if the client listens to that while it sends."""

    def trailer(self, name: str) -> str | None:
        """Return a trailer field. Only after the end of the body."""

    def interrupt(self, error: Exception) -> None:
        """Make the current or next `read` raise `error`, after it has answered what had arrived."""


class Authenticator(Protocol):
    """Tells who is asking. Quick enough for the event loop: it never waits for the network."""

    def authenticate(self, authorization_header: str | None) -> Principal:
        """Return who sent this `Authorization` (None: the request has none).

        Raises:
            Unauthenticated: a credential is missing, malformed, forged or out of date.
        """
