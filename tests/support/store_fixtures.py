"""The S3 servers, one of each per session, and a destination of its own for every test.

botocore, moto and the S3 store are imported by the fixtures that need them: every session reads this file.
"""

from __future__ import annotations

import functools
import logging
import random
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.fixtures import Content, OpenStore, Stage
from tests.support.s3_servers import ACCESS_KEY, BUCKET, S3_SERVERS, SECRET_KEY
from tusd_py.ports import ObjectStore, Segment

if TYPE_CHECKING:
    from tests.support.destinations import Calls, Destination, S3Account, S3Destination


S3_NAMES = ["moto", "rclone", "ministack"]


@pytest.fixture(scope="session")
def models_are_read_once() -> Iterator[None]:
    """Spare every store of every test the 0.1 s that botocore takes to read the model of S3."""
    import botocore.loaders

    with pytest.MonkeyPatch.context() as patch:
        loader = botocore.loaders.JSONFileLoader
        cached = functools.cache(functools.partial(loader.load_file, loader()))
        patch.setattr(loader, "load_file", lambda _, path: cached(path))
        yield


@pytest.fixture(scope="session")
def moto_server(models_are_read_once: None) -> Iterator[S3Account]:
    """moto in a thread of this process."""
    from moto.server import ThreadedMotoServer

    from tests.support.destinations import MOTO, S3Account

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    account = S3Account("moto", f"http://{host}:{port}", BUCKET, ACCESS_KEY, SECRET_KEY, MOTO)
    account.client().create_bucket(Bucket=BUCKET)
    yield account
    server.stop()


def _child_server(name: str, directory: Path) -> Iterator[S3Account]:
    from tests.support.destinations import MINISTACK, RCLONE, S3Account

    abilities = {"rclone": RCLONE, "ministack": MINISTACK}[name]
    with S3_SERVERS[name](directory) as server:
        yield S3Account(name, server.endpoint_url, server.bucket, ACCESS_KEY, SECRET_KEY, abilities)


@pytest.fixture(scope="session")
def rclone_server(models_are_read_once: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Account]:
    """rclone serve s3 as a child process."""
    yield from _child_server("rclone", tmp_path_factory.mktemp("rclone"))


@pytest.fixture(scope="session")
def ministack_server(models_are_read_once: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Account]:
    """ministack as a child process."""
    yield from _child_server("ministack", tmp_path_factory.mktemp("ministack"))


@pytest.fixture(params=S3_NAMES)
def s3(request: pytest.FixtureRequest) -> S3Destination:
    """Every S3 server in turn, below a prefix that no other test uses."""
    from tests.support.destinations import S3Destination

    account = request.getfixturevalue(f"{request.param}_server")
    return S3Destination(account, account.shared_client, uuid.uuid4().hex)


@pytest.fixture(params=["filesystem", *S3_NAMES])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> Destination:
    """Every destination in turn, empty."""
    from tests.support.destinations import FilesystemDestination, S3Destination

    if request.param == "filesystem":
        return FilesystemDestination(tmp_path / "store")
    account = request.getfixturevalue(f"{request.param}_server")
    return S3Destination(account, account.shared_client, uuid.uuid4().hex)


@pytest.fixture
async def open_store() -> AsyncIterator[OpenStore]:
    """Open stores that are closed with the test."""
    opened: list[ObjectStore] = []

    async def open_one(destination: Destination, **changes: Any) -> ObjectStore:
        store = destination.store(**changes)
        await store.open()
        opened.append(store)
        return store

    yield open_one

    for store in opened:
        await store.close()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Return a function that writes pieces of content into staged files and returns them as segments."""
    directory = tmp_path / "staging"
    directory.mkdir()

    def write(*pieces: bytes) -> list[Segment]:
        segments = []
        for piece in pieces:
            path = directory / uuid.uuid4().hex
            path.write_bytes(piece)
            segments.append(Segment(path, len(piece)))
        return segments

    return write


@pytest.fixture(scope="session")
def content() -> Content:
    """Return so many bytes, the same ones every time."""
    whole = random.Random(5).randbytes(12 * 2**20)

    def cut(length: int) -> bytes:
        assert length <= len(whole)
        return whole[:length]

    return cut


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Count what is sent to S3."""
    from tests.support.destinations import Calls

    return Calls(monkeypatch)
