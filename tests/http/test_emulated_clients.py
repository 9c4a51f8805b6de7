"""Clients that cannot run here, spoken to byte by byte as they speak: tus-java-client and TUSKit."""

from __future__ import annotations

import os

from tests.http.served import Served
from tests.support.http_client import Response

MIB = 2**20
OCTETS = "application/offset+octet-stream"


async def java_patch(served: Served, path: str, offset: int, body: bytes, *, override: bool = False) -> Response:
    """One request of tus-java-client: chunked, and nothing of the body before 100 Continue."""
    connection = await served.connect()
    headers = [
        ("Tus-Resumable", "1.0.0"), ("Upload-Offset", str(offset)), ("Content-Type", OCTETS),
        ("Expect", "100-continue"), ("Transfer-Encoding", "chunked"), ("Connection", "keep-alive"),
    ]  # fmt: skip
    if override:
        headers.append(("X-HTTP-Method-Override", "PATCH"))
    await connection.send_head("POST" if override else "PATCH", path, headers)
    assert await connection.interim() == 100
    for start in range(0, len(body), 64 * 1024):
        piece = body[start : start + 64 * 1024]
        await connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
    await connection.send(b"0\r\n\r\n")
    response = await connection.response("PATCH")
    await connection.close()
    return response


async def test_the_java_client_uploads_in_requests_of_ten_mebibytes(served: Served) -> None:
    content = os.urandom(25 * MIB)
    path = await served.create(len(content))

    for offset in range(0, len(content), 10 * MIB):
        piece = content[offset : offset + 10 * MIB]
        response = await java_patch(served, path, offset, piece, override=offset > 0)
        assert response.status == 204
        # Anything but exactly what it sent is fatal to it.
        assert response.headers["upload-offset"] == str(offset + len(piece))

    assert (await served.request("GET", path)).body == content


async def test_the_java_client_is_refused_before_it_sends_a_byte(served: Served) -> None:
    path = await served.create(10)
    connection = await served.connect()

    await connection.send_head(
        "PATCH",
        path,
        [("Tus-Resumable", "1.0.0"), ("Upload-Offset", "5"), ("Content-Type", OCTETS), ("Expect", "100-continue"),
         ("Transfer-Encoding", "chunked")],
    )  # fmt: skip
    response = await connection.response("PATCH")
    await connection.close()

    assert (response.status, response.interim) == (409, [])


async def test_tuskit_uploads_though_its_system_adds_headers_of_another_protocol(served: Served) -> None:
    """URLSession adds the headers of IETF resumable uploads to upload tasks by itself."""
    foreign = {"TUS-Resumable": "1.0.0", "Tus-Resumable": None, "Upload-Draft-Interop-Version": "6"}
    created = await served.request(
        "POST", "/files/", foreign | {"Upload-Length": "1000", "Upload-Complete": "?1", "Content-Length": "0"}
    )
    path = created.headers["location"]

    first = await served.patch(path, 0, b"a" * 500, foreign | {"Upload-Complete": "?0"})
    second = await served.patch(path, 500, b"b" * 500, foreign | {"Upload-Complete": "?1"})

    assert (created.status, first.status, second.status) == (201, 204, 204)
    assert 104 not in created.interim + first.interim
    assert (await served.request("GET", path)).body == b"a" * 500 + b"b" * 500


async def test_tuskit_continues_from_the_offset_of_a_409(served: Served) -> None:
    """It ignores the status of a file upload and trusts the header, so that must tell the truth."""
    path = await served.create(1000)
    await served.patch(path, 0, b"a" * 300)

    repeated = await served.patch(path, 0, b"a" * 500)
    continued = await served.patch(path, int(repeated.headers["upload-offset"]), b"b" * 700)

    assert (repeated.status, repeated.headers["upload-offset"]) == (409, "300")
    assert continued.status == 204


async def test_tuskit_learns_offset_and_length_from_head_and_extensions_without_spaces(served: Served) -> None:
    path = await served.create(1000)

    head = await served.head(path, {"TUS-Resumable": "1.0.0", "Tus-Resumable": None})
    options = await served.request("OPTIONS", "/files/", {"Tus-Resumable": None})

    assert (head.headers["upload-offset"], head.headers["upload-length"]) == ("0", "1000")
    assert options.status == 200
    for name in ("tus-version", "tus-extension", "tus-checksum-algorithm"):
        assert " " not in options.headers[name]
