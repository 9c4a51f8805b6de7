"""What dies in the middle of a transfer costs moments, not a lease: the real server, killed in parts."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.blocking_client import get, upload_whole
from tests.support.process import wait_until
from tests.support.s3_fault_proxy import Kind, S3FaultProxy
from tests.support.s3_servers import rclone_s3
from tests.support.server import Server, StartServer

pytestmark = pytest.mark.acceptance

MIB = 2**20
CONTENT = os.urandom(16 * MIB)
"""More than the buffers between a worker and a store that does not read."""
LEASE = "1h"
DEADLINE_SECONDS = 90


class HeldStore:
    """Lets no request of a body pass, nor any after it, until it is opened."""

    def __init__(self) -> None:
        self.held = threading.Event()
        self._opened = threading.Event()

    def __call__(self, operation: str) -> Kind | None:
        if operation in {"PutObject", "UploadPart"} and not self._opened.is_set():
            self.held.set()
            self._opened.wait(DEADLINE_SECONDS)
        return None

    def open(self) -> None:
        self._opened.set()


def kill_worker(server: Server) -> None:
    for pid in server.ready.worker_pids:
        os.kill(pid, signal.SIGKILL)


def kill_postgres(server: Server) -> None:
    for pid in server.postmaster_pids():
        os.kill(pid, signal.SIGKILL)


def kill_everything(server: Server) -> None:
    pids = server.ready.pids
    for pid in pids[1:]:
        os.kill(pid, signal.SIGKILL)
    server.kill_supervisor()


def answers(server: Server) -> bool:
    try:
        return get(f"{server.origin}/api/v1/uploads")[0] == 200
    except OSError:
        return False


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kill", [kill_worker, kill_postgres, kill_everything])
def test_a_kill_during_a_transfer_costs_no_lease(
    start_server: StartServer, tmp_path: Path, kill: Callable[[Server], None]
) -> None:
    store = HeldStore()
    with rclone_s3(tmp_path) as s3, S3FaultProxy(s3.endpoint_url, store) as proxy, contextlib.ExitStack() as opened:
        opened.callback(store.open)
        storage = s3.storage_config()
        storage["s3"]["endpoint_url"] = proxy.origin
        server = start_server({"storage": storage, "transfer": {"lease": LEASE}})
        _, upload_id = upload_whole(server.url, CONTENT)
        assert store.held.wait(DEADLINE_SECONDS)
        assert server.upload_json(upload_id)["state"] == "transferring"

        kill(server)
        store.open()
        if kill is kill_everything:
            server.restart(60)
        wait_until(lambda: answers(server), deadline=60, what="the API answers again")

        view = server.wait_for_state(upload_id, "stored", deadline=DEADLINE_SECONDS)
        # One, if the database was back before the transfer had anything to tell it.
        assert view["attempts"] <= 2
        assert len(s3.object_keys()) == 1
