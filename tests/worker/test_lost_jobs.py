"""Jobs that nobody works on are released at once. Leases are so long here that nothing can wait for their end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.support.databases import dsn_for, run_sql
from tests.support.workers import Gated, is_true, reaches, working
from tests.support.world import World, open_world
from tusd_py.database.jobs import JobQueue
from tusd_py.errors import DatabaseUnavailable
from tusd_py.ports import Job
from tusd_py.protocol.upload import State

LEASE = 3600.0
DEADLINE = 60.0

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
async def own_world(dsn: str, tmp_path: Path) -> AsyncIterator[World]:
    """A node with a database of its own, which may be taken away."""
    async with open_world(dsn, tmp_path, connect_timeout=2) as opened:
        yield opened


@contextlib.asynccontextmanager
async def away(dsn: str) -> AsyncIterator[None]:
    """Cut every connection to the database, and refuse new ones meanwhile."""
    name = urlsplit(dsn).path.removeprefix("/")
    outside = dsn_for(dsn, "postgres")
    await run_sql(
        outside,
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
    )
    try:
        with pytest.raises(asyncpg.PostgresError):
            await run_sql(dsn, "SELECT 1")
        yield
    finally:
        await run_sql(outside, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


async def test_the_jobs_of_a_dead_worker_are_taken_over_at_once(world: World) -> None:
    upload = await world.received()
    await world.jobs("dead", lease=LEASE).claim(1)

    async with working(world, name="successor", dead_workers=("dead",), lease=LEASE):
        await reaches(world, upload, State.STORED, deadline=DEADLINE)

    assert await world.attempts_of(upload) == [("transfer", 1, "lost"), ("transfer", 2, "succeeded")]


async def test_what_could_not_be_recorded_goes_on_once_the_database_is_back(own_world: World) -> None:
    world = own_world
    upload = await world.received()
    store = Gated(world.store)

    async with working(world, store, lease=LEASE) as runner:
        await store.reached.wait()
        async with away(world.dsn):
            store.gate.set()
            await is_true(lambda: runner._outcomes.unrecorded, "its outcome could not be recorded")
        await reaches(world, upload, State.STORED, deadline=DEADLINE)

    assert await world.jobs_of(upload, "failures") == [(0,)]


async def test_a_cancelled_transfer_gives_way_once_the_database_is_back(own_world: World) -> None:
    world = own_world
    upload = await world.received()
    store = Gated(world.store)
    store.records_progress = True

    async with working(world, store, lease=LEASE) as runner:
        await store.reached.wait()
        await world.uploads.remove(upload.id, force=True)
        async with away(world.dsn):
            store.gate.set()
            await is_true(lambda: runner._outcomes.unrecorded, "its end could not be acknowledged")
        await reaches(world, upload, State.REMOVED, deadline=DEADLINE)

    assert world.object(upload) is None


async def test_a_claim_whose_answer_was_lost_is_made_again(world: World) -> None:
    class Unanswered(JobQueue):
        claims = 0

        async def claim(self, limit: int, *, large: int | None = None, eager: int = 0, finish: int = 0) -> list[Job]:
            jobs = await super().claim(limit, large=large, eager=eager, finish=finish)
            self.claims += 1
            if self.claims == 1:
                raise DatabaseUnavailable
            return jobs

    upload = await world.received()
    jobs = Unanswered(world.database, directory=world.staging.identity, worker="worker-1", lease_seconds=LEASE)

    async with working(world, jobs=jobs, lease=LEASE):
        await reaches(world, upload, State.STORED, deadline=DEADLINE)

    assert await world.attempts_of(upload) == [("transfer", 1, "lost"), ("transfer", 2, "succeeded")]
