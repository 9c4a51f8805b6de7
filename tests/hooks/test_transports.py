"""The three ways to ask: a real HTTP server, real programs, functions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.hooks.test_messages import EVENTS
from tusd_py.errors import HookFailed, HookInvalid
from tusd_py.hooks import FileInfoChanges, HookEvent, HookReply, HookResponse
from tusd_py.hooks.functions import MAX_THREADS, FunctionHooks, load_hook
from tusd_py.hooks.http import HttpHooks
from tusd_py.hooks.messages import MAX_REPLY_BYTES, encode_event
from tusd_py.hooks.programs import ProgramHooks

EVENT = EVENTS["pre-create"]
REJECTION = {"RejectUpload": True}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def endpoint(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://127.0.0.1:{port}/hooks"
    finally:
        await runner.cleanup()


async def ask(url: str, *, retries: int = 0, forward: frozenset[str] = frozenset()) -> HookReply:
    hooks = HttpHooks(url, retries=retries, backoff_seconds=0, forward_headers=forward)
    try:
        return await hooks.ask(EVENT)
    finally:
        await hooks.close()


# --- HTTP ------------------------------------------------------------------------------------------


async def test_http_hook_gets_the_event_and_its_name() -> None:
    requests: list[tuple[str, str, str, Any]] = []

    async def handler(request: web.Request) -> web.Response:
        headers = request.headers
        requests.append((request.method, headers["Hook-Name"], headers["Content-Type"], await request.json()))
        return web.json_response(REJECTION)

    async with endpoint(handler) as url:
        assert (await ask(url)).reject_upload
    assert requests == [("POST", "pre-create", "application/json", json.loads(encode_event(EVENT)))]


async def test_http_hook_gets_the_headers_that_are_to_be_forwarded_and_no_others() -> None:
    received: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        received.append(request.headers)
        return web.json_response({})

    async with endpoint(handler) as url:
        await ask(url, forward=frozenset({"x-forwarded-for", "host", "content-length"}))
        await ask(url)
    assert received[0]["X-Forwarded-For"] == "198.51.100.1, 192.0.2.1"
    assert received[0]["Host"].startswith("127.0.0.1:")
    assert "X-Forwarded-For" not in received[1]
    assert "Tus-Resumable" not in received[0]


async def test_http_hook_with_an_empty_reply_changes_nothing() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=204)

    async with endpoint(handler) as url:
        assert await ask(url) == HookReply()


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_http_hook_is_asked_again_after_a_passing_failure(status: int) -> None:
    asked = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=status) if asked < 3 else web.json_response(REJECTION)

    async with endpoint(handler) as url:
        assert (await ask(url, retries=2)).reject_upload
        asked = 0
        with pytest.raises(HookFailed):
            await ask(url, retries=1)
    assert asked == 2


@pytest.mark.parametrize("status", [302, 307, 400, 404])
async def test_http_hook_that_refuses_is_not_asked_again_and_no_redirect_is_followed(status: int) -> None:
    paths: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    async with endpoint(handler) as url:
        with pytest.raises(HookFailed):
            await ask(url, retries=3)
    assert paths == ["/hooks"]


async def test_http_hook_that_cannot_be_reached_fails() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response()

    async with endpoint(handler) as url:
        pass
    with pytest.raises(HookFailed):
        await ask(url, retries=1)


async def test_http_hook_that_ends_its_reply_early_is_asked_again() -> None:
    asked = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.abort()
        return response

    async with endpoint(handler) as url:
        with pytest.raises(HookFailed):
            await ask(url, retries=1)
    assert asked == 2


async def test_http_reply_that_is_too_large_or_no_json_is_an_error() -> None:
    bodies = iter([b" " * (MAX_REPLY_BYTES + 1), b"<html>"])

    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=next(bodies))

    async with endpoint(handler) as url:
        for _ in range(2):
            with pytest.raises(HookInvalid):
                await ask(url, retries=3)


# --- programs --------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], ProgramHooks]:
    """Write the program of pre-create."""
    directory = tmp_path / "hooks"
    directory.mkdir()

    def write(script: str) -> ProgramHooks:
        path = directory / "pre-create"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return ProgramHooks(directory)

    return write


async def test_program_gets_the_event_on_standard_input(program: Callable[[str], ProgramHooks], tmp_path: Path) -> None:
    hooks = program('cat > got; echo "$TUS_ID|$TUS_SIZE|$TUS_OFFSET" > environment; echo \'{"RejectUpload": true}\'')
    assert (await hooks.ask(EVENT)).reject_upload
    assert json.loads((tmp_path / "hooks" / "got").read_text()) == json.loads(encode_event(EVENT))
    assert (tmp_path / "hooks" / "environment").read_text() == "|46205|0\n"


@pytest.mark.parametrize("script", ["cat > /dev/null", "true", "exec cat > /dev/null; echo", "echo to-the-log >&2"])
async def test_program_without_a_reply_changes_nothing(program: Callable[[str], ProgramHooks], script: str) -> None:
    assert await program(script).ask(EVENT) == HookReply()


async def test_hook_without_a_program_is_not_asked(tmp_path: Path) -> None:
    assert await ProgramHooks(tmp_path).ask(EVENT) == HookReply()


async def test_program_that_fails_or_cannot_run_is_an_error(
    program: Callable[[str], ProgramHooks], tmp_path: Path
) -> None:
    with pytest.raises(HookFailed, match="exit_status=7"):
        await program("echo '{}'; exit 7").ask(EVENT)
    hooks = program("true")
    (tmp_path / "hooks" / "pre-create").chmod(0o600)
    if os.geteuid():
        with pytest.raises(HookFailed):
            await hooks.ask(EVENT)
    (tmp_path / "hooks" / "pre-create").write_text("#!/no/such/interpreter\n")
    (tmp_path / "hooks" / "pre-create").chmod(0o755)
    with pytest.raises(HookFailed):
        await hooks.ask(EVENT)


async def test_program_that_writes_too_much_or_no_json_is_an_error(program: Callable[[str], ProgramHooks]) -> None:
    with pytest.raises(HookInvalid):
        await program("head -c 70000 /dev/zero").ask(EVENT)
    with pytest.raises(HookInvalid):
        await program("echo hello").ask(EVENT)


async def test_program_and_its_children_are_killed_when_time_is_up(
    program: Callable[[str], ProgramHooks], tmp_path: Path
) -> None:
    hooks = program("sleep 300 & echo $! > child; echo $$ > parent; wait")
    files = [tmp_path / "hooks" / name for name in ("child", "parent")]
    asking = asyncio.ensure_future(hooks.ask(EVENT))
    deadline = asyncio.get_running_loop().time() + 30
    while not all(path.exists() and path.read_text().strip() for path in files):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    for path in files:
        status = Path(f"/proc/{path.read_text().strip()}/stat")
        while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)


# --- functions -------------------------------------------------------------------------------------


def reject_large(event: HookEvent) -> HookReply | None:
    return HookReply(reject_upload=True) if (event.upload.size or 0) > 1000 else None


async def rename(event: HookEvent) -> HookReply:
    await asyncio.sleep(0)
    return HookReply(change_file_info=FileInfoChanges(metadata=dict(event.upload.metadata) | {"filename": "new"}))


class Application:
    async def __call__(self, event: HookEvent) -> HookReply:
        return HookReply(stop_upload=event.upload.size == 46205)

    def method(self, event: HookEvent) -> HookReply:
        raise KeyError("nothing")


application = Application()


async def test_function_coroutine_function_and_object_are_called() -> None:
    assert (await FunctionHooks(reject_large).ask(EVENT)).reject_upload
    changes = (await FunctionHooks(rename).ask(EVENT)).change_file_info
    assert changes is not None
    assert changes.metadata == {"filename": "new", "empty": ""}
    assert (await FunctionHooks(application).ask(EVENT)).stop_upload


def wrong(event: HookEvent) -> Any:
    return True


async def test_function_that_raises_or_returns_something_else_is_an_error() -> None:
    with pytest.raises(HookFailed, match="KeyError"):
        await FunctionHooks(application.method).ask(EVENT)
    with pytest.raises(HookInvalid):
        await FunctionHooks(wrong).ask(EVENT)


async def test_functions_that_hang_keep_no_thread_from_others() -> None:
    release = threading.Event()
    names: list[str] = []

    def hang(_: HookEvent) -> None:
        names.append(threading.current_thread().name)
        release.wait()

    hooks = FunctionHooks(hang)
    asking = [asyncio.ensure_future(hooks.ask(EVENT)) for _ in range(MAX_THREADS + 5)]
    try:
        while len(names) < MAX_THREADS:
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(threading.current_thread)
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await hooks.close()
    finally:
        release.set()
    assert len(names) == MAX_THREADS
    assert {name.partition("_")[0] for name in names} == {"hook"}


@pytest.mark.parametrize(
    "reply",
    [
        HookReply(response=HookResponse(status_code=True)),
        HookReply(response=None),  # type: ignore[arg-type]
        HookReply(response=HookResponse(headers={"a": "b\n"})),
        HookReply(response=HookResponse(body=b"x")),  # type: ignore[arg-type]
        HookReply(change_file_info=FileInfoChanges(id=7)),  # type: ignore[arg-type]
        HookReply(change_file_info=FileInfoChanges(metadata={"a": None})),  # type: ignore[dict-item]
        HookReply(change_file_info=FileInfoChanges(storage_path="\ud800")),
        HookReply(change_file_info={"ID": "x"}),  # type: ignore[arg-type]
    ],
)
async def test_reply_with_wrong_types_is_an_error(reply: HookReply) -> None:
    async def answer(_: HookEvent) -> HookReply:
        return reply

    with pytest.raises(HookInvalid):
        await FunctionHooks(answer).ask(EVENT)


def test_object_is_loaded_by_its_name() -> None:
    assert load_hook(f"{__name__}:reject_large") is reject_large
    assert load_hook(f"{__name__}:application.method") == application.method


@pytest.mark.parametrize(
    "reference", ["", "json", "json:", ":loads", "json:nothing", "no_such_module:x", "json:decoder", "json:__name__"]
)
def test_object_that_is_not_there_or_no_callable_is_an_error_of_the_configuration(reference: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be|form"):
        load_hook(reference)
