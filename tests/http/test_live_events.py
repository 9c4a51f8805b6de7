"""Server-Sent Events: who hears what, from where on, and until when."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any, Protocol

import pytest

from tests.http.served import Serve, Served
from tests.http.support import SECRET, bearer, eventually
from tests.support.event_stream import EventStream, Told
from tests.support.http_client import OFFSET_TYPE
from tusd_py.database.notifier import Notifier
from tusd_py.errors import DatabaseUnavailable
from tusd_py.protocol.upload import State
from tusd_py.uploads.live_events import ListenerLimits

BODY = {"Content-Type": OFFSET_TYPE}
MANUAL: dict[str, Any] = {"transfer": {"trigger": "manual"}}
JWT: dict[str, Any] = {"auth": {"mode": "jwt", "jwt": {"secret": SECRET, "leeway": 0}}}
ALL = "/api/v1/events"
PATIENT = ListenerLimits(look_seconds=3600.0)
"""Polling comes too late: what arrives came by a notification."""


class Listen(Protocol):
    """Opens a stream; it is closed after the test."""

    async def __call__(
        self, served: Served, target: str = ALL, headers: Mapping[str, str] | None = None, *, limit: int = 2**16
    ) -> EventStream: ...


@pytest.fixture
async def listen() -> AsyncIterator[Listen]:
    async with AsyncExitStack() as stack:

        async def open_stream(
            served: Served, target: str = ALL, headers: Mapping[str, str] | None = None, *, limit: int = 2**16
        ) -> EventStream:
            opened = await EventStream.open(
                served.host, served.port, target, list((headers or {}).items()), limit=limit
            )
            return await stack.enter_async_context(opened)

        yield open_stream


@pytest.fixture
async def served(serve: Serve) -> Served:
    return await serve(listeners=PATIENT, **MANUAL)


async def events_of(served: Served, path: str) -> str:
    return f"/api/v1/uploads/{(await served.upload(path)).id}/events"


async def problem(stream: EventStream) -> tuple[int, str]:
    return stream.status, json.loads(await stream.body())["code"]


def kinds(told: list[Told]) -> list[str]:
    return [each.event.removeprefix("upload.") for each in told]


# --- what is told ----------------------------------------------------------------------------------


async def test_stream_of_an_upload_begins_with_its_first_event_and_ends_with_its_last(
    served: Served, listen: Listen
) -> None:
    path = await served.create(5)
    stream = await listen(served, await events_of(served, path))
    await stream.until("upload.created")

    await served.patch(path, 0, b"hello")
    completed = await stream.until("upload.completed")
    await served.request("DELETE", path)
    async with served.working():
        assert await stream.ended()

    assert [kind for kind in kinds(stream.seen) if kind != "progress"] == [
        "created", "completed", "terminated", "removed",
    ]  # fmt: skip
    assert completed.document["id"] == completed.id
    assert completed.document["type"] == "tusd_py.upload.completed"
    assert (completed.upload["state"], completed.upload["offset"]) == ("completed", 5)
    assert [each.document["sequence"][-1] for each in stream.seen if each.id] == ["1", "2", "3", "4"]
    await eventually(lambda: served.web.live.count == 0)


async def test_head_of_a_stream_keeps_caches_and_proxies_away(served: Served, listen: Listen) -> None:
    stream = await listen(served)
    await served.create(5)
    await stream.until("upload.created")

    assert stream.status == 200
    assert stream.headers["content-type"] == "text/event-stream"
    assert stream.headers["cache-control"] == "no-store"
    assert stream.headers["x-accel-buffering"] == "no"
    assert stream.retry == 2000


async def test_stream_of_all_begins_now(served: Served, listen: Listen) -> None:
    await served.create(1)
    stream = await listen(served)
    second = await served.create(2)

    told = await stream.next()

    assert told is not None
    assert (told.event, told.upload["id"]) == ("upload.created", str((await served.upload(second)).id))


async def test_event_tells_of_the_upload_as_the_api_does(served: Served, listen: Listen) -> None:
    stream = await listen(served)
    path = await served.create(5, {"Upload-Metadata": "filename cmVwb3J0LnBkZg=="})
    shown = (await served.request("GET", f"/api/v1/uploads/{(await served.upload(path)).id}")).json()

    upload = (await stream.until("upload.created")).upload

    assert {**upload, "updated_at": None} == {name: shown[name] for name in upload} | {"updated_at": None}


async def test_upload_that_is_gone_for_good_has_no_stream(served: Served, listen: Listen) -> None:
    path = await served.create(5)
    target = await events_of(served, path)
    first = await listen(served, target)
    await served.request("DELETE", path)
    async with served.working():
        await first.ended()

    over = await listen(served, target, {"Last-Event-ID": first.last_event_id or ""})
    again = await listen(served, target)

    assert over.status == 204
    assert await again.ended()
    assert kinds(again.seen) == ["created", "terminated", "removed"]


async def test_one_statement_serves_all_who_listen(served: Served, listen: Listen) -> None:
    path = await served.create(5)
    target = await events_of(served, path)
    streams = [await listen(served, target) for _ in range(20)]
    for stream in streams:
        await stream.until("upload.created")
    await eventually(lambda: all(listener.joined for listener in served.web.live._listeners))
    reads = 0
    read = served.web.live._records.of_uploads

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return await read(*arguments, **options)

    served.web.live._records.of_uploads = counted  # type: ignore[method-assign]
    await served.patch(path, 0, b"hello")
    for stream in streams:
        await stream.until("upload.completed")

    # Notifications of a few moments may make it look twice.
    assert 1 <= reads <= 3


# --- where it begins -------------------------------------------------------------------------------


@pytest.mark.parametrize("of_all", [False, True])
async def test_stream_goes_on_after_the_last_event_that_was_seen(
    served: Served, listen: Listen, *, of_all: bool
) -> None:
    first = await listen(served)
    path = await served.create(5)
    created = await first.until("upload.created")
    target = ALL if of_all else await events_of(served, path)
    await served.patch(path, 0, b"hello")
    await served.request("POST", target.removesuffix("/events") + "/commit", [("Content-Type", "application/json")])

    stream = await listen(served, target, {"Last-Event-ID": created.id or ""})
    completed = await stream.next()
    await served.request("DELETE", path)
    await stream.until("upload.terminated")

    assert completed is not None
    assert kinds(stream.seen) == ["completed", *([] if of_all else ["committed"]), "terminated"]


async def test_long_gap_is_read_in_pages(served: Served, listen: Listen) -> None:
    first = await listen(served)
    await served.create(1)
    begin = await first.until("upload.created")
    paths = [await served.create(1) for _ in range(230)]
    last = str((await served.upload(paths[-1])).id)
    joined = await listen(served)

    stream = await listen(served, ALL, {"Last-Event-ID": begin.id or ""})
    told = [await stream.until("upload.created") for _ in paths]

    assert told[-1].document["subject"] == last
    assert len({each.id for each in told}) == len(paths)
    assert joined.seen == []


@pytest.mark.parametrize("of_all", [False, True])
async def test_event_that_is_not_kept_any_more_resets_the_stream(
    served: Served, listen: Listen, *, of_all: bool
) -> None:
    path = await served.create(5)
    target = ALL if of_all else await events_of(served, path)

    stream = await listen(served, target, {"Last-Event-ID": str(uuid.uuid4())})
    reset = await stream.next()
    await served.patch(path, 0, b"hello")

    assert reset == Told("reset", "", "{}")
    await stream.until("upload.completed")
    assert kinds(stream.seen)[:2] == ["reset", *(["completed"] if of_all else ["created"])]


async def test_event_of_another_upload_resets_the_stream(served: Served, listen: Listen) -> None:
    first = await listen(served)
    await served.create(1)
    other = await first.until("upload.created")

    stream = await listen(served, await events_of(served, await served.create(1)), {"Last-Event-ID": other.id or ""})

    told = await stream.next()
    assert told is not None
    assert told.event == "reset"


@pytest.mark.parametrize("last", ["x", "1", "00000000-0000-0000-0000-00000000000g"])
@pytest.mark.parametrize("of_all", [False, True])
async def test_what_is_no_id_of_an_event_is_refused(served: Served, listen: Listen, last: str, *, of_all: bool) -> None:
    target = ALL if of_all else await events_of(served, await served.create(1))

    assert await problem(await listen(served, target, {"Last-Event-ID": last})) == (400, "ERR_BAD_PARAMETER")


async def test_empty_last_event_id_is_none(served: Served, listen: Listen) -> None:
    stream = await listen(served, await events_of(served, await served.create(1)), {"Last-Event-ID": ""})

    assert kinds([await stream.until("upload.created")]) == ["created"]


@pytest.mark.parametrize("target", [ALL, "/api/v1/uploads/{id}/events"])
async def test_other_methods_and_parameters_are_refused(served: Served, target: str) -> None:
    target = target.replace("{id}", str((await served.upload(await served.create(1))).id))

    assert (await served.request("HEAD", target)).status == 405
    posted = await served.request("POST", target, [("Content-Type", "application/json")])
    assert (posted.status, posted.headers["allow"]) == (405, "OPTIONS, GET")
    assert (await served.request("GET", f"{target}?since=1")).status == 400
    assert (await served.request("GET", f"{target}?all=2")).status == 400


async def test_late_commit_is_not_skipped(serve: Serve, listen: Listen) -> None:
    """Its transaction began before those of events that were committed, and told of, before it."""
    served = await serve(listeners=ListenerLimits(look_seconds=3600, late_seconds=0.02), **MANUAL)
    stream = await listen(served)
    path = await served.create(1)
    created = await stream.until("upload.created")
    async with served.core.database.transaction() as connection:
        await connection.execute(
            "INSERT INTO events (upload_id, kind, sequence, snapshot, profile)"
            " SELECT upload_id, 'upload.committed', 99, snapshot, profile FROM events WHERE event_id = $1",
            uuid.UUID(created.id),
        )
        other = await served.create(2)
        by_upload = await listen(served, await events_of(served, other))
        await by_upload.until("upload.created")  # which waits for nothing
    assert [(await stream.next()) is not None for _ in range(2)] == [True, True]

    assert kinds(stream.seen) == ["created", "committed", "created"]
    assert stream.seen[1].document["subject"] == str((await served.upload(path)).id)


async def test_change_whose_notification_is_lost_is_seen_by_the_next_look(serve: Serve, listen: Listen) -> None:
    served = await serve(listeners=ListenerLimits(look_seconds=0.05), **MANUAL)
    path = await served.create(5)
    streams = [await listen(served), await listen(served, await events_of(served, path))]
    await streams[1].until("upload.created")
    served.core.notifier.notify_changed = lambda *_: None  # type: ignore[method-assign]

    await served.request("DELETE", path)

    for stream in streams:
        await stream.until("upload.terminated")


# --- who hears it ----------------------------------------------------------------------------------


async def test_everybody_hears_of_their_own_uploads(serve: Serve, listen: Listen) -> None:
    served = await serve(listeners=PATIENT, **JWT)
    ann, bob = await listen(served, ALL, bearer("ann")), await listen(served, ALL, bearer("bob"))
    await served.create(1, bearer("bob"))
    await served.create(2, bearer("ann"))

    assert (await ann.until("upload.created")).upload["length"] == 2
    assert (await bob.until("upload.created")).upload["length"] == 1


@pytest.mark.parametrize("scope", ["files:read:any", "files:admin"])
async def test_readers_of_all_uploads_hear_of_everybody_s(serve: Serve, listen: Listen, scope: str) -> None:
    served = await serve(
        listeners=PATIENT,
        auth={"mode": "jwt", "jwt": {
            "secret": SECRET, "leeway": 0, "read_any_scope": "files:read:any", "admin_scope": "files:admin",
        }},
    )  # fmt: skip
    stream = await listen(served, f"{ALL}?all=1", bearer("root", scope=scope))
    own = await listen(served, ALL, bearer("root", scope=scope))
    path = await served.create(1, bearer("ann"))
    await served.create(2, bearer("root"))

    assert (await stream.until("upload.created")).upload["length"] == 1
    assert (await own.until("upload.created")).upload["length"] == 2
    single = await listen(served, await events_of(served, path), bearer("root", scope=scope))
    await single.until("upload.created")


async def test_strangers_hear_nothing(serve: Serve, listen: Listen) -> None:
    served = await serve(**JWT)
    target = await events_of(served, await served.create(1, bearer("ann")))

    assert await problem(await listen(served, target, bearer("bob"))) == (404, "ERR_UPLOAD_NOT_FOUND")
    assert (await problem(await listen(served, target)))[0] == 401
    assert (await problem(await listen(served, ALL)))[0] == 401
    assert (await problem(await listen(served, f"{ALL}?all=1", bearer("bob"))))[0] == 403
    assert (await problem(await listen(served, ALL, bearer(expires_in=-60))))[0] == 401
    assert served.web.live.count == 0


async def test_stream_ends_when_its_token_expires(serve: Serve, listen: Listen) -> None:
    served = await serve(listeners=PATIENT, **JWT)
    expires_at = int(time.time()) + 2
    headers = bearer(expires_in=expires_at - time.time())
    stream = await listen(served, ALL, headers)

    assert await stream.ended()
    assert time.time() >= expires_at - 0.01
    assert (await problem(await listen(served, ALL, headers)))[0] == 401


# --- comments, limits, outages ---------------------------------------------------------------------


async def test_silence_is_broken_by_comments(serve: Serve, listen: Listen) -> None:
    served = await serve(context={"comment_seconds": 0.02})
    stream = await listen(served)

    await stream.commented(5)

    await served.create(1)
    await stream.until("upload.created")


async def test_who_would_be_one_too_many_is_told_to_come_back(serve: Serve, listen: Listen) -> None:
    served = await serve(listeners=ListenerLimits(max_listeners=2))
    first, second = await listen(served), await listen(served)

    refused = await listen(served)
    assert (refused.status, "retry-after" in refused.headers) == (503, True)
    assert (await problem(refused))[1] == "ERR_TOO_MANY_LISTENERS"
    assert served.web.metrics.event_listeners._value.get() == 2
    assert served.web.live.count == 2
    assert first.status == second.status == 200


async def test_listener_that_goes_away_is_noticed(serve: Serve, listen: Listen) -> None:
    served = await serve(context={"comment_seconds": 0.02})
    stream = await listen(served)
    await eventually(lambda: served.web.live.count == 1)

    stream.abort()

    await eventually(lambda: served.web.live.count == 0)
    assert served.web.metrics.event_listeners._value.get() == 0


async def test_listener_that_reads_nothing_is_cut_and_slows_nobody(serve: Serve, listen: Listen) -> None:
    served = await serve(listeners=ListenerLimits(look_seconds=3600, backlog=20), **MANUAL)
    slow = await listen(served, limit=1024)
    quick = await listen(served)
    slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
    note = "note " + "QUJD" * 4000
    created = 0
    while served.web.live.count == 2:
        await served.create(1, {"Upload-Metadata": note})
        await quick.until("upload.created")
        created += 1
        assert created < 2000

    await served.create(2)
    assert (await quick.until("upload.created")).upload["length"] == 2
    slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
    assert not await slow.ended()
    assert len(slow.seen) < created


async def test_listener_that_stalls_is_cut(serve: Serve, listen: Listen) -> None:
    served = await serve(listeners=PATIENT, context={"stall_seconds": 0.1}, **MANUAL)
    slow = await listen(served, limit=1024)
    slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
    note = "note " + "QUJD" * 4000
    created = 0
    while served.web.live.count:
        await served.create(1, {"Upload-Metadata": note})
        created += 1
        assert created < 2000


async def test_drain_ends_all_streams_at_once(served: Served, listen: Listen) -> None:
    path = await served.create(1)
    streams = [await listen(served), await listen(served, await events_of(served, path))]
    await eventually(lambda: served.web.live.count == 2)

    async with asyncio.timeout(10):
        await served.stop(abort=False)

    assert [await stream.ended() for stream in streams] == [True, True]


async def test_stream_survives_a_database_that_is_away(serve: Serve, listen: Listen) -> None:
    """What is recorded meanwhile comes once the database is back."""
    served = await serve(
        listeners=ListenerLimits(look_seconds=0.05, retry_seconds=0.02), context={"comment_seconds": 0.05}, **MANUAL
    )
    path = await served.create(5)
    streams = [await listen(served), await listen(served, await events_of(served, path))]
    await streams[1].until("upload.created")
    database = served.web.live._records._database
    served.web.live._records._database = _Away()  # type: ignore[assignment]
    comments = [stream.comments for stream in streams]

    await served.request("DELETE", path)
    for stream, before in zip(streams, comments, strict=True):
        await stream.commented(before + 3)
    served.web.live._records._database = database

    for stream in streams:
        await stream.until("upload.terminated")


async def test_reader_outlives_an_error_that_nobody_expected(serve: Serve, listen: Listen) -> None:
    served = await serve(listeners=ListenerLimits(look_seconds=3600, retry_seconds=0.02), **MANUAL)
    path = await served.create(5)
    stream = await listen(served, await events_of(served, path))
    await stream.until("upload.created")
    await eventually(lambda: all(listener.joined for listener in served.web.live._listeners))
    read, failures = served.web.live._records.of_uploads, 0

    async def fail_once(*arguments: Any, **options: Any) -> Any:
        nonlocal failures
        if failures == 0:
            failures += 1
            raise LookupError
        return await read(*arguments, **options)

    served.web.live._records.of_uploads = fail_once  # type: ignore[method-assign]
    await served.request("DELETE", path)

    await stream.until("upload.terminated")
    assert failures == 1


async def test_event_that_cannot_be_told_ends_the_stream_and_is_told_to_who_comes_back(
    served: Served, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = await listen(served)
    await served.create(1)
    created = await stream.until("upload.created")
    with monkeypatch.context() as patched:
        patched.setattr("tusd_py.http.api.event_routes.cloud_event", None)
        await served.create(2)
        assert not await stream.ended()

    again = await listen(served, ALL, {"Last-Event-ID": created.id or ""})
    assert (await again.until("upload.created")).upload["length"] == 2


class _Away:
    """A database that cannot be reached."""

    async def fetch(self, *_: object) -> Any:
        raise DatabaseUnavailable

    fetchrow = fetch


# --- progress --------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_all", [False, True])
async def test_progress_tells_how_many_bytes_are_durable(serve: Serve, listen: Listen, *, of_all: bool) -> None:
    served = await serve(listeners=PATIENT, events={"progress_interval": 0.01})
    path = await served.create(10)
    stream = await listen(served, ALL if of_all else await events_of(served, path))
    await eventually(lambda: served.core.notifier._listened_until)

    for offset in range(0, 6, 2):
        await served.patch(path, offset, b"ab")
        progress = await stream.until("upload.progress")
        assert progress.id is None
        assert (progress.upload["offset"], progress.upload["length"]) == (offset + 2, 10)
        assert (progress.upload["state"], progress.document["type"]) == ("uploading", "tusd_py.upload.progress")
        assert "sequence" not in progress.document

    await served.patch(path, 6, b"abcd")
    await stream.until("upload.completed")
    assert await served.count("events", await served.upload(path), "upload.progress") == 0


async def test_progress_of_others_is_not_heard(serve: Serve, listen: Listen) -> None:
    served = await serve(listeners=PATIENT, events={"progress_interval": 0.01}, **JWT)
    ann = await listen(served, ALL, bearer("ann"))
    await eventually(lambda: served.core.notifier._listened_until)
    theirs, own = await served.create(10, bearer("bob")), await served.create(10, bearer("ann"))

    await served.patch(theirs, 0, b"abc", bearer("bob"))
    await served.patch(own, 0, b"a", bearer("ann"))

    assert (await ann.until("upload.progress")).upload["offset"] == 1


async def test_progress_is_told_at_most_once_per_interval_and_the_latest_is_not_lost(
    serve: Serve, listen: Listen
) -> None:
    served = await serve(listeners=PATIENT, events={"progress_interval": 0.5})
    path = await served.create(100)
    stream = await listen(served, await events_of(served, path))
    await eventually(lambda: served.core.notifier._listened_until)
    started = time.monotonic()

    for offset in range(20):
        await served.patch(path, offset, b"a")
    while (await stream.until("upload.progress")).upload["offset"] < 20:
        pass

    told = kinds(stream.seen).count("progress")
    assert told <= 2 + (time.monotonic() - started) / 0.5


async def test_nobody_is_told_of_progress_while_nobody_listens(serve: Serve, listen: Listen) -> None:
    served = await serve(events={"progress_interval": 0.01})
    path = await served.create(10)
    await served.patch(path, 0, b"ab")

    assert served.core.notifier._progress_task is None
    stream = await listen(served, await events_of(served, path))
    await eventually(lambda: served.core.notifier._listened_until)
    other = await served.create(10)
    await served.patch(other, 0, b"ab")
    assert served.core.notifier._progress_task is None
    await served.patch(path, 2, b"ab")
    await stream.until("upload.progress")


async def test_checkpoint_of_a_body_under_way_is_progress(serve: Serve, listen: Listen) -> None:
    served = await serve(listeners=PATIENT, events={"progress_interval": 0.01}, staging={"checkpoint_seconds": 0.05})
    path = await served.create(10)
    stream = await listen(served, await events_of(served, path))
    await eventually(lambda: served.core.notifier._listened_until)

    body = await served.begin(path, 0, b"abc", ("Content-Length", "10"))

    assert (await stream.until("upload.progress")).upload["offset"] == 3
    assert (await served.upload(path)).state is State.UPLOADING
    body.abort()


async def test_progress_is_told_until_nobody_has_said_for_a_while_that_somebody_listens(served: Served) -> None:
    upload_id = (await served.upload(await served.create(1))).id
    heard = Notifier(served.core.database, listening_seconds=3600)
    forgotten = Notifier(served.core.database, listening_seconds=-1)
    for notifier in (heard, forgotten):
        notifier.someone_listens(f"{upload_id}")
        notifier.notify_progress(upload_id, 1, None)

    assert heard._progress_task is not None
    assert forgotten._progress_task is None
    assert not forgotten._listened_until
    await heard.close()
