"""What each child process does: serve HTTP, move uploads, report to operators.

Each `run_…` is the whole life of a process: set up, report ready, run until SIGTERM, shut down.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import shutil
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from tusd_py import __version__
from tusd_py.app import make_core, make_http_context, make_store, make_work, run_work, running
from tusd_py.config.sections import FEW_CONNECTIONS, is_loopback
from tusd_py.database.outages import read_outage
from tusd_py.database.pool import Database
from tusd_py.database.stats import ping, read_stats
from tusd_py.errors import DatabaseUnavailable, TransientStoreError
from tusd_py.http.application import build_application
from tusd_py.http.connection import ConnectionRunner
from tusd_py.http.hosts import HostPolicy, public_names
from tusd_py.http.operations import Check, Readiness, build_operations
from tusd_py.http.server import HttpServer
from tusd_py.logging import configure_logging
from tusd_py.metrics import Metrics, readiness_gauges, stats_gauges
from tusd_py.staging.health import StagingHealth
from tusd_py.staging.identity import read_id
from tusd_py.staging.unclaimed import unclaimed_bytes
from tusd_py.supervisor.process_metrics import build_info, process_metrics

if TYPE_CHECKING:
    from tusd_py.config import Config
    from tusd_py.ports import ObjectStore

log = structlog.get_logger(__name__)

Ready = Callable[[], None]
M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
MALLOC_MMAP_BYTES: Final = 64 * 2**20
MALLOC_TRIM_BYTES: Final = 32 * 2**20
WORKER_NICENESS: Final = 5
OUTAGE_LOOK_SECONDS: Final = 2.0
"""Shorter than the time-out of a check, so that a database that hangs is not blamed on the store."""
COLLECTOR_THRESHOLDS: Final = (5_000, 50, 100)


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

    _run(config, main)


def run_worker(config: Config, *, ready: Ready, worker: str = "", dead_workers: Sequence[str] = ()) -> None:
    """Move uploads to the store and clean up. `worker` and `dead_workers`: see `make_work`."""
    with contextlib.suppress(OSError):
        # Requests come first: a transfer may take a little longer.
        os.nice(WORKER_NICENESS)

    async def main(stop: asyncio.Event) -> None:
        core = make_core(with_few_connections(config), Metrics())
        work = make_work(core, worker=worker, dead_workers=dead_workers)
        async with running(core):
            ready()
            await run_work(work, stop)

    _run(config, main)


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
        application = build_operations(readiness, lambda: _collect(config, database, readiness), hosts)
        runner = ConnectionRunner(application, config, Metrics(), handle_signals=False, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        ready()
        await stop.wait()
        await runner.cleanup()
        await store.close()
        await database.close()

    _run(config, main)


def make_readiness(config: Config, database: Database, store: ObjectStore) -> Readiness:
    """Return the checks that decide whether this node is ready."""
    health = StagingHealth(config.staging_directory, reserve=config.staging.reserve)

    async def check_staging() -> None:
        await asyncio.to_thread(lambda: health.check(_sync_failures()))

    async def check_store() -> None:
        await store.probe()
        outage = None
        with contextlib.suppress(DatabaseUnavailable, TimeoutError):  # which its own check reports
            async with asyncio.timeout(OUTAGE_LOOK_SECONDS):
                outage = await read_outage(database, await asyncio.to_thread(read_id, config.staging_directory))
        if outage is not None:
            # The worker tries more than this probe does: whether the store accepts writes.
            raise TransientStoreError(outage.sentence)

    return Readiness(
        {
            "database": Check(lambda: ping(database)),
            "staging": Check(check_staging),
            "store": Check(check_store, required=False),
        }
    )


class Gauges(Collector):
    """Metrics that are read at each scrape rather than counted: from the database and the disk."""

    def __init__(self, gauges: Sequence[Metric]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges


async def _collect(config: Config, database: Database, readiness: Readiness) -> CollectorRegistry:
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    problems = await readiness.problems()
    disk = shutil.disk_usage(config.staging_directory)
    gauges: list[Metric] = [
        build_info(__version__),
        *await asyncio.to_thread(process_metrics, os.getppid()),
        GaugeMetricFamily("tusd_py_staging_free_bytes", "Free space of the staging disk.", disk.free),
        GaugeMetricFamily("tusd_py_staging_size_bytes", "Size of the staging disk.", disk.total),
        GaugeMetricFamily(
            "tusd_py_staging_reserve_bytes", "Space that uploads leave free (staging.reserve).", config.staging.reserve
        ),
        GaugeMetricFamily(
            "tusd_py_unclaimed_bytes",
            "Bytes of staged files that no upload knows, and that were set aside.",
            await asyncio.to_thread(unclaimed_bytes, config.staging_directory),
        ),
        *readiness_gauges(problems, ready=readiness.is_ready(problems)),
    ]
    # The counters of the processes are served even while the database is away.
    if problems["database"] is None:
        with contextlib.suppress(DatabaseUnavailable):
            staging_id = await asyncio.to_thread(read_id, config.staging_directory)
            gauges += stats_gauges(await read_stats(database, staging_id))
    registry.register(Gauges(gauges))
    return registry


def _sync_failures() -> float:
    """Return how many syncs have failed in all processes together."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry.get_sample_value("tusd_py_sync_failures_total") or 0


def _run(config: Config, main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    configure_logging(config.logging)
    raise_file_limit()
    tune_malloc()

    async def run_until_sigterm() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        await main(stop)

    with asyncio.Runner(loop_factory=loop_factory(config.server.event_loop)) as runner:
        runner.run(run_until_sigterm())


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


def freeze_gc() -> None:
    """Exclude what exists now from garbage collection, and collect less often.

    Modules, classes and routes live as long as the process: walking them again and again frees nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def raise_file_limit() -> None:
    """Raise the limit of open files to the hard limit: connections and staged files take one each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tune_malloc() -> None:
    """Keep malloc from returning every read buffer to the kernel and requesting it again.

    Buffers of 256 KiB are otherwise mapped, faulted in and unmapped once per read of a socket, which
    costs about as much as receiving them. glibc only; elsewhere this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6", use_errno=True)
        libc.mallopt(M_MMAP_THRESHOLD, MALLOC_MMAP_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, MALLOC_TRIM_BYTES)
