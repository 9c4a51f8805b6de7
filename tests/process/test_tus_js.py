"""The published tus-js-client, 4.x and 5.x, in Node: every way of uploading it knows, every fault it retries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.blocking_client import fetch
from tests.support.cutting_proxy import Answer, Cut, CuttingProxy, DropReply, Fault
from tests.support.files import download, random_file, seeded
from tests.support.node import NodeRun, run_node
from tests.support.process import wait_until
from tests.support.server import Server, StartServer

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(90)]

KIB, MIB = 2**10, 2**20
SIZE = 3 * MIB + 12_345
CLIENTS = [pytest.param(4, id="tus-js-4"), pytest.param(5, id="tus-js-5")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the whole matrix: each test has uploads of its own."""
    with Server(tmp_path_factory.mktemp("tus-js")) as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A random file and its SHA-256."""
    path = tmp_path_factory.mktemp("source") / "source.bin"
    return path, random_file(path, SIZE, seeded("tus-js"))


def upload(server_url: str, log: Path, options: dict[str, Any]) -> dict[str, Any]:
    return run_node("upload.mjs", {"endpoint": server_url, "metadata": {"filename": "ä b.bin"}} | options, log=log)


def stored_sha256(server: Server, upload_id: str) -> str:
    """Wait until the upload is stored; return the digest of what is downloaded."""
    server.wait_for_state(upload_id, "stored")
    return download(f"{server.origin}/download/{upload_id}").sha256


def methods(result: dict[str, Any]) -> list[str]:
    return [request["method"] for request in result["requests"]]


WAYS: dict[str, dict[str, Any]] = {
    "one PATCH": {},
    "buffer": {"source": "buffer"},
    "chunks": {"chunkSize": 500 * KIB},
    "stream": {"source": "stream", "chunkSize": MIB},
    "deferred length": {"source": "stream", "chunkSize": MIB, "deferred": True},
    "deferred length, whole chunks": {"source": "buffer", "chunkSize": SIZE // 3, "deferred": True},
    "data during creation": {"dataDuringCreation": True},
    "data during creation, chunks": {"dataDuringCreation": True, "chunkSize": 700 * KIB},
    "deferred with data during creation": {
        "source": "stream", "chunkSize": MIB, "deferred": True, "dataDuringCreation": True,
    },
    "parallel": {"parallelUploads": 3},
    "parallel chunks": {"parallelUploads": 3, "chunkSize": 300 * KIB},
    "method override": {"override": True},
    "request ids": {"addRequestId": True},
    "ietf-draft-03": {"protocol": "ietf-draft-03"},
    "ietf-draft-03, chunks": {"protocol": "ietf-draft-03", "source": "buffer", "chunkSize": 500 * KIB},
    "ietf-draft-03, stream": {"protocol": "ietf-draft-03", "source": "stream", "chunkSize": MIB},
    "ietf-draft-03, data during creation": {"protocol": "ietf-draft-03", "dataDuringCreation": True},
    "ietf-draft-05": {"protocol": "ietf-draft-05"},
    "ietf-draft-05, chunks": {"protocol": "ietf-draft-05", "source": "buffer", "chunkSize": 500 * KIB},
    "ietf-draft-05, deferred length": {
        "protocol": "ietf-draft-05", "source": "stream", "chunkSize": MIB, "deferred": True,
    },
    "ietf-draft-05, data during creation, chunks": {
        "protocol": "ietf-draft-05", "dataDuringCreation": True, "chunkSize": 700 * KIB,
    },
}  # fmt: skip


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_uploading_arrives_equal(
    way: str, client: int, server: Server, source: tuple[Path, str], tmp_path: Path
) -> None:
    path, sha256 = source

    result = upload(server.url, tmp_path / "node.log", {"client": client, "file": str(path), **WAYS[way]})

    assert result["ok"], result
    assert result["lateErrors"] == []
    assert all(request["status"] < 300 for request in result["requests"]), result["requests"]
    assert stored_sha256(server, result["uploadId"]) == sha256


def test_a_web_stream_of_client_5_arrives_equal(server: Server, source: tuple[Path, str], tmp_path: Path) -> None:
    path, sha256 = source

    options = {"client": 5, "file": str(path), "source": "webstream", "chunkSize": MIB}
    result = upload(server.url, tmp_path / "node.log", options)

    assert result["ok"], result
    assert stored_sha256(server, result["uploadId"]) == sha256


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("protocol", ["tus-v1", "ietf-draft-03", "ietf-draft-05"])
def test_an_empty_file_is_complete_with_its_creation(
    protocol: str, client: int, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "empty").write_bytes(b"")

    options = {"client": client, "file": str(tmp_path / "empty"), "protocol": protocol}
    result = upload(server.url, tmp_path / "node.log", options)

    assert result["ok"], result
    assert methods(result) == ["POST"]
    server.wait_for_state(result["uploadId"], "stored")


@pytest.mark.parametrize("client", CLIENTS)
def test_an_upload_is_resumed_from_its_url(
    client: int, server: Server, source: tuple[Path, str], tmp_path: Path
) -> None:
    path, sha256 = source
    options = {"client": client, "file": str(path), "chunkSize": 500 * KIB}
    first = upload(server.url, tmp_path / "first.log", options | {"abortAfterBytes": MIB})
    assert first["aborted"], first

    second = upload(server.url, tmp_path / "second.log", options | {"uploadUrl": first["url"], "endpoint": server.url})

    assert second["ok"], second
    assert methods(second)[0] == "HEAD"
    assert "POST" not in methods(second)
    assert second["requests"][1]["offset"] >= 500 * KIB
    assert stored_sha256(server, second["uploadId"]) == sha256


@pytest.mark.parametrize("client", CLIENTS)
def test_a_pause_and_a_resume_at_once_take_over_from_the_running_request(
    client: int, server: Server, source: tuple[Path, str], tmp_path: Path
) -> None:
    path, sha256 = source

    options = {"client": client, "file": str(path), "abortAfterBytes": MIB, "resume": True}
    result = upload(server.url, tmp_path / "node.log", options)

    assert result["ok"], result
    assert methods(result).count("POST") == 1
    assert stored_sha256(server, result["uploadId"]) == sha256


@pytest.mark.parametrize("client", CLIENTS)
def test_abort_with_termination_leaves_nothing(
    client: int, server: Server, source: tuple[Path, str], tmp_path: Path
) -> None:
    path, _ = source
    options = {"client": client, "file": str(path), "chunkSize": 500 * KIB, "abortAfterBytes": MIB, "terminate": True}

    result = upload(server.url, tmp_path / "node.log", options)

    assert result["terminated"], result
    assert methods(result)[-1] == "DELETE"
    assert fetch(result["url"], "HEAD").status == 404


IETF = pytest.mark.parametrize("protocol", ["ietf-draft-03", "ietf-draft-05"])


@IETF
@pytest.mark.parametrize("client", CLIENTS)
def test_the_dialect_of_the_ietf_is_continued_after_cuts(
    protocol: str, client: int, server: Server, source: tuple[Path, str], tmp_path: Path
) -> None:
    path, sha256 = source
    faults: list[Fault] = [Cut(MIB, "rst"), Cut(MIB // 2, "fin"), DropReply("HEAD"), DropReply("PATCH")]

    with CuttingProxy(server.port, *faults) as proxy:
        options = {"client": client, "file": str(path), "protocol": protocol}
        result = upload(proxy.url, tmp_path / "node.log", options)
        sent = proxy.body_bytes

    assert result["ok"], result
    assert methods(result).count("POST") == 1
    assert methods(result).count("HEAD") >= 3
    assert sent < SIZE + 2 * MIB
    assert stored_sha256(server, result["uploadId"]) == sha256


@IETF
@pytest.mark.parametrize("client", CLIENTS)
def test_the_dialect_of_the_ietf_is_resumed_from_an_url_and_terminated(
    protocol: str, client: int, server: Server, source: tuple[Path, str], tmp_path: Path
) -> None:
    path, sha256 = source
    options = {"client": client, "file": str(path), "chunkSize": 500 * KIB, "protocol": protocol}
    first = upload(server.url, tmp_path / "first.log", options | {"abortAfterBytes": MIB})
    assert first["aborted"], first

    second = upload(server.url, tmp_path / "second.log", options | {"uploadUrl": first["url"]})
    third = upload(server.url, tmp_path / "third.log", options | {"abortAfterBytes": MIB, "terminate": True})

    assert second["ok"], second
    assert methods(second)[0] == "HEAD"
    assert second["requests"][1]["offset"] >= 500 * KIB
    assert stored_sha256(server, second["uploadId"]) == sha256
    assert third["terminated"], third


FAULTS: dict[str, list[Fault]] = {
    "a reset in the body": [Cut(MIB, "rst")],
    "an end in the body": [Cut(2 * MIB, "fin")],
    "three cuts": [Cut(MIB, "rst"), Cut(MIB // 2, "fin"), Cut(MIB // 2, "rst")],
    "a lost answer to PATCH": [DropReply("PATCH")],
    "a lost answer to POST": [DropReply("POST")],
    "a lost answer to HEAD": [Cut(MIB), DropReply("HEAD")],
    "423 on HEAD": [Cut(MIB), Answer("HEAD", 423)],
    "409 on PATCH": [Answer("PATCH", 409)],
    "423 on PATCH": [Answer("PATCH", 423)],
    "500 on PATCH": [Answer("PATCH", 500)],
    "503 on POST": [Answer("POST", 503)],
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_starts_an_upload_again_from_its_first_byte(
    fault: str, client: int, server: Server, source: tuple[Path, str], tmp_path: Path
) -> None:
    path, sha256 = source
    creates_again = fault in {"a lost answer to POST", "503 on POST"}

    with CuttingProxy(server.port, *FAULTS[fault]) as proxy:
        options = {"client": client, "file": str(path), "chunkSize": 1500 * KIB}
        result = upload(proxy.url, tmp_path / "node.log", options)
        sent = proxy.body_bytes

    assert result["ok"], result
    assert len(proxy.of("POST")) == (2 if creates_again else 1)
    assert sent < SIZE + 2 * MIB  # at most what was in flight is sent again
    assert stored_sha256(server, result["uploadId"]) == sha256


@pytest.mark.parametrize("client", CLIENTS)
def test_a_restart_of_the_server_costs_nothing_but_time(
    client: int, start_server: StartServer, source: tuple[Path, str], tmp_path: Path
) -> None:
    path, sha256 = source
    server = start_server()
    with CuttingProxy(server.port) as proxy:
        delays = [100] * 200
        options = {"client": client, "endpoint": proxy.url, "file": str(path), "chunkSize": 100 * KIB}
        run = NodeRun("upload.mjs", options | {"retryDelays": delays}, tmp_path / "node.log")
        wait_until(lambda: len(proxy.of("PATCH")) >= 5, deadline=20, what="some chunks have been sent")
        server.terminate()
        server.restart()
        result = run.result(60)

    assert result["ok"], result
    assert methods(result).count("POST") == 1
    assert proxy.body_bytes < SIZE + MIB
    assert stored_sha256(server, result["uploadId"]) == sha256
