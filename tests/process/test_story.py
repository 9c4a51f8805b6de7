"""The story of the whole: a file goes up, the line is cut, it resumes, it is stored, it comes down equal."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

import pytest

from tests.support.cutting_proxy import Cut, CuttingProxy
from tests.support.files import download, files_under, random_file, seeded, sha256_of
from tests.support.nginx import nginx
from tests.support.node import run_node
from tests.support.process import wait_until
from tests.support.s3_servers import S3_SERVERS, S3Server
from tests.support.server import Server, StartServer

pytestmark = pytest.mark.acceptance

MIB = 2**20
# What may be on its way when the connection breaks, and is then sent again.
IN_FLIGHT = 4 * MIB
FILENAME = "Überraschung & co.bin"

Backend = Literal["filesystem", "rclone", "ministack"]
Front = Literal["bare", "nginx"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("backend", "front", "client", "size"),
    [
        pytest.param("filesystem", "bare", 4, 200 * MIB, id="filesystem-bare-200MiB"),
        pytest.param("filesystem", "nginx", 5, 32 * MIB, id="filesystem-nginx-client5"),
        pytest.param("rclone", "nginx", 4, 200 * MIB, id="rclone-nginx-200MiB"),
        pytest.param("rclone", "bare", 5, 32 * MIB, id="rclone-bare-client5"),
        pytest.param("ministack", "bare", 4, 32 * MIB, id="ministack-bare"),
        pytest.param("ministack", "nginx", 5, 32 * MIB, id="ministack-nginx-client5"),
    ],
)
def test_a_cut_upload_resumes_is_stored_and_is_downloaded_equal(
    backend: Backend, front: Front, client: int, size: int, start_server: StartServer, tmp_path: Path
) -> None:
    rng = seeded("story")
    source = tmp_path / "source.bin"
    sha256 = random_file(source, size, rng)
    cut_at = rng.randrange(size // 5, size * 4 // 5)

    with contextlib.ExitStack() as parts:
        bucket = None if backend == "filesystem" else parts.enter_context(S3_SERVERS[backend](tmp_path))
        server = start_server({"storage": bucket.storage_config()} if bucket else {})
        port = server.port
        if front == "nginx":
            port = parts.enter_context(nginx(tmp_path / "nginx", server.port)).port
        proxy = parts.enter_context(CuttingProxy(port, Cut(cut_at, rng.choice(("rst", "fin")))))

        result = run_node(
            "upload.mjs",
            {
                "client": client,
                "endpoint": proxy.url,
                "file": str(source),
                "metadata": {"filename": FILENAME, "filetype": "application/octet-stream"},
            },
            log=tmp_path / "node.log",
        )

        assert result["ok"], result
        assert not result["lateErrors"]
        _assert_resumed(proxy, cut_at, size)
        info = server.wait_for_state(result["uploadId"], "stored", deadline=40)
        assert (info["length"], info["offset"]) == (size, size)
        assert not info["last_error"]
        _assert_downloads(f"http://127.0.0.1:{port}", result["uploadId"], bucket, size, sha256)
        _assert_stored_once(server, bucket, result["uploadId"], sha256)


def _assert_resumed(proxy: CuttingProxy, cut_at: int, size: int) -> None:
    """The client went on where the line broke; it neither started anew nor sent much twice."""
    assert len(proxy.struck) == 1, "the connection was not cut"
    assert [request.status for request in proxy.of("POST")] == [201]
    first, *others = proxy.of("PATCH")
    assert (first.offset, first.body_bytes) == (0, cut_at)
    assert others
    assert all((request.offset or 0) >= cut_at - IN_FLIGHT for request in others), [r.offset for r in others]
    assert others[-1].status == 204
    assert size <= proxy.body_bytes <= size + IN_FLIGHT


def _assert_downloads(origin: str, upload_id: str, bucket: S3Server | None, size: int, sha256: str) -> None:
    got = download(f"{origin}/download/{upload_id}")
    assert (got.length, got.sha256) == (size, sha256)
    assert got.headers["content-disposition"].startswith("attachment")
    assert "%C3%9Cberraschung" in got.headers["content-disposition"]
    if bucket is None:
        assert len(got.urls) == 1
    else:
        assert len(got.urls) == 2, "one redirect was expected"
        assert got.urls[1].startswith(bucket.endpoint_url)


def _assert_stored_once(server: Server, bucket: S3Server | None, upload_id: str, sha256: str) -> None:
    """One object, named by our id and not by the client; nothing is left in staging."""
    if bucket is None:
        stored = [path.name for path in files_under(server.store)]
        assert [sha256_of(path) for path in files_under(server.store)] == [sha256]
    else:
        stored = [key.rsplit("/", 1)[-1] for key in bucket.object_keys()]
    assert stored == [upload_id]
    wait_until(lambda: not files_under(server.staging), deadline=30, what="staging is empty")
