"""A creation, free of any dialect's header names."""

from __future__ import annotations

from dataclasses import dataclass, field

from tusd_py.errors import ProtocolError
from tusd_py.protocol.checksum import Checksum, DigestSet
from tusd_py.protocol.upload import Concat, UploadProtocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """Create an upload, perhaps with its first bytes."""

    length: int | None
    """Bytes in all; None where the client does not know yet, or for a final upload."""
    metadata: str | None = None
    pairs: dict[str, bytes] = field(default_factory=dict)
    content_encoding: str | None = None
    """How the bytes of the upload are coded, as a list of content codings."""
    content_language: str | None = None
    """In which languages they are, as a list of language tags."""
    concat: Concat | None = None
    concat_header: str | None = None
    partials: tuple[str, ...] = ()
    """Tokens of the partial uploads of a final one, in order."""
    has_body: bool = False
    """The request carries bytes that belong to the upload."""
    content_length: int | None = 0
    """Bytes of the body, None for a chunked one."""
    unwanted_body: ProtocolError | None = None
    """What to answer should a chunked body, whose length nobody knows, turn out not to be empty."""
    checksum: Checksum | DigestSet | None = None
    checksum_in_trailer: bool = False
    repr_digest: DigestSet | None = None
    """What all bytes of the upload together must have, verified when it is complete."""
    want_repr_digest: str | None = None
    """See `upload.Append.want_repr_digest`."""
    protocol: UploadProtocol = UploadProtocol.TUS
    completes: bool | None = None
    """See `upload.Append.completes`."""
    max_body_bytes: int | None = None
    """See `upload.Append.max_body_bytes`."""
