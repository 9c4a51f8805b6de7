"""What may be wrong when a server starts: a clear sentence, no traceback, and nothing begun in vain."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil
import pytest

from tests.support.blocking_client import get
from tests.support.databases import run_sql
from tests.support.ports import LOOPBACK, free_port
from tests.support.process import wait_until
from tests.support.server import Server, to_toml, tusd_py
from tusd_py.embedded_postgres import EmbeddedPostgres

pytestmark = pytest.mark.acceptance

READY_SECONDS = 60


# --- ports -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["server", "operations"])
def test_a_port_in_use_is_said_before_a_database_is_started(tmp_path: Path, section: str) -> None:
    ports = {"server": free_port(), "operations": free_port()}
    file = tmp_path / "config.toml"
    file.write_text(to_toml({name: {"port": port} for name, port in ports.items()}))
    with socket.create_server((LOOPBACK, ports[section])):
        result = tusd_py("serve", "--config", str(file), "--data-dir", str(tmp_path / "data"))

    assert result.returncode == 2
    assert f"{section}.port: cannot listen on 127.0.0.1:{ports[section]}: Address already in use" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "data" / "postgres").exists()


def test_the_default_operations_port_gives_way_to_whoever_has_it(tmp_path: Path) -> None:
    server = Server(tmp_path)
    # Without operations.port it is the one after the server's.
    (tmp_path / "config.toml").write_text("")
    with socket.create_server((LOOPBACK, server.port + 1)), server:
        ready = server.ready

        assert ready.operations_url == f"http://{LOOPBACK}:{server.port + 2}"
        assert get(f"{ready.operations_url}/healthz") == (200, b"ok\n")
        assert "operations_port_in_use" in server.log_text()


# --- children that are killed before they are ready ---------------------------------------------------


def children_being_started(server: Server) -> list[psutil.Process]:
    """The children of the supervisor, the database's server not among them."""
    if "embedded_postgres_started" not in server.log_text():
        return []
    children = psutil.Process(server.child.pid).children()
    return [child for child in children if child.is_running() and child.name() not in {"postgres", "unshare"}]


def kill_first(server: Server) -> bool:
    try:
        for child in children_being_started(server):
            child.kill()
            return True
    except psutil.NoSuchProcess:
        pass
    return False


def test_a_child_that_is_killed_before_it_is_ready_is_started_again(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.spawn()
    try:
        wait_until(lambda: kill_first(server), deadline=READY_SECONDS, what="a child is there")
        server.wait_ready(READY_SECONDS)
    finally:
        server.close()

    assert "child_died" in server.log_text()


def test_children_that_are_killed_again_and_again_end_the_start(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.spawn()
    try:
        wait_until(
            lambda: (kill_first(server) and False) or not server.child.running,
            deadline=READY_SECONDS,
            what="the start has failed",
        )
    finally:
        server.close()

    assert server.child.exit_code == 1
    assert "start_failed" in server.log_text()
    assert server.log_text().count('"child_died"') > 5


@pytest.mark.parametrize("event", ["embedded_postgres_started", "migration_applied", "staging_directory_new"])
def test_a_database_that_is_killed_before_the_server_is_ready_is_started_again(tmp_path: Path, event: str) -> None:
    server = Server(tmp_path)
    server.spawn()
    try:
        wait_until(lambda: event in server.log_text(), deadline=READY_SECONDS, what=event)
        (pid,) = server.postmaster_pids()
        os.kill(pid, signal.SIGKILL)
        server.wait_ready(READY_SECONDS)
    finally:
        server.close()


# --- the database ------------------------------------------------------------------------------------


@pytest.fixture
def role(postgres_dsn: str, dsn: str) -> Iterator[str]:
    """A role that may log in, and nothing else."""
    name = f"tusd_role_{uuid.uuid4().hex[:8]}"
    asyncio.run(run_sql(dsn, f"CREATE ROLE {name} LOGIN"))
    yield name
    asyncio.run(run_sql(dsn, f"DROP OWNED BY {name}", f"DROP ROLE {name}"))


def as_role(dsn: str, role: str) -> str:
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))


def refusal(tmp_path: Path, dsn: str, command: str = "serve", **database: object) -> str:
    """Return the one line that a command ends with."""
    file = tmp_path / "config.toml"
    file.write_text(
        to_toml({"data_dir": str(tmp_path / "data"), "database": {"dsn": dsn, **database}, "server": {"port": 0}})
    )

    result = tusd_py(command, "--config", str(file))

    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("tusd-py: ")]
    return line


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_user_who_may_not_migrate_is_told_what_to_grant(tmp_path: Path, dsn: str, role: str, command: str) -> None:
    asyncio.run(run_sql(dsn, "DROP TABLE schema_migrations CASCADE"))

    line = refusal(tmp_path, as_role(dsn, role), command)

    assert line.startswith("tusd-py: database.dsn: its user lacks a right (permission denied for schema public")
    assert "GRANT USAGE, CREATE ON SCHEMA" in line


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_user_who_may_not_write_is_told_what_to_grant(tmp_path: Path, dsn: str, role: str, command: str) -> None:
    line = refusal(tmp_path, as_role(dsn, role), command, migrate_at_start=False)

    assert line.startswith("tusd-py: database.dsn: its user lacks rights; as the tables' owner: GRANT ")
    assert f"GRANT SELECT, INSERT, UPDATE, DELETE ON uploads TO {role}" in line


def test_a_database_that_does_not_exist_is_named(tmp_path: Path, dsn: str) -> None:
    parts = urlsplit(dsn)

    line = refusal(tmp_path, urlunsplit(parts._replace(path="/not_found")))

    assert line.startswith('tusd-py: database.dsn: database "not_found" does not exist: create it')


def test_a_wrong_password_is_said_without_showing_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    postgres = EmbeddedPostgres(tmp_path / "outside" / "postgres")
    postgres.start()
    try:
        hba = tmp_path / "outside" / "postgres" / "pg_hba.conf"
        hba.write_text(f"local all locked scram-sha-256\n{hba.read_text()}")
        asyncio.run(run_sql(postgres.dsn, "CREATE ROLE locked LOGIN PASSWORD 'right'", "SELECT pg_reload_conf()"))
        parts = urlsplit(postgres.dsn)

        line = refusal(tmp_path, urlunsplit(parts._replace(netloc="locked:hush@")))
    finally:
        postgres.stop()

    assert line.startswith("tusd-py: database.dsn: the server refuses the login (password authentication failed")
    assert "hush" not in line


# --- check-config ------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--connect"]])
def test_a_quiet_check_prints_nothing_of_a_sound_configuration(tmp_path: Path, more: list[str]) -> None:
    file = tmp_path / "config.toml"
    file.write_text(to_toml({"data_dir": str(tmp_path / "data"), "logging": {"level": "warning"}}))

    result = tusd_py("check-config", "--quiet", *more, "--config", str(file))

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_quiet_check_prints_every_problem(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[server]\nprot = 1\n[database]\ndsn = 'mysql://h/d'\n")

    result = tusd_py("check-config", "--quiet", "--config", str(file), env={"TUSD_SERVER__HOTS": "::1"})

    assert (result.returncode, result.stdout) == (2, "")
    lines = sorted(result.stderr.splitlines())
    assert lines[0].startswith('tusd-py: database.dsn: begins with "mysql://"')
    assert lines[1:] == [
        "tusd-py: server.hots: unknown key (from the environment: TUSD_SERVER__HOTS); did you mean server.host?",
        "tusd-py: server.prot: unknown key; did you mean server.port?",
    ]
