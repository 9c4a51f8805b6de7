"""Downloads: by the public id and by the tus URL, from staging and from the store."""

from __future__ import annotations

import base64
import uuid
from typing import Any, Protocol

import pytest

from tests.http.served import Serve, Served
from tests.http.support import eventually
from tests.support.http_client import OFFSET_TYPE, ConnectionLost
from tusd_py.ports import DownloadHeaders, PresignedUrl
from tusd_py.protocol.upload import Upload, UploadId
from tusd_py.uploads.locate import locate_bytes
from tusd_py.uploads.service import UploadService

BODY = {"Content-Type": OFFSET_TYPE}
DATA = b"0123456789"


class Place(Protocol):
    """Bring an upload to a place; return its path and its public link."""

    async def __call__(self, served: Served, data: bytes = DATA, /, **pairs: str) -> tuple[str, str]: ...


def metadata(**pairs: str) -> str:
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items())


async def uploaded(served: Served, data: bytes = DATA, /, **pairs: str) -> tuple[str, str]:
    path = await served.create(len(data), BODY | ({"Upload-Metadata": metadata(**pairs)} if pairs else {}), data)
    return path, f"/download/{(await served.upload(path)).id}"


async def stored(served: Served, data: bytes = DATA, /, **pairs: str) -> tuple[str, str]:
    path, link = await uploaded(served, data, **pairs)
    async with served.working():
        upload = await served.until_state(path, "stored")
        await eventually(lambda: not served.core.staging.path(upload.id).exists())
    return path, link


@pytest.fixture(params=[uploaded, stored], ids=["staged", "stored"])
def place(request: pytest.FixtureRequest) -> Place:
    place: Place = request.param
    return place


async def test_both_links_serve_the_bytes(served: Served, place: Place) -> None:
    """CORE-30"""
    path, link = await place(served)

    for target in (path, link, f"{link}/a name.txt"):
        got = await served.request("GET", target.replace(" ", "%20"), [])
        assert (got.status, got.body) == (200, DATA)
        assert got.headers["content-length"] == "10"
        assert got.headers["accept-ranges"] == "bytes"
        assert got.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in got.headers["content-security-policy"]


async def test_a_head_on_the_link_has_no_body(served: Served, place: Place) -> None:
    _, link = await place(served)
    connection = await served.connect()

    head = await connection.request("HEAD", link, [])
    after = await connection.request("GET", link, [])

    assert (head.status, head.headers["content-length"]) == (200, "10")
    assert after.body == DATA


@pytest.mark.parametrize(
    ("value", "status", "first", "last"),
    [
        ("bytes=0-3", 206, 0, 3), ("bytes=4-", 206, 4, 9), ("bytes=-3", 206, 7, 9), ("bytes=-30", 206, 0, 9),
        ("bytes=9-9", 206, 9, 9), ("bytes=5-99999", 206, 5, 9), ("BYTES=0-0", 206, 0, 0),
        ("bytes=10-", 416, 0, 0), ("bytes=99-100", 416, 0, 0), ("bytes=-0", 416, 0, 0),
        ("lines=0-3", 200, 0, 9), ("bytes=3-1", 200, 0, 9), ("bytes=a-b", 200, 0, 9), ("bytes=0-1,3-4", 200, 0, 9),
        ("bytes=-", 200, 0, 9), ("", 200, 0, 9), ("bytes=0-" + "9" * 30, 200, 0, 9),
    ],
)  # fmt: skip
async def test_one_range_is_served_and_what_is_no_single_range_is_ignored(
    served: Served, place: Place, value: str, status: int, first: int, last: int
) -> None:
    path, link = await place(served)

    for target in (path, link, f"{link}/name.bin"):
        got = await served.request("GET", target, [("Range", value)])
        assert got.status == status
        if status == 416:
            assert got.headers["content-range"] == "bytes */10"
        else:
            assert got.body == DATA[first : last + 1]
        assert got.headers.get("content-range") == {206: f"bytes {first}-{last}/10", 416: "bytes */10"}.get(status)


async def test_a_range_is_ignored_on_head(served: Served, place: Place) -> None:
    _, link = await place(served)

    for value in ("bytes=2-3", "bytes=99-"):
        head = await served.request("HEAD", link, [("Range", value)])
        assert (head.status, head.headers["content-length"]) == (200, "10")
        assert "content-range" not in head.headers


async def test_several_range_lines_are_several_ranges(served: Served, place: Place) -> None:
    path, link = await place(served)

    for target in (path, link):
        got = await served.request("GET", target, [("Range", "bytes=0-1"), ("Range", "bytes=3-4")])
        assert (got.status, got.body) == (200, DATA)


async def test_a_range_of_another_version_is_not_mixed_in(served: Served, place: Place) -> None:
    path, _ = await place(served)
    tag = (await served.request("GET", path)).headers["etag"]

    same = await served.request("GET", path, {"Range": "bytes=2-3", "If-Range": tag})
    other = await served.request("GET", path, {"Range": "bytes=2-3", "If-Range": '"other"'})
    nonsense = await served.request("GET", path, {"Range": "bytes=2-3", "If-Range": "nonsense"})
    unchanged = await served.request("GET", path, {"If-None-Match": tag})

    assert {same.headers["etag"], other.headers["etag"], nonsense.headers["etag"]} == {tag}
    assert (nonsense.status, nonsense.body) == (200, DATA)
    assert (same.status, same.body) == (206, DATA[2:4])
    assert (other.status, other.body) == (200, DATA)
    assert (unchanged.status, unchanged.body) == (304, b"")


async def test_an_empty_upload_is_served(served: Served, place: Place) -> None:
    path, link = await place(served, b"")

    for target in (path, link):
        got = await served.request("GET", target)
        assert (got.status, got.body) == (200, b"")
        assert (await served.request("GET", target, {"Range": "bytes=0-"})).status == 416


@pytest.mark.parametrize(
    ("pairs", "content_type", "disposition"),
    [
        ({"filename": "a.png", "filetype": "image/png"}, "image/png", 'inline; filename="a.png"'),
        ({"filename": "a.html", "filetype": "text/html"}, "text/html", 'attachment; filename="a.html"'),
        ({"filename": "a.svg", "filetype": "image/svg+xml"}, "image/svg+xml", 'attachment; filename="a.svg"'),
        ({}, "application/octet-stream", "attachment"),
        (
            {"filename": "ä€.txt"},
            "text/plain",
            "inline; filename=\"__.txt\"; filename*=UTF-8''%C3%A4%E2%82%AC.txt",
        ),
        (
            {"filename": '../../a"b.txt'},
            "text/plain",
            'inline; filename="....a\\"b.txt"; filename*=UTF-8\'\'....a%22b.txt',
        ),
    ],
)
async def test_a_browser_is_told_name_and_type(
    served: Served, place: Place, pairs: dict[str, str], content_type: str, disposition: str
) -> None:
    """CRE-10"""
    path, link = await place(served, **pairs)

    for target in (path, link):
        got = await served.request("GET", target)
        assert got.headers["content-type"].split(";")[0] == content_type
        assert got.headers["content-disposition"] == disposition


async def test_an_unfinished_upload_is_not_served(served: Served) -> None:
    """CORE-30"""
    path = await served.create(5, BODY, b"he")
    link = f"/download/{(await served.upload(path)).id}"

    assert (await served.request("GET", path)).status == 409
    refused = await served.request("GET", link)
    assert (refused.status, refused.headers["content-type"]) == (409, "application/problem+json")


@pytest.mark.parametrize("removed", [False, True])
async def test_what_is_gone_is_not_served(served: Served, place: Place, removed: bool) -> None:
    path, link = await place(served)
    await served.request("DELETE", path)
    if removed:
        async with served.working():
            await served.until_state(path, "removed")

    assert (await served.request("GET", path)).status == 404
    assert (await served.request("GET", link)).status == 404


@pytest.mark.parametrize(
    "tail", [str(uuid.uuid4()), "x", "", "..%2f..%2fetc%2fpasswd", "%00", "0" * 32, "{upper}", "{braced}", "a/b/c"]
)
async def test_only_a_known_id_in_its_one_spelling_is_served(served: Served, tail: str) -> None:
    """GEN-09"""
    path, _ = await uploaded(served)
    known = str((await served.upload(path)).id)

    tail = tail.format(upper=known.upper(), braced="{" + known + "}") if tail.startswith("{") else tail
    assert (await served.request("GET", f"/download/{tail}")).status == 404


async def test_switched_off_nothing_is_served(serve: Serve) -> None:
    served = await serve(downloads={"enabled": False})
    path, link = await uploaded(served)

    on_the_upload = await served.request("GET", path)

    assert on_the_upload.status == 405
    assert "GET" not in on_the_upload.headers["allow"]
    assert (await served.request("GET", link)).status == 404


async def test_other_methods_are_not_allowed_on_the_link(served: Served) -> None:
    """GEN-11"""
    _, link = await uploaded(served)

    refused = await served.request("POST", link)

    assert (refused.status, refused.headers["allow"]) == (405, "OPTIONS, GET, HEAD")


class RemoteStore:
    name = "remote"
    asked: tuple[object, ...] = ()

    async def locate(self, key: str, headers: DownloadHeaders, *, method: str, expires_seconds: float) -> PresignedUrl:
        self.asked = (method, key, headers, expires_seconds)
        return PresignedUrl(f"https://bucket.example/{key}?signed")


def pretend_store(monkeypatch: pytest.MonkeyPatch, served: Served, store: RemoteStore) -> RemoteStore:
    """Let every upload lie in this store, and return it."""

    async def at(place_id: int) -> RemoteStore:
        return store

    monkeypatch.setattr(served.core.stores, "at", at)
    return store


async def test_a_remote_store_is_redirected_to(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    path, link = await uploaded(served, filename="a.html")
    await served.core.database.execute(
        "UPDATE uploads SET state = 'stored', remote_present = true, local_present = false, stored_at = now()"
    )
    remote = pretend_store(monkeypatch, served, RemoteStore())
    key = (await served.upload(path)).object_key
    headers = DownloadHeaders("text/html", 'attachment; filename="a.html"')

    for method, target in (("GET", path), ("GET", link), ("HEAD", link)):
        response = await served.request(method, target)
        assert (response.status, response.headers["location"]) == (302, f"https://bucket.example/{key}?signed")
        assert "no-store" in response.headers["cache-control"]
        assert remote.asked == (method, key, headers, 300)


async def test_without_a_redirect_the_url_of_the_store_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that must send `Authorization` cannot follow a redirect to another origin."""
    _, link = await uploaded(served, filename="a.html")
    staged = await served.request("GET", f"{link}?redirect=0")
    await served.core.database.execute(
        "UPDATE uploads SET state = 'stored', remote_present = true, local_present = false, stored_at = now()"
    )
    pretend_store(monkeypatch, served, RemoteStore())

    unredirected = await served.request("GET", f"{link}?redirect=0")
    redirected = await served.request("GET", f"{link}?redirect=1")
    refused = await served.request("GET", f"{link}?redirect=no")

    assert (staged.status, staged.body) == (200, DATA)
    assert (unredirected.status, unredirected.body) == (204, b"")
    assert unredirected.headers["location"] == redirected.headers["location"]
    assert "no-store" in unredirected.headers["cache-control"]
    assert redirected.status == 302
    assert refused.status == 400


async def test_a_staged_copy_that_goes_away_in_between_is_served_from_the_store(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = await uploaded(served)
    calls: list[UploadId] = []

    async def then_transferred(service: UploadService, upload: Upload, headers: DownloadHeaders, *, method: str) -> Any:
        located = await locate_bytes(service, upload, headers, method=method)
        if not calls:
            calls.append(upload.id)
            async with served.working():
                await served.until_state(path, "stored")
                await eventually(lambda: not served.core.staging.path(upload.id).exists())
        return located

    monkeypatch.setattr("tusd_py.http.download_routes.locate_bytes", then_transferred)

    got = await served.request("GET", path)

    assert (got.status, got.body) == (200, DATA)


async def test_a_staged_copy_that_is_missing_is_an_error_and_never_a_shorter_file(served: Served) -> None:
    path, _ = await uploaded(served)
    file = served.core.staging.path((await served.upload(path)).id)

    file.write_bytes(DATA[:4])
    assert (await served.request("GET", path)).status == 500
    file.unlink()
    assert (await served.request("GET", path)).status == 500


async def test_a_file_that_shrinks_while_it_is_sent_cuts_the_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"x" * 20_000_000
    path, _ = await uploaded(served, data)
    file = served.core.staging.path((await served.upload(path)).id)
    connection = await served.connect()
    await connection.send_head("GET", path, [])
    await connection.reader.readuntil(b"\r\n\r\n")
    with file.open("r+b") as opened:
        opened.truncate(1000)

    rest = await connection.closed()

    assert len(rest) < len(data)


async def test_a_stored_file_that_is_missing_is_not_found(served: Served) -> None:
    path, link = await stored(served)
    served.stored_file(await served.upload(path)).unlink()

    assert (await served.request("GET", path)).status == 404
    assert (await served.request("GET", link)).status == 404


async def test_a_stored_file_that_is_missing_is_served_from_its_staged_copy(serve: Serve) -> None:
    served = await serve(transfer={"delete_local": False})
    path, link = await uploaded(served)
    async with served.working():
        upload = await served.until_state(path, "stored")
    file = served.stored_file(upload)
    file.unlink()

    for target in (path, link):
        got = await served.request("GET", target, {"Range": "bytes=2-4"})
        assert (got.status, got.body) == (206, DATA[2:5])
    served.core.staging.path(upload.id).write_bytes(DATA[:-1])
    assert (await served.request("GET", link)).status == 404


async def test_a_stored_file_that_is_missing_is_served_from_the_parts_of_a_concatenation(serve: Serve) -> None:
    served = await serve(transfer={"delete_local": False})
    parts = [await served.create(5, BODY | {"Upload-Concat": "partial"}, half) for half in (DATA[:5], DATA[5:])]
    path = await served.create(headers={"Upload-Concat": f"final;{parts[0]} {parts[1]}"})
    async with served.working():
        upload = await served.until_state(path, "stored")
    served.stored_file(upload).unlink()

    got = await served.request("GET", path)

    assert (got.status, got.body) == (200, DATA)


async def test_what_a_remote_store_is_known_to_have_lost_is_served_from_its_staged_copy(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No look at the store for each download: somebody has looked, and noted it."""
    path, link = await uploaded(served)
    await served.core.database.execute("UPDATE uploads SET state = 'stored', remote_present = true, stored_at = now()")
    pretend_store(monkeypatch, served, RemoteStore())
    assert (await served.request("GET", link)).status == 302

    await served.core.database.execute("UPDATE uploads SET missing_at = now()")
    got = await served.request("GET", link)

    assert (got.status, got.body) == (200, DATA)
    served.core.staging.path((await served.upload(path)).id).unlink()
    assert (await served.request("GET", link)).status == 302


async def test_a_store_directory_that_is_not_mounted_is_a_matter_of_time(served: Served) -> None:
    _, link = await stored(served)
    served.config.store_directory.rename(served.config.store_directory.with_name("unmounted"))

    assert (await served.request("GET", link)).status == 503


async def test_a_client_that_goes_away_is_no_failure(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    path, _ = await uploaded(served, b"x" * 20_000_000)
    connection = await served.connect()
    await connection.send_head("GET", path, [])
    await connection.reader.readuntil(b"\r\n\r\n")

    connection.abort()
    await eventually(lambda: not served.connections_open)

    output = "".join(capfd.readouterr())
    assert "request_failed" not in output
    assert "Traceback" not in output


async def test_a_large_download_streams(served: Served) -> None:
    data = bytes(range(256)) * 4096 * 20
    path, _ = await uploaded(served, data)

    assert (await served.request("GET", path)).body == data


async def test_a_lost_connection_is_reported_as_such(served: Served) -> None:
    connection = await served.connect()
    connection.abort()

    with pytest.raises(ConnectionLost):
        await connection.response()
