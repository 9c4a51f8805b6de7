"""`pre-finish`: whoever brings the last byte waits for the application, and the upload is complete once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

from tests.http.rufh import Client
from tests.http.served import Serve, Served
from tests.support.http_client import OFFSET_TYPE, Response, chunked, patch_head
from tests.support.process import eventually
from tusd_py.errors import DatabaseUnavailable
from tusd_py.hooks import HookEvent, HookKind, HookReply, HookResponse
from tusd_py.protocol.upload import Upload, UploadId
from tusd_py.uploads.service import Timing

CONTENT = b"hello"
LARGE = b"x" * (3 * 2**20)
BODY = {"Content-Type": OFFSET_TYPE}
PARTIAL = {"Upload-Concat": "partial"}
TOLD = HookResponse(status_code=200, body="Thank you.", headers={"X-Invoice": "7"})


@dataclass(slots=True)
class Application:
    """Answers as a test wants, and remembers what it was asked."""

    answer: Callable[[HookEvent], Awaitable[Any]] | None = None
    asked: list[HookEvent] = field(default_factory=list)

    async def __call__(self, event: HookEvent) -> Any:
        self.asked.append(event)
        return None if self.answer is None else await self.answer(event)

    def fails(self, times: int | None = None) -> None:
        """Fail so often, or always."""
        first = len(self.asked)

        async def fail(_: HookEvent) -> None:
            if times is None or len(self.asked) - first <= times:
                raise RuntimeError("no database")

        self.answer = fail

    def replies(self, reply: object) -> None:
        async def answer(_: HookEvent) -> object:
            return reply

        self.answer = answer


application = Application()


@pytest.fixture
def app() -> Iterator[Application]:
    application.__init__()  # type: ignore[misc]
    yield application
    application.__init__()  # type: ignore[misc]


class ServeAsking(Protocol):
    """Starts a server that asks before an upload is complete."""

    async def __call__(self, *, timing: Timing | None = None, hooks: Any = None, **sections: Any) -> Served: ...


@pytest.fixture
def serve_asking(serve: Serve, app: Application) -> ServeAsking:
    async def start(*, timing: Timing | None = None, hooks: Any = None, **sections: Any) -> Served:
        asks = {"python": f"{__name__}:application", "events": ["pre-finish"]} | (hooks or {})
        quick = {"poll_interval": 0.05, "retry_delay": 0.05, "retry_max_delay": 0.05}
        return await serve(timing=timing, **{"hooks": asks, "transfer": quick} | sections)

    return start


@pytest.fixture
async def asking(serve_asking: ServeAsking) -> Served:
    return await serve_asking()


async def events_of(served: Served, upload: Upload) -> list[str]:
    rows = await served.core.database.fetch("SELECT kind FROM events WHERE upload_id = $1 ORDER BY sequence", upload.id)
    return [row["kind"] for row in rows]


async def only_upload(served: Served) -> Upload:
    (row,) = await served.core.database.fetch("SELECT id FROM uploads")
    found = await served.core.uploads.find(UploadId(row["id"]))
    assert found is not None
    return found


async def until_asked(app: Application, times: int = 1) -> None:
    async def asked() -> bool:
        return len(app.asked) >= times

    await eventually(asked, deadline=20, what=f"asked {times} times")


async def until_stored(served: Served, upload: Upload) -> None:
    async def stored() -> bool:
        found = await served.core.uploads.find(upload.id)
        return found is not None and found.state == "stored"

    async with served.working():
        await eventually(stored, deadline=30, what="the upload is stored")
    assert (await events_of(served, upload)).count("upload.completed") == 1


# --- the PATCH with the last byte ------------------------------------------------------------------


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


async def test_a_hook_that_takes_too_long_is_a_failure(serve_asking: ServeAsking, app: Application) -> None:
    async def never(_: HookEvent) -> None:
        await asyncio.Event().wait()

    app.answer = never
    asking = await serve_asking(hooks={"timeout": "0.2s"})
    path = await asking.create(5)

    assert (await asking.patch(path, 0, CONTENT)).status == 503
    assert (await asking.upload(path)).finishing
    app.answer = None
    await until_stored(asking, await asking.upload(path))


async def test_where_failures_are_allowed_the_upload_is_complete(serve_asking: ServeAsking, app: Application) -> None:
    app.fails()
    asking = await serve_asking(hooks={"on_error": "allow"})
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
    serve_asking: ServeAsking, app: Application, monkeypatch: pytest.MonkeyPatch, outages: int, status: int
) -> None:
    asking = await serve_asking(timing=Timing(advance_retry_seconds=(0.01, 0.01)))
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


# --- uploads that come whole -----------------------------------------------------------------------

WHOLE: dict[str, tuple[dict[str, str], bytes]] = {
    "small body": ({"Upload-Length": "5"} | BODY, CONTENT),
    "large body": ({"Upload-Length": str(len(LARGE))} | BODY, LARGE),
    "chunked body": ({"Upload-Length": "5", "Transfer-Encoding": "chunked"} | BODY, chunked(CONTENT)),
    "no byte": ({"Upload-Length": "0"}, b""),
    "partial": ({"Upload-Length": "5"} | PARTIAL | BODY, CONTENT),
}


async def post(served: Served, kind: str) -> Response:
    if kind == "ietf":
        return await Client(served, 6).create(CONTENT, complete=True)
    if kind == "final":
        parts = [await served.create(5, PARTIAL, b"") for _ in range(2)]
        for part in parts:
            assert (await served.patch(part, 0, CONTENT)).status == 204
        return await served.request("POST", "/files/", {"Upload-Concat": f"final;{' '.join(parts)}"})
    headers, body = WHOLE[kind]
    return await served.request("POST", "/files/", headers, body)


KINDS = [*WHOLE, "ietf", "final"]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_upload_that_comes_whole_is_asked_about_once(asking: Served, app: Application, kind: str) -> None:
    app.replies(HookReply(response=HookResponse(headers={"X-Invoice": "7"})))

    response = await post(asking, kind)

    assert (response.status, response.headers["x-invoice"]) == (201, "7")
    upload = await asking.upload(response.headers["location"])
    assert upload.complete
    assert [event.upload.id for event in app.asked].count(str(upload.id)) == 1
    assert app.asked[-1].upload.is_final is (kind == "final")
    assert len(app.asked[-1].upload.partial_uploads or []) == (2 if kind == "final" else 0)
    if kind != "partial":
        await until_stored(asking, upload)


@pytest.mark.parametrize("kind", ["small body", "large body", "no byte", "ietf"])
async def test_an_upload_that_comes_whole_completes_later_if_the_hook_fails(
    asking: Served, app: Application, kind: str
) -> None:
    app.fails(times=1)

    response = await post(asking, kind)

    assert response.status == 503
    upload = await only_upload(asking)
    assert upload.finishing
    await until_stored(asking, upload)
    assert len(app.asked) == 2
