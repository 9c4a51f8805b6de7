"""Bring the schema up to date from `migrations/NNNN_verb_object.sql`, forward only.

Each file runs in one transaction, unless its first line is `-- no-transaction`: then each statement,
which ends with a semicolon at the end of a line, is one of its own, and the file must bear being run
again from its beginning. The database keeps every file's SHA-256: an edited file and a database newer
than the program are refused before anything is changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

import asyncpg
import structlog

from tusd_py.database.pool import translated_errors
from tusd_py.database.refusals import explained_refusals
from tusd_py.errors import MigrationError

log = structlog.get_logger(__name__)

OLDEST_SERVER: Final = (15,)

_NAME: Final = re.compile(r"([0-9]{4})_[a-z0-9_]+\.sql")
_NO_TRANSACTION: Final = "-- no-transaction"
_STATEMENT_END: Final = re.compile(r"(?<=;)[ \t]*\n")
_LOCK_KEY: Final = 0x74757364
"""Advisory lock of the migrators: "tusd" in ASCII."""
LOCK_POLL_SECONDS: Final = 0.1

HISTORY: Final = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    integer     PRIMARY KEY,
    name       text        NOT NULL,
    sha256     text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    duration_ms integer    NOT NULL
)
"""
APPLIED: Final = "SELECT version, name, sha256 FROM schema_migrations ORDER BY version"
HISTORY_EXISTS: Final = "SELECT to_regclass('schema_migrations') IS NOT NULL"
RECORD: Final = "INSERT INTO schema_migrations (version, name, sha256, duration_ms) VALUES ($1, $2, $3, $4)"
TRY_LOCK: Final = "SELECT pg_try_advisory_lock($1)"
UNLOCK: Final = "SELECT pg_advisory_unlock($1)"
# An old writer waits for us no longer than four seconds; then the migration fails and is tried again.
GUARD: Final = ("SET LOCAL lock_timeout = '4s'", "SET LOCAL statement_timeout = '60s'")


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """The digest that the database keeps."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations_directory() -> Path:
    """Return where the files are: inside the installed package, or at the top of a checkout."""
    packaged = Path(str(files("tusd_py"))) / "migrations"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "migrations"


def load_migrations(directory: Path | None = None) -> list[Migration]:
    """Read the files in order.

    Raises:
        MigrationError: a misnamed file, a gap or a number used twice.
    """
    found = []
    for path in sorted((directory or migrations_directory()).glob("*.sql")):
        match = _NAME.fullmatch(path.name)
        if not match:
            raise MigrationError(f"{path.name} is not named NNNN_verb_object.sql.")
        found.append(Migration(int(match[1]), path.stem, path.read_text(encoding="utf-8")))
    if [migration.version for migration in found] != list(range(1, len(found) + 1)) or not found:
        raise MigrationError("The migrations are not numbered 0001, 0002, … without gaps.")
    return found


def pending(known: Sequence[Migration], applied: Sequence[tuple[int, str, str]]) -> list[Migration]:
    """Return what is left to run. Pure.

    Raises:
        MigrationError: the database is newer than the program, or a file was edited after it ran.
    """
    by_version = {migration.version: migration for migration in known}
    for version, name, sha256 in applied:
        migration = by_version.get(version)
        if migration is None:
            raise MigrationError(f"The database has migration {name}, which this program does not know: it is newer.")
        if migration.sha256 != sha256:
            raise MigrationError(f"Migration {migration.name} was changed after it was applied.")
    done = {version for version, _, _ in applied}
    return [migration for migration in known if migration.version not in done]


async def migrate(
    dsn: str,
    directory: Path | None = None,
    *,
    timeout_seconds: float = 120,
    poll_seconds: float = LOCK_POLL_SECONDS,
) -> list[str]:
    """Apply what is missing and return the names applied. Safe to run from many processes at once.

    Needs a direct connection: an advisory lock means nothing through a transaction pooler.

    Raises:
        MigrationError: see `pending`; or a statement failed, and its file was rolled back.
        DatabaseUnavailable: the database cannot be reached.
        ConfigError: it refuses the login, or the user lacks a right.
    """
    known = load_migrations(directory)
    with translated_errors(), explained_refusals():
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn, timeout=10)
        try:
            if connection.get_server_version() < OLDEST_SERVER:
                raise MigrationError(f"PostgreSQL {OLDEST_SERVER[0]} or newer is needed.")
            await _lock(connection, timeout_seconds, poll_seconds)
            return await _apply(connection, known)
        finally:
            await connection.close(timeout=5)


async def check_schema(dsn: str) -> list[str]:
    """Return the names of the migrations that are missing, without changing anything."""
    with translated_errors():
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn, timeout=10)
        try:
            applied = await _applied(connection) if await connection.fetchval(HISTORY_EXISTS) else []
        finally:
            await connection.close(timeout=5)
    return [migration.name for migration in pending(load_migrations(), applied)]


async def _lock(connection: asyncpg.Connection[asyncpg.Record], timeout_seconds: float, poll_seconds: float) -> None:
    # Polled: a migrator that waits inside pg_advisory_lock() holds a snapshot, for which another one's
    # CREATE INDEX CONCURRENTLY waits in turn, and both are stuck.
    deadline = time.monotonic() + timeout_seconds
    while not await connection.fetchval(TRY_LOCK, _LOCK_KEY):
        if time.monotonic() > deadline:
            raise MigrationError("Another migration is still running.")
        await asyncio.sleep(poll_seconds)


async def _applied(connection: asyncpg.Connection[asyncpg.Record]) -> list[tuple[int, str, str]]:
    return [(row["version"], row["name"], row["sha256"]) for row in await connection.fetch(APPLIED)]


async def _apply(connection: asyncpg.Connection[asyncpg.Record], known: Sequence[Migration]) -> list[str]:
    try:
        await connection.execute(HISTORY)
        names = []
        for migration in pending(known, await _applied(connection)):
            await _apply_one(connection, migration)
            names.append(migration.name)
        return names
    finally:
        await connection.fetchval(UNLOCK, _LOCK_KEY)


async def _apply_one(connection: asyncpg.Connection[asyncpg.Record], migration: Migration) -> None:
    started = time.monotonic()
    whole = not migration.sql.startswith(_NO_TRANSACTION)
    try:
        if whole:
            async with connection.transaction():
                for statement in (*GUARD, migration.sql):
                    await connection.execute(statement)
                await connection.execute(RECORD, migration.version, migration.name, migration.sha256, _ms(started))
        else:
            for statement in _statements(migration.sql):
                await connection.execute(statement)
            await connection.execute(RECORD, migration.version, migration.name, migration.sha256, _ms(started))
    except asyncpg.InsufficientPrivilegeError:
        raise
    except asyncpg.PostgresError as error:
        outcome = "was rolled back" if whole else "may be half done; run it again"
        raise MigrationError(f"Migration {migration.name} failed and {outcome}: {error}") from error
    log.info("migration_applied", migration=migration.name, duration_ms=_ms(started))


def _statements(sql: str) -> list[str]:
    # The comments before a statement go with it; what follows the last one is no statement.
    return [piece for piece in _STATEMENT_END.split(sql) if any(_is_sql(line) for line in piece.splitlines())]


def _is_sql(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("--")


def _ms(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
