"""Sending the bytes of files, staged or stored, with Range and conditional requests."""

from __future__ import annotations

import contextlib
import http
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

import aiofiles
from aiohttp import ETag, web

from tusd_py.errors import RangeNotSatisfiable, StagingMissing, StorageError
from tusd_py.http.context import CLOSE
from tusd_py.ports import DownloadHeaders, LocalFile, Segment

if TYPE_CHECKING:
    from aiofiles.threadpool.binary import AsyncBufferedReader
    from aiohttp.abc import AbstractStreamWriter

READ_BYTES: Final = 256 * 1024
FILES_OPENED_FIRST: Final = 16
_SINGLE_RANGE: Final = re.compile(
    r"bytes=(?:(?P<first>[0-9]{1,19})-(?P<last>[0-9]{0,19})|-(?P<suffix>[0-9]{1,19}))", re.IGNORECASE
)
_PLAIN_RANGE: Final = re.compile(r"bytes=(?:[0-9]{1,19}-[0-9]{0,19}|-[1-9][0-9]{0,18})")
SANDBOX: Final = "sandbox; default-src 'none'"
"""Should a browser show a served file after all, it may run and load nothing."""


async def send_file(request: web.Request, file: LocalFile, length: int, headers: DownloadHeaders) -> web.StreamResponse:
    """Send a stored file; by the kernel, without a copy, wherever aiohttp understands the request as we do."""
    if not _file_response_understands(request, file.tag):
        return await send_segments(request, [Segment(file.path, length)], file.tag, headers)
    response = _StoredFile(file.path, headers=_fields(headers))
    # Here and not after the handler: only so are status and time of the request those of the whole response.
    await response.prepare(request)
    return response


async def send_segments(
    request: web.Request, segments: Sequence[Segment], tag: str, headers: DownloadHeaders
) -> web.StreamResponse:
    """Send files one after the other as one representation, or the range of it that is asked for.

    Raises:
        RangeNotSatisfiable: 416 with the length.
        StagingMissing: a file is missing or short, and nothing was sent.
        StorageError: a file turned out to be missing or short after the headers were sent.
    """
    if request.if_none_match and any(seen.value in {"*", tag} for seen in request.if_none_match):
        return web.Response(status=http.HTTPStatus.NOT_MODIFIED, headers={"ETag": f'"{tag}"'})
    length = sum(segment.length for segment in segments)
    start, stop, partial = _range(request, length, tag)
    response = web.StreamResponse(
        status=http.HTTPStatus.PARTIAL_CONTENT if partial else http.HTTPStatus.OK,
        headers=_fields(headers) | {"Accept-Ranges": "bytes"},
    )
    response.etag = ETag(tag)
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


def _fields(headers: DownloadHeaders) -> dict[str, str]:
    """Return the header fields of a response with the bytes themselves."""
    return headers.as_dict() | {"Content-Security-Policy": SANDBOX, "Cache-Control": "private, no-cache"}


class _StoredFile(web.FileResponse):
    """A file response that is sent once, though aiohttp prepares again whatever a handler returns."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None if self.prepared else await super().prepare(request)


def _file_response_understands(request: web.Request, tag: str) -> bool:
    """Return whether aiohttp's file response, which sends without copying, reads the ranges as we do.

    It takes an If-Range that is no date for none at all, and an empty suffix for everything; it sends
    416 for what is no single range.
    """
    if "Range" not in request.headers:
        return True
    try:
        request.http_range  # noqa: B018 -- it is read to see whether it can be
    except ValueError:
        return False
    condition = request.headers.get("If-Range")
    holds = condition in {None, f'"{tag}"'} or request.if_range is not None
    return holds and _PLAIN_RANGE.fullmatch(_range_field(request)) is not None


def _range_field(request: web.Request) -> str:
    if request.method != "GET":
        return ""  # ranges are defined for GET alone (RFC 9110 §14.2)
    # Lines of one name are one list (RFC 9110 §5.2): two of them are several ranges.
    return ", ".join(request.headers.getall("Range", []))


async def _send(request: web.Request, response: web.StreamResponse, blocks: AsyncGenerator[bytes]) -> None:
    try:
        async with contextlib.aclosing(blocks):
            async for block in blocks:
                await response.write(block)
    except StagingMissing as error:
        # The headers are out: only a connection cut short shows the client that bytes are missing.
        request[CLOSE] = True
        raise StorageError(cause=str(error)) from error


def _range(request: web.Request, length: int, tag: str) -> tuple[int, int, bool]:
    """Return [start, stop) of a single range (RFC 9110 §14.2), and whether it is one.

    What is no single range of bytes is ignored, as the RFC allows: the client gets everything.

    Raises:
        RangeNotSatisfiable: 416 with the length.
    """
    match = _SINGLE_RANGE.fullmatch(_range_field(request))
    condition = request.headers.get("If-Range")
    if match is None or (condition is not None and condition != f'"{tag}"'):
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
        raise RangeNotSatisfiable(length)
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

    Only so many of them, since a concatenation may have more partial uploads than a process may have files.
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
