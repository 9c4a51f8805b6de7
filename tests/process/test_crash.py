"""kill -9 at random moments: no acknowledged byte is lost, and what is finished is stored once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter, deque
from pathlib import Path

import pytest

from tests.support.cutting_proxy import CuttingProxy, Stall
from tests.support.files import download, files_under, seeded, sha256_of
from tests.support.process import wait_until
from tests.support.resuming_client import ClientUpload, ResumingClient
from tests.support.s3_servers import rclone_s3
from tests.support.server import Server, StartServer

pytestmark = pytest.mark.acceptance

MIB = 2**20
UPLOADS = 60
VICTIMS = ("http",) * 4 + ("worker",) * 3 + ("supervisor",) * 2 + ("database",) * 2
# A successor takes over from a killed worker in seconds instead of minutes.
IMPATIENT = {"lease": "2s", "poll_interval": "1s", "retry_delay": "1s"}


class Killer:
    """Kills a process each time the uploads together have come to the next random byte."""

    def __init__(self, server: Server, rng: random.Random, total: int) -> None:
        self.server = server
        self.killed: list[str] = []
        self._rng = rng
        victims = list(VICTIMS)
        rng.shuffle(victims)
        moments = sorted(rng.sample(range(total // 20, total - total // 20), len(victims)))
        self._plan = deque(zip(moments, victims, strict=True))
        self._acknowledged = 0
        self._struck = asyncio.Event()
        self.armed = asyncio.Event()
        """Cleared from a kill to the replacement. Who sends only while it is set is there for the next kill."""
        self.armed.set()
        self._pid = 0

    def acknowledged(self, count: int) -> None:
        """Count newly acknowledged bytes; at the next moment of the plan, kill at once."""
        self._acknowledged += count
        if self.armed.is_set() and self._plan and self._acknowledged >= self._plan[0][0]:
            self._kill(self._plan.popleft()[1])

    async def run(self) -> None:
        """Wait for each replacement before the next process may die; end with the plan."""
        while self._plan or not self.armed.is_set():
            await self._struck.wait()
            self._struck.clear()
            await self._recovered()
            self.armed.set()
            self.acknowledged(0)  # the next moment may have passed meanwhile

    def _kill(self, victim: str) -> None:
        ready = self.server.ready
        self.armed.clear()
        pids = {
            "http": ready.http_pids,
            "worker": ready.worker_pids,
            "supervisor": (ready.supervisor_pid,),
            "database": [*self.server.postmasters()],
        }
        self._pid = self._rng.choice(pids[victim])
        os.kill(self._pid, signal.SIGKILL)
        self.killed.append(victim)
        self._struck.set()

    async def _recovered(self) -> None:
        if self.killed[-1] == "supervisor":
            self.server.kill_supervisor()  # it is dead already: this only reaps it
            self.server.spawn()
            await asyncio.to_thread(self.server.wait_ready)
            await asyncio.to_thread(self.server.wait_gone)
        elif self.killed[-1] == "database":
            await asyncio.to_thread(self._wait_for_another_database)
        else:
            await asyncio.to_thread(self.server.wait_replaced, self._pid)

    def _wait_for_another_database(self) -> None:
        def another() -> bool:
            postmasters = self.server.postmasters()
            return [*postmasters.values()] == ["ready"] and self._pid not in postmasters

        wait_until(another, deadline=20, what="the database was started again")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("processes", [1, 2])
async def test_no_acknowledged_byte_is_lost_and_every_upload_is_stored_once(
    processes: int, start_server: StartServer
) -> None:
    rng = seeded("crash")
    server = start_server({"server": {"processes": processes}, "transfer": IMPATIENT})
    uploads = [
        ClientUpload(rng.randbytes(rng.randint(1, 3 * MIB)), random.Random(rng.random())) for _ in range(UPLOADS)
    ]
    killer = Killer(server, rng, sum(len(upload.content) for upload in uploads))

    async with ResumingClient(server.url, on_acknowledged=killer.acknowledged, may_send=killer.armed) as client:
        for upload in uploads:
            await client.create(upload)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(killer.run())
            for upload in uploads:
                tasks.create_task(client.run(upload, deadline=120))

    print(killer.killed, sum((upload.statuses for upload in uploads), Counter()))
    assert sorted(killer.killed) == sorted(VICTIMS)
    assert sum(upload.resumed for upload in uploads) > 0, "no upload noticed any kill"
    await asyncio.to_thread(_assert_all_stored_once, server, uploads)


def _assert_all_stored_once(server: Server, uploads: list[ClientUpload]) -> None:
    for upload in uploads:
        info = server.wait_for_state(upload.id, "stored", deadline=60)
        assert info["offset"] == info["length"] == len(upload.content)
        assert download(f"{server.origin}/download/{upload.id}").sha256 == upload.sha256
    stored = {path.name: sha256_of(path) for path in files_under(server.store)}
    assert stored == {upload.id: upload.sha256 for upload in uploads}
    assert len(files_under(server.store)) == len(uploads), "an upload is stored twice"
    wait_until(lambda: not files_under(server.staging), deadline=15, what="staging is empty")


@pytest.mark.timeout(120)
async def test_a_worker_killed_amid_a_multipart_transfer_is_succeeded(
    start_server: StartServer, tmp_path: Path
) -> None:
    rng = seeded("multipart")
    upload = ClientUpload(rng.randbytes(40 * MIB), rng)
    with rclone_s3(tmp_path) as bucket, CuttingProxy(bucket.port) as proxy:
        storage = bucket.storage_config()
        storage["s3"] |= {"endpoint_url": proxy.origin, "public_endpoint_url": bucket.endpoint_url}
        server = start_server({"transfer": IMPATIENT, "storage": storage})
        proxy.faults.append(Stall(rng.randrange(30 * MIB)))
        async with ResumingClient(server.url) as client:
            await client.create(upload)
            await client.run(upload, deadline=30)

        for strike in (1, 2):
            await asyncio.to_thread(proxy.wait_struck, strike)
            assert server.upload_json(upload.id)["state"] == "transferring"
            (worker,) = server.ready.worker_pids
            os.kill(worker, signal.SIGKILL)
            await asyncio.to_thread(server.wait_replaced, worker)
            if strike == 1:  # what is left for the successor is the part that was interrupted
                proxy.faults.append(Stall(rng.randrange(7 * MIB)))
        await asyncio.to_thread(server.wait_for_state, upload.id, "stored", deadline=60)

        assert [key.rsplit("/", 1)[-1] for key in bucket.object_keys()] == [upload.id]
        got = await asyncio.to_thread(download, f"{server.origin}/download/{upload.id}")
        assert got.sha256 == upload.sha256
        wait_until(lambda: not files_under(server.staging), deadline=15, what="staging is empty")
