"""What dies in the middle of a transfer costs moments, not a lease: the real server, killed in parts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.blocking_client import get, upload_whole
from tests.support.process import wait_until
from tests.support.s3_servers import rclone_s3
from tests.support.server import Server, StartServer

pytestmark = pytest.mark.acceptance

BYTES_PER_SECOND = 256 * 1024
CONTENT = os.urandom(4 * BYTES_PER_SECOND)
LEASE = "1h"
DEADLINE_SECONDS = 90


def kill_worker(server: Server) -> None:
    for pid in server.ready.worker_pids:
        os.kill(pid, signal.SIGKILL)


def kill_postgres(server: Server) -> None:
    for pid in server.postmaster_pids():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: answers(server), deadline=60, what="the API answers again")


def answers(server: Server) -> bool:
    try:
        return get(f"{server.origin}/api/v1/uploads")[0] == 200
    except OSError:
        return False


def kill_everything(server: Server) -> None:
    pids = server.ready.pids
    for pid in pids[1:]:
        os.kill(pid, signal.SIGKILL)
    server.kill_supervisor()
    server.restart(60)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kill", [kill_worker, kill_postgres, kill_everything])
def test_a_kill_during_a_transfer_costs_no_lease(
    start_server: StartServer, tmp_path: Path, kill: Callable[[Server], None]
) -> None:
    with rclone_s3(tmp_path) as s3:
        transfer = {"lease": LEASE, "bandwidth_limit": BYTES_PER_SECOND}
        server = start_server({"storage": s3.storage_config(), "transfer": transfer})
        _, upload_id = upload_whole(server.url, CONTENT)
        wait_until(
            lambda: server.upload_json(upload_id)["state"] == "transferring", deadline=30, what="a worker has it"
        )

        kill(server)

        view = server.wait_for_state(upload_id, "stored", deadline=DEADLINE_SECONDS)
        # One, if the database was back before the transfer had anything to tell it.
        assert view["attempts"] <= 2
        assert len(s3.object_keys()) == 1
