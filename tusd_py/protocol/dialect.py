"""The interface of every dialect: request headers to a command, an outcome to a reply.

The HTTP side picks one dialect per request and asks it, so that no rule of a protocol is ever an
`if` in a handler. A module of functions is a dialect as good as an object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from tusd_py.errors import MethodNotAllowed, TusdError
from tusd_py.protocol import fields
from tusd_py.protocol.create import Create
from tusd_py.protocol.features import Features
from tusd_py.protocol.fields import Headers
from tusd_py.protocol.upload import Append, Upload, UploadProtocol

RETRY_AFTER_SECONDS: Final = "1"


@dataclass(frozen=True, slots=True)
class Reply:
    """A response, free of any HTTP library."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    media_type: str = "text/plain"


class Dialect(Protocol):
    """One way to speak about uploads."""

    @property
    def protocol(self) -> UploadProtocol | None:
        """The protocol that a request in this dialect is written in, None where it names none."""

    @property
    def version_headers(self) -> Mapping[str, str]:
        """Headers of every response in this dialect."""

    @property
    def supports_interim(self) -> bool:
        """Return whether a client understands an interim response with its upload's URL.

        Such a client continues after a connection that broke, and gives up after a 500.
        """

    def check_request(self, method: str, headers: Headers) -> None:
        """Refuse what this dialect refuses whatever the resource. Raises `ProtocolError`."""

    def parse_create(self, headers: Headers, features: Features) -> Create:
        """Read a POST to the creation URL. Raises `ProtocolError`; nothing was changed."""

    def parse_append(self, headers: Headers, features: Features) -> Append:
        """Read a PATCH. Raises `ProtocolError`; nothing was changed."""

    def render_interim(self, upload: Upload, location: str | None, features: Features) -> Reply | None:
        """Render an interim response about an upload whose bytes are being read, None for none.

        Called only where `supports_interim` is true. `location` is the URL of an upload that this request creates.
        """

    def render_created(self, upload: Upload, location: str, features: Features) -> Reply:
        """Return a creation."""

    def render_status(self, upload: Upload, features: Features) -> Reply:
        """Return a HEAD."""

    def representation_headers(self, upload: Upload, features: Features) -> dict[str, str]:
        """Return the headers that tell of a complete upload beside its bytes."""

    def render_unfinished(self, upload: Upload, features: Features) -> Reply | None:
        """Return a GET of an upload that is not complete; None where it has no answer of its own."""

    def render_appended(self, upload: Upload, features: Features) -> Reply:
        """Return a PATCH."""

    def render_terminated(self) -> Reply:
        """Return a DELETE."""

    def render_error(self, error: TusdError, method: str, features: Features, recorded: Upload | None = None) -> Reply:
        """Return an error, with the headers that let a client recover."""


def error_headers(error: TusdError) -> dict[str, str]:
    """Return what HTTP itself says about an error, in any dialect."""
    headers: dict[str, str] = {}
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allow)
    if error.status == 401:  # RFC 9110 §15.5.2
        headers["WWW-Authenticate"] = "Bearer"
    if error.retryable:
        headers[fields.RETRY_AFTER] = RETRY_AFTER_SECONDS
    return headers
