"""The pool and the listener when the database is away, restarted or killed, and behind a pooler."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.support.process import wait_until
from tests.support.workers import is_true, reaches, working
from tests.support.world import HERE, THERE, World, open_world
from tusd_py.config.sections import DatabaseConfig
from tusd_py.database import pool as module
from tusd_py.database.migrate import migrate
from tusd_py.database.notifier import NOTIFY, Notifier
from tusd_py.database.pool import Database, Notifications
from tusd_py.database.stats import ping, read_stats
from tusd_py.embedded_postgres import EmbeddedPostgres
from tusd_py.errors import DatabaseUnavailable
from tusd_py.ports import QueueStats
from tusd_py.protocol.upload import State

CONFIG = DatabaseConfig(connect_timeout=2, command_timeout=5)
CHANNEL = "tusd_test"


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server that these tests stop and kill as they like."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("own") / "data")
    server.start()
    asyncio.run(migrate(server.dsn))
    yield server
    server.stop()


@pytest.fixture
def server(own_server: EmbeddedPostgres) -> EmbeddedPostgres:
    own_server.start()
    return own_server


@pytest.fixture
async def database(server: EmbeddedPostgres) -> AsyncIterator[Database]:
    opened = Database(server.dsn, CONFIG)
    await opened.open()
    yield opened
    await opened.close()


def kill(server: EmbeddedPostgres) -> None:
    """kill -9 the postmaster; its children end by themselves."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.running(), deadline=30, what="the postmaster is dead")


async def answers(database: Database) -> bool:
    try:
        await ping(database)
    except DatabaseUnavailable:
        return False
    return True


# --- the pool --------------------------------------------------------------------------------------


async def test_a_database_that_is_away_at_the_start_stops_nobody(server: EmbeddedPostgres) -> None:
    server.stop()
    database = Database(server.dsn, CONFIG)
    await database.open()

    with pytest.raises(DatabaseUnavailable):
        await ping(database)
    server.start()
    await ping(database)

    await database.close()


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_restart_heals_by_itself(server: EmbeddedPostgres, database: Database, end: str) -> None:
    await asyncio.gather(*(database.fetch("SELECT pg_sleep(0.05)") for _ in range(5)))  # five connections
    if end == "kill":
        kill(server)
    else:
        server.stop()

    assert not await answers(database)
    server.start()

    await is_true(lambda: answers(database), "the pool has healed")
    assert await asyncio.gather(*(answers(database) for _ in range(10))) == [True] * 10


@pytest.mark.parametrize("what", ["fetch", "execute", "transaction"])
async def test_a_statement_that_is_cut_off_says_that_the_database_is_away(database: Database, what: str) -> None:
    async def run() -> None:
        if what == "transaction":
            async with database.transaction() as connection:
                await connection.execute("SELECT pg_sleep(30)")
        else:
            await getattr(database, what)("SELECT pg_sleep(30)")

    running = asyncio.create_task(run())
    victim = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE query = 'SELECT pg_sleep(30)' AND state = 'active'"
    )

    async def struck() -> bool:
        return bool(await database.fetch(victim))

    await is_true(struck, "the statement was running")
    with pytest.raises(DatabaseUnavailable):
        await running
    assert await answers(database)


async def test_a_read_is_repeated_on_a_connection_that_turns_out_dead(database: Database) -> None:
    async def die(connection: asyncpg.Connection) -> None:
        await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    for _ in range(3):
        with pytest.raises(DatabaseUnavailable):
            async with database.transaction() as connection:
                await die(connection)
        row = await database.read("SELECT 7 AS value")
        assert row is not None
        assert row["value"] == 7


async def test_a_statement_that_takes_too_long_is_given_up(server: EmbeddedPostgres) -> None:
    database = Database(server.dsn, DatabaseConfig(command_timeout=0.05, pool_size=1))
    await database.open()

    with pytest.raises(DatabaseUnavailable):
        await database.execute("SELECT pg_sleep(30)")
    await ping(database)

    await database.close()


async def test_a_pool_that_is_exhausted_is_given_up_waiting_for(server: EmbeddedPostgres) -> None:
    database = Database(server.dsn, DatabaseConfig(connect_timeout=0.1, pool_size=1))
    await database.open()

    async with database.transaction():
        with pytest.raises(DatabaseUnavailable):
            await ping(database)
    await ping(database)

    await database.close()


async def test_closing_does_not_wait_for_a_statement_for_ever(server: EmbeddedPostgres) -> None:
    database = Database(server.dsn, DatabaseConfig(command_timeout=0.3))
    await database.open()
    begun = asyncio.Event()

    async def run() -> None:
        async with database.transaction() as connection:
            begun.set()
            await connection.execute("SELECT pg_sleep(30)", timeout=60)

    running = asyncio.create_task(run())
    await begun.wait()
    await database.close()

    with pytest.raises(DatabaseUnavailable):
        await running
    with pytest.raises(DatabaseUnavailable):
        await ping(database)


async def test_transactions_that_wait_for_each_other_are_worth_another_try(world: World) -> None:
    first, second = await world.create(), await world.create()
    both_hold = asyncio.Barrier(2)
    lock = "SELECT 1 FROM uploads WHERE id = $1 FOR UPDATE"

    async def take(one: object, other: object) -> None:
        async with world.database.transaction() as connection:
            await connection.execute("SET LOCAL deadlock_timeout = '10ms'")
            await connection.fetch(lock, one)
            await both_hold.wait()
            await connection.fetch(lock, other)

    outcomes = await asyncio.gather(take(first.id, second.id), take(second.id, first.id), return_exceptions=True)

    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["DatabaseUnavailable", "NoneType"]


async def test_a_mistake_in_a_statement_is_no_missing_database(database: Database) -> None:
    with pytest.raises(asyncpg.PostgresSyntaxError):
        await database.fetch("SELEC 1")


async def test_a_database_that_nobody_has_migrated_says_so(database: Database) -> None:
    for statement in ("SELECT 1 FROM uploads_of_a_later_version", "SELECT of_a_later_version FROM pg_class"):
        with pytest.raises(DatabaseUnavailable, match="tusd-py migrate"):
            await database.fetch(statement)


async def test_a_failed_transaction_leaves_nothing_behind(world: World) -> None:
    upload = await world.create()

    with pytest.raises(KeyError):
        async with world.database.transaction() as connection:
            await connection.execute("DELETE FROM uploads")
            raise KeyError

    assert await world.uploads.find(upload.id) == upload


async def test_the_worker_outlives_its_database(server: EmbeddedPostgres, tmp_path: Path) -> None:
    async with open_world(server.dsn, tmp_path, connect_timeout=2) as world, working(world):
        before = await world.received()
        await reaches(world, before, State.STORED)

        kill(server)
        server.start()

        await is_true(lambda: answers(world.database), "the pool has healed")
        after = await world.received()
        await reaches(world, after, State.STORED)
        assert await world.state(before) is State.STORED


# --- behind a transaction pooler -------------------------------------------------------------------


async def test_everything_works_without_prepared_statements(shared_dsn: str, tmp_path: Path) -> None:
    """As behind pgbouncer before 1.21: each statement may meet another server connection."""
    async with open_world(shared_dsn, tmp_path, statement_cache_size=0) as world, working(world):
        upload, part = await world.received(), await world.part(length=2)
        final = await world.final([part])
        await world.staging.store_small(part.id, [b"ab"])
        await world.advance(part, 2)
        await reaches(world, upload, State.STORED)
        await world.uploads.remove(upload.id)
        await reaches(world, upload, State.REMOVED)
        assert (await world.find(final)).length == 2
        assert "uploading" not in (await read_stats(world.database, HERE)).uploads


async def test_with_no_statement_cache_nothing_is_kept_prepared(server: EmbeddedPostgres) -> None:
    database = Database(server.dsn, DatabaseConfig(statement_cache_size=0, pool_size=1))
    await database.open()

    for _ in range(3):
        await ping(database)
        await database.execute(NOTIFY, CHANNEL, "x")

    assert await database.fetch("SELECT name FROM pg_prepared_statements WHERE name <> ''") == []
    await database.close()


# --- notifications ---------------------------------------------------------------------------------


@pytest.fixture
async def heard(server: EmbeddedPostgres) -> AsyncIterator[list[str]]:
    """What a listener on `CHANNEL` was told."""
    payloads: list[str] = []
    notifications = Notifications(server.dsn, CONFIG, reconnect_seconds=(0.01, 0.05))
    notifications.subscribe(CHANNEL, payloads.append)
    await notifications.open()
    yield payloads
    await notifications.close()


async def test_a_listener_is_told_once_at_its_start_and_then_of_everything(
    database: Database, heard: list[str]
) -> None:
    await is_true(lambda: heard == [""], "it listens")

    await database.execute(NOTIFY, CHANNEL, "one")
    await database.execute(NOTIFY, "another_channel", "two")
    await database.execute(NOTIFY, CHANNEL, "three")

    await is_true(lambda: heard == ["", "one", "three"], "it was told")


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_listener_comes_back_and_looks_for_what_it_missed(
    server: EmbeddedPostgres, database: Database, heard: list[str], end: str
) -> None:
    await is_true(lambda: heard == [""], "it listens")

    if end == "kill":
        kill(server)
    else:
        server.stop()
    server.start()

    await is_true(lambda: heard == ["", ""], "it listens again, and says so")
    await is_true(lambda: answers(database), "the pool has healed")
    await database.execute(NOTIFY, CHANNEL, "after")
    await is_true(lambda: heard[-1] == "after", "it was told")


async def test_a_listener_whose_connection_is_cut_comes_back(database: Database, heard: list[str]) -> None:
    await is_true(lambda: heard == [""], "it listens")

    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tusd_py listen'"
    await database.fetch(cut)

    await is_true(lambda: heard == ["", ""], "it listens again")


async def test_a_listener_notices_that_the_other_side_is_gone_without_a_word(server: EmbeddedPostgres) -> None:
    payloads: list[str] = []
    notifications = Notifications(
        server.dsn,
        DatabaseConfig(command_timeout=0.05),
        reconnect_seconds=(0.01,),
        probe_seconds=0.01,
        probe="SELECT pg_sleep(30)",  # no answer, as from a host that is down
    )
    notifications.subscribe(CHANNEL, payloads.append)
    await notifications.open()

    await is_true(lambda: len(payloads) >= 2, "it has connected anew")

    await notifications.close()


async def test_a_listener_is_patient_with_whatever_the_server_says(server: EmbeddedPostgres) -> None:
    payloads: list[str] = []
    dsn = server.dsn.replace("/postgres?", "/not_there_yet?")
    notifications = Notifications(dsn, CONFIG, reconnect_seconds=(0.01,))
    notifications.subscribe(CHANNEL, payloads.append)
    await notifications.open()
    database = Database(server.dsn, CONFIG)
    await database.open()

    await database.execute("CREATE DATABASE not_there_yet")

    await is_true(lambda: payloads == [""], "it listens")
    await notifications.close()
    await database.execute("DROP DATABASE not_there_yet WITH (FORCE)")
    await database.close()


async def test_a_listener_that_is_closed_while_it_loses_its_connection_is_closed() -> None:
    """Both at once is what happens when server and database are told to stop together."""
    for steps in range(6):
        event = asyncio.Event()
        waiting = asyncio.create_task(module._happens(event, 30))
        await asyncio.sleep(0)
        event.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        if not waiting.done():
            waiting.cancel()
            (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
            assert isinstance(outcome, asyncio.CancelledError)


async def test_who_listens_to_nothing_opens_no_connection(server: EmbeddedPostgres) -> None:
    notifications = Notifications(server.dsn, CONFIG)
    await notifications.open()
    assert notifications._task is None
    await notifications.close()


# --- wake-ups --------------------------------------------------------------------------------------


async def test_many_wakeups_become_one_notification(database: Database, heard: list[str]) -> None:
    await is_true(lambda: heard == [""], "it listens")
    notifier = Notifier(database, jobs_channel=CHANNEL)

    for _ in range(100):
        notifier.notify_workers(HERE)
        notifier.notify_workers(THERE)
    await notifier.close()
    await database.execute(NOTIFY, CHANNEL, "end")

    await is_true(lambda: heard[-1] == "end", "everything has arrived")
    assert sorted(heard[1:-1]) == [str(HERE), str(THERE)]


async def test_a_wakeup_that_fails_hurts_nobody_and_the_next_one_is_sent(
    server: EmbeddedPostgres, database: Database, heard: list[str]
) -> None:
    notifier = Notifier(database, jobs_channel=CHANNEL)
    server.stop()
    notifier.notify_workers(HERE)
    await notifier.close()
    server.start()
    await is_true(lambda: answers(database), "the pool has healed")
    await is_true(lambda: heard[-1:] == [""], "it listens again")

    notifier.notify_workers(HERE)
    await notifier.close()

    await is_true(lambda: heard[-1] == str(HERE), "it was told")


async def test_each_statement_that_queues_a_job_rings(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rung: list[str] = []
    monkeypatch.setattr(world.notifier, "notify_workers", rung.append)

    async def rings(count: int, what: str) -> None:
        assert rung == [HERE] * count, what
        rung.clear()

    upload, part, final_part = await world.create(), await world.create(), await world.part(length=4)
    await rings(0, "nothing is complete")
    upload = await world.advance(upload, 10)
    await rings(1, "the last byte")
    await world.final([final_part])
    await rings(0, "a final that waits")
    await world.advance(final_part, 4)
    await rings(1, "the last part")
    await world.run_out_of_time(part)
    await world.cleanup.expire(part.id)
    await rings(1, "an upload that expired")
    await world.uploads.remove(upload.id)
    await rings(1, "a removal")
    failed = await world.force_state(await world.completed(), State.TRANSFER_FAILED)
    await rings(1, "complete at once")
    await world.sql("DELETE FROM jobs")
    await world.transfers.request(failed.id)
    await rings(1, "by hand")


# --- figures ---------------------------------------------------------------------------------------


async def test_figures_count_what_operators_watch(world: World) -> None:
    empty = await read_stats(world.database, HERE)
    await world.create()
    await world.completed()
    await world.completed(staging_id=THERE)
    await world.force_state(await world.completed(), State.TRANSFER_FAILED)
    await world.sql("UPDATE uploads SET created_at = now() - interval '1 hour'")
    await world.sql("UPDATE jobs SET due_at = now() - interval '2 hours'")
    later, running = await world.completed(), await world.completed()
    for upload, state, days in ((later, "retry_wait", 1), (running, "running", -1)):
        due = "UPDATE jobs SET state = $2, due_at = now() + make_interval(days => $3) WHERE upload_id = $1"
        await world.sql(due, upload.id, state, days)

    figures = await read_stats(world.database, HERE)

    assert empty == QueueStats({}, 0, {}, 0)
    assert figures.uploads == {"created": 1, "completed": 4, "transfer_failed": 1}
    assert figures.jobs == {"queued": 2, "retry_wait": 1, "running": 1}
    assert 3600 <= figures.oldest_unfinished_seconds < 3700
    assert 7200 <= figures.oldest_due_job_seconds < 7300


async def test_the_pool_tells_how_many_connections_it_uses(server: EmbeddedPostgres) -> None:
    database = Database(server.dsn, CONFIG.model_copy(update={"pool_size": 4}))
    assert database.use == (0, 0, 0)
    await database.open()
    try:
        assert database.use == (0, 0, 4)
        async with database.transaction(), database.transaction():
            assert database.use == (2, 0, 4)
        assert database.use == (0, 2, 4)
    finally:
        await database.close()
    assert database.use == (0, 0, 0)
