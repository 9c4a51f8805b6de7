"""The main functions of the child processes: serve HTTP, move uploads, report to operators.

Each `run_…` is the whole life of a process: set up, report ready, run until SIGTERM, shut down.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from tusd_py.app import make_core, make_http_context, make_store, make_work, run_work, running
from tusd_py.config.sections import FEW_CONNECTIONS, is_loopback
from tusd_py.database.pool import Database
from tusd_py.http.application import build_application
from tusd_py.http.connection import ConnectionRunner
from tusd_py.http.hosts import HostPolicy, public_names
from tusd_py.http.operations import build_operations
from tusd_py.http.server import HttpServer
from tusd_py.logging import configure_logging
from tusd_py.metrics import Metrics
from tusd_py.supervisor.node_report import collect_metrics, make_readiness
from tusd_py.supervisor.tuning import freeze_gc, raise_file_limit, tune_malloc

if TYPE_CHECKING:
    from tusd_py.config import Config


Ready = Callable[[], None]
WORKER_NICENESS: Final = 5


def run_http(config: Config, *, sockets: Sequence[socket.socket], ready: Ready) -> None:
    """Serve uploads and downloads on sockets that are already bound."""

    async def main(stop: asyncio.Event) -> None:
        core = make_core(config, Metrics())
        app = build_application(make_http_context(core))
        async with running(core):
            server = HttpServer(app, config)
            await server.start(sockets)
            freeze_gc()
            ready()
            await stop.wait()
            await server.drain()

    run_until_sigterm(config, main)


def run_worker(config: Config, *, ready: Ready, worker: str = "", dead_workers: Sequence[str] = ()) -> None:
    """Move uploads to the store and clean up. `worker` and `dead_workers`: see `make_work`."""
    with contextlib.suppress(OSError):
        # Requests come first: a transfer may take a little longer.
        os.nice(WORKER_NICENESS)

    async def main(stop: asyncio.Event) -> None:
        core = make_core(with_few_connections(config), Metrics())
        work = make_work(core, worker=worker, dead_workers=dead_workers)
        async with running(core):
            # Before anybody can create an upload: a new endpoint is told of what happens from now on.
            await work.deliveries.synchronise()
            ready()
            await run_work(work, stop)

    run_until_sigterm(config, main)


def run_operations(config: Config, *, listening: socket.socket, ready: Ready) -> None:
    """Serve health, readiness and metrics of all processes."""

    async def main(stop: asyncio.Event) -> None:
        few = with_few_connections(config).database
        database = Database(few.dsn.get_secret_value() if few.dsn else "", few)
        store = make_store(config)
        await database.open()
        await store.open()
        readiness = make_readiness(config, database, store)
        # There is no authentication here. On loopback, a web page could get in only by DNS rebinding.
        hosts = HostPolicy(public_names(config.server)) if is_loopback(config.operations.host) else None
        application = build_operations(readiness, lambda: collect_metrics(config, database, readiness), hosts)
        runner = ConnectionRunner(application, config, Metrics(), handle_signals=False, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        ready()
        await stop.wait()
        await runner.cleanup()
        await store.close()
        await database.close()

    run_until_sigterm(config, main)


def run_until_sigterm(config: Config, main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Set up this process and run `main` in an event loop; its event is set by SIGTERM."""
    configure_logging(config.logging)
    raise_file_limit()
    tune_malloc()

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await main(stop)

    with asyncio.Runner(loop_factory=loop_factory(config.server.event_loop)) as runner:
        runner.run(run())


def with_few_connections(config: Config) -> Config:
    """Return the configuration with a small pool, for a process that serves no clients."""
    few = min(config.database.pool_size, FEW_CONNECTIONS)
    return config.model_copy(update={"database": config.database.model_copy(update={"pool_size": few})})


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the factory of the configured event loop, None for asyncio's own."""
    if name == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if name == "uvloop":
            raise
        return None
    return uvloop.new_event_loop
