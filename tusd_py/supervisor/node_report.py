"""The report of the operations process on its node: whether it is ready, and the metrics of all processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from tusd_py import __version__
from tusd_py.database.outages import read_outage
from tusd_py.database.stats import ping, read_stats
from tusd_py.errors import DatabaseUnavailable, TransientStoreError
from tusd_py.http.operations import Check, Readiness
from tusd_py.metrics import readiness_gauges, stats_gauges
from tusd_py.staging.health import StagingHealth
from tusd_py.staging.identity import read_id
from tusd_py.staging.unclaimed import unclaimed_bytes
from tusd_py.supervisor.process_metrics import build_info, process_metrics

if TYPE_CHECKING:
    from tusd_py.config import Config
    from tusd_py.database.pool import Database
    from tusd_py.ports import ObjectStore

OUTAGE_LOOK_SECONDS: Final = 2.0
"""Shorter than the time-out of a check, so that a database that hangs is not blamed on the store."""


def make_readiness(config: Config, database: Database, store: ObjectStore) -> Readiness:
    """Return the checks that decide whether this node is ready."""
    health = StagingHealth(config.staging_directory, reserve=config.staging.reserve)

    async def check_staging() -> None:
        await asyncio.to_thread(lambda: health.check(_count_sync_failures()))

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


async def collect_metrics(config: Config, database: Database, readiness: Readiness) -> CollectorRegistry:
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


def _count_sync_failures() -> float:
    """Return how many syncs have failed in all processes together."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry.get_sample_value("tusd_py_sync_failures_total") or 0
