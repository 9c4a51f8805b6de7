"""What operators meet: the command line, health and metrics, signals, systemd, logs."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tests.support import blocking_client
from tests.support.blocking_client import OCTETS, BlockingConnection, fetch, get, upload_whole
from tests.support.ports import LOOPBACK, free_port
from tests.support.process import is_alive, wait_until
from tests.support.s3_servers import rclone_s3
from tests.support.server import PROGRAM, StartServer, to_toml, tusd_py
from tests.support.tools import ROOT

pytestmark = pytest.mark.acceptance


# --- the operations listener -----------------------------------------------------------------------


def test_health_readiness_and_metrics_are_answered_off_the_public_port(start_server: StartServer) -> None:
    server = start_server()
    upload_whole(server.url, b"x" * 1000)

    health, ready = get(f"{server.ready.operations_url}/healthz"), get(f"{server.ready.operations_url}/readyz")
    metrics = get(f"{server.ready.operations_url}/metrics")[1].decode()

    assert health == (200, b"ok\n")
    assert ready[0] == 200
    assert json.loads(ready[1]) == {
        "ready": True, "degraded": [], "checks": {"database": "ok", "staging": "ok", "store": "ok"},
    }  # fmt: skip
    assert "tusd_py_ready 1.0" in metrics
    for check in ("database", "staging", "store"):
        assert f'tusd_py_degraded{{check="{check}"}} 0.0' in metrics
    assert "tusd_py_received_bytes_total 1000.0" in metrics
    assert 'tusd_py_requests_total{method="POST",status="201"} 1.0' in metrics
    assert metrics.count("tusd_py_staging_free_bytes ") == 3  # HELP, TYPE and one sample, no copy per process
    assert get(f"{server.origin}/metrics")[0] == 404
    assert get(f"{server.origin}/readyz")[0] == 404


def test_errors_read_the_same_where_docstrings_are_stripped(start_server: StartServer) -> None:
    """`python -OO` takes docstrings and assertions away; no sentence may come from one, no step hang on the other."""
    server = start_server(env={"PYTHONOPTIMIZE": "2"})
    upload_whole(server.url, b"0123456789")

    status, body = get(f"{server.origin}/api/v1/uploads/00000000-0000-0000-0000-000000000000")

    assert status == 404
    assert json.loads(body)["detail"] == "There is no such upload."


def test_metrics_of_all_processes_are_one_sum(start_server: StartServer) -> None:
    server = start_server({"server": {"processes": 2}})
    for _ in range(20):
        upload_whole(server.url, b"0123456789")

    metrics = get(f"{server.ready.operations_url}/metrics")[1].decode()

    assert "tusd_py_received_bytes_total 200.0" in metrics
    assert "tusd_py_uploads_created_total 20.0" in metrics


def test_readiness_names_a_database_that_is_away(start_server: StartServer) -> None:
    server = start_server()
    for pid in server.postmaster_pids():
        # Stopped, not ended: the supervisor would start another one.
        os.kill(pid, signal.SIGSTOP)
        children = [child.pid for child in psutil.Process(pid).children()]
        for child in children:
            os.kill(child, signal.SIGSTOP)
    try:
        status, body = get(f"{server.ready.operations_url}/readyz")
    finally:
        for pid in server.postmaster_pids():
            for child in psutil.Process(pid).children():
                os.kill(child.pid, signal.SIGCONT)
            os.kill(pid, signal.SIGCONT)

    assert status == 503
    assert json.loads(body)["checks"]["database"] != "ok"
    assert json.loads(body)["checks"]["store"] == "ok"


def test_readiness_names_a_staging_disk_without_space(start_server: StartServer) -> None:
    server = start_server({"staging": {"reserve": 2**62}})

    status, body = get(f"{server.ready.operations_url}/readyz")

    assert status == 503
    assert json.loads(body)["ready"] is False
    assert json.loads(body)["degraded"] == []
    assert "no space left" in json.loads(body)["checks"]["staging"]
    assert (server.metrics()["tusd_py_ready"], server.metrics()['tusd_py_degraded{check="staging"}']) == (0, 1)


# --- processes -------------------------------------------------------------------------------------


def test_a_child_that_dies_is_replaced_and_uploads_go_on(start_server: StartServer) -> None:
    server = start_server()
    path, upload_id = upload_whole(server.url, b"hello")
    server.wait_for_state(upload_id, "stored")
    for pid in (*server.ready.http_pids, *server.ready.worker_pids):
        os.kill(pid, signal.SIGKILL)

    server.wait_replaced(*server.ready.http_pids, *server.ready.worker_pids)
    _, second = upload_whole(server.url, b"again")

    assert get(f"{server.origin}{path}") == (200, b"hello")
    server.wait_for_state(second, "stored")


def test_an_embedded_database_that_dies_is_started_again(start_server: StartServer) -> None:
    server = start_server()
    path, _ = upload_whole(server.url, b"hello")
    before = server.postmaster_pids()
    os.kill(before[0], signal.SIGKILL)

    def answered() -> bool:
        try:
            return get(f"{server.origin}{path}") == (200, b"hello")
        except OSError:
            return False

    # What the killed server left of its sessions may still answer for a moment.
    wait_until(lambda: server.postmaster_pids() != before, deadline=30, what="another server runs")
    wait_until(answered, deadline=30, what="the upload is served again")


def test_nothing_survives_a_kill_of_the_supervisor_and_the_next_start_is_clean(start_server: StartServer) -> None:
    server = start_server()
    path, upload_id = upload_whole(server.url, b"hello")
    server.wait_for_state(upload_id, "stored")
    pids = [*server.ready.pids, *server.postmaster_pids()]

    server.kill_supervisor()
    wait_until(lambda: not any(map(is_alive, pids)), deadline=25, what="every process is gone")
    server.restart()

    assert get(f"{server.origin}{path}") == (200, b"hello")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_order(start_server: StartServer, number: signal.Signals) -> None:
    server = start_server()
    pids = [*server.ready.pids, *server.postmaster_pids()]

    server.child.signal(number)
    status = server.child.wait(20)

    assert status == 0
    assert not any(map(is_alive, pids))


def test_systemd_is_told_when_the_server_is_ready_and_when_it_stops(start_server: StartServer, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(20)
        server = start_server(env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        first = channel.recv(100)
        server.terminate()
        second = channel.recv(100)

    assert (first, second) == (b"READY=1", b"STOPPING=1")


def test_a_port_in_use_is_said_in_one_line(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()

    result = tusd_py("serve", "--port", str(server.port), "--data-dir", str(tmp_path / "other"))

    assert result.returncode == 2
    assert f"tusd-py: server.port: cannot listen on 127.0.0.1:{server.port}: Address already in use" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unusable_data_directory_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    result = tusd_py("serve", "--port", "0", "--data-dir", str(tmp_path / "file" / "data"))

    assert result.returncode == 2
    assert "data_dir" in result.stderr
    assert "Traceback" not in result.stderr


# --- the log ---------------------------------------------------------------------------------------


def test_the_log_has_one_line_per_request_with_ids_and_without_tokens(start_server: StartServer) -> None:
    server = start_server()
    path, upload_id = upload_whole(server.url, b"hello")
    token = path.rpartition("/")[2]
    assert fetch(f"{server.origin}{path}", "HEAD", {"X-Request-ID": "my-request"}).status == 200
    server.wait_for_state(upload_id, "stored")
    server.terminate()

    lines = [json.loads(line) for line in server.log_text().splitlines() if line.startswith("{")]
    heads = [line for line in lines if line["event"] == "request" and line["method"] == "HEAD"]

    assert [(line["request_id"], line["upload_id"], line["status"]) for line in heads] == [
        ("my-request", upload_id, 200)
    ]
    assert {"transfer_succeeded", "ready", "request"} <= {line["event"] for line in lines}
    assert token not in server.log_text()
    assert all({"timestamp", "level"} <= line.keys() for line in lines)


# --- the command line ------------------------------------------------------------------------------


def test_check_config_prints_what_is_in_force_with_secrets_masked(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(to_toml({"server": {"port": 4000}, "auth": {"mode": "jwt", "jwt": {"secret": "s3cret" * 8}}}))

    result = tusd_py("check-config", "--config", str(file), env={"TUSD_LIMITS__MAX_SIZE": "5GiB"})

    assert result.returncode == 0, result.stderr
    assert "port = 4000" in result.stdout
    assert "s3cret" not in result.stdout
    assert "max_size" in result.stdout


def test_check_config_names_every_problem_with_its_key(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[server]\nprot = 1\nport = "eighty"\n[storage]\nbackend = "s3"\n')

    result = tusd_py("check-config", "--config", str(file))

    assert result.returncode == 2
    assert "server.prot: unknown key" in result.stderr
    assert "server.port:" in result.stderr
    assert "storage.s3.bucket:" in result.stderr


def test_check_config_connects_and_shows_what_it_may(tmp_path: Path) -> None:
    result = tusd_py("check-config", "--connect", "--data-dir", str(tmp_path / "data"))

    assert result.returncode == 0, result.stdout + result.stderr
    assert "ok      database: migrations" in result.stdout
    assert "ok      staging: space" in result.stdout
    assert "ok      store: rename" in result.stdout


def test_check_config_names_the_right_that_is_missing(tmp_path: Path) -> None:
    with rclone_s3(tmp_path) as server:
        storage = server.storage_config()
        storage["s3"] |= {"bucket": "another-bucket"}
        file = tmp_path / "config.toml"
        file.write_text(to_toml({"data_dir": str(tmp_path / "data"), "storage": storage}))

        result = tusd_py("check-config", "--connect", "--timeout", "30", "--config", str(file))

    assert result.returncode == 2, result.stdout + result.stderr
    lines = [line.split() for line in result.stdout.splitlines() if " s3:" in line]
    assert lines[0][:2] == ["FAILED", "s3:ListBucket"]
    assert "NoSuchBucket:" in lines[0]
    assert {line[0] for line in lines[1:]} == {"skipped"}


def test_check_config_warns_of_what_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(to_toml({"storage": {"backend": "s3", "s3": {"bucket": "b", "verify_tls": False}}}))

    result = tusd_py("check-config", "--config", str(file))

    assert result.returncode == 0
    assert "warning: storage.s3.verify_tls:" in result.stderr


def test_a_missing_configuration_file_is_an_error(tmp_path: Path) -> None:
    result = tusd_py("serve", "--config", str(tmp_path / "not_found.toml"))

    assert result.returncode == 2
    assert "not_found.toml" in result.stderr


def test_other_than_loopback_without_authentication_refuses_to_start(tmp_path: Path) -> None:
    result = tusd_py("serve", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path))

    assert result.returncode == 2
    assert "auth.mode" in result.stderr
    assert not (tmp_path / "postgres").exists()


def test_migrate_works_on_the_embedded_database_and_says_what_it_did(tmp_path: Path) -> None:
    first = tusd_py("migrate", "--data-dir", str(tmp_path / "data"))
    second = tusd_py("migrate", "--data-dir", str(tmp_path / "data"))

    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert "applied 0001_create_uploads" in first.stdout
    assert "up to date" in second.stdout


def test_a_worker_of_its_own_moves_what_a_server_without_workers_received(start_server: StartServer) -> None:
    server = start_server({"transfer": {"workers": 0}})
    _, upload_id = upload_whole(server.url, b"hello")
    assert server.upload_json(upload_id)["state"] == "completed"

    worker = subprocess.Popen(
        [PROGRAM, "worker", "--data-dir", server.data_dir], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        server.wait_for_state(upload_id, "stored")
    finally:
        worker.terminate()

    assert worker.wait(20) == 0


def test_an_outside_database_serves_as_well(start_server: StartServer, dsn: str) -> None:
    server = start_server({"database": {"dsn": dsn}})
    _, upload_id = upload_whole(server.url, b"hello")

    server.wait_for_state(upload_id, "stored")

    assert not (server.data_dir / "postgres").exists()


def test_the_server_runs_as_an_ordinary_user() -> None:
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    home = Path(tempfile.mkdtemp(prefix="tusd-user-"))
    os.chown(home, user.pw_uid, user.pw_gid)
    port = free_port()
    packages = [str(Path(aiohttp.__file__).parents[1]), str(ROOT)]
    code = f"import sys; sys.path[:0] = {packages!r}; from tusd_py.cli import main; sys.exit(main())"
    with (home / "log").open("wb") as log:
        child = subprocess.Popen(
            [_python_for(user), "-c", code, "serve", "--port", str(port), "--data-dir", str(home / "data")],
            **_identity(user),
            env={"PATH": "/usr/bin:/bin", "HOME": str(home), "TUSD_READY_FILE": str(home / "ready")},
            cwd=home,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: (home / "ready").exists() or child.poll() is not None, deadline=30, what="ready")
        assert child.poll() is None, (home / "log").read_text()
        path, _ = upload_whole(f"http://{LOOPBACK}:{port}/files/", b"hello")
        assert get(f"http://{LOOPBACK}:{port}{path}") == (200, b"hello")
        assert {file.stat().st_uid for file in (home / "data").rglob("*")} == {user.pw_uid}
    finally:
        child.terminate()
        child.wait(20)
        shutil.rmtree(home)
    assert child.returncode == 0


def _identity(user: pwd.struct_passwd) -> dict[str, Any]:
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}


def _python_for(user: pwd.struct_passwd) -> str:
    """This interpreter if the user may run it, else the system's own, which is of the same version here."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        probe = [candidate, "-c", "import sys; print(sys.version_info[:2])"]
        try:
            seen = subprocess.run(probe, capture_output=True, text=True, **_identity(user))
        except PermissionError:
            continue
        if seen.returncode == 0 and seen.stdout.strip() == str(sys.version_info[:2]):
            return candidate
    pytest.fail("no Python of this version that an ordinary user may run")


def test_draining_answers_a_running_upload_with_its_true_offset(start_server: StartServer) -> None:
    server = start_server()
    path = blocking_client.create(server.port, 1_000_000).headers["location"]
    with BlockingConnection(server.port, timeout=20) as connection:
        connection.send_head("PATCH", path, {**OCTETS, "Upload-Offset": "0", "Content-Length": "1000000"})
        connection.send(b"x" * 300_000)
        staged = wait_until(lambda: list(server.staging.glob("*/*")), deadline=30, what="the file is open")

        server.child.signal(signal.SIGTERM)
        answer = connection.read_response()
    server.child.wait(20)

    assert staged
    assert (answer.status, answer.offset) == (503, 300_000)
    server.restart()
    assert fetch(f"{server.origin}{path}", "HEAD").offset == 300_000


def test_a_database_that_is_killed_while_it_starts_again_is_started_once_more(start_server: StartServer) -> None:
    server = start_server()
    path, _ = upload_whole(server.url, b"hello")
    killed: set[int] = set(server.postmaster_pids())
    os.kill(next(iter(killed)), signal.SIGKILL)

    def another() -> int | None:
        pids = [pid for pid in server.postmaster_pids() if pid not in killed and is_alive(pid)]
        return pids[0] if pids else None

    second = wait_until(another, deadline=20, what="the database is being started")
    killed.add(second)
    os.kill(second, signal.SIGKILL)

    def answered() -> bool:
        try:
            return get(f"{server.origin}{path}") == (200, b"hello")
        except OSError:
            return False

    wait_until(answered, deadline=30, what="the upload is served again")
    assert server.child.running
