"""The server inside another aiohttp application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import structlog
from aiohttp import web

from tusd_py.app.core import Core, make_core, running
from tusd_py.app.http import make_http_context
from tusd_py.app.records import database_dsn
from tusd_py.app.worker import Work, make_work, run_work
from tusd_py.config import Config
from tusd_py.database.migrate import migrate
from tusd_py.http.application import build_application
from tusd_py.metrics import Metrics

log = structlog.get_logger(__name__)

WORKER_PAUSE_SECONDS: Final = 1.0


async def _keep_working(core: Core, work: Work, stop: asyncio.Event) -> None:
    """Run the worker inside a host that has no supervisor: one that dies is followed by another."""
    while not stop.is_set():
        try:
            await run_work(work, stop)
        except Exception:
            log.exception("worker_died", restart_in_seconds=WORKER_PAUSE_SECONDS)
            await asyncio.sleep(WORKER_PAUSE_SECONDS)
            work = make_work(core)


def create_app(config: Config, *, run_worker: bool = True) -> web.Application:
    """Build an aiohttp application that mounts as a sub-application of another one.

    `database.dsn` must be configured. With `run_worker` the transfers run inside this process; without
    it `tusd-py worker` runs them elsewhere on the node. Start the host application with the runner
    options of `tusd_py.runner_options(config)`, above all `auto_decompress=False`.
    """
    core = make_core(config, Metrics())
    app = build_application(make_http_context(core))
    # Before the notifications open, which wake this one; a successor finds its work by polling.
    work = make_work(core) if run_worker else None

    async def lifespan(_: web.Application) -> AsyncIterator[None]:
        if config.database.migrate_at_start:
            await migrate(database_dsn(config))
        async with running(core):
            stop = asyncio.Event()
            worker = asyncio.create_task(_keep_working(core, work, stop)) if work is not None else None
            yield
            stop.set()
            if worker is not None:
                await worker

    app.cleanup_ctx.append(lifespan)
    return app
