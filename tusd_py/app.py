"""The composition root: configuration in, wired components out. Only this module names adapters."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

import structlog
from aiohttp import web

from tusd_py.auth.anonymous import AnonymousAuthenticator
from tusd_py.config import Config
from tusd_py.database.jobs import PostgresJobs
from tusd_py.database.migrate import migrate
from tusd_py.database.pool import Database, Notifications
from tusd_py.database.reconcile import PostgresReconcile
from tusd_py.database.sweep import PostgresSweep
from tusd_py.database.uploads import PostgresUploads
from tusd_py.database.wakeups import JOBS_CHANNEL, NOTIFY, RELEASE_CHANNEL, UPLOADS_CHANNEL, Wakeups
from tusd_py.errors import ConfigError, DatabaseUnavailable, StorageError
from tusd_py.http.application import build_application
from tusd_py.http.cors import CorsPolicy
from tusd_py.http.forwarded import TrustedProxies
from tusd_py.http.keys import Web
from tusd_py.locks import LocalLocks
from tusd_py.metrics import Metrics
from tusd_py.policy import Rules
from tusd_py.ports import AheadStore
from tusd_py.protocol.features import Features
from tusd_py.protocol.upload import Trigger, UploadId
from tusd_py.reconcile.compare import Scope, key_pattern
from tusd_py.reconcile.run import ReconcilableStore, Reconciler
from tusd_py.services.access import Access, UploadSettings
from tusd_py.services.buffers import AppendSettings
from tusd_py.services.catalog import Catalog
from tusd_py.services.uploads import UploadService
from tusd_py.services.watch import Watch
from tusd_py.staging import DirectoryScan, StagingArea
from tusd_py.stores.bandwidth import Bandwidth
from tusd_py.worker.runner import Runner, WorkerSettings
from tusd_py.worker.sweep import Sweep, SweepSettings
from tusd_py.worker.transfer import Transfers

if TYPE_CHECKING:
    from tusd_py.ports import Authenticator, ObjectStore

log = structlog.get_logger(__name__)

WORKER_PAUSE_SECONDS: Final = 1.0


@dataclass(slots=True)
class Records:
    """The record of uploads, and how its changes are told."""

    config: Config
    database: Database
    notifications: Notifications
    wakeups: Wakeups
    uploads: PostgresUploads


@dataclass(slots=True)
class Core(Records):
    """What the HTTP side and the worker share within one process."""

    staging: StagingArea
    store: ObjectStore
    metrics: Metrics


def derive_features(config: Config) -> Features:
    """Answer what the server offers under a configuration."""
    return Features.derive(
        disabled=config.tus.disable,
        checksum_trailer=config.tus.checksum_trailer,
        expires=config.tus.expire_after > 0,
        max_size=config.limits.max_size,
        max_metadata=config.limits.max_metadata,
        max_parts=config.limits.max_parts,
        base_path=config.server.base_path,
        downloads=config.downloads.enabled,
        rufh=config.rufh.enabled,
        max_append_size=config.rufh.max_append_size,
        expires_after_seconds=config.tus.expire_after,
    )


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


def make_authenticator(config: Config) -> Authenticator:
    """Build what tells who is asking."""
    if config.auth.mode == "none":
        return AnonymousAuthenticator()
    from tusd_py.auth.bearer import BearerAuthenticator

    return BearerAuthenticator(config.auth.jwt)


def database_dsn(config: Config) -> str:
    """Answer the DSN of the configured database.

    Raises:
        ConfigError: none is configured, and no embedded server was started.
    """
    if config.database.dsn is None:
        raise ConfigError(["database.dsn: is needed here; only the tusd-py command starts a server of its own"])
    return config.database.dsn.get_secret_value()


def make_records(config: Config, *, ahead_above: int | None = None) -> Records:
    """Wire the record alone, for a command. Opens nothing; `ahead_above` as `PostgresUploads` takes it.

    Raises:
        ConfigError: see `database_dsn`.
    """
    dsn = database_dsn(config)
    listen = config.database.listen_dsn
    database = Database(dsn, config.database)
    wakeups = Wakeups(database)
    return Records(
        config=config,
        database=database,
        notifications=Notifications(listen.get_secret_value() if listen else dsn, config.database),
        wakeups=wakeups,
        uploads=PostgresUploads(
            database,
            wakeups,
            max_size=config.limits.max_size or None,
            ahead_above=ahead_above,
        ),
    )


def make_core(config: Config, metrics: Metrics) -> Core:
    """Wire what both sides need. Opens nothing.

    Raises:
        ConfigError: see `database_dsn`.
    """
    store = make_store(config)
    eager = config.transfer.eager and isinstance(store, AheadStore)
    records = make_records(config, ahead_above=config.transfer.eager_above if eager else None)
    return Core(
        config=config,
        database=records.database,
        notifications=records.notifications,
        wakeups=records.wakeups,
        uploads=records.uploads,
        staging=StagingArea(config.staging_directory, config.staging),
        store=store,
        metrics=metrics,
    )


@contextlib.asynccontextmanager
async def reachable(records: Records) -> AsyncIterator[None]:
    """Open the record, last of all the notifications, and close it in the opposite order."""
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(records.database.close)
        await records.database.open()
        stack.push_async_callback(records.wakeups.close)
        stack.push_async_callback(records.notifications.close)
        await records.notifications.open()
        yield


@contextlib.asynccontextmanager
async def running(core: Core) -> AsyncIterator[None]:
    """Open everything, last of all the notifications, and close it in the opposite order."""
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(core.staging.close)
        await asyncio.to_thread(core.staging.prepare)
        stack.push_async_callback(core.database.close)
        await core.database.open()
        stack.push_async_callback(core.wakeups.close)
        stack.push_async_callback(core.store.close)
        await core.store.open()
        stack.push_async_callback(core.notifications.close)
        await core.notifications.open()
        yield


def make_web(core: Core) -> Web:
    """Wire the HTTP side."""
    config = core.config

    async def ask_others(upload_id: str) -> None:
        with contextlib.suppress(DatabaseUnavailable):
            await core.database.execute(NOTIFY, RELEASE_CHANNEL, f"{os.getpid()}:{upload_id}")

    locks = LocalLocks(timeout_seconds=config.staging.lock_timeout, ask_others=ask_others)
    core.notifications.subscribe(RELEASE_CHANNEL, lambda payload: _asked(locks, payload))
    features = derive_features(config)
    settings = upload_settings(config, features)
    access = Access(core.uploads, settings)
    watch = make_watch(core)
    return Web(
        config=config,
        features=features,
        uploads=UploadService(core.uploads, core.staging, locks, access, settings),
        catalog=Catalog(core.uploads, access, watch),
        watch=watch,
        store=core.store,
        authenticator=make_authenticator(config),
        cors=CorsPolicy(config.cors),
        trusted=TrustedProxies(config.server.trusted_proxies),
        metrics=core.metrics,
    )


def make_watch(records: Records) -> Watch:
    """Wire who waits for uploads with who tells of their changes. To be said before anything is opened."""
    watch = Watch()
    records.notifications.subscribe(UPLOADS_CHANNEL, watch.changed)
    return watch


def make_catalog(records: Records) -> Catalog:
    """Wire what people ask of uploads, for a command. To be said before anything is opened."""
    settings = upload_settings(records.config, derive_features(records.config))
    return Catalog(records.uploads, Access(records.uploads, settings), make_watch(records))


def make_sweep_records(records: Records) -> PostgresSweep:
    """Wire what cleanup asks of the record."""
    config = records.config
    return PostgresSweep(
        records.database,
        records.wakeups,
        node=config.node,
        uncommitted_after_seconds=config.cleanup.uncommitted_after,
    )


def _asked(locks: LocalLocks, payload: str) -> None:
    sender, _, upload_id = payload.partition(":")
    if upload_id and sender != str(os.getpid()):
        locks.asked(UploadId(UUID(upload_id)))


def upload_settings(config: Config, features: Features) -> UploadSettings:
    """Answer the part of the configuration that the use-cases need."""
    return UploadSettings(
        node=config.node,
        key_template=config.storage.key_template,
        append=AppendSettings(
            max_size=features.max_size,
            block_size=config.staging.block_size,
            buffer_budget=config.staging.buffer_budget,
            checkpoint_bytes=config.staging.checkpoint_bytes,
            checkpoint_seconds=config.staging.checkpoint_seconds,
            lock_timeout_seconds=config.staging.lock_timeout,
            expires_after_seconds=config.tus.expire_after if features.offers("expiration") else 0,
            min_rate=config.limits.min_rate,
        ),
        allow_unfinished_parts=features.offers("concatenation-unfinished"),
        max_empty_patches=config.limits.max_empty_patches,
        gone_status=config.tus.gone_status,
        rules=Rules(
            create_scope=config.auth.jwt.create_scope,
            read_any_scope=config.auth.jwt.read_any_scope,
            admin_scope=config.auth.jwt.admin_scope,
            downloads={name: profile.perm_download for name, profile in config.profiles.items()},
        ),
        triggers={
            name: Trigger(profile.trigger or config.transfer.trigger) for name, profile in config.profiles.items()
        },
    )


@dataclass(slots=True)
class Work:
    """The worker's side, wired."""

    runner: Runner
    sweep: Sweep


def make_work(core: Core) -> Work:
    """Wire the worker."""
    config = core.config
    transfer = config.transfer
    worker = f"{socket.gethostname()}:{os.getpid()}"
    jobs = PostgresJobs(
        core.database, node=config.node, worker=worker, lease_seconds=transfer.lease, wakeups=core.wakeups
    )
    sweep = make_sweep_records(core)
    transfers = Transfers(
        jobs=jobs,
        uploads=core.uploads,
        sweep=sweep,
        staging=core.staging,
        store=core.store,
        metrics=core.metrics,
        digests=config.integrity.digests,
        purge_at_once=transfer.delete_local and transfer.delete_local_after == 0,
        object_parameters={name: profile.object_parameters.named() for name, profile in config.profiles.items()},
    )
    settings = WorkerSettings(
        concurrency=transfer.concurrency,
        lease_seconds=transfer.lease,
        poll_seconds=transfer.poll_interval,
        max_retries=transfer.max_retries,
        retry_delay_seconds=transfer.retry_delay,
        retry_backoff=transfer.retry_backoff,
        retry_max_delay_seconds=transfer.retry_max_delay,
        shutdown_seconds=config.server.shutdown_timeout,
    )
    runner = Runner(jobs, transfers, settings, core.metrics)
    core.notifications.subscribe(JOBS_CHANNEL, lambda node: runner.wake() if node in {"", config.node} else None)
    sweep_settings = SweepSettings(
        interval_seconds=config.cleanup.interval,
        delete_local=transfer.delete_local,
        delete_local_after_seconds=transfer.delete_local_after,
        requeue_failed_after_seconds=transfer.requeue_failed_after,
        tombstones_after_seconds=config.cleanup.tombstones_after,
        orphans_after_seconds=config.cleanup.orphans_after,
        events_after_seconds=config.cleanup.events_after,
    )
    return Work(runner, Sweep(sweep, core.staging, sweep_settings, core.metrics))


def make_reconciler(core: Core) -> Reconciler:
    """Wire one comparison of the record, the staging disk and the store.

    Raises:
        StorageError: a directory that is compared is not there, or the store tells nothing of what it holds.
    """
    config, store = core.config, core.store
    directories = [config.staging_directory]
    if config.storage.backend == "filesystem":
        directories.append(config.store_directory)
    for directory in directories:
        # Asked before anything is opened, which would make them: a disk that is not mounted is no empty one.
        if not directory.is_dir():
            raise StorageError("A directory is missing that is to be compared.", path=str(directory))
    if not isinstance(store, ReconcilableStore):
        raise StorageError("This store does not tell what it holds.", store=store.name)
    scope = Scope(
        node=config.node,
        margin_seconds=config.cleanup.reconcile_margin,
        key_pattern=key_pattern(config.storage.key_template),
        keeps_ids=store.keeps_ids,
        delete_local=config.transfer.delete_local,
        delete_local_after_seconds=config.transfer.delete_local_after,
    )
    records = PostgresReconcile(core.database, core.wakeups, node=config.node)
    return Reconciler(records, DirectoryScan(config.staging_directory), store, scope)


async def run_work(work: Work, stop: asyncio.Event) -> None:
    """Run the worker until `stop` is set."""
    sweeping = asyncio.create_task(work.sweep.run(), name="worker-sweep")
    running = asyncio.create_task(work.runner.run(), name="worker-runner")
    stopping = asyncio.create_task(stop.wait(), name="worker-stop")
    try:
        done, _ = await asyncio.wait({sweeping, running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        work.runner.stop()
        await running
        for task in done:
            # A helper that died takes the worker with it, loudly.
            task.result()
    finally:
        for task in (sweeping, stopping, running):
            task.cancel()
        await asyncio.gather(sweeping, stopping, running, return_exceptions=True)


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
    app = build_application(make_web(core))
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
