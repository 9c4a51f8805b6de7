"""The documented configurations of nginx, HAProxy and Caddy, in front of the real server."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import http_client
from tests.support.blocking_client import OCTETS, BlockingConnection, create, request
from tests.support.cutting_proxy import Cut, CuttingProxy
from tests.support.files import download, random_file, seeded
from tests.support.node import run_node
from tests.support.ports import LOOPBACK
from tests.support.process import wait_until
from tests.support.proxies import PROXIES, Front
from tests.support.server import Server

pytestmark = [pytest.mark.acceptance, pytest.mark.parametrize("proxy", PROXIES), pytest.mark.timeout(90)]

MIB = 2**20
# What a proxy and the sockets on both sides of it may hold when a connection ends.
IN_FLIGHT = 8 * MIB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server that believes the proxies."""
    config = {"server": {"trusted_proxies": ["127.0.0.1/32"]}}
    with Server(tmp_path_factory.mktemp("proxies"), config) as running:
        yield running


@contextlib.contextmanager
def behind(proxy: str, server: Server, tmp_path: Path) -> Iterator[Front]:
    with PROXIES[proxy](tmp_path / proxy, server.port) as front:
        yield front


def test_an_upload_cut_at_a_third_resumes_and_is_downloaded_equal(proxy: str, server: Server, tmp_path: Path) -> None:
    size = 48 * MIB
    source = tmp_path / "source.bin"
    sha256 = random_file(source, size, seeded("proxies"))

    with behind(proxy, server, tmp_path) as front, CuttingProxy(front.port, Cut(size * 3 // 10)) as cut:
        result = run_node("upload.mjs", {"endpoint": cut.url, "file": str(source)}, log=tmp_path / "node.log")
        assert result["ok"], result
        assert len(cut.of("POST")) == 1
        resumed_at = cut.of("PATCH")[1].offset
        assert resumed_at is not None
        assert resumed_at >= size * 3 // 10 - IN_FLIGHT
        server.wait_for_state(result["uploadId"], "stored")
        assert download(f"{front.origin}/download/{result['uploadId']}").sha256 == sha256


def test_bytes_reach_the_server_while_the_client_is_still_sending(proxy: str, server: Server, tmp_path: Path) -> None:
    with behind(proxy, server, tmp_path) as front:
        target = path_of(create(front.port, 64 * MIB).headers["location"])
        with BlockingConnection(front.port) as client:
            client.send_head("PATCH", target, {**OCTETS, "Upload-Offset": "0", "Content-Length": str(64 * MIB)})
            client.send(bytes(32 * MIB))
            kept = request(front.port, "HEAD", target).offset

    assert kept >= 32 * MIB - IN_FLIGHT


def test_a_refusal_arrives_while_the_body_is_still_coming(proxy: str, server: Server, tmp_path: Path) -> None:
    with behind(proxy, server, tmp_path) as front:
        target = path_of(create(front.port, 64 * MIB).headers["location"])
        with BlockingConnection(front.port) as client:
            client.send_head("PATCH", target, {**OCTETS, "Upload-Offset": "7", "Content-Length": str(64 * MIB)})
            sent = client.send_until_answered(64 * MIB)
            answer = client.read_response()

    assert (answer.status, answer.offset) == (409, 0)
    assert sent < 64 * MIB


def test_a_chunked_body_arrives_whole(proxy: str, server: Server, tmp_path: Path) -> None:
    content = os.urandom(3 * MIB)
    with behind(proxy, server, tmp_path) as front:
        target = path_of(create(front.port, len(content)).headers["location"])
        framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
        headers = {**OCTETS, "Upload-Offset": "0", "Transfer-Encoding": "chunked"}
        with BlockingConnection(front.port) as client:
            client.send_head("PATCH", target, headers)
            client.send(framed)
            answer = client.read_response()

    assert (answer.status, answer.offset) == (204, len(content))


def test_location_names_the_proxy_and_leads_to_the_upload(proxy: str, server: Server, tmp_path: Path) -> None:
    with behind(proxy, server, tmp_path) as front:
        location = create(front.port, 10).headers["location"]

        assert location.startswith(f"{front.origin}/files/")
        assert request(front.port, "HEAD", path_of(location)).status == 200


@pytest.mark.parametrize(
    "invented",
    [
        {"X-Forwarded-Prefix": "/evil"},
        {"Forwarded": "host=evil.example;proto=https"},
        {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/evil"},
    ],
)
def test_what_a_client_says_of_the_way_to_us_is_not_passed_on(
    proxy: str, invented: dict[str, str], server: Server, tmp_path: Path
) -> None:
    with behind(proxy, server, tmp_path) as front:
        created = request(front.port, "POST", "/files/", {"Upload-Length": "1", **invented})

    assert created.status == 201
    assert created.headers["location"].startswith(f"{front.origin}/files/")


def test_expect_continue_is_answered_and_the_body_follows(proxy: str, server: Server, tmp_path: Path) -> None:
    with behind(proxy, server, tmp_path) as front:
        target = path_of(create(front.port, 5).headers["location"])
        headers = {**OCTETS, "Upload-Offset": "0", "Content-Length": "5", "Expect": "100-continue"}
        with BlockingConnection(front.port) as client:
            client.send_head("PATCH", target, headers)
            assert client.read_response("HEAD").status == 100
            client.send(b"hello")
            answer = client.read_response()
            while answer.status == 100:  # Caddy says it for itself and passes ours on
                answer = client.read_response()

    assert (answer.status, answer.offset) == (204, 5)


def test_long_metadata_passes_both_ways(proxy: str, server: Server, tmp_path: Path) -> None:
    metadata = "note " + "QUJD" * 3000
    with behind(proxy, server, tmp_path) as front:
        created = request(front.port, "POST", "/files/", {"Upload-Length": "1", "Upload-Metadata": metadata})
        head = request(front.port, "HEAD", path_of(created.headers["location"]))

    assert created.status == 201
    assert head.headers["upload-metadata"] == metadata


def test_the_log_names_the_client_and_not_the_proxy(proxy: str, server: Server, tmp_path: Path) -> None:
    with behind(proxy, server, tmp_path) as front:
        request(front.port, "HEAD", "/files/nothing", {"X-Request-ID": f"who-{proxy}", "X-Forwarded-For": "6.6.6.6"})
        wait_until(lambda: f"who-{proxy}" in server.log_text(), deadline=30, what="the request is logged")
    line = next(line for line in server.log_text().splitlines() if f"who-{proxy}" in line)

    # What a client claims of itself is not believed; here client and proxy share an address.
    assert '"client":"127.0.0.1"' in line


async def test_an_upload_of_the_ietfs_dialect_is_announced_where_the_proxy_passes_that_on(
    proxy: str, tmp_path: Path
) -> None:
    announces = proxy != "nginx"  # which takes the interim response for the answer
    head = ["Upload-Draft-Interop-Version: 6", "Upload-Complete: ?1", f"Content-Length: {MIB}"]
    interim = None
    with contextlib.ExitStack() as running:
        server = running.enter_context(Server(tmp_path / "server", {"rufh": {"interim_104": announces}}))
        front = running.enter_context(behind(proxy, server, tmp_path))
        connection = await http_client.Connection.open(LOOPBACK, front.port)
        lines = ["POST /files/ HTTP/1.1", f"Host: {LOOPBACK}:{front.port}", *head, "", ""]
        await connection.send("\r\n".join(lines).encode())
        await connection.send(bytes(MIB - 1))  # Caddy passes a request on with the first bytes of its body
        if announces:
            interim = await connection.interim_response()
        await connection.send(b"!")
        created = await connection.response("POST")
        await connection.close()

    assert (created.status, created.headers["upload-complete"], created.interim) == (201, "?1", [])
    if interim is not None:
        assert (interim.status, interim.headers["location"]) == (104, created.headers["location"])
        assert interim.headers["upload-draft-interop-version"] == "6"


def path_of(location: str) -> str:
    return "/" + location.split("/", 3)[3] if "://" in location else location
