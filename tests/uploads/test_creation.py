"""Making an upload: what is on the disk and in the database, and in which order."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.uploads.support import BLOCK, Node, checksum_of, digest_of
from tusd_py.authorization import ANONYMOUS
from tusd_py.errors import ChecksumMismatch, ClientDisconnected, DatabaseUnavailable, WholeChecksumMismatch
from tusd_py.protocol.create import Create
from tusd_py.protocol.upload import State, UploadProtocol
from tusd_py.uploads.append import AppendFailed
from tusd_py.uploads.creation import begin_upload, create_upload, receive_first_body
from tusd_py.uploads.service import UNANNOUNCED_SECONDS, hash_token

DRAFT = UploadProtocol.RUFH


def creation(length: int | None, content_length: int | None, **facts: Any) -> Create:
    return Create(length=length, has_body=True, content_length=content_length, **facts)


async def rows(node: Node) -> int:
    count: int = await node.world.value("SELECT count(*) FROM uploads")
    return count


def files(node: Node) -> list[str]:
    return [name for name, _ in node.disk.files()]


@pytest.mark.parametrize(("size", "row_comes_first"), [(BLOCK, False), (BLOCK + 1, True)])
async def test_a_body_of_one_block_is_received_before_there_is_a_row(
    node: Node, size: int, row_comes_first: bool
) -> None:
    """CWU-02"""
    seen: list[int] = []

    async def look() -> None:
        seen.append(await rows(node))

    content = b"x" * size
    created = await create_upload(node.service, ANONYMOUS, creation(size, size), node.body(content, look))

    assert seen == [int(row_comes_first)]
    assert (created.upload.offset, created.upload.state) == (size, State.COMPLETED)
    assert node.staged(created.upload) == content
    found = await node.world.uploads.find_by_token(hash_token(created.token))
    assert found is not None
    assert found.id == created.upload.id


@pytest.mark.parametrize(("error", "left"), [(RuntimeError("no"), 0), (DatabaseUnavailable(), 1)])
async def test_a_small_body_without_its_row_stays_only_where_the_row_may_be_there(
    node: Node, error: Exception, left: int
) -> None:
    """CRE-14"""
    node.uploads.creation_error = error

    with pytest.raises(type(error)):
        await create_upload(node.service, ANONYMOUS, creation(5, 5), node.body(b"hello"))

    # An answer that got lost does not say whether there is a row; the cleanup finds out.
    assert (await rows(node), len(files(node))) == (0, left)


@pytest.mark.parametrize("content_length", [BLOCK + 1, None], ids=["large", "chunked"])
async def test_without_its_row_no_other_body_is_read(node: Node, content_length: int | None) -> None:
    """CWU-07"""
    node.uploads.creation_error = DatabaseUnavailable()
    body = node.body(b"x" * (BLOCK + 1))

    with pytest.raises(DatabaseUnavailable):
        await create_upload(node.service, ANONYMOUS, creation(None, content_length), body)

    assert (body.accepted, body.waits, files(node)) == (False, [], [])


async def test_a_small_body_that_was_refused_leaves_neither_row_nor_file(node: Node) -> None:
    """CWU-09"""
    refused = creation(5, 5, checksum=checksum_of(b"other"))
    with pytest.raises(ChecksumMismatch):
        await create_upload(node.service, ANONYMOUS, refused, node.body(b"hello"))

    unlike = creation(5, 5, repr_digest=digest_of(b"other"))
    with pytest.raises(WholeChecksumMismatch):
        await create_upload(node.service, ANONYMOUS, unlike, node.body(b"hello"))

    assert (await rows(node), files(node)) == (0, [])


async def test_a_streamed_body_that_was_refused_is_given_up(node: Node) -> None:
    """CWU-09"""
    command = creation(None, None, checksum=checksum_of(b"other"))

    with pytest.raises(AppendFailed) as failed:
        await create_upload(node.service, ANONYMOUS, command, node.body(b"hello"))

    assert isinstance(failed.value.error, ChecksumMismatch)
    assert await node.world.value("SELECT state FROM uploads") == State.REMOVING


async def test_what_nobody_knows_the_url_of_is_kept_for_a_while_and_what_is_whole_for_long(node: Node) -> None:
    """CWU-03 EXP-03"""
    body = node.body(b"hello", ClientDisconnected())
    with pytest.raises(AppendFailed) as cut_short:
        await create_upload(node.service, ANONYMOUS, creation(10, None), body)
    whole = await create_upload(node.service, ANONYMOUS, creation(10, None), node.body(b"hello"))

    begun = cut_short.value.upload
    assert begun is not None
    assert begun.expires_at is not None
    assert whole.upload.expires_at is not None
    assert (begun.offset, whole.upload.offset) == (5, 5)
    now = datetime.now(UTC)
    assert (begun.expires_at - now).total_seconds() <= UNANNOUNCED_SECONDS
    assert (whole.upload.expires_at - now).total_seconds() > 2 * UNANNOUNCED_SECONDS


async def test_an_upload_of_no_bytes_is_complete_at_once_and_has_a_file(node: Node) -> None:
    """CRE-04"""
    command = Create(length=0, want_repr_digest="sha256")

    upload = (await create_upload(node.service, ANONYMOUS, command, node.body())).upload

    assert (upload.state, upload.repr_digest) == (State.COMPLETED, digest_of(b""))
    assert node.staged(upload) == b""


async def test_an_upload_that_has_begun_keeps_what_arrived(node: Node) -> None:
    """CORE-19"""
    command = creation(10, None, protocol=DRAFT, completes=True)
    body = node.body(b"hello", ClientDisconnected())

    begun = await begin_upload(node.service, ANONYMOUS, command, body)
    assert (begun.upload.offset, body.waits) == (0, [])
    with pytest.raises(AppendFailed):
        await receive_first_body(node.service, begun, command, body)

    assert (await node.offset(begun.upload), node.staged(begun.upload)) == (5, b"hello")
