"""tus 1.0.0 §Core protocol."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Iterable

import pytest

from tests.http.served import Serve, Served
from tests.http.support import eventually
from tests.support.http_client import OFFSET_TYPE, TUS, ConnectionLost, Response, chunk, chunked, patch_head
from tusd_py.protocol.upload import TokenHash, Upload

MISSING = "/files/" + "b" * 32


@pytest.mark.parametrize("version", ["9.9.9", "1.0", "", "1.0.0, 1.0.0", "0.2.2"])
async def test_another_version_changes_nothing(served: Served, version: str) -> None:
    """CORE-02"""
    path = await served.create(5)
    own = {"Tus-Resumable": version}

    answers = [
        await served.request("POST", "/files/", own | {"Upload-Length": "5"}),
        await served.patch(path, 0, b"hello", own),
        await served.request("DELETE", path, own),
        await served.head(path, own),
    ]

    assert [response.status for response in answers] == [412] * 4
    assert {response.headers["tus-version"] for response in answers} == {"1.0.0"}
    assert await served.offset(path) == 0


async def test_a_missing_version_comes_before_everything_else(served: Served) -> None:
    """CORE-03"""
    response = await served.request("PATCH", MISSING, {"Tus-Resumable": None}, b"hello")

    assert (response.status, response.headers["tus-version"]) == (412, "1.0.0")


async def test_options_tell_what_is_offered(serve: Serve) -> None:
    """CORE-04 CORE-05 CORE-06 CORE-26 CORE-27 CRE-01 CWU-01 DEF-01 TERM-01 CAT-01 CATU-01 CSUM-01 EXP-01"""
    served = await serve(limits={"max_size": 1000})
    path = await served.create(5)

    for target in ("/files/", "/files", path, MISSING, "/files/../x"):
        for headers in ([], [("Tus-Resumable", "9.9.9")]):
            response = await served.request("OPTIONS", target, headers)
            assert (response.status, response.body) == (200, b"")
            assert response.headers["tus-version"] == "1.0.0"
            assert response.headers["tus-resumable"] == "1.0.0"
            assert response.headers["tus-max-size"] == "1000"
            assert response.headers["tus-checksum-algorithm"] == "sha1,sha256,sha512,md5,crc32"
            assert response.headers["tus-extension"] == (
                "creation,creation-with-upload,creation-defer-length,expiration,checksum,termination,"
                "concatenation,concatenation-unfinished"
            )


async def test_no_limit_is_not_announced(served: Served) -> None:
    """CORE-06"""
    assert "tus-max-size" not in (await served.request("OPTIONS", "/files/")).headers


async def test_what_is_switched_off_is_not_announced(serve: Serve) -> None:
    """CORE-05 EXP-01 CWU-01"""
    off = ["creation-with-upload", "creation-defer-length", "checksum", "termination", "concatenation"]
    served = await serve(tus={"disable": off, "expire_after": 0, "checksum_trailer": True})

    response = await served.request("OPTIONS", "/files/")

    assert response.headers["tus-extension"] == "creation"
    assert "tus-checksum-algorithm" not in response.headers


async def test_a_post_may_stand_for_other_methods(served: Served) -> None:
    """CORE-07 AIO-14"""
    path = await served.create(5)

    def overridden(method: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> Awaitable[Response]:
        return served.request("POST", path, [TUS, *headers, ("X-HTTP-Method-Override", method)], body)

    patched = await overridden("PATCH", patch_head(0)[1:], b"hello")
    asked = await overridden("HEAD")
    deleted = await overridden("DELETE")

    assert (patched.status, patched.headers["upload-offset"]) == (204, "5")
    assert (asked.status, asked.headers["upload-offset"], asked.body) == (200, "5", b"")
    assert deleted.status == 204
    assert (await served.head(path)).status == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "OPTIONS", "patch", "", "PATCH, DELETE"])
async def test_no_other_method_may_be_stood_for(served: Served, method: str) -> None:
    """CORE-07"""
    path = await served.create(5)

    assert (await served.request("POST", path, {"X-HTTP-Method-Override": method})).status == 400


async def test_the_override_counts_on_post_alone(served: Served) -> None:
    """CORE-07 CORS-10"""
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"hello")

    got = await served.request("GET", path, {"X-HTTP-Method-Override": "DELETE"})
    created = await served.request("POST", "/files/", {"X-HTTP-Method-Override": "PATCH", "Upload-Length": "1"})

    assert (got.status, got.body) == (200, b"hello")
    assert created.status == 405
    assert await served.offset(path) == 5


async def test_head_tells_offset_and_length(served: Served) -> None:
    """CORE-08 CORE-09 CORE-10"""
    path = await served.create(5)
    for offset, body in [(0, b"he"), (2, b"llo"), (5, b"")]:
        response = await served.head(path)
        assert response.status == 200
        assert response.headers["upload-offset"] == str(offset)
        assert response.headers["upload-length"] == "5"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers.get("content-length", "0") == "0"
        await served.patch(path, offset, body)


@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE", "GET"])
async def test_an_unknown_upload_is_not_found(served: Served, method: str) -> None:
    """CORE-11 CORE-17 TERM-06"""
    response = await served.request(method, MISSING, dict(patch_head(0)) if method == "PATCH" else {})

    assert response.status == 404
    assert "upload-offset" not in response.headers


async def test_append_answers_the_new_offset(served: Served) -> None:
    """CORE-13"""
    path = await served.create(11)

    first = await served.patch(path, 0, b"hello ")
    second = await served.patch(path, 6, b"world")

    assert [(r.status, r.headers["upload-offset"]) for r in (first, second)] == [(204, "6"), (204, "11")]
    assert await served.staged(path) == b"hello world"


@pytest.mark.parametrize("offset", [0, 1, 3, 5, 6])
async def test_append_elsewhere_is_refused_before_the_body_is_read(served: Served, offset: int) -> None:
    """CORE-14 CORE-29"""
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"he")
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(offset, ("Content-Length", "3")))

    response = await connection.response()

    assert (response.status, response.headers["upload-offset"]) == (409, "2")
    assert await served.offset(path) == 2
    assert await served.staged(path) == b"he"
    await connection.close()


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (OFFSET_TYPE, 204),
        ("Application/Offset+Octet-Stream; charset=x", 204),
        ("application/octet-stream", 415),
        ("application/offset+octet-streams", 415),
        ("", 415),
        (None, 415),
    ],
)
async def test_append_demands_its_media_type(served: Served, content_type: str | None, status: int) -> None:
    """CORE-15"""
    path = await served.create(5)

    assert (await served.patch(path, 0, b"hello", {"Content-Type": content_type})).status == status
    assert await served.offset(path) == (5 if status == 204 else 0)


async def test_append_demands_an_offset(served: Served) -> None:
    """CORE-16"""
    path = await served.create(5)

    assert (await served.request("PATCH", path, {"Content-Type": OFFSET_TYPE}, b"hello")).status == 400


async def test_checks_come_in_their_order(served: Served) -> None:
    """CORE-17"""
    final = await served.create(
        None, {"Upload-Concat": f"final;{await served.create(0, {'Upload-Concat': 'partial'})}"}
    )
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"he")
    wrong = {
        "Content-Type": "text/plain",
        "Upload-Offset": "x",
        "Upload-Length": "y",
        "Upload-Checksum": "nonsense",
    }

    async def status(path: str, **corrected: str) -> int:
        headers = wrong | {name.replace("_", "-"): value for name, value in corrected.items()}
        return (await served.request("PATCH", path, headers, b"llo and more")).status

    assert await status(path, Tus_Resumable="9") == 412
    assert await status(MISSING) == 404
    assert await status(final) == 403
    assert await status(path) == 415
    assert await status(path, Content_Type=OFFSET_TYPE) == 400
    assert await status(path, Content_Type=OFFSET_TYPE, Upload_Offset="3") == 409
    assert await status(path, Content_Type=OFFSET_TYPE, Upload_Offset="2") == 413
    assert await served.offset(path) == 2


async def test_an_announced_overlong_body_is_refused_unread(served: Served) -> None:
    """CORE-18"""
    path = await served.create(5)
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(0, ("Content-Length", "6")))

    response = await connection.response()

    assert (response.status, response.headers["upload-offset"]) == (413, "0")
    assert await served.offset(path) == 0
    await connection.close()


@pytest.mark.parametrize("pieces", [[b"hello!"], [b"hello", b"!"], [b"he", b"llo", b"!"], [b"hel", b"lo!"]])
async def test_an_overlong_chunked_body_never_completes_the_upload(served: Served, pieces: list[bytes]) -> None:
    """CORE-18 CORE-24"""
    path = await served.create(5)
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(0, ("Transfer-Encoding", "chunked")))
    for piece in pieces:
        await connection.send(chunk(piece))

    response = await connection.response()

    assert response.status == 413
    upload = await served.upload(path)
    assert int(response.headers["upload-offset"]) == upload.offset < 5
    assert b"hello".startswith(await served.staged(path))
    assert await served.count("events", upload, "upload.completed") == 0
    await connection.closed()
    assert (await served.patch(path, upload.offset, b"hello"[upload.offset :])).status == 204


async def test_a_chunked_body_that_waits_at_the_length_completes_once_it_ends(served: Served) -> None:
    """CORE-18 CORE-24"""
    path = await served.create(5)
    connection = await served.begin(path, 0, b"hello", ("Transfer-Encoding", "chunked"))
    assert not (await served.upload(path)).complete

    await connection.send(chunked())

    assert (await connection.response()).status == 204
    assert (await served.upload(path)).complete


@pytest.mark.parametrize("framing", ["Content-Length", "Transfer-Encoding"])
@pytest.mark.parametrize("ending", ["fin", "rst"])
async def test_what_arrived_before_a_disconnect_is_kept(served: Served, framing: str, ending: str) -> None:
    """CORE-19 CORE-20 AIO-06"""
    path = await served.create(300_000)
    extra = ("Content-Length", "300000") if framing == "Content-Length" else ("Transfer-Encoding", "chunked")
    connection = await served.begin(path, 0, b"x" * 120_000, extra)

    connection.abort() if ending == "rst" else await connection.close()
    await eventually(lambda: not served.bodies)

    assert await served.offset(path) == 120_000
    assert (await served.patch(path, 120_000, b"y" * 180_000)).status == 204
    assert await served.staged(path) == b"x" * 120_000 + b"y" * 180_000


async def test_what_waits_in_the_buffer_at_a_disconnect_is_kept(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CORE-20 AIO-06"""
    path = await served.create(1_000_000)
    held, go_on = asyncio.Event(), asyncio.Event()
    advance = served.core.uploads.find_by_token

    async def slow(token_hash: TokenHash) -> Upload | None:
        held.set()
        await go_on.wait()
        return await advance(token_hash)

    monkeypatch.setattr(served.core.uploads, "find_by_token", slow)
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(0, ("Content-Length", "1000000")))
    await held.wait()
    await connection.send(b"z" * 150_000)
    await connection.close()
    body = next(iter(served.bodies))
    await eventually(lambda: body._request.transport is None)
    go_on.set()
    await eventually(lambda: not served.bodies)
    monkeypatch.undo()

    assert await served.offset(path) == 150_000
    assert await served.staged(path) == b"z" * 150_000


async def test_the_last_byte_completes_whatever_ends_the_body(served: Served) -> None:
    """CORE-19"""
    path = await served.create(5)
    connection = await served.begin(path, 0, b"hello", ("Transfer-Encoding", "chunked"))

    connection.abort()
    await eventually(lambda: not served.bodies)

    assert (await served.upload(path)).complete


async def test_a_half_closed_connection_with_a_whole_body_is_stored_whole(served: Served) -> None:
    """CORE-19 AIO-06"""
    path = await served.create(5)
    connection = await served.connect()
    await connection.send_head(
        "PATCH", path, patch_head(0, ("Content-Length", "5"), ("Upload-Checksum", "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00="))
    )
    await connection.send(b"hello")
    connection.writer.transport.get_extra_info("socket").shutdown(socket.SHUT_WR)

    await connection.closed()
    await eventually(lambda: not served.bodies)

    assert (await served.upload(path)).complete


async def test_a_silent_client_is_let_go_and_its_bytes_are_kept(serve: Serve) -> None:
    """CORE-21 AIO-15"""
    served = await serve(limits={"idle_timeout": 0.3})
    path = await served.create(10)
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(0, ("Content-Length", "10")))
    await connection.send(b"hello")

    with pytest.raises(ConnectionLost):
        await connection.response()

    assert await served.offset(path) == 5


async def test_a_slow_client_is_not_timed_out_as_long_as_bytes_come(serve: Serve) -> None:
    """CORE-21"""
    served = await serve(limits={"idle_timeout": 2})
    path = await served.create(10)
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(0, ("Content-Length", "10")))
    # Longer than that in all, and never nearly as long without a byte.
    for count in range(1, 11):
        await connection.send(b"x")
        if count < 10:
            await served.until_received(count)
        await asyncio.sleep(0.25)

    assert (await connection.response()).status == 204


async def test_a_repeated_finish_succeeds_and_has_no_effect(served: Served) -> None:
    """CORE-22"""
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"hello")
    upload = await served.upload(path)

    empty = await served.patch(path, 5, b"")
    empty_chunked = await served.patch_chunked(path, 5)
    longer = await served.patch(path, 5, b"!")
    longer_chunked = await served.patch_chunked(path, 5, b"!")
    elsewhere = await served.patch(path, 0, b"hello")

    assert [r.status for r in (empty, empty_chunked, longer, longer_chunked, elsewhere)] == [204, 204, 413, 413, 409]
    assert {r.headers["upload-offset"] for r in (empty, empty_chunked, longer, longer_chunked, elsewhere)} == {"5"}
    assert await served.count("events", upload, "upload.completed") == 1
    assert await served.count("jobs", upload, "transfer") == 1


async def test_a_repeated_finish_that_waits_for_100_is_not_kept_waiting(served: Served) -> None:
    """CORE-22 CORE-28"""
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"hello")
    connection = await served.connect()
    await connection.send_head(
        "PATCH", path, patch_head(5, ("Transfer-Encoding", "chunked"), ("Expect", "100-continue"))
    )

    assert await connection.interim() == 100
    await connection.send(chunked())
    assert (await connection.response()).status == 204


async def test_an_empty_append_changes_nothing(served: Served) -> None:
    """CORE-23"""
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"he")

    plain = await served.patch(path, 2, b"", {"Content-Length": "0"})
    chunky = await served.patch_chunked(path, 2)

    assert [(r.status, r.headers["upload-offset"]) for r in (plain, chunky)] == [(204, "2")] * 2
    assert await served.offset(path) == 2


async def test_empty_appends_without_end_are_stopped(serve: Serve) -> None:
    """CORE-23"""
    served = await serve(limits={"max_empty_patches": 3})
    path = await served.create(5)

    answers = [(await served.patch_chunked(path, 0)).status for _ in range(2)]
    answers += [(await served.patch(path, 0, b"")).status for _ in range(4)]

    assert answers == [204, 204, 204, 403, 403, 403]
    assert await served.offset(path) == 0
    assert (await served.patch(path, 0, b"h")).status == 204
    assert (await served.patch(path, 1, b"")).status == 204


async def test_a_body_in_many_chunks_is_stored_as_one(served: Served) -> None:
    """CORE-24 CORE-25"""
    path = await served.create(1000)

    done = await served.patch_chunked(path, 0, *[bytes([number]) * 10 for number in range(100)])

    assert (done.status, done.headers["upload-offset"]) == (204, "1000")
    assert await served.staged(path) == b"".join(bytes([number]) * 10 for number in range(100))


async def test_a_large_body_is_taken_whole(served: Served) -> None:
    """CORE-25"""
    data = bytes(range(256)) * 4096 * 12
    path = await served.create(len(data))

    done = await served.patch(path, 0, data)

    assert done.headers["upload-offset"] == str(len(data))
    assert await served.staged(path) == data


async def test_continue_is_sent_once_every_check_has_passed(served: Served) -> None:
    """CORE-28 CWU-07 AIO-03"""
    path = await served.create(5)
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(0, ("Content-Length", "5"), ("Expect", "100-Continue")))

    assert await connection.interim() == 100
    await connection.send(b"hello")
    assert (await connection.response()).status == 204


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([TUS, ("Upload-Offset", "3"), ("Content-Type", OFFSET_TYPE)], 409),
        ([TUS, ("Upload-Offset", "0"), ("Content-Type", "text/plain")], 415),
        ([("Upload-Offset", "0"), ("Content-Type", OFFSET_TYPE)], 412),
        ([TUS, ("Upload-Offset", "0"), ("Content-Type", OFFSET_TYPE), ("Upload-Checksum", "sha9 AA==")], 400),
    ],
)
async def test_a_refusal_comes_without_continue(served: Served, headers: list[tuple[str, str]], status: int) -> None:
    """CORE-28 CWU-07 AIO-03"""
    path = await served.create(5)
    connection = await served.connect()
    await connection.send_head("PATCH", path, [*headers, ("Content-Length", "5"), ("Expect", "100-continue")])

    response = await connection.response()

    assert (response.status, response.interim) == (status, [])
    await connection.close()


async def test_an_early_refusal_reaches_a_client_that_is_still_sending(served: Served) -> None:
    """CORE-29 AIO-07"""
    path = await served.create(50_000_000)
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(7, ("Content-Length", "50000000")))

    async def blast() -> None:
        for _ in range(100):
            await connection.send(b"x" * 500_000)

    sending = asyncio.create_task(blast())
    response = await connection.response()
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)

    assert (response.status, response.headers["upload-offset"]) == (409, "0")
    connection.abort()


async def test_a_refused_body_is_read_to_its_end_and_the_connection_goes_on(served: Served) -> None:
    """CORE-29 AIO-07"""
    path = await served.create(5)
    connection = await served.connect()

    refused = await connection.request("PATCH", path, patch_head(3), b"xyz")
    accepted = await connection.request("PATCH", path, patch_head(0), b"hello")

    assert (refused.status, accepted.status) == (409, 204)
    await connection.close()


async def test_a_chunked_request_ends_its_connection(served: Served) -> None:
    """AIO-04"""
    path = await served.create(5)
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(0, ("Transfer-Encoding", "chunked")))
    await connection.send(chunked(b"hello", trailers=[("Authorization", "Bearer evil")]))

    response = await connection.response()

    assert response.status == 204
    assert response.headers["connection"] == "close"
    assert await connection.closed() == b""


async def test_a_finished_upload_is_served(served: Served) -> None:
    """CORE-30 TERM-03"""
    path = await served.create(5)
    assert (await served.request("GET", path)).status == 409

    await served.patch(path, 0, b"hello")
    got = await served.request("GET", path)
    assert (got.status, got.body) == (200, b"hello")
    assert re.match("attachment|inline", got.headers["content-disposition"])

    await served.request("DELETE", path)
    assert (await served.request("GET", path)).status == 404


async def test_several_requests_share_a_connection(served: Served) -> None:
    """AIO-12 AIO-16"""
    connection = await served.connect()
    created = await connection.request("POST", "/files/", [TUS, ("Upload-Length", "6")])
    path = created.headers["location"]

    offsets = [
        (await connection.request("PATCH", path, patch_head(offset), b"ab")).headers["upload-offset"]
        for offset in (0, 2, 4)
    ]

    assert offsets == ["2", "4", "6"]
    await connection.close()
