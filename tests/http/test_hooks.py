"""Blocking hooks before a creation and a termination: what they are asked, what they may change, how they fail."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pytest
from aiohttp import web

from tests.hooks.test_transports import endpoint
from tests.http.rufh import Client
from tests.http.served import Serve, Served
from tests.http.support import SECRET, bearer
from tests.support.http_client import OFFSET_TYPE, Headers, Response, chunked
from tusd_py.hooks import FileInfoChanges, HookEvent, HookKind, HookReply, HookResponse
from tusd_py.hooks.messages import encode_event
from tusd_py.http.hook_request import canonical_name

BODY = {"Content-Type": OFFSET_TYPE}
PARTIAL = {"Upload-Concat": "partial"}
LARGE = 3 * 2**20
TOKEN = "chosen-by-the-application"
KEEP = HookResponse(status_code=403, body="Keep it.", headers={"X-A": "b"})
NAMED = base64.b64encode(b"report.pdf").decode()


@dataclass(slots=True)
class Application:
    """Replies to each hook as a test wants, and remembers the questions."""

    reply: Callable[[HookEvent], HookReply | None] = lambda _: None
    events: list[HookEvent] = field(default_factory=list)

    async def __call__(self, event: HookEvent) -> HookReply | None:
        self.events.append(event)
        return self.reply(event)

    def changes(self, **changes: Any) -> None:
        self.reply = lambda _: HookReply(change_file_info=FileInfoChanges(**changes))

    def fails(self) -> None:
        def fail(_: HookEvent) -> HookReply:
            raise RuntimeError("no database")

        self.reply = fail


application = Application()


async def sleeping(_: HookEvent) -> None:
    await asyncio.Event().wait()


@pytest.fixture
def app() -> Iterator[Application]:
    application.__init__()  # type: ignore[misc]
    yield application
    application.__init__()  # type: ignore[misc]


class ServeHooked(Protocol):
    """Starts a server that asks the application, with further settings."""

    async def __call__(self, hooks: dict[str, object] | None = None, **sections: Any) -> Served: ...


@pytest.fixture
def serve_hooked(serve: Serve, app: Application) -> ServeHooked:
    async def start(hooks: dict[str, object] | None = None, **sections: Any) -> Served:
        asked = {"python": f"{__name__}:application", "events": ["pre-create", "pre-terminate"]}
        return await serve(hooks=asked | (hooks or {}), **sections)

    return start


@pytest.fixture
async def hooked(serve_hooked: ServeHooked) -> Served:
    return await serve_hooked()


async def nothing_is_left(served: Served) -> bool:
    (row,) = await served.core.database.fetch("SELECT count(*) AS n FROM uploads")
    return row["n"] == 0 and not list(served.core.staging.files())


async def post(served: Served, headers: Headers, body: bytes = b"") -> Response:
    return await served.request("POST", "/files/", headers, body)


KINDS: dict[str, tuple[dict[str, str], bytes]] = {
    "plain": ({"Upload-Length": "5"}, b""),
    "deferred": ({"Upload-Defer-Length": "1"}, b""),
    "empty": ({"Upload-Length": "0"}, b""),
    "partial": ({"Upload-Length": "5"} | PARTIAL, b""),
    "small body": ({"Upload-Length": "5"} | BODY, b"hello"),
    "large body": ({"Upload-Length": str(LARGE)} | BODY, b"x" * LARGE),
    "chunked body": ({"Upload-Length": "5", "Transfer-Encoding": "chunked"} | BODY, chunked(b"hello")),
    "ietf": ({"Upload-Complete": "?1", "Tus-Resumable": ""}, b"hello"),
    "ietf, begun": ({"Upload-Complete": "?0", "Tus-Resumable": ""}, b""),
}


async def create(served: Served, kind: str) -> Response:
    headers, body = KINDS[kind]
    if kind.startswith("ietf"):
        return await served.request("POST", "/files/", [("Upload-Complete", headers["Upload-Complete"])], body)
    return await post(served, headers, body)


# --- nobody is asked -------------------------------------------------------------------------------


async def test_without_hooks_there_is_nobody_to_ask(served: Served) -> None:
    assert served.web.uploads.hooks is None


async def test_a_hook_that_is_not_named_is_not_asked(serve_hooked: ServeHooked, app: Application) -> None:
    served = await serve_hooked({"events": ["pre-terminate"]})
    path = await served.create(5)
    assert app.events == []
    assert (await served.request("DELETE", path)).status == 204
    assert [event.kind for event in app.events] == [HookKind.PRE_TERMINATE]


# --- pre-create: the question ----------------------------------------------------------------------


async def test_it_is_asked_about_the_upload_and_the_request(hooked: Served, app: Application) -> None:
    headers = [
        ("Tus-Resumable", "1.0.0"), ("upload-LENGTH", "5"), ("Upload-Metadata", f"filename {NAMED},empty"),
        ("X-Same", "one"), ("x-same", "two"), ("Authorization", "Bearer abc"),
    ]  # fmt: skip

    created = await hooked.request("POST", "/files/?project=7", headers)

    assert created.status == 201
    (event,) = app.events
    assert (event.kind, event.upload.id, event.upload.size, event.upload.offset) == (HookKind.PRE_CREATE, "", 5, 0)
    assert event.upload.metadata == {"filename": "report.pdf", "empty": ""}
    assert (event.upload.storage, event.upload.partial_uploads) == (None, None)
    assert (event.request.method, event.request.uri) == ("POST", "/files/?project=7")
    host, _, port = event.request.remote_addr.rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0
    assert event.request.headers["Upload-Length"] == ["5"]
    assert event.request.headers["X-Same"] == ["one", "two"]
    assert event.request.headers["Authorization"] == ["Bearer abc"]
    assert event.request.headers["Host"] == ["localhost"]
    assert encode_event(event)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_creation_is_asked_for_once(hooked: Served, app: Application, kind: str) -> None:
    response = await create(hooked, kind)

    assert response.status == 201
    assert [event.kind for event in app.events] == [HookKind.PRE_CREATE]
    upload = app.events[0].upload
    assert upload.is_partial is (kind == "partial")
    assert upload.size == {"deferred": None, "ietf, begun": None, "empty": 0, "large body": LARGE}.get(kind, 5)


async def test_a_final_upload_is_asked_for_with_its_size_and_its_partial_ones(hooked: Served, app: Application) -> None:
    paths = [await hooked.create(5, BODY | PARTIAL, body) for body in (b"hello", b"world")]
    app.events.clear()

    final = await post(hooked, {"Upload-Concat": f"final;{paths[0]} http://x{paths[1]}"})

    assert final.status == 201
    (event,) = app.events
    ids = [str((await hooked.upload(path)).id) for path in paths]
    assert (event.upload.is_final, event.upload.size, event.upload.partial_uploads) == (True, 10, ids)
    for path in paths:
        assert path.rpartition("/")[2] not in repr(event)


async def test_what_would_be_refused_anyway_is_not_asked_about(serve_hooked: ServeHooked, app: Application) -> None:
    served = await serve_hooked(limits={"max_size": 100})
    plain = await served.create(5)
    app.events.clear()

    for headers in (
        {"Upload-Length": "101"},
        {"Upload-Length": "no"},
        {"Upload-Length": "5", "Upload-Metadata": "a,a"},
        {"Upload-Concat": f"final;{plain}"},
        {"Upload-Concat": "final;/files/nothing"},
    ):
        assert (await post(served, headers)).status in {400, 413}
    assert app.events == []


async def test_whoever_may_not_create_is_not_asked_about(serve_hooked: ServeHooked, app: Application) -> None:
    served = await serve_hooked(auth={"mode": "jwt", "jwt": {"secret": SECRET}})
    assert (await post(served, {"Upload-Length": "5"})).status == 401
    assert app.events == []


async def test_the_address_is_the_clients_where_a_proxy_is_trusted(serve_hooked: ServeHooked, app: Application) -> None:
    served = await serve_hooked(server={"trusted_proxies": ["127.0.0.1"]})
    for forwarded in ("192.0.2.7", "2001:db8::7"):
        await post(served, {"Upload-Length": "5", "X-Forwarded-For": forwarded})
    assert [event.request.remote_addr for event in app.events] == ["192.0.2.7:0", "[2001:db8::7]:0"]


@pytest.mark.parametrize(
    ("name", "canonical"),
    [("upload-LENGTH", "Upload-Length"), ("x-http-method-override", "X-Http-Method-Override"), ("dnt", "Dnt"),
     ("etag", "Etag"), ("a--b", "A--B"), ("x_y", "X_y"), ("bad name", "bad name")],
)  # fmt: skip
def test_names_of_headers_are_written_as_go_does(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical


async def test_headers_that_are_no_text_can_be_told(hooked: Served, app: Application) -> None:
    connection = await hooked.connect()
    await connection.send(
        b"POST /files/ HTTP/1.1\r\nHost: localhost\r\nTus-Resumable: 1.0.0\r\nUpload-Length: 5\r\n"
        b"X-Raw: \xff\xfe\r\nContent-Length: 0\r\n\r\n"
    )
    assert (await connection.response("POST")).status == 201
    (event,) = app.events
    assert event.request.headers["X-Raw"] == ["\ufffd\ufffd"]
    assert encode_event(event)


async def test_no_token_is_told(hooked: Served, app: Application) -> None:
    path = await hooked.create(5)
    token = path.rpartition("/")[2]
    spelled = f"/files/%{ord(token[0]):02X}{token[1:]}"

    elsewhere = {"Referer": f"https://app.example{path}", "X-Original-URI": path}
    await post(hooked, {"Upload-Length": "5"} | elsewhere)
    assert (await hooked.request("DELETE", spelled, elsewhere)).status == 204

    assert len(app.events) == 3
    assert token[8:] not in repr(app.events)
    assert app.events[2].request.method == "DELETE"


# --- pre-create: no --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_rejected_upload_leaves_nothing(hooked: Served, app: Application, kind: str) -> None:
    app.reply = lambda _: HookReply(reject_upload=True)

    response = await create(hooked, kind)

    assert response.status == 400
    assert b"The application refuses this upload." in response.body
    assert "location" not in response.headers
    assert await nothing_is_left(hooked)


async def test_no_byte_of_a_rejected_upload_is_wanted(hooked: Served, app: Application) -> None:
    app.reply = lambda _: HookReply(reject_upload=True)
    connection = await hooked.connect()
    fields = [("Tus-Resumable", "1.0.0"), ("Upload-Length", str(LARGE)), ("Content-Length", str(LARGE))]
    await connection.send_head("POST", "/files/", [*fields, *BODY.items(), ("Expect", "100-continue")])

    response = await connection.response("POST")

    assert (response.status, response.interim) == (400, [])


async def test_a_rejected_final_leaves_its_partial_uploads(hooked: Served, app: Application) -> None:
    path = await hooked.create(5, BODY | PARTIAL, b"hello")
    app.reply = lambda _: HookReply(reject_upload=True)
    assert (await post(hooked, {"Upload-Concat": f"final;{path}"})).status == 400
    app.reply = lambda _: None
    assert (await post(hooked, {"Upload-Concat": f"final;{path}"})).status == 201


@pytest.mark.parametrize("kind", ["plain", "ietf"])
async def test_a_rejection_is_told_in_the_words_of_the_application(hooked: Served, app: Application, kind: str) -> None:
    headers = {"Content-Type": "application/json", "X-Reason": "plan", "Upload-Offset": "7", "Location": "/plans"}
    framing = {"Content-Length": "3", "Transfer-Encoding": "chunked", "Connection": "upgrade"}
    told = HookResponse(status_code=402, body='{"message":"größer"}', headers=headers | framing)
    app.reply = lambda _: HookReply(reject_upload=True, response=told)

    response = await create(hooked, kind)

    assert (response.status, response.body.decode()) == (402, told.body)
    assert {name: response.headers[name.lower()] for name in headers} == headers
    assert response.headers["content-length"] == str(len(told.body.encode()))
    assert "transfer-encoding" not in response.headers
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize("status", [204, 304])
async def test_a_rejection_without_room_for_a_body_does_not_break_the_connection(
    hooked: Served, app: Application, status: int
) -> None:
    app.reply = lambda _: HookReply(reject_upload=True, response=HookResponse(status_code=status, body="lost"))
    connection = await hooked.connect()
    fields = [("Tus-Resumable", "1.0.0"), ("Upload-Length", "5"), ("Content-Length", "0")]
    assert (await connection.request("POST", "/files/", fields)).status == status
    app.reply = lambda _: None
    assert (await connection.request("POST", "/files/", fields)).status == 201


# --- pre-create: another response --------------------------------------------------------------------


async def test_the_response_to_a_creation_may_say_more(hooked: Served, app: Application) -> None:
    kept = {"Location": "/evil", "Upload-Offset": "3", "Tus-Resumable": "9", "Content-Length": "1", "Connection": "x"}
    told = HookResponse(status_code=202, body='{"id": 7}', headers={"Content-Type": "application/json", "X-Id": "7"})
    app.reply = lambda _: HookReply(response=replace(told, headers=dict(told.headers) | kept))

    response = await post(hooked, {"Upload-Length": "5"} | BODY, b"he")

    assert (response.status, response.body.decode(), response.headers["x-id"]) == (202, told.body, "7")
    assert response.headers["content-type"] == "application/json"
    assert (response.headers["upload-offset"], response.headers["tus-resumable"]) == ("2", "1.0.0")
    assert await hooked.offset(response.headers["location"]) == 2


@pytest.mark.parametrize(
    "told",
    [
        HookResponse(status_code=400),
        HookResponse(status_code=101),
        HookResponse(headers={"X-Bad": "a\r\nSet-Cookie: b"}),
        HookResponse(headers={"X Bad": "a"}),
        HookResponse(headers={"X-Bad": 7}),  # type: ignore[dict-item]
        HookResponse(body="\udcff"),
        HookResponse(status_code="400"),  # type: ignore[arg-type]
    ],
)
async def test_a_response_that_cannot_be_given_creates_nothing(
    hooked: Served, app: Application, told: HookResponse
) -> None:
    app.reply = lambda _: HookReply(response=told)

    response = await post(hooked, {"Upload-Length": "5"} | BODY, b"hello")

    assert (response.status, b"ERR_HOOK_INVALID" in response.body) == (500, True)
    assert "set-cookie" not in response.headers
    assert await nothing_is_left(hooked)


# --- pre-create: another token -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_the_application_may_choose_the_token(hooked: Served, app: Application, kind: str) -> None:
    app.changes(id=TOKEN)

    response = await create(hooked, kind)

    assert response.headers["location"] == f"/files/{TOKEN}"
    assert str((await hooked.upload(f"/files/{TOKEN}")).id) != TOKEN


@pytest.mark.parametrize("token", ["short", "with/slash/and-enough-letters", "0b8f7d7a-93ff-4a0e-a32c-5b4c1e6f9b42"])
async def test_a_token_must_look_like_one(hooked: Served, app: Application, token: str) -> None:
    app.changes(id=token)
    response = await post(hooked, {"Upload-Length": "5"})
    assert (response.status, b"ERR_HOOK_INVALID" in response.body) == (500, True)
    assert await nothing_is_left(hooked)


@pytest.mark.parametrize("kind", [*KINDS, "final"])
async def test_a_token_that_is_taken_changes_nothing(hooked: Served, app: Application, kind: str) -> None:
    partial = await hooked.create(5, BODY | PARTIAL, b"hello")
    app.changes(id=TOKEN)
    await post(hooked, {"Upload-Length": "4"})
    first = await hooked.upload(f"/files/{TOKEN}")
    staged = sorted(hooked.core.staging.files())

    if kind == "final":
        response = await post(hooked, {"Upload-Concat": f"final;{partial}"})
    else:
        response = await create(hooked, kind)

    assert (response.status, b"ERR_HOOK_INVALID" in response.body) == (500, True)
    assert b"taken" not in response.body
    assert await hooked.upload(f"/files/{TOKEN}") == first
    (row,) = await hooked.core.database.fetch("SELECT count(*) AS n FROM uploads")
    assert row["n"] == 2
    assert sorted(hooked.core.staging.files()) == staged


async def test_of_creations_at_once_one_gets_the_token(hooked: Served, app: Application) -> None:
    app.changes(id=TOKEN)
    responses = await asyncio.gather(*(create(hooked, "small body") for _ in range(5)))
    assert sorted(response.status for response in responses) == [201, 500, 500, 500, 500]
    assert await hooked.staged(f"/files/{TOKEN}") == b"hello"
    assert len(list(hooked.core.staging.files())) == 1


# --- pre-create: other metadata ----------------------------------------------------------------------


async def test_the_application_may_replace_the_metadata(hooked: Served, app: Application) -> None:
    app.changes(metadata={"filename": "größe.pdf", "filetype": "application/pdf", "flag": ""})

    path = await hooked.create(5, {"Upload-Metadata": f"filename {NAMED},secret {NAMED}"})

    metadata = (await hooked.head(path)).headers["upload-metadata"]
    pairs = dict(item.partition(" ")[::2] for item in metadata.split(","))
    decoded = {key: base64.b64decode(value).decode() for key, value in pairs.items()}
    assert decoded == {"filename": "größe.pdf", "filetype": "application/pdf", "flag": ""}
    upload = await hooked.upload(path)
    assert (upload.filename, upload.content_type) == ("größe.pdf", "application/pdf")


async def test_the_application_may_remove_the_metadata(hooked: Served, app: Application) -> None:
    app.changes(metadata={})
    path = await hooked.create(5, {"Upload-Metadata": f"filename {NAMED}"})
    assert "upload-metadata" not in (await hooked.head(path)).headers
    assert (await hooked.upload(path)).filename is None


@pytest.mark.parametrize(
    "metadata", [{"a key": "x"}, {"": "x"}, {"a,b": "x"}, {"k": "x" * 20000}, {"filename": "x" * 2000}, {"k": 7}]
)
async def test_metadata_that_no_client_could_send_is_refused(
    hooked: Served, app: Application, metadata: dict[str, Any]
) -> None:
    app.changes(metadata=metadata)
    response = await post(hooked, {"Upload-Length": "5"})
    assert (response.status, b"ERR_HOOK_INVALID" in response.body) == (500, True)
    assert await nothing_is_left(hooked)


# --- pre-create: another key ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["2026/größe.pdf", "./upload-e7a036dc/presentation.pdf"])
async def test_the_application_may_choose_the_key(hooked: Served, app: Application, path: str) -> None:
    app.changes(storage_path=path)
    created = await hooked.create(5, BODY, b"hello")
    async with hooked.working():
        upload = await hooked.until_state(created, "stored")
    assert upload.object_key == path.removeprefix("./")
    assert hooked.stored_file(upload).read_bytes() == b"hello"


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../up", "a/../b", "a//b", "a/", ".", "a\\b", "a\nb", "x.tmp/y", "x.tmp", "x" * 252, "ü" * 126],
)
async def test_a_key_must_stay_in_the_store(hooked: Served, app: Application, path: str) -> None:
    app.changes(storage_path=path)
    response = await post(hooked, {"Upload-Length": "5"} | BODY, b"hello")
    assert (response.status, b"ERR_HOOK_INVALID" in response.body) == (500, True)
    assert await nothing_is_left(hooked)


@pytest.mark.parametrize("path", ["a/b", "a", "a/b/c"])
async def test_a_key_that_is_taken_or_in_the_way_changes_nothing(hooked: Served, app: Application, path: str) -> None:
    app.changes(storage_path="a/b")
    await hooked.create(5)
    app.changes(storage_path=path)

    response = await post(hooked, {"Upload-Length": "5"} | BODY, b"hello")

    assert (response.status, b"ERR_HOOK_INVALID" in response.body) == (500, True)
    assert b"taken" not in response.body
    assert list(hooked.core.staging.files()) == []
    app.changes(storage_path="a/bc")
    await hooked.create(5)


async def test_of_creations_at_once_one_gets_the_key(hooked: Served, app: Application) -> None:
    app.changes(storage_path="the/one")
    responses = await asyncio.gather(*(create(hooked, "small body") for _ in range(5)))
    assert sorted(response.status for response in responses) == [201, 500, 500, 500, 500]
    assert len(list(hooked.core.staging.files())) == 1


# --- failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_hook_that_fails_denies(hooked: Served, app: Application, kind: str) -> None:
    app.fails()

    response = await create(hooked, kind)

    assert (response.status, response.headers["retry-after"]) == (503, "1")
    assert b"no database" not in response.body
    assert await nothing_is_left(hooked)
    app.reply = lambda _: None
    assert (await create(hooked, kind)).status == 201


async def test_a_hook_that_fails_may_be_passed_over(serve_hooked: ServeHooked, app: Application) -> None:
    served = await serve_hooked({"on_error": "allow"})
    app.fails()
    path = await served.create(5)
    assert (await served.request("DELETE", path)).status == 204


@pytest.mark.parametrize("on_error", ["deny", "allow"])
async def test_a_hook_has_its_time(serve_hooked: ServeHooked, on_error: str) -> None:
    asked = {"python": f"{__name__}:sleeping", "timeout": 0.05, "on_error": on_error}
    served = await serve_hooked(asked)
    response = await post(served, {"Upload-Length": "5"} | BODY, b"hello")
    assert response.status == {"deny": 503, "allow": 201}[on_error]
    assert await nothing_is_left(served) is (on_error == "deny")


async def test_a_hook_has_its_time_for_all_its_tries_together(serve: Serve) -> None:
    asked = asyncio.Semaphore(0)

    async def fail(_: web.Request) -> web.Response:
        asked.release()
        return web.Response(status=500)

    async with endpoint(fail) as url:
        served = await serve(hooks={"http": url, "retries": 100, "backoff": 30, "timeout": 0.5})
        response = await post(served, {"Upload-Length": "5"})
        assert (response.status, b"ERR_HOOK_FAILED" in response.body) == (503, True)
        await asked.acquire()
        assert asked.locked()
    assert await nothing_is_left(served)


async def test_what_hooks_say_is_counted(hooked: Served, app: Application) -> None:
    def count(outcome: str) -> float:
        value = hooked.core.metrics.registry.get_sample_value(
            "tusd_py_hooks_total", {"hook": "pre-create", "outcome": outcome}
        )
        assert value is not None
        return value

    await hooked.create(5)
    app.fails()
    await post(hooked, {"Upload-Length": "5"})
    app.reply = lambda _: 7  # type: ignore[assignment, return-value]
    await post(hooked, {"Upload-Length": "5"})
    assert [count(outcome) for outcome in ("replied", "failed", "invalid")] == [1, 1, 1]
    app.changes(id="short")
    await post(hooked, {"Upload-Length": "5"})
    assert count("invalid") == 2


# --- pre-terminate -------------------------------------------------------------------------------------


async def test_it_is_asked_before_a_termination(hooked: Served, app: Application) -> None:
    path = await hooked.create(5, BODY | {"Upload-Metadata": f"filename {NAMED}"}, b"he")
    upload = await hooked.upload(path)
    app.events.clear()
    app.reply = lambda _: HookReply(response=HookResponse(status_code=200, body="Gone.", headers={"X-Id": "7"}))

    response = await hooked.request("DELETE", path)

    assert (response.status, response.body, response.headers["x-id"]) == (200, b"Gone.", "7")
    (event,) = app.events
    assert (event.kind, event.upload.id, event.upload.size) == (HookKind.PRE_TERMINATE, str(upload.id), 5)
    assert (event.upload.offset, event.upload.metadata) == (2, {"filename": "report.pdf"})
    assert event.upload.storage == {"Type": "filestore", "Path": str(hooked.core.staging.path(upload.id))}


async def test_it_is_told_where_a_stored_upload_and_which_its_partial_ones_are(
    hooked: Served, app: Application
) -> None:
    paths = [await hooked.create(5, BODY | PARTIAL, body) for body in (b"hello", b"world")]
    final = (await post(hooked, {"Upload-Concat": f"final;{' '.join(paths)}"})).headers["location"]
    async with hooked.working():
        upload = await hooked.until_state(final, "stored")
    app.events.clear()

    assert (await hooked.request("DELETE", final)).status == 204

    (event,) = app.events
    assert event.upload.storage == {"Type": "filestore", "Path": str(hooked.stored_file(upload))}
    assert event.upload.partial_uploads == [str((await hooked.upload(path)).id) for path in paths]


@pytest.mark.parametrize("body", [b"he", b"hello"])
async def test_a_termination_may_be_rejected(hooked: Served, app: Application, body: bytes) -> None:
    path = await hooked.create(5, BODY, body)
    before = await hooked.upload(path)
    app.reply = lambda _: HookReply(reject_termination=True)

    response = await hooked.request("DELETE", path)

    assert (response.status, b"ERR_UPLOAD_TERMINATION_REJECTED" in response.body) == (400, True)
    assert await hooked.upload(path) == before
    app.reply = lambda _: HookReply(reject_termination=True, response=KEEP)
    told = await hooked.request("DELETE", path)
    assert (told.status, told.body, told.headers["x-a"]) == (403, b"Keep it.", "b")
    assert await hooked.upload(path) == before


async def test_a_hook_that_fails_terminates_nothing(hooked: Served, app: Application) -> None:
    path = await hooked.create(5, BODY, b"he")
    app.fails()
    response = await hooked.request("DELETE", path)
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    app.reply = lambda _: HookReply(response=HookResponse(status_code=400))
    assert (await hooked.request("DELETE", path)).status == 500
    assert await hooked.offset(path) == 2


async def test_the_owner_is_a_client_of_the_api_as_well(serve_hooked: ServeHooked, app: Application) -> None:
    served = await serve_hooked(auth={"mode": "jwt", "jwt": {"secret": SECRET, "admin_scope": "admin"}})
    path = await served.create(5, bearer())
    url = f"/api/v1/uploads/{(await served.upload(path)).id}"
    app.reply = lambda _: HookReply(reject_termination=True, response=KEEP)

    refused = await served.request("DELETE", url, bearer())

    assert (refused.status, refused.headers["content-type"]) == (403, "application/problem+json")
    assert (refused.json()["code"], refused.json()["detail"]) == ("ERR_UPLOAD_TERMINATION_REJECTED", "Keep it.")
    asked = len(app.events)
    assert (await served.request("DELETE", url, bearer("root", scope="admin"))).status == 204
    assert len(app.events) == asked


async def test_whoever_may_not_terminate_is_not_asked_about(serve_hooked: ServeHooked, app: Application) -> None:
    served = await serve_hooked(auth={"mode": "jwt", "jwt": {"secret": SECRET}})
    path = await served.create(5, bearer())
    app.events.clear()
    assert (await served.request("DELETE", path, bearer("bob"))).status == 404
    assert (await served.request("DELETE", path, bearer() | {"Tus-Resumable": "7"})).status == 412
    assert app.events == []


# --- the IETF's dialect ----------------------------------------------------------------------------------


async def test_a_client_that_was_told_its_url_is_not_told_before_the_hook(
    serve_hooked: ServeHooked, app: Application
) -> None:
    served = await serve_hooked(rufh={"interim_104": True})
    client = Client(served, 8)
    app.reply = lambda _: HookReply(reject_upload=True)
    response = await client.create(b"hello", complete=True)
    assert (response.status, response.interim) == (400, [])
    app.changes(id=TOKEN)
    assert (await client.create(b"hello", complete=True)).headers["location"] == f"/files/{TOKEN}"
