"""Fixtures for everything that needs a real PostgreSQL: one cluster, one fresh database per test."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.databases import dsn_for, fresh_database, run_sql
from tests.support.fixtures import MakeConfig
from tusd_py.config import Config, load_config
from tusd_py.database.migrate import migrate
from tusd_py.embedded_postgres import EmbeddedPostgres

if TYPE_CHECKING:
    from tests.support.world import World


@pytest.fixture(scope="session")
def postgres_dsn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server of the session: the embedded one, or the one that TUSD_TEST_DSN names."""
    if outside := os.environ.get("TUSD_TEST_DSN"):
        yield outside
        return
    data_dir = tmp_path_factory.mktemp("postgres") / "data"
    server = EmbeddedPostgres(data_dir, max_connections=200)
    server.start()
    try:
        # Tests log in as roles of their own.
        (data_dir / "pg_hba.conf").write_text("local all all trust\n")
        asyncio.run(run_sql(server.dsn, "SELECT pg_reload_conf()"))
        yield server.dsn
    finally:
        server.stop()


@pytest.fixture(scope="session")
def template_database(postgres_dsn: str) -> str:
    """A migrated database that each test's own is a copy of."""
    name = f"tusd_template_{uuid.uuid4().hex[:8]}"
    asyncio.run(run_sql(postgres_dsn, f"CREATE DATABASE {name}"))
    asyncio.run(migrate(dsn_for(postgres_dsn, name)))
    return name


@pytest.fixture
def dsn(postgres_dsn: str, template_database: str) -> Iterator[str]:
    """A fresh, migrated database."""
    with fresh_database(postgres_dsn, template_database) as dsn:
        yield dsn


@pytest.fixture
def other_dsn(postgres_dsn: str, template_database: str) -> Iterator[str]:
    """Another one."""
    with fresh_database(postgres_dsn, template_database) as dsn:
        yield dsn


@pytest.fixture
def make_config(dsn: str, tmp_path: Path) -> MakeConfig:
    def make(**sections: object) -> Config:
        base: dict[str, Any] = {
            "data_dir": tmp_path / "data",
            "database": {"dsn": dsn},
            "server": {"port": 0},
            "operations": {"port": 0},
            "staging": {"reserve": 0},
        }
        for name, values in sections.items():
            base[name] = base.get(name, {}) | values if isinstance(values, dict) else values
        return load_config(None, base)

    return make


@pytest.fixture(scope="session")
def shared_dsn(postgres_dsn: str, template_database: str) -> Iterator[str]:
    """One database for all tests that use `world`."""
    with fresh_database(postgres_dsn, template_database) as dsn:
        yield dsn


@pytest.fixture
async def world(shared_dsn: str, tmp_path: Path) -> AsyncIterator[World]:
    """The database layer, the staging area and the filesystem store, all of them empty."""
    from tests.support.world import open_world

    async with open_world(shared_dsn, tmp_path) as opened:
        yield opened
