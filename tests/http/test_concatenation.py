"""tus 1.0.0 §concatenation and §concatenation-unfinished."""

from __future__ import annotations

import asyncio
import base64
import os
from typing import NoReturn, Protocol

import pytest

from tests.http.served import Serve, Served
from tests.http.support import eventually
from tests.support.http_client import OFFSET_TYPE, Headers, Response
from tusd_py.crc64 import update
from tusd_py.errors import StagingFull, TransientStoreError
from tusd_py.protocol.concat import Room

PARTIAL = {"Upload-Concat": "partial"}
WITH_BODY = {"Content-Type": OFFSET_TYPE}


class SetRoom(Protocol):
    """Says how much the store can take, and how much it could if it were empty."""

    def __call__(self, free: int, size: int = 10**6) -> None: ...


async def part(served: Served, body: bytes = b"", length: int | None = None, headers: Headers | None = None) -> str:
    """Create a partial upload that holds `body`."""
    extra = {**PARTIAL, **(WITH_BODY if body else {}), **(headers or {})}
    return await served.create(len(body) if length is None else length, extra, body)


async def concatenate(served: Served, *parts: str, **headers: str) -> Response:
    return await served.request("POST", "/files/", {"Upload-Concat": "final;" + " ".join(parts)} | headers)


async def stored_bytes(served: Served, path: str) -> bytes:
    response = await served.request("GET", path)
    assert response.status == 200, response
    return response.body


async def test_switched_off_it_is_refused(serve: Serve) -> None:
    """CAT-01"""
    served = await serve(tus={"disable": ["concatenation"]})

    assert (await served.request("POST", "/files/", PARTIAL | {"Upload-Length": "5"})).status == 400
    assert "concatenation" not in (await served.request("OPTIONS", "/files/")).headers["tus-extension"]


async def test_parts_are_uploads_like_any_other(served: Served) -> None:
    """CAT-02 CAT-13 CAT-16"""
    empty = await part(served)
    plain = await part(served, length=5)
    deferred = await served.create(None, PARTIAL | {"Upload-Defer-Length": "1"})
    with_body = await part(served, b"hello")

    assert (await served.patch(plain, 0, b"hello", PARTIAL)).status == 204
    assert (await served.patch(deferred, 0, b"hello", PARTIAL | {"Upload-Length": "5"})).status == 204
    for path, length in [(empty, "0"), (plain, "5"), (deferred, "5"), (with_body, "5")]:
        head = await served.head(path, PARTIAL)
        assert head.headers["upload-concat"] == "partial"
        assert (head.headers["upload-offset"], head.headers["upload-length"]) == (length, length)
    assert (await served.request("DELETE", plain, PARTIAL)).status == 204


async def test_a_final_is_its_parts_in_order(served: Served) -> None:
    """CAT-03 CAT-14 CAT-15 CAT-17"""
    first, second, third = await part(served, b"hello "), await part(served, b"world"), await part(served, b"world")
    value = f"final;{second} {first}  {third}"

    created = await served.request("POST", "/files/", {"Upload-Concat": value})
    path = created.headers["location"]

    assert (created.status, created.headers["upload-offset"]) == (201, "16")
    head = await served.head(path)
    assert (head.headers["upload-offset"], head.headers["upload-length"]) == ("16", "16")
    assert head.headers["upload-concat"] == value
    assert await stored_bytes(served, path) == b"worldhello world"
    final = await served.upload(path)
    assert final.crc64nvme == update(b"worldhello world")
    assert await served.count("events", final, "upload.completed") == 1
    assert await served.count("jobs", final, "transfer") == 1
    for source in (first, second, third):
        assert await served.count("jobs", await served.upload(source), "transfer") == 0
        assert await served.count("events", await served.upload(source), "upload.completed") == 0
        assert await served.count("events", await served.upload(source), "upload.part_completed") == 1


async def test_a_final_is_stored_and_its_parts_are_kept(served: Served) -> None:
    """CAT-03 CAT-11 CAT-17"""
    parts = [await part(served, b"hello "), await part(served, b"world")]
    path = (await concatenate(served, *parts)).headers["location"]

    async with served.working():
        final = await served.until_state(path, "stored")

    stored = await served.core.stores.current.stat(final.object_key)
    assert stored is not None
    assert stored.length == 11
    assert await stored_bytes(served, path) == b"hello world"
    for source in parts:
        assert (await served.head(source)).status == 200
    again = await concatenate(served, *parts)
    assert again.status == 201
    assert await stored_bytes(served, again.headers["location"]) == b"hello world"


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Upload-Length": "11"}, b"", 400),
        ({"Upload-Length": "0"}, b"", 400),
        ({"Upload-Length": "eleven"}, b"", 400),
        ({"Upload-Defer-Length": "1"}, b"", 400),
        (WITH_BODY, b"x", 403),
        ({"Content-Type": "text/plain"}, b"x", 403),
    ],
)
async def test_a_final_brings_nothing_of_its_own(
    served: Served, headers: dict[str, str], body: bytes, status: int
) -> None:
    """CAT-04"""
    parts = [await part(served, b"hello "), await part(served, b"world")]

    response = await served.request("POST", "/files/", {"Upload-Concat": "final;" + " ".join(parts)} | headers, body)

    assert response.status == status
    assert "location" not in response.headers


@pytest.mark.parametrize(
    "form",
    [
        "{path}", "{path}/", "http://localhost{path}", "https://other.example:8443{path}", "//other.example{path}",
        "https://other.example/api/v2{path}", "https://other.example/stripped/{token}", "{token}",
        "/files/files/x{path}?signature=y#z",
    ],
)  # fmt: skip
async def test_parts_are_found_however_they_are_written(served: Served, form: str) -> None:
    """CAT-05"""
    path = await part(served, b"hello")

    response = await concatenate(served, form.format(path=path, token=path.removeprefix("/files/")))

    assert response.status == 201
    assert await stored_bytes(served, response.headers["location"]) == b"hello"


async def test_foreign_hosts_are_never_asked(served: Served) -> None:
    """CAT-05"""
    asked = []
    server = await asyncio.start_server(lambda *_: asked.append(1), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    path = await part(served, b"hello")

    known = await concatenate(served, f"http://127.0.0.1:{port}{path}")
    unknown = await concatenate(served, f"http://127.0.0.1:{port}/files/{'a' * 32}")
    server.close()

    assert [known.status, unknown.status, asked] == [201, 400, []]


@pytest.mark.parametrize(
    "value",
    [
        "final;", "final; ", "final", "final;/files/", "final;/files/../etc", "final;http://[", "final;%2e%2e",
        "final;/files/" + "a" * 32, "Final;{path}", "PARTIAL", "partial;{path}", "", "final,{path}",
        "final;{path},{path}",
        "final;{path} /files/" + "b" * 32, "final;{path} \x01",
    ],
)  # fmt: skip
async def test_a_list_that_is_no_list_of_parts_creates_nothing(served: Served, value: str) -> None:
    """CAT-06"""
    path = await part(served, b"hello")

    response = await served.request("POST", "/files/", {"Upload-Concat": value.format(path=path)})

    assert response.status == 400
    assert response.body.startswith(b"ERR_INVALID_CONCAT") or "\x01" in value  # which the parser refuses
    assert "location" not in response.headers


async def test_only_parts_are_concatenated_and_the_message_tells_which_is_none(served: Served) -> None:
    """CAT-06"""
    good = await part(served, b"hello")
    plain = await served.create(5, WITH_BODY, b"hello")
    final = (await concatenate(served, good)).headers["location"]
    deleted = await part(served, b"hello")
    await served.request("DELETE", deleted)

    for bad in (plain, final, deleted):
        response = await concatenate(served, good, bad)
        assert response.status == 400
        assert b"Upload 2" in response.body


async def test_non_ascii_in_the_list_is_refused(served: Served) -> None:
    """CAT-06"""
    path = await part(served, b"hello")
    connection = await served.connect()
    await connection.send(
        b"POST /files/ HTTP/1.1\r\nHost: localhost\r\nTus-Resumable: 1.0.0\r\nUpload-Concat: final;http://h\xff"
        + path.encode()
        + b"\r\n\r\n"
    )

    assert (await connection.response()).status == 400


async def test_a_part_serves_several_finals(served: Served) -> None:
    """CAT-07"""
    path, other = await part(served, b"ab"), await part(served, b"c")

    finals = [await concatenate(served, path), await concatenate(served, other, path)]

    assert [await stored_bytes(served, final.headers["location"]) for final in finals] == [b"ab", b"cab"]


async def test_a_part_stands_once_in_a_list_however_it_is_written(served: Served) -> None:
    """CAT-07"""
    path, other = await part(served, b"ab"), await part(served, b"c")

    refused = await concatenate(served, path, other, f"https://elsewhere.example{path}")

    assert (refused.status, refused.body.split(b":")[0]) == (400, b"ERR_INVALID_CONCAT")
    assert b"Upload 3 " in refused.body
    assert b"upload 1 " in refused.body
    assert await served.core.database.fetch("SELECT id FROM uploads WHERE concat = 'final'") == []


async def test_a_part_may_stand_in_a_list_again_where_that_is_allowed(serve: Serve) -> None:
    """CAT-07"""
    served = await serve(limits={"allow_repeated_partials": True})
    path = await part(served, b"ab")

    twice = await concatenate(served, path, path)

    assert await stored_bytes(served, twice.headers["location"]) == b"abab"


async def test_unfinished_parts_are_refused_where_nobody_waits_for_them(serve: Serve) -> None:
    """CAT-08 CATU-01"""
    served = await serve(tus={"disable": ["concatenation-unfinished"]})
    finished, unfinished = await part(served, b"hello"), await part(served, length=5)

    assert (await concatenate(served, finished, unfinished)).status == 400
    assert "concatenation-unfinished" not in (await served.request("OPTIONS", "/files/")).headers["tus-extension"]


async def test_the_sum_may_not_exceed_the_maximum(serve: Serve) -> None:
    """CAT-09 CRE-05"""
    served = await serve(limits={"max_size": 8})
    path, other = await part(served, b"hello"), await part(served, b"world")

    assert (await concatenate(served, path)).status == 201
    assert (await concatenate(served, path, other)).status == 413
    assert (await served.request("POST", "/files/", PARTIAL | {"Upload-Length": "9"})).status == 413


async def test_only_the_finals_own_metadata_counts(served: Served) -> None:
    """CAT-10"""
    metadata = "filename " + base64.b64encode(b"part.bin").decode()
    path = await part(served, b"hello", headers={"Upload-Metadata": metadata})

    bare = (await concatenate(served, path)).headers["location"]
    named = (await concatenate(served, path, **{"Upload-Metadata": "filename YQ=="})).headers["location"]

    assert "upload-metadata" not in (await served.head(bare)).headers
    assert (await served.head(named)).headers["upload-metadata"] == "filename YQ=="


@pytest.mark.parametrize("finished", [True, False])
async def test_a_final_takes_no_append(served: Served, finished: bool) -> None:
    """CAT-12"""
    path = await part(served, b"hello") if finished else await part(served, b"he", length=5)
    final = (await concatenate(served, path)).headers["location"]

    refused = [
        await served.patch(final, 0, b"x"),
        await served.patch(final, 5, b""),
        await served.patch(final, 5, b"x", {"Content-Type": "text/plain"}),
    ]

    assert [response.status for response in refused] == [403] * 3
    assert await served.staged(path) == (b"hello" if finished else b"he")
    if not finished:
        assert "upload-offset" not in refused[0].headers


async def test_the_number_of_parts_is_bounded(serve: Serve) -> None:
    """CAT-18"""
    served = await serve(limits={"max_parts": 3})
    paths = [await part(served, b"a") for _ in range(4)]

    assert (await concatenate(served, *paths[:3])).status == 201
    assert (await concatenate(served, *paths)).status == 400


@pytest.fixture
def room(served: Served, monkeypatch: pytest.MonkeyPatch) -> SetRoom:
    def has(free: int, size: int = 10**6) -> None:
        async def room() -> Room:
            return Room(free, size)

        monkeypatch.setattr(served.core.stores.current, "room", room)

    return has


async def test_a_final_has_to_fit_into_the_store(served: Served, room: SetRoom) -> None:
    """CAT-09"""
    path, other = await part(served, b"hello"), await part(served, b"world")

    room(9)
    full = await concatenate(served, path, other)
    room(9, size=9)
    never = await concatenate(served, path, other)
    room(10)
    fits = await concatenate(served, path, other)

    assert (full.status, full.body.split(b":")[0]) == (507, b"ERR_INSUFFICIENT_STORAGE")
    assert (never.status, fits.status) == (413, 201)
    assert len(await served.core.database.fetch("SELECT id FROM uploads WHERE concat = 'final'")) == 1


async def test_what_waits_for_the_store_takes_its_room(served: Served, room: SetRoom) -> None:
    """CAT-09"""
    path = await part(served, b"hello")
    room(12)

    created = await asyncio.gather(*(concatenate(served, path) for _ in range(8)))

    assert sorted(response.status for response in created) == [201] * 2 + [507] * 6
    (kept,) = [response.headers["location"] for response in created if response.status == 201][:1]
    assert (await served.request("DELETE", kept)).status == 204
    assert (await concatenate(served, path)).status == 201


async def test_a_final_takes_no_room_in_staging(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """CAT-09"""
    path = await part(served, b"hello")

    def full(wanted: int) -> NoReturn:
        raise StagingFull

    monkeypatch.setattr(served.core.staging, "check_space", full)

    assert (await concatenate(served, path)).status == 201
    assert (await served.request("POST", "/files/", {"Upload-Length": "5"})).status == 507


async def test_the_reserve_is_kept_in_the_store_as_well(serve: Serve) -> None:
    """CAT-09"""
    served = await serve(staging={"reserve": 0})
    path = await part(served, b"hello")
    facts = os.statvfs(served.config.store_directory)
    reserved = served.config.staging.model_copy(update={"reserve": facts.f_bavail * facts.f_frsize * 2})
    served.web.uploads.config = served.config.model_copy(update={"staging": reserved})

    assert (await concatenate(served, path)).status in {413, 507}


async def test_a_store_that_is_away_refuses_no_final(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """CAT-09"""
    path = await part(served, b"hello")

    async def away() -> NoReturn:
        raise TransientStoreError

    monkeypatch.setattr(served.core.stores.current, "room", away)

    assert (await concatenate(served, path)).status == 201


async def test_a_thousand_parts_are_joined_and_read(serve: Serve) -> None:
    """CAT-18 CAT-03"""
    served = await serve(limits={"allow_repeated_partials": True})
    paths = [await part(served, b"%d," % number) for number in range(8)]

    created = await concatenate(served, *(paths * 125))

    assert created.status == 201, created
    assert await stored_bytes(served, created.headers["location"]) == b"0,1,2,3,4,5,6,7," * 125


async def test_ranges_cross_the_borders_of_parts(served: Served) -> None:
    """CAT-03"""
    parts = [await part(served, body) for body in (b"abc", b"", b"defgh", b"i")]
    path = (await concatenate(served, *parts)).headers["location"]

    for first in range(9):
        for last in range(first, 9):
            got = await served.request("GET", path, {"Range": f"bytes={first}-{last}"})
            assert (got.status, got.body) == (206, b"abcdefghi"[first : last + 1])


# --- finals that wait for their parts ----------------------------------------------------------------


async def test_a_pending_final_tells_no_offset(served: Served) -> None:
    """CATU-02"""
    known, unknown = (
        await part(served, b"he", length=5),
        await served.create(None, PARTIAL | {"Upload-Defer-Length": "1"}),
    )

    waiting = await concatenate(served, known)
    unsure = await concatenate(served, known, unknown)
    head = await served.head(waiting.headers["location"])
    unsure_head = await served.head(unsure.headers["location"])

    assert (waiting.status, unsure.status) == (201, 201)
    assert (head.status, head.headers["upload-length"]) == (200, "5")
    assert head.headers["upload-concat"] == f"final;{known}"
    assert "upload-length" not in unsure_head.headers
    for response in (waiting, head, unsure_head):
        assert "upload-offset" not in response.headers
        assert "upload-defer-length" not in response.headers


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_the_last_part_completes_the_final(served: Served, order: tuple[int, int, int]) -> None:
    """CATU-03 CAT-17"""
    paths = [await part(served, length=2) for _ in range(3)]
    path = (await concatenate(served, *paths)).headers["location"]

    for position in order:
        assert not (await served.upload(path)).complete
        await served.patch(paths[position], 0, b"ab")

    final = await served.upload(path)
    assert final.complete
    assert (await served.head(path)).headers["upload-offset"] == "6"
    assert await served.count("events", final, "upload.completed") == 1
    assert await served.count("jobs", final, "transfer") == 1
    assert await stored_bytes(served, path) == b"ababab"


async def test_parts_that_finish_at_the_same_time_complete_the_final_once(served: Served) -> None:
    """CATU-03"""
    paths = [await part(served, length=2) for _ in range(6)]
    path = (await concatenate(served, *paths)).headers["location"]

    await asyncio.gather(*(served.patch(source, 0, b"ab") for source in paths))

    final = await served.upload(path)
    assert final.complete
    assert await served.count("events", final, "upload.completed") == 1


async def test_a_pending_final_survives_a_restart(serve: Serve) -> None:
    """CATU-03"""
    served = await serve()
    source = await part(served, b"he", length=5)
    path = (await concatenate(served, source)).headers["location"]
    await served.stop()

    again = await serve()
    await again.patch(source, 2, b"llo")

    assert (await again.upload(path)).complete
    assert await stored_bytes(again, path) == b"hello"


async def test_a_final_that_grows_over_the_maximum_fails(serve: Serve) -> None:
    """CATU-04"""
    served = await serve(limits={"max_size": 8})
    known, unknown = await part(served, b"hello"), await served.create(None, PARTIAL | {"Upload-Defer-Length": "1"})
    path = (await concatenate(served, known, unknown)).headers["location"]

    assert (await served.patch(unknown, 0, b"world", {"Upload-Length": "5"})).status == 204

    assert (await served.head(path)).status == 404


async def test_parts_outlive_the_final_that_waits_for_them(served: Served) -> None:
    """CATU-05 CATU-04"""
    source = await part(served, b"he", length=5)
    await served.core.database.execute("UPDATE uploads SET expires_at = now() + interval '1 minute'")
    path = (await concatenate(served, source)).headers["location"]

    assert await served.expires_at(source) >= await served.expires_at(path)
    await served.core.database.execute(
        "UPDATE uploads SET expires_at = now() - interval '1 s' WHERE concat = 'partial'"
    )
    assert await served.work.cleanup.expire() == 0


async def test_an_expired_final_is_gone_with_its_parts(served: Served) -> None:
    """CATU-04"""
    source = await part(served, b"he", length=5)
    path = (await concatenate(served, source)).headers["location"]
    await served.core.database.execute("UPDATE uploads SET expires_at = now() - interval '1 s'")

    assert (await served.head(path)).status == 404
    assert (await served.head(source)).status == 404
    staged = served.core.staging.path((await served.upload(source)).id)
    for _ in range(2):
        # The first pass expires the final, and with that sets its parts free.
        await served.work.cleanup.once()
    async with served.working():
        await eventually(lambda: not staged.exists())
