"""The JSON API."""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from typing import Any

import pytest

from tests.http.served import Served
from tests.support.http_client import OFFSET_TYPE

BODY = {"Content-Type": OFFSET_TYPE}


async def show(served: Served, path: str) -> Any:
    response = await served.request("GET", f"/api/v1/uploads/{(await served.upload(path)).id}", [])
    assert (response.status, response.headers["content-type"]) == (200, "application/json")
    return json.loads(response.body)


async def test_an_upload_is_shown_as_it_stands(served: Served) -> None:
    path = await served.create(5, BODY | {"Upload-Metadata": "filename YS50eHQ="}, b"he")

    shown = await show(served, path)

    assert shown | {"id": 0, "created_at": 0, "updated_at": 0, "expires_at": 0} == {
        "id": 0, "state": "uploading", "length": 5, "offset": 2, "filename": "a.txt", "content_type": None,
        "content_encoding": None, "content_language": None,
        "profile": "default", "trigger": "complete", "owner": None, "metadata": {"filename": "a.txt"},
        "object_key": (await served.upload(path)).object_key, "location": "staging", "download_url": None,
        "created_at": 0,
        "updated_at": 0, "completed_at": None, "committed_at": None, "stored_at": None, "expires_at": 0, "sha256": None,
        "md5": None, "error": None, "transfer": None, "transfer_id": None, "attempts": 0, "bytes_transferred": 0,
        "last_error": None, "error_code": None, "next_attempt_at": None,
        "links": {
            "self": f"/api/v1/uploads/{shown['id']}", "attempts": f"/api/v1/uploads/{shown['id']}/attempts",
            "download": None, "commit": None, "transfer": None,
        },
    }  # fmt: skip
    assert datetime.fromisoformat(shown["created_at"]).tzinfo is not None
    assert path.rpartition("/")[2] not in json.dumps(shown)


async def test_the_way_to_the_store_can_be_watched(served: Served) -> None:
    path = await served.create(5, BODY, b"hello")
    assert (await show(served, path))["state"] == "completed"

    async with served.working():
        await served.until_state(path, "stored")
    shown = await show(served, path)

    assert (shown["state"], shown["attempts"]) == ("stored", 1)
    # Without authentication everybody is an operator.
    key = (await served.upload(path)).object_key
    directory = str(served.web.config.store_directory)
    assert shown["location"] == {"backend": "filesystem", "directory": directory, "key": key}
    assert shown["stored_at"] is not None
    assert (await served.request("GET", shown["download_url"], [])).body == b"hello"


async def test_a_deleted_upload_is_shown_as_gone(served: Served) -> None:
    path = await served.create(5)
    upload_id = (await served.upload(path)).id
    await served.request("DELETE", path)

    shown = json.loads((await served.request("GET", f"/api/v1/uploads/{upload_id}", [])).body)

    assert (shown["state"], shown["download_url"]) == ("removing", None)


async def test_uploads_are_listed_newest_first_in_pages(served: Served) -> None:
    paths = [await served.create(length) for length in (1, 2, 3)]
    await served.request("DELETE", paths[1])
    await served.create(4, {"Upload-Concat": "partial"})

    first = json.loads((await served.request("GET", "/api/v1/uploads?limit=1", [])).body)
    second = json.loads((await served.request("GET", f"/api/v1/uploads?limit=1&after={first['next']}", [])).body)
    last = json.loads((await served.request("GET", f"/api/v1/uploads?after={second['next']}", [])).body)

    assert [upload["length"] for upload in first["uploads"]] == [3]
    assert [upload["length"] for upload in second["uploads"]] == [1]
    assert last == {"uploads": [], "next": None}


async def test_pages_skip_none_of_the_uploads_of_one_moment(served: Served) -> None:
    for length in range(5):
        await served.create(length)
    await served.core.database.execute("UPDATE uploads SET created_at = now()")
    found: list[int] = []
    following: str | None = ""

    while following is not None:
        page = json.loads((await served.request("GET", f"/api/v1/uploads?limit=2{following}", [])).body)
        found += [upload["length"] for upload in page["uploads"]]
        following = f"&after={page['next']}" if page["next"] else None

    assert sorted(found) == [0, 1, 2, 3, 4]


async def test_metadata_is_shown_decoded(served: Served) -> None:
    metadata = "filename YS50eHQ=, title R3LDvMOfZQ==,flag,raw /w=="
    path = await served.create(5, {"Upload-Metadata": metadata})

    assert (await show(served, path))["metadata"] == {"filename": "a.txt", "title": "Grüße", "flag": "", "raw": None}


@pytest.mark.parametrize(
    ("method", "path", "query", "name"),
    [
        ("GET", "", "stat=stored", "stat"),
        ("GET", "", "before=2026-01-01T00:00:00Z", "before"),
        ("GET", "/{id}", "limit=1", "limit"),
        ("GET", "/{id}/attempts", "wait=1", "wait"),
        ("POST", "/{id}/commit", "force=1", "force"),
        ("POST", "/{id}/transfer", "force=1", "force"),
        ("DELETE", "/{id}", "forec=1", "forec"),
    ],
)
async def test_an_unknown_parameter_is_refused_and_changes_nothing(
    served: Served, method: str, path: str, query: str, name: str
) -> None:
    upload = await served.upload(await served.create(5, BODY, b"hello"))
    url = f"/api/v1/uploads{path.format(id=upload.id)}?{query}"

    response = await served.request(method, url, {"Content-Type": "application/json"})

    problem = json.loads(response.body)
    assert (response.status, problem["code"]) == (400, "ERR_BAD_PARAMETER")
    assert name in problem["detail"]
    after = await served.core.uploads.find(upload.id)
    assert after is not None
    assert (after.state, after.committed_at) == (upload.state, None)


async def test_downloads_take_whatever_parameters_a_link_has(served: Served) -> None:
    upload = await served.upload(await served.create(5, BODY, b"hello"))

    response = await served.request("GET", f"/download/{upload.id}?utm_source=mail", [])

    assert (response.status, response.body) == (200, b"hello")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=201", "limit=x", "limit=", "limit=-1", "limit=00000000199999", "limit=%D9%A3", "after=",
        "after=x", "after=2026-01-01T00:00:00Z", "after=" + "A" * 31, "after=" + "A" * 36,
        "after=f" + "_" * 31, "after=%c3%a9", "state=", "state=lost", "all=yes",
    ],
)  # fmt: skip
async def test_a_malformed_parameter_is_refused(served: Served, query: str) -> None:
    response = await served.request("GET", f"/api/v1/uploads?{query}", [])

    assert response.status == 400, response
    problem = json.loads(response.body)
    assert response.headers["content-type"] == "application/problem+json"
    assert (problem["status"], problem["code"]) == (400, "ERR_BAD_PARAMETER")


async def test_a_list_can_be_of_one_state(served: Served) -> None:
    done, removed = await served.create(5, BODY, b"hello"), await served.create(6)
    await served.create(7)
    await served.request("DELETE", removed)

    async def lengths(query: str) -> list[int]:
        page = json.loads((await served.request("GET", f"/api/v1/uploads?{query}", [])).body)
        return [upload["length"] for upload in page["uploads"]]

    assert await lengths("state=completed") == [5]
    assert await lengths("state=removing&limit=1") == [6]
    assert await lengths("state=transfer_failed") == []
    upload = await served.upload(done)
    await served.core.database.execute("UPDATE uploads SET state = 'transfer_failed' WHERE id = $1", upload.id)
    assert await lengths("state=transfer_failed") == [5]
    assert await lengths(f"state=transfer_failed&after={'A' * 32}") == []


async def test_the_links_of_a_whole_upload_lead_somewhere(served: Served) -> None:
    path = await served.create(5, BODY, b"hello")
    shown = await show(served, path)
    own = f"/api/v1/uploads/{shown['id']}"

    assert shown["links"] == {
        "self": own, "attempts": f"{own}/attempts", "download": f"/download/{shown['id']}",
        "commit": f"{own}/commit", "transfer": f"{own}/transfer",
    }  # fmt: skip
    for name, method in (("self", "GET"), ("attempts", "GET"), ("download", "GET"), ("commit", "POST")):
        json_type = [("Content-Type", "application/json")]
        assert (await served.request(method, shown["links"][name], json_type)).status == 200


@pytest.mark.parametrize("upload_id", [str(uuid.uuid4()), "x", "%00", "%2e%2e", "0" * 32, "*"])
async def test_an_unknown_id_is_not_found(served: Served, upload_id: str) -> None:
    """GEN-09"""
    response = await served.request("GET", f"/api/v1/uploads/{upload_id}", [])

    assert response.status == 404
    assert json.loads(response.body)["status"] == 404


async def test_other_methods_are_not_allowed(served: Served) -> None:
    """GEN-11"""
    response = await served.request("POST", "/api/v1/uploads", [])

    assert (response.status, response.headers["allow"]) == (405, "OPTIONS, GET")
    assert response.headers["cache-control"] == "no-store"


async def test_a_request_id_is_taken_over_or_made(served: Served) -> None:
    own = await served.request("GET", "/api/v1/uploads", [("X-Request-ID", "abc-1")])
    made = await served.request("GET", "/api/v1/uploads", [("X-Request-ID", "a b;")])

    assert own.headers["x-request-id"] == "abc-1"
    assert made.headers["x-request-id"] not in {"", "a b;"}


async def test_a_token_never_stands_whole_in_the_log(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    path = await served.create(5)
    await served.patch(path, 0, b"hello")
    await served.head(f"{path}/")
    await served.request("GET", f"{path}%2F")

    assert path.rpartition("/")[2] not in "".join(capfd.readouterr())
