"""Downloads: one resolver for `/download/{id}` and for GET on a tus URL.

Staged uploads are streamed from staging with Range; stored ones are served from the store's files or
by a redirect to a short-lived URL. Permission was checked before anything here runs.
"""

from __future__ import annotations

import contextlib
import http
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import aiofiles
from aiohttp import ETag, web

from tusd_py.errors import RangeNotSatisfiable, StagingMissing, StoredObjectMissing
from tusd_py.http.disposition import content_disposition, safe_content_type
from tusd_py.http.keys import UPLOAD_ID, WEB, Web
from tusd_py.ports import LocalObjects, Presigner, Segment
from tusd_py.services.uploads import Staged, Stored

if TYPE_CHECKING:
    from aiofiles.threadpool.binary import AsyncBufferedReader

    from tusd_py.protocol.upload import Upload

READ_BYTES: Final = 256 * 1024
SANDBOX: Final = "sandbox; default-src 'none'"
"""Should a browser show a served file after all, it may run and load nothing."""


@dataclass(frozen=True, slots=True)
class Served:
    """How one download presents itself."""

    content_type: str
    disposition: str

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a response with the bytes themselves."""
        return {
            "Content-Type": self.content_type,
            "Content-Disposition": self.disposition,
            "Content-Security-Policy": SANDBOX,
            "Cache-Control": "private, no-cache",
        }


async def download(request: web.Request, upload: Upload) -> web.StreamResponse:
    """Answer the bytes of a complete upload, or where they are.

    Raises:
        NotReady, UploadNotFound, UploadGone: see `UploadService.locate`.
    """
    context = request.app[WEB]
    request[UPLOAD_ID] = upload.id
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
    return await _serve_stored(context, located, served)


def _present(context: Web, upload: Upload) -> Served:
    content_type, inline = safe_content_type(
        upload.content_type, upload.filename, context.config.downloads.inline_types
    )
    return Served(content_type, content_disposition(upload.filename, inline=inline))


async def _serve_stored(context: Web, stored: Stored, served: Served) -> web.StreamResponse:
    store, key = context.store, stored.upload.object_key
    if isinstance(store, LocalObjects):
        path = store.local_path(key)
        if not path.is_file():
            raise StoredObjectMissing(key=key)
        context.metrics.downloads.labels("store").inc()
        return web.FileResponse(path, headers=served.headers)
    assert isinstance(store, Presigner)  # the composition root admits no other store
    url = await store.presign(
        key,
        content_type=served.content_type,
        content_disposition=served.disposition,
        expires_seconds=int(context.config.downloads.url_expiry),
    )
    context.metrics.downloads.labels("redirect").inc()
    return web.Response(
        status=http.HTTPStatus.FOUND,
        headers={"Location": url, "Cache-Control": "private, no-store", "Referrer-Policy": "no-referrer"},
    )


async def _serve_staged(
    request: web.Request, context: Web, staged: Staged, served: Served
) -> web.StreamResponse:
    length = sum(segment.length for segment in staged.segments)
    tag = ETag(f"{staged.upload.id}-{length}")
    if request.if_none_match and any(seen.value in {"*", tag.value} for seen in request.if_none_match):
        return web.Response(status=http.HTTPStatus.NOT_MODIFIED, headers={"ETag": f'"{tag.value}"'})
    start, stop, partial = _range(request, length, tag)
    response = web.StreamResponse(
        status=http.HTTPStatus.PARTIAL_CONTENT if partial else http.HTTPStatus.OK,
        headers=served.headers | {"Accept-Ranges": "bytes"},
    )
    response.etag = tag
    response.content_length = stop - start
    if partial:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{length}"
    async with _opened(staged.segments) as files:
        context.metrics.downloads.labels("staging").inc()
        await response.prepare(request)
        if request.method != "HEAD":
            async for block in _read(staged.segments, files, start, stop):
                await response.write(block)
    await response.write_eof()
    return response


def _range(request: web.Request, length: int, tag: ETag) -> tuple[int, int, bool]:
    """Answer [start, stop) of a single range (RFC 9110 §14.2), and whether it is one.

    Raises:
        RangeNotSatisfiable: 416 with the length.
    """
    condition = request.headers.get("If-Range")
    if "Range" not in request.headers or (condition is not None and condition != f'"{tag.value}"'):
        return 0, length, False
    try:
        wanted = request.http_range
    except ValueError:
        return 0, length, False
    start, stop, _ = wanted.indices(length) if (wanted.start or 0) < 0 else (wanted.start or 0, wanted.stop, 1)
    stop = length if stop is None else min(stop, length)
    if start >= stop:
        error = RangeNotSatisfiable(length=length)
        error.total_length = length
        raise error
    return start, stop, True


@contextlib.asynccontextmanager
async def _opened(segments: Sequence[Segment]) -> AsyncIterator[list[AsyncBufferedReader]]:
    """Open every file before the headers are sent: a file that is removed later is still read."""
    async with contextlib.AsyncExitStack() as stack:
        files = []
        for segment in segments:
            try:
                file = await stack.enter_async_context(aiofiles.open(segment.path, "rb"))
            except FileNotFoundError as error:
                raise StagingMissing(path=str(segment.path)) from error
            if os.fstat(file.fileno()).st_size < segment.length:
                raise StagingMissing(path=str(segment.path), expected=segment.length)
            files.append(file)
        yield files


async def _read(
    segments: Sequence[Segment], files: Sequence[AsyncBufferedReader], start: int, stop: int
) -> AsyncIterator[bytes]:
    begin = 0
    for segment, file in zip(segments, files, strict=True):
        first, last = max(start - begin, 0), min(stop - begin, segment.length)
        begin += segment.length
        if first >= last:
            continue
        await file.seek(first)
        while first < last:
            block = await file.read(min(READ_BYTES, last - first))
            if not block:
                raise StagingMissing(path=str(segment.path))
            first += len(block)
            yield block
