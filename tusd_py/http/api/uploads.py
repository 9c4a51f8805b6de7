"""Uploads as a resource: the list, and each with the state of its transfer."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from tusd_py.http.api.requests import moment, principal_of, resource, upload_id_of, whole_number
from tusd_py.http.api.views import API_PATH, upload_view
from tusd_py.http.keys import UPLOAD_ID, WEB
from tusd_py.http.replies import json_response
from tusd_py.policy import Intent

MAX_PAGE: Final = 200
DEFAULT_PAGE: Final = 50


def routes() -> list[web.RouteDef]:
    """Answer the routes of uploads."""
    return [resource(API_PATH, GET=list_uploads), resource(f"{API_PATH}/{{id}}", GET=show_upload)]


async def list_uploads(request: web.Request) -> web.Response:
    """Answer the caller's newest uploads, `?limit=` of them, older than `?before=`."""
    context = request.app[WEB]
    principal = principal_of(request)
    limit = whole_number(request, "limit", default=DEFAULT_PAGE, least=1, most=MAX_PAGE)
    uploads = await context.catalog.newest(principal, before=moment(request, "before"), limit=limit)
    page = [upload_view(upload, None, downloads=context.config.downloads.enabled) for upload in uploads]
    following = uploads[-1].created_at.isoformat() if len(uploads) == limit else None
    return json_response({"uploads": page, "next_before": following})


async def show_upload(request: web.Request) -> web.Response:
    """Answer one upload with the state of its transfer."""
    context = request.app[WEB]
    upload = await context.catalog.view(principal_of(request), upload_id_of(request), Intent.READ)
    request[UPLOAD_ID] = upload.id
    transfer = await context.catalog.transfer_view(upload)
    return json_response(upload_view(upload, transfer, downloads=context.config.downloads.enabled))
