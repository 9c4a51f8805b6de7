"""Whatever stands in the headers: an answer below 500, and never a traceback. Over the socket."""

from __future__ import annotations

import random
import string

import pytest

from tests.http.rufh import PARTIAL_TYPE, Client
from tests.http.served import Serve
from tests.support.http_client import OFFSET_TYPE, ConnectionLost

ROUNDS = 400
NAMES = [
    "Tus-Resumable", "Upload-Length", "Upload-Offset", "Upload-Metadata", "Upload-Defer-Length", "Upload-Concat",
    "Upload-Checksum", "Content-Type", "Content-Encoding", "Trailer", "X-HTTP-Method-Override", "Origin", "Range",
    "If-Range", "If-None-Match", "Authorization", "X-Request-ID", "X-Forwarded-Host", "X-Forwarded-For", "Forwarded",
    "Access-Control-Request-Method", "Access-Control-Request-Headers", "Expect", "Accept", "If-Modified-Since", "Host",
    "Upload-Complete", "Upload-Incomplete", "Upload-Draft-Interop-Version", "Content-Digest", "Content-Disposition",
]  # fmt: skip
VALUES = [
    "", "1.0.0", "0", "1", "5", "-1", "9" * 19, "9" * 30, "partial", "final;", "final;/files/{token}", "final;http://[",
    "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=", "sha1 AAAA", "filename YQ==", "a,,b", OFFSET_TYPE, "gzip", "Upload-Checksum",
    "PATCH", "DELETE", "HEAD", "GET", "https://a.example", "null", "http://[::1", "bytes=0-", "bytes=-1", '"x"', "*",
    "Bearer x.y.z", "192.0.2.1, [::1", 'host="a\\"b";proto=https', "100-continue", "text/html", "\x7f", "\x80\xff",
    "?1", "?0", "?2", "3", "6", "8", "5;x=1", "application/partial-upload", "sha-256=:AAAA:", "a=(1 2);b, c", "-5",
    'x; filename="a', "x; filename*=UTF-8''%ff", '"\\', "@1", '%"', "1.5",
    "\t", "a" * 300, "%00", "Sat, 29 Feb 2020 25:00:00 GMT", 'W/"', "x:y", "ä", "final;\u00a0", "🦥",
]  # fmt: skip


def request(choose: random.Random, token: str, other: str) -> bytes:
    path = choose.choice([
        "/files", "/files/", f"/files/{token}", f"/files/{token}/", f"/download/{token}", "/api/v1/uploads", "/",
        "/files/%ff", "/files/%", "/files/\xff", "//files//", "/files/?a=%zz", "/api/v1/uploads?before=%ff&limit=\x7f",
        "http://x/files/", "*",
    ])  # fmt: skip
    method = choose.choice(["POST", "PATCH", "HEAD", "GET", "DELETE", "OPTIONS", "PUT", "TRACE"])
    if choose.random() < 0.5:
        # Begin with what is right, so that what is wrong is looked at and not only the path.
        method, path, right = choose.choice([
            ("POST", "/files/", ["Upload-Length: 5"]),
            ("POST", "/files/", ["Upload-Concat: final;/files/" + token]),
            ("PATCH", f"/files/{token}", ["Upload-Offset: 0", f"Content-Type: {OFFSET_TYPE}"]),
            ("POST", "/files/", ["Upload-Complete: ?1", "Upload-Draft-Interop-Version: 8"]),
            ("PATCH", f"/files/{other}", ["Upload-Offset: 0", "Upload-Complete: ?0", f"Content-Type: {PARTIAL_TYPE}"]),
            ("HEAD", f"/files/{other}", ["Upload-Draft-Interop-Version: 6"]),
        ])  # fmt: skip
    else:
        right = []
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *right]
    if choose.random() < 0.5:
        lines.append("Tus-Resumable: 1.0.0")
    for name in choose.sample(NAMES, choose.randrange(4)):
        value = choose.choice(VALUES).replace("{token}", token)
        if choose.random() < 0.2:
            value += "".join(choose.choices(string.printable[:95] + "\x01\x80\xfe", k=5))
        lines.append(f"{name}: {value}")
    body = b""
    if choose.random() < 0.4:
        body = bytes(choose.choices(range(256), k=choose.randrange(8)))
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join([*lines, "", ""])
    return head.encode("latin-1", "ignore") + body if choose.random() < 0.5 else head.encode() + body


@pytest.mark.parametrize("seed", range(3))
async def test_no_request_makes_the_server_fail(
    serve: Serve, seed: int, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """GEN-12 AIO-09 AIO-10"""
    served = await serve(
        tus={"checksum_trailer": True},
        rufh={"interim_104": True},
        server={"trusted_proxies": ["127.0.0.1"]},
        limits={"max_size": 10**9},
    )
    choose = random.Random(seed)
    token = (await served.create(5, {"Upload-Concat": "partial"})).rpartition("/")[2]
    other = (await Client(served, 8).created()).rpartition("/")[2]

    seen = set()
    for _ in range(ROUNDS):
        data = request(choose, token, other)
        connection = await served.connect()
        await connection.send(data)
        try:
            response = await connection.response(data.split(b" ", 1)[0].decode())
        except ConnectionLost as lost:
            raise AssertionError(data) from lost
        assert response.status < 500, (data, response)
        assert response.status == 200 or b"<html" not in response.body
        seen.add(response.status)
        await connection.close()

    assert {200, 201, 204, 400, 404, 405, 412, 415} <= seen
    output = "".join(capfd.readouterr()) + caplog.text
    assert "Traceback" not in output
    assert "request_failed" not in output
