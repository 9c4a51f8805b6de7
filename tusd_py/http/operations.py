"""The operations listener: health, readiness and metrics, on a port of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tusd_py.errors import HostNotAllowed, TusdError
from tusd_py.http.connection import SERVER_NAME
from tusd_py.http.hosts import HostPolicy
from tusd_py.http.responses import json_response

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler
    from prometheus_client import CollectorRegistry

CHECK_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a node needs."""

    run: Callable[[], Awaitable[None]]
    """Returns if all is well, raises a `TusdError` that says what is not."""
    required: bool = True
    """Without it no upload can go on. Otherwise the node is degraded and stays ready: other nodes have the
    same trouble, and a load balancer that took all of them out would make an outage of it."""


class Readiness:
    """The results of the checks of a node."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = checks

    async def problems(self) -> dict[str, str | None]:
        """Run all checks at once; return what each complains about, None if nothing."""
        results = await asyncio.gather(*(_run(check) for check in self._checks.values()))
        return dict(zip(self._checks, results, strict=True))

    def is_ready(self, problems: Mapping[str, str | None]) -> bool:
        """Return whether uploads can go on in spite of these problems."""
        return not any(problem and self._checks[name].required for name, problem in problems.items())

    def degraded(self, problems: Mapping[str, str | None]) -> list[str]:
        """Return the checks that fail and do not keep uploads from going on."""
        return [name for name, problem in problems.items() if problem and not self._checks[name].required]


def build_operations(
    readiness: Readiness,
    collect: Callable[[], Awaitable[CollectorRegistry]],
    hosts: HostPolicy | None,
) -> web.Application:
    """Build the application of the operations listener; `hosts` None answers to every host name."""

    async def health(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        problems = await readiness.problems()
        is_ready = readiness.is_ready(problems)
        states = {name: problem or "ok" for name, problem in problems.items()}
        answer = {"ready": is_ready, "degraded": readiness.degraded(problems), "checks": states}
        return json_response(answer, status=200 if is_ready else 503)

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
    app.router.add_get("/readyz", ready)
    app.router.add_get("/metrics", metrics)
    return app


async def _run(check: Check) -> str | None:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check.run()
    except TimeoutError:
        return f"no answer within {CHECK_SECONDS:g}s"
    except TusdError as error:
        return str(error)
    return None
