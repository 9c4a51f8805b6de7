"""`tusd-py reconcile` beside a running server: what it prints, how it ends, and that it may be killed."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.support.blocking_client import upload_whole
from tests.support.databases import dsn_for, run_sql
from tests.support.files import files_under
from tests.support.s3_servers import S3_SERVERS
from tests.support.server import Server, StartServer, to_toml
from tests.support.tools import require_tool
from tusd_py.embedded_postgres import EmbeddedPostgres

pytestmark = pytest.mark.acceptance

CONTENT = b"0123456789" * 1000
OLD_SECONDS = 7200
COMMAND_SECONDS = 120
PIPE_BYTES = 4096
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TUSD_")}


def command(directory: Path, data_dir: Path, *options: str) -> list[str | Path]:
    program = require_tool("tusd-py", at=Path(sys.executable).with_name("tusd-py"), install="pip install -e .")
    return [program, "reconcile", "--config", directory / "config.toml", "--data-dir", data_dir, *options]


def reconcile(server: Server, *options: str) -> subprocess.CompletedProcess[str]:
    argv = command(server.data_dir.parent, server.data_dir, *options)
    return subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_SECONDS, env=ENVIRONMENT)


def sql(server: Server, statement: str) -> None:
    """Run a statement in the server's own database."""

    async def run(dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute(statement)
        await connection.close()

    postgres = EmbeddedPostgres(server.data_dir / "postgres")
    postgres.start()
    assert not postgres.owned
    asyncio.run(run(postgres.dsn))


def let_time_pass(server: Server) -> None:
    """Let everything be two hours old."""
    sql(server, "UPDATE uploads SET updated_at = now() - interval '2 hours', stored_at = now() - interval '2 hours'")
    then = time.time() - OLD_SECONDS
    for path in (*server.staging.rglob("*-*"), *server.store.rglob("*-*")):
        os.utime(path, (then, then))


def stored(server: Server) -> str:
    _, upload_id = upload_whole(server.url, CONTENT)
    server.wait_for_state(upload_id, "stored")
    return upload_id


def orphan(server: Server) -> Path:
    name = str(uuid.uuid4())
    path = server.staging / name[-2:] / name
    path.write_bytes(b"orphan")
    return path


def object_of(server: Server, upload_id: str) -> Path:
    (path,) = server.store.rglob(upload_id)
    return path


def test_damage_is_reported_then_repaired_and_then_in_order(start_server: StartServer) -> None:
    server = start_server({"transfer": {"delete_local": False}})
    kept, lost = stored(server), stored(server)
    file, victim = orphan(server), object_of(server, lost)
    victim.unlink()
    let_time_pass(server)

    reported = reconcile(server)

    assert (reported.returncode, file.exists(), victim.exists()) == (1, True, False), reported.stderr
    lines = reported.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["object_missing", lost], ["orphan_file", file.name]]
    assert "9.8 KiB    2h  would queue the transfer again, from the staged bytes" in lines[0]
    assert "6 B    2h  would move it to unclaimed/" in lines[1]
    assert lines[2:] == [
        "2 uploads, 3 files, 1 objects, 0 multiparts",
        "foreign and not touched: 0 objects, 0 multiparts",
        "findings: 2 (1 object_missing, 1 orphan_file)",
        "repaired: 0, left: 2",
    ]
    logged = json.loads(reported.stderr.splitlines()[-1])
    assert (logged["event"], logged["level"], logged["findings"], logged["left"]) == ("reconciled", "warning", 2, 2)

    repaired = reconcile(server, "--repair", "--json")

    assert repaired.returncode == 0, repaired.stderr
    *findings, last = [json.loads(line) for line in repaired.stdout.splitlines()]
    assert [(one["kind"], one["id"], one["result"]) for one in findings] == [
        ("object_missing", lost, "repaired"), ("orphan_file", file.name, "repaired"),
    ]  # fmt: skip
    assert (last["summary"]["repaired"], last["summary"]["left"]) == (2, 0)
    assert not file.exists()

    server.wait_for_state(lost, "stored")
    assert victim.read_bytes() == object_of(server, kept).read_bytes() == CONTENT
    let_time_pass(server)
    again = reconcile(server)
    assert again.returncode == 0, again.stdout
    assert again.stdout.splitlines()[-2:] == ["findings: 1 (1 unclaimed_file)", "repaired: 0, left: 0"]


def test_an_object_that_was_deleted_from_a_shared_bucket_is_sent_again(
    start_server: StartServer, tmp_path: Path
) -> None:
    with S3_SERVERS["ministack"](tmp_path) as s3:
        storage = s3.storage_config()
        storage["s3"]["location"] = "shared"
        server = start_server({"storage": storage, "transfer": {"delete_local": False}})
        lost, client = stored(server), s3.client()
        (key,) = s3.object_keys()
        client.delete_object(Bucket=s3.bucket, Key=key)
        client.put_object(Bucket=s3.bucket, Key="shared/theirs", Body=b"theirs")
        theirs = client.create_multipart_upload(Bucket=s3.bucket, Key="shared/their-video")["UploadId"]
        let_time_pass(server)

        reported, repaired = reconcile(server), reconcile(server, "--repair")

        assert (reported.returncode, repaired.returncode) == (1, 0), repaired.stderr
        assert f"object_missing        {lost}" in reported.stdout
        assert "foreign and not touched: 1 objects, 1 multiparts" in repaired.stdout
        server.wait_for_state(lost, "stored")
        assert client.get_object(Bucket=s3.bucket, Key=key)["Body"].read() == CONTENT
        assert client.get_object(Bucket=s3.bucket, Key="shared/theirs")["Body"].read() == b"theirs"
        (left,) = client.list_multipart_uploads(Bucket=s3.bucket)["Uploads"]
        assert left["UploadId"] == theirs
        let_time_pass(server)
        assert reconcile(server).returncode == 0


def test_what_cannot_be_mended_keeps_the_status_and_stays(start_server: StartServer) -> None:
    server = start_server()
    lost = stored(server)
    object_of(server, lost).unlink()
    let_time_pass(server)

    for result in ("marked", "left"):
        run = reconcile(server, "--repair", "--json")
        assert run.returncode == 1
        assert json.loads(run.stdout.splitlines()[0])["result"] == result
    assert server.upload_json(lost)["state"] == "stored"


def test_the_margin_keeps_what_is_young(start_server: StartServer) -> None:
    server = start_server()
    file = orphan(server)
    _, upload_id = upload_whole(server.url, CONTENT)
    server.wait_for_state(upload_id, "stored")
    os.utime(file, (time.time() - 300, time.time() - 300))

    assert reconcile(server, "--repair").returncode == 0
    assert file.exists()
    assert reconcile(server, "--repair", "--margin", "2m").returncode == 0
    assert not file.exists()
    for nonsense in ("1s", "soon", "-1h"):
        refused = reconcile(server, "--repair", f"--margin={nonsense}")
        assert refused.returncode == 2
        assert "cleanup.reconcile_margin" in refused.stderr


def test_a_run_that_is_killed_is_simply_repeated(start_server: StartServer) -> None:
    server = start_server()
    upload_id = stored(server)
    files = [orphan(server) for _ in range(1500)]
    let_time_pass(server)
    argv = command(server.data_dir.parent, server.data_dir, "--repair")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0, env=ENVIRONMENT) as run:
        assert run.stdout is not None
        fcntl.fcntl(run.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        # It tells of each file it has mended, and cannot go on for long when nobody reads that.
        said = b""
        while b"orphan_file" not in said:
            said += run.stdout.read(PIPE_BYTES)
            assert run.poll() is None, said
        run.kill()
    assert run.returncode == -signal.SIGKILL
    left = sum(file.exists() for file in files)
    assert 0 < left < len(files)

    assert reconcile(server, "--repair").returncode == 0

    assert not any(file.exists() for file in files)
    assert server.upload_json(upload_id)["state"] == "stored"
    assert reconcile(server).returncode == 0


@pytest.mark.parametrize("missing", ["database", "server", "staging", "store"])
def test_a_run_that_cannot_compare_says_so_and_makes_nothing(
    missing: str, start_server: StartServer, tmp_path: Path
) -> None:
    if missing in {"database", "server"}:
        configuration: dict[str, Any] = {} if missing == "database" else {
            "database": {"dsn": "postgresql://nobody@127.0.0.1:1/none"}
        }  # fmt: skip
        (tmp_path / "config.toml").write_text(to_toml(configuration))
        data_dir = tmp_path / "data"
        for name in ("staging", "store") if missing == "server" else ():
            (data_dir / name).mkdir(parents=True)
    else:
        server = start_server()
        server.terminate()
        data_dir, tmp_path = server.data_dir, server.data_dir.parent
        (data_dir / missing).rename(data_dir / "elsewhere")
    before = files_under(data_dir) if data_dir.exists() else None

    argv = command(tmp_path, data_dir, "--repair")
    run = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_SECONDS, env=ENVIRONMENT)

    assert run.returncode == 2, run.stdout
    assert "tusd-py: " in run.stderr
    assert "Traceback" not in run.stderr
    if before is None:
        assert not data_dir.exists()
    if missing in {"staging", "store"}:
        assert not (data_dir / missing).exists()


def test_a_database_without_our_tables_is_no_finding(postgres_dsn: str, tmp_path: Path) -> None:
    """An error that nobody foresaw must not look like findings either."""
    name = f"tusd_bare_{uuid.uuid4().hex[:8]}"
    asyncio.run(run_sql(postgres_dsn, f"CREATE DATABASE {name}"))
    (tmp_path / "config.toml").write_text(to_toml({"database": {"dsn": dsn_for(postgres_dsn, name)}}))
    for directory in ("staging", "store"):
        (tmp_path / "data" / directory).mkdir(parents=True)

    argv = command(tmp_path, tmp_path / "data", "--repair")
    run = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_SECONDS, env=ENVIRONMENT)
    asyncio.run(run_sql(postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)"))

    assert (run.returncode, run.stdout) == (2, "")
    assert 'relation "staging_directories" does not exist' in run.stderr
