"""tuspy, the Python client: what it sends, and what it needs back."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from tusclient.client import TusClient
from tusclient.storage.filestorage import FileStorage

from tests.support.blocking_client import request
from tests.support.cutting_proxy import CuttingProxy
from tests.support.files import download, seeded
from tests.support.server import Server, StartServer

pytestmark = [
    pytest.mark.acceptance,
    # The client opens the file anew for everything it wants to know and never closes it.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

MIB = 2**20
SIZE = 3 * MIB + 17
CHUNK_SIZES = [
    pytest.param(SIZE, 1, id="one-chunk"),
    pytest.param(MIB, 4, id="1MiB-chunks"),
    pytest.param(333_333, 10, id="odd-chunks"),
]


@pytest.fixture
def server(start_server: StartServer) -> Server:
    """A server with its defaults."""
    return start_server()


@pytest.fixture
def content() -> bytes:
    """What is uploaded."""
    return seeded("tuspy").randbytes(SIZE)


@pytest.mark.parametrize(("chunk_size", "chunks"), CHUNK_SIZES)
def test_sync_uploader_sends_chunks(chunk_size: int, chunks: int, server: Server, content: bytes) -> None:
    with CuttingProxy(server.port) as proxy:
        uploader = TusClient(proxy.url).uploader(file_stream=io.BytesIO(content), chunk_size=chunk_size)
        uploader.upload()

        assert len(proxy.of("PATCH")) == chunks
    _assert_stored(server, uploader.url, content)


@pytest.mark.parametrize(("chunk_size", "chunks"), CHUNK_SIZES)
async def test_async_uploader_sends_chunks(chunk_size: int, chunks: int, server: Server, content: bytes) -> None:
    with CuttingProxy(server.port) as proxy:
        uploader = TusClient(proxy.url).async_uploader(file_stream=io.BytesIO(content), chunk_size=chunk_size)
        await uploader.upload()

        assert len(proxy.of("PATCH")) == chunks
    _assert_stored(server, uploader.url, content)


def test_an_empty_file_is_complete_once_created(server: Server) -> None:
    with CuttingProxy(server.port) as proxy:
        uploader = TusClient(proxy.url).uploader(file_stream=io.BytesIO())
        uploader.upload()

        assert [request.method for request in proxy.requests] == ["POST"]
    _assert_stored(server, uploader.url, b"")


def test_metadata_with_an_empty_value_is_kept(server: Server, content: bytes) -> None:
    metadata = {"filename": "räksmörgås.bin", "note": "", "kind": "test"}
    uploader = TusClient(server.url).uploader(file_stream=io.BytesIO(content), metadata=metadata)
    uploader.upload()

    head = request(server.port, "HEAD", _path(uploader.url))
    assert head.headers["upload-metadata"] == "filename csOka3Ntw7ZyZ8Olcy5iaW4=,note ,kind dGVzdA=="
    _assert_stored(server, uploader.url, content)


def test_store_url_resumes_in_another_run(server: Server, content: bytes, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(content)
    storage = FileStorage(str(tmp_path / "urls.json"))  # type: ignore[no-untyped-call]  # tuspy has no types
    options = {"chunk_size": MIB, "store_url": True, "url_storage": storage}
    try:
        first = TusClient(server.url).uploader(str(source), **options)
        first.upload(stop_at=2 * MIB)
        second = TusClient(server.url).uploader(str(source), **options)
        assert (second.url, second.offset) == (first.url, 2 * MIB)
        second.upload()
    finally:
        storage.close()  # type: ignore[no-untyped-call]  # tuspy has no types

    _assert_stored(server, first.url, content)


def _assert_stored(server: Server, url: str | None, content: bytes) -> None:
    upload_id = request(server.port, "HEAD", _path(url)).headers["upload-id"]
    info = server.wait_for_state(upload_id, "stored")
    assert info["length"] == info["offset"] == len(content)
    assert download(f"{server.origin}/download/{upload_id}").sha256 == hashlib.sha256(content).hexdigest()


def _path(url: str | None) -> str:
    assert url is not None
    return "/" + url.split("/", 3)[3]
