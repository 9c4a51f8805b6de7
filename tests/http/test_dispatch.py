"""What is decided before any method's own rules: dialect, names, paths, methods, common headers."""

from __future__ import annotations

import re

import pytest

from tests.http.served import Serve, Served
from tests.http.support import ZIP_OF_NOTHING
from tests.support.http_client import OFFSET_TYPE, TUS, Response, patch_head

BAD_INTEGERS = ["-1", "+5", "5.0", "0x5", "5, 5", "", " ", "five", "\u0665", "1_0", "9223372036854775808", "1" * 20]
MISSING = "/files/" + "a" * 32


@pytest.mark.parametrize("name", ["Upload-Complete", "Upload-Incomplete", "Upload-Draft-Interop-Version"])
async def test_tus_resumable_decides_the_dialect_whatever_else_is_sent(served: Served, name: str) -> None:
    """GEN-01"""
    extra = {name: "?1" if name != "Upload-Draft-Interop-Version" else "6"}
    path = await served.create(5, extra)

    done = await served.patch(path, 0, b"hello", extra)

    assert (done.status, done.headers["upload-offset"], done.interim) == (204, "5", [])


async def test_reading_needs_no_version(served: Served) -> None:
    """GEN-04 CORE-03"""
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"hello")

    for method in ("HEAD", "GET", "OPTIONS"):
        assert (await served.request(method, path, [])).status == 200


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE", "PUT"])
async def test_changing_needs_a_version(served: Served, method: str) -> None:
    """GEN-04 CORE-03"""
    path = await served.create(5)
    target = "/files/" if method == "POST" else path

    refused = await served.request(method, target, [*patch_head(0)[1:], ("Upload-Length", "5")], b"hello")

    assert (refused.status, refused.headers["tus-version"]) == (412, "1.0.0")
    assert await served.offset(path) == 0


@pytest.mark.parametrize("value", BAD_INTEGERS)
async def test_a_malformed_length_creates_nothing(served: Served, value: str) -> None:
    """GEN-06"""
    response = await served.request("POST", "/files/", [TUS, ("Upload-Length", value.encode().decode("latin-1"))])

    assert response.status == 400
    assert "location" not in response.headers


@pytest.mark.parametrize("value", BAD_INTEGERS)
async def test_a_malformed_offset_changes_nothing(served: Served, value: str) -> None:
    """GEN-06 CORE-16"""
    path = await served.create(5)

    response = await served.request(
        "PATCH",
        path,
        [TUS, ("Upload-Offset", value.encode().decode("latin-1")), ("Content-Type", OFFSET_TYPE)],
        b"hello",
    )

    assert response.status == 400
    assert await served.offset(path) == 0


async def test_the_largest_offset_is_understood(served: Served) -> None:
    """GEN-06"""
    path = await served.create(5)

    assert (await served.patch(path, 2**63 - 1, b"")).status == 409


async def test_header_names_have_no_case(served: Served) -> None:
    """GEN-08"""
    created = await served.request("POST", "/files/", [("tUS-resumable", "1.0.0"), ("upload-length", "5")])
    assert created.status == 201

    done = await served.request(
        "PATCH",
        created.headers["location"],
        [("TUS-RESUMABLE", "1.0.0"), ("UPLOAD-OFFSET", "0"), ("content-type", OFFSET_TYPE)],
        b"hello",
    )

    assert done.status == 204


@pytest.mark.parametrize(
    "twice",
    [
        [("Upload-Length", "5"), ("Upload-Length", "5")],
        [("Upload-Length", "5"), ("Upload-Metadata", "a Yg=="), ("Upload-Metadata", "c ZA==")],
        [("Upload-Length", "5"), ("Upload-Concat", "partial"), ("Upload-Concat", "partial")],
        [("Upload-Defer-Length", "1"), ("Upload-Defer-Length", "1")],
        [("Upload-Length", "5"), ("X-HTTP-Method-Override", "PATCH"), ("X-HTTP-Method-Override", "PATCH")],
    ],
)
async def test_a_repeated_header_is_refused_on_creation(served: Served, twice: list[tuple[str, str]]) -> None:
    """GEN-08"""
    assert (await served.request("POST", "/files/", [TUS, *twice])).status == 400


@pytest.mark.parametrize(
    "twice",
    [
        [("Upload-Offset", "0")],
        [("Upload-Length", "5"), ("Upload-Length", "5")],
        [("Upload-Checksum", "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=")] * 2,
    ],
)
async def test_a_repeated_header_is_refused_on_append(served: Served, twice: list[tuple[str, str]]) -> None:
    """GEN-08"""
    path = await served.create(5)

    assert (await served.request("PATCH", path, patch_head(0, *twice), b"hello")).status == 400
    assert await served.offset(path) == 0


async def test_a_repeated_version_is_refused(served: Served) -> None:
    """GEN-08 CORE-02"""
    assert (await served.request("POST", "/files/", [TUS, TUS, ("Upload-Length", "5")])).status == 412


async def test_upload_urls_cannot_be_guessed(served: Served) -> None:
    """GEN-09"""
    tokens = {(await served.create(5)).removeprefix("/files/") for _ in range(5)}

    assert len(tokens) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32}", token) for token in tokens)


@pytest.mark.parametrize(
    "tail",
    [
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..", "../..", "..%2f..%2fetc", "a%2fb", "a/b", "%00", "a%00b", "%ff%fe",
        "a" * 31 + "%2F", "a" * 32 + "/x", "a" * 65, "a" * 5000, "%c3%a4" * 8, ";" * 32, "a" * 31 + "'", "*", "~",
        "00000000-0000-0000-0000-000000000000",
    ],
)  # fmt: skip
async def test_a_path_that_is_no_id_is_not_found(served: Served, tail: str) -> None:
    """GEN-09"""
    for method in ("HEAD", "PATCH", "DELETE", "GET"):
        headers = dict(patch_head(0)) if method == "PATCH" else {}
        assert (await served.request(method, f"/files/{tail}", headers)).status in {404, 405}
    assert sorted(served.core.staging.files()) == []


@pytest.mark.parametrize("creation", ["/files", "/files/"])
@pytest.mark.parametrize("slash", ["", "/"])
async def test_a_trailing_slash_makes_no_difference(served: Served, creation: str, slash: str) -> None:
    """GEN-10"""
    created = await served.request("POST", creation, {"Upload-Length": "5"})
    assert created.status == 201
    assert created.headers["location"].startswith("/files/")
    path = created.headers["location"] + slash

    assert (await served.request("OPTIONS", path)).status == 200
    assert (await served.head(path)).status == 200
    assert (await served.patch(path, 0, b"hello")).status == 204
    assert (await served.request("GET", path)).body == b"hello"
    assert (await served.request("DELETE", path)).status == 204


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("GET", "/files/", "OPTIONS, POST"),
        ("HEAD", "/files", "OPTIONS, POST"),
        ("PATCH", "/files/", "OPTIONS, POST"),
        ("PUT", MISSING, "OPTIONS, HEAD, GET, PATCH, DELETE"),
        ("POST", MISSING, "OPTIONS, HEAD, GET, PATCH, DELETE"),
        ("PROPFIND", MISSING, "OPTIONS, HEAD, GET, PATCH, DELETE"),
        ("TRACE", "/files/", "OPTIONS, POST"),
    ],
)
async def test_another_method_is_answered_with_those_that_are_allowed(
    serve: Serve, method: str, target: str, allow: str
) -> None:
    """GEN-11 CRE-13 CORE-01"""
    served = await serve(cors={"allow_origins": ["https://app.example"]})
    response = await served.request(method, target, {"Origin": "https://app.example"})

    assert (response.status, response.headers["allow"]) == (405, allow)
    assert response.headers["tus-resumable"] == "1.0.0"
    assert response.headers["access-control-allow-origin"] == "https://app.example"


async def test_a_method_that_http_does_not_know_is_refused_by_the_parser(served: Served) -> None:
    """GEN-11 AIO-09"""
    connection = await served.connect()
    await connection.send(b"FROB /files/ HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\n\r\n")

    response = await connection.response()

    assert response.status == 400
    assert b"<" not in response.body
    await connection.close()


async def failures(served: Served) -> list[Response]:
    """One response of each kind of failure."""
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"he")
    small = {"Content-Type": OFFSET_TYPE}
    return [
        await served.request("POST", "/files/"),
        await served.request("POST", "/files/", {"Tus-Resumable": None}),
        await served.request("GET", "/files/"),
        await served.request("GET", path),
        await served.request("GET", MISSING),
        await served.request("HEAD", MISSING),
        await served.request("DELETE", MISSING),
        await served.request("GET", "/not_found"),
        await served.patch(path, 4, b"o"),
        await served.patch(path, 2, b"lo and behold"),
        await served.patch(path, 2, b"llo", {"Content-Type": "text/plain"}),
        await served.patch(path, 2, b"llo", {"Upload-Checksum": "sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA="}),
        await served.request("POST", "/files/", small | {"Upload-Length": "1"}, b"llo"),
    ]


async def test_errors_are_one_line_of_text(served: Served) -> None:
    """GEN-12"""
    for response in await failures(served):
        if response.headers.get("content-length", "0") != "0" and response.body:
            assert response.headers["content-type"] == "text/plain; charset=utf-8"
            assert re.fullmatch(rb"ERR_[A-Z_]+: [^\n]+\n", response.body)


async def test_a_head_and_a_204_have_no_body(served: Served) -> None:
    """GEN-12"""
    connection = await served.connect()
    path = await served.create(5)
    for method, target, headers, body in [
        ("HEAD", MISSING, [TUS], b""),
        ("PATCH", path, patch_head(0), b"hello"),
        ("DELETE", path, [TUS], b""),
    ]:
        await connection.request(method, target, headers, body)

    # Had a body followed any of them, this answer would not stand where it does.
    assert (await connection.request("OPTIONS", "/files/", [])).status == 200
    await connection.close()


async def test_every_answer_forbids_sniffing_and_caching(served: Served) -> None:
    """GEN-13 CORE-01 CORE-10"""
    path = await served.create(5)
    answers = [
        *await failures(served),
        await served.head(path),
        await served.patch(path, 0, b"hello"),
        await served.request("OPTIONS", path),
        await served.request("DELETE", path),
    ]

    for response in answers:
        assert response.headers["x-content-type-options"] == "nosniff", response
        assert response.headers["cache-control"] == "no-store", response
        assert response.headers["tus-resumable"] == "1.0.0", response


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "x-unknown", "identity, gzip"])
async def test_a_coded_body_is_refused(served: Served, coding: str) -> None:
    """GEN-14 AIO-05"""
    path = await served.create(100)

    refused = await served.patch(path, 0, ZIP_OF_NOTHING, {"Content-Encoding": coding})
    created = await served.request(
        "POST",
        "/files/",
        {"Upload-Length": "100", "Content-Type": OFFSET_TYPE, "Content-Encoding": coding},
        ZIP_OF_NOTHING,
    )

    assert (refused.status, created.status) == (415, 415)
    assert await served.offset(path) == 0


async def test_identity_is_no_coding(served: Served) -> None:
    """GEN-14"""
    path = await served.create(len(ZIP_OF_NOTHING))

    assert (await served.patch(path, 0, ZIP_OF_NOTHING, {"Content-Encoding": "identity"})).status == 204
    assert await served.staged(path) == ZIP_OF_NOTHING


async def test_only_a_creation_has_a_location(served: Served) -> None:
    """GEN-15"""
    path = await served.create(5)

    for response in [*await failures(served), await served.head(path), await served.patch(path, 0, b"hello")]:
        assert "location" not in response.headers


async def test_a_failed_patch_tells_the_true_offset_and_a_failed_head_none(served: Served) -> None:
    """GEN-16 CORE-14 CORE-18 CSUM-04"""
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"he")

    refusals = [
        await served.patch(path, 0, b"hello"),
        await served.patch(path, 2, b"much too long"),
        await served.patch(path, 2, b"llo", {"Upload-Checksum": "sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA="}),
        await served.patch(path, 2, b"llo", {"Upload-Length": "7"}),
    ]
    missing = await served.head(MISSING)

    assert [response.status for response in refusals] == [409, 413, 460, 400]
    assert [response.headers["upload-offset"] for response in refusals] == ["2"] * 4
    assert missing.status == 404
    assert "upload-offset" not in missing.headers


async def test_a_transfer_coding_that_is_not_chunked_stores_nothing(served: Served) -> None:
    """GEN-14"""
    path = await served.create(100)
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(0, ("Transfer-Encoding", "gzip")))
    await connection.send(ZIP_OF_NOTHING)

    response = await connection.response()

    assert response.status in {400, 415, 501}
    assert await served.offset(path) == 0
    await connection.close()


@pytest.mark.parametrize("rufh", [True, False])
@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
async def test_a_plain_form_is_told_what_this_address_is_for(serve: Serve, content_type: str, rufh: bool) -> None:
    served = await serve(rufh={"enabled": rufh})

    response = await served.request("POST", "/files/", [("Content-Type", content_type)], b"--x--")

    assert response.status == 415
    assert response.body.startswith(b"ERR_FORM_NOT_ACCEPTED: ")
    assert b"resumable uploads" in response.body
    assert b"https://tus.io/" in response.body
    assert await served.core.database.fetch("SELECT 1 FROM uploads") == []
