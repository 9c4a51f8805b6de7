"""tus 1.0.0 §creation-with-upload."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.http.served import Serve, Served
from tests.http.support import eventually
from tests.support.http_client import OFFSET_TYPE, TUS, ConnectionLost, chunk, chunked

BODY = {"Content-Type": OFFSET_TYPE}
IN_CHUNKS = BODY | {"Transfer-Encoding": "chunked"}
BIG = 3 * 2**20


async def uploads(served: Served) -> list[tuple[str, int, datetime]]:
    rows = await served.core.database.fetch(
        "SELECT state, upload_offset, expires_at FROM uploads WHERE state NOT IN ('removing', 'removed')"
    )
    return [(row["state"], row["upload_offset"], row["expires_at"]) for row in rows]


@pytest.mark.parametrize("size", [5, BIG])
@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("part", [False, True])
async def test_bytes_may_come_along(served: Served, size: int, framed: bool, part: bool) -> None:
    """CWU-02"""
    data = bytes(range(1, 6)) * (size // 5) + b"x" * (size % 5)
    length = str(size + 7 if part else size)
    headers = (IN_CHUNKS if framed else BODY) | {"Upload-Length": length}

    response = await served.request("POST", "/files/", headers, chunked(data) if framed else data)

    path = response.headers["location"]
    upload = await served.upload(path)
    assert (response.status, response.headers["upload-offset"]) == (201, str(size))
    assert await served.staged(path) == data
    assert upload.complete is not part
    assert await served.count("events", upload, "upload.completed") == (0 if part else 1)
    assert ("upload-expires" in response.headers) is part


async def test_a_length_that_is_not_known_yet_does_not_matter(served: Served) -> None:
    """CWU-02 CWU-04"""
    path = await served.create(None, BODY | {"Upload-Defer-Length": "1"}, b"hello")

    head = await served.head(path)
    assert (head.headers["upload-offset"], head.headers["upload-defer-length"]) == ("5", "1")


async def test_a_small_body_cut_short_leaves_nothing(served: Served) -> None:
    """CWU-03"""
    connection = await served.connect()
    await connection.send_head(
        "POST", "/files/", [TUS, ("Upload-Length", "10"), ("Content-Length", "10"), *BODY.items()]
    )
    await connection.send(b"hello")
    await eventually(lambda: any(body.received for body in served.bodies))

    connection.abort()
    await eventually(lambda: not served.bodies)

    assert await uploads(served) == []
    assert list(served.core.staging.files()) == []


async def test_a_large_body_cut_short_is_kept_for_a_short_while(serve: Serve) -> None:
    """CWU-03"""
    served = await serve(staging={"checkpoint_bytes": 2**20})
    connection = await served.connect()
    await connection.send_head(
        "POST", "/files/", [TUS, ("Upload-Length", str(BIG)), ("Content-Length", str(BIG)), *BODY.items()]
    )
    await connection.send(b"x" * (BIG - 5))
    await eventually(lambda: any(body.received == BIG - 5 for body in served.bodies))

    connection.abort()
    await eventually(lambda: not served.bodies)

    [(state, offset, expires_at)] = await uploads(served)
    assert (state, offset) == ("uploading", BIG - 5)
    assert expires_at <= datetime.now(UTC) + timedelta(hours=1)


@pytest.mark.parametrize("pieces", [[], [b"x" * BIG]])
async def test_once_the_url_is_known_the_upload_lives_as_long_as_any(served: Served, pieces: list[bytes]) -> None:
    """CWU-03 EXP-03"""
    path = await served.create(BIG + 1, IN_CHUNKS, chunked(*pieces))

    assert await served.expires_at(path) > datetime.now(UTC) + timedelta(days=6)


async def test_a_body_over_the_length_creates_nothing(served: Served) -> None:
    """CWU-05"""
    announced = await served.request("POST", "/files/", BODY | {"Upload-Length": "4"}, b"hello")
    streamed = await served.request("POST", "/files/", IN_CHUNKS | {"Upload-Length": "4"}, chunked(b"hel", b"lo"))

    assert [announced.status, streamed.status] == [413, 413]
    assert "location" not in announced.headers
    assert "location" not in streamed.headers
    assert await uploads(served) == []


async def test_a_body_over_the_maximum_creates_nothing(serve: Serve) -> None:
    """CWU-05 CRE-05"""
    served = await serve(limits={"max_size": 4})
    defer = {"Upload-Defer-Length": "1"}

    announced = await served.request("POST", "/files/", BODY | defer, b"hello")
    streamed = await served.request("POST", "/files/", IN_CHUNKS | defer, chunked(b"hel", b"lo"))

    assert [announced.status, streamed.status] == [413, 413]
    assert await uploads(served) == []


@pytest.mark.parametrize(
    ("headers", "body"), [(BODY | {"Content-Length": "0"}, b""), (BODY, b""), (IN_CHUNKS, chunked())]
)
async def test_no_byte_may_come_along_either(served: Served, headers: dict[str, str], body: bytes) -> None:
    """CWU-06"""
    response = await served.request("POST", "/files/", headers | {"Upload-Length": "5"}, body)

    assert (response.status, response.headers["upload-offset"]) == (201, "0")
    assert (await served.patch(response.headers["location"], 0, b"hello")).status == 204


async def test_a_refusal_comes_before_the_body(served: Served) -> None:
    """CWU-07 CORE-28"""
    connection = await served.connect()
    await connection.send_head(
        "POST", "/files/", [TUS, ("Content-Length", "5"), ("Expect", "100-continue"), *BODY.items()]
    )

    response = await connection.response()

    assert (response.status, response.interim) == (400, [])


async def test_the_body_is_asked_for(served: Served) -> None:
    """CWU-07 CORE-28"""
    connection = await served.connect()
    headers = [TUS, ("Upload-Length", "5"), ("Content-Length", "5"), ("Expect", "100-continue"), *BODY.items()]
    await connection.send_head("POST", "/files/", headers)

    assert await connection.interim() == 100
    await connection.send(b"hello")
    assert (await connection.response()).headers["upload-offset"] == "5"


async def test_switched_off_the_body_is_ignored(serve: Serve) -> None:
    """CWU-08"""
    served = await serve(tus={"disable": ["creation-with-upload"]})

    response = await served.request("POST", "/files/", BODY | {"Upload-Length": "5"}, b"hello")

    assert (response.status, response.headers["upload-offset"]) == (201, "0")
    assert (await served.patch(response.headers["location"], 0, b"HELLO")).status == 204


HELLO_SHA1 = "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00="


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize(("body", "status"), [(b"hello", 201), (b"hallo", 460)])
async def test_a_checksum_decides_whether_anything_is_created(
    served: Served, framed: bool, body: bytes, status: int
) -> None:
    """CWU-09"""
    headers = (IN_CHUNKS if framed else BODY) | {"Upload-Length": "5", "Upload-Checksum": HELLO_SHA1}

    response = await served.request("POST", "/files/", headers, chunked(body) if framed else body)

    assert response.status == status
    assert len(await uploads(served)) == (1 if status == 201 else 0)
    assert ("location" in response.headers) is (status == 201)


async def test_a_body_with_a_checksum_that_breaks_off_leaves_nothing(served: Served) -> None:
    """CWU-09 CSUM-07"""
    connection = await served.connect()
    headers = [TUS, ("Upload-Length", "5"), ("Upload-Checksum", HELLO_SHA1), *IN_CHUNKS.items()]
    await connection.send_head("POST", "/files/", headers)
    await connection.send(chunk(b"hel"))
    await eventually(lambda: any(body.received for body in served.bodies))

    await connection.close()
    await eventually(lambda: not served.bodies)

    assert await uploads(served) == []


async def test_a_stalled_body_is_let_go(serve: Serve) -> None:
    """CORE-21 CWU-03"""
    served = await serve(limits={"idle_timeout": 0.2})
    connection = await served.connect()
    await connection.send_head("POST", "/files/", [TUS, ("Upload-Length", "5"), ("Content-Length", "5"), *BODY.items()])

    with pytest.raises(ConnectionLost):
        await connection.response()
