"""Uploads as a resource: the list, and each with the state of its transfer and its history."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from tusd_py.authorization import Principal
from tusd_py.errors import BadParameter
from tusd_py.http.api.requests import (
    flag,
    list_position,
    list_position_text,
    prefix_of,
    resource,
    upload_id_of,
    whole_number,
)
from tusd_py.http.api.views import attempt_view, transfer_view
from tusd_py.http.context import CONTEXT, UPLOAD_ID
from tusd_py.http.hook_request import hook_request
from tusd_py.http.middleware import principal_of
from tusd_py.http.responses import json_response
from tusd_py.protocol.upload import State, Upload
from tusd_py.uploads.view import API_PATH, upload_view
from tusd_py.uploads.waiting import look_at_upload

MAX_PAGE: Final = 200
DEFAULT_PAGE: Final = 50
MAX_WAIT_SECONDS: Final = 60


def routes() -> list[web.RouteDef]:
    """Return the routes of uploads."""
    return [
        resource(API_PATH, query={"GET": ("limit", "after", "state", "all")}, GET=list_uploads),
        resource(
            f"{API_PATH}/{{id}}",
            query={"GET": ("wait",), "DELETE": ("force",)},
            GET=show_upload,
            DELETE=remove_upload,
        ),
        resource(f"{API_PATH}/{{id}}/attempts", GET=list_attempts),
    ]


async def list_uploads(request: web.Request) -> web.Response:
    """Return the caller's newest uploads, `?limit=` of them, in `?state=`; `?all=1`: those of everybody.

    `?after=` takes the `next` of an earlier page.
    """
    principal = principal_of(request)
    limit = whole_number(request, "limit", default=DEFAULT_PAGE, least=1, most=MAX_PAGE)
    uploads = await request.app[CONTEXT].uploads.newest(
        principal,
        after=list_position(request, "after"),
        limit=limit,
        state=_state(request),
        everybody=flag(request, "all"),
    )
    following = list_position_text(uploads[-1]) if len(uploads) == limit else None
    views = [await _view(request, principal, upload) for upload in uploads]
    return json_response({"uploads": views, "next": following})


async def show_upload(request: web.Request) -> web.Response:
    """Return one upload with the state of its transfer; with `?wait=` as soon as that changes."""
    context = request.app[CONTEXT]
    principal = principal_of(request)
    upload_id = request[UPLOAD_ID] = upload_id_of(request)
    seen = await look_at_upload(
        context.uploads,
        principal,
        upload_id,
        wait_seconds=whole_number(request, "wait", default=0, least=0, most=MAX_WAIT_SECONDS),
        wanted=lambda: request.transport is not None and not request.transport.is_closing(),
    )
    view = await _view(request, principal, seen.upload)
    return json_response(view | transfer_view(seen.transfer, seen.sent_bytes))


async def remove_upload(request: web.Request) -> web.Response:
    """Make an upload gone for everybody; its bytes follow. `?force=1` stops a transfer that is under way."""
    context = request.app[CONTEXT]
    principal = principal_of(request)
    upload_id = request[UPLOAD_ID] = upload_id_of(request)
    asking = hook_request(context, request) if context.tells_of_requests else None
    await context.uploads.remove(principal, upload_id, asking, force=flag(request, "force"))
    context.metrics.uploads_terminated.inc()
    return web.Response(status=204)


async def list_attempts(request: web.Request) -> web.Response:
    """Return every claim of the upload's jobs and how it ended, newest first."""
    service, principal = request.app[CONTEXT].uploads, principal_of(request)
    upload_id = request[UPLOAD_ID] = upload_id_of(request)
    operator = service.rules.is_operator(principal)
    attempts = await service.attempts(principal, upload_id)
    return json_response({"attempts": [attempt_view(attempt, operator=operator) for attempt in attempts]})


async def _view(request: web.Request, principal: Principal, upload: Upload) -> dict[str, Any]:
    context = request.app[CONTEXT]
    operator = context.uploads.rules.is_operator(principal)
    place = await context.stores.place(upload.place_id) if operator and upload.remote_present else None
    return upload_view(upload, context.config, place=place, prefix=prefix_of(request))


def _state(request: web.Request) -> State | None:
    text = request.query.get("state")
    try:
        return None if text is None else State(text)
    except ValueError:
        raise BadParameter(f"state is one of {', '.join(State)}.") from None
