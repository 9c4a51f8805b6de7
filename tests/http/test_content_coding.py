"""Content-Encoding and Content-Language of a creation: kept, and told with the bytes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Awaitable, Callable

import pytest

from tests.http.rufh import Client
from tests.http.served import Served
from tests.support.http_client import OFFSET_TYPE, Response, chunked

CODED = gzip.compress(b"a line of text\n" * 100, mtime=0)
CODING = [("Content-Encoding", "gzip"), ("Content-Language", "de, en-GB")]
SAID = ("gzip", "de, en-GB")
HALF = len(CODED) // 2


async def at_once(client: Client) -> str:
    return (await client.create(CODED, *CODING, complete=True)).headers["location"]


async def chunked_at_once(client: Client) -> str:
    fields = [*client.version_headers, client.complete(True), *CODING, ("Transfer-Encoding", "chunked")]
    created = await client.served.request("POST", "/files/", fields, chunked(CODED))
    return created.headers["location"]


async def in_two_requests(client: Client) -> str:
    path = await client.created(CODED[:HALF], *CODING)
    appended = await client.append(path, HALF, CODED[HALF:], ("Content-Encoding", "br"), complete=True)
    assert appended.status == 204
    return path


async def announced(client: Client) -> str:
    path = await client.created(b"", *CODING, ("Upload-Length", str(len(CODED))))
    assert (await client.append(path, 0, CODED, complete=True)).status == 204
    return path


def coding_of(response: Response) -> tuple[str | None, str | None]:
    return response.headers.get("content-encoding"), response.headers.get("content-language")


@pytest.mark.parametrize("uploaded", [at_once, chunked_at_once, in_two_requests, announced])
@pytest.mark.parametrize("stored", [False, True])
async def test_the_coding_of_a_creation_is_told_with_the_bytes(
    served: Served, uploaded: Callable[[Client], Awaitable[str]], stored: bool
) -> None:
    """RC-12 GEN-14 RA-14"""
    path = await uploaded(Client(served, 8))
    upload = await served.upload(path)
    if stored:
        async with served.working():
            await served.until_state(path, "stored")

    for method, target in (("GET", path), ("GET", f"/download/{upload.id}"), ("HEAD", f"/download/{upload.id}")):
        got = await served.request(method, target, [])
        assert (got.status, coding_of(got)) == (200, SAID)
        assert got.body == (CODED if method == "GET" else b"")
    part = await served.request("GET", path, [("Range", "bytes=1-3")])
    assert (part.status, part.body, coding_of(part)) == (206, CODED[1:4], SAID)
    shown = json.loads((await served.request("GET", f"/api/v1/uploads/{upload.id}", [])).body)
    assert (shown["content_encoding"], shown["content_language"]) == SAID


async def test_without_a_coding_none_is_told(served: Served) -> None:
    """RC-12"""
    created = await Client(served, None).create(CODED, ("Content-Encoding", "identity"), complete=True)

    assert coding_of(await served.request("GET", created.headers["location"], [])) == (None, None)


async def test_the_lines_of_a_coding_are_one_list(served: Served) -> None:
    """RC-12"""
    fields = [("Content-Encoding", "gzip ,"), ("Content-Encoding", "Identity, br"), ("Content-Language", "de")]

    created = await Client(served, 8).create(CODED, *fields, complete=True)

    assert coding_of(await served.request("GET", created.headers["location"], [])) == ("gzip, br", "de")


@pytest.mark.parametrize("value", ["gz ip", "gzip;q=1", "gz/ip", "gzip, b@r", "x" * 101, "g\xfczip"])
async def test_a_coding_that_cannot_be_read_creates_nothing(served: Served, value: str) -> None:
    """RC-12"""
    refused = await Client(served, 8).create(CODED, ("Content-Encoding", value), complete=True)

    assert (refused.status, "location" in refused.headers) == (400, False)
    assert json.loads(refused.body)["code"] == "ERR_BAD_REQUEST"
    assert await served.core.database.fetch("SELECT 1 FROM uploads") == []


@pytest.mark.parametrize("value", ["a language", "de_DE", "de; q=1", "a" * 9, ", ".join(["de"] * 40)])
async def test_a_language_that_cannot_be_read_is_as_good_as_none(served: Served, value: str) -> None:
    """RC-12"""
    created = await Client(served, 8).create(CODED, ("Content-Language", value), complete=True)

    assert created.status == 201
    assert coding_of(await served.request("GET", created.headers["location"], [])) == (None, None)


async def test_an_append_says_nothing_of_the_coding(served: Served) -> None:
    """RA-14"""
    client = Client(served, 8)
    path = await client.created()

    await client.append(path, 0, CODED, ("Content-Encoding", "gzip"), ("Content-Language", "de"), complete=True)

    assert coding_of(await served.request("GET", path, [])) == (None, None)


async def test_in_tus_a_coded_body_is_refused_as_before(served: Served) -> None:
    """GEN-14"""
    fields = {"Upload-Length": "5", "Content-Type": OFFSET_TYPE, "Content-Encoding": "gzip"}

    assert (await served.request("POST", "/files/", fields, b"hello")).status == 415
