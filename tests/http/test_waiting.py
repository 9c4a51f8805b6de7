"""`?wait=`: an answer as soon as something has changed, without a connection to the database meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from tests.http.served import Serve, Served
from tests.http.support import SECRET, bearer, eventually
from tests.support.http_client import OFFSET_TYPE, Response
from tusd_py.errors import TransientStoreError
from tusd_py.protocol.upload import State, UploadId
from tusd_py.uploads.changes import ChangeNotifier

JSON = ("Content-Type", "application/json")
BODY = {"Content-Type": OFFSET_TYPE}
MANUAL: dict[str, Any] = {"transfer": {"trigger": "manual"}}


@pytest.fixture
def changes() -> ChangeNotifier:
    """Polling comes too late for every test that does not say otherwise: what arrives came by a notification."""
    return ChangeNotifier(look_seconds=3600.0)


@pytest.fixture
def serve(serve: Serve, changes: ChangeNotifier) -> Serve:
    """Start servers whose requests wait for `changes`."""
    return partial(serve, changes=changes)


async def waiting(
    served: Served, upload_id: UUID, seconds: float = 30, headers: Iterable[tuple[str, str]] = ()
) -> asyncio.Task[Response]:
    """Begin to wait; the request has arrived when this returns."""
    before = served.web.changes.waiting
    task = asyncio.create_task(served.request("GET", f"/api/v1/uploads/{upload_id}?wait={seconds}", list(headers)))
    await eventually(lambda: served.web.changes.waiting > before or task.done())
    return task


async def answer(task: asyncio.Task[Response]) -> Any:
    async with asyncio.timeout(30):
        response = await task
    assert response.status == 200, response
    return json.loads(response.body)


async def id_of(served: Served, path: str) -> UploadId:
    return (await served.upload(path)).id


@pytest.fixture
async def complete(serve: Serve) -> tuple[Served, str, UploadId]:
    """A server with an upload that waits to be transferred: the path of it, and its id."""
    served = await serve(**MANUAL)
    path = await served.create(5, BODY, b"hello")
    return served, path, await id_of(served, path)


async def test_who_waits_hears_of_bytes_that_arrive(served: Served) -> None:
    path = await served.create(5)
    first = await waiting(served, await id_of(served, path))

    await served.patch(path, 0, b"he")
    begun = await answer(first)
    second = await waiting(served, await id_of(served, path))
    await served.patch(path, 2, b"llo")

    assert (begun["state"], begun["offset"]) == ("uploading", 2)
    assert (await answer(second))["state"] == "completed"


async def test_who_waits_hears_of_every_attempt_of_a_transfer(complete: tuple[Served, str, UploadId]) -> None:
    served, _, upload_id = complete
    queue = served.work.runner._jobs

    queued = await waiting(served, upload_id)
    await served.request("POST", f"/api/v1/uploads/{upload_id}/transfer", [JSON])
    queued = await answer(queued)
    claimed = await waiting(served, upload_id)
    (job,) = await queue.claim(1)
    claimed = await answer(claimed)
    failed = await waiting(served, upload_id)
    await queue.retry(job, TransientStoreError(), code="ERR_STORE_UNAVAILABLE", delay_seconds=0)
    failed = await answer(failed)
    again = await waiting(served, upload_id)
    (job,) = await queue.claim(1)
    again = await answer(again)
    given_up = await waiting(served, upload_id)
    await queue.fail(job, TransientStoreError(), code="ERR_STORE_UNAVAILABLE")
    given_up = await answer(given_up)

    assert (queued["state"], queued["attempts"], queued["transfer_id"]) == ("completed", 0, job.id)
    assert (claimed["state"], claimed["attempts"]) == ("transferring", 1)
    assert (failed["state"], failed["error_code"]) == ("transferring", "ERR_STORE_UNAVAILABLE")
    assert failed["next_attempt_at"] is not None
    assert (again["attempts"], again["next_attempt_at"]) == (2, None)
    assert (given_up["state"], given_up["attempts"]) == ("transfer_failed", 2)


async def test_who_waits_hears_of_a_commit_and_of_a_removal(complete: tuple[Served, str, UploadId]) -> None:
    served, _, upload_id = complete
    committed, other = await waiting(served, upload_id), await waiting(served, upload_id)
    await served.request("POST", f"/api/v1/uploads/{upload_id}/commit", [JSON])

    assert (await answer(committed))["committed_at"] == (await answer(other))["committed_at"] is not None
    removed = await waiting(served, upload_id)
    await served.request("DELETE", f"/api/v1/uploads/{upload_id}", [])
    assert (await answer(removed))["state"] == "removing"
    gone = await waiting(served, upload_id)
    async with served.working():
        assert (await answer(gone))["state"] == "removed"


async def test_who_waits_hears_of_an_upload_that_expires(served: Served) -> None:
    path = await served.create(5)
    upload_id = await id_of(served, path)
    waiter = await waiting(served, upload_id)
    await served.core.database.execute("UPDATE uploads SET expires_at = now() WHERE id = $1", upload_id)

    assert await served.work.cleanup.expire() == 1

    assert (await answer(waiter))["state"] == "expired"


@pytest.mark.parametrize("state", ["stored", "transfer_failed", "expired", "removed"])
async def test_what_changes_no_more_is_answered_at_once(complete: tuple[Served, str, UploadId], state: str) -> None:
    served, _, upload_id = complete
    await served.core.database.execute(
        "UPDATE uploads SET state = $2, gone_at = CASE WHEN $2 IN ('expired', 'removed') THEN now() END WHERE id = $1",
        upload_id, state,
    )  # fmt: skip

    assert (await answer(await waiting(served, upload_id, 60)))["state"] == state


async def test_a_failed_transfer_that_is_queued_again_is_waited_for(complete: tuple[Served, str, UploadId]) -> None:
    served, path, upload_id = complete
    await served.core.database.execute("UPDATE uploads SET state = 'transfer_failed' WHERE id = $1", upload_id)
    await served.core.transfers.request(upload_id)
    await served.core.notifier.close()

    waiter = await waiting(served, upload_id)
    async with served.working():
        assert (await answer(waiter))["state"] in {"transferring", "stored"}
        await served.until_state(path, State.STORED)


async def test_when_the_time_is_over_the_present_state_is_the_answer(complete: tuple[Served, str, UploadId]) -> None:
    served, _, upload_id = complete
    started = time.monotonic()

    shown = await answer(await waiting(served, upload_id, 1))

    assert shown["state"] == "completed"
    assert time.monotonic() - started >= 1


@pytest.mark.parametrize("seconds", ["61", "-1", "1.5", "x", ""])
async def test_a_time_that_is_no_time_to_wait_is_refused(complete: tuple[Served, str, UploadId], seconds: str) -> None:
    served, _, upload_id = complete

    response = await served.request("GET", f"/api/v1/uploads/{upload_id}?wait={seconds}", [])

    assert (response.status, json.loads(response.body)["code"]) == (400, "ERR_BAD_PARAMETER")


async def test_those_who_wait_hold_no_connection(serve: Serve, dsn: str) -> None:
    served = await serve(database={"dsn": dsn, "pool_size": 1})
    path = await served.create(5)
    waiters = [await waiting(served, await id_of(served, path)) for _ in range(5)]

    await eventually(lambda: served.core.database.pool.get_idle_size() == served.core.database.pool.get_size())
    await served.patch(path, 0, b"hello")

    assert {(await answer(waiter))["state"] for waiter in waiters} == {"completed"}
    assert served.web.changes.waiting == 0


async def test_only_who_may_see_it_may_wait_for_it(serve: Serve) -> None:
    served = await serve(auth={"mode": "jwt", "jwt": {"secret": SECRET}})
    path = await served.create(5, bearer())
    target = f"/api/v1/uploads/{await id_of(served, path)}?wait=30"

    assert (await served.request("GET", target, bearer("bob"))).status == 404
    assert (await served.request("GET", target, {})).status == 401


async def test_other_uploads_wake_nobody(complete: tuple[Served, str, UploadId]) -> None:
    served, path, upload_id = complete
    waiter = await waiting(served, upload_id)
    other = await served.create(5)
    heard = await waiting(served, await id_of(served, other))

    await served.patch(other, 0, b"hello")
    await answer(heard)

    assert not waiter.done()
    await served.request("DELETE", path)
    assert (await answer(waiter))["state"] == "removing"


@pytest.mark.parametrize("changes", [ChangeNotifier(look_seconds=0.05)])
async def test_a_notification_that_is_lost_costs_one_look(complete: tuple[Served, str, UploadId]) -> None:
    served, _, upload_id = complete
    waiter = await waiting(served, upload_id)

    await served.core.database.execute("UPDATE uploads SET committed_at = now() WHERE id = $1", upload_id)

    assert (await answer(waiter))["committed_at"] is not None


async def test_a_listener_that_comes_back_looks_at_once(complete: tuple[Served, str, UploadId]) -> None:
    """What happened while nobody listened was not heard."""
    served, _, upload_id = complete
    waiter = await waiting(served, upload_id)
    await served.core.database.execute("UPDATE uploads SET committed_at = now() WHERE id = $1", upload_id)

    await served.core.database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'tusd_py listen' AND datname = current_database()"
    )

    assert (await answer(waiter))["committed_at"] is not None


@pytest.mark.parametrize("changes", [ChangeNotifier(look_seconds=0.05)])
async def test_a_client_that_goes_away_is_not_waited_for(complete: tuple[Served, str, UploadId]) -> None:
    served, _, upload_id = complete
    connection = await served.connect()
    await connection.send_head("GET", f"/api/v1/uploads/{upload_id}?wait=60", [])
    await eventually(lambda: served.web.changes.waiting == 1)

    connection.abort()

    await eventually(lambda: served.web.changes.waiting == 0)


async def test_a_drain_answers_all_who_wait(complete: tuple[Served, str, UploadId]) -> None:
    served, _, upload_id = complete
    waiters = [await waiting(served, upload_id, 60) for _ in range(3)]

    async with asyncio.timeout(30):
        await served.stop(abort=False)

    assert [(await answer(waiter))["state"] for waiter in waiters] == ["completed"] * 3


@pytest.mark.parametrize("changes", [ChangeNotifier(max_waiting=2, look_seconds=3600.0)])
async def test_who_would_be_one_too_many_is_answered_at_once(complete: tuple[Served, str, UploadId]) -> None:
    served, _, upload_id = complete
    kept = await waiting(served, upload_id, 60)

    late = await answer(asyncio.create_task(served.request("GET", f"/api/v1/uploads/{upload_id}?wait=60", [])))

    assert late["state"] == "completed"
    assert not kept.done()
    await served.stop(abort=False)
    await answer(kept)


async def test_who_waits_for_a_final_upload_hears_of_its_last_part(served: Served) -> None:
    first = await served.create(3, {"Upload-Concat": "partial"} | BODY, b"abc")
    last = await served.create(3, {"Upload-Concat": "partial"})
    final = await served.create(None, {"Upload-Concat": f"final;{first} {last}"})
    waiter = await waiting(served, await id_of(served, final))

    await served.patch(last, 0, b"def")

    assert (await answer(waiter))["state"] in {"completed", "transferring", "stored"}


async def test_who_waits_for_a_final_upload_hears_that_it_became_too_large(serve: Serve) -> None:
    served = await serve(limits={"max_size": 5})
    first = await served.create(3, {"Upload-Concat": "partial"} | BODY, b"abc")
    last = await served.create(None, {"Upload-Concat": "partial", "Upload-Defer-Length": "1"})
    final = await served.create(None, {"Upload-Concat": f"final;{first} {last}"})
    waiter = await waiting(served, await id_of(served, final))

    await served.patch(last, 0, b"def", {"Upload-Length": "3"})

    assert (await answer(waiter))["state"] == "expired"
