"""Browsers from other origins."""

from __future__ import annotations

import pytest

from tests.http.served import Serve, Served
from tests.support.http_client import OFFSET_TYPE, Response, patch_head

PAGE = {"Origin": "https://app.example"}
PREFLIGHT = PAGE | {
    "Tus-Resumable": None,
    "Access-Control-Request-Method": "PATCH",
    "Access-Control-Request-Headers": "tus-resumable,upload-offset,x-own",
}
MISSING = "/files/" + "c" * 32
NAMED = {"allow_origins": [PAGE["Origin"]]}


@pytest.fixture
async def served(serve: Serve) -> Served:
    """A server that names the origin of the page."""
    return await serve(cors=NAMED)


def listed(response: Response, name: str) -> set[str]:
    return {item.strip().lower() for item in response.headers[name].split(",")}


async def test_success_and_failure_alike_may_be_read(served: Served) -> None:
    """CORS-01 CORS-06 AIO-10"""
    path = await served.create(5, PAGE)
    answers = [
        await served.request("POST", "/files/", PAGE | {"Upload-Length": "5"}),
        await served.head(path, PAGE),
        await served.patch(path, 0, b"he", PAGE),
        await served.patch(path, 0, b"he", PAGE),
        await served.patch(path, 2, b"llo there", PAGE),
        await served.patch(path, 2, b"llo", PAGE | {"Upload-Checksum": "sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA="}),
        await served.patch(path, 2, b"llo", PAGE | {"Tus-Resumable": "2"}),
        await served.request("GET", path, PAGE),
        await served.request("GET", "/files/", PAGE),
        await served.head(MISSING, PAGE),
        await served.request("GET", "/not_found", PAGE),
        await served.request("GET", "/api/v1/uploads/x", PAGE),
        await served.request("DELETE", path, PAGE),
    ]
    served.web.draining = True
    answers.append(await served.patch(path, 0, b"he", PAGE))
    served.web.draining = False

    statuses = [response.status for response in answers]
    assert statuses == [201, 200, 204, 409, 413, 460, 412, 409, 405, 404, 404, 404, 204, 503]
    for response in answers:
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        assert response.headers["vary"] == "Origin"
        assert {
            "location", "upload-offset", "upload-length", "upload-id", "upload-expires", "tus-resumable", "retry-after",
            "upload-metadata", "upload-defer-length", "upload-concat", "tus-version", "tus-extension", "tus-max-size",
            "tus-checksum-algorithm", "x-request-id",
        } <= listed(response, "access-control-expose-headers")  # fmt: skip


async def test_without_an_origin_nothing_is_said(served: Served) -> None:
    """CORS-01"""
    response = await served.request("POST", "/files/", {"Upload-Length": "5"})

    assert not [name for name in response.headers if name.startswith("access-control")]


async def test_credentials_need_a_named_origin(serve: Serve) -> None:
    """CORS-02"""
    served = await serve(cors={"allow_origins": ["https://app.example"], "allow_credentials": True})

    response = await served.head(MISSING, PAGE)

    assert response.headers["access-control-allow-credentials"] == "true"
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    assert "*" not in response.headers["access-control-expose-headers"]


@pytest.mark.parametrize("path", ["/files/", "/files", MISSING, "/files/a/b/c", "/api/v1/uploads", "/download/x"])
async def test_a_preflight_is_always_answered(serve: Serve, path: str) -> None:
    """CORS-03 CORS-04 CORS-05 CORS-07"""
    served = await serve(cors=NAMED, auth={"mode": "jwt", "jwt": {"secret": "s" * 32}})

    response = await served.request("OPTIONS", path, PREFLIGHT)

    assert response.status == 200
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    assert response.headers["access-control-max-age"] == "86400"
    assert listed(response, "access-control-allow-methods") == {"post", "get", "head", "patch", "delete", "options"}
    assert listed(response, "access-control-allow-headers") == {"tus-resumable", "upload-offset", "x-own"}


async def test_without_a_wish_the_protocols_headers_are_allowed(served: Served) -> None:
    """CORS-05"""
    response = await served.request("OPTIONS", "/files/", PREFLIGHT | {"Access-Control-Request-Headers": None})

    assert {
        "authorization", "content-type", "tus-resumable", "upload-length", "upload-offset", "upload-metadata",
        "upload-defer-length", "upload-concat", "upload-checksum", "x-http-method-override", "x-requested-with",
        "x-request-id", "upload-complete", "upload-incomplete", "upload-draft-interop-version", "content-disposition",
        "content-digest", "repr-digest", "want-repr-digest",
    } <= listed(response, "access-control-allow-headers")  # fmt: skip


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "https://app.example.evil.example", "http://[", "x"]
)
async def test_another_origin_is_refused(serve: Serve, origin: str) -> None:
    """CORS-08"""
    served = await serve(cors={"allow_origins": ["https://app.example"]})
    path = await served.create(5)

    preflight = await served.request("OPTIONS", path, PREFLIGHT | {"Origin": origin})
    refused = await served.request("PATCH", path, dict(patch_head(0)) | {"Origin": origin}, b"hello")

    assert "access-control-allow-origin" not in preflight.headers
    assert refused.status == 403
    assert await served.offset(path) == 0


async def test_the_servers_own_origin_needs_no_list(serve: Serve) -> None:
    """CORS-08"""
    served = await serve(cors={"allow_origins": []})

    own = await served.request("POST", "/files/", {"Upload-Length": "5", "Origin": "http://localhost"})

    assert own.status == 201


async def test_it_can_be_left_to_the_proxy(serve: Serve) -> None:
    """CORS-09"""
    served = await serve(cors={"enabled": False})

    for response in (await served.request("OPTIONS", "/files/", PREFLIGHT), await served.head(MISSING, PAGE)):
        assert not [name for name in response.headers if name.startswith("access-control")]


async def test_what_changes_something_cannot_be_sent_without_a_preflight(served: Served) -> None:
    """CORS-10 CORE-03"""
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"hello")
    simple = PAGE | {"Tus-Resumable": None, "Content-Type": "text/plain"}

    assert (await served.request("POST", "/files/", simple, b"x")).status == 412
    assert (await served.request("POST", path, simple | {"X-HTTP-Method-Override": "DELETE"})).status == 412
    assert await served.offset(path) == 5
