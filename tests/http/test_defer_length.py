"""tus 1.0.0 §creation-defer-length."""

from __future__ import annotations

import pytest

from tests.http.served import Serve, Served
from tests.http.support import eventually
from tests.support.http_client import OFFSET_TYPE

DEFER = {"Upload-Defer-Length": "1"}


async def test_a_length_may_come_later(served: Served) -> None:
    """DEF-01 CWU-04"""
    response = await served.request("POST", "/files/", DEFER)

    assert (response.status, response.headers["upload-offset"]) == (201, "0")


@pytest.mark.parametrize("value", ["0", "2", "true", "1, 1", "", "01"])
async def test_only_the_value_1_defers(served: Served, value: str) -> None:
    """DEF-01"""
    assert (await served.request("POST", "/files/", {"Upload-Defer-Length": value})).status == 400


async def test_switched_off_it_is_refused(serve: Serve) -> None:
    """DEF-01"""
    served = await serve(tus={"disable": ["creation-defer-length"]})

    assert (await served.request("POST", "/files/", DEFER)).status == 400


async def test_head_tells_either_the_length_or_its_deferral(served: Served) -> None:
    """DEF-02 DEF-07"""
    path = await served.create(None, DEFER)
    before = await served.head(path)

    await served.patch(path, 0, b"hello", {"Upload-Length": "10"})
    after = await served.head(path)

    assert before.headers["upload-defer-length"] == "1"
    assert "upload-length" not in before.headers
    assert after.headers["upload-length"] == "10"
    assert "upload-defer-length" not in after.headers


@pytest.mark.parametrize("body", [b"", b"hello"])
async def test_an_append_fixes_the_length(served: Served, body: bytes) -> None:
    """DEF-03"""
    path = await served.create(None, DEFER)

    assert (await served.patch(path, 0, body, {"Upload-Length": "10"})).status == 204

    assert (await served.upload(path)).length == 10


async def test_the_length_holds_even_if_the_body_breaks_off(served: Served) -> None:
    """DEF-03"""
    path = await served.create(None, DEFER)
    connection = await served.begin(path, 0, b"he", ("Content-Length", "5"), ("Upload-Length", "10"))
    connection.abort()
    await eventually(lambda: not served.bodies)

    head = await served.head(path)

    assert (head.headers["upload-length"], head.headers["upload-offset"]) == ("10", "2")


@pytest.mark.parametrize(("length", "status"), [("3", 400), ("101", 413), ("x", 400), ("100", 204)])
async def test_a_length_must_fit(serve: Serve, length: str, status: int) -> None:
    """DEF-03"""
    served = await serve(limits={"max_size": 100})
    path = await served.create(None, DEFER | {"Content-Type": OFFSET_TYPE}, b"hello")

    assert (await served.patch(path, 5, b"", {"Upload-Length": length})).status == status
    assert (await served.upload(path)).length == (100 if status == 204 else None)


async def test_a_length_never_changes(served: Served) -> None:
    """DEF-04 DEF-08"""
    path = await served.create(None, DEFER)
    await served.patch(path, 0, b"he", {"Upload-Length": "10"})
    fixed = await served.create(10)

    again = await served.patch(path, 2, b"l", {"Upload-Length": "10"})
    other = await served.patch(path, 3, b"l", {"Upload-Length": "11"})

    assert [again.status, other.status] == [204, 400]
    assert other.headers["upload-offset"] == "3"
    assert (await served.patch(fixed, 0, b"he", {"Upload-Length": "10"})).status == 204
    assert (await served.patch(fixed, 2, b"l", {"Upload-Length": "9"})).status == 400
    assert await served.offset(fixed) == 2


async def test_an_empty_append_with_the_length_reached_completes(served: Served) -> None:
    """DEF-05"""
    path = await served.create(None, DEFER | {"Content-Type": OFFSET_TYPE}, b"hello")

    done = await served.patch(path, 5, b"", {"Upload-Length": "5"})

    upload = await served.upload(path)
    assert (done.status, done.headers["upload-offset"]) == (204, "5")
    assert upload.complete
    assert await served.count("events", upload, "upload.completed") == 1
    assert (await served.patch(path, 5, b"", {"Upload-Length": "5"})).status == 204
    assert await served.count("jobs", upload, "transfer") == 1


async def test_nothing_at_all_may_be_the_length(served: Served) -> None:
    """DEF-05"""
    path = await served.create(None, DEFER)

    assert (await served.patch_chunked(path, 0, headers={"Upload-Length": "0"})).status == 204
    assert (await served.upload(path)).complete


async def test_the_last_chunk_may_bring_the_length(served: Served) -> None:
    """DEF-03 DEF-07"""
    path = await served.create(None, DEFER)
    await served.patch(path, 0, b"hello ")

    assert (await served.patch(path, 6, b"world", {"Upload-Length": "11"})).status == 204
    assert (await served.upload(path)).complete


async def test_a_body_beyond_the_length_it_declares_is_refused(served: Served) -> None:
    """DEF-03 CORE-18"""
    path = await served.create(None, DEFER)

    refused = await served.patch_chunked(path, 0, b"hello", b"!", headers={"Upload-Length": "5"})

    assert refused.status == 413
    assert not (await served.upload(path)).complete


async def test_the_maximum_bounds_an_unknown_length(serve: Serve) -> None:
    """DEF-06"""
    served = await serve(limits={"max_size": 10})
    path = await served.create(None, DEFER)

    announced = await served.patch(path, 0, b"x" * 11)
    assert (announced.status, announced.headers["tus-max-size"]) == (413, "10")

    assert (await served.patch(path, 0, b"hello")).status == 204
    streamed = await served.patch_chunked(path, 5, b"abc", b"defgh")
    assert (streamed.status, int(streamed.headers["upload-offset"])) == (413, await served.offset(path))
    assert await served.offset(path) <= 10
