"""docs/deploy/nginx.conf does what its comments say, in front of the real server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.blocking_client import OCTETS, TUS, BlockingConnection, create, request
from tests.support.cutting_proxy import CuttingProxy, Stall
from tests.support.files import download, random_file, seeded
from tests.support.nginx import Nginx, nginx
from tests.support.node import NodeRun
from tests.support.process import wait_until
from tests.support.server import Server, StartServer

pytestmark = pytest.mark.acceptance

MIB = 2**20
# What nginx and the sockets on both sides of it may hold when a connection ends.
IN_FLIGHT = 8 * MIB
ORIGIN = "https://app.example.com"


@contextlib.contextmanager
def _behind_nginx(server: Server, tmp_path: Path) -> Iterator[Nginx]:
    with nginx(tmp_path / "nginx", server.port) as front:
        yield front


def test_a_body_reaches_the_server_while_the_client_is_still_sending(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    with _behind_nginx(server, tmp_path) as front:
        target = create(front.port, 64 * MIB).headers["location"]
        with BlockingConnection(front.port) as client:
            client.send_head("PATCH", target, {**OCTETS, "Upload-Offset": "0", "Content-Length": str(64 * MIB)})
            client.send(bytes(32 * MIB))
            offset = request(front.port, "HEAD", target).offset

    assert offset >= 32 * MIB - IN_FLIGHT


def test_a_refusal_arrives_before_the_body_was_sent(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    with _behind_nginx(server, tmp_path) as front:
        target = create(front.port, 64 * MIB).headers["location"]
        with BlockingConnection(front.port) as client:
            client.send_head("PATCH", target, {**OCTETS, "Upload-Offset": "7", "Content-Length": str(64 * MIB)})
            client.send(bytes(1000))
            answer = client.read_response()
    assert (answer.status, answer.offset) == (409, 0)


def test_location_is_good_at_the_outside(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    with _behind_nginx(server, tmp_path) as front:
        location = create(front.port, 10).headers["location"]
        assert location.startswith("/files/")


def test_location_of_a_trusted_proxy_is_absolute(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server({"server": {"trusted_proxies": ["127.0.0.1/32"]}})
    with _behind_nginx(server, tmp_path) as front:
        location = create(front.port, 10).headers["location"]
        assert location.startswith(f"{front.origin}/files/")


def test_long_metadata_passes(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    metadata = "note " + "QUJD" * 3000
    with _behind_nginx(server, tmp_path) as front:
        created = request(front.port, "POST", "/files/", {"Upload-Length": "1", "Upload-Metadata": metadata})
        assert created.status == 201
        assert request(front.port, "HEAD", created.headers["location"]).headers["upload-metadata"] == metadata


@pytest.mark.parametrize(("method", "status"), [("HEAD", 423), ("PATCH", 503), ("POST", 503)])
def test_an_absent_server_is_answered_for_in_terms_clients_retry(
    method: str, status: int, start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server()
    with _behind_nginx(server, tmp_path) as front:
        server.terminate()
        answer = request(front.port, method, "/files/anything", {"Origin": ORIGIN})
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["tus-resumable"] == TUS["Tus-Resumable"]
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("client", [4, 5])
def test_a_restart_costs_a_client_no_progress(client: int, start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    source = tmp_path / "source.bin"
    sha256 = random_file(source, 24 * MIB, seeded("restart"))
    with _behind_nginx(server, tmp_path) as front, CuttingProxy(front.port, Stall(10 * MIB)) as proxy:
        options = {"client": client, "endpoint": proxy.url, "file": str(source)}
        run = NodeRun("upload.mjs", options, tmp_path / "node.log")
        proxy.wait_struck()
        server.terminate()
        proxy.release()
        # Only now, so that the client meets the absent server.
        _wait_for_status(proxy, 423)
        server.restart()
        result = run.result(deadline=30)

        assert result["ok"], result
        assert len(proxy.of("POST")) == 1
        first, second = proxy.of("PATCH")
        assert first.offset == 0
        assert (second.offset or 0) >= 10 * MIB - IN_FLIGHT
        server.wait_for_state(result["uploadId"], "stored")
        assert download(f"{front.origin}/download/{result['uploadId']}").sha256 == sha256


def _wait_for_status(proxy: CuttingProxy, status: int) -> None:
    wait_until(
        lambda: any(request.status == status for request in proxy.of("HEAD")),
        deadline=30,
        what=f"HEAD met {status}",
    )
