"""`pre-finish` for uploads that come whole with their creation, and for those that are announced by a 104."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.http.asking import (
    Application,
    completions,
    fresh_application,
    only_upload,
    start_asking,
    until_asked,
    until_stored,
)
from tests.http.rufh import Client
from tests.http.served import Serve, Served
from tests.support.http_client import OFFSET_TYPE, Response, chunked
from tusd_py.hooks import HookReply, HookResponse

CONTENT = b"hello"
LARGE = b"x" * (3 * 2**20)
BODY = {"Content-Type": OFFSET_TYPE}
PARTIAL = {"Upload-Concat": "partial"}


@pytest.fixture
def app() -> Iterator[Application]:
    with fresh_application() as application:
        yield application


@pytest.fixture
async def asking(serve: Serve, app: Application) -> Served:
    return await start_asking(serve)


WHOLE: dict[str, tuple[dict[str, str], bytes]] = {
    "small body": ({"Upload-Length": "5"} | BODY, CONTENT),
    "large body": ({"Upload-Length": str(len(LARGE))} | BODY, LARGE),
    "chunked body": ({"Upload-Length": "5", "Transfer-Encoding": "chunked"} | BODY, chunked(CONTENT)),
    "no byte": ({"Upload-Length": "0"}, b""),
    "partial": ({"Upload-Length": "5"} | PARTIAL | BODY, CONTENT),
}


async def post(served: Served, kind: str) -> Response:
    if kind == "ietf":
        return await Client(served, 6).create(CONTENT, complete=True)
    if kind == "final":
        parts = [await served.create(5, PARTIAL, b"") for _ in range(2)]
        for part in parts:
            assert (await served.patch(part, 0, CONTENT)).status == 204
        return await served.request("POST", "/files/", {"Upload-Concat": f"final;{' '.join(parts)}"})
    headers, body = WHOLE[kind]
    return await served.request("POST", "/files/", headers, body)


KINDS = [*WHOLE, "ietf", "final"]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_upload_that_comes_whole_is_asked_about_once(asking: Served, app: Application, kind: str) -> None:
    app.replies(HookReply(response=HookResponse(headers={"X-Invoice": "7"})))

    response = await post(asking, kind)

    assert (response.status, response.headers["x-invoice"]) == (201, "7")
    upload = await asking.upload(response.headers["location"])
    assert upload.complete
    assert [event.upload.id for event in app.asked].count(str(upload.id)) == 1
    assert completions(asking) == (3 if kind == "final" else 1)
    assert app.asked[-1].upload.is_final is (kind == "final")
    assert len(app.asked[-1].upload.partial_uploads or []) == (2 if kind == "final" else 0)
    if kind != "partial":
        await until_stored(asking, upload)


@pytest.mark.parametrize("kind", ["small body", "large body", "no byte", "ietf"])
async def test_an_upload_that_comes_whole_completes_later_if_the_hook_fails(
    asking: Served, app: Application, kind: str
) -> None:
    app.fails(times=1)

    response = await post(asking, kind)

    assert response.status == 503
    upload = await only_upload(asking)
    assert upload.finishing
    await until_stored(asking, upload)
    assert len(app.asked) == 2
    assert completions(asking) == 1


# --- announced by a 104 ----------------------------------------------------------------------------


@pytest.mark.parametrize("content", [CONTENT, b""])
async def test_an_announced_upload_is_asked_about_once(serve: Serve, app: Application, content: bytes) -> None:
    served = await start_asking(serve, rufh={"interim_104": True})
    client = Client(served, 6)
    connection = await served.connect()
    fields = [*client.version_headers, client.complete(True), ("Content-Length", str(len(content)))]
    await connection.send_head("POST", "/files/", fields)
    await connection.send(content)

    created = await connection.response("POST")

    assert created.status == 201
    assert client.says_complete(created)
    assert len(app.asked) == 1
    await until_stored(served, await served.upload(created.headers["location"]))


async def test_the_client_of_an_announced_upload_goes_on_after_a_failure(serve: Serve, app: Application) -> None:
    """It knows its URL, and would give up after a 503: its connection is closed instead, so that it asks."""
    app.fails(times=1)
    served = await start_asking(serve, rufh={"interim_104": True})
    client = Client(served, 6)
    connection = await client.begin(
        "POST", "/files/", [*client.version_headers, client.complete(True)], CONTENT, announced=len(CONTENT)
    )
    path = (await connection.interim_response()).headers["location"]
    await until_asked(app)
    await connection.closed()

    assert (await client.head(path)).status == 423
    assert (await client.append(path, len(CONTENT), complete=True)).status in {423, 503}
    await until_stored(served, await served.upload(path))
    response = await client.head(path)
    assert client.says_complete(response)
    assert response.offset == len(CONTENT)
