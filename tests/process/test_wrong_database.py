"""A server that is started once with the wrong database: it refuses, and every staged byte stays."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.support.blocking_client import OCTETS, create, request
from tests.support.databases import dsn_for, run_sql
from tests.support.files import seeded
from tests.support.process import wait_until
from tests.support.server import START_SECONDS, STOP_SECONDS, Config, Server

pytestmark = pytest.mark.acceptance

MIB = 2**20
CONTENT = seeded("wrong database").randbytes(3 * MIB)
SENT = 2 * MIB
LONG_AGO = time.time() - 90 * 86400
HASTY = {"cleanup": {"interval": "200ms"}}


def on(directory: Path, dsn: str | None) -> Server:
    """A server on one data directory, with a database of its own if none is given."""
    config: Config = HASTY if dsn is None else {**HASTY, "database": {"dsn": dsn}}
    return Server(directory, config)


def refusal(server: Server) -> str:
    """Start a server that does not want to serve; return what it says."""
    server.spawn()
    try:
        assert server.child.wait(START_SECONDS + STOP_SECONDS) == 1
    finally:
        server.close()
    return server.log_text()


def command(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("tusd-py")
    config = server.child.argv[server.child.argv.index("--config") + 1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TUSD_")}
    return subprocess.run(
        [program, *words, "--config", config, "--data-dir", server.data_dir],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, env=inherited,
    )  # fmt: skip


def begun(server: Server) -> str:
    """An upload of which 2 MiB are acknowledged; its file looks very old."""
    target = create(server.port, len(CONTENT)).headers["location"]
    sent = request(server.port, "PATCH", target, {**OCTETS, "Upload-Offset": "0"}, CONTENT[:SENT])
    assert sent.status == 204
    (path,) = server.staging.glob("??/*")
    os.utime(path, (LONG_AGO, LONG_AGO))
    return target


@pytest.mark.parametrize("without_dsn", [True, False])
def test_one_start_with_another_database_removes_nothing(
    without_dsn: bool, dsn: str, other_dsn: str, tmp_path: Path
) -> None:
    with on(tmp_path / "server", dsn) as server:
        target = begun(server)
        server.terminate()

    said = refusal(on(tmp_path / "server", None if without_dsn else other_dsn))

    assert "does not know the staging directory" in said
    assert "tusd-py staging adopt" in said
    assert "Traceback" not in said
    with on(tmp_path / "server", dsn) as server:
        assert request(server.port, "HEAD", target).offset == SENT
        rest = request(server.port, "PATCH", target, {**OCTETS, "Upload-Offset": str(SENT)}, CONTENT[SENT:])
        assert rest.status == 204


@pytest.mark.parametrize("words", [["worker"], ["reconcile", "--repair"], ["transfer", "--failed"]])
def test_commands_refuse_as_well(words: list[str], dsn: str, other_dsn: str, tmp_path: Path) -> None:
    with on(tmp_path / "server", dsn) as server:
        begun(server)
        server.terminate()
    files = sorted(server.staging.rglob("*"))

    refused = command(on(tmp_path / "server", other_dsn), *words)

    assert refused.returncode != 0
    assert "does not know the staging directory" in refused.stderr
    assert sorted(server.staging.rglob("*")) == files


def test_adopting_asks_and_then_goes_on(dsn: str, other_dsn: str, tmp_path: Path) -> None:
    with on(tmp_path / "server", dsn) as server:
        begun(server)
        server.terminate()
    moved = on(tmp_path / "server", other_dsn)

    shown = command(moved, "staging", "adopt")
    assert shown.returncode == 1
    assert "files of uploads: 1" in shown.stdout
    assert "nothing was changed" in shown.stdout
    assert "does not know the staging directory" in refusal(on(tmp_path / "server", other_dsn))

    assert command(moved, "staging", "adopt", "--yes").returncode == 0
    with on(tmp_path / "server", other_dsn) as server:
        assert create(server.port, 5).status == 201


def copied(postgres_dsn: str, dsn: str) -> str:
    """A backup of a database that nobody uses at this moment, restored under another name."""
    name, source = f"tusd_copy_{uuid.uuid4().hex[:12]}", dsn.partition("?")[0].rpartition("/")[2]
    asyncio.run(run_sql(postgres_dsn, f"CREATE DATABASE {name} TEMPLATE {source}"))
    return dsn_for(postgres_dsn, name)


def test_an_older_restored_database_loses_no_newer_file(postgres_dsn: str, dsn: str, tmp_path: Path) -> None:
    """Cleaned up beside the older one, found again beside the newer one."""
    with on(tmp_path / "server", dsn) as server:
        server.terminate()
    older = copied(postgres_dsn, dsn)
    try:
        with on(tmp_path / "server", dsn) as server:
            target = begun(server)
            (staged,) = server.staging.glob("??/*")
            server.terminate()

        with on(tmp_path / "server", older) as server:
            assert request(server.port, "HEAD", target).status == 404
            aside = server.staging / "unclaimed" / staged.name
            wait_until(aside.exists, deadline=30, what="the file is set aside")
            assert aside.read_bytes() == CONTENT[:SENT]
            assert server.metrics()["tusd_py_unclaimed_bytes"] == SENT
            listed = command(server, "reconcile")
            assert listed.returncode == 0, listed.stdout
            assert f"unclaimed_file        {staged.name}" in listed.stdout
            server.terminate()

        with on(tmp_path / "server", dsn) as server:
            mended = command(server, "reconcile", "--repair")
            assert mended.returncode == 0, mended.stdout
            assert staged.exists()
            assert not aside.exists()
            assert request(server.port, "HEAD", target).offset == SENT
            rest = request(server.port, "PATCH", target, {**OCTETS, "Upload-Offset": str(SENT)}, CONTENT[SENT:])
            assert rest.status == 204
    finally:
        name = older.partition("?")[0].rpartition("/")[2]
        asyncio.run(run_sql(postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)"))
