"""Whatever S3 and the network to it do: each upload is stored once, whole, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.files import download, files_under, seeded
from tests.support.process import wait_until
from tests.support.resuming_client import ClientUpload, ResumingClient
from tests.support.s3_fault_proxy import KINDS, Kind, S3FaultProxy
from tests.support.s3_servers import S3Server, ministack_s3, rclone_s3
from tests.support.server import Server, StartServer
from tusd_py.stores.s3.store import PROBE_NAME

pytestmark = pytest.mark.acceptance

MIB = 2**20
PART = 5 * MIB
UPLOADS = 200
KILLS = 6
CALLS = ("HeadObject", "PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")


def config_for(s3: S3Server, proxy: S3FaultProxy, *, patience: str = "2s") -> dict[str, Any]:
    """A server that reaches S3 through the proxy; what stalls for longer than `patience` is tried again."""
    storage = s3.storage_config()
    storage["s3"] |= {
        "endpoint_url": proxy.origin,
        "public_endpoint_url": s3.endpoint_url,
        "part_size": PART,
        "multipart_threshold": PART,
        "client": {"max_attempts": 1, "connect_timeout": "2s", "read_timeout": patience},
    }
    transfer = {
        "eager_above": 2 * PART, "lease": "3s", "poll_interval": "500ms",
        "retry_delay": "100ms", "retry_max_delay": "300ms", "max_retries": 1000,
    }  # fmt: skip
    return {"storage": storage, "transfer": transfer}


def strays_of(s3: S3Server) -> list[str]:
    """The multipart uploads that are still open, but for a killed worker's probe: the next one aborts that."""
    client = s3.client()
    try:
        keys = [one["Key"] for one in client.list_multipart_uploads(Bucket=s3.bucket).get("Uploads", ())]
        return [key for key in keys if key != PROBE_NAME]
    except client.exceptions.NoSuchUpload:  # so rclone says that there is none
        return []


def assert_stored_once(server: Server, s3: S3Server, uploads: list[ClientUpload]) -> None:
    """Each upload is one object with its bytes, and nothing else is anywhere."""
    for upload in uploads:
        server.wait_for_state(upload.id, "stored", deadline=120)
        assert download(f"{server.origin}/download/{upload.id}").sha256 == upload.sha256
    keys = s3.object_keys()
    assert sorted(key.rpartition("/")[2] for key in keys) == sorted(upload.id for upload in uploads)
    wait_until(lambda: not strays_of(s3), deadline=15, what="no multipart upload is left open")
    wait_until(lambda: not files_under(server.staging), deadline=15, what="staging is empty")


class Once:
    """Strikes the first request of one operation, and no other."""

    def __init__(self, operation: str, kind: Kind) -> None:
        self.operation = operation
        self.kind = kind
        self.left = 1

    def __call__(self, operation: str) -> Kind | None:
        if operation != self.operation or not self.left:
            return None
        self.left -= 1
        return self.kind


@pytest.mark.parametrize("kind", KINDS)
async def test_a_single_fault_costs_a_retry_and_nothing_else(
    start_server: StartServer, tmp_path: Path, kind: Kind
) -> None:
    rng = seeded(kind)
    uploads = []
    with rclone_s3(tmp_path) as s3, S3FaultProxy(s3.endpoint_url, lambda _: None) as proxy:
        # On a busy machine nothing but a stall may take so long, or the counts below would not hold.
        server = start_server(config_for(s3, proxy, patience="4s" if kind == "stall" else "30s"))
        for operation in CALLS:
            proxy.choose = Once(operation, kind)
            upload = ClientUpload(rng.randbytes(1000 if operation == "PutObject" else PART + 1000), rng)
            uploads.append(upload)
            async with ResumingClient(server.url) as client:
                await client.create(upload)
                await client.run(upload, deadline=30)
            await asyncio.to_thread(server.wait_for_state, upload.id, "stored", deadline=30)

        await asyncio.to_thread(assert_stored_once, server, s3, uploads)

    assert proxy.struck == {(operation, kind): 1 for operation in CALLS}
    assert set(proxy.made.values()) == {1}
    # A part whose reply was lost is recognised, not sent again, as long as its upload goes on.
    assert set(proxy.accepted_parts.values()) == {1}


class Storm:
    """Strikes one request in so many, at random, with each kind before any comes again."""

    def __init__(self, rng: random.Random, one_in: int) -> None:
        self.rng = rng
        self.one_in = one_in
        self._next: list[Kind] = []

    def __call__(self, _: str) -> Kind | None:
        if self.rng.randrange(self.one_in):
            return None
        self._next = self._next or self.rng.sample(KINDS, len(KINDS))
        return self._next.pop()


async def keep_killing(server: Server, rng: random.Random, killed: list[int]) -> None:
    """Kill a worker again and again, each time once its successor is there."""
    for _ in range(KILLS):
        await asyncio.sleep(rng.uniform(0.5, 2))
        pid = rng.choice(server.ready.worker_pids)
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
        await asyncio.to_thread(server.wait_replaced, pid)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["rclone", "ministack"])
async def test_two_hundred_uploads_through_a_storm(start_server: StartServer, tmp_path: Path, name: str) -> None:
    rng = seeded(f"storm {name}")
    # ministack computes checksums at a part per second.
    count, large, start = (UPLOADS, 12, rclone_s3) if name == "rclone" else (UPLOADS // 4, 2, ministack_s3)
    lengths = [rng.randrange(0, 64 * 1024) for _ in range(count * 3 // 4)]
    lengths += [rng.randrange(64 * 1024, PART) for _ in range(count - len(lengths) - large)]
    lengths += [rng.randrange(PART + 1, 4 * PART) for _ in range(large)]
    rng.shuffle(lengths)
    uploads = [ClientUpload(rng.randbytes(length), random.Random(rng.random())) for length in lengths]
    storm = Storm(random.Random(rng.random()), 6)
    killed: list[int] = []
    with start(tmp_path) as s3, S3FaultProxy(s3.endpoint_url, storm) as proxy:
        server = start_server(config_for(s3, proxy))
        async with ResumingClient(server.url, most_at_once=8) as client:
            for upload in uploads:
                await client.create(upload)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(keep_killing(server, rng, killed))
                for upload in uploads:
                    tasks.create_task(client.run(upload, deadline=120))

        await asyncio.to_thread(assert_stored_once, server, s3, uploads)

    print(proxy.struck, proxy.seen)
    assert len(killed) == KILLS
    assert {kind for _, kind in proxy.struck} == set(KINDS)
