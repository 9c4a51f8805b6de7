"""The real server sends parts to S3 while their upload is still being received."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.blocking_client import OCTETS, TUS, fetch
from tests.support.files import download, files_under
from tests.support.http_client import Response
from tests.support.process import wait_until
from tests.support.s3_servers import S3Server, ministack_s3, rclone_s3
from tests.support.server import Server, StartServer

pytestmark = pytest.mark.acceptance

MIB = 2**20
PART = 5 * MIB
LENGTH = 4 * PART + 1234
CONTENT = random.Random(11).randbytes(LENGTH)
SERVERS = {"rclone": rclone_s3, "ministack": ministack_s3}


def config_for(s3: S3Server) -> dict[str, Any]:
    """Small parts, and no upload too short to be sent early."""
    storage = s3.storage_config()
    storage["s3"] |= {"part_size": PART, "multipart_threshold": PART}
    storage["s3"]["client"] = {"max_attempts": 1, "connect_timeout": "1s"}
    transfer = {
        "eager_above": PART, "lease": "2s",
        "retry_delay": "200ms", "retry_max_delay": "400ms", "max_retries": 1000,
    }  # fmt: skip
    return {"storage": storage, "transfer": transfer, "tus": {"expire_after": "1h"}}


def ask(method: str, url: str, headers: dict[str, str], body: bytes = b"") -> Response:
    """Send a request that succeeds."""
    response = fetch(url, method, {**TUS, **headers}, body)
    assert response.status < 300, response
    return response


def create(server: Server) -> tuple[str, str]:
    """Create an upload; return its URL and its id."""
    created = ask("POST", server.url, {"Upload-Length": str(LENGTH)})
    return server.absolute(created.headers["location"]), created.headers["upload-id"]


def append(url: str, start: int, end: int) -> None:
    """Append a piece of the content."""
    assert ask("PATCH", url, {**OCTETS, "Upload-Offset": str(start)}, CONTENT[start:end]).offset == end


def parts_of(s3: S3Server) -> list[int]:
    """The numbers of the parts that the server holds of unfinished objects."""
    client = s3.client()
    try:
        uploads = client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads", ())
        listed = [client.list_parts(Bucket=s3.bucket, Key=one["Key"], UploadId=one["UploadId"]) for one in uploads]
    except client.exceptions.NoSuchUpload:  # so rclone says that there is none; or it has ended just now
        return []
    return [part["PartNumber"] for answer in listed for part in answer.get("Parts", ())]


@pytest.mark.parametrize("name", SERVERS)
def test_parts_reach_s3_before_the_upload_is_complete(start_server: StartServer, tmp_path: Path, name: str) -> None:
    with SERVERS[name](tmp_path) as s3:
        server = start_server(config_for(s3))
        url, upload_id = create(server)

        append(url, 0, 2 * PART + 5)
        wait_until(lambda: parts_of(s3) == [1, 2], deadline=20, what="two parts are at S3")
        wait_until(
            lambda: server.upload_json(upload_id)["bytes_transferred"] == 2 * PART, deadline=30, what="both are told"
        )
        assert server.upload_json(upload_id)["state"] == "uploading"
        assert s3.object_keys() == []

        append(url, 2 * PART + 5, 3 * PART)
        wait_until(lambda: parts_of(s3) == [1, 2, 3], deadline=20, what="three parts are at S3")

        # The next worker goes on where this one stopped.
        for pid in server.ready.worker_pids:
            os.kill(pid, signal.SIGKILL)
        append(url, 3 * PART, LENGTH)
        server.wait_for_state(upload_id, "stored", deadline=30)

        found = download(f"{server.origin}/download/{upload_id}")
        assert found.sha256 == hashlib.sha256(CONTENT).hexdigest()
        assert parts_of(s3) == []
        assert len(s3.object_keys()) == 1
        wait_until(lambda: not files_under(server.staging), deadline=30, what="staging is empty")


def test_an_upload_that_is_given_up_leaves_no_part_at_s3(start_server: StartServer, tmp_path: Path) -> None:
    with rclone_s3(tmp_path) as s3:
        server = start_server(config_for(s3))
        url, _ = create(server)
        append(url, 0, 2 * PART)
        wait_until(lambda: parts_of(s3) == [1, 2], deadline=20, what="two parts are at S3")

        ask("DELETE", url, {})

        wait_until(lambda: not parts_of(s3), deadline=20, what="the parts are gone")
        wait_until(lambda: not files_under(server.staging), deadline=30, what="staging is empty")
        assert s3.object_keys() == []


def test_an_s3_that_is_away_does_not_slow_the_client(start_server: StartServer, tmp_path: Path) -> None:
    with rclone_s3(tmp_path) as s3:
        server = start_server(config_for(s3))
        url, upload_id = create(server)
        s3.child.stop()

        append(url, 0, PART)
        # Otherwise the whole of it may be here before the worker has looked at its beginning.
        wait_until(lambda: "job_postponed" in server.log_text(), deadline=30, what="sending early has been put off")
        for start in range(PART, LENGTH, PART):
            append(url, start, min(start + PART, LENGTH))
        assert server.upload_json(upload_id)["state"] in {"completed", "transferring"}

        s3.child.start()
        server.wait_for_state(upload_id, "stored", deadline=40)
        assert download(f"{server.origin}/download/{upload_id}").sha256 == hashlib.sha256(CONTENT).hexdigest()
