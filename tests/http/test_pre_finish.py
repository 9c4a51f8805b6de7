"""`pre-finish`: whoever brings the last byte waits for the application, and the upload is complete once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.http.asking import (
    Application,
    completions,
    events_of,
    fresh_application,
    start_asking,
    until_asked,
    until_stored,
)
from tests.http.served import Serve, Served
from tests.support.http_client import patch_head
from tests.support.process import eventually
from tusd_py.errors import DatabaseUnavailable
from tusd_py.hooks import HookEvent, HookKind, HookReply, HookResponse
from tusd_py.protocol.upload import Upload, UploadId
from tusd_py.uploads.service import Timing

CONTENT = b"hello"
TOLD = HookResponse(status_code=200, body="Thank you.", headers={"X-Invoice": "7"})


@pytest.fixture
def app() -> Iterator[Application]:
    with fresh_application() as application:
        yield application


@pytest.fixture
async def asking(serve: Serve, app: Application) -> Served:
    return await start_asking(serve)


async def test_the_application_is_asked_once_about_the_whole_upload(asking: Served, app: Application) -> None:
    path = await asking.create(5)
    assert (await asking.patch(path, 0, b"hel")).status == 204
    assert app.asked == []

    response = await asking.patch(path, 3, b"lo", {"X-Session": "abc"})

    assert (response.status, response.offset) == (204, 5)
    (event,) = app.asked
    upload = await asking.upload(path)
    assert (event.kind, event.upload.id, event.upload.offset) == (HookKind.PRE_FINISH, str(upload.id), 5)
    assert event.upload.storage == {"Type": "filestore", "Path": str(asking.core.staging.path(upload.id))}
    assert event.request.method == "PATCH"
    assert event.request.headers["X-Session"] == ["abc"]
    assert path.rpartition("/")[2] not in event.request.uri
    assert upload.complete
    assert await events_of(asking, upload) == ["upload.created", "upload.completed"]
    await until_stored(asking, upload)
    assert len(app.asked) == 1


async def test_until_there_is_an_answer_the_upload_is_busy(asking: Served, app: Application) -> None:
    """Neither lock nor connection is held, and no request is told the offset that is the length."""
    answered = asyncio.Event()

    async def wait(_: HookEvent) -> HookReply:
        await answered.wait()
        return HookReply(response=TOLD)

    app.answer = wait
    path = await asking.create(5)
    sending = asyncio.create_task(asking.patch(path, 0, CONTENT))
    await until_asked(app)

    upload = await asking.upload(path)
    assert (upload.offset, upload.finishing, upload.complete) == (5, True, False)
    assert await asking.staged(path) == CONTENT, "every byte is durable"
    assert not asking.web.uploads.locks.held(upload.id)
    assert asking.core.staging.probe(upload.id) == 5, "its file is not locked"
    assert asking.core.database.use[0] == 0, "no connection is in use"
    for request in (asking.head(path), asking.patch(path, 5, b""), asking.patch(path, 0, CONTENT)):
        busy = await request
        assert busy.status == 423
        assert busy.headers["retry-after"]
        assert "upload-offset" not in busy.headers
    assert (await asking.request("GET", f"/download/{upload.id}")).status == 409
    answered.set()

    response = await sending
    assert (response.status, response.body, response.headers["x-invoice"]) == (200, b"Thank you.", "7")
    assert (await asking.head(path)).offset == 5
    assert (await asking.patch(path, 5, b"")).status == 204
    assert len(app.asked) == 1


async def test_a_hook_that_fails_is_asked_again_by_a_worker(asking: Served, app: Application) -> None:
    app.fails(times=2)
    path = await asking.create(5)

    response = await asking.patch(path, 0, CONTENT)

    assert (response.status, response.headers["retry-after"]) == (503, "1")
    assert response.body.startswith(b"ERR_HOOK_FAILED")
    assert "upload-offset" not in response.headers
    assert (await asking.head(path)).status == 423
    await until_stored(asking, await asking.upload(path))
    assert len(app.asked) == 3
    assert (await asking.head(path)).offset == 5


async def test_a_reply_that_is_nonsense_completes_nothing(asking: Served, app: Application) -> None:
    app.replies("yes")
    path = await asking.create(5)

    response = await asking.patch(path, 0, CONTENT)

    assert (response.status, response.body.partition(b":")[0]) == (500, b"ERR_HOOK_INVALID")
    assert (await asking.upload(path)).finishing
    app.replies(None)
    await until_stored(asking, await asking.upload(path))


async def test_a_hook_that_takes_too_long_is_a_failure(serve: Serve, app: Application) -> None:
    async def never(_: HookEvent) -> None:
        await asyncio.Event().wait()

    app.answer = never
    asking = await start_asking(serve, hooks={"timeout": "0.2s"})
    path = await asking.create(5)

    assert (await asking.patch(path, 0, CONTENT)).status == 503
    assert (await asking.upload(path)).finishing
    app.answer = None
    await until_stored(asking, await asking.upload(path))


async def test_where_failures_are_allowed_the_upload_is_complete(serve: Serve, app: Application) -> None:
    app.fails()
    asking = await start_asking(serve, hooks={"on_error": "allow"})
    path = await asking.create(5)

    assert (await asking.patch(path, 0, CONTENT)).status == 204
    assert (await asking.upload(path)).complete


async def test_who_deletes_a_finishing_upload_has_the_last_word(asking: Served, app: Application) -> None:
    answered = asyncio.Event()

    async def wait(_: HookEvent) -> None:
        await answered.wait()

    app.answer = wait
    path = await asking.create(5)
    sending = asyncio.create_task(asking.patch(path, 0, CONTENT))
    await until_asked(app)
    upload = await asking.upload(path)

    assert (await asking.request("DELETE", path)).status == 204
    answered.set()

    assert (await sending).status == 404
    assert await events_of(asking, upload) == ["upload.created", "upload.terminated"]


async def test_a_worker_that_asks_at_the_same_time_completes_it_no_second_time(
    asking: Served, app: Application
) -> None:
    answered = asyncio.Event()

    async def wait(_: HookEvent) -> None:
        await answered.wait()

    app.answer = wait
    path = await asking.create(5)
    sending = asyncio.create_task(asking.patch(path, 0, CONTENT))
    await until_asked(app)
    await asking.core.database.execute("UPDATE jobs SET due_at = now() WHERE kind = 'finish'")
    async with asking.working():
        await until_asked(app, times=2)
        answered.set()

        assert (await sending).status == 204
        await until_stored(asking, await asking.upload(path))
    assert completions(asking) == 1


async def test_an_upload_that_a_worker_completes_meanwhile_is_counted_once(asking: Served, app: Application) -> None:
    answered = asyncio.Event()

    async def wait(_: HookEvent) -> None:
        if len(app.asked) == 1:
            await answered.wait()

    app.answer = wait
    path = await asking.create(5)
    sending = asyncio.create_task(asking.patch(path, 0, CONTENT))
    await until_asked(app)
    await asking.core.database.execute("UPDATE jobs SET due_at = now() WHERE kind = 'finish'")
    await until_stored(asking, await asking.upload(path))
    answered.set()

    response = await sending
    assert (response.status, response.offset) == (204, 5)
    assert completions(asking) == 1


async def test_a_client_that_leaves_while_the_hook_is_asked_changes_nothing(asking: Served, app: Application) -> None:
    answered = asyncio.Event()

    async def wait(_: HookEvent) -> None:
        await answered.wait()

    app.answer = wait
    path = await asking.create(5)
    connection = await asking.connect()
    await connection.send_head("PATCH", path, [*patch_head(0), ("Content-Length", "5")])
    await connection.send(CONTENT)
    await until_asked(app)
    connection.abort()
    answered.set()

    async def complete() -> bool:
        return (await asking.upload(path)).complete

    await eventually(complete, deadline=20, what="the upload is complete")


@pytest.mark.parametrize(("outages", "status"), [(1, 204), (100, 503)])
async def test_a_database_that_is_away_after_the_answer(
    serve: Serve, app: Application, monkeypatch: pytest.MonkeyPatch, outages: int, status: int
) -> None:
    asking = await start_asking(serve, timing=Timing(advance_retry_seconds=(0.01, 0.01)))
    complete, left = asking.core.uploads.complete, [outages]

    async def interrupted(upload_id: UploadId) -> Upload | None:
        if left[0]:
            left[0] -= 1
            raise DatabaseUnavailable
        return await complete(upload_id)

    monkeypatch.setattr(asking.core.uploads, "complete", interrupted)
    path = await asking.create(5)

    assert (await asking.patch(path, 0, CONTENT)).status == status
    assert len(app.asked) == 1
    left[0] = 0
    await until_stored(asking, await asking.upload(path))
