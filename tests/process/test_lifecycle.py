"""What an application and an operator do with uploads, against real processes and real S3 servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import blocking_client
from tests.support.blocking_client import fetch, get, upload_whole
from tests.support.cutting_proxy import CuttingProxy, Stall
from tests.support.files import files_under
from tests.support.process import wait_until
from tests.support.s3_servers import S3_SERVERS, S3Server
from tests.support.server import Server, StartServer, tusd_py
from tusd_py.uploads.changes import LOOK_SECONDS

pytestmark = pytest.mark.acceptance

MIB = 2**20
MANUAL = {"transfer": {"trigger": "manual"}}


def call(server: Server, method: str, path: str) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    response = fetch(f"{server.origin}/api/v1/uploads/{path}", method, headers, timeout=70)
    return response.status, response.json() if response.body else {}


# --- waiting ---------------------------------------------------------------------------------------


def test_who_waits_at_one_process_hears_what_another_has_done(start_server: StartServer) -> None:
    server = start_server({**MANUAL, "server": {"processes": 2}})
    _, upload_id = upload_whole(server.url, b"hello")
    seen: list[str] = []

    def follow() -> None:
        while not seen or seen[-1] != "stored":
            seen.append(call(server, "GET", f"{upload_id}?wait=60")[1]["state"])

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    asked = time.monotonic()
    assert call(server, "POST", f"{upload_id}/transfer")[0] == 202
    thread.join(20)
    took = time.monotonic() - asked

    assert not thread.is_alive()
    assert seen[-1] == "stored"
    # Without notifications the first look alone would come later.
    assert took < LOOK_SECONDS


def test_who_waits_is_answered_when_the_server_ends(start_server: StartServer) -> None:
    server = start_server(MANUAL)
    _, upload_id = upload_whole(server.url, b"hello")
    answers: list[tuple[int, dict[str, Any]]] = []
    thread = threading.Thread(target=lambda: answers.append(call(server, "GET", f"{upload_id}?wait=60")), daemon=True)
    thread.start()
    http = psutil.Process(server.ready.http_pids[0])
    wait_until(
        lambda: any(
            one.status == psutil.CONN_ESTABLISHED and one.laddr[1] == server.port for one in http.net_connections("tcp")
        ),
        deadline=30,
        what="the request has arrived",
    )

    assert server.terminate() == 0
    thread.join(5)

    assert [(status, body["state"]) for status, body in answers] == [(200, "completed")]


# --- tusd-py transfer ------------------------------------------------------------------------------


def transfer(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return tusd_py("transfer", "--data-dir", str(server.data_dir), *arguments)


def test_a_transfer_is_ordered_and_followed_from_the_command_line(start_server: StartServer) -> None:
    server = start_server(MANUAL)
    _, upload_id = upload_whole(server.url, b"hello")

    done = transfer(server, upload_id)
    again = transfer(server, upload_id)

    assert (done.returncode, again.returncode) == (0, 0), done.stderr
    states = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert states[-1] == "stored"
    assert set(states) <= {"completed", "transferring", "stored"}
    assert again.stdout.startswith("stored: transfer ")
    assert server.metrics()["tusd_py_completed_to_stored_seconds_count"] == 0
    assert get(f"{server.origin}/download/{upload_id}") == (200, b"hello")


def test_without_a_worker_the_command_says_so_and_does_not_wait_for_ever(start_server: StartServer) -> None:
    server = start_server({"transfer": {"trigger": "manual", "workers": 0}})
    _, upload_id = upload_whole(server.url, b"hello")

    waited = transfer(server, upload_id, "--timeout", "6s")

    assert waited.returncode == 1
    assert "no worker has claimed it" in waited.stdout
    assert "timed out; the transfer continues in the background" in waited.stdout
    assert server.upload_json(upload_id)["state"] == "completed"
    figures = server.metrics()
    assert [figures[f'tusd_py_jobs{{state="{state}"}}'] for state in ("queued", "running", "retry_wait")] == [1, 0, 0]
    assert figures['tusd_py_uploads{state="completed"}'] == 1
    assert figures["tusd_py_oldest_due_job_seconds"] >= 6


def test_the_way_to_the_store_is_counted_and_timed(start_server: StartServer) -> None:
    server = start_server({"profiles": {"default": {"trigger": "complete"}}, "transfer": {"trigger": "manual"}})
    _, upload_id = upload_whole(server.url, b"x" * 1000)
    server.wait_for_state(upload_id, "stored")

    figures = server.metrics()

    assert figures["tusd_py_transferred_bytes_total"] == 1000
    assert {name: value for name, value in figures.items() if name.startswith("tusd_py_transfers_total")} == {
        f'tusd_py_transfers_total{{outcome="{outcome}"}}': float(outcome == "succeeded")
        for outcome in ("succeeded", "retry", "postponed", "failed", "lost", "cancelled")
    }
    assert figures["tusd_py_completed_to_stored_seconds_count"] == 1
    assert 0 < figures["tusd_py_completed_to_stored_seconds_sum"] < 60
    assert figures["tusd_py_oldest_due_job_seconds"] == 0


def test_failed_transfers_are_counted_listed_and_tried_again_from_the_command_line(start_server: StartServer) -> None:
    server = start_server({"transfer": {"trigger": "manual", "max_retries": 0}})
    upload_ids = [upload_whole(server.url, b"hello")[1] for _ in range(2)]
    for file in files_under(server.staging):
        file.write_bytes(b"")

    failed = [transfer(server, upload_id) for upload_id in upload_ids]
    _, listed = get(f"{server.origin}/api/v1/uploads?state=transfer_failed")
    figures = server.metrics()
    for file in files_under(server.staging):
        file.write_bytes(b"hello")
    again = transfer(server, "--failed")

    assert [one.returncode for one in failed] == [1, 1], failed[0].stdout
    assert failed[0].stdout.splitlines()[-1].startswith("transfer_failed: transfer ")
    assert {upload["id"] for upload in json.loads(listed)["uploads"]} == set(upload_ids)
    assert figures['tusd_py_uploads{state="transfer_failed"}'] == 2
    assert figures['tusd_py_transfers_total{outcome="failed"}'] == 2
    assert figures["tusd_py_transferred_bytes_total"] == 0
    assert (again.returncode, again.stdout.strip()) == (0, "2 queued"), again.stderr
    for upload_id in upload_ids:
        server.wait_for_state(upload_id, "stored")
    assert transfer(server, "--failed").stdout.strip() == "0 queued"


def test_who_tries_failed_transfers_again_hears_that_they_wait_for_the_store(start_server: StartServer) -> None:
    server = start_server({"transfer": {"trigger": "manual", "max_retries": 0}})
    failed_id, other_id = (upload_whole(server.url, b"hello")[1] for _ in range(2))
    (staged,) = (file for file in files_under(server.staging) if file.name == failed_id)
    staged.write_bytes(b"")
    assert transfer(server, failed_id).returncode == 1
    staged.write_bytes(b"hello")
    server.store.rmdir()
    transfer(server, other_id, "--timeout", "1ms")
    wait_until(
        lambda: server.metrics()['tusd_py_store_outage_seconds{kind="unreachable"}'] > 0,
        deadline=30,
        what="it is noticed",
    )

    first, second = transfer(server, "--failed"), transfer(server, "--failed")
    server.store.mkdir()

    away = "the store is unreachable; they start once it is back"
    assert first.stdout.splitlines() == ["1 queued", away]
    assert second.stdout.splitlines() == ["0 queued", "1 were queued before and wait for a worker", away]
    for upload_id in (failed_id, other_id):
        server.wait_for_state(upload_id, "stored", deadline=30)


def test_a_transfer_that_makes_no_sense_is_refused(start_server: StartServer) -> None:
    server = start_server(MANUAL)
    unfinished = blocking_client.create(server.port, 5).headers["upload-id"]

    unknown = transfer(server, "00000000-0000-4000-8000-000000000000")
    early = transfer(server, unfinished)

    assert (unknown.returncode, unknown.stderr.splitlines()[-1]) == (1, "tusd-py: There is no such upload.")
    assert (early.returncode, early.stderr.splitlines()[-1]) == (1, "tusd-py: The upload is not complete yet.")
    for arguments in ([], ["x"], ["--failed", unfinished], [unfinished, "--timeout", "soon"]):
        assert transfer(server, *arguments).returncode == 2


def test_a_transfer_needs_a_database_that_has_been_migrated(tmp_path: Path) -> None:
    arguments = ["transfer", "00000000-0000-4000-8000-000000000000", "--data-dir", str(tmp_path / "new")]

    refused = tusd_py(*arguments)

    assert refused.returncode == 1
    assert 'has "tusd-py migrate" been run?' in refused.stderr
    assert "Traceback" not in refused.stderr


# --- removal while a worker sends ------------------------------------------------------------------


def stalled_config(s3: S3Server, proxy: CuttingProxy, **transfer_changes: Any) -> dict[str, Any]:
    storage = s3.storage_config()
    storage["s3"] |= {
        "endpoint_url": f"http://127.0.0.1:{proxy.port}",
        "multipart_threshold": "5MiB",
        "part_size": "5MiB",
        "part_concurrency": 1,
    }
    return {"storage": storage, "transfer": {"lease": "6s", "poll_interval": "1s"} | transfer_changes}


def begin_stalled_transfer(server: Server, proxy: CuttingProxy) -> str:
    """Upload 15 MiB; the worker has sent the first part and hangs in the second when this returns."""
    _, upload_id = upload_whole(server.url, os.urandom(15 * MIB))
    proxy.wait_struck(deadline=30)
    shown = server.wait_for_state(upload_id, "transferring")
    wait_until(
        lambda: server.upload_json(upload_id)["bytes_transferred"] >= 5 * MIB, deadline=20, what="a part is recorded"
    )
    assert shown["attempts"] == 1
    return upload_id


def left_in(s3: S3Server) -> list[Any]:
    found: list[Any] = s3.object_keys()
    if s3.name == "ministack":  # rclone keeps unfinished parts in its memory and lists none
        found += s3.client().list_multipart_uploads(Bucket=s3.bucket).get("Uploads", [])
    return found


@pytest.mark.parametrize("name", S3_SERVERS)
def test_by_force_the_worker_stops_within_a_part_and_nothing_is_left(
    start_server: StartServer, tmp_path: Path, name: str
) -> None:
    with S3_SERVERS[name](tmp_path) as s3, CuttingProxy(s3.port, Stall(7 * MIB)) as proxy:
        server = start_server(stalled_config(s3, proxy))
        upload_id = begin_stalled_transfer(server, proxy)

        assert 5 * MIB <= server.metrics()["tusd_py_transferred_bytes_total"] < 15 * MIB
        status, refused = call(server, "DELETE", upload_id)
        assert (status, refused["code"]) == (409, "ERR_TRANSFER_IN_PROGRESS")
        assert call(server, "DELETE", f"{upload_id}?force=1")[0] == 204

        server.wait_for_state(upload_id, "removed", deadline=30)
        proxy.release()
        assert left_in(s3) == []
        assert files_under(server.staging) == []
        _, history = call(server, "GET", f"{upload_id}/attempts")
        outcomes = [(past["kind"], past["outcome"]) for past in history["attempts"]]
        assert outcomes == [("remove", "succeeded"), ("transfer", "cancelled")]
        assert server.metrics()['tusd_py_transfers_total{outcome="cancelled"}'] == 1


def pid_of(server: Server, worker: str) -> int:
    """Return the process of a worker, by what the server's lock file says of its children."""
    lines = (server.data_dir / "serve.lock").read_text().splitlines()
    return next(int(line.split()[0]) for line in lines if line.endswith(f" {worker}"))


@pytest.mark.parametrize("name", S3_SERVERS)
def test_a_worker_that_was_frozen_does_not_bring_a_removed_upload_back(
    start_server: StartServer, tmp_path: Path, name: str
) -> None:
    with S3_SERVERS[name](tmp_path) as s3, CuttingProxy(s3.port, Stall(7 * MIB)) as proxy:
        server = start_server(stalled_config(s3, proxy, workers=2))
        upload_id = begin_stalled_transfer(server, proxy)
        _, history = call(server, "GET", f"{upload_id}/attempts")
        frozen = psutil.Process(pid_of(server, history["attempts"][0]["worker"]))
        assert frozen.pid in server.ready.worker_pids
        frozen.send_signal(signal.SIGSTOP)
        try:
            assert call(server, "DELETE", f"{upload_id}?force=1")[0] == 204
            server.wait_for_state(upload_id, "removed", deadline=30)
            proxy.release()
        finally:
            frozen.send_signal(signal.SIGCONT)

        found_out = ("lease_ran_out", "lease_lost", "transfer_cancelled")
        wait_until(
            lambda: any(event in server.log_text() for event in found_out),
            deadline=20,
            what="the frozen worker has found out",
        )
        _, other = upload_whole(server.url, b"hello")
        server.wait_for_state(other, "stored")
        assert server.terminate() == 0
        assert len(left_in(s3)) == 1  # the other upload's object
        assert files_under(server.staging) == []
