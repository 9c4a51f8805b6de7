"""Every statement of the program against the migrated schema: valid, in its place, and by an index."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import json
import pkgutil
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import tusd_py.database
from tests.support.databases import dsn_for, run_sql
from tests.support.world import HERE, World
from tusd_py.database import (
    concatenation,
    deliveries,
    events,
    finishing,
    job_results,
    jobs,
    lists,
    stats,
    termination,
    transfer_state,
)
from tusd_py.database.cleanup import CleanupRecords
from tusd_py.database.jobs import JobQueue
from tusd_py.database.pool import Statement
from tusd_py.database.reconcile import ReconcileRecords
from tusd_py.database.transfer_state import PostgresTransferState
from tusd_py.database.transfers import TransferRequests
from tusd_py.database.uploads import PostgresUploads
from tusd_py.ports import LARGE_BYTES
from tusd_py.protocol.upload import Event, State, sources

PACKAGE = Path(tusd_py.database.__file__).parent
IS_STATEMENT = re.compile(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE|CREATE|SET)\b(?!,)")  # a list of rights is none
LOOKS_LIKE_SQL = re.compile(
    r"\b(SELECT\s[^;]+\sFROM\s|INSERT\s+INTO\s|UPDATE\s+\w+\s+SET\s|DELETE\s+FROM\s|CREATE\s+(TABLE|INDEX)\s|pg_notify)"
)
DRIVER_METHODS = {"fetch", "fetchrow", "fetchval", "execute", "executemany", "read", "prepare"}


def modules() -> Iterator[Any]:
    for module in pkgutil.iter_modules([str(PACKAGE)]):
        yield importlib.import_module(f"tusd_py.database.{module.name}")


def constants(module: Any) -> Iterator[tuple[str, Any]]:
    """Those of a module and of its classes."""
    for name, value in vars(module).items():
        yield name, value
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield from vars(value).items()


def statements() -> dict[str, str]:
    """Every constant that is a whole statement; fragments begin otherwise or are private."""
    found = {}
    for module in modules():
        for name, value in constants(module):
            several = tuple(value.values()) if isinstance(value, dict) else value
            values = several if isinstance(several, tuple) else (value,)
            for number, one in enumerate(values):
                text = one.text if isinstance(one, Statement) else one
                if not name.startswith("_") and isinstance(text, str) and IS_STATEMENT.match(text):
                    found[f"{module.__name__.rpartition('.')[2]}.{name}" + (f"[{number}]" if number else "")] = text
    return found


def test_the_statements_are_found() -> None:
    names = set(statements())

    assert {
        "uploads.ADVANCE",
        "jobs.CLAIM",
        "cleanup.EXPIRE",
        "termination.REMOVE",
        "concatenation.COMPLETE_FINAL",
    } <= names
    assert {
        "transfer_state.RECORD_PART",
        "notifier.NOTIFY",
        "migrate.HISTORY",
        "stats.FIGURES",
        "pool.PROBE",
    } <= names
    assert len(names) > 45


def test_a_statement_names_its_arguments() -> None:
    statement = Statement("SELECT :b::int, :a, :b FROM t WHERE x = ANY (:names::text[])")

    assert statement(a=1, b=2, names=["x"]) == ("SELECT $1::int, $2, $1 FROM t WHERE x = ANY ($3::text[])", 2, 1, ["x"])


@pytest.mark.parametrize("arguments", [{}, {"a": 1, "b": 2}, {"b": 2}])
def test_a_statement_takes_exactly_its_arguments(arguments: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="takes a, not"):
        Statement("SELECT :a")(**arguments)


@pytest.mark.parametrize("name", sorted(statements()))
async def test_each_statement_is_valid(prepared_on: asyncpg.Connection, name: str) -> None:
    await prepared_on.prepare(statements()[name])


# Of jobs that workers beside a staging directory claim. Deliveries are looked for when an upload has changed.
ENQUEUING = sorted(
    name for name, text in statements().items() if "INSERT INTO jobs (upload_id, kind, staging_id" in text
)


@pytest.mark.parametrize("name", ENQUEUING)
async def test_a_statement_that_enqueues_says_whom_to_wake(prepared_on: asyncpg.Connection, name: str) -> None:
    prepared = await prepared_on.prepare(statements()[name])

    assert {"wake_workers", "staging_id"} <= {attribute.name for attribute in prepared.get_attributes()}


@pytest.fixture(scope="module")
def schema_dsn(postgres_dsn: str, template_database: str) -> str:
    return dsn_for(postgres_dsn, template_database)


@pytest.fixture
async def prepared_on(schema_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(schema_dsn)
    yield connection
    await connection.close()


# --- its place -------------------------------------------------------------------------------------


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DRIVER_METHODS:
            yield node


def docstrings(tree: ast.AST) -> set[int]:
    found = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            found.add(id(first.value))
    return found


def test_no_other_package_holds_sql() -> None:
    offenders = []
    for path in sorted(PACKAGE.parent.rglob("*.py")):
        if PACKAGE in path.parents:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        skip = docstrings(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in skip:
                continue
            if LOOKS_LIKE_SQL.search(node.value):
                offenders.append(f"{path}:{node.lineno}")

    assert offenders == []


def test_statements_are_constants_and_not_written_where_they_are_run() -> None:
    offenders = []
    for path in sorted(PACKAGE.glob("*.py")):
        for call in calls(ast.parse(path.read_text(encoding="utf-8"))):
            first = call.args[0] if call.args else None
            if isinstance(first, ast.JoinedStr) or (
                isinstance(first, ast.Constant) and isinstance(first.value, str) and IS_STATEMENT.match(first.value)
            ):
                offenders.append(f"{path}:{call.lineno}")

    assert offenders == []


def test_the_queue_tells_the_time_by_the_database() -> None:
    """No statement of the queue takes a moment from the program, only durations."""
    for module in (jobs, job_results, transfer_state, termination):
        text = inspect.getsource(module)
        assert "datetime" not in text, module.__name__
        assert not re.search(r"time\.time\(|timestamptz", text), module.__name__


# --- plans -----------------------------------------------------------------------------------------

SEED = f"""
INSERT INTO uploads (id, token_hash, owner, staging_id, state, upload_length, upload_offset, object_key, concat,
                     created_at, updated_at, expires_at, stored_at, completed_at, gone_at, local_present)
SELECT gen_random_uuid(), sha256(n::text::bytea), 'owner-' || n % 500, '{HERE}'::uuid, state, 10,
       CASE WHEN state IN ('created', 'uploading') THEN 0 ELSE 10 END, 'key/' || n,
       CASE WHEN state = 'completed' THEN 'partial' END,
       now() - make_interval(secs => n), now() - make_interval(secs => n),
       CASE WHEN state IN ('created', 'uploading') THEN now() + make_interval(secs => n % 1000 - 100) END,
       CASE WHEN state = 'stored' THEN now() - make_interval(secs => n) END, now(),
       CASE WHEN state = 'removed' THEN now() - make_interval(secs => n) END, false
  FROM (SELECT n, CASE WHEN n % 250 = 0 THEN 'created' WHEN n % 250 = 1 THEN 'uploading'
                       WHEN n % 500 = 2 THEN 'completed' WHEN n % 500 = 3 THEN 'transfer_failed'
                       WHEN n % 100 = 4 THEN 'removed' ELSE 'stored' END AS state
          FROM generate_series(1, 50000) AS n) AS made
"""
SEED_JOBS = """
INSERT INTO jobs (upload_id, kind, staging_id, state, due_at, length)
SELECT id, 'transfer', staging_id, CASE WHEN state = 'transfer_failed' THEN 'queued' ELSE 'succeeded' END,
       now() - interval '1 minute', 10
  FROM uploads WHERE state IN ('stored', 'transfer_failed')
"""


SEED_EVENTS = """
INSERT INTO events (upload_id, kind, sequence, snapshot, owner, profile, created_at)
SELECT id, 'upload.created', 1, '{}', owner, profile, created_at FROM uploads
"""
SEED_DELIVERIES = """
INSERT INTO jobs (upload_id, kind, endpoint, next_sequence, until_sequence, state, due_at)
SELECT id, 'deliver', endpoint, 1, 1, 'queued', now() + interval '1 hour'
  FROM uploads, unnest(ARRAY['app', 'other']) AS endpoint WHERE state IN ('stored', 'transfer_failed') LIMIT 20000
"""


def bound(call: tuple[Any, ...]) -> tuple[str, list[Any]]:
    """The text of a statement and its arguments."""
    statement, *arguments = call
    return statement, arguments


TOKEN = b"0" * 32
UNAUTHENTICATED = "00000000-0000-0000-0000-000000000000"
ADVANCED = {
    "writer": 0,
    "crc64nvme": 7,
    "length": None,
    "completes": True,
    "expires_after": 60.0,
    "eager_above": None,
    "finish_after": None,
}
PLANS: dict[str, tuple[str, list[Any], str]] = {
    "find_by_token": (*bound(PostgresUploads.FIND_BY_TOKEN(token_hash=TOKEN)), "uploads_token_hash_key"),
    "find": (*bound(PostgresUploads.FIND(id=UNAUTHENTICATED)), "uploads_pkey"),
    "advance": (
        *bound(
            PostgresUploads.ADVANCE(id=UNAUTHENTICATED, old_offset=0, new_offset=5, **ADVANCED | {"eager_above": 3})
        ),
        "uploads_pkey",
    ),
    "complete": (*bound(finishing.COMPLETE(upload_id=UNAUTHENTICATED)), "uploads_pkey"),
    "finish soon": (
        *bound(finishing.FINISH_SOON(upload_id=UNAUTHENTICATED, delay_seconds=1.0)),
        "jobs_live|jobs_upload",
    ),
    "promised": (concatenation.PROMISED, [1], "uploads_waiting_finals"),
    "become_writer": (*bound(PostgresUploads.BECOME_WRITER(id=UNAUTHENTICATED)), "uploads_pkey"),
    "transfer_view": (*bound(TransferRequests.TRANSFER_VIEW(upload_id=UNAUTHENTICATED)), "jobs_upload|jobs_pkey"),
    "latest_transfer": (*bound(TransferRequests.LATEST_TRANSFER(upload_id=UNAUTHENTICATED)), "jobs_upload|jobs_pkey"),
    "commit": (*bound(TransferRequests.COMMIT(upload_id=UNAUTHENTICATED)), "uploads_pkey"),
    "attempts": (
        *bound(TransferRequests.ATTEMPTS(upload_id=UNAUTHENTICATED, limit=100)),
        "jobs_upload|jobs_pkey|jobs_live",
    ),
    "claim": (
        *bound(
            JobQueue.CLAIM(
                staging_id=HERE,
                worker="w",
                lease_seconds=30.0,
                limit=64,
                large_limit=4,
                large_bytes=LARGE_BYTES,
                eager_limit=2,
                finish_limit=16,
                transfer_states=sources(Event.TRANSFER),
            )
        ),
        "jobs_due",
    ),
    "renew": (*bound(JobQueue.RENEW(job_ids=[1, 2], attempts=[1, 1], worker="w", lease_seconds=30.0)), "jobs_pkey"),
    "next_due": (
        *bound(JobQueue.NEXT_DUE(staging_id=HERE, large=True, large_bytes=LARGE_BYTES, finish=True)),
        "jobs_due",
    ),
    "lock_transfer": (termination.LOCK_TRANSFER, [UNAUTHENTICATED], "jobs_live|jobs_upload"),
    "overdue": (
        *bound(CleanupRecords.OVERDUE(staging_id=HERE, uncommitted_after=60.0, limit=500, skip=[])),
        "uploads_unsettled",
    ),
    "purgeable": (
        *bound(CleanupRecords.PURGEABLE(staging_id=HERE, older_than=60.0, limit=500, skip=[])),
        "uploads_purgeable",
    ),
    "requeue_failed": (
        *bound(CleanupRecords.REQUEUE_FAILED(staging_id=HERE, older_than=60.0, limit=500)),
        "uploads_unsettled",
    ),
    "requeue_orphaned": (
        *bound(CleanupRecords.REQUEUE_ORPHANED(staging_id=HERE, limit=500)),
        "uploads_unsettled",
    ),
    "purge_rows": (*bound(CleanupRecords.PURGE_ROWS(older_than=60.0, limit=500)), "uploads_gone"),
    "reconcile_page": (
        *bound(ReconcileRecords.PAGE(after="key/2", limit=500, places=[1])),
        "uploads_object_key_place",
    ),
    "reconcile_by_key": (
        *bound(ReconcileRecords.BY_KEY(keys=["key/2", "key/3"], places=[1])),
        "uploads_object_key_place",
    ),
    "reconcile_by_id": (*bound(ReconcileRecords.BY_ID(upload_ids=[UNAUTHENTICATED])), "uploads_pkey"),
    "reconcile_newest_stored": (
        *bound(ReconcileRecords.NEWEST_STORED(staging_id=HERE, limit=20, places=[1])),
        "uploads_created|uploads_settled",
    ),
    "reconcile_queue_job": (
        *bound(ReconcileRecords.QUEUE_JOB(id=UNAUTHENTICATED, state="removing", offset=10, kind="remove")),
        "uploads_pkey|uploads_unsettled",
    ),
    "reconcile_requeue_lost": (
        *bound(
            ReconcileRecords.REQUEUE_LOST(
                id=UNAUTHENTICATED, state="stored", offset=10, reason="why", states=sources(Event.LOSE)
            )
        ),
        "uploads_pkey",
    ),
    "deliveries of an endpoint": (
        deliveries.CLAIM,
        ["app", 8, "w", 45.0],
        "jobs_due_deliveries",
    ),
    "next due delivery": (deliveries.NEXT_DUE, ["app"], "jobs_due_deliveries"),
    "advance a delivery": (deliveries.ADVANCE, [1, 1, "w", 2, 45.0], "jobs_pkey"),
    "finish a delivery": (deliveries.FINISH, [1, 1, "w", 2], "jobs_pkey"),
    "lost deliveries": (deliveries.RELEASE_LOST, ["app", ["w"], [1]], "jobs_due_deliveries|jobs_live_deliveries"),
    "events of a delivery": (
        deliveries.EVENTS,
        [UNAUTHENTICATED, 1, 9, ["upload.stored"], 16],
        "events_upload_id_sequence_key",
    ),
    "events of an upload": (events.OF_UPLOADS, [[UNAUTHENTICATED], [0], 100], "events_upload_id_sequence_key"),
    "events after a position": (events.AFTER, ["0", 0, None, 100], "events_order"),
    "late events": (events.LATE, ["0", 0], "events_order"),
    "newest event": (events.NEWEST, [], "events_order"),
    "purge_events": (
        *bound(CleanupRecords.PURGE_EVENTS(older_than=60.0, limit=500)),
        "events_age",
    ),
    "figures": (stats.FIGURES, [HERE], "uploads_unsettled"),
}

HIDDEN = ["expired", "removing", "removed"]
FIRST = [lists.BEFORE_ALL.created_at, lists.BEFORE_ALL.id]
LISTS: dict[str, tuple[str, list[Any], str]] = {
    "list of all": (lists.LIST, [*FIRST, 50, HIDDEN], "uploads_created"),
    "list of an owner": (lists.LIST_OF_OWNER, [*FIRST, 50, HIDDEN, "owner-1"], "uploads_owner"),
    "failed ones of an owner": (
        lists.LIST_OF_OWNER_IN_STATE[State.TRANSFER_FAILED],
        [*FIRST, 50, "owner-3"],
        "uploads_unsettled|uploads_owner",
    ),
    "stored ones of an owner": (
        lists.LIST_OF_OWNER_IN_STATE[State.STORED],
        [*FIRST, 50, "owner-1"],
        "uploads_owner",
    ),
    **{
        f"{state} ones": (
            lists.LIST_IN_STATE[state],
            [*FIRST, 50],
            # Most are stored: there the index of all is as good.
            "uploads_settled|uploads_created" if state is State.STORED else "uploads_unsettled|uploads_settled",
        )
        for state in State
    },
    **{
        f"{state} ones of {owner}": (
            lists.LIST_OF_OWNER_IN_STATE[state],
            [*FIRST, 50, owner],
            "uploads_owner_gone" if state is State.REMOVED else "uploads_owner_gone|uploads_settled",
        )
        for state in (State.REJECTED, State.EXPIRED, State.REMOVED)
        for owner in ("owner-1", "owner-4")
    },
}


def scans(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every scan of a plan: the table or the index, and how."""
    if "Scan" in plan["Node Type"] and (name := plan.get("Index Name") or plan.get("Relation Name")):
        yield name, plan["Node Type"]
    for child in plan.get("Plans", ()):
        yield from scans(child)


async def explain(connection: asyncpg.Connection, statement: str, arguments: list[Any]) -> list[tuple[str, str]]:
    text = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *arguments)
    return list(scans(json.loads(text)[0]["Plan"]))


async def explain_all(dsn: str) -> dict[str, list[tuple[str, str]]]:
    """Plan each statement on a large table, inside a transaction that is rolled back."""
    connection = await asyncpg.connect(dsn)
    transaction = connection.transaction()
    await transaction.start()
    for statement in (
        SEED,
        SEED_JOBS,
        SEED_EVENTS,
        SEED_DELIVERIES,
        "ANALYZE uploads",
        "ANALYZE jobs",
        "ANALYZE events",
    ):
        await connection.execute(statement)
    found = {}
    await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    for name, (statement, arguments, _) in PLANS.items():
        found[name] = await explain(connection, statement, arguments)
    # The plan for their very arguments, as PostgreSQL prefers it here: a generic one would be dearer.
    await connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
    for name, (statement, arguments, _) in LISTS.items():
        found[name] = await explain(connection, statement, arguments)
    await transaction.rollback()
    await connection.close()
    return found


@pytest.fixture(scope="module")
def plans(postgres_dsn: str, template_database: str) -> dict[str, list[tuple[str, str]]]:
    """Every plan's scans. On a copy: what is rolled back leaves a large file behind all the same."""
    name = f"tusd_plans_{uuid.uuid4().hex[:8]}"
    asyncio.run(run_sql(postgres_dsn, f"CREATE DATABASE {name} TEMPLATE {template_database}"))
    found = asyncio.run(explain_all(dsn_for(postgres_dsn, name)))
    asyncio.run(run_sql(postgres_dsn, f"DROP DATABASE {name}"))
    return found


@pytest.mark.parametrize("name", [*PLANS, *LISTS])
def test_a_large_table_is_read_by_an_index(plans: dict[str, list[tuple[str, str]]], name: str) -> None:
    _, _, index = (PLANS | LISTS)[name]

    found = plans[name]

    assert not [table for table, kind in found if kind == "Seq Scan" and table in {"uploads", "jobs", "events"}], found
    assert any(re.fullmatch(index, used) for used, _ in found), found


# --- what an update costs --------------------------------------------------------------------------


UPDATES = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = $1"


async def test_an_offset_moves_without_touching_an_index(world: World) -> None:
    upload = await world.create(length=1000)
    await world.sql("UPDATE uploads SET state = 'uploading' WHERE id = $1", upload.id)

    async with world.database.transaction() as connection:
        before = await connection.fetchrow(UPDATES, "uploads")
        for offset in range(8):
            statement = PostgresUploads.ADVANCE(id=upload.id, old_offset=offset, new_offset=offset + 1, **ADVANCED)
            await connection.fetchrow(*statement)
        after = await connection.fetchrow(UPDATES, "uploads")

    assert [now - then for now, then in zip(after, before, strict=True)] == [8, 8]


async def test_progress_is_written_without_touching_an_index(world: World) -> None:
    await world.completed()
    (job,) = await world.jobs().claim(1)

    async with world.database.transaction() as connection:
        before = await connection.fetchrow(UPDATES, "jobs")
        for done in range(8):
            fence = {"job_id": job.id, "attempt": job.attempt, "worker": "worker-1"}
            await connection.execute(*PostgresTransferState.PROGRESS(**fence, bytes_done=done))
        after = await connection.fetchrow(UPDATES, "jobs")

    assert [now - then for now, then in zip(after, before, strict=True)] == [8, 8]
