"""The record of uploads in the database, wired: what every process and some commands need."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tusd_py.config import Config
from tusd_py.database.notifier import Notifier
from tusd_py.database.pool import Database, Notifications
from tusd_py.database.transfers import TransferRequests
from tusd_py.database.uploads import PostgresUploads
from tusd_py.errors import ConfigError
from tusd_py.ports import StagingIdentity
from tusd_py.protocol.events import EventKind, HookKind, kinds_matching

if TYPE_CHECKING:
    from tusd_py.config.sections import HooksConfig

FINISH_MARGIN_SECONDS: Final = 5.0
"""For the statements before and after the question."""


@dataclass(slots=True)
class Records:
    """The record of uploads, and how its changes are told."""

    config: Config
    database: Database
    notifications: Notifications
    notifier: Notifier
    uploads: PostgresUploads
    transfers: TransferRequests
    identity: StagingIdentity
    """Which staging directory is ours, from `identify` on."""


def database_dsn(config: Config) -> str:
    """Return the DSN of the configured database.

    Raises:
        ConfigError: none is configured, and no embedded server was started.
    """
    if config.database.dsn is None:
        raise ConfigError(["database.dsn: is needed here; only the tusd-py command starts a server of its own"])
    return config.database.dsn.get_secret_value()


def make_records(config: Config, *, eager_above: int | None = None) -> Records:
    """Wire the record alone, for a command. Opens nothing; `eager_above` as `PostgresUploads` takes it.

    Raises:
        ConfigError: see `database_dsn`.
    """
    dsn = database_dsn(config)
    listen = config.database.listen_dsn
    database = Database(dsn, config.database)
    notifier = Notifier(
        database,
        progress_seconds=config.events.progress_interval,
        tells_progress=any(EventKind.PROGRESS in kinds_matching(each.events) for each in config.webhooks),
    )
    return Records(
        config=config,
        database=database,
        notifications=Notifications(listen.get_secret_value() if listen else dsn, config.database),
        notifier=notifier,
        uploads=PostgresUploads(
            database,
            notifier,
            max_size=config.limits.max_size or None,
            eager_above=eager_above,
            finish_after_seconds=finish_after_seconds(config.hooks),
        ),
        transfers=TransferRequests(database, notifier),
        identity=StagingIdentity(),
    )


def finish_after_seconds(hooks: HooksConfig) -> float | None:
    """Return how long after an upload's last byte a worker asks `pre-finish`; None where nobody does.

    Not as long as the request that brought the byte may have an answer.
    """
    asked = hooks.enabled and HookKind.PRE_FINISH in hooks.events
    return hooks.timeout + FINISH_MARGIN_SECONDS if asked else None


@contextlib.asynccontextmanager
async def reachable(records: Records) -> AsyncIterator[None]:
    """Open the record, last of all the notifications, and close it in the opposite order."""
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(records.database.close)
        await records.database.open()
        stack.push_async_callback(records.notifier.close)
        stack.push_async_callback(records.notifications.close)
        await records.notifications.open()
        yield
