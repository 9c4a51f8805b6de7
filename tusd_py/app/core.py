"""The components that every process shares: the record of uploads, the staging area, the stores."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tusd_py.app.identity import identify
from tusd_py.app.records import Records, make_records
from tusd_py.config import Config
from tusd_py.config.place import place_of
from tusd_py.configured_stores import Stores
from tusd_py.database.places import PlaceRecords
from tusd_py.database.pool import Database
from tusd_py.metrics import Metrics
from tusd_py.staging import StagingArea
from tusd_py.stores.rate_limit import Bandwidth

if TYPE_CHECKING:
    from tusd_py.config.sections import FormerStoreConfig
    from tusd_py.ports import ObjectStore
    from tusd_py.uploads.hooks import BlockingHooks

POOL_LOOK_SECONDS: Final = 1.0


@dataclass(slots=True)
class Core(Records):
    """What the HTTP side and the worker share within one process."""

    staging: StagingArea
    stores: Stores
    metrics: Metrics
    hooks: BlockingHooks | None = None
    """Who is asked before something happens to an upload; see `add_hooks`."""


def make_store(config: Config) -> ObjectStore:
    """Build the store; importing an SDK is left to the processes that need it."""
    limit = config.transfer.bandwidth_limit
    bandwidth = Bandwidth(limit) if limit else None
    if config.storage.backend == "s3":
        from tusd_py.stores.s3 import S3Store

        return S3Store(config.storage.s3, bandwidth=bandwidth)
    from tusd_py.stores.filesystem import FilesystemStore

    # A linked file is as durable as its staged one; where that is not synced, the store does it.
    return FilesystemStore(
        config.store_directory, sync_linked=config.staging.durability == "page-cache", bandwidth=bandwidth
    )


def make_former_store(config: Config, former: FormerStoreConfig) -> ObjectStore:
    """Build the store of what was stored before the configuration changed."""
    if former.backend == "s3":
        from tusd_py.stores.s3 import S3Store

        return S3Store(former.s3)
    from tusd_py.stores.filesystem import FilesystemStore

    # Nothing new comes into it, and a directory that is missing is one that is not mounted.
    return FilesystemStore(config.directory_of(former), make_root=False)


def make_stores(config: Config, database: Database) -> Stores:
    """Build the current store and those of before, with the record of their places. Opens nothing."""
    current = make_store(config)
    former = {
        place_of(config, each): current if each.moved else make_former_store(config, each)
        for each in config.storage.former
    }
    return Stores(PlaceRecords(database), place_of(config, config.storage), current, former)


def make_core(config: Config, metrics: Metrics) -> Core:
    """Wire what both sides need. Opens nothing.

    Raises:
        ConfigError: see `database_dsn`.
    """
    eager = config.transfer.eager and config.storage.backend == "s3"
    records = make_records(config, eager_above=config.transfer.eager_above if eager else None)
    return Core(
        config=config,
        database=records.database,
        notifications=records.notifications,
        notifier=records.notifier,
        uploads=records.uploads,
        transfers=records.transfers,
        identity=records.identity,
        staging=StagingArea(config.staging_directory, config.staging, metrics, records.identity),
        stores=make_stores(config, records.database),
        metrics=metrics,
    )


def add_hooks(core: Core) -> None:
    """Wire whoever is to be asked, if anybody; closed with the core. To be said before anything is opened.

    Raises:
        ConfigError: the Python object cannot be loaded.
    """
    config = core.config.hooks
    if core.hooks is None and config.enabled:
        from tusd_py.hooks import make_hooks
        from tusd_py.uploads.hooks import BlockingHooks

        hooks = make_hooks(config)
        core.hooks = None if hooks is None else BlockingHooks(hooks, config, core.metrics)


@contextlib.asynccontextmanager
async def running(core: Core) -> AsyncIterator[None]:
    """Open everything, last of all the notifications, and close it in the opposite order."""
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(core.staging.close)
        stack.push_async_callback(core.database.close)
        if core.hooks is not None:
            stack.push_async_callback(core.hooks.close)
        await core.database.open()
        # Before anything is made in a directory that may be the wrong one.
        await identify(core)
        await asyncio.to_thread(core.staging.prepare)
        stack.push_async_callback(core.notifier.close)
        stack.push_async_callback(core.stores.close)
        await core.stores.open()
        stack.push_async_callback(core.notifications.close)
        await core.notifications.open()
        watching = asyncio.create_task(_watch_pool(core), name="changes-pool")
        stack.callback(watching.cancel)
        yield


async def identify_staging(config: Config) -> None:
    """Check that staging directory and database belong together, before anything is started; see `identify`."""
    records = make_records(config)
    await records.database.open()
    try:
        await identify(records)
    finally:
        await records.database.close()


async def _watch_pool(core: Core) -> None:
    # Looked at now and then: gauges that processes share are files, and cannot ask when they are read.
    while True:
        core.metrics.show_pool(*core.database.use)
        await asyncio.sleep(POOL_LOOK_SECONDS)
