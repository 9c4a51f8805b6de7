"""`check-config --connect` as a whole: a real database, a real disk, and what is said when they refuse."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from tests.support.fixtures import MakeConfig
from tests.support.ports import LOOPBACK, free_port
from tusd_py.commands.connection_checks import run_checks
from tusd_py.config import Config
from tusd_py.ports import CheckResult, Outcome
from tusd_py.staging import writers


async def checked(config: Config, *, timeout_seconds: float = 20) -> tuple[bool, dict[str, CheckResult]]:
    results: list[CheckResult] = []
    well = await run_checks(config, results.append, timeout_seconds=timeout_seconds)
    return well, {result.subject: result for result in results}


async def sql(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


def failures(results: dict[str, CheckResult]) -> dict[str, str]:
    return {subject: result.detail for subject, result in results.items() if result.outcome is Outcome.FAILED}


async def test_a_sound_configuration_passes_and_leaves_nothing(make_config: MakeConfig, tmp_path: Path) -> None:
    well, results = await checked(make_config())

    assert well, results
    assert results["database: version"].detail.startswith("PostgreSQL ")
    assert results["database: migrations"].detail == "up to date"
    assert "tables" in results["database: rights"].detail
    assert results["staging: write path"].detail in {"direct", "dontcache", "page-cache"}
    assert "GiB free" in results["staging: space"].detail
    assert list(results)[-1] == "store: remove"
    assert list(tmp_path.iterdir()) == []


async def test_former_stores_are_reached_and_not_written_to(make_config: MakeConfig, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir(mode=0o500)
    former: list[dict[str, Any]] = [
        {"filesystem": {"directory": there}},
        {"filesystem": {"directory": tmp_path / "missing"}},
        {"filesystem": {"directory": tmp_path / "moved"}, "moved": True},
    ]

    well, results = await checked(make_config(storage={"former": former}))

    outcomes = {subject: result.outcome for subject, result in results.items() if subject.startswith("former store")}
    assert outcomes[f"former store: directory {tmp_path / 'missing'}"] is Outcome.FAILED
    assert f"former store: directory {there}" in outcomes
    assert len(outcomes) == 2
    assert not well
    assert list(there.iterdir()) == []
    assert not (tmp_path / "missing").exists()


# --- the database ----------------------------------------------------------------------------------


@pytest.fixture
def empty_dsn(postgres_dsn: str, dsn: str) -> Iterator[str]:
    """A database without our schema."""
    name = f"tusd_empty_{uuid.uuid4().hex[:8]}"
    asyncio.run(sql(postgres_dsn, f"CREATE DATABASE {name}"))
    yield dsn.replace(dsn.partition("?")[0].rpartition("/")[2], name, 1)
    asyncio.run(sql(postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.mark.parametrize("at_start", [True, False])
async def test_missing_migrations_are_named(make_config: MakeConfig, empty_dsn: str, *, at_start: bool) -> None:
    well, results = await checked(make_config(database={"dsn": empty_dsn, "migrate_at_start": at_start}))

    assert well is at_start
    assert "0001_create_uploads" in results["database: migrations"].detail
    assert ("tusd-py migrate" in results["database: migrations"].detail) is not at_start
    connection = await asyncpg.connect(empty_dsn)
    assert await connection.fetchval("SELECT to_regclass('uploads') IS NULL")
    await connection.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE schema_migrations SET sha256 = 'x' WHERE version = 1", "was changed after it was applied"),
        ("INSERT INTO schema_migrations VALUES (9999, '9999_later', 'x', now(), 1)", "it is newer"),
    ],
)
async def test_a_schema_that_is_not_ours_is_refused(make_config: MakeConfig, dsn: str, change: str, said: str) -> None:
    await sql(dsn, change)

    well, results = await checked(make_config())

    assert not well
    assert said in failures(results)["database: migrations"]


@pytest.fixture
def role(postgres_dsn: str, dsn: str) -> Iterator[str]:
    """A role that may connect, read the transfer state and nothing else."""
    name = f"tusd_role_{uuid.uuid4().hex[:8]}"
    asyncio.run(sql(dsn, f"CREATE ROLE {name} LOGIN", f"GRANT SELECT ON schema_migrations TO {name}"))
    yield name
    asyncio.run(sql(dsn, f"DROP OWNED BY {name}", f"DROP ROLE {name}"))


def as_role(dsn: str, role: str) -> str:
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{role}@{host}"))


async def test_missing_rights_are_named_as_they_are_granted(make_config: MakeConfig, dsn: str, role: str) -> None:
    await sql(dsn, f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
    await sql(dsn, f"REVOKE DELETE, UPDATE ON jobs FROM {role}", f"REVOKE ALL ON events FROM {role}")

    well, results = await checked(make_config(database={"dsn": as_role(dsn, role)}))

    assert not well
    granted = failures(results)["database: rights"]
    assert granted == (
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON events TO {role}; GRANT UPDATE, DELETE ON jobs TO {role}"
    )
    # And granting that helps.
    await sql(dsn, *granted.split("; "))
    assert (await checked(make_config(database={"dsn": as_role(dsn, role)})))[0]


async def test_whoever_is_to_migrate_must_be_allowed_to(make_config: MakeConfig, dsn: str, role: str) -> None:
    await sql(dsn, "DELETE FROM schema_migrations WHERE version = (SELECT max(version) FROM schema_migrations)")

    well, results = await checked(make_config(database={"dsn": as_role(dsn, role)}))

    assert not well
    assert "GRANT CREATE" in failures(results)["database: rights"]


async def test_a_database_that_is_away_hides_nothing_else(make_config: MakeConfig) -> None:
    away = f"postgresql://nobody@{LOOPBACK}:{free_port()}/tusd"

    well, results = await checked(make_config(database={"dsn": away}, staging={"reserve": "1000TiB"}))

    assert not well
    assert set(failures(results)) == {"database: connect", "staging: space"}
    assert results["store: remove"].outcome is Outcome.OK


@pytest.mark.parametrize("reachable", [True, False])
async def test_the_connection_for_notifications_is_tried(make_config: MakeConfig, dsn: str, *, reachable: bool) -> None:
    listen = dsn if reachable else f"postgresql://nobody@{LOOPBACK}:{free_port()}/tusd"

    well, results = await checked(make_config(database={"dsn": dsn, "listen_dsn": listen}))

    assert well is reachable
    assert set(failures(results)) == (set() if reachable else {"database: listen_dsn"})


# --- disk and store --------------------------------------------------------------------------------


async def test_the_write_path_is_the_one_that_the_disk_takes(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all = writers.write_all

    def refuse_flags(fd: int, chunks: Any, offset: int, flags: int) -> None:
        if flags:
            raise OSError(95, os.strerror(95))
        write_all(fd, chunks, offset, flags)

    monkeypatch.setattr(writers, "write_all", refuse_flags)

    _, results = await checked(make_config(staging={"reserve": 0, "write_path": "dontcache"}))

    assert results["staging: write path"].detail == "page-cache"


async def test_a_staging_directory_that_cannot_be_is_named(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    well, results = await checked(make_config(staging={"reserve": 0, "directory": tmp_path / "file" / "staging"}))

    assert not well
    assert list(failures(results)) == ["staging: create"]


def s3(**settings: Any) -> dict[str, Any]:
    return {"backend": "s3", "s3": {"bucket": "b", "access_key": "a", "secret_key": "s", **settings}}


async def test_a_store_that_says_nothing_is_not_waited_for(make_config: MakeConfig) -> None:
    let_go = asyncio.Event()

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await let_go.wait()
        writer.close()

    server = await asyncio.start_server(silent, LOOPBACK, 0)
    config = make_config(storage=s3(endpoint_url=f"http://{LOOPBACK}:{server.sockets[0].getsockname()[1]}"))

    async with asyncio.timeout(15):
        well, results = await checked(config, timeout_seconds=2)

    assert not well
    assert failures(results) == {"store": "no answer within 2 s"}
    assert results["staging: remove"].outcome is Outcome.OK
    let_go.set()
    server.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"profile": "no-such-profile"}, "no-such-profile"),
        (
            {"custom_domain": "cdn.example.com", "cloudfront_key_file": __file__, "cloudfront_key_id": "K"},
            "storage.s3.cloudfront_key_file",
        ),
    ],
)
async def test_a_store_that_cannot_be_opened_is_named(
    make_config: MakeConfig, settings: dict[str, Any], said: str
) -> None:
    config = make_config(storage={"backend": "s3", "s3": {"bucket": "b", **settings}})

    well, results = await checked(config)

    assert not well
    assert said in failures(results)["store: open"]
