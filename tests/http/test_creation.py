"""tus 1.0.0 §Creation."""

from __future__ import annotations

import base64

import pytest

from tests.http.served import Serve, Served
from tests.support.http_client import OFFSET_TYPE, TUS, chunked


async def test_creation_answers_where_and_from_which_offset(served: Served) -> None:
    """CRE-02 CWU-04"""
    response = await served.request("POST", "/files/", {"Upload-Length": "5"})

    assert response.status == 201
    assert response.headers["upload-offset"] == "0"
    assert "upload-expires" in response.headers
    assert response.headers["upload-id"] == str((await served.upload(response.headers["location"])).id)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Upload-Length": "5", "Upload-Defer-Length": "1"},
        {"Upload-Concat": "partial"},
        {"Upload-Metadata": "a Yg=="},
    ],
)
async def test_creation_wants_exactly_one_of_length_and_its_deferral(served: Served, headers: dict[str, str]) -> None:
    """CRE-03"""
    assert (await served.request("POST", "/files/", headers)).status == 400


async def test_an_empty_upload_is_complete_at_once(served: Served) -> None:
    """CRE-04"""
    path = await served.create(0)
    upload = await served.upload(path)

    head = await served.head(path)

    assert (head.headers["upload-offset"], head.headers["upload-length"]) == ("0", "0")
    assert await served.count("events", upload, "upload.completed") == 1
    assert await served.count("jobs", upload, "transfer") == 1
    assert (await served.request("GET", path)).body == b""


async def test_an_empty_upload_is_stored(served: Served) -> None:
    """CRE-04"""
    path = await served.create(0)
    async with served.working():
        await served.until_state(path, "stored")

    assert (await served.request("GET", path)).status == 200


@pytest.mark.parametrize(("length", "status"), [(100, 201), (101, 413)])
async def test_creation_over_the_maximum_is_refused(serve: Serve, length: int, status: int) -> None:
    """CRE-05 CORE-06"""
    served = await serve(limits={"max_size": 100})

    response = await served.request("POST", "/files/", {"Upload-Length": str(length)})

    assert response.status == status
    if status == 413:
        assert response.headers["tus-max-size"] == "100"
        assert "location" not in response.headers


async def test_the_location_is_a_path(served: Served) -> None:
    """CRE-06 CRE-07"""
    response = await served.request(
        "POST",
        "/files/",
        {
            "Upload-Length": "5",
            "X-Forwarded-Host": "evil.example",
            "X-Forwarded-Proto": "https",
            "Forwarded": "host=evil.example;proto=https",
        },
    )

    assert response.headers["location"].startswith("/files/")


async def test_the_location_follows_the_public_url(serve: Serve) -> None:
    """CRE-06"""
    served = await serve(server={"public_url": "https://up.example/app"})

    response = await served.request("POST", "/files/", {"Upload-Length": "5"})

    assert response.headers["location"].startswith("https://up.example/app/files/")


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({}, "http://localhost/files/"),
        ({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "up.example"}, "https://up.example/files/"),
        ({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "up.example:443"}, "https://up.example/files/"),
        ({"X-Forwarded-Host": "up.example:8443, other"}, "http://up.example:8443/files/"),
        ({"X-Forwarded-Proto": "gopher"}, "/files/"),
        ({"X-Forwarded-Prefix": "/api"}, "http://localhost/api/files/"),
        ({"Forwarded": 'host="up.example:80";proto=http, host=other'}, "http://up.example/files/"),
        ({"X-Forwarded-Host": "a/b"}, "/files/"),
    ],
)
async def test_a_trusted_proxy_tells_how_we_are_reached(serve: Serve, headers: dict[str, str], base: str) -> None:
    """CRE-07"""
    served = await serve(server={"trusted_proxies": ["127.0.0.0/8"], "allowed_hosts": ["up.example"]})

    response = await served.request("POST", "/files/", {"Upload-Length": "5"} | headers)

    assert response.headers["location"].rpartition("/")[0] + "/" == base


@pytest.mark.parametrize(
    "value",
    ["", "a", "a ,b Yg==", "a Yg==, b Yg==", "a Yg", "a /w==", "filename d29ybGQ=,is_confidential", "a  Yg=="],
)
async def test_metadata_comes_back_as_it_was_sent(served: Served, value: str) -> None:
    """CRE-08 CRE-09"""
    response = await served.request("POST", "/files/", [TUS, ("Upload-Length", "5"), ("Upload-Metadata", value)])
    assert response.status == 201, response

    head = await served.head(response.headers["location"])

    assert head.headers.get("upload-metadata") == (value or None)


@pytest.mark.parametrize(
    "value",
    [
        "a Yg==,a Yg==", "a Y!g=", "a Yg==,", ",", "ä Yg==", "a Yg== x", "a -_-_", "a\x01 Yg==",
        "a\u00a0b Yg==", "a " + "Yg" * 8200,
    ],
)  # fmt: skip
async def test_malformed_metadata_creates_nothing(served: Served, value: str) -> None:
    """CRE-08"""
    connection = await served.connect()
    await connection.send(
        b"POST /files/ HTTP/1.1\r\nHost: localhost\r\nTus-Resumable: 1.0.0\r\nUpload-Length: 5\r\nUpload-Metadata: "
        + value.encode()
        + b"\r\n\r\n"
    )

    response = await connection.response()

    assert response.status == 400
    assert "location" not in response.headers


async def test_a_file_name_never_becomes_a_path(served: Served) -> None:
    """CRE-10"""
    name = base64.b64encode(b"../../../etc/passwd\r\nX: y").decode()
    path = await served.create(5, {"Upload-Metadata": f"filename {name}", "Content-Type": OFFSET_TYPE}, b"hello")
    async with served.working():
        upload = await served.until_state(path, "stored")

    got = await served.request("GET", path)

    assert str(upload.id) in upload.object_key
    assert "passwd" not in upload.object_key
    assert got.status == 200
    assert "x" not in got.headers


async def test_metadata_may_be_refused_before_anything_is_made(serve: Serve) -> None:
    """CRE-11"""
    served = await serve(limits={"max_metadata": 10})

    refused = await served.request("POST", "/files/", {"Upload-Length": "5", "Upload-Metadata": "abcdef Yg=="})

    assert refused.status == 400
    assert refused.body.startswith(b"ERR_INVALID_METADATA: ")


@pytest.mark.parametrize("content_type", ["application/octet-stream", "application/json", ""])
async def test_another_media_type_matters_only_with_a_body(served: Served, content_type: str) -> None:
    """CRE-12"""
    headers = {"Upload-Length": "5", "Content-Type": content_type}
    framed = headers | {"Transfer-Encoding": "chunked"}

    without = await served.request("POST", "/files/", headers)
    empty = await served.request("POST", "/files/", framed, chunked())
    whole = await served.request("POST", "/files/", headers, b"hello")
    in_chunks = await served.request("POST", "/files/", framed, chunked(b"hello"))

    assert [r.status for r in (without, empty, whole, in_chunks)] == [201, 201, 415, 415]
    assert "location" not in whole.headers
    assert "location" not in in_chunks.headers
    assert list(served.core.staging.files()) == []


async def test_a_post_to_an_upload_is_not_allowed(served: Served) -> None:
    """CRE-13"""
    path = await served.create(5)

    response = await served.request("POST", path, {"Upload-Length": "5"})

    assert response.status == 405
    assert "location" not in response.headers


async def test_a_repeated_creation_makes_a_second_upload_and_both_expire(served: Served) -> None:
    """CRE-14"""
    first, second = await served.create(5), await served.create(5)

    assert first != second
    assert all([(await served.upload(path)).expires_at for path in (first, second)])


async def test_long_header_lines_reach_us(served: Served) -> None:
    """CRE-15 AIO-09"""
    value = "note " + "YWFh" * 3900

    path = await served.create(5, {"Upload-Metadata": value})
    too_long = await served.request("POST", "/files/", {"Upload-Length": "5", "Upload-Metadata": "a" * 60_000})

    assert (await served.head(path)).headers["upload-metadata"] == value
    assert (too_long.status, too_long.headers["tus-resumable"]) == (400, "1.0.0")


async def test_a_line_beyond_the_parsers_limit_gets_a_plain_400(served: Served) -> None:
    """AIO-09"""
    response = await served.request("POST", "/files/", {"Upload-Length": "5", "Upload-Metadata": "a" * 70_000})

    assert response.status == 400
    assert b"<" not in response.body


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def created_rows(served: Served) -> int:
    return len(await served.core.database.fetch("SELECT id FROM uploads"))


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        (f"filetype {encoded('text/' + 'x' * 12_000)}", "type"),
        (f"type {encoded('text/' + 'x' * 251)}", "type"),
        (f"filename {encoded('x' * 5_004)}", "name"),
        (f"name {encoded('ü' * 513)}", "name"),
    ],
)
@pytest.mark.parametrize("extra", [{}, {"Content-Type": OFFSET_TYPE}, {"Upload-Concat": "partial"}])
async def test_a_name_or_type_longer_than_any_is_refused_before_anything_is_made(
    served: Served, metadata: str, what: str, extra: dict[str, str]
) -> None:
    """CRE-11"""
    body = b"hello" if "Content-Type" in extra else b""

    refused = await served.request("POST", "/files/", {"Upload-Length": "5", "Upload-Metadata": metadata} | extra, body)

    assert refused.status == 400
    assert refused.body.startswith(f"ERR_INVALID_METADATA: The file's {what} is longer than".encode())
    assert await created_rows(served) == 0
    assert [path for path in served.config.staging_directory.rglob("*") if path.stat().st_size == 5] == []


async def test_a_media_type_of_the_other_dialect_is_bounded_as_well(served: Served) -> None:
    """CRE-11"""
    mark = [("Upload-Draft-Interop-Version", "8"), ("Upload-Complete", "?1"), ("Content-Type", "text/" + "x" * 12_000)]

    refused = await served.request("POST", "/files/", mark, b"hello")

    assert refused.status == 400
    assert await created_rows(served) == 0


async def test_the_longest_names_and_types_are_kept(served: Served) -> None:
    """CRE-11"""
    metadata = f"filename {encoded('€' * 255)},filetype {encoded('application/' + 'x' * 243)}"

    path = await served.create(5, {"Upload-Metadata": metadata})

    upload = await served.upload(path)
    assert (upload.filename, len(upload.content_type or "")) == ("€" * 255, 255)
