"""A wired node for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.support import World, open_world, shared_database


@pytest.fixture(scope="session")
def shared_dsn(postgres_dsn: str, template_database: str) -> Iterator[str]:
    """One database for all tests that use `world`."""
    with shared_database(postgres_dsn, template_database) as dsn:
        yield dsn


@pytest.fixture
async def world(shared_dsn: str, tmp_path: Path) -> AsyncIterator[World]:
    """The database layer, the staging area and the filesystem store, all of them empty."""
    async with open_world(shared_dsn, tmp_path) as opened:
        yield opened
