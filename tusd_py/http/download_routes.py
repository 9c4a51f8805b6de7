"""Downloads, for `/download/{id}` and for GET on a tus URL.

Staged uploads are streamed from staging with Range; stored ones are served from the store's files or
by a redirect to a short-lived URL. Permission was checked before anything here runs.
"""

from __future__ import annotations

import http
from typing import TYPE_CHECKING

from aiohttp import web

from tusd_py import authorization
from tusd_py.errors import StagingMissing
from tusd_py.http.content_disposition import content_disposition, safe_content_type
from tusd_py.http.context import CONTEXT, PUBLIC, UPLOAD_ID, HttpContext
from tusd_py.http.file_response import send_file, send_segments
from tusd_py.ports import DownloadHeaders, LocalFile, PresignedUrl
from tusd_py.uploads.locate import StagedFiles, locate_bytes

if TYPE_CHECKING:
    from tusd_py.protocol.upload import Upload


async def download(request: web.Request, upload: Upload, *, redirect: bool = True) -> web.StreamResponse:
    """Return the bytes of a complete upload, or where they are.

    Without `redirect` a URL of the store is returned by a 204 instead: a page that sends `Authorization`
    cannot follow a redirect, for the store would be sent it too.

    Raises: see `locate_bytes`.
    """
    context = request.app[CONTEXT]
    request[UPLOAD_ID] = upload.id
    request[PUBLIC] = _is_public(context, upload)
    headers = _representation_headers(context, upload)
    location = await locate_bytes(context.uploads, upload, headers, method=request.method)
    if isinstance(location, StagedFiles):
        try:
            return await _send_staged(request, location, headers)
        except StagingMissing:
            # A transfer may have finished in between and removed the staged copy: then the store has it.
            upload = await context.uploads.refresh(upload.id)
            location = await locate_bytes(context.uploads, upload, headers, method=request.method)
    match location:
        case StagedFiles():
            return await _send_staged(request, location, headers)
        case LocalFile():
            context.metrics.downloads.labels("store").inc()
            return await send_file(request, location, upload.offset, headers)
        case PresignedUrl():
            context.metrics.downloads.labels("redirect").inc()
            status = http.HTTPStatus.FOUND if redirect else http.HTTPStatus.NO_CONTENT
            return web.Response(status=status, headers=_url_headers(location))


async def _send_staged(request: web.Request, staged: StagedFiles, headers: DownloadHeaders) -> web.StreamResponse:
    response = await send_segments(request, staged.segments, staged.tag, headers)
    request.app[CONTEXT].metrics.downloads.labels("staging").inc()
    return response


def _is_public(context: HttpContext, upload: Upload) -> bool:
    profile = context.config.profiles.get(upload.profile)
    return profile is not None and profile.perm_download == authorization.PUBLIC


def _representation_headers(context: HttpContext, upload: Upload) -> DownloadHeaders:
    content_type, inline = safe_content_type(
        upload.content_type, upload.filename, context.config.downloads.inline_types
    )
    return DownloadHeaders(
        content_type,
        content_disposition(upload.filename, inline=inline),
        upload.content_encoding,
        upload.content_language,
    )


def _url_headers(location: PresignedUrl) -> dict[str, str]:
    return {"Location": location.url, "Cache-Control": "private, no-store", "Referrer-Policy": "no-referrer"}
