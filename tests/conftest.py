"""Fixtures for everything that needs a real PostgreSQL: one cluster, one fresh database per test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.spec import rules_in
from tests.support.fixtures import MakeConfig
from tusd_py.config import Config, load_config
from tusd_py.database.migrate import migrate
from tusd_py.embedded_postgres import EmbeddedPostgres


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the ids in a failing test's docstring mean."""
    report = yield
    docstring = getattr(getattr(item, "obj", None), "__doc__", None)
    if report.failed and (rules := rules_in(docstring or "")):
        report.sections.append(("Rules of the protocol", "\n".join(rules)))
    return report


def _dsn_for(dsn: str, database: str) -> str:
    """Return the same server's DSN with another database."""
    head, _, options = dsn.partition("?")
    return f"{head.rsplit('/', 1)[0]}/{database}" + (f"?{options}" if options else "")


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
        asyncio.run(_run(server.dsn, "SELECT pg_reload_conf()"))
        yield server.dsn
    finally:
        server.stop()


async def _run(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def template_database(postgres_dsn: str) -> str:
    """A migrated database that each test's own is a copy of."""
    name = f"tusd_template_{uuid.uuid4().hex[:8]}"
    asyncio.run(_run(postgres_dsn, f"CREATE DATABASE {name}"))
    asyncio.run(migrate(_dsn_for(postgres_dsn, name)))
    return name


@contextlib.contextmanager
def _fresh_database(postgres_dsn: str, template: str) -> Iterator[str]:
    name = f"tusd_test_{uuid.uuid4().hex[:12]}"
    asyncio.run(_run(postgres_dsn, f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield _dsn_for(postgres_dsn, name)
    asyncio.run(_run(postgres_dsn, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


@pytest.fixture
def dsn(postgres_dsn: str, template_database: str) -> Iterator[str]:
    """A fresh, migrated database."""
    with _fresh_database(postgres_dsn, template_database) as dsn:
        yield dsn


@pytest.fixture
def other_dsn(postgres_dsn: str, template_database: str) -> Iterator[str]:
    """Another one."""
    with _fresh_database(postgres_dsn, template_database) as dsn:
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
