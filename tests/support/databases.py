"""Databases for tests: the DSN of each, statements of a test's own, and copies of a migrated one."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator

import asyncpg


def dsn_for(dsn: str, database: str) -> str:
    """Return the same server's DSN with another database."""
    head, _, options = dsn.partition("?")
    return f"{head.rsplit('/', 1)[0]}/{database}" + (f"?{options}" if options else "")


async def run_sql(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@contextlib.contextmanager
def fresh_database(postgres_dsn: str, template: str) -> Iterator[str]:
    """Provide a copy of a migrated database, and drop it afterwards."""
    name = f"tusd_test_{uuid.uuid4().hex[:12]}"
    asyncio.run(run_sql(postgres_dsn, f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield dsn_for(postgres_dsn, name)
    asyncio.run(run_sql(postgres_dsn, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
