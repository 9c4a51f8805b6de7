"""tus 1.0.0 §termination."""

from __future__ import annotations

import pytest

from tests.http.served import Serve, Served
from tests.http.support import eventually
from tests.support.http_client import OFFSET_TYPE, ConnectionLost
from tusd_py.protocol.upload import TokenHash, Upload

BODY = {"Content-Type": OFFSET_TYPE}
PARTIAL = BODY | {"Upload-Concat": "partial"}


async def test_switched_off_it_is_not_allowed(serve: Serve) -> None:
    """TERM-01"""
    served = await serve(tus={"disable": ["termination"]})
    path = await served.create(5)

    response = await served.request("DELETE", path)

    assert response.status == 405
    assert "DELETE" not in response.headers["allow"]
    assert "termination" not in (await served.request("OPTIONS", path)).headers["tus-extension"]
    assert await served.offset(path) == 0


@pytest.mark.parametrize("body", [b"", b"he", b"hello"])
async def test_a_deleted_upload_is_gone_for_everybody(served: Served, body: bytes) -> None:
    """TERM-02 TERM-03 TERM-06 CORE-30"""
    path = await served.create(5, BODY, body)
    upload_id = (await served.upload(path)).id

    deleted = await served.request("DELETE", path)

    assert (deleted.status, deleted.body) == (204, b"")
    assert (await served.head(path)).status == 404
    assert (await served.patch(path, len(body), b"x")).status == 404
    assert (await served.request("GET", path)).status == 404
    assert (await served.request("DELETE", path)).status == 404
    assert (await served.request("GET", f"/download/{upload_id}")).status == 404


@pytest.mark.parametrize("body", [b"he", b"hello"])
async def test_its_bytes_are_removed(served: Served, body: bytes) -> None:
    """TERM-04"""
    path = await served.create(5, BODY, body)
    upload = await served.upload(path)

    await served.request("DELETE", path)
    async with served.working():
        await eventually(lambda: not served.core.staging.path(upload.id).exists())
        await served.until_state(path, "removed")

    assert await served.core.stores.current.stat(upload.object_key) is None


async def test_the_stored_object_is_removed(served: Served) -> None:
    """TERM-04"""
    path = await served.create(5, BODY, b"hello")
    async with served.working():
        upload = await served.until_state(path, "stored")
        assert await served.core.stores.current.stat(upload.object_key) is not None

        assert (await served.request("DELETE", path)).status == 204
        await served.until_state(path, "removed")

    assert await served.core.stores.current.stat(upload.object_key) is None


async def test_deleting_ends_an_append_and_nothing_comes_back(served: Served) -> None:
    """TERM-05 LOCK-02 LOCK-03"""
    path = await served.create(10)
    upload = await served.upload(path)
    connection = await served.begin(path, 0, b"hello", ("Content-Length", "10"))

    assert (await served.request("DELETE", path)).status == 204
    with pytest.raises(ConnectionLost):
        await connection.response()
    async with served.working():
        await served.until_state(path, "removed")

    assert not served.core.staging.path(upload.id).exists()
    assert (await served.head(path)).status == 404


async def test_an_append_that_comes_too_late_makes_no_file(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """TERM-05"""
    path = await served.create(10)
    upload = await served.upload(path)
    find = served.core.uploads.find_by_token

    async def then_deleted(token_hash: TokenHash) -> Upload | None:
        found = await find(token_hash)
        monkeypatch.undo()
        assert (await served.request("DELETE", path)).status == 204
        return found

    monkeypatch.setattr(served.core.uploads, "find_by_token", then_deleted)
    late = await served.patch(path, 0, b"hello")

    assert late.status == 404
    assert "upload-offset" not in late.headers
    assert not served.core.staging.path(upload.id).exists()


async def test_an_upload_on_hold_may_not_be_deleted(served: Served) -> None:
    """TERM-07"""
    path = await served.create(5, BODY, b"hello")
    await served.core.database.execute("UPDATE uploads SET hold = true")

    assert (await served.request("DELETE", path)).status == 403
    assert await served.offset(path) == 5


async def test_a_final_leaves_its_parts(served: Served) -> None:
    """TERM-08"""
    part = await served.create(5, PARTIAL, b"hello")
    final = await served.create(None, {"Upload-Concat": f"final;{part}"})

    assert (await served.request("DELETE", final)).status == 204
    assert await served.offset(part) == 5


async def test_a_part_that_a_final_waits_for_stays(served: Served) -> None:
    """TERM-08 CATU-04"""
    part, other = await served.create(5, PARTIAL, b"hello"), await served.create(5, PARTIAL, b"wo")
    final = await served.create(None, {"Upload-Concat": f"final;{part} {other}"})

    refused = await served.request("DELETE", part)

    assert refused.status == 409
    assert await served.offset(part) == 5
    assert (await served.request("DELETE", final)).status == 204
    assert (await served.request("DELETE", part)).status == 204


@pytest.mark.parametrize(
    ("headers", "body"), [({}, b""), ({"Content-Length": "0"}, b""), ({"Content-Type": "text/plain"}, b"please")]
)
async def test_a_body_does_not_matter(served: Served, headers: dict[str, str], body: bytes) -> None:
    """TERM-09"""
    path = await served.create(5)

    assert (await served.request("DELETE", path, headers, body)).status == 204
