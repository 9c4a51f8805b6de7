"""The privileges that this program needs on its tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import asyncpg

from tusd_py.database.migrate import Migration, load_migrations
from tusd_py.database.pool import Connection, translated_errors
from tusd_py.database.refusals import explained_refusals
from tusd_py.errors import ConfigError

RIGHTS: Final = "SELECT, INSERT, UPDATE, DELETE"
MISSING_RIGHTS: Final = """
SELECT 'GRANT ' || string_agg(one, ', ') || ' ON ' || name || ' TO ' || quote_ident(current_user) AS missing
  FROM unnest($1::text[]) AS name, unnest(string_to_array($2, ', ')) AS one
 WHERE to_regclass(name) IS NOT NULL AND NOT has_table_privilege(name, one)
 GROUP BY name ORDER BY name
"""

_TABLE: Final = re.compile(r"^CREATE TABLE (?:IF NOT EXISTS )?(\w+)", re.MULTILINE)


def tables_of(migrations: Iterable[Migration]) -> list[str]:
    """Return the tables that these migrations make, each once: one may be made anew by a later one."""
    return list(dict.fromkeys(name for migration in migrations for name in _TABLE.findall(migration.sql)))


async def missing_grants(connection: Connection, tables: list[str]) -> list[str]:
    """Return the statements that would give us what we lack on those of the tables that exist."""
    return [row["missing"] for row in await connection.fetch(MISSING_RIGHTS, tables, RIGHTS)]


async def check_rights(dsn: str) -> None:
    """Look that we may log in, and read and write every table that exists.

    Raises:
        ConfigError: we may not; says what is to be granted.
        DatabaseUnavailable: the database cannot be reached.
    """
    with translated_errors(), explained_refusals():
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn, timeout=10)
        try:
            missing = await missing_grants(connection, tables_of(load_migrations()))
        finally:
            await connection.close(timeout=5)
    if missing:
        raise ConfigError([f"database.dsn: its user lacks rights; as the tables' owner: {'; '.join(missing)}"])
