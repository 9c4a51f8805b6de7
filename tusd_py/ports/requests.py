"""What a request brings and needs: its body, a lock, somebody who asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

from tusd_py.authorization import Principal
from tusd_py.protocol.upload import Upload, UploadId

_T = TypeVar("_T")

OnContended = Callable[[], None]
"""Called when a newer request wants what is held: stop, store, let go."""


class UploadLocks(Protocol):
    """At most one request at a time per upload; the newest asks the holder to stop."""

    def hold(self, upload_id: UploadId, on_contended: OnContended) -> AbstractAsyncContextManager[bool]:
        """Hold an upload; the value tells whether somebody else held it just before.

        Raises:
            UploadLocked: it was not let go in time.
        """

    def held(self, upload_id: UploadId) -> bool:
        """Return whether a request of this process holds the upload."""

    async def wait_for_file_lock(self, upload_id: UploadId, attempt: Callable[[], Awaitable[_T | None]]) -> _T:
        """Try until `attempt` returns something; as long as it returns None, ask other processes to let go.

        Raises:
            UploadLocked: the other process did not let go in time.
        """

    async def ask_others(self, upload_id: UploadId) -> None:
        """Ask other processes to let go. Never fails: it is a hint."""


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
