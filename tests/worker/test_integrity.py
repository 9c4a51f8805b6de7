"""From the staged bytes to the record: what is known of an upload, and what is never stored."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from tests.support.s3_servers import S3_SERVERS, S3Server
from tests.support.workers import reaches, working
from tests.support.world import World
from tusd_py.config.sections import S3StoreConfig
from tusd_py.ports import ObjectStore
from tusd_py.protocol.upload import State
from tusd_py.stores.s3 import S3Store

MIB = 2**20
SMALL, IN_PARTS = 1000, 5 * MIB + 1
BOTH = frozenset({"sha256", "md5"})
CONTENT = hashlib.shake_128(b"integrity").digest(IN_PARTS)


@contextlib.contextmanager
def moto(_directory: Path) -> Iterator[S3Server]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    answer = S3Server("moto", port, None)  # type: ignore[arg-type]  # it has no process
    answer.client().create_bucket(Bucket=answer.bucket)
    yield answer
    server.stop()


@pytest.fixture(scope="module", params=["moto", *S3_SERVERS])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Servers that verify CRC64NVME (ministack), MD5 only (rclone), and nothing (moto)."""
    with ({"moto": moto} | S3_SERVERS)[request.param](tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture
async def s3(server: S3Server) -> AsyncIterator[S3Store]:
    values: dict[str, Any] = server.storage_config()["s3"]
    store = S3Store(S3StoreConfig(**values, multipart_threshold=5 * MIB, part_size=5 * MIB))
    await store.open()
    yield store
    await store.close()


async def assert_recorded(world: World, store: ObjectStore, size: int) -> None:
    upload = await world.received(CONTENT[:size])

    async with working(world, store, digests=BOTH):
        found = await reaches(world, upload, State.STORED)

    expected = hashlib.sha256(CONTENT[:size]).digest(), hashlib.md5(CONTENT[:size], usedforsecurity=False).digest()
    assert (found.sha256, found.md5) == expected


@pytest.mark.parametrize("size", [0, SMALL, 2 * MIB], ids=["empty", "in a batch", "alone"])
async def test_the_digests_of_a_file_are_recorded(world: World, size: int) -> None:
    await assert_recorded(world, world.store, size)


@pytest.mark.parametrize("size", [SMALL, IN_PARTS], ids=["at once", "in parts"])
async def test_the_digests_of_an_object_are_recorded(world: World, s3: S3Store, size: int) -> None:
    await assert_recorded(world, s3, size)


async def test_a_final_upload_has_the_digests_of_its_parts_together(world: World, s3: S3Store) -> None:
    parts = [await world.part(piece) for piece in (CONTENT[:SMALL], CONTENT[SMALL:])]
    upload = await world.final(parts)

    async with working(world, s3, digests=BOTH):
        found = await reaches(world, upload, State.STORED)

    assert found.sha256 == hashlib.sha256(CONTENT).digest()


async def test_without_the_wish_there_are_none(world: World) -> None:
    upload = await world.received()

    async with working(world):
        found = await reaches(world, upload, State.STORED)

    assert (found.sha256, found.md5) == (None, None)


async def assert_refused(world: World, store: ObjectStore, size: int, **options: Any) -> str:
    """Return the key under which there is nothing."""
    upload = await world.received(CONTENT[:size])
    path = world.staging.path(upload.id)
    path.write_bytes(CONTENT[: size - 1] + bytes([CONTENT[size - 1] ^ 1]))

    async with working(world, store, **options):
        failed = await reaches(world, upload, State.TRANSFER_FAILED)

    view = await world.transfers.latest(upload.id)
    assert view is not None
    assert (view.state, view.error_code) == ("failed", "ERR_STAGING_DAMAGED")
    assert failed.error == view.last_error
    assert failed.error
    # At once: the bytes will not get better. And somebody may want to look at them.
    assert [outcome for _, _, outcome in await world.attempts_of(upload)] == ["failed"]
    assert world.staged(upload)
    assert await store.stat(upload.object_key) is None
    return upload.object_key


@pytest.mark.parametrize("size", [SMALL, IN_PARTS], ids=["at once", "in parts"])
async def test_a_staged_file_that_changed_never_becomes_an_object(
    world: World, server: S3Server, s3: S3Store, size: int
) -> None:
    key = await assert_refused(world, s3, size)

    with contextlib.suppress(server.client().exceptions.NoSuchUpload):  # so rclone says that there are none
        assert "Uploads" not in server.client().list_multipart_uploads(Bucket=server.bucket, Prefix=key)


@pytest.mark.parametrize("size", [SMALL, 2 * MIB], ids=["in a batch", "alone"])
async def test_a_staged_file_that_changed_is_not_linked_where_it_is_read(world: World, size: int) -> None:
    await assert_refused(world, world.store, size, digests=BOTH)


@pytest.mark.parametrize("size", [SMALL, 2 * MIB], ids=["in a batch", "alone"])
async def test_a_staged_file_that_changed_is_not_copied(
    world: World, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def other_disk(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", other_disk)

    await assert_refused(world, world.store, size)
