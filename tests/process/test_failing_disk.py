"""A disk whose sync fails loses bytes; none that was acknowledged may be among them.

`scripts/failing_device.py` shows the same with a real block device, which needs privileges.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.support.blocking_client import OCTETS, BlockingConnection, create, fetch, request
from tests.support.failing_disk import FailingDisk
from tests.support.files import download, seeded
from tests.support.http_client import Response
from tests.support.process import wait_until
from tests.support.server import Server, StartServer

pytestmark = pytest.mark.acceptance

MIB = 2**20
LENGTH = 12 * MIB
CHECKPOINT = 2 * MIB
DEADLINE = 60


@pytest.fixture
def disk(tmp_path: Path) -> FailingDisk:
    return FailingDisk(tmp_path, tmp_path / "server-0/data/staging")


@pytest.fixture
def server(start_server: StartServer, dsn: str, disk: FailingDisk) -> Server:
    # The database is not below the directory; it is not the server's own, so that it is not preloaded either.
    staging = {"checkpoint_bytes": CHECKPOINT, "checkpoint_seconds": "1h", "block_size": "512KiB"}
    return start_server({"staging": staging, "database": {"dsn": dsn}}, env=disk.env)


def patch(server: Server, target: str, offset: int, body: bytes) -> Response:
    return request(server.port, "PATCH", target, {**OCTETS, "Upload-Offset": str(offset)}, body)


def readiness(server: Server) -> tuple[int, str]:
    response = fetch(f"{server.ready.operations_url}/readyz")
    return response.status, response.json()["checks"]["staging"]


def assert_stored(server: Server, upload_id: str, content: bytes) -> None:
    server.wait_for_state(upload_id, "stored", deadline=DEADLINE)
    got = download(f"{server.origin}/download/{upload_id}")
    assert (got.length, got.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("kept", [0, CHECKPOINT + 12345, 3 * CHECKPOINT])
def test_bytes_that_a_failed_sync_has_lost_are_never_acknowledged(server: Server, disk: FailingDisk, kept: int) -> None:
    content = seeded("failing-disk").randbytes(LENGTH)
    created = create(server.port, LENGTH)
    target = created.headers["location"]
    if kept:
        assert patch(server, target, 0, content[:kept]).offset == kept
    disk.fail_once()

    refused = patch(server, target, kept, content[kept:])

    assert disk.has_failed()
    assert refused.status == 500
    assert refused.body.startswith(b"ERR_STORAGE:")
    assert refused.offset == kept
    assert request(server.port, "HEAD", target).offset == kept
    assert server.metrics()["tusd_py_sync_failures_total"] == 1
    assert patch(server, target, kept, content[kept:]).offset == LENGTH
    assert_stored(server, created.headers["upload-id"], content)


def test_a_sync_that_fails_at_the_end_of_a_cut_body_moves_nothing(server: Server, disk: FailingDisk) -> None:
    content = seeded("failing-disk").randbytes(LENGTH)
    created = create(server.port, LENGTH)
    target = created.headers["location"]
    with BlockingConnection(server.port) as connection:
        connection.begin_patch(target, offset=0, length=LENGTH)
        connection.send(content[: CHECKPOINT - 1])
        disk.fail_once()
    wait_until(disk.has_failed, deadline=DEADLINE, what="what had arrived was synced")

    assert request(server.port, "HEAD", target).offset == 0
    assert patch(server, target, 0, content).offset == LENGTH
    assert_stored(server, created.headers["upload-id"], content)


def test_a_failed_sync_outlives_a_kill_without_harm(server: Server, disk: FailingDisk) -> None:
    content = seeded("failing-disk").randbytes(LENGTH)
    created = create(server.port, LENGTH)
    target = created.headers["location"]
    assert patch(server, target, 0, content[:CHECKPOINT]).offset == CHECKPOINT
    disk.fail_once()
    assert patch(server, target, CHECKPOINT, content[CHECKPOINT:]).status == 500

    server.kill_supervisor()
    server.wait_gone()
    server.restart()

    assert request(server.port, "HEAD", target).offset == CHECKPOINT
    assert patch(server, target, CHECKPOINT, content[CHECKPOINT:]).offset == LENGTH
    assert_stored(server, created.headers["upload-id"], content)


def test_a_creation_whose_sync_failed_leaves_nothing(server: Server, disk: FailingDisk) -> None:
    disk.fail_once()
    headers = {"Upload-Length": "5", "Content-Type": OCTETS["Content-Type"]}

    refused = request(server.port, "POST", "/files/", headers, b"hello")

    assert (refused.status, "location" in refused.headers) == (500, False)
    assert list(server.staging.glob("??/*")) == []
    assert request(server.port, "POST", "/files/", headers, b"hello").status == 201


def test_a_node_is_not_ready_after_a_failed_sync_until_a_new_file_can_be_synced(
    server: Server, disk: FailingDisk
) -> None:
    target = create(server.port, LENGTH).headers["location"]
    assert readiness(server) == (200, "ok")
    disk.break_down()
    assert readiness(server) == (200, "ok"), "nothing has failed yet"

    assert patch(server, target, 0, bytes(MIB)).status == 500
    status, reason = readiness(server)
    assert (status, "does not keep a new file" in reason) == (503, True)
    assert readiness(server)[0] == 503
    disk.recover()

    assert readiness(server) == (200, "ok")
    assert patch(server, target, 0, bytes(MIB)).offset == MIB
