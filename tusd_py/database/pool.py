"""Connections to PostgreSQL: the pool for statements and a dedicated one for LISTEN.

No connection is held while a socket is read, and none pins a session lock: what a statement needs
is in the statement. Driver errors leave this package as `DatabaseUnavailable` or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import asyncpg
import structlog

from tusd_py.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from tusd_py.config import DatabaseConfig

log = structlog.get_logger(__name__)

Row: TypeAlias = "asyncpg.Record"
PoolAcquireContext: TypeAlias = "asyncpg.pool.PoolAcquireContext[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

WITHOUT_SCHEMA: Final = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError)
UNAVAILABLE: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    # Raised by a connection that has lost its server and not noticed it yet.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.QueryCanceledError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
    # ALTER DATABASE … ALLOW_CONNECTIONS false, for as long as somebody mends it.
    asyncpg.ObjectNotInPrerequisiteStateError,
    # A password that is being changed, a right that somebody took away: cured there, not by a restart here.
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    *WITHOUT_SCHEMA,
)
"""Errors of a database that is away, starting, stopping, failing over or full, of one that ended a deadlock,
and of one that has not been migrated yet. A later attempt may succeed."""
LOST_CONNECTION: Final = (
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    ConnectionError,
)
PROBE: Final = "SELECT 1"
PROBE_SECONDS: Final = 30.0
"""A connection that only listens would not notice that the other side has vanished without a word."""
RECONNECT_SECONDS: Final = (0.05, 0.2, 0.5, 1.0, 2.0)


_ARGUMENT: Final = re.compile(r"(?<![:\w]):([a-z_]\w*)")


class Statement:
    """SQL whose arguments have names: `:upload_id` becomes `$1`, or `$2`, …, which is what PostgreSQL takes.

    Call it with all of them, and hand on what it returns: `database.fetch(*FIND(upload_id=…))`.
    """

    def __init__(self, sql: str) -> None:
        self.names = tuple(dict.fromkeys(_ARGUMENT.findall(sql)))
        self.text = _ARGUMENT.sub(lambda match: f"${self.names.index(match[1]) + 1}", sql)

    def __call__(self, **arguments: Any) -> tuple[Any, ...]:
        """Return the SQL and its arguments in their order.

        Raises:
            TypeError: an argument is missing, or unknown.
        """
        if arguments.keys() != set(self.names):
            raise TypeError(f"the statement takes {', '.join(self.names)}, not {', '.join(arguments)}")
        return self.text, *(arguments[name] for name in self.names)


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Turn driver errors that a later try may cure into `DatabaseUnavailable`."""
    try:
        yield
    except UNAVAILABLE as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> DatabaseUnavailable:
    if isinstance(error, WITHOUT_SCHEMA):
        return DatabaseUnavailable(cause=f'{error}; has "tusd-py migrate" been run?')
    return DatabaseUnavailable(cause=f"{type(error).__name__}: {error}")


async def _initialise(connection: Connection) -> None:
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def _keep_session(_: Connection) -> None:
    # asyncpg resets a connection on every release with four statements. Nothing here leaves session
    # state behind (no LISTEN, no session lock, no SET), so that round trip buys nothing.
    return


class PoolUse(NamedTuple):
    """Connections of one pool."""

    busy: int
    idle: int
    limit: int


class Database:
    """The pool of one process."""

    def __init__(self, dsn: str, config: DatabaseConfig) -> None:
        self._dsn = dsn
        self._config = config
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def open(self) -> None:
        """Prepare the pool. Connects lazily, so that a database that is away does not stop the start."""
        self._pool = await asyncpg.create_pool(
            self._dsn,
            min_size=0,
            max_size=self._config.pool_size,
            timeout=self._config.connect_timeout,
            command_timeout=self._config.command_timeout,
            statement_cache_size=self._config.statement_cache_size,
            init=_initialise,
            reset=_keep_session,
            server_settings={"application_name": "tusd_py"},
        )

    async def close(self) -> None:
        """Close every connection, by force if that takes longer than a statement may."""
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(self._config.command_timeout):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()
        self._pool = None

    @property
    def pool(self) -> asyncpg.Pool[asyncpg.Record]:
        """The open pool."""
        if self._pool is None:
            raise DatabaseUnavailable(cause="the pool is not open")
        return self._pool

    @property
    def use(self) -> PoolUse:
        """How many connections there are at this moment."""
        if self._pool is None:
            return PoolUse(0, 0, 0)
        idle = self._pool.get_idle_size()
        return PoolUse(self._pool.get_size() - idle, idle, self._pool.get_max_size())

    async def fetchrow(self, sql: str, *arguments: Any) -> Row | None:
        """Run a statement that returns at most one row."""
        try:
            async with self._acquire() as connection:
                return await connection.fetchrow(sql, *arguments)
        except UNAVAILABLE as error:
            raise await self._unavailable(error) from error

    async def read(self, sql: str, *arguments: Any) -> Row | None:
        """Run a SELECT for at most one row, once more if the pooled connection turns out dead."""
        try:
            return await self.fetchrow(sql, *arguments)
        except DatabaseUnavailable as error:
            if not isinstance(error.__cause__, LOST_CONNECTION):
                raise
            return await self.fetchrow(sql, *arguments)

    async def fetch(self, sql: str, *arguments: Any) -> list[Row]:
        """Run a statement and return its rows."""
        try:
            async with self._acquire() as connection:
                rows: list[Row] = await connection.fetch(sql, *arguments)
                return rows
        except UNAVAILABLE as error:
            raise await self._unavailable(error) from error

    async def execute(self, sql: str, *arguments: Any) -> int:
        """Run a statement and return how many rows it touched."""
        try:
            async with self._acquire() as connection:
                status: str = await connection.execute(sql, *arguments)
        except UNAVAILABLE as error:
            raise await self._unavailable(error) from error
        count = status.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Hold one connection in a transaction; rolled back on any error."""
        try:
            async with self._acquire() as connection, connection.transaction():
                yield connection
        except UNAVAILABLE as error:
            raise await self._unavailable(error) from error

    def _acquire(self) -> PoolAcquireContext:
        # A time-out costs as much as the rest of taking a connection; an idle one needs no wait.
        pool = self.pool
        return pool.acquire(timeout=None if pool.get_idle_size() else self._config.connect_timeout)

    async def _unavailable(self, error: Exception) -> DatabaseUnavailable:
        if isinstance(error, LOST_CONNECTION) and self._pool is not None:
            # The others have most likely died with this one: nobody else is to find that out.
            await self._pool.expire_connections()
        return _unavailable(error)


Listener = Callable[[str], None]


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    # Not `wait_for`: before Python 3.12 it forgets a cancellation that comes together with the event.
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


class Notifications:
    """LISTEN on a connection of its own, reconnecting for ever.

    A notification is a hint: everything that listens also looks by itself from time to time, since
    what was sent while the connection was down is lost. After a reconnect each callback runs once
    with an empty payload, so that it looks at once.
    """

    def __init__(
        self,
        dsn: str,
        config: DatabaseConfig,
        *,
        reconnect_seconds: Sequence[float] = RECONNECT_SECONDS,
        probe_seconds: float = PROBE_SECONDS,
        probe: str = PROBE,
    ) -> None:
        """`probe` is the statement that shows whether the other side is still there, sent every `probe_seconds`."""
        self._dsn = dsn
        self._config = config
        self._reconnect_seconds = reconnect_seconds
        self._probe_seconds = probe_seconds
        self._probe = probe
        self._listeners: list[tuple[str, Listener]] = []
        self._task: asyncio.Task[None] | None = None

    def subscribe(self, channel: str, callback: Listener) -> None:
        """Call `callback(payload)` for each notification. To be called before `open`."""
        self._listeners.append((channel, callback))

    async def open(self) -> None:
        """Start listening in the background."""
        if self._listeners:
            self._task = asyncio.create_task(self._run(), name="database-notifications")

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._listen_once()
                failures = 0
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                # Whatever it is, a password being changed or a database being restored: it will pass.
                log.warning("listen_connection_failed", error=str(error), attempt=failures + 1)
            await asyncio.sleep(self._reconnect_seconds[min(failures, len(self._reconnect_seconds) - 1)])
            failures += 1

    async def _listen_once(self) -> None:
        lost = asyncio.Event()
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
            self._dsn, timeout=self._config.connect_timeout, command_timeout=self._config.command_timeout,
            server_settings={"application_name": "tusd_py listen"},
        )  # fmt: skip
        try:
            connection.add_termination_listener(lambda _: lost.set())
            for channel, callback in self._listeners:
                await connection.add_listener(channel, self._deliver(callback))
            for _, callback in self._listeners:
                callback("")
            while not await _happens(lost, self._probe_seconds):
                await connection.execute(self._probe)
            log.warning("listen_connection_lost")
        finally:
            await self._discard(connection)

    async def _discard(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        with contextlib.suppress(*UNAVAILABLE):
            await connection.close(timeout=1)

    @staticmethod
    def _deliver(callback: Listener) -> Callable[..., Awaitable[None] | None]:
        def deliver(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            callback(str(payload))

        return deliver
