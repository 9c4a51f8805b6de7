"""Commit, transfer and removal by public id, and the history of attempts."""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.http.served import Serve, Served
from tests.http.support import SECRET, bearer
from tests.support.http_client import OFFSET_TYPE, ConnectionLost, Headers
from tusd_py.errors import PermanentStoreError
from tusd_py.ports import Job
from tusd_py.protocol.upload import State, Trigger

BODY = {"Content-Type": OFFSET_TYPE}
JWT = {"mode": "jwt", "jwt": {"secret": SECRET, "admin_scope": "ops"}}
OPERATOR = bearer("root", scope="ops")


@pytest.fixture
async def guarded(serve: Serve) -> Served:
    return await serve(auth=JWT, profiles={"shop": {"trigger": "commit"}, "lab": {"trigger": "manual"}})


async def act(served: Served, path: str, action: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """POST an action on the upload behind a tus path; return the status and the JSON."""
    return await post(served, (await served.upload(path)).id, action, headers)


async def post(served: Served, upload_id: UUID, action: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"} | (headers or {})
    response = await served.request("POST", f"/api/v1/uploads/{upload_id}/{action}", headers)
    return response.status, json.loads(response.body)


async def delete(
    served: Served, upload_id: UUID, query: str = "", headers: dict[str, str] | None = None
) -> tuple[int, str | None]:
    response = await served.request("DELETE", f"/api/v1/uploads/{upload_id}{query}", headers or {})
    return response.status, json.loads(response.body)["code"] if response.body else None


async def claim_one(served: Served) -> Job:
    (job,) = await served.work.runner._jobs.claim(1)
    return job


async def fail_transfer(served: Served) -> Job:
    job = await claim_one(served)
    error = PermanentStoreError(code="AccessDenied", path="/srv/secret")
    await served.work.runner._jobs.fail(job, error, code=error.code)
    return job


# --- commit ----------------------------------------------------------------------------------------


async def test_an_upload_waits_for_its_commit_and_is_then_transferred(guarded: Served) -> None:
    path = await guarded.create(5, BODY | bearer(profile="shop"), b"hello")
    async with guarded.working():
        first = await act(guarded, path, "commit", bearer())
        await guarded.until_state(path, State.STORED)
    again = await act(guarded, path, "commit", bearer())

    assert first == again
    status, body = first
    assert (status, body["trigger"], body["profile"]) == (200, "commit", "shop")
    assert body["committed_at"] is not None
    upload = await guarded.upload(path)
    assert await guarded.count("events", upload, "upload.committed") == 1


async def test_without_its_commit_nothing_is_queued_and_the_bytes_are_served_from_staging(guarded: Served) -> None:
    for profile in ("shop", "lab"):
        path = await guarded.create(5, BODY | bearer(profile=profile), b"hello")
        upload = await guarded.upload(path)
        assert await guarded.count("jobs", upload, "transfer") == 0
        assert (await guarded.request("GET", f"/download/{upload.id}", bearer())).body == b"hello"


async def test_a_small_upload_that_waits_is_one_statement_as_well(
    guarded: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = []
    original = guarded.core.database.fetch

    async def counted(sql: str, *arguments: object) -> Any:
        statements.append(sql)
        return await original(sql, *arguments)

    monkeypatch.setattr(guarded.core.database, "fetch", counted)
    await guarded.create(5, BODY | bearer(profile="shop"), b"hello")

    assert len(statements) == 1


@pytest.mark.parametrize(("profile", "trigger"), [("default", "complete"), ("lab", "manual")])
async def test_a_commit_that_nothing_waits_for_is_recorded(guarded: Served, profile: str, trigger: str) -> None:
    path = await guarded.create(5, BODY | bearer(profile=profile), b"hello")
    before = await guarded.count("jobs", await guarded.upload(path), "transfer")

    status, body = await act(guarded, path, "commit", bearer())

    assert (status, body["trigger"], before) == (200, trigger, 1 if trigger == "complete" else 0)
    upload = await guarded.upload(path)
    assert upload.committed_at is not None
    assert await guarded.count("jobs", upload, "transfer") == before


async def test_the_trigger_of_an_upload_is_that_of_its_creation(serve: Serve) -> None:
    before = await serve(transfer={"trigger": "manual"})
    path = await before.create(5)
    after = await serve(transfer={"trigger": "complete"})

    await after.patch(path, 0, b"hello")

    upload = await after.upload(path)
    assert (upload.state, upload.trigger) == (State.COMPLETED, Trigger.MANUAL)
    assert await after.count("jobs", upload, "transfer") == 0


@pytest.mark.parametrize("action", ["commit", "transfer"])
async def test_an_action_needs_every_byte_and_permission(guarded: Served, action: str) -> None:
    whole = await guarded.create(5, BODY | bearer(profile="shop"), b"hello")
    half = await guarded.create(5, BODY | bearer(profile="shop"), b"he")
    part = await guarded.create(5, BODY | bearer() | {"Upload-Concat": "partial"}, b"hello")
    gone = await guarded.create(5, BODY | bearer(), b"hello")
    gone_id = (await guarded.upload(gone)).id
    await guarded.request("DELETE", gone, bearer())

    def error_of(answer: tuple[int, Any]) -> tuple[int, str]:
        return answer[0], answer[1]["code"]

    assert error_of(await act(guarded, half, action, bearer())) == (409, "ERR_NOT_READY")
    assert error_of(await act(guarded, part, action, bearer())) == (409, "ERR_INVALID_TRANSITION")
    assert error_of(await post(guarded, gone_id, action, bearer())) == (404, "ERR_UPLOAD_NOT_FOUND")
    assert error_of(await post(guarded, uuid.uuid4(), action, bearer())) == (404, "ERR_UPLOAD_NOT_FOUND")
    assert error_of(await act(guarded, whole, action, bearer("bob"))) == (404, "ERR_UPLOAD_NOT_FOUND")
    assert error_of(await act(guarded, whole, action, bearer("bob", scope="files:read:any")))[0] == 404
    assert error_of(await act(guarded, whole, action)) == (401, "ERR_UNAUTHENTICATED")
    upload = await guarded.upload(whole)
    assert (upload.committed_at, await guarded.count("jobs", upload, "transfer")) == (None, 0)


async def test_operators_commit_and_transfer_for_others(guarded: Served) -> None:
    path = await guarded.create(5, BODY | bearer(profile="shop"), b"hello")

    assert (await act(guarded, path, "commit", OPERATOR))[0] == 200
    assert (await act(guarded, path, "transfer", OPERATOR))[0] == 202
    assert (await guarded.upload(path)).committed_at is not None


async def test_what_waits_for_its_commit_says_when_it_expires(guarded: Served) -> None:
    path = await guarded.create(5, BODY | bearer(profile="shop"), b"hello")
    upload = await guarded.upload(path)

    async def expires_at() -> Any:
        shown = await guarded.request("GET", f"/api/v1/uploads/{upload.id}", bearer())
        return json.loads(shown.body)["expires_at"]

    assert upload.completed_at is not None
    waiting = await expires_at()
    await act(guarded, path, "commit", bearer())

    uncommitted_after = guarded.web.config.cleanup.uncommitted_after
    assert datetime.fromisoformat(waiting) == upload.completed_at + timedelta(seconds=uncommitted_after)
    assert await expires_at() is None


async def test_where_an_upload_is_stored_is_told_to_operators(guarded: Served) -> None:
    path = await guarded.create(5, BODY | bearer(), b"hello")
    upload = await guarded.upload(path)

    async def shown_to(headers: Headers) -> Any:
        response = await guarded.request("GET", f"/api/v1/uploads/{upload.id}", headers)
        return json.loads(response.body)

    staged = [(await shown_to(who))["location"] for who in (bearer(), OPERATOR)]
    async with guarded.working():
        await guarded.until_state(path, State.STORED)
    owner, operator = await shown_to(bearer()), await shown_to(OPERATOR)

    directory = str(guarded.web.config.store_directory)
    assert staged == ["staging", "staging"]
    assert owner["location"] == "store"
    assert operator["location"] == {"backend": "filesystem", "directory": directory, "key": upload.object_key}
    assert owner["owner"] == operator["owner"] == upload.owner == "ann"
    assert owner["object_key"] == upload.object_key


# --- transfer --------------------------------------------------------------------------------------


async def test_a_transfer_is_asked_for_and_watched(guarded: Served) -> None:
    path = await guarded.create(5, BODY | bearer(profile="lab"), b"hello")

    status, first = await act(guarded, path, "transfer", bearer())
    again = await act(guarded, path, "transfer", bearer())
    job = await claim_one(guarded)
    running = await act(guarded, path, "transfer", bearer())

    assert (status, first["state"], first["transfer_id"]) == (202, "completed", job.id)
    assert (again[0], again[1]["transfer_id"]) == (running[0], running[1]["transfer_id"]) == (202, job.id)
    await guarded.work.runner._jobs.release([job])
    async with guarded.working():
        await guarded.until_state(path, State.STORED)
    status, stored = await act(guarded, path, "transfer", bearer())
    assert (status, stored["transfer_id"], stored["state"]) == (200, job.id, "stored")
    assert await guarded.count("jobs", await guarded.upload(path), "transfer") == 1


async def test_a_failed_transfer_is_listed_and_tried_again_by_hand(guarded: Served) -> None:
    path = await guarded.create(5, BODY | bearer(), b"hello")
    failed = await fail_transfer(guarded)

    listed = await guarded.request("GET", "/api/v1/uploads?state=transfer_failed", bearer())
    (entry,) = json.loads(listed.body)["uploads"]
    everybodys = await guarded.request("GET", "/api/v1/uploads?state=transfer_failed&all=1", OPERATOR)
    refused = await guarded.request("GET", "/api/v1/uploads?state=transfer_failed&all=1", bearer())
    status, order = await act(guarded, path, "transfer", bearer())

    assert entry["error"] == "The store refused, and a retry cannot help. (AccessDenied)"
    assert [entry["id"]] == [other["id"] for other in json.loads(everybodys.body)["uploads"]]
    assert refused.status == 403
    assert (status, order["state"]) == (202, "transfer_failed")
    assert order["transfer_id"] > failed.id
    async with guarded.working():
        await guarded.until_state(path, State.STORED)


async def test_the_history_shows_every_attempt_and_its_secrets_to_operators_only(guarded: Served) -> None:
    path = await guarded.create(5, BODY | bearer(), b"hello")
    await fail_transfer(guarded)
    await act(guarded, path, "transfer", bearer())
    running = await claim_one(guarded)
    target = f"/api/v1/uploads/{(await guarded.upload(path)).id}/attempts"

    mine = await guarded.request("GET", target, bearer())
    theirs = await guarded.request("GET", target, OPERATOR)

    now, past = json.loads(mine.body)["attempts"]
    assert (now["transfer_id"], now["outcome"], now["finished_at"]) == (running.id, None, None)
    assert (past["outcome"], past["error_code"], past["attempt"]) == ("failed", "ERR_STORE_REFUSED", 1)
    assert b"/srv/secret" not in mine.body
    assert b"/srv/secret" in theirs.body
    assert "worker" not in past
    assert (await guarded.request("GET", target, bearer("bob"))).status == 404


# --- removal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["created", "uploading", "completed", "stored", "transfer_failed"])
async def test_an_upload_is_removed_by_its_public_id(guarded: Served, state: str) -> None:
    content = {"created": b"", "uploading": b"he"}.get(state, b"hello")
    path = await guarded.create(5, (BODY if content else {}) | bearer(), content)
    upload = await guarded.upload(path)
    if state == "transfer_failed":
        await fail_transfer(guarded)
    if state == "stored":
        async with guarded.working():
            await guarded.until_state(path, state)
    statuses = [await delete(guarded, upload.id, "", bearer("bob")), await delete(guarded, upload.id, "", bearer())]
    async with guarded.working():
        await guarded.until_state(path, State.REMOVED)

    assert statuses == [(404, "ERR_UPLOAD_NOT_FOUND"), (204, None)]
    assert await delete(guarded, upload.id, "", bearer()) == (404, "ERR_UPLOAD_NOT_FOUND")
    assert (await guarded.head(path, bearer())).status == 404
    assert not guarded.core.staging.path(upload.id).exists()
    assert not guarded.stored_file(upload).exists()


async def test_a_removal_ends_a_request_that_still_writes(served: Served) -> None:
    path = await served.create(100)
    connection = await served.begin(path, 0, b"x" * 10, ("Content-Length", "100"))
    upload_id = (await served.upload(path)).id

    assert await delete(served, upload_id) == (204, None)
    with pytest.raises(ConnectionLost):
        await connection.response()

    assert (await served.head(path)).status == 404


async def test_operators_remove_for_others(guarded: Served) -> None:
    path = await guarded.create(5, BODY | bearer(), b"hello")

    assert await delete(guarded, (await guarded.upload(path)).id, "", OPERATOR) == (204, None)


async def test_a_transfer_under_way_is_stopped_by_force_only_and_by_operators_only(guarded: Served) -> None:
    path = await guarded.create(5, BODY | bearer(), b"hello")
    job = await claim_one(guarded)

    refusals = [
        await delete(guarded, job.upload.id, "", bearer()),
        await delete(guarded, job.upload.id, "?force=1", bearer()),
        await delete(guarded, job.upload.id, "?force=1", bearer("bob")),
        await delete(guarded, job.upload.id, "?force=yes", OPERATOR),
        await delete(guarded, job.upload.id, "?force=0", OPERATOR),
    ]

    assert refusals == [
        (409, "ERR_TRANSFER_IN_PROGRESS"), (403, "ERR_FORBIDDEN"), (403, "ERR_FORBIDDEN"),
        (400, "ERR_BAD_PARAMETER"), (409, "ERR_TRANSFER_IN_PROGRESS"),
    ]  # fmt: skip
    assert (await guarded.upload(path)).state is State.TRANSFERRING
    assert await delete(guarded, job.upload.id, "?force=1", OPERATOR) == (204, None)
    assert (await guarded.upload(path)).state is State.REMOVING
    assert await guarded.work.runner._jobs.renew([job]) == set()


async def test_without_authentication_everybody_may_use_force(served: Served) -> None:
    await served.create(5, BODY, b"hello")
    job = await claim_one(served)

    assert await delete(served, job.upload.id) == (409, "ERR_TRANSFER_IN_PROGRESS")
    assert await delete(served, job.upload.id, "?force=1") == (204, None)


async def test_what_is_on_hold_is_not_removed(guarded: Served) -> None:
    path = await guarded.create(5, BODY | bearer(), b"hello")
    upload = await guarded.upload(path)
    await guarded.core.database.execute("UPDATE uploads SET hold = true WHERE id = $1", upload.id)

    for query, headers in (("", bearer()), ("?force=1", OPERATOR)):
        assert await delete(guarded, upload.id, query, headers) == (403, "ERR_UPLOAD_HELD")
    assert (await guarded.upload(path)).state is State.COMPLETED
