"""An S3 that is away, or refuses, delays and never loses: no upload pays for it with a retry."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.blocking_client import get, upload_whole
from tests.support.files import download, files_under
from tests.support.ports import is_listening
from tests.support.process import wait_until
from tests.support.s3_servers import ACCESS_KEY, S3Server, rclone_s3
from tests.support.server import Server, StartServer

pytestmark = pytest.mark.acceptance

NO_RETRY = {"retry_delay": "1h", "retry_max_delay": "1h", "max_retries": 0}
"""A single failure would be the end."""
DEADLINE = 40


def config_for(s3: S3Server) -> dict[str, Any]:
    storage = s3.storage_config()
    storage["s3"]["client"] = {"connect_timeout": "1s", "max_attempts": 1}
    return {"storage": storage, "transfer": NO_RETRY}


def wait_for_transfer(server: Server, upload_id: str, state: str) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        view = server.upload_json(upload_id)
        return view if view["transfer"]["state"] == state and view["last_error"] else None

    return wait_until(reached, deadline=DEADLINE, what=f"the transfer is {state}")


def start_again(s3: S3Server) -> None:
    s3.child.start()
    s3.child.wait_ready(lambda: is_listening(s3.port), deadline=20, what="rclone listens again")


def log_lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log_text().splitlines() if line.startswith("{")]


def test_uploads_complete_and_are_served_from_staging_until_s3_is_back(
    start_server: StartServer, tmp_path: Path
) -> None:
    content = os.urandom(300_000)
    with rclone_s3(tmp_path) as s3:
        config = config_for(s3)
        config["storage"]["s3"]["location"] = "below"
        server = start_server(config)
        s3.child.stop()

        path, upload_id = upload_whole(server.url, content)
        seen = wait_for_transfer(server, upload_id, "retry_wait")
        assert seen["state"] == "transferring"
        status, ready = get(f"{server.ready.operations_url}/readyz")
        assert (status, json.loads(ready)["ready"], json.loads(ready)["degraded"]) == (200, True, ["store"])
        assert json.loads(ready)["checks"]["store"] != "ok"
        gauges = server.metrics()
        assert (gauges["tusd_py_ready"], gauges['tusd_py_degraded{check="store"}']) == (1, 1)
        assert seen["next_attempt_at"] is None
        assert get(f"{server.origin}{path}") == (200, content)
        wait_until(
            lambda: server.metrics()['tusd_py_store_outage_seconds{kind="unreachable"}'] > 0,
            deadline=DEADLINE,
            what="the outage is in the metrics",
        )
        _, later_id = upload_whole(server.url, b"later")

        start_again(s3)
        stored = server.wait_for_state(upload_id, "stored", deadline=DEADLINE)
        later = server.wait_for_state(later_id, "stored", deadline=DEADLINE)

        metrics = server.metrics()
        assert metrics['tusd_py_transfers_total{outcome="retry"}'] == 0
        assert metrics['tusd_py_transfers_total{outcome="postponed"}'] == stored["attempts"] + later["attempts"] - 2
        assert metrics['tusd_py_store_outage_seconds{kind="unreachable"}'] == 0
        assert metrics['tusd_py_degraded{check="store"}'] == 0
        _, history = get(f"{server.origin}/api/v1/uploads/{upload_id}/attempts")
        outcomes = [past["outcome"] for past in json.loads(history)["attempts"]]
        assert outcomes == ["succeeded", *["postponed"] * (stored["attempts"] - 1)]
        assert download(f"{server.origin}/download/{upload_id}").sha256 == hashlib.sha256(content).hexdigest()
        key = f"below/{stored['object_key']}"
        assert stored["location"] == {"backend": "s3", "bucket": s3.bucket, "key": key}
        assert key in s3.object_keys()
        assert len(s3.object_keys()) == 2
        wait_until(lambda: not files_under(server.staging), deadline=DEADLINE, what="staging is empty")


def test_a_worker_that_is_killed_while_s3_is_away_has_a_successor_that_goes_on(
    start_server: StartServer, tmp_path: Path
) -> None:
    with rclone_s3(tmp_path) as s3:
        config = config_for(s3)
        server = start_server(config | {"transfer": config["transfer"] | {"workers": 2}})
        s3.child.stop()
        _, upload_id = upload_whole(server.url, b"hello")
        wait_for_transfer(server, upload_id, "retry_wait")
        killed = server.ready.worker_pids
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        server.wait_replaced(*killed)

        start_again(s3)
        stored = server.wait_for_state(upload_id, "stored", deadline=DEADLINE)

    assert stored["attempts"] == 2
    assert [line["event"] for line in log_lines(server)].count("store_away") == 1


def test_wrong_credentials_block_until_the_store_accepts_them(start_server: StartServer, tmp_path: Path) -> None:
    with rclone_s3(tmp_path) as s3:
        config = config_for(s3)
        config["storage"]["s3"]["secret_key"] = "another secret"
        server = start_server(config)
        _, upload_id = upload_whole(server.url, b"hello")
        blocked = wait_for_transfer(server, upload_id, "blocked")
        metrics = server.metrics()
        s3.child.stop()
        s3.child.env["RCLONE_AUTH_KEY"] = f'"{ACCESS_KEY},another secret"'
        start_again(s3)

        server.wait_for_state(upload_id, "stored", deadline=DEADLINE)

    assert blocked["state"] == "transferring"
    assert blocked["error_code"] == "ERR_STORE_BLOCKED"
    assert "SignatureDoesNotMatch" in blocked["last_error"]
    assert metrics['tusd_py_jobs{state="blocked"}'] == 1
    assert metrics['tusd_py_store_outage_seconds{kind="blocked"}'] > 0
    assert [line["event"] for line in log_lines(server) if line["level"] == "error"].count("store_blocked") == 1


def test_credentials_that_are_corrected_by_a_restart_resume(start_server: StartServer, tmp_path: Path) -> None:
    with rclone_s3(tmp_path) as s3:
        config = config_for(s3)
        right = config["storage"]["s3"].pop("secret_key")
        server = start_server(config, env={"TUSD_STORAGE__S3__SECRET_KEY": "wrong"})
        _, upload_id = upload_whole(server.url, b"hello")
        wait_for_transfer(server, upload_id, "blocked")
        server.terminate()
        server.child.env["TUSD_STORAGE__S3__SECRET_KEY"] = right
        server.restart()

        server.wait_for_state(upload_id, "stored", deadline=DEADLINE)


def test_a_missing_bucket_blocks_until_it_is_made(start_server: StartServer, tmp_path: Path) -> None:
    with rclone_s3(tmp_path) as s3:
        config = config_for(s3)
        config["storage"]["s3"]["bucket"] = "not-there-yet"
        server = start_server(config)
        _, upload_id = upload_whole(server.url, b"hello")
        blocked = wait_for_transfer(server, upload_id, "blocked")
        s3.client().create_bucket(Bucket="not-there-yet")

        server.wait_for_state(upload_id, "stored", deadline=DEADLINE)

    assert "NoSuchBucket" in blocked["last_error"]
