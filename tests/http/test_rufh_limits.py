"""The IETF's dialect: limits and how they are found out, interim responses, digests, what proxies meet."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import Any, NoReturn

import pytest

from tests.http.rufh import PARTIAL_TYPE, VERSIONS, Client
from tests.http.served import Serve, Served
from tests.http.support import eventually
from tests.support.http_client import ConnectionLost, Response, chunked
from tusd_py.errors import DatabaseUnavailable
from tusd_py.protocol.upload import State
from tusd_py.uploads.service import Timing

CHUNKED = ("Transfer-Encoding", "chunked")
WEEK = 7 * 86400


def limits(response: Response) -> dict[str, int]:
    pairs = (member.split("=") for member in response.headers["upload-limit"].split(", "))
    return {key: int(value) for key, value in pairs}


def digest(algorithm: str, data: bytes) -> str:
    return f":{base64.b64encode(hashlib.new(algorithm.replace('-', ''), data).digest()).decode()}:"


async def until_durable(served: Served, path: str, offset: int) -> None:
    """Wait until a checkpoint has recorded so much."""
    async with asyncio.timeout(30):
        while (await served.upload(path)).offset < offset:
            await asyncio.sleep(0.005)


@pytest.fixture
async def limited(serve: Serve) -> Client:
    """A client of the newest version, of a server with limits."""
    return Client(await serve(limits={"max_size": 10}, rufh={"max_append_size": 6}), 8)


# --- limits --------------------------------------------------------------------------------------


async def test_without_limits_something_is_said_all_the_same(serve: Serve) -> None:
    """RL-01"""
    served = await serve(tus={"expire_after": 0})
    client = Client(served, 8)

    created = await client.create(complete=False)

    assert created.headers["upload-limit"] == "min-size=0"
    assert (await client.head(created.headers["location"])).headers["upload-limit"] == "min-size=0"


@pytest.mark.parametrize("version", VERSIONS)
async def test_limits_are_told_as_the_version_knows_them(serve: Serve, version: int | None) -> None:
    """RL-01 RC-03 RX-02"""
    client = Client(await serve(limits={"max_size": 10}, rufh={"max_append_size": 6}), version)

    created = await client.create(complete=False)

    if version in {3, 4, 5}:
        assert "upload-limit" not in created.headers
        return
    sent = limits(created)
    assert (sent.pop("max-size"), sent.pop("max-append-size")) == (10, 6)
    ages = [sent.pop("max-age"), *([sent.pop("expires")] if version == 6 else [])]
    assert sent == {}
    assert all(WEEK - 60 <= age <= WEEK for age in ages)


async def test_the_end_of_an_uploads_life_never_comes_nearer(limited: Client) -> None:
    """RL-02 RX-02"""
    path = await limited.created()
    await limited.served.core.database.execute("UPDATE uploads SET expires_at = now() + interval '1 hour'")

    before = limits(await limited.head(path))["max-age"]
    after = limits(await limited.append(path, 0, b"hello", complete=False))["max-age"]

    assert 3500 < before <= 3600
    assert after >= before
    assert "max-age" not in limits(await limited.append(path, 5, b"!", complete=True))


@pytest.mark.parametrize("fields", [[], [("Upload-Complete", "?0")], [("Upload-Draft-Interop-Version", "8")]])
async def test_options_tells_the_limits(limited: Client, fields: list[tuple[str, str]]) -> None:
    """RL-03"""
    response = await limited.served.request("OPTIONS", "/files/", fields)

    assert response.status == 200
    assert limits(response) == {"max-size": 10, "max-append-size": 6, "max-age": WEEK}
    assert (response.headers["accept-patch"], response.headers["tus-version"]) == (PARTIAL_TYPE, "1.0.0")


@pytest.mark.parametrize(
    ("body", "extra", "complete"),
    [
        (b"", [("Upload-Length", "11")], False),
        (b"x" * 11, [], True),
        (b"x" * 11, [], False),
        (b"x" * 7, [], True),
        (chunked(b"x" * 7), [CHUNKED], True),
        (chunked(b"x" * 4, b"x" * 7), [CHUNKED], False),
    ],
)
async def test_what_is_too_large_is_not_created(
    limited: Client, body: bytes, extra: list[tuple[str, str]], complete: bool
) -> None:
    """RC-10 RC-11 RL-04"""
    refused = await limited.create(body, *extra, complete=complete)

    assert (refused.status, refused.headers["upload-complete"]) == (413, "?0")
    assert limits(refused)["max-size"] == 10
    assert "location" not in refused.headers
    rows = await limited.served.core.database.fetch("SELECT 1 FROM uploads WHERE gone_at IS NULL")
    assert rows == []


@pytest.mark.parametrize("framing", [(), (CHUNKED,)])
async def test_one_body_is_bounded_and_the_upload_survives(
    limited: Client, framing: tuple[()] | tuple[tuple[str, str], ...]
) -> None:
    """RA-12 RC-11 RL-04 RL-05"""
    path = await limited.created(b"he")
    body = b"x" * 7

    refused = await limited.append(path, 2, chunked(body) if framing else body, *framing, complete=True)

    assert (refused.status, limits(refused)["max-append-size"]) == (413, 6)
    assert await limited.upload_headers(path) == (2, False)
    assert (await limited.append(path, 2, b"llo!", complete=True)).status == 204


async def test_an_unknown_length_is_bounded_by_the_largest(limited: Client) -> None:
    """RC-10 RA-12"""
    path = await limited.created(b"x" * 6)

    refused = await limited.append(path, 6, b"x" * 5, complete=False)

    assert refused.status == 413
    assert await limited.upload_headers(path) == (6, False)


# --- problems ------------------------------------------------------------------------------------


async def test_every_error_is_a_problem_and_none_has_a_body_on_head(served: Served) -> None:
    """RP-01 RC-06 GEN-12"""
    client = Client(served, 8)
    missing = "/files/" + "a" * 32

    refused = await client.append(missing, 0, b"x", complete=True)

    assert refused.headers["content-type"] == "application/problem+json; charset=utf-8"
    assert json.loads(refused.body) == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "There is no such upload.",
        "code": "ERR_UPLOAD_NOT_FOUND",
    }
    assert refused.headers["upload-complete"] == "?0"
    assert (await client.head(missing)).body == b""


# --- interim responses ---------------------------------------------------------------------------


@pytest.fixture
def timing() -> Timing:
    """The times of a server; those in earnest unless a test says otherwise."""
    return Timing()


@pytest.fixture
async def announcing(serve: Serve, timing: Timing) -> Served:
    """A server that sends 104."""
    return await serve(timing=timing, rufh={"interim_104": True})


@pytest.mark.parametrize("version", [3, 4, 5, 6, 7, 8])
async def test_the_url_is_told_before_the_content_is_read(announcing: Served, version: int) -> None:
    """RC-02 RC-05 RC-14 AIO-01"""
    client = Client(announcing, version)
    connection = await announcing.connect()
    fields = [*client.version_headers, client.complete(True), ("Content-Length", "5"), ("Expect", "100-continue")]
    await connection.send_head("POST", "/files/", fields)

    offered = await connection.interim_response()
    assert (offered.status, offered.headers["upload-draft-interop-version"]) == (104, str(version))
    assert ("upload-limit" in offered.headers) == (version >= 6)
    assert await connection.interim() == 100
    await connection.send(b"hello")
    created = await connection.response("POST")

    assert (created.status, created.headers["location"]) == (201, offered.headers["location"])
    assert client.says_complete(created)
    assert await announcing.staged(offered.headers["location"]) == b"hello"


async def test_the_connection_goes_on_after_an_interim_response(announcing: Served) -> None:
    """AIO-01"""
    client = Client(announcing, 6)
    connection = await announcing.connect()

    for _ in range(2):
        created = await connection.request(
            "POST", "/files/", [*client.version_headers, client.complete(True)], b"hello"
        )
        assert (created.status, created.interim) == (201, [104])


@pytest.mark.parametrize("version", [3, 5, 6, 8])
async def test_what_was_announced_is_kept_and_continued(announcing: Served, version: int) -> None:
    """RC-02 RC-09 RC-15"""
    client = Client(announcing, version)
    connection = await client.begin(
        "POST", "/files/", [*client.version_headers, client.complete(True)], b"hel", announced=5
    )
    path = (await connection.interim_response()).headers["location"]
    await eventually(lambda: any(body.received == 3 for body in announcing.bodies))
    connection.abort()
    await eventually(lambda: not announcing.bodies)

    response = await client.head(path)

    assert (response.headers["upload-offset"], client.says_complete(response)) == ("3", False)
    assert response.headers["upload-length"] == "5"
    assert client.says_complete(await client.append(path, 3, b"lo", complete=True))
    assert await announcing.staged(path) == b"hello"


@pytest.mark.parametrize("timing", [Timing(advance_retry_seconds=())])
async def test_a_failure_after_the_announcement_closes_the_connection(
    announcing: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RC-15 RC-09"""
    client = Client(announcing, 8)
    connection = await client.begin(
        "POST", "/files/", [*client.version_headers, client.complete(True)], b"hel", announced=5
    )
    path = (await connection.interim_response()).headers["location"]
    await eventually(lambda: any(body.received == 3 for body in announcing.bodies))

    async def away(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise DatabaseUnavailable

    with monkeypatch.context() as broken:
        broken.setattr(announcing.core.uploads, "advance", away)
        await connection.send(b"lo")
        with pytest.raises(ConnectionLost):
            await connection.response("POST")

    assert await client.upload_headers(path) == (0, False)
    assert (await client.append(path, 0, b"hello", complete=True)).status == 204


async def test_too_much_after_the_announcement_ends_the_upload(announcing: Served) -> None:
    """RA-06 RC-15"""
    client = Client(announcing, 8)
    fields = [*client.version_headers, client.complete(False), ("Upload-Length", "4"), CHUNKED]
    connection = await announcing.connect()
    await connection.send_head("POST", "/files/", fields)
    path = (await connection.interim_response()).headers["location"]
    await connection.send(chunked(b"hello"))

    refused = await connection.response("POST")

    assert (refused.status, "location" in refused.headers) == (400, False)
    assert (await client.head(path)).status == 404


@pytest.fixture
async def progressing(serve: Serve) -> Served:
    """A server that tells of every checkpoint, and makes many."""
    return await serve(
        rufh={"interim_104": True}, staging={"checkpoint_seconds": 0.01}, context={"progress_seconds": 0.0}
    )


@pytest.mark.parametrize("version", [5, 6, 7, 8])
async def test_what_is_durable_is_told_while_more_comes(progressing: Served, version: int) -> None:
    """RC-13 RC-05"""
    client = Client(progressing, version)
    connection = await client.begin(
        "POST", "/files/", [*client.version_headers, client.complete(True)], b"hel", announced=5
    )
    offered = await connection.interim_response()

    interim = await connection.interim_response()

    assert (interim.status, interim.headers["upload-offset"]) == (104, "3")
    assert interim.headers["location"] == offered.headers["location"]
    assert "upload-offset" not in offered.headers
    await connection.send(b"lo")
    assert (await connection.response("POST")).headers["location"] == offered.headers["location"]


async def test_an_append_is_told_its_offset_and_no_url(progressing: Served) -> None:
    """RA-09"""
    client = Client(progressing, 8)
    path = await client.created(b"he")
    connection = await client.begin("PATCH", path, client.append_fields(2, complete=True), b"l", announced=3)

    interim = await connection.interim_response()

    assert (interim.status, interim.headers["upload-offset"], "location" in interim.headers) == (104, "3", False)
    await connection.send(b"lo")
    assert (await connection.response("PATCH")).status == 204


@pytest.mark.parametrize("version", [3, 4, None])
async def test_progress_is_not_told_to_those_who_do_not_know_it(progressing: Served, version: int | None) -> None:
    """RA-09 RC-13"""
    client = Client(progressing, version)
    path = await client.created()
    connection = await client.begin("PATCH", path, client.append_fields(0, complete=True), b"hel", announced=5)
    await until_durable(progressing, path, 3)
    await connection.send(b"lo")

    assert (await connection.response("PATCH")).interim == []


async def test_progress_is_not_told_at_every_checkpoint(serve: Serve) -> None:
    """RC-13 RA-09"""
    served = await serve(
        rufh={"interim_104": True}, staging={"checkpoint_seconds": 0.01}, context={"progress_seconds": 3600.0}
    )
    client = Client(served, 8)
    path = await client.created()
    connection = await client.begin("PATCH", path, client.append_fields(0, complete=True), b"h", announced=3)
    for offset, byte in ((1, b"e"), (2, b"l")):
        await until_durable(served, path, offset)
        await connection.send(byte)

    assert (await connection.response("PATCH")).interim == [104]


@pytest.mark.parametrize(
    ("version", "fields"),
    [(None, []), (8, [("Tus-Resumable", "1.0.0"), ("Upload-Length", "5"), ("Content-Type", PARTIAL_TYPE)])],
)
async def test_nobody_is_announced_anything_who_may_not_understand(
    announcing: Served, version: int | None, fields: list[tuple[str, str]]
) -> None:
    """RC-02 GEN-01 GEN-03"""
    client = Client(announcing, version)

    answer = await client.create(b"hello", *fields, complete=True)

    assert answer.interim == []


async def test_an_old_http_version_has_no_interim_response(announcing: Served) -> None:
    """RC-02 AIO-01"""
    connection = await announcing.connect()
    head = ["POST /files/ HTTP/1.0", "Upload-Draft-Interop-Version: 8", "Upload-Complete: ?1", "Content-Length: 5"]
    await connection.send("\r\n".join([*head, "", "hello"]).encode())

    created = await connection.response("POST")

    assert (created.status, created.interim) == (201, [])


async def test_without_content_there_is_nothing_to_announce(announcing: Served) -> None:
    """RC-02"""
    assert (await Client(announcing, 8).create(complete=False)).interim == []


@pytest.mark.parametrize("version", VERSIONS)
async def test_interim_responses_are_off_unless_they_are_wanted(served: Served, version: int | None) -> None:
    """AIO-02 RC-02"""
    client = Client(served, version)
    path = await client.created(b"he")

    assert (await client.create(b"hello", complete=True)).interim == []
    assert (await client.append(path, 2, b"llo", complete=True)).interim == []


# --- digests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_creation", [True, False])
@pytest.mark.parametrize("algorithms", [["sha-256"], ["sha-512"], ["sha-256", "sha-512"], ["unixsum", "sha-256"]])
@pytest.mark.parametrize("right", [True, False])
async def test_content_is_compared_with_its_digest(
    served: Served, in_creation: bool, algorithms: list[str], right: bool
) -> None:
    """RG-01"""
    client = Client(served, 8)
    digests = [digest(name, b"hello" if right else b"hellO") if name != "unixsum" else ":AAAA:" for name in algorithms]
    field = ("Content-Digest", ", ".join(f"{name}={value}" for name, value in zip(algorithms, digests, strict=True)))

    if in_creation:
        response = await client.create(b"hello", field, complete=False)
        assert response.status == (201 if right else 400)
        return
    path = await client.created()
    response = await client.append(path, 0, b"hello", field, complete=True)

    assert (response.status, response.headers["upload-complete"]) == ((204, "?1") if right else (400, "?0"))
    assert await client.upload_headers(path) == ((5, True) if right else (0, False))


async def test_one_wrong_digest_among_several_is_enough(served: Served) -> None:
    """RG-01"""
    client = Client(served, 8)
    path = await client.created()
    field = ("Content-Digest", f"sha-256={digest('sha-256', b'hello')}, sha-512={digest('sha-512', b'other')}")

    refused = await client.append(path, 0, chunked(b"hello"), CHUNKED, field, complete=True)

    assert (refused.status, json.loads(refused.body)["code"]) == (400, "ERR_CHECKSUM_MISMATCH")
    assert await client.upload_headers(path) == (0, False)
    assert (await served.upload(path)).length is None


@pytest.mark.parametrize("value", ["sha-256=:AAAA:", "sha-256", "sha-256=?1", "sha-256=:x", "md5=:AAAA:", "", "=", ","])
async def test_a_digest_that_says_nothing_counts_for_nothing(served: Served, value: str) -> None:
    """RG-01 GEN-07"""
    created = await Client(served, 8).create(b"hello", ("Content-Digest", value), complete=True)

    assert (created.status, created.headers["upload-complete"]) == (201, "?1")


async def test_content_with_a_digest_counts_wholly_or_not_at_all(served: Served) -> None:
    """RG-01"""
    client = Client(served, 8)
    path = await client.created()
    fields = client.append_fields(0, ("Content-Digest", f"sha-256={digest('sha-256', b'hello')}"), complete=True)
    connection = await client.begin("PATCH", path, fields, b"hel", announced=5)
    await eventually(lambda: any(body.received == 3 for body in served.bodies))
    await connection.close()

    assert await client.upload_headers(path) == (0, False)


def promise(data: bytes) -> tuple[str, str]:
    return "Repr-Digest", f"sha-256={digest('sha-256', data)}, sha-512={digest('sha-512', data)}, id=:AA==:"


@pytest.mark.parametrize("framing", [(), (CHUNKED,)])
@pytest.mark.parametrize("right", [True, False])
async def test_an_upload_in_one_request_is_compared_with_its_digest(
    served: Served, framing: tuple[()] | tuple[tuple[str, str], ...], right: bool
) -> None:
    """RG-02"""
    body = chunked(b"hel", b"lo") if framing else b"hello"

    created = await Client(served, 8).create(body, promise(b"hello" if right else b"hellO"), *framing, complete=True)

    assert (created.status, created.headers["upload-complete"]) == (201 if right else 400, "?1")
    rows = await served.core.database.fetch("SELECT state FROM uploads WHERE gone_at IS NULL")
    assert [row["state"] for row in rows] == (["completed"] if right else [])


@pytest.mark.parametrize("last", [b"lo", b""])
@pytest.mark.parametrize("right", [True, False])
async def test_all_bytes_are_compared_with_their_digest_at_the_end(served: Served, last: bytes, right: bool) -> None:
    """RG-02 RG-04"""
    client = Client(served, 8)
    length = ("Upload-Length", "5")
    path = await client.created(b"hello"[: 5 - len(last)], promise(b"hello" if right else b"hellO"), length)
    assert await client.upload_headers(path) == (5 - len(last), False)

    done = await client.append(path, 5 - len(last), last, promise(b"something else"), complete=True)

    assert (done.status, done.headers["upload-complete"]) == ((204 if right else 400), "?1")
    if right:
        assert await client.upload_headers(path) == (5, True)
    else:
        assert json.loads(done.body)["code"] == "ERR_WHOLE_CHECKSUM_MISMATCH"
        assert (await client.head(path)).status == 404
        assert await served.count("jobs", await served.upload(path), "transfer") == 0


async def test_a_checkpoint_completes_nothing_that_is_not_yet_compared(serve: Serve) -> None:
    """RG-02"""
    served = await serve(staging={"checkpoint_seconds": 0.01})
    client = Client(served, 6)
    path = await client.created(b"", promise(b"hellO"), ("Upload-Length", "5"))
    connection = await served.connect()
    await connection.send_head("PATCH", path, client.append_fields(0, CHUNKED, complete=True))
    await connection.send(b"4\r\nhell\r\n")
    await eventually(lambda: any(body.received == 4 for body in served.bodies))
    await until_durable(served, path, 4)
    await connection.send(b"1\r\no\r\n0\r\n\r\n")

    assert (await connection.response("PATCH")).status == 400
    assert (await client.head(path)).status == 404


@pytest.mark.parametrize("in_one", [True, False])
@pytest.mark.parametrize("framing", [(), (CHUNKED,)])
@pytest.mark.parametrize(
    ("wanted", "algorithm"),
    [("sha-256=10", "sha-256"), ("sha-256=1, sha-512=9, md5=10", "sha-512"), ("sha-256=0, x=9", None), ("=", None)],
)
async def test_the_digest_of_all_bytes_is_told_to_whom_wants_it(
    served: Served, in_one: bool, framing: tuple[()] | tuple[tuple[str, str], ...], wanted: str, algorithm: str | None
) -> None:
    """RG-03"""
    client, field = Client(served, 8), ("Want-Repr-Digest", wanted)
    if in_one:
        body = chunked(b"hello") if framing else b"hello"
        done = await client.create(body, field, *framing, complete=True)
    else:
        path = await client.created(b"hel")
        body = chunked(b"lo") if framing else b"lo"
        done = await client.append(path, 3, body, field, *framing, complete=True)

    assert done.headers["upload-complete"] == "?1"
    expected = None if algorithm is None else f"{algorithm}={digest(algorithm, b'hello')}"
    assert done.headers.get("repr-digest") == expected


async def test_a_promise_that_was_kept_is_told(served: Served) -> None:
    """RG-02 RG-03"""
    created = await Client(served, 8).create(b"hello", promise(b"hello"), complete=True)

    assert created.headers["repr-digest"] == ", ".join(f"{n}={digest(n, b'hello')}" for n in ("sha-256", "sha-512"))


async def test_an_announced_upload_with_a_wrong_digest_is_given_up(announcing: Served) -> None:
    """RG-02"""
    client = Client(announcing, 8)
    connection = await announcing.connect()
    fields = [*client.version_headers, client.complete(True), promise(b"hellO"), ("Content-Length", "5")]
    await connection.send_head("POST", "/files/", fields)
    path = (await connection.interim_response()).headers["location"]
    await connection.send(b"hello")

    refused = await connection.response("POST")

    assert (refused.status, refused.headers["upload-complete"]) == (400, "?1")
    assert (await client.head(path)).status == 404


async def test_a_last_word_without_a_byte_is_counted_as_a_completion_and_only_once(served: Served) -> None:
    """RA-11 RA-10"""
    client = Client(served, 8)
    path = await client.created(b"hello")

    for _ in range(2):
        assert (await client.append(path, 5, complete=True)).status == 204

    assert served.web.metrics.registry.get_sample_value("tusd_py_uploads_completed_total") == 1


async def test_an_upload_of_this_dialect_reaches_the_store(served: Served) -> None:
    """RC-04"""
    client = Client(served, 8)
    path = (await client.create(b"hello", complete=True)).headers["location"]

    async with served.working():
        upload = await served.until_state(path, State.STORED)

    assert upload.offset == 5
    assert (await client.head(path)).headers["upload-complete"] == "?1"
