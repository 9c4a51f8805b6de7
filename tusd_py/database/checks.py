"""Shows that the database is the right one: its version, its schema, and what we may do in it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Final

import asyncpg

from tusd_py.database.migrate import APPLIED, HISTORY_EXISTS, OLDEST_SERVER, Migration, load_migrations, pending
from tusd_py.database.pool import UNAVAILABLE
from tusd_py.database.rights import RIGHTS, missing_grants, tables_of
from tusd_py.errors import MigrationError
from tusd_py.ports import Checkable, CheckResult, Outcome

if TYPE_CHECKING:
    from tusd_py.config import DatabaseConfig

MAY_CREATE: Final = "SELECT has_schema_privilege(current_schema(), 'CREATE')"
WHERE: Final = "SELECT current_user || ' in ' || current_database() || '.' || coalesce(current_schema(), '-')"

_REFUSED: Final = (*UNAVAILABLE, asyncpg.PostgresError, ValueError)


class DatabaseCheck(Checkable):
    """A database, looked at by connections that are closed again."""

    def __init__(self, dsn: str, config: DatabaseConfig) -> None:
        self._dsn = dsn
        self._config = config

    async def check(self) -> AsyncGenerator[CheckResult]:
        try:
            connection = await self._connect(self._dsn)
        except _REFUSED as error:
            yield CheckResult("database: connect", Outcome.FAILED, _reason(error))
            return
        try:
            async for result in self._look_around(connection):
                yield result
        except _REFUSED as error:
            yield CheckResult("database", Outcome.FAILED, _reason(error))
        finally:
            await connection.close(timeout=1)
        if self._config.listen_dsn is not None:
            yield await self._listen(self._config.listen_dsn.get_secret_value())

    async def _connect(self, dsn: str) -> asyncpg.Connection[asyncpg.Record]:
        return await asyncpg.connect(
            dsn,
            timeout=self._config.connect_timeout,
            command_timeout=self._config.command_timeout,
            statement_cache_size=self._config.statement_cache_size,
            server_settings={"application_name": "tusd_py check"},
        )

    async def _look_around(self, connection: asyncpg.Connection[asyncpg.Record]) -> AsyncGenerator[CheckResult]:
        version = connection.get_server_version()
        yield CheckResult("database: connect", detail=str(await connection.fetchval(WHERE)))
        numbers = f"PostgreSQL {version.major}.{version.minor}"
        if version < OLDEST_SERVER:
            yield CheckResult("database: version", Outcome.FAILED, f"{numbers}; {OLDEST_SERVER[0]} or newer is needed")
            return
        yield CheckResult("database: version", detail=numbers)
        known = load_migrations()
        try:
            missing = pending(known, await _applied(connection))
        except MigrationError as error:
            yield CheckResult("database: migrations", Outcome.FAILED, str(error))
            return
        yield self._migrations(missing)
        yield await _rights(connection, known, missing)

    def _migrations(self, missing: Sequence[Migration]) -> CheckResult:
        names = ", ".join(migration.name for migration in missing)
        if not missing:
            return CheckResult("database: migrations", detail="up to date")
        if self._config.migrate_at_start:
            return CheckResult("database: migrations", detail=f"applied at the next start: {names}")
        return CheckResult("database: migrations", Outcome.FAILED, f'run "tusd-py migrate"; missing: {names}')

    async def _listen(self, dsn: str) -> CheckResult:
        try:
            connection = await self._connect(dsn)
            await connection.execute("LISTEN tusd_py_check")
            await connection.close(timeout=1)
        except _REFUSED as error:
            return CheckResult("database: listen_dsn", Outcome.FAILED, _reason(error))
        return CheckResult("database: listen_dsn")


async def _applied(connection: asyncpg.Connection[asyncpg.Record]) -> list[tuple[int, str, str]]:
    if not await connection.fetchval(HISTORY_EXISTS):
        return []
    return [(row["version"], row["name"], row["sha256"]) for row in await connection.fetch(APPLIED)]


async def _rights(
    connection: asyncpg.Connection[asyncpg.Record], known: Sequence[Migration], missing: Sequence[Migration]
) -> CheckResult:
    if missing and not await connection.fetchval(MAY_CREATE):
        return CheckResult("database: rights", Outcome.FAILED, "GRANT CREATE on the schema, or migrate as its owner")
    tables = tables_of(migration for migration in known if migration not in missing)
    if lacking := await missing_grants(connection, tables):
        return CheckResult("database: rights", Outcome.FAILED, "; ".join(lacking))
    return CheckResult(
        "database: rights", detail=f"{RIGHTS} on {len(tables)} tables" if tables else "CREATE on the schema"
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
