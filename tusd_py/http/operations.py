"""The operations listener: health, readiness and metrics, on a port of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tusd_py.errors import HostNotAllowed, TusdError
from tusd_py.http.connection import SERVER_NAME
from tusd_py.http.hosts import HostPolicy
from tusd_py.http.replies import json_response

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler
    from prometheus_client import CollectorRegistry

Check = Callable[[], Awaitable[None]]
"""Returns if all is well, raises a `TusdError` that says what is not."""
CHECK_SECONDS: Final = 5.0


def build_operations(
    checks: Mapping[str, Check],
    collect: Callable[[], Awaitable[CollectorRegistry]],
    hosts: HostPolicy | None,
) -> web.Application:
    """Build the application of the operations listener; `hosts` None answers to every host name."""

    async def health(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readiness(_: web.Request) -> web.Response:
        names = list(checks)
        results = await asyncio.gather(*(_run(checks[name]) for name in names))
        problems = {name: problem for name, problem in zip(names, results, strict=True) if problem}
        states = {name: problems.get(name, "ok") for name in names}
        return json_response({"ready": not problems, "checks": states}, status=503 if problems else 200)

    async def metrics(_: web.Request) -> web.Response:
        registry = await collect()
        body = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    @web.middleware
    async def check_host(request: web.Request, handler: Handler) -> web.StreamResponse:
        if hosts is not None and any(map(hosts.refuses, request.headers.getall("Host", []))):
            raise web.HTTPMisdirectedRequest(text=f"{HostNotAllowed()}\n")
        return await handler(request)

    async def name_server(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = SERVER_NAME

    app = web.Application(middlewares=[check_host])
    app.on_response_prepare.append(name_server)
    app.router.add_get("/healthz", health)
    app.router.add_get("/readyz", readiness)
    app.router.add_get("/metrics", metrics)
    return app


async def _run(check: Check) -> str | None:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check()
    except TimeoutError:
        return f"no answer within {CHECK_SECONDS:g}s"
    except TusdError as error:
        return str(error)
    return None
