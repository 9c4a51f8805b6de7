"""The JSON API and the download links: uploads by their public id."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from aiohttp import web

from tusd_py.errors import BadParameter, MethodNotAllowed, UploadNotFound
from tusd_py.http.downloads import download
from tusd_py.http.keys import PROBLEM, UPLOAD_ID, WEB, Web
from tusd_py.http.replies import json_response
from tusd_py.policy import Intent
from tusd_py.protocol.upload import GONE, RECEIVING, UploadId

if TYPE_CHECKING:
    from tusd_py.ports import TransferView
    from tusd_py.protocol.upload import Upload

API_PATH: Final = "/api/v1/uploads"
DOWNLOAD_PATH: Final = "/download"
MAX_PAGE: Final = 200
DEFAULT_PAGE: Final = 50

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def routes(*, downloads: bool) -> list[web.RouteDef]:
    """Answer the routes below the application's root."""
    found = [
        web.route("*", API_PATH, _api(list_uploads, "GET")),
        web.route("*", f"{API_PATH}/{{id}}", _api(show_upload, "GET")),
    ]
    if downloads:
        served = _api(download_by_id, "GET", "HEAD")
        found += [
            web.route("*", f"{DOWNLOAD_PATH}/{{id}}", served),
            web.route("*", f"{DOWNLOAD_PATH}/{{id}}/{{filename}}", served),
        ]
    return found


def _api(handler: Handler, *methods: str) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        request[PROBLEM] = True
        if request.method == "OPTIONS":
            return _preflight(request)
        if request.method not in methods:
            error = MethodNotAllowed()
            error.allow = ("OPTIONS", *methods)
            raise error
        return await handler(request)

    return answer


def _preflight(request: web.Request) -> web.Response:
    headers = request.headers
    allowed = request.app[WEB].cors.preflight(
        headers.get("Origin"),
        headers.get("Access-Control-Request-Method"),
        headers.get("Access-Control-Request-Headers"),
    )
    return web.Response(status=200, headers=allowed)


async def list_uploads(request: web.Request) -> web.Response:
    """Answer the caller's newest uploads, `?limit=` of them, older than `?before=`."""
    context = request.app[WEB]
    principal = context.authenticator.authenticate(request.headers.get("Authorization"))
    limit = _limit(request.query.get("limit"))
    before = _moment(request.query.get("before"))
    uploads = await context.uploads.newest(principal, before=before, limit=limit)
    page = [_view(context, upload, None) for upload in uploads]
    following = uploads[-1].created_at.isoformat() if len(uploads) == limit else None
    return json_response({"uploads": page, "next_before": following})


async def show_upload(request: web.Request) -> web.Response:
    """Answer one upload with the state of its transfer."""
    context = request.app[WEB]
    principal = context.authenticator.authenticate(request.headers.get("Authorization"))
    upload = await context.uploads.view(principal, _upload_id(request), Intent.READ)
    request[UPLOAD_ID] = upload.id
    return json_response(_view(context, upload, await context.uploads.transfer_view(upload)))


async def download_by_id(request: web.Request) -> web.StreamResponse:
    """Serve a complete upload; a filename in the path is for people and changes nothing."""
    context = request.app[WEB]
    principal = context.authenticator.authenticate(request.headers.get("Authorization"))
    upload = await context.uploads.view(principal, _upload_id(request), Intent.DOWNLOAD)
    return await download(request, upload)


def _upload_id(request: web.Request) -> UploadId:
    text = request.match_info["id"]
    try:
        value = UUID(text)
    except ValueError:
        raise UploadNotFound from None
    if str(value) != text:
        # One spelling only: whatever compares ids as text elsewhere must not be fooled.
        raise UploadNotFound
    return UploadId(value)


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_PAGE
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_PAGE)) and 1 <= int(text) <= MAX_PAGE):
        raise BadParameter(f"limit is a number from 1 to {MAX_PAGE}.")
    return int(text)


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))
        if moment.tzinfo is None:
            raise BadParameter("before needs a time zone.")
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadParameter("before is a moment as in RFC 3339.") from None


def _view(context: Web, upload: Upload, transfer: TransferView | None) -> dict[str, Any]:
    gone = upload.state in GONE
    servable = context.config.downloads.enabled and not gone and upload.state not in RECEIVING
    view: dict[str, Any] = {
        "id": str(upload.id),
        "state": upload.state.value,
        "length": upload.length,
        "offset": upload.offset,
        "filename": upload.filename,
        "content_type": upload.content_type,
        "location": "remote" if upload.remote_present else "local" if upload.local_present else None,
        "download_url": f"{DOWNLOAD_PATH}/{upload.id}" if servable else None,
        "created_at": upload.created_at,
        "updated_at": upload.updated_at,
        "completed_at": upload.completed_at,
        "stored_at": upload.stored_at,
        "expires_at": upload.expires_at if upload.state in RECEIVING else None,
        "error": upload.error,
    }
    if transfer is not None:
        view |= {
            "attempts": transfer.attempts,
            "bytes_transferred": transfer.bytes_done,
            "last_error": transfer.last_error,
            "error_code": transfer.error_code,
            "next_attempt_at": transfer.next_attempt_at,
        }
    else:
        view |= {"attempts": 0, "bytes_transferred": 0, "last_error": None, "error_code": None, "next_attempt_at": None}
    return view
