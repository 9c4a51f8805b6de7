"""Who may do what, with bearer tokens."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import pytest

from tests.http.served import Serve, Served
from tests.http.support import SECRET, bearer
from tests.support.http_client import OFFSET_TYPE, TUS, patch_head

BODY = {"Content-Type": OFFSET_TYPE}


@pytest.fixture
async def guarded(serve: Serve) -> Served:
    return await serve(auth={"mode": "jwt", "jwt": {"secret": SECRET, "leeway": 0, "resume_grace": 3600}})


async def every_verb(served: Served, path: str, headers: Mapping[str, str]) -> dict[str, int]:
    """The status of each verb; DELETE comes last."""
    upload_id = (await served.upload(path)).id
    return {
        "HEAD": (await served.head(path, headers)).status,
        "PATCH": (await served.patch(path, 2, b"llo", headers)).status,
        "GET": (await served.request("GET", path, headers)).status,
        "download": (await served.request("GET", f"/download/{upload_id}", headers)).status,
        "api": (await served.request("GET", f"/api/v1/uploads/{upload_id}", headers)).status,
        "DELETE": (await served.request("DELETE", path, headers)).status,
    }


async def test_the_owner_may_do_everything(guarded: Served) -> None:
    path = await guarded.create(5, BODY | bearer(), b"he")

    assert await every_verb(guarded, path, bearer()) == {
        "HEAD": 200, "PATCH": 204, "GET": 200, "download": 200, "api": 200, "DELETE": 204,
    }  # fmt: skip


async def test_strangers_see_nothing(guarded: Served) -> None:
    """CORE-11"""
    path = await guarded.create(5, BODY | bearer(), b"he")

    assert set((await every_verb(guarded, path, bearer("bob"))).values()) == {404}
    head = await guarded.head(path, bearer())
    assert (head.status, head.headers["upload-offset"]) == (200, "2")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer x.y.z"},
        {"Authorization": "Basic YTpi"},
        bearer(key="another secret of thirty-two bytes"),
        bearer(expires_in=-7200),
    ],
)
async def test_nobody_in_particular_is_asked_for_a_token(guarded: Served, headers: dict[str, str]) -> None:
    path = await guarded.create(5, BODY | bearer(), b"he")

    assert set((await every_verb(guarded, path, headers)).values()) == {401}
    refused = await guarded.request("POST", "/files/", headers | {"Upload-Length": "5"})
    assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")


async def test_an_expired_token_may_still_resume(guarded: Served) -> None:
    path = await guarded.create(5, BODY | bearer(), b"he")

    assert await every_verb(guarded, path, bearer(expires_in=-60)) == {
        "HEAD": 200, "PATCH": 204, "GET": 401, "download": 401, "api": 401, "DELETE": 401,
    }  # fmt: skip
    created = await guarded.request("POST", "/files/", bearer(expires_in=-60) | {"Upload-Length": "5"})
    assert created.status == 401


async def test_an_expired_token_of_a_stranger_opens_nothing(guarded: Served) -> None:
    path = await guarded.create(5, BODY | bearer(), b"he")

    statuses = await every_verb(guarded, path, bearer("bob", expires_in=-60))

    assert (statuses["HEAD"], statuses["PATCH"]) == (404, 404)


@pytest.mark.parametrize(("headers", "status"), [({}, 401), (bearer("bob"), 404)])
async def test_a_refusal_comes_before_the_body(guarded: Served, headers: dict[str, str], status: int) -> None:
    """CORE-28"""
    path = await guarded.create(5, bearer())
    for method, target, own in [
        ("PATCH", path, patch_head(0)),
        ("POST", "/files/", [*patch_head(0), ("Upload-Length", "5")]),
    ]:
        connection = await guarded.connect()
        await connection.send_head(
            method, target, [*own, ("Content-Length", "5"), ("Expect", "100-continue"), *headers.items()]
        )
        if method == "POST" and headers:
            assert await connection.interim() == 100
            continue
        response = await connection.response()
        assert (response.status, response.interim) == (status, [])
    assert (await guarded.upload(path)).offset == 0


async def test_a_scope_may_be_needed_to_create(serve: Serve) -> None:
    served = await serve(auth={"mode": "jwt", "jwt": {"secret": SECRET, "create_scope": "files:create"}})

    refused = await served.request("POST", "/files/", bearer() | {"Upload-Length": "5"})
    created = await served.request("POST", "/files/", bearer(scope="x files:create") | {"Upload-Length": "5"})

    assert [refused.status, created.status] == [403, 201]


async def test_a_scope_may_open_everybodys_downloads_and_nothing_more(guarded: Served) -> None:
    path = await guarded.create(5, BODY | bearer(), b"hello")

    statuses = await every_verb(guarded, path, bearer("bob", scope="files:read:any"))

    assert statuses == {"HEAD": 404, "PATCH": 404, "GET": 200, "download": 200, "api": 200, "DELETE": 404}


async def test_foreign_parts_do_not_exist(guarded: Served) -> None:
    """CAT-05 CAT-06"""
    partial = BODY | {"Upload-Concat": "partial"}
    hers = await guarded.create(5, partial | bearer(), b"hello")
    his = await guarded.create(5, partial | bearer("bob"), b"world")

    own = await guarded.request("POST", "/files/", bearer() | {"Upload-Concat": f"final;{hers}"})
    mixed = await guarded.request("POST", "/files/", bearer() | {"Upload-Concat": f"final;{hers} {his}"})

    assert [own.status, mixed.status] == [201, 400]
    assert b"Upload 2 of Upload-Concat does not exist" in mixed.body


async def test_a_list_shows_only_ones_own(guarded: Served) -> None:
    await guarded.create(5, bearer())
    await guarded.create(6, bearer("bob"))

    response = await guarded.request("GET", "/api/v1/uploads", bearer())

    assert response.body.count(b'"length":5') == 1
    assert b'"length":6' not in response.body


async def test_an_override_needs_the_same_permission(guarded: Served) -> None:
    """CORE-07"""
    path = await guarded.create(5, BODY | bearer(), b"he")

    refused = await guarded.request("POST", path, bearer("bob") | {"X-HTTP-Method-Override": "DELETE"})

    assert refused.status == 404
    assert (await guarded.head(path, bearer())).status == 200


# --- profiles --------------------------------------------------------------------------------------

PROFILES = {"open": {"perm_download": "public"}, "team": {"perm_download": "team:read"}}


async def test_a_token_picks_the_profile_of_its_uploads(serve: Serve) -> None:
    served = await serve(auth={"mode": "jwt", "jwt": {"secret": SECRET}}, profiles=PROFILES)

    uploads = [await served.upload(await served.create(5, who)) for who in (bearer(), bearer(profile="team"))]

    assert [upload.profile for upload in uploads] == ["default", "team"]


@pytest.mark.parametrize("profile", ["not_found", "", 7, None])
async def test_a_profile_that_is_not_configured_is_refused(serve: Serve, profile: str | int | None) -> None:
    served = await serve(auth={"mode": "jwt", "jwt": {"secret": SECRET}}, profiles=PROFILES)
    path = await served.create(5, bearer())

    refused = await served.request("POST", "/files/", bearer(profile=profile) | {"Upload-Length": "5"})
    resumed = await served.patch(path, 0, b"hello", bearer(profile=profile))

    assert (refused.status, resumed.status) == (403, 204)
    assert refused.body.startswith(b"ERR_UNKNOWN_PROFILE: ")


async def test_a_profile_says_who_may_download(serve: Serve) -> None:
    served = await serve(auth={"mode": "jwt", "jwt": {"secret": SECRET}}, profiles=PROFILES)
    readers = [{}, {"Authorization": "Bearer x"}, bearer("bob"), bearer("bob", scope="team:read"), bearer()]
    statuses = {}
    for profile in ("default", "open", "team"):
        path = await served.create(5, BODY | bearer(profile=profile), b"hello")
        link = f"/download/{(await served.upload(path)).id}"
        answers = [await served.request("GET", link, headers) for headers in readers]
        statuses[profile] = [answer.status for answer in answers]
        assert all(answer.body == b"hello" for answer in answers if answer.status == 200)
        shown = [await served.request("GET", f"/api/v1/uploads/{link[10:]}", headers) for headers in readers]
        assert [answer.status for answer in shown] == [401, 401, 404, 404, 200]

    assert statuses == {
        "default": [401, 401, 404, 404, 200],
        "open": [200, 200, 200, 200, 200],
        "team": [401, 401, 404, 200, 200],
    }
    assert (await served.request("GET", f"/download/{uuid.uuid4()}", {})).status == 401


async def test_where_nothing_is_public_nobody_gets_as_far_as_the_database(guarded: Served) -> None:
    await guarded.core.database.close()

    assert (await guarded.request("GET", f"/download/{uuid.uuid4()}", {})).status == 401


@pytest.mark.parametrize("credential", ["Bearer nonsense", "Basic YTpi"])
async def test_without_authentication_everybody_is_the_same_nobody(served: Served, credential: str) -> None:
    path = await served.create(2)

    assert (await served.patch(path, 0, b"ab", {"Authorization": credential})).status == 204
    assert (await served.upload(path)).owner is None
    assert (await served.head(await served.create(1, {"Authorization": credential}))).status == 200


@pytest.mark.parametrize("mode", ["jwt", "none"])
async def test_two_credentials_are_refused_whichever_is_good(serve: Serve, mode: str) -> None:
    served = await serve(auth={"mode": mode, "jwt": {"secret": SECRET}})
    path = await served.create(5, bearer())
    upload_id = (await served.upload(path)).id
    good, bad = bearer()["Authorization"], "Bearer x.y.z"

    for first, second in ((good, good), (good, bad), (bad, good)):
        twice = [TUS, ("Authorization", first), ("authorization", second)]
        for method, target in (
            ("POST", "/files/"), ("HEAD", path), ("PATCH", path), ("DELETE", path), ("GET", path),
            ("GET", "/api/v1/uploads"), ("GET", f"/api/v1/uploads/{upload_id}"), ("GET", f"/download/{upload_id}"),
            ("DELETE", f"/api/v1/uploads/{upload_id}"),
        ):  # fmt: skip
            refused = await served.request(method, target, twice)
            assert refused.status == 400, (method, target)
            assert not refused.body or b"Authorization must be sent once." in refused.body
    assert (await served.head(path, bearer())).headers["upload-offset"] == "0"


@pytest.mark.parametrize("working", [False, True])
async def test_only_what_is_public_may_be_embedded_by_other_sites(serve: Serve, working: bool) -> None:
    served = await serve(auth={"mode": "jwt", "jwt": {"secret": SECRET}}, profiles=PROFILES)
    embedders = {}
    for profile in ("default", "open", "team"):
        path = await served.create(5, BODY | bearer(profile=profile), b"hello")
        if working:
            async with served.working():
                await served.until_state(path, "stored")
        link = f"/download/{(await served.upload(path)).id}"
        answers = [await served.request("GET", target, bearer()) for target in (link, path)]
        assert [answer.body for answer in answers] == [b"hello", b"hello"]
        embedders[profile] = [answer.headers["cross-origin-resource-policy"] for answer in answers]

    assert embedders == {name: [f"{scope}-{end}"] * 2 for name, scope, end in (
        ("default", "same", "site"), ("open", "cross", "origin"), ("team", "same", "site"),
    )}  # fmt: skip
    for target in ("/api/v1/uploads", "/files/x", "/not_found"):
        assert (await served.request("GET", target, bearer())).headers["cross-origin-resource-policy"] == "same-site"
