"""A server without authentication, and the pages of others that are open in the same browser."""

from __future__ import annotations

import pytest

from tests.http.served import Serve, Served
from tests.http.support import SECRET
from tests.support.http_client import OFFSET_TYPE, TUS, Response, patch_head

STRANGER = {"Origin": "https://evil.example"}
LETTERS = {"Content-Type": OFFSET_TYPE}
JSON = ("Content-Type", "application/json")


async def refusals(served: Served, headers: dict[str, str]) -> list[Response]:
    """Everything that a page could ask for, about an upload that is there."""
    path = await served.create(5, LETTERS, b"he")
    upload_id = (await served.upload(path)).id
    api = f"/api/v1/uploads/{upload_id}"
    answers = [
        await served.request("GET", "/api/v1/uploads", headers),
        await served.request("GET", api, headers),
        await served.request("GET", f"/download/{upload_id}", headers),
        await served.request("DELETE", api, headers),
        await served.request("POST", f"{api}/commit", headers | dict([JSON])),
        await served.request("POST", "/files/", headers | {"Upload-Length": "5"}),
        await served.request("HEAD", path, headers),
        await served.request("PATCH", path, dict(patch_head(2)) | headers, b"llo"),
        await served.request("DELETE", path, headers),
        await served.request("GET", "/not_found", headers),
        await served.request("GET", "/", headers),
    ]
    assert await served.offset(path) == 2
    return answers


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://["])
async def test_a_page_of_another_origin_is_refused_everything(served: Served, origin: str) -> None:
    """CORS-08"""
    for answer in await refusals(served, {"Origin": origin}):
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers
        assert not answer.body or b"ERR_ORIGIN_NOT_ALLOWED" in answer.body


async def test_a_preflight_of_another_origin_gets_no_permission(served: Served) -> None:
    """CORS-08"""
    asked = {**STRANGER, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "tus-resumable"}

    answer = await served.request("OPTIONS", "/files/", asked)

    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:1080", "127.0.0.1.evil.example"])
async def test_a_name_that_was_rebound_to_this_machine_is_refused(served: Served, host: str) -> None:
    for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
        for answer in await refusals(served, headers):
            assert answer.status == 421
            assert not answer.body or b"ERR_HOST_NOT_ALLOWED" in answer.body
    assert (await served.request("OPTIONS", "/files/", {"Host": host})).status == 421


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1080", "[::1]:1080", "app.localhost", "192.0.2.7"])
async def test_pages_of_our_own_may_do_everything(served: Served, host: str) -> None:
    own = {"Host": host, "Origin": f"http://{host}"}

    created = await served.request("POST", "/files/", own | {"Upload-Length": "5"})

    assert created.status == 201


@pytest.mark.parametrize(
    "server",
    [{"public_url": "https://up.example"}, {"allowed_hosts": ["up.example"]}],
)
async def test_a_name_that_the_configuration_names_is_ours(serve: Serve, server: dict[str, str | list[str]]) -> None:
    served = await serve(server=server)
    own = {"Host": "up.example", "Origin": "https://up.example", "Upload-Length": "5"}

    assert (await served.request("POST", "/files/", own)).status == 201
    assert (await served.request("POST", "/files/", own | {"Host": "other.example"})).status == 421


async def test_behind_a_proxy_that_puts_its_own_host_the_public_origin_is_ours(serve: Serve) -> None:
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "up.example"}
    proxied = {"Host": "127.0.0.1:1080", "Origin": "https://up.example", "Upload-Length": "5"}
    named = await serve(server={"public_url": "https://up.example"})
    believed = await serve(server={"trusted_proxies": ["127.0.0.1"], "allowed_hosts": ["up.example"]})

    assert (await named.request("POST", "/files/", proxied)).status == 201
    assert (await believed.request("POST", "/files/", proxied | forwarded)).status == 201
    assert (await believed.request("POST", "/files/", proxied)).status == 403
    forwarded["X-Forwarded-Host"] = "evil.example"
    assert (await believed.request("POST", "/files/", proxied | forwarded)).status == 421


async def test_the_port_of_the_scheme_makes_no_other_origin(served: Served) -> None:
    own = {"Host": "localhost:443", "Origin": "https://localhost", "Upload-Length": "5"}

    assert (await served.request("POST", "/files/", own)).status == 201
    assert (await served.request("POST", "/files/", own | {"Host": "localhost:444"})).status == 403


async def test_every_origin_can_be_named_all_the_same(serve: Serve) -> None:
    served = await serve(cors={"allow_origins": ["*"]})

    answer = await served.request("POST", "/files/", STRANGER | {"Upload-Length": "5"})

    assert (answer.status, answer.headers["access-control-allow-origin"]) == (201, STRANGER["Origin"])


async def test_where_everybody_shows_who_they_are_any_host_will_do(serve: Serve) -> None:
    served = await serve(auth={"mode": "jwt", "jwt": {"secret": SECRET}})

    assert (await served.request("GET", "/api/v1/uploads", {"Host": "up.example"})).status == 401
    assert (await served.request("GET", "/api/v1/uploads", {"Host": "up.example"} | STRANGER)).status == 403


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
@pytest.mark.parametrize("action", ["commit", "transfer"])
async def test_no_action_of_the_api_can_be_sent_without_a_preflight(
    serve: Serve, kind: str | None, action: str
) -> None:
    """CORS-10"""
    served = await serve(transfer={"trigger": "manual"})
    path = await served.create(5, LETTERS, b"hello")
    target = f"/api/v1/uploads/{(await served.upload(path)).id}/{action}"

    refused = await served.request("POST", target, [] if kind is None else [("Content-Type", kind)])

    assert refused.status == 415
    assert b"application/json" in refused.body
    upload = await served.upload(path)
    assert (upload.committed_at, upload.state.value) == (None, "completed")
    accepted = await served.request("POST", target, [TUS, ("Content-Type", "Application/JSON; charset=utf-8")])
    assert accepted.status in {200, 202}


async def test_no_page_of_another_origin_may_embed_anything(serve: Serve) -> None:
    served = await serve(profiles={"default": {"perm_download": "public"}})
    path = await served.create(5, LETTERS, b"hello")
    link = f"/download/{(await served.upload(path)).id}"

    for target in (link, path, "/api/v1/uploads", "/", "/not_found", "/files/x"):
        answer = await served.request("GET", target)
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
