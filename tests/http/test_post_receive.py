"""`post-receive`: the application is asked while a body arrives, and may stop the upload."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.http.served import Serve, Served
from tests.support.http_client import OFFSET_TYPE
from tests.support.process import eventually
from tusd_py.hooks import HookEvent, HookKind, HookReply, HookResponse

STOP = HookReply(
    stop_upload=True, response=HookResponse(status_code=403, body="Enough.", headers={"X-Reason": "quota"})
)


@dataclass(slots=True)
class Application:
    """Answers as a test wants, and remembers what it was asked."""

    reply: HookReply | None = None
    failing: bool = False
    asked: list[HookEvent] = field(default_factory=list)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    at_once: int = 0
    most_at_once: int = 0

    async def __call__(self, event: HookEvent) -> HookReply | None:
        self.asked.append(event)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await self.answered.wait()
        finally:
            self.at_once -= 1
        if self.failing:
            raise RuntimeError("no database")
        return self.reply


application = Application()


@pytest.fixture
def app() -> Iterator[Application]:
    application.__init__()  # type: ignore[misc]
    application.answered.set()
    yield application
    application.__init__()  # type: ignore[misc]


async def start(serve: Serve, hooks: dict[str, object] | None = None, **sections: Any) -> Served:
    defaults: dict[str, Any] = {
        "hooks": {"python": f"{__name__}:application", "events": ["post-receive"]} | (hooks or {}),
        "events": {"progress_interval": 0.05},
        "staging": {"checkpoint_seconds": 0.01},
    }
    return await serve(**defaults | sections)


@pytest.fixture
async def asking(serve: Serve, app: Application) -> Served:
    return await start(serve)


async def until_asked(app: Application, times: int) -> None:
    async def asked() -> bool:
        return len(app.asked) >= times

    await eventually(asked, deadline=20, what=f"asked {times} times")


async def terminated(served: Served, path: str) -> None:
    upload = await served.upload(path)
    assert upload.state == "removing"
    assert await served.count("events", upload, "upload.terminated") == 1
    assert (await served.head(path)).status == 404


async def test_it_is_told_what_is_durable_while_bytes_arrive(asking: Served, app: Application) -> None:
    path = await asking.create(10)
    connection = await asking.begin(path, 0, b"abc", ("Content-Length", "10"))

    async def told() -> bool:
        return any(event.upload.offset == 3 for event in app.asked)

    await until_asked(app, 1)
    await connection.send(b"d")
    await until_asked(app, 2)
    assert await eventually(told, deadline=20, what="the offset of the first checkpoint")
    upload = await asking.upload(path)
    assert {(event.kind, event.upload.id) for event in app.asked} == {(HookKind.POST_RECEIVE, str(upload.id))}
    assert app.asked[0].request.method == "PATCH"
    await connection.send(b"efghij")

    assert (await connection.response("PATCH")).status == 204


async def test_it_is_not_asked_while_nothing_arrives(asking: Served, app: Application) -> None:
    path = await asking.create(10)
    connection = await asking.begin(path, 0, b"abc", ("Content-Length", "10"))
    await until_asked(app, 1)
    # As long as many questions would take, and then bytes once more: what follows is asked because of them.
    await asyncio.sleep(0.3)
    assert len(app.asked) == 1

    await connection.send(b"d")
    await until_asked(app, 2)
    await connection.send(b"efghij")
    assert (await connection.response("PATCH")).status == 204


async def test_the_body_does_not_wait_for_the_answer_and_one_question_does_not_meet_the_next(
    asking: Served, app: Application
) -> None:
    app.answered.clear()
    path = await asking.create(10)
    connection = await asking.begin(path, 0, b"abc", ("Content-Length", "10"))
    await until_asked(app, 1)

    await connection.send(b"defghij")

    assert (await connection.response("PATCH")).status == 204
    assert (await asking.upload(path)).complete
    assert (len(app.asked), app.most_at_once) == (1, 1)

    async def over() -> bool:
        return app.at_once == 0

    await eventually(over, deadline=20, what="the question was given up with the body")


async def test_stopping_ends_the_body_and_terminates_the_upload(asking: Served, app: Application) -> None:
    app.reply = STOP
    path = await asking.create(10)
    connection = await asking.begin(path, 0, b"abc", ("Content-Length", "10"))

    response = await connection.response("PATCH")

    assert (response.status, response.body, response.headers["x-reason"]) == (403, b"Enough.", "quota")
    await terminated(asking, path)


async def test_stopping_without_a_word_is_a_400(asking: Served, app: Application) -> None:
    app.reply = HookReply(stop_upload=True)
    path = await asking.create(10)
    connection = await asking.begin(path, 0, b"abc", ("Content-Length", "10"))

    response = await connection.response("PATCH")

    assert (response.status, response.body.partition(b":")[0]) == (400, b"ERR_UPLOAD_STOPPED")
    await terminated(asking, path)


async def test_an_upload_that_is_being_created_can_be_stopped(asking: Served, app: Application) -> None:
    app.reply = STOP
    length = str(64 * 2**20)
    connection = await asking.connect()
    fields = [("Tus-Resumable", "1.0.0"), ("Upload-Length", length), ("Content-Length", length)]
    await connection.send_head("POST", "/files/", [*fields, ("Content-Type", OFFSET_TYPE)])
    await connection.send(b"abc")

    assert (await connection.response("POST")).status == 403
    (row,) = await asking.core.database.fetch("SELECT state FROM uploads")
    assert row["state"] == "removing"


@pytest.mark.parametrize("on_error", ["deny", "allow"])
async def test_a_hook_that_fails_is_ignored(serve: Serve, app: Application, on_error: str) -> None:
    app.failing = True
    served = await start(serve, {"on_error": on_error})
    path = await served.create(10)
    connection = await served.begin(path, 0, b"abc", ("Content-Length", "10"))
    await until_asked(app, 1)
    await connection.send(b"d")
    await until_asked(app, 2)
    await connection.send(b"efghij")

    assert (await connection.response("PATCH")).status == 204


async def test_a_quick_body_is_not_asked_about(serve: Serve, app: Application) -> None:
    served = await start(serve, events={"progress_interval": 3600})
    path = await served.create(3)

    assert (await served.patch(path, 0, b"abc")).status == 204
    assert app.asked == []
