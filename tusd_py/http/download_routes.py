"""Downloads: one resolver for `/download/{id}` and for GET on a tus URL.

Staged uploads are streamed from staging with Range; stored ones are served from the store's files or
by a redirect to a short-lived URL. Permission was checked before anything here runs.
"""

from __future__ import annotations

import contextlib
import http
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

import aiofiles
import structlog
from aiohttp import ETag, web

from tusd_py import authorization
from tusd_py.errors import RangeNotSatisfiable, StagingMissing, StorageError, StoredObjectMissing
from tusd_py.http.content_disposition import content_disposition, safe_content_type
from tusd_py.http.context import CLOSE, CONTEXT, PUBLIC, UPLOAD_ID, HttpContext
from tusd_py.ports import DownloadHeaders, LocalObjects, Presigner, Segment
from tusd_py.uploads.service import Staged, Stored

if TYPE_CHECKING:
    from aiofiles.threadpool.binary import AsyncBufferedReader
    from aiohttp.abc import AbstractStreamWriter

    from tusd_py.protocol.upload import Upload

log = structlog.get_logger(__name__)

READ_BYTES: Final = 256 * 1024
FILES_OPENED_FIRST: Final = 16
_SINGLE_RANGE: Final = re.compile(
    r"bytes=(?:(?P<first>[0-9]{1,19})-(?P<last>[0-9]{0,19})|-(?P<suffix>[0-9]{1,19}))", re.IGNORECASE
)
_PLAIN_RANGE: Final = re.compile(r"bytes=(?:[0-9]{1,19}-[0-9]{0,19}|-[1-9][0-9]{0,18})")
SANDBOX: Final = "sandbox; default-src 'none'"
"""Should a browser show a served file after all, it may run and load nothing."""


async def download(request: web.Request, upload: Upload, *, redirect: bool = True) -> web.StreamResponse:
    """Return the bytes of a complete upload, or where they are.

    Without `redirect` a URL of the store is told by a 204 instead: a page that sends `Authorization`
    cannot follow a redirect, for the store would be sent it too.

    Raises:
        NotReady, UploadNotFound, UploadGone, StoreNotConfigured: see `UploadService.locate`.
        StoredObjectMissing: the store's file is not there, nor is a staged copy.
    """
    context = request.app[CONTEXT]
    request[UPLOAD_ID] = upload.id
    profile = context.config.profiles.get(upload.profile)
    request[PUBLIC] = profile is not None and profile.perm_download == authorization.PUBLIC
    served = _present(context, upload)
    located = await context.uploads.locate(upload)
    if isinstance(located, Staged):
        try:
            return await _serve_staged(request, context, located, served)
        except StagingMissing:
            # The transfer finished in between and removed the staged copy; then the store has it.
            upload = await context.uploads.refresh(upload.id)
            located = await context.uploads.locate(upload)
            if isinstance(located, Staged):
                raise
    try:
        return await _serve_stored(request, context, located, served, redirect=redirect)
    except StoredObjectMissing:
        copy = await context.uploads.staged_copy(upload)
        if copy is None:
            raise
        log.warning("object_missing", upload_id=str(upload.id), served_from="staging")
        return await _serve_staged(request, context, copy, served)


async def _serve_staged(
    request: web.Request, context: HttpContext, staged: Staged, served: DownloadHeaders
) -> web.StreamResponse:
    tag = ETag(f"{staged.upload.id}-{staged.upload.offset}")
    response = await _serve_segments(request, tag, staged.segments, served)
    context.metrics.downloads.labels("staging").inc()
    return response


def _present(context: HttpContext, upload: Upload) -> DownloadHeaders:
    content_type, inline = safe_content_type(
        upload.content_type, upload.filename, context.config.downloads.inline_types
    )
    return DownloadHeaders(
        content_type,
        content_disposition(upload.filename, inline=inline),
        upload.content_encoding,
        upload.content_language,
    )


def _headers(served: DownloadHeaders) -> dict[str, str]:
    """Return the headers of a response with the bytes themselves."""
    return served.named() | {"Content-Security-Policy": SANDBOX, "Cache-Control": "private, no-cache"}


async def _serve_stored(
    request: web.Request, context: HttpContext, stored: Stored, served: DownloadHeaders, *, redirect: bool
) -> web.StreamResponse:
    store, key = stored.store, stored.upload.object_key
    if isinstance(store, LocalObjects):
        path = store.local_path(key)
        try:
            facts = path.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            await store.probe()  # on a disk that is not mounted nothing is missing
            raise StoredObjectMissing(key=key) from error
        context.metrics.downloads.labels("store").inc()
        tag = ETag(f"{facts.st_mtime_ns:x}-{facts.st_size:x}")
        if _file_response_understands(request, tag):
            response = _StoredFile(path, headers=_headers(served))
            # Here and not after the handler: only so do status and time of the request tell how it went.
            await response.prepare(request)
            return response
        return await _serve_segments(request, tag, [Segment(path, stored.upload.offset)], served)
    assert isinstance(store, Presigner)  # the composition root admits no other store
    url = await store.presign(
        key,
        served,
        method=request.method,
        expires_seconds=int(context.config.downloads.url_expiry),
    )
    context.metrics.downloads.labels("redirect").inc()
    return web.Response(
        status=http.HTTPStatus.FOUND if redirect else http.HTTPStatus.NO_CONTENT,
        headers={"Location": url, "Cache-Control": "private, no-store", "Referrer-Policy": "no-referrer"},
    )


class _StoredFile(web.FileResponse):
    """A file response that is sent once, though aiohttp prepares again whatever a handler returns."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None if self.prepared else await super().prepare(request)


def _file_response_understands(request: web.Request, tag: ETag) -> bool:
    """Return whether aiohttp's file response, which sends without copying, reads the ranges as we do.

    It takes an If-Range that is no date for none at all, and an empty suffix for everything; it answers
    416 to what is no single range.
    """
    if "Range" not in request.headers:
        return True
    try:
        request.http_range  # noqa: B018 -- it is read to see whether it can be
    except ValueError:
        return False
    condition = request.headers.get("If-Range")
    holds = condition in {None, f'"{tag.value}"'} or request.if_range is not None
    return holds and _PLAIN_RANGE.fullmatch(_range_field(request)) is not None


def _range_field(request: web.Request) -> str:
    if request.method != "GET":
        return ""  # ranges are defined for GET alone (RFC 9110 §14.2)
    # Lines of one name are one list (RFC 9110 §5.2): two of them are several ranges.
    return ", ".join(request.headers.getall("Range", []))


async def _serve_segments(
    request: web.Request, tag: ETag, segments: Sequence[Segment], served: DownloadHeaders
) -> web.StreamResponse:
    length = sum(segment.length for segment in segments)
    if request.if_none_match and any(seen.value in {"*", tag.value} for seen in request.if_none_match):
        return web.Response(status=http.HTTPStatus.NOT_MODIFIED, headers={"ETag": f'"{tag.value}"'})
    start, stop, partial = _range(request, length, tag)
    response = web.StreamResponse(
        status=http.HTTPStatus.PARTIAL_CONTENT if partial else http.HTTPStatus.OK,
        headers=_headers(served) | {"Accept-Ranges": "bytes"},
    )
    response.etag = tag
    response.content_length = stop - start
    if partial:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{length}"
    pieces = _pieces(segments, start, stop)
    async with _opened([segment for segment, _, _ in pieces]) as files:
        await response.prepare(request)
        if request.method != "HEAD":
            await _send(request, response, _read(pieces, files))
    await response.write_eof()
    return response


async def _send(request: web.Request, response: web.StreamResponse, blocks: AsyncGenerator[bytes]) -> None:
    try:
        async with contextlib.aclosing(blocks):
            async for block in blocks:
                await response.write(block)
    except StagingMissing as error:
        # The headers are out: only a connection cut short tells the client that this is not all.
        request[CLOSE] = True
        raise StorageError(cause=str(error)) from error


def _range(request: web.Request, length: int, tag: ETag) -> tuple[int, int, bool]:
    """Return [start, stop) of a single range (RFC 9110 §14.2), and whether it is one.

    What is no single range of bytes is ignored, as the RFC allows: the client gets everything.

    Raises:
        RangeNotSatisfiable: 416 with the length.
    """
    match = _SINGLE_RANGE.fullmatch(_range_field(request))
    condition = request.headers.get("If-Range")
    if match is None or (condition is not None and condition != f'"{tag.value}"'):
        return 0, length, False
    if match["suffix"]:
        start, stop = max(0, length - int(match["suffix"])), length
    else:
        start, stop = int(match["first"]), length
        if match["last"]:
            if int(match["last"]) < start:
                return 0, length, False
            stop = min(int(match["last"]) + 1, length)
    if start >= stop:
        error = RangeNotSatisfiable(length=length)
        error.total_length = length
        raise error
    return start, stop, True


def _pieces(segments: Sequence[Segment], start: int, stop: int) -> list[tuple[Segment, int, int]]:
    """Return which bytes of which files make up [start, stop), in order."""
    pieces, begin = [], 0
    for segment in segments:
        first, last = max(start - begin, 0), min(stop - begin, segment.length)
        begin += segment.length
        if first < last:
            pieces.append((segment, first, last))
    return pieces


@contextlib.asynccontextmanager
async def _opened(segments: Sequence[Segment]) -> AsyncIterator[list[AsyncBufferedReader]]:
    """Open files before the headers are sent: what is removed later is still read.

    Only so many of them, since a concatenation may have more parts than a process may have files.
    """
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(_open(segment)) for segment in segments[:FILES_OPENED_FIRST]]


@contextlib.asynccontextmanager
async def _open(segment: Segment) -> AsyncIterator[AsyncBufferedReader]:
    async with contextlib.AsyncExitStack() as stack:
        try:
            file = await stack.enter_async_context(aiofiles.open(segment.path, "rb"))
        except FileNotFoundError as error:
            raise StagingMissing(path=str(segment.path)) from error
        if os.fstat(file.fileno()).st_size < segment.length:
            raise StagingMissing(path=str(segment.path), expected=segment.length)
        yield file


async def _read(
    pieces: Sequence[tuple[Segment, int, int]], files: Sequence[AsyncBufferedReader]
) -> AsyncGenerator[bytes]:
    for number, (segment, first, last) in enumerate(pieces):
        async with contextlib.nullcontext(files[number]) if number < len(files) else _open(segment) as file:
            await file.seek(first)
            left = last - first
            while left:
                block = await file.read(min(READ_BYTES, left))
                if not block:
                    raise StagingMissing(path=str(segment.path))
                left -= len(block)
                yield block
