"""Live events: Server-Sent Events of one upload, or of all that somebody may read.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import time
from typing import Any, Final
from uuid import UUID

import orjson
import structlog
from aiohttp import web

from tusd_py.authorization import Action, Principal
from tusd_py.errors import BadParameter, DatabaseUnavailable
from tusd_py.http.api.requests import flag, prefix_of, resource, upload_id_of
from tusd_py.http.context import CONTEXT, UPLOAD_ID, HttpContext
from tusd_py.http.middleware import principal_of
from tusd_py.protocol import fields
from tusd_py.protocol.events import EventKind
from tusd_py.protocol.upload import State
from tusd_py.uploads.cloud_events import cloud_event, event_source, progress_event
from tusd_py.uploads.listeners import EventListener, LiveEvent, LiveMessage

log = structlog.get_logger(__name__)

LAST_EVENT_ID: Final = "Last-Event-ID"
HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    # nginx would gather the stream in its buffers.
    "X-Accel-Buffering": "no",
}
BEGINNING: Final = b"retry: 2000\n: listening\n\n"
# Without an id, so that a client that comes back does not ask for the lost one again.
RESET: Final = b"event: reset\nid\ndata: {}\n\n"
COMMENT: Final = b":\n\n"
CONNECTED_SECONDS: Final = 5.0
"""Between two looks whether the client is still there."""
JSON_OPTIONS: Final = orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC


def routes() -> list[web.RouteDef]:
    """Return the routes of events."""
    return [
        resource("/api/v1/events", kind="events", query={"GET": ("all",)}, GET=listen_to_all),
        resource("/api/v1/uploads/{id}/events", kind="events", GET=listen_to_upload),
    ]


async def listen_to_upload(request: web.Request) -> web.StreamResponse:
    """Send every event of an upload from its first one on, or from the one after `Last-Event-ID`."""
    context, principal = request.app[CONTEXT], principal_of(request)
    last_event_id = _last_event_id(request)
    upload_id = request[UPLOAD_ID] = upload_id_of(request)
    upload = await context.uploads.get_by_id(principal, upload_id, Action.READ, gone_too=True)
    with context.live.listening(upload_id, on_overrun=lambda: _abort(request)) as listener:
        await context.live.start(listener, last_event_id)
        if upload.state is State.REMOVED and await context.live.is_over(listener):
            # EventSource would come back for ever after anything else.
            return web.Response(status=http.HTTPStatus.NO_CONTENT)
        return await _Stream(request, principal, listener, await _source(context)).run()


async def listen_to_all(request: web.Request) -> web.StreamResponse:
    """Send the events of the caller's uploads, with `?all=1` of everybody's, from now or from `Last-Event-ID` on."""
    context, principal = request.app[CONTEXT], principal_of(request)
    last_event_id = _last_event_id(request)
    owner = context.uploads.listed_owner(principal, everybody=flag(request, "all"))
    with context.live.listening(None, owner=owner, on_overrun=lambda: _abort(request)) as listener:
        await context.live.start(listener, last_event_id)
        return await _Stream(request, principal, listener, await _source(context)).run()


def _last_event_id(request: web.Request) -> UUID | None:
    try:
        text = fields.single(request.headers, LAST_EVENT_ID)
        return UUID(text) if text else None
    except ValueError:
        raise BadParameter(f"{LAST_EVENT_ID} is the id of an event.") from None


async def _source(context: HttpContext) -> str:
    return event_source(context.config, await context.live.database_id())


def _abort(request: web.Request) -> None:
    # It may be waiting for a client that takes nothing.
    if request.transport is not None:
        request.transport.abort()


class _Stream:
    """One stream of events, from its head to its end."""

    def __init__(self, request: web.Request, principal: Principal, listener: EventListener, source: str) -> None:
        self._context = request.app[CONTEXT]
        self._request = request
        self._principal = principal
        self._listener = listener
        self._source = source
        self._operator = self._context.uploads.rules.is_operator(principal)
        self._prefix = prefix_of(request)
        self._response = web.StreamResponse(headers=HEADERS)

    async def run(self) -> web.StreamResponse:
        """Send events until nothing can follow, the client goes away, its token expires or the server drains."""
        gauge = self._context.metrics.event_listeners
        gauge.inc()
        try:
            await self._response.prepare(self._request)
            await self._send(BEGINNING + (RESET if self._listener.reset else b""))
            await self._follow()
            await self._response.write_eof()
        except (ConnectionError, TimeoutError):
            _abort(self._request)
        except Exception:
            # The head is sent: nothing else can be answered any more. The client comes back.
            log.exception("stream_failed")
            _abort(self._request)
        finally:
            gauge.dec()
        self._response.force_close()
        return self._response

    async def _follow(self) -> None:
        context, listener = self._context, self._listener
        clock = asyncio.get_running_loop().time
        expires_at = clock() + self._principal.expires_at - time.time()
        comment_at = clock() + context.comment_seconds
        while not listener.ended and self._connected and (now := clock()) < expires_at:
            told = await context.live.next(listener, min(comment_at - now, expires_at - now, CONNECTED_SECONDS))
            for each in told:
                await self._send(await self._message(each))
                if self._is_last(each):
                    return
            if not told and clock() >= comment_at:
                await self._send(COMMENT)
            elif not told:
                continue
            comment_at = clock() + context.comment_seconds

    @property
    def _connected(self) -> bool:
        transport = self._request.transport
        return transport is not None and not transport.is_closing()

    def _is_last(self, told: LiveMessage) -> bool:
        if self._listener.upload_id is None or not isinstance(told, LiveEvent):
            return False
        return told.recorded.kind is EventKind.REMOVED

    async def _send(self, message: bytes) -> None:
        async with asyncio.timeout(self._context.stall_seconds):
            await self._response.write(message)

    async def _message(self, told: LiveMessage) -> bytes:
        kind = (self._operator, self._prefix)
        if (message := told.rendered.get(kind)) is None:
            message = told.rendered[kind] = await self._render(told)
        return message

    async def _render(self, told: LiveMessage) -> bytes:
        config, source, prefix = self._context.config, self._source, self._prefix
        if not isinstance(told, LiveEvent):
            document = progress_event(told.upload, config, source=source, prefix=prefix)
            return _message(EventKind.PROGRESS, document)
        event, place = told.recorded, None
        if self._operator and event.snapshot.get("remote_present"):
            # Without the database it is not said where exactly.
            with contextlib.suppress(DatabaseUnavailable):
                place = await self._context.stores.place(event.snapshot["place_id"])
        document = cloud_event(event, config, place=place, source=source, prefix=prefix)
        return b"id: %b\n%b" % (str(event.id).encode(), _message(event.kind, document))


def _message(kind: EventKind, document: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.value.encode(), orjson.dumps(document, option=JSON_OPTIONS))
