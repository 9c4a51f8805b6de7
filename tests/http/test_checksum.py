"""tus 1.0.0 §checksum and §checksum-trailer."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterable

import pytest
from aiohttp import web

from tests.http.served import Serve, Served
from tests.http.support import eventually
from tests.support.http_client import OFFSET_TYPE, ConnectionLost, Response, chunk, chunked, exchange, patch_head
from tusd_py.http.application import build_application, runner_options

BIG = bytes(range(256)) * 4096 * 3
ALGORITHMS = ["sha1", "sha256", "sha512", "md5", "crc32"]


def digest(data: bytes, algorithm: str = "sha1") -> str:
    value = zlib.crc32(data).to_bytes(4, "big") if algorithm == "crc32" else hashlib.new(algorithm, data).digest()
    return f"{algorithm} {base64.b64encode(value).decode()}"


async def test_the_algorithms_are_announced(served: Served) -> None:
    """CSUM-01 CSUM-02"""
    announced = (await served.request("OPTIONS", "/files/")).headers["tus-checksum-algorithm"]

    assert announced.split(",") == ALGORITHMS
    assert announced == announced.lower()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("framed", [False, True])
async def test_a_match_moves_the_offset(served: Served, algorithm: str, framed: bool) -> None:
    """CSUM-02 CSUM-03"""
    path = await served.create(len(BIG) + 5)
    send = served.patch_chunked if framed else served.patch

    first = await send(path, 0, BIG, headers={"Upload-Checksum": digest(BIG, algorithm)})
    second = await send(path, len(BIG), b"hello", headers={"Upload-Checksum": digest(b"hello", algorithm)})

    assert [first.status, second.status] == [204, 204]
    assert await served.staged(path) == BIG + b"hello"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("data", [b"hello", BIG])
async def test_a_mismatch_leaves_offset_and_file_as_they_were(served: Served, algorithm: str, data: bytes) -> None:
    """CSUM-04 AIO-11"""
    path = await served.create(len(data) + 2, {"Content-Type": OFFSET_TYPE}, b"he")

    refused = await served.patch(path, 2, data, {"Upload-Checksum": digest(b"other", algorithm)})

    assert (refused.status, refused.reason) == (460, "Checksum Mismatch")
    assert refused.headers["upload-offset"] == "2"
    assert digest(data, algorithm).split()[1].encode() not in refused.body
    assert await served.offset(path) == 2
    assert await served.staged(path) == b"he"
    assert (await served.patch(path, 2, data, {"Upload-Checksum": digest(data, algorithm)})).status == 204


@pytest.mark.parametrize(
    "value",
    [
        "sha3-256 qvTGHdzF6KLavt4PO0gs2a6pQ00=", "SHA1 qvTGHdzF6KLavt4PO0gs2a6pQ00=", "sha1", "sha1 ", "",
        "sha1  qvTGHdzF6KLavt4PO0gs2a6pQ00=", "sha1 !!!!", "sha1 A", "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=, md5 x",
    ],
)  # fmt: skip
async def test_a_malformed_or_unknown_checksum_is_refused_unread(served: Served, value: str) -> None:
    """CSUM-05 CSUM-06"""
    path = await served.create(5)
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(0, ("Content-Length", "5"), ("Upload-Checksum", value)))

    response = await connection.response()

    assert response.status == 400
    assert await served.offset(path) == 0


@pytest.mark.parametrize("value", ["sha1 AAAA", "md5 qvTGHdzF6KLavt4PO0gs2a6pQ00=", "sha512 AA==", "crc32 AAAAAAA="])
@pytest.mark.parametrize("framed", [False, True])
async def test_a_digest_of_the_wrong_length_is_a_mismatch(served: Served, value: str, framed: bool) -> None:
    """CSUM-06"""
    path = await served.create(7, {"Content-Type": OFFSET_TYPE}, b"he")
    send = served.patch_chunked if framed else served.patch

    refused = await send(path, 2, b"hello", headers={"Upload-Checksum": value})

    assert (refused.status, refused.reason) == (460, "Checksum Mismatch")
    assert refused.headers["upload-offset"] == "2"
    assert await served.offset(path) == 2
    assert await served.staged(path) == b"he"


@pytest.mark.parametrize("body", [b"", b"hello"])
async def test_a_digest_of_the_wrong_length_is_a_mismatch_on_an_empty_patch_and_at_creation(
    served: Served, body: bytes
) -> None:
    """CSUM-06"""
    checksum = {"Upload-Checksum": "sha1 AAAA"}
    path = await served.create(5)

    appended = await served.patch(path, 0, body, checksum)
    created = await served.request(
        "POST", "/files/", {"Upload-Length": "5", "Content-Type": OFFSET_TYPE} | checksum, b"hello"
    )

    assert [appended.status, created.status] == [460, 460]
    assert await served.offset(path) == 0


@pytest.mark.parametrize("framing", [("Content-Length", str(len(BIG))), ("Transfer-Encoding", "chunked")])
@pytest.mark.parametrize("ending", ["fin", "rst"])
async def test_a_body_cut_short_is_discarded_whole(serve: Serve, framing: tuple[str, str], ending: str) -> None:
    """CSUM-07"""
    served = await serve(staging={"checkpoint_bytes": 2**20})
    path = await served.create(len(BIG) + 2, {"Content-Type": OFFSET_TYPE}, b"he")
    connection = await served.begin(path, 2, BIG[:-5], framing, ("Upload-Checksum", digest(BIG)))
    assert (await served.upload(path)).offset == 2

    connection.abort() if ending == "rst" else await connection.close()
    await eventually(lambda: not served.bodies)

    assert await served.offset(path) == 2
    assert await served.staged(path) == b"he"


async def test_a_body_that_stalls_is_discarded_whole(serve: Serve) -> None:
    """CSUM-07"""
    served = await serve(limits={"idle_timeout": 0.2})
    path = await served.create(5)
    connection = await served.begin(path, 0, b"hel", ("Content-Length", "5"), ("Upload-Checksum", digest(b"hello")))

    with pytest.raises(ConnectionLost):
        await connection.response()

    assert await served.offset(path) == 0
    assert await served.staged(path) == b""


async def test_taking_over_discards_a_body_with_a_checksum(served: Served) -> None:
    """CSUM-07 LOCK-02"""
    path = await served.create(5)
    await served.begin(path, 0, b"hel", ("Content-Length", "5"), ("Upload-Checksum", digest(b"hello")))

    assert await served.offset(path) == 0
    assert await served.staged(path) == b""


async def test_an_overlong_body_is_too_long_whatever_its_checksum(served: Served) -> None:
    """CSUM-08"""
    path = await served.create(5)
    checksum = {"Upload-Checksum": digest(b"hello!")}

    announced = await served.patch(path, 0, b"hello!", checksum)
    streamed = await served.patch_chunked(path, 0, b"hello", b"!", headers=checksum)

    assert [announced.status, streamed.status] == [413, 413]
    assert await served.offset(path) == 0


async def test_bytes_that_a_crash_left_unpublished_are_cut_off(served: Served) -> None:
    """CSUM-09 LOCK-08"""
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"he")
    staging_file = served.core.staging.path((await served.upload(path)).id)
    with staging_file.open("ab") as file:
        file.write(b"XXXXXXXX")

    assert await served.offset(path) == 2
    assert (await served.patch(path, 2, b"llo", {"Upload-Checksum": digest(b"llo")})).status == 204
    assert await served.staged(path) == b"hello"


async def test_without_a_checksum_nothing_is_verified(served: Served) -> None:
    """CSUM-10"""
    path = await served.create(5)

    assert (await served.patch(path, 0, b"hallo")).status == 204


async def test_switched_off_a_checksum_is_not_looked_at(serve: Serve) -> None:
    """CSUM-01 CSUM-10"""
    served = await serve(tus={"disable": ["checksum"]})
    path = await served.create(5)

    assert (await served.patch(path, 0, b"hello", {"Upload-Checksum": digest(b"other")})).status == 204


async def test_an_empty_body_has_a_checksum_too(served: Served) -> None:
    """CSUM-03 CSUM-04"""
    path = await served.create(5)

    assert (await served.patch(path, 0, b"", {"Upload-Checksum": digest(b"")})).status == 204
    assert (await served.patch(path, 0, b"", {"Upload-Checksum": digest(b"x")})).status == 460


# --- in a trailer ---------------------------------------------------------------------------------

TRAILED = {"Transfer-Encoding": "chunked", "Trailer": "Upload-Checksum"}


@pytest.fixture
async def trailing(serve: Serve) -> Served:
    return await serve(tus={"checksum_trailer": True})


async def patch_trailed(
    served: Served,
    path: str,
    offset: int,
    pieces: Iterable[bytes],
    trailers: Iterable[tuple[str, str]],
    headers: dict[str, str] = TRAILED,
) -> Response:
    return await served.patch(path, offset, chunked(*pieces, trailers=trailers), headers)


async def test_trailers_are_announced_where_they_work(trailing: Served, serve: Serve) -> None:
    """TRL-01"""
    on = await trailing.request("OPTIONS", "/files/")
    off = await (await serve(tus={"checksum_trailer": True, "disable": ["checksum"]})).request("OPTIONS", "/files/")

    assert "checksum-trailer" in on.headers["tus-extension"].split(",")
    assert "checksum-trailer" not in off.headers["tus-extension"].split(",")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "data", [b"hello", BIG, b"", b"x\r\n0\r\nUpload-Checksum: sha1 AAAA\r\n\r\n", b"\r\n0\r\nX: y"]
)
async def test_a_trailer_is_verified(trailing: Served, algorithm: str, data: bytes) -> None:
    """TRL-02 AIO-04"""
    path = await trailing.create(len(data) + 2)

    wrong = await patch_trailed(trailing, path, 0, [data], [("Upload-Checksum", digest(b"no", algorithm))])
    right = await patch_trailed(trailing, path, 0, [data], [("upload-checksum", digest(data, algorithm))])

    assert (wrong.status, wrong.headers["upload-offset"]) == (460, "0")
    assert right.status == 204
    assert await trailing.staged(path) == data


async def test_a_trailer_that_arrives_byte_by_byte_is_verified(trailing: Served) -> None:
    """TRL-02 AIO-04"""
    path = await trailing.create(5)
    connection = await trailing.begin(path, 0, b"hello", *TRAILED.items())
    for byte in chunked(trailers=[("Upload-Checksum", digest(b"hello"))]):
        await connection.send(bytes([byte]))

    assert (await connection.response()).status == 204


async def test_a_trailer_counts_during_creation(trailing: Served) -> None:
    """TRL-02 CWU-09"""
    headers = TRAILED | {"Content-Type": OFFSET_TYPE, "Upload-Length": "5"}

    wrong = await trailing.request(
        "POST", "/files/", headers, chunked(b"hello", trailers=[("Upload-Checksum", digest(b"no"))])
    )
    right = await trailing.request(
        "POST", "/files/", headers, chunked(b"hello", trailers=[("Upload-Checksum", digest(b"hello"))])
    )

    assert [wrong.status, right.status] == [460, 201]


async def test_a_checksum_stands_in_one_place(trailing: Served) -> None:
    """TRL-03"""
    path = await trailing.create(5)

    both = await patch_trailed(
        trailing, path, 0, [b"hello"], [("Upload-Checksum", digest(b"hello"))],
        TRAILED | {"Upload-Checksum": digest(b"hello")},
    )  # fmt: skip

    assert both.status == 400
    assert await trailing.offset(path) == 0


@pytest.mark.parametrize(
    "trailers",
    [
        [],
        [("X-Other", "1")],
        [("Upload-Checksum", "sha1 A")],
        [("Upload-Checksum", "nonsense")],
        [("Upload-Checksum", digest(b"hello"))] * 2,
    ],
)
async def test_an_announced_trailer_that_cannot_be_read_discards_the_body(
    trailing: Served, trailers: list[tuple[str, str]]
) -> None:
    """TRL-04"""
    path = await trailing.create(5)

    refused = await patch_trailed(trailing, path, 0, [b"hello"], trailers)

    assert (refused.status, refused.headers["upload-offset"]) == (400, "0")
    assert await trailing.offset(path) == 0
    assert await trailing.staged(path) == b""


async def test_a_trailer_of_the_wrong_length_is_a_mismatch(trailing: Served) -> None:
    """CSUM-06 TRL-04"""
    path = await trailing.create(5)

    refused = await patch_trailed(trailing, path, 0, [b"hello"], [("Upload-Checksum", "sha1 AAAA")])

    assert (refused.status, refused.headers["upload-offset"]) == (460, "0")
    assert await trailing.staged(path) == b""


async def test_only_a_chunked_body_has_a_trailer(trailing: Served) -> None:
    """TRL-04"""
    path = await trailing.create(5)

    assert (await trailing.patch(path, 0, b"hello", {"Trailer": "Upload-Checksum"})).status == 400
    assert await trailing.offset(path) == 0


async def test_other_trailers_are_nobodys_business(trailing: Served) -> None:
    """TRL-02"""
    path = await trailing.create(5)
    headers = {"Transfer-Encoding": "chunked", "Trailer": "X-Time"}

    assert (await patch_trailed(trailing, path, 0, [b"hello"], [("X-Time", "1")], headers)).status == 204


async def test_where_trailers_are_off_an_announced_one_is_refused_unread(served: Served) -> None:
    """TRL-05"""
    path = await served.create(5)
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(0, *TRAILED.items()))

    assert (await connection.response()).status == 400
    assert await served.offset(path) == 0


async def test_in_a_server_that_keeps_no_trailers_they_are_off(trailing: Served) -> None:
    """TRL-01 TRL-05 CORE-05"""
    path = await trailing.create(5)
    runner = web.AppRunner(build_application(trailing.web), **runner_options(trailing.config))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    _, port = runner.addresses[0]

    options = await exchange("127.0.0.1", port, "OPTIONS", "/files/", [])
    body = chunked(b"hello", trailers=[("Upload-Checksum", digest(b"hello"))])
    refused = await exchange("127.0.0.1", port, "PATCH", path, patch_head(0, *TRAILED.items()), body)
    await runner.cleanup()

    assert "checksum-trailer" not in options.headers["tus-extension"].split(",")
    assert refused.status == 400
    assert await trailing.offset(path) == 0


@pytest.mark.parametrize("on", [False, True])
async def test_no_trailer_reaches_the_next_request(serve: Serve, on: bool) -> None:
    """AIO-04 TRL-02"""
    served = await serve(tus={"checksum_trailer": on})
    path, victim = await served.create(5), await served.create(7)
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(0, ("Transfer-Encoding", "chunked")))
    await connection.send(chunk(b"hello") + b"0\r\nX-HTTP-Method-Override: DELETE\r\nTus-Resumable: 1.0.0\r\n\r\n")
    await connection.send(f"POST {victim} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())

    assert (await connection.response()).status == 204
    assert await connection.closed() == b""
    assert await served.offset(victim) == 0
