"""A staging directory and its database: what a first start makes of them, and which pairs are refused."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.support.databases import dsn_for, run_sql
from tests.support.fixtures import MakeConfig
from tests.support.world import new_upload
from tusd_py.app import Records, adopt, identify, make_core, make_records, plan_adoption, running
from tusd_py.config import Config
from tusd_py.database.migrate import load_migrations, migrate
from tusd_py.errors import DatabaseUnavailable, StagingMismatch
from tusd_py.metrics import Metrics
from tusd_py.protocol.upload import StagingId
from tusd_py.staging.identity import ID_FILE, read_id, write_id

FIRST = load_migrations()[0]


@pytest.fixture
def first_version_dsn(postgres_dsn: str, tmp_path: Path) -> Iterator[str]:
    """A database as it was before directories had ids."""
    directory = tmp_path / "migrations"
    directory.mkdir()
    (directory / f"{FIRST.name}.sql").write_text(FIRST.sql)
    name = f"tusd_first_{uuid.uuid4().hex[:12]}"
    asyncio.run(run_sql(postgres_dsn, f"CREATE DATABASE {name}"))
    asyncio.run(migrate(dsn_for(postgres_dsn, name), directory))
    yield dsn_for(postgres_dsn, name)
    asyncio.run(run_sql(postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)"))


@contextlib.asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Records]:
    records = make_records(config)
    await records.database.open()
    try:
        yield records
    finally:
        await records.database.close()


async def identified(config: Config) -> StagingId:
    async with opened(config) as records:
        await identify(records)
        return records.identity.id


def stage(config: Config, upload_id: Any, content: bytes = b"0123456789") -> Path:
    path = config.staging_directory / str(upload_id)[-2:] / str(upload_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


async def received(config: Config, **changes: Any) -> uuid.UUID:
    """A staged upload of the directory."""
    async with opened(config) as records:
        await identify(records)
        new = new_upload(offset=10, **({"staging_id": records.identity.id} | changes))
        await records.uploads.create(new)
    stage(config, new.id)
    return new.id


LEGACY = """
INSERT INTO uploads (id, token_hash, node, state, upload_length, upload_offset, object_key, completed_at)
VALUES ($1::uuid, sha256($1::uuid::text::bytea), $2, $3::text, 10, $4, $1::uuid::text,
        CASE WHEN $3::text = 'completed' THEN now() END)
"""
LEGACY_JOB = "INSERT INTO jobs (upload_id, kind, node, length) VALUES ($1, 'transfer', $2, 10)"


async def legacy(dsn: str, node: str, state: str = "uploading", offset: int = 5) -> uuid.UUID:
    """An upload of the first version."""
    upload_id = uuid.uuid4()
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(LEGACY, upload_id, node, state, offset)
        if state == "completed":
            await connection.execute(LEGACY_JOB, upload_id, node)
    finally:
        await connection.close()
    return upload_id


async def staging_ids(config: Config, table: str = "uploads") -> list[StagingId]:
    async with opened(config) as records:
        return [row["staging_id"] for row in await records.database.fetch(f"SELECT staging_id FROM {table}")]


# --- a first start ---------------------------------------------------------------------------------


async def test_a_new_directory_gets_an_id_that_stays(make_config: MakeConfig) -> None:
    config = make_config()

    first, again = await identified(config), await identified(config)

    assert first == again == read_id(config.staging_directory)
    async with opened(config) as records:
        (row,) = await records.database.fetch("SELECT id, node, path FROM staging_directories")
    assert (row["id"], row["node"], row["path"]) == (first, config.node, str(config.staging_directory))


async def test_of_processes_that_begin_at_once_all_take_the_same_id(make_config: MakeConfig) -> None:
    config = make_config()

    ids = await asyncio.gather(*(identified(config) for _ in range(8)))

    assert set(ids) == {read_id(config.staging_directory)}


async def test_a_start_that_was_killed_before_the_file_was_written_is_repeated(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()

    def killed(*_: Any) -> bool:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr("tusd_py.app.identity.write_id", killed)
        with pytest.raises(RuntimeError):
            await identified(config)

    staging_id = await identified(config)

    async with opened(config) as records:
        assert [row["id"] for row in await records.database.fetch("SELECT id FROM staging_directories")] == [staging_id]


async def test_a_directory_of_the_first_version_takes_the_uploads_of_its_node(
    make_config: MakeConfig, first_version_dsn: str
) -> None:
    here, there = await legacy(first_version_dsn, "n1"), await legacy(first_version_dsn, "n2")
    whole = await legacy(first_version_dsn, "n1", "completed", 10)
    config = make_config(database={"dsn": first_version_dsn}, server={"node": "n1"})
    stage(config, here)
    stage(config, whole)

    await migrate(first_version_dsn)
    staging_id = await identified(config)

    async with opened(config) as records:
        rows = {row["id"]: row["staging_id"] for row in await records.database.fetch("SELECT * FROM uploads")}
    assert rows[here] == rows[whole] == staging_id
    assert rows[there] != staging_id  # it waits for the first start of its own node
    assert await staging_ids(config, "jobs") == [staging_id]


async def test_a_directory_of_the_first_version_is_known_by_its_files_whatever_its_nodes_were_called(
    make_config: MakeConfig, first_version_dsn: str
) -> None:
    """A container has another host name after every start."""
    uploads = [await legacy(first_version_dsn, f"container-{number}") for number in range(3)]
    without_a_byte = await legacy(first_version_dsn, "container-1", "created", 0)
    config = make_config(database={"dsn": first_version_dsn}, server={"node": "container-9"})
    for upload_id in uploads:
        stage(config, upload_id)

    await migrate(first_version_dsn)
    staging_id = await identified(config)

    assert without_a_byte
    assert set(await staging_ids(config)) == {staging_id}


async def test_a_disk_that_is_not_mounted_at_the_first_start_is_noticed(
    make_config: MakeConfig, first_version_dsn: str
) -> None:
    await legacy(first_version_dsn, "n1")
    config = make_config(database={"dsn": first_version_dsn}, server={"node": "n1"})
    await migrate(first_version_dsn)

    with pytest.raises(StagingMismatch, match="a disk may not be mounted"):
        await identified(config)

    assert not config.staging_directory.exists()


# --- refusals --------------------------------------------------------------------------------------


async def test_another_database_is_refused_and_nothing_is_made(make_config: MakeConfig, other_dsn: str) -> None:
    config = make_config()
    await identified(config)
    before = sorted(config.staging_directory.rglob("*"))

    with pytest.raises(StagingMismatch, match="tusd-py staging adopt"):
        async with running(make_core(make_config(database={"dsn": other_dsn}), Metrics())):
            pass

    assert sorted(config.staging_directory.rglob("*")) == before


async def test_files_beside_a_database_without_any_upload_are_refused(make_config: MakeConfig) -> None:
    """The first start of this version, and without its `dsn`."""
    config = make_config()
    stage(config, uuid.uuid4())

    with pytest.raises(StagingMismatch, match="knows no upload at all"):
        await identified(config)

    assert read_id(config.staging_directory) is None


async def test_a_copy_without_its_id_is_refused_until_it_is_adopted(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    await received(config)
    staging_id = read_id(config.staging_directory)
    (config.staging_directory / ID_FILE).unlink()

    with pytest.raises(StagingMismatch, match="without its file"):
        await identified(config)
    async with opened(config) as records:
        await adopt(records, await plan_adoption(records, None))

    assert await identified(config) == staging_id


async def test_a_damaged_id_is_refused_until_it_is_adopted(make_config: MakeConfig) -> None:
    config = make_config()
    await received(config)
    staging_id = read_id(config.staging_directory)
    (config.staging_directory / ID_FILE).write_text("no id\n")

    with pytest.raises(StagingMismatch, match="does not hold an id"):
        await identified(config)
    async with opened(config) as records:
        await adopt(records, await plan_adoption(records, None))

    assert await identified(config) == staging_id


async def test_without_a_database_only_a_directory_with_an_id_is_trusted(make_config: MakeConfig) -> None:
    """A process that is replaced while the database is away serves as soon as it is back."""
    not_found = {"dsn": "postgresql://nobody@127.0.0.1:9/nothing", "connect_timeout": 1}
    with pytest.raises(DatabaseUnavailable):
        await identified(make_config(database=not_found))
    staging_id = await identified(make_config())

    assert await identified(make_config(database=not_found)) == staging_id


# --- adopting --------------------------------------------------------------------------------------


async def test_adopting_shows_what_is_there_and_makes_an_unknown_directory_known(
    make_config: MakeConfig, other_dsn: str
) -> None:
    upload_id = await received(make_config())
    staging_id = read_id(make_config().staging_directory)
    config = make_config(database={"dsn": other_dsn})

    async with opened(config) as records:
        adoption = await plan_adoption(records, None)
        shown = "\n".join(adoption.describe())
        await adopt(records, adoption)

    assert f"{staging_id}, unknown to the database" in shown
    assert "files of uploads: 1, 10 bytes" in shown
    assert "knows 0 of these files" in shown
    assert await identified(config) == staging_id
    assert stage(config, upload_id).exists()


async def test_adopting_prefers_the_directory_that_the_database_has_the_files_in(make_config: MakeConfig) -> None:
    config = make_config()
    await received(config)
    staging_id = read_id(config.staging_directory)
    write_id(config.staging_directory, StagingId(uuid.uuid4()), replace=True)

    with pytest.raises(StagingMismatch):
        await identified(config)
    async with opened(config) as records:
        await adopt(records, await plan_adoption(records, None))

    assert await identified(config) == staging_id


async def test_files_of_several_directories_want_a_choice(make_config: MakeConfig, tmp_path: Path) -> None:
    config, other = make_config(), make_config(data_dir=tmp_path / "other")
    await received(config)
    thrown_in = await received(other)
    stage(config, thrown_in)
    chosen = read_id(other.staging_directory)
    assert chosen is not None

    async with opened(config) as records:
        with pytest.raises(StagingMismatch, match="--id"):
            await plan_adoption(records, None)
        with pytest.raises(StagingMismatch, match="knows no staging directory"):
            await plan_adoption(records, StagingId(uuid.uuid4()))
        await adopt(records, await plan_adoption(records, chosen))

    assert await identified(config) == chosen
