"""A worker on a line of limited speed, against a real S3 server."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.s3_servers import S3Server, rclone_s3
from tests.support.workers import is_true, working
from tests.support.world import World
from tusd_py.config.sections import S3StoreConfig
from tusd_py.protocol.upload import State
from tusd_py.stores.rate_limit import Bandwidth
from tusd_py.stores.s3 import S3Store

MIB = 2**20
LIMIT = 4 * MIB
LARGE, SMALL = 11 * MIB, MIB
LEAST_SECONDS = (LARGE + SMALL) / LIMIT * 0.8


def config(server: S3Server) -> S3StoreConfig:
    values: dict[str, Any] = server.storage_config()["s3"] | {
        "multipart_threshold": 5 * MIB,
        "part_size": 5 * MIB,
        # Shorter than a part takes: waiting for one's turn is not waiting for the store.
        "client": {"max_attempts": 1, "read_timeout": 1},
    }
    return S3StoreConfig(**values)


@pytest.mark.slow
async def test_a_limited_worker_takes_its_time_and_keeps_its_leases(world: World, tmp_path: Path) -> None:
    with rclone_s3(tmp_path) as server:
        store = S3Store(config(server), bandwidth=Bandwidth(LIMIT))
        await store.open()
        contents = [os.urandom(length) for length in (LARGE, SMALL)]
        uploads = [await world.received(content) for content in contents]
        started = time.monotonic()
        took: dict[int, float] = {}
        seen: set[int] = set()

        async def all_stored() -> bool:
            for number, upload in enumerate(uploads):
                if number not in took and (await world.find(upload)).state is State.STORED:
                    took[number] = time.monotonic() - started
            done = await world.value("SELECT bytes_done FROM jobs WHERE upload_id = $1", uploads[0].id)
            seen.add(done)
            return len(took) == len(uploads)

        async with asyncio.timeout(30), working(world, store, lease=1):
            await is_true(all_stored, "both are stored")

        await store.close()
        stored = server.client()
        for upload, content in zip(uploads, contents, strict=True):
            assert stored.get_object(Bucket=server.bucket, Key=upload.object_key)["Body"].read() == content

    assert took[0] >= LEAST_SECONDS
    # The lease ran out several times over, and was renewed each time.
    assert [await world.attempts_of(upload) for upload in uploads] == [[("transfer", 1, "succeeded")]] * 2
    assert len(seen) > 1  # people see it move
    assert took[1] < took[0] / 2 + 1  # it had to share, but not to queue behind the large one
