"""Actions on an upload: keep it, or move it to the store."""

from __future__ import annotations

import http

from aiohttp import web

from tusd_py.http.api.requests import prefix_of, resource, upload_id_of
from tusd_py.http.context import CONTEXT, UPLOAD_ID
from tusd_py.http.middleware import principal_of
from tusd_py.http.responses import json_response
from tusd_py.protocol.upload import State, Upload
from tusd_py.uploads.view import API_PATH, upload_links


def routes() -> list[web.RouteDef]:
    """Return the routes of actions."""
    return [
        resource(f"{API_PATH}/{{id}}/commit", POST=commit),
        resource(f"{API_PATH}/{{id}}/transfer", POST=transfer),
    ]


async def commit(request: web.Request) -> web.Response:
    """Record that the application keeps the upload. Again and again answers the same."""
    upload_id = request[UPLOAD_ID] = upload_id_of(request)
    upload = await request.app[CONTEXT].uploads.commit(principal_of(request), upload_id)
    return json_response(
        {
            "id": str(upload.id),
            "committed_at": upload.committed_at,
            "profile": upload.profile,
            "trigger": upload.trigger.value,
            "self": _links(request, upload)["self"],
        }
    )


async def transfer(request: web.Request) -> web.Response:
    """Have the upload transferred: 202 with the transfer that is to be watched, 200 if it is stored."""
    upload_id = request[UPLOAD_ID] = upload_id_of(request)
    order = await request.app[CONTEXT].uploads.request_transfer(principal_of(request), upload_id)
    stored = order.upload.state is State.STORED
    return json_response(
        {
            "id": str(order.upload.id),
            "transfer_id": order.transfer_id,
            "state": order.upload.state.value,
            "links": _links(request, order.upload),
        },
        status=http.HTTPStatus.OK if stored else http.HTTPStatus.ACCEPTED,
    )


def _links(request: web.Request, upload: Upload) -> dict[str, str | None]:
    downloads = request.app[CONTEXT].config.downloads.enabled
    return upload_links(upload, prefix=prefix_of(request), downloads=downloads)
