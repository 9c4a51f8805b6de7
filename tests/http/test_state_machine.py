"""Any interleaving of what clients, the clock and the operator do, against a model of a few lines.

Offsets never go backwards, what is served equals what was sent, and what is gone stays gone.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, multiple, rule, run_state_machine_as_test

from tests.http.served import Served, serving
from tests.support.fixtures import MakeConfig
from tusd_py.app import run_work

Result = TypeVar("Result")

SIZES = st.integers(0, 300_000)
SMALL = st.integers(0, 5_000)


@dataclass(eq=False)
class Model:
    """What the client knows of one upload."""

    path: str
    id: str
    length: int | None
    content: bytes = b""
    partial: bool = False

    @property
    def complete(self) -> bool:
        return self.length == len(self.content)


class Interleavings(RuleBasedStateMachine):
    """One server, many uploads, and everything that happens to them."""

    make_config: ClassVar[MakeConfig]  # set by the test

    uploads = Bundle("uploads")
    parts = Bundle("parts")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.config = type(self).make_config(tus={"checksum_trailer": False})
        self.stack = contextlib.AsyncExitStack()
        self.served: Served = self.run(self.stack.enter_async_context(serving(self.config)))
        self.models: list[Model] = []

    def run(self, work: Coroutine[object, None, Result]) -> Result:
        return self.runner.run(work)

    def teardown(self) -> None:
        try:
            for model in self.models:
                self.check(model)
        finally:
            self.run(self.stack.aclose())
            self.runner.close()

    def check(self, model: Model) -> None:
        head = self.run(self.served.head(model.path))
        assert head.status == 200, head
        assert head.headers["upload-offset"] == str(len(model.content))
        if model.complete:
            assert self.run(self.served.request("GET", model.path)).body == model.content

    def remember(self, model: Model) -> Model:
        self.models.append(model)
        return model

    # --- clients -----------------------------------------------------------------------------------

    def _create(self, length: int | None, headers: dict[str, str], body: bytes = b"") -> Model:
        lengths = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
        kind = {"Content-Type": "application/offset+octet-stream"} if body else {}
        response = self.run(self.served.request("POST", "/files/", lengths | headers | kind, body))
        assert response.status == 201, response
        model = Model(response.headers["location"], response.headers["upload-id"], length, body)
        assert response.headers["upload-offset"] == str(len(body))
        return self.remember(model)

    @rule(target=uploads, length=SIZES)
    def create(self, length: int) -> Model:
        return self._create(length, {})

    @rule(target=uploads)
    def create_without_length(self) -> Model:
        return self._create(None, {})

    @rule(target=uploads, length=SIZES, share=st.floats(0, 1))
    def create_with_bytes(self, length: int, share: float) -> Model:
        return self._create(length, {}, os.urandom(int(length * share)))

    @rule(target=parts, length=SMALL)
    def create_whole_part(self, length: int) -> Model:
        model = self._create(length, {"Upload-Concat": "partial"}, os.urandom(length))
        model.partial = True
        return model

    @rule(target=uploads, chosen=st.lists(parts, min_size=1, max_size=5))
    def concatenate(self, chosen: list[Model]) -> object:
        value = "final;" + " ".join(part.path for part in chosen)
        response = self.run(self.served.request("POST", "/files/", {"Upload-Concat": value}))
        repeated = len({part.path for part in chosen}) < len(chosen)
        if repeated or any(part not in self.models for part in chosen):
            assert response.status == 400
            return multiple()
        assert response.status == 201, response
        content = b"".join(part.content for part in chosen)
        return self.remember(Model(response.headers["location"], response.headers["upload-id"], len(content), content))

    @rule(model=uploads, share=st.floats(0, 1), chunked=st.booleans())
    def append(self, model: Model, share: float, chunked: bool) -> None:
        if model not in self.models or model.complete:
            return
        body = os.urandom(self._room(model, share))
        response = self.run(self.served.patch(model.path, len(model.content), *self._framed(body, chunked)))
        assert response.status == 204, response
        model.content += body
        assert response.headers["upload-offset"] == str(len(model.content))

    @staticmethod
    def _framed(body: bytes, chunked: bool) -> tuple[bytes, dict[str, str]]:
        if not chunked:
            return body, {}
        frames = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
        return frames + b"0\r\n\r\n", {"Transfer-Encoding": "chunked"}

    def _room(self, model: Model, share: float) -> int:
        room = 100_000 if model.length is None else model.length - len(model.content)
        return int(room * share)

    @rule(model=uploads)
    def declare_length(self, model: Model) -> None:
        if model not in self.models or model.length is not None:
            return
        length = {"Upload-Length": str(len(model.content))}
        assert self.run(self.served.patch(model.path, len(model.content), b"", length)).status == 204
        model.length = len(model.content)

    @rule(model=uploads, share=st.floats(0, 1), right=st.booleans())
    def append_with_checksum(self, model: Model, share: float, right: bool) -> None:
        if model not in self.models or model.complete:
            return
        body = os.urandom(self._room(model, share))
        digest = hashlib.sha1(body if right else body + b"!").digest()
        header = {"Upload-Checksum": f"sha1 {base64.b64encode(digest).decode()}"}
        response = self.run(self.served.patch(model.path, len(model.content), body, header))
        assert response.status == (204 if right else 460), response
        if right:
            model.content += body

    @rule(model=uploads, share=st.floats(0, 1), sent=st.floats(0, 1))
    def cut(self, model: Model, share: float, sent: float) -> None:
        """The connection is lost in the middle: what arrived counts, and never less than before."""
        if model not in self.models or model.complete:
            return
        body = os.urandom(self._room(model, share))
        if not body:
            return
        self.run(self._cut(model, body, int(len(body) * sent)))
        head = self.run(self.served.head(model.path))
        kept = int(head.headers["upload-offset"]) - len(model.content)
        assert 0 <= kept <= int(len(body) * sent)
        model.content += body[:kept]

    async def _cut(self, model: Model, body: bytes, sent: int) -> None:
        connection = await self.served.connect()
        headers = {
            "Tus-Resumable": "1.0.0", "Upload-Offset": str(len(model.content)),
            "Content-Type": "application/offset+octet-stream", "Content-Length": str(len(body)),
            "Expect": "100-continue",
        }  # fmt: skip
        await connection.send_head("PATCH", model.path, headers.items())
        # Told to go on, it holds the upload: no later request overtakes it on its way to the server.
        assert await connection.interim() == 100
        await connection.send(body[:sent])
        connection.abort()

    @rule(model=uploads, off_by=st.integers(-10, 10))
    def append_elsewhere(self, model: Model, off_by: int) -> None:
        offset = len(model.content) + off_by
        if model not in self.models or off_by == 0 or offset < 0:
            return
        response = self.run(self.served.patch(model.path, offset, b"x"))
        assert response.status in {409, 403}  # 403: a final upload takes no bytes

    @rule(model=consumes(uploads))
    def delete(self, model: Model) -> None:
        if model not in self.models:
            return
        assert self.run(self.served.request("DELETE", model.path)).status == 204
        self.models.remove(model)
        assert self.run(self.served.head(model.path)).status == 404

    # --- time and operators ------------------------------------------------------------------------

    @rule(model=uploads)
    def expire(self, model: Model) -> None:
        if model not in self.models or model.complete:
            return
        self.run(self._execute("UPDATE uploads SET expires_at = now() WHERE id = $1::uuid", model.id))
        assert self.run(self.served.head(model.path)).status == 404
        self.models.remove(model)

    @rule()
    def cleanup(self) -> None:
        self.run(self.served.work.cleanup.once())

    @rule()
    def transfer(self) -> None:
        self.run(self._transfer())

    async def _transfer(self) -> None:
        # A runner stops for good, so each time has its own.
        from tusd_py.app import make_work

        stop = asyncio.Event()
        work = make_work(self.served.core)
        running = asyncio.create_task(run_work(work, stop))
        async with asyncio.timeout(20):
            while await self._execute("SELECT 1 FROM jobs WHERE state IN ('queued', 'running', 'retry_wait') LIMIT 1"):
                await asyncio.sleep(0.01)
        stop.set()
        await running

    @rule()
    def restart(self) -> None:
        self.run(self.stack.aclose())
        self.served = self.run(self.stack.enter_async_context(serving(self.config)))

    @rule(model=uploads)
    def look(self, model: Model) -> None:
        if model in self.models:
            self.check(model)

    async def _execute(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        dsn = self.config.database.dsn
        assert dsn is not None
        connection = await asyncpg.connect(dsn.get_secret_value())
        try:
            return list(await connection.fetch(sql, *arguments))
        finally:
            await connection.close()


@pytest.mark.timeout(300)
def test_no_interleaving_loses_or_invents_a_byte(make_config: MakeConfig) -> None:
    machine = type("Machine", (Interleavings,), {"make_config": staticmethod(make_config)})

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(os.environ.get("TUSD_TEST_EXAMPLES", "20")),
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
