"""Fixtures of the HTTP tests: servers in this process, on a database of the folder."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest

from tests.http.served import Serve, Served, serving
from tests.support.databases import fresh_database, run_sql
from tests.support.fixtures import MakeConfig
from tusd_py.uploads.changes import ChangeNotifier
from tusd_py.uploads.live_events import ListenerLimits
from tusd_py.uploads.service import Timing


@pytest.fixture(scope="session")
def folder_dsn(postgres_dsn: str, template_database: str) -> Iterator[str]:
    """One database for this folder: emptying it is quicker than making a new one for every test."""
    with fresh_database(postgres_dsn, template_database) as dsn:
        yield dsn


@pytest.fixture
def dsn(folder_dsn: str) -> str:
    """The folder's database, emptied."""
    tables = "uploads, upload_parts, jobs, job_attempts, transfer_parts, events, dead_letters, webhook_endpoints"
    asyncio.run(run_sql(folder_dsn, f"TRUNCATE {tables}"))
    return folder_dsn


@pytest.fixture
async def serve(make_config: MakeConfig) -> AsyncIterator[Serve]:
    """Start servers with a configuration; they are stopped after the test. No worker runs by itself."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            *,
            context: Mapping[str, Any] | None = None,
            changes: ChangeNotifier | None = None,
            timing: Timing | None = None,
            listeners: ListenerLimits | None = None,
            **sections: object,
        ) -> Served:
            config = make_config(**sections)
            serves = serving(config, changes=changes, timing=timing, listeners=listeners, **(context or {}))
            return await stack.enter_async_context(serves)

        yield start


@pytest.fixture
async def served(serve: Serve) -> Served:
    """A server with the defaults."""
    return await serve()
