"""Comparing bytes with what the client promised: a body with its checksum, a whole upload with its digest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tusd_py.errors import ChecksumMismatch, IncompleteChunk, WholeChecksumMismatch
from tusd_py.protocol.checksum import Checksum, DigestSet, Hasher, new_hasher, parse_checksum
from tusd_py.protocol.fields import UPLOAD_CHECKSUM

if TYPE_CHECKING:
    from tusd_py.ports import Body, StagingFile
    from tusd_py.protocol.create import Create
    from tusd_py.protocol.upload import Append, Upload


async def verify_body(  # noqa: PLR0913, PLR0917 -- a body, and where its bytes are
    append: Append, body: Body, hasher: Hasher | None, file: StagingFile, start: int, stop: int
) -> None:
    """Compare a body, whose bytes are [start, stop) of the file and have updated `hasher`, with its checksum.

    Raises:
        IncompleteChunk: the checksum was to come in a trailer, and did not.
        InvalidChecksum, ChecksumMismatch.
    """
    checksum = append.checksum
    if append.checksum_in_trailer:
        value = body.trailer(UPLOAD_CHECKSUM)
        if value is None:
            raise IncompleteChunk("The announced Upload-Checksum trailer did not arrive; the body was discarded.")
        checksum = parse_checksum(value)
        # Only now is the algorithm known: what was written is read once more.
        hasher = checksum.hasher()
        await file.update_hasher(hasher, start, stop)
    if checksum is not None and hasher is not None and hasher.digest() != checksum.digest:
        raise ChecksumMismatch


async def verify_upload(upload: Upload, append: Append, file: StagingFile, length: int) -> DigestSet | None:
    """Compare all bytes of an upload with its digest, and return the digest that the client wants to be told.

    Raises:
        WholeChecksumMismatch
    """

    async def digest(hasher: Hasher) -> bytes:
        await file.update_hasher(hasher, 0, length)
        return hasher.digest()

    if (promised := upload.repr_digest) is not None and await digest(promised.hasher()) != promised.digest:
        raise WholeChecksumMismatch
    if (wanted := append.want_repr_digest) is None:
        return None
    return DigestSet((Checksum(wanted, await digest(new_hasher(wanted))),))


def verify_chunks(command: Create, chunks: Sequence[bytes | memoryview]) -> DigestSet | None:
    """Do the same for an upload that came whole, and is not staged yet. Blocks."""
    if command.repr_digest is not None and not matches(command.repr_digest, chunks):
        raise WholeChecksumMismatch
    if (wanted := command.want_repr_digest) is None:
        return None
    return DigestSet((Checksum(wanted, _digest(new_hasher(wanted), chunks)),))


def matches(checksum: Checksum | DigestSet, chunks: Sequence[bytes | memoryview]) -> bool:
    """Return whether the chunks have this checksum. Blocks."""
    return _digest(checksum.hasher(), chunks) == checksum.digest


def _digest(hasher: Hasher, chunks: Sequence[bytes | memoryview]) -> bytes:
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.digest()
