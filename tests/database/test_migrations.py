"""The migration runner on a real server: in order, once, wholly or not at all."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.support.databases import dsn_for, run_sql
from tests.support.world import HERE, open_world, stored
from tusd_py.config.place import Place
from tusd_py.config.sections import DatabaseConfig
from tusd_py.database import migrate as runner
from tusd_py.database.deliveries import DeliveryQueue
from tusd_py.database.migrate import Migration, check_schema, load_migrations, migrate, migrations_directory, pending
from tusd_py.database.places import PlaceRecords
from tusd_py.database.pool import Database
from tusd_py.errors import DatabaseUnavailable, MigrationError
from tusd_py.ports.events import EndpointRecord
from tusd_py.protocol.events import RECORDED

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def empty_dsn(postgres_dsn: str) -> Iterator[str]:
    """A database without any table."""
    name = f"tusd_empty_{uuid.uuid4().hex[:12]}"
    asyncio.run(run_sql(postgres_dsn, f"CREATE DATABASE {name}"))
    yield dsn_for(postgres_dsn, name)
    asyncio.run(run_sql(postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two migrations."""
    directory = tmp_path / "migrations"
    directory.mkdir()
    (directory / "0001_create_a.sql").write_text("CREATE TABLE a (id int PRIMARY KEY);\n")
    (directory / "0002_add_b.sql").write_text("ALTER TABLE a ADD b int;\nINSERT INTO a VALUES (1, 2);\n")
    return directory


async def query(dsn: str, statement: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


async def test_files_are_applied_in_order_and_once(empty_dsn: str, folder: Path) -> None:
    first = await migrate(empty_dsn, folder)
    second = await migrate(empty_dsn, folder)

    assert first == ["0001_create_a", "0002_add_b"]
    assert second == []
    assert await query(empty_dsn, "SELECT id, b FROM a") == [(1, 2)]
    assert await query(empty_dsn, "SELECT version, name FROM schema_migrations ORDER BY version") == [
        (1, "0001_create_a"),
        (2, "0002_add_b"),
    ]


async def test_only_what_is_missing_is_applied(empty_dsn: str, folder: Path) -> None:
    await migrate(empty_dsn, folder)
    (folder / "0003_add_c.sql").write_text("ALTER TABLE a ADD c int;")

    assert await migrate(empty_dsn, folder) == ["0003_add_c"]


async def test_an_edited_file_is_refused_before_anything_is_changed(empty_dsn: str, folder: Path) -> None:
    await migrate(empty_dsn, folder)
    (folder / "0001_create_a.sql").write_text("CREATE TABLE a (id bigint PRIMARY KEY);\n")
    (folder / "0003_add_c.sql").write_text("ALTER TABLE a ADD c int;")

    with pytest.raises(MigrationError, match="0001_create_a was changed"):
        await migrate(empty_dsn, folder)

    assert await query(empty_dsn, "SELECT count(*) FROM schema_migrations") == [(2,)]


async def test_a_newer_database_is_refused(empty_dsn: str, folder: Path) -> None:
    (folder / "0003_add_c.sql").write_text("ALTER TABLE a ADD c int;")
    await migrate(empty_dsn, folder)
    (folder / "0003_add_c.sql").unlink()

    with pytest.raises(MigrationError, match="0003_add_c, which this program does not know"):
        await migrate(empty_dsn, folder)


@pytest.mark.parametrize(
    "names",
    [
        ["0001_create_a.sql", "0003_add_c.sql"],
        ["0002_add_b.sql"],
        ["0001_create_a.sql", "0001_create_b.sql"],
        [],
    ],
    ids=["a gap", "no first", "a number twice", "none at all"],
)
def test_numbers_have_no_gaps(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("SELECT 1;")

    with pytest.raises(MigrationError, match="without gaps"):
        load_migrations(tmp_path)


@pytest.mark.parametrize("name", ["1_create.sql", "0001-create.sql", "0001_Create.sql", "readme.sql"])
def test_a_misnamed_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("SELECT 1;")

    with pytest.raises(MigrationError, match="is not named"):
        load_migrations(tmp_path)


async def test_a_failing_file_leaves_nothing_behind(empty_dsn: str, folder: Path) -> None:
    (folder / "0003_break.sql").write_text("CREATE TABLE c (id int);\nSELECT 1/0;\n")

    with pytest.raises(MigrationError, match="0003_break failed and was rolled back"):
        await migrate(empty_dsn, folder)

    assert await query(empty_dsn, "SELECT to_regclass('c')::text") == [(None,)]
    assert await query(empty_dsn, "SELECT max(version) FROM schema_migrations") == [(2,)]
    (folder / "0003_break.sql").write_text("CREATE TABLE c (id int);\n")
    assert await migrate(empty_dsn, folder) == ["0003_break"]


async def test_four_migrators_at_once_apply_each_file_once(empty_dsn: str, folder: Path) -> None:
    (folder / "0003_index.sql").write_text(
        "-- no-transaction\nDROP INDEX CONCURRENTLY IF EXISTS a_b;\nCREATE INDEX CONCURRENTLY a_b ON a (b);\n"
    )

    applied = await asyncio.gather(*(migrate(empty_dsn, folder) for _ in range(4)))

    assert sorted(applied, key=len) == [[], [], [], ["0001_create_a", "0002_add_b", "0003_index"]]
    assert await query(empty_dsn, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'a_b'::regclass") == [(True,)]


async def test_a_file_without_transaction_may_be_run_again_after_a_failure(empty_dsn: str, folder: Path) -> None:
    await migrate(empty_dsn, folder)
    await query(empty_dsn, "INSERT INTO a VALUES (2, 2) RETURNING id")
    (folder / "0003_unique_b.sql").write_text(
        "-- no-transaction\nDROP INDEX CONCURRENTLY IF EXISTS a_b;\nCREATE UNIQUE INDEX CONCURRENTLY a_b ON a (b);\n"
    )

    with pytest.raises(MigrationError, match="may be half done"):
        await migrate(empty_dsn, folder)
    await query(empty_dsn, "DELETE FROM a WHERE id = 2 RETURNING id")

    assert await migrate(empty_dsn, folder) == ["0003_unique_b"]
    assert await query(empty_dsn, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'a_b'::regclass") == [(True,)]


async def test_a_migrator_gives_up_waiting_for_another(empty_dsn: str, folder: Path) -> None:
    other = await asyncpg.connect(empty_dsn)
    await other.execute("SELECT pg_advisory_lock($1)", runner._LOCK_KEY)

    with pytest.raises(MigrationError, match="still running"):
        await migrate(empty_dsn, folder, timeout_seconds=0.05, poll_seconds=0.01)

    await other.close()
    assert await migrate(empty_dsn, folder) == ["0001_create_a", "0002_add_b"]


async def test_the_lock_is_free_after_a_failure(empty_dsn: str, folder: Path) -> None:
    (folder / "0003_break.sql").write_text("SELECT 1/0;")
    with pytest.raises(MigrationError):
        await migrate(empty_dsn, folder)
    (folder / "0003_break.sql").unlink()

    assert await migrate(empty_dsn, folder, timeout_seconds=0) == []


async def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable):
        await migrate(f"postgresql://tusd@/postgres?host={tmp_path}")


async def test_check_schema_tells_what_is_missing_and_changes_nothing(empty_dsn: str) -> None:
    missing = await check_schema(empty_dsn)

    assert missing == [migration.name for migration in load_migrations()]
    assert await query(empty_dsn, "SELECT to_regclass('schema_migrations')::text") == [(None,)]


async def test_check_schema_is_content_with_a_migrated_database(dsn: str) -> None:
    assert await check_schema(dsn) == []


def test_what_is_pending_is_pure() -> None:
    known = [Migration(1, "0001_a", "SELECT 1"), Migration(2, "0002_b", "SELECT 2")]

    assert pending(known, []) == known
    assert pending(known, [(1, "0001_a", known[0].sha256)]) == known[1:]


# --- where the files are ---------------------------------------------------------------------------


def test_in_a_checkout_they_are_at_its_top() -> None:
    assert migrations_directory() == ROOT / "migrations"


def test_in_an_installation_they_are_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "migrations").mkdir()
    monkeypatch.setattr(runner, "files", lambda _: tmp_path)

    assert migrations_directory() == tmp_path / "migrations"


def test_every_file_says_why_and_why_it_is_safe() -> None:
    for migration in load_migrations():
        header = migration.sql.split("\n\n", 1)[0]
        assert header.startswith("-- "), migration.name
        assert "afe with the previous release" in header, migration.name


async def test_errors_of_before_lose_their_paths(empty_dsn: str, tmp_path: Path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    for path in sorted(migrations_directory().glob("*.sql")):
        if path.name < "0002":
            (before / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    await migrate(empty_dsn, before)
    errors = {
        "The staged bytes of this upload are damaged. (path='/srv/x (1)/y', size=3, expected=5)":
            "The staged bytes of this upload are damaged.",
        "The staged bytes of this upload are missing. (path='/srv/y')": "The staged bytes of this upload are missing.",
        "The store refused, and a retry cannot help. (AccessDenied)":
            "The store refused, and a retry cannot help. (AccessDenied)",
    }  # fmt: skip
    connection = await asyncpg.connect(empty_dsn)
    try:
        for error in errors:
            await connection.execute(
                "INSERT INTO uploads (id, token_hash, node, state, upload_offset, object_key, error)"
                " VALUES ($1, sha256($2), 'n', 'created', 0, $3, $4)",
                uuid.uuid4(), uuid.uuid4().bytes, uuid.uuid4().hex, error,
            )  # fmt: skip
    finally:
        await connection.close()

    await migrate(empty_dsn)

    assert {row[0] for row in await query(empty_dsn, "SELECT error FROM uploads")} == set(errors.values())


async def test_uploads_from_before_places_were_recorded_belong_to_the_place_of_the_first_start(
    empty_dsn: str, tmp_path: Path
) -> None:
    before = tmp_path / "before"
    before.mkdir()
    for path in sorted(migrations_directory().glob("*.sql")):
        if path.name == "0007_record_store_places.sql":
            break
        shutil.copy(path, before)
    await migrate(empty_dsn, before)
    await query(
        empty_dsn,
        "INSERT INTO uploads (id, token_hash, staging_id, state, upload_length, upload_offset, object_key, stored_at)"
        " SELECT gen_random_uuid(), sha256(n::text::bytea), gen_random_uuid(), 'stored', 1, 1, 'k' || n, now()"
        " FROM generate_series(1, 3) AS n",
    )
    await migrate(empty_dsn)
    database = Database(empty_dsn, DatabaseConfig())
    await database.open()
    here = Place("s3", "https://s3.example", "bucket")

    ids = await PlaceRecords(database).register(here, [])
    changed = await PlaceRecords(database).register(Place("filesystem", directory="store"), [here])

    assert await query(empty_dsn, "SELECT DISTINCT place_id FROM uploads") == [(ids[here],)]
    assert changed[here] == ids[here]
    await database.close()


async def test_jobs_from_before_deliveries_are_done_and_their_events_begin_at_one(
    empty_dsn: str, tmp_path: Path
) -> None:
    before = tmp_path / "before"
    before.mkdir()
    for path in sorted(migrations_directory().glob("*.sql")):
        if path.name == "0012_deliver_events.sql":
            break
        shutil.copy(path, before)
    await migrate(empty_dsn, before)
    await query(
        empty_dsn,
        "WITH made AS (INSERT INTO uploads"
        " (id, token_hash, staging_id, state, upload_length, upload_offset, object_key, gone_at)"
        f" SELECT gen_random_uuid(), sha256(state::bytea), '{HERE}', state, 10, 10, state,"
        " CASE state WHEN 'removing' THEN now() END"
        " FROM unnest(ARRAY['completed', 'transferring', 'removing']) AS state RETURNING id, state)"
        " INSERT INTO jobs (upload_id, kind, staging_id, length, state, worker, attempt, started_at, due_at)"
        f" SELECT id, CASE state WHEN 'removing' THEN 'remove' ELSE 'transfer' END, '{HERE}', 10,"
        " CASE state WHEN 'transferring' THEN 'running' ELSE 'queued' END, 'dead', 1, now(), now() FROM made",
    )
    await query(empty_dsn, "INSERT INTO events (upload_id, kind) SELECT id, 'upload.created' FROM uploads")

    await migrate(empty_dsn)

    async with open_world(empty_dsn, tmp_path, empty=False) as world:
        await DeliveryQueue(world.database, worker="w").synchronise(
            [EndpointRecord(name="app", kinds=RECORDED, profiles=frozenset())]
        )
        jobs = await world.jobs("new").claim(10)
        assert sorted(job.kind for job in jobs) == ["remove", "transfer", "transfer"]
        transfers = [(job, stored(job.upload)) for job in jobs if job.kind == "transfer"]
        await world.jobs("new").finish_transfers(transfers)
        await world.jobs("new").finish_removals([job for job in jobs if job.kind == "remove"])
        assert await query(
            empty_dsn,
            "SELECT object_key, array_agg(sequence || ' ' || kind ORDER BY sequence) FROM events"
            " JOIN uploads ON uploads.id = upload_id GROUP BY object_key ORDER BY object_key",
        ) == [
            ("completed", ["1 upload.transferring", "2 upload.stored"]),
            ("removing", ["1 upload.removed"]),
            ("transferring", ["1 upload.stored"]),
        ]
        assert await world.value("SELECT count(*) FROM jobs WHERE kind = 'deliver' AND state = 'queued'") == 3
