"""What is counted of requests: how they ended, how long they took, and every label from the start."""

from __future__ import annotations

import uuid
from functools import partial

import pytest

from tests.http.served import Serve, Served
from tests.http.support import eventually
from tests.http.test_downloads import Place, stored, uploaded
from tests.support.http_client import OFFSET_TYPE
from tusd_py.metrics import Metrics

BODY = {"Content-Type": OFFSET_TYPE}


def requests(served: Served, method: str, status: int) -> float | None:
    labels = {"method": method, "status": str(status)}
    return served.core.metrics.registry.get_sample_value("tusd_py_requests_total", labels)


def timed(served: Served, method: str, kind: str) -> float:
    labels = {"method": method, "kind": kind}
    return served.core.metrics.registry.get_sample_value("tusd_py_request_seconds_count", labels) or 0


def is_timed(served: Served, method: str, kind: str, count: float) -> bool:
    return timed(served, method, kind) == count


def interrupted(served: Served, code: str) -> float | None:
    return served.core.metrics.registry.get_sample_value("tusd_py_bodies_interrupted_total", {"code": code})


def series(metrics: Metrics) -> dict[tuple[object, ...], float]:
    """Every sample by name and labels, and its value."""
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for sample in samples
        if not sample.name.endswith("_created") or sample.name == "tusd_py_uploads_created"
    }


# --- clients that go away --------------------------------------------------------------------------


async def leave(served: Served, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> None:
    """Send a request whose body ends too early, and go away once the server has read what there is."""
    connection = await served.connect()
    await connection.send_head(method, path, headers)
    await connection.send(body)
    await eventually(lambda: any(one.received for one in served.bodies))
    connection.abort()
    await eventually(lambda: not served.bodies)


def patch(offset: int) -> list[tuple[str, str]]:
    return [("Tus-Resumable", "1.0.0"), ("Upload-Offset", str(offset)), ("Content-Type", OFFSET_TYPE)]


def post(length: int) -> list[tuple[str, str]]:
    return [("Tus-Resumable", "1.0.0"), ("Upload-Length", str(length)), ("Content-Type", OFFSET_TYPE)]


async def test_a_client_that_goes_away_while_it_sends_is_no_failure_of_the_server(
    served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    path = await served.create(10)

    await leave(served, "PATCH", path, [*patch(0), ("Content-Length", "10")], b"hello")
    await leave(served, "PATCH", path, [*patch(5), ("Transfer-Encoding", "chunked")], b"1\r\nx\r\n")
    await leave(served, "POST", "/files/", [*post(10), ("Content-Length", "10")], b"hello")

    await eventually(lambda: (requests(served, "PATCH", 499), requests(served, "POST", 499)) == (2, 1))
    assert (requests(served, "PATCH", 500), requests(served, "POST", 500)) == (0, 0)
    assert interrupted(served, "ERR_CONNECTION_CLOSED") == 3
    output = "".join(capfd.readouterr())
    assert output.count("status=499") == 3
    assert "[warning" not in output


async def test_a_client_that_falls_silent_is_none_either(serve: Serve) -> None:
    served = await serve(limits={"idle_timeout": 0.2})
    path = await served.create(10)
    await served.begin(path, 0, b"hello", ("Content-Length", "10"))

    await eventually(lambda: requests(served, "PATCH", 499) == 1)

    assert requests(served, "PATCH", 500) == 0
    assert interrupted(served, "ERR_READ_TIMEOUT") == 1


async def test_a_request_that_a_newer_one_ended_is_counted_as_what_it_was(served: Served) -> None:
    path = await served.create(10)
    await served.begin(path, 0, b"hello", ("Content-Length", "10"))

    assert await served.offset(path) == 5

    await eventually(lambda: requests(served, "PATCH", 423) == 1)
    assert interrupted(served, "ERR_UPLOAD_INTERRUPTED") == 1


@pytest.mark.parametrize("place", [uploaded, stored], ids=["staged", "stored"])
async def test_a_client_that_goes_away_while_it_is_answered_is_none_either(served: Served, place: Place) -> None:
    path, _ = await place(served, b"x" * 20_000_000)
    connection = await served.connect()
    await connection.send_head("GET", path, [])
    await connection.reader.readuntil(b"\r\n\r\n")

    connection.abort()

    await eventually(lambda: requests(served, "GET", 499) == 1)
    assert (requests(served, "GET", 500), requests(served, "GET", 200)) == (0, 0)


# --- what requests do ------------------------------------------------------------------------------


async def test_requests_are_timed_by_what_they_do(served: Served) -> None:
    path, link = await uploaded(served)
    shown = f"/api/v1/uploads/{(await served.upload(path)).id}"
    asked = await served.create(5)
    override = {"X-HTTP-Method-Override": "PATCH", "Upload-Offset": "0"} | BODY
    for method, target, headers, body, kind in (
        ("HEAD", path, {}, b"", "status"),
        ("PATCH", asked, {"Upload-Offset": "0"} | BODY, b"he", "append"),
        ("POST", asked, override, b"", "append"),
        ("DELETE", asked, {}, b"", "terminate"),
        ("GET", path, {}, b"", "download"),
        ("GET", link, {}, b"", "download"),
        ("HEAD", link, {}, b"", "download"),
        ("GET", shown, {}, b"", "api"),
        ("POST", f"{shown}/transfer", {}, b"", "api"),
        ("GET", "/api/v1/events?misspelt=1", {}, b"", "events"),
        ("GET", "/", {}, b"", "page"),
        ("GET", "/assets/page.css", {}, b"", "page"),
        ("OPTIONS", path, {}, b"", "other"),
        ("OPTIONS", shown, {}, b"", "other"),
        ("PUT", path, {}, b"", "other"),
        ("GET", "/nothing", {}, b"", "other"),
    ):
        counted = method if method != "PUT" else "other"
        before = timed(served, counted, kind)

        await served.request(method, target, headers, body)

        # What is streamed has reached the client before it is counted.
        await eventually(partial(is_timed, served, counted, kind, before + 1))
    assert timed(served, "POST", "create") == 2


async def test_a_stored_file_is_counted_as_it_was_answered(served: Served) -> None:
    path, _ = await stored(served)
    tag = (await served.request("GET", path)).headers["etag"]

    await served.request("GET", path, {"Range": "bytes=2-3"})
    await served.request("GET", path, {"Range": "bytes=99-"})
    await served.request("GET", path, {"If-None-Match": tag})

    await eventually(lambda: [requests(served, "GET", status) for status in (200, 206, 416, 304)] == [1, 1, 1, 1])


# --- labels ----------------------------------------------------------------------------------------


def test_every_figure_is_there_with_0_before_anything_happens() -> None:
    begun = series(Metrics())

    assert set(begun.values()) == {0}
    for method in ("GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS", "other"):
        for status in (200, 201, 204, 206, 302, 400, 401, 403, 404, 409, 413, 423, 460, 499, 500, 503, 507):
            assert ("tusd_py_requests_total", ("method", method), ("status", str(status))) in begun
    for code in ("ERR_CONNECTION_CLOSED", "ERR_READ_TIMEOUT", "ERR_SERVER_SHUTDOWN", "ERR_UPLOAD_INTERRUPTED"):
        assert ("tusd_py_bodies_interrupted_total", ("code", code)) in begun


async def test_no_request_brings_a_label_that_was_not_there(served: Served) -> None:
    before = set(series(served.core.metrics))
    path, link = await stored(served)
    cut = await served.create(10)
    await leave(served, "PATCH", cut, [*patch(0), ("Content-Length", "10")], b"hello")

    for method in ("GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS", "PUT", "BREW", "x" * 200):
        for target in ("/files/", cut, path, link, f"/download/{uuid.uuid4()}", "/api/v1/uploads", "/", "/nowhere"):
            await served.request(method, target, {})
            await served.request(method, target, [("Range", "bytes=99-"), ("Upload-Complete", "?1")])
    await served.work.cleanup.once()

    assert set(series(served.core.metrics)) == before
