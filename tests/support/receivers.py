"""An application that receives webhooks: a real HTTP server that verifies, counts and may be broken."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from tusd_py.webhooks import WebhookEvent, verify

SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass(frozen=True, slots=True)
class Tried:
    """One request of a delivery, and the status it was answered with."""

    id: str
    upload_id: str
    kind: str
    sequence: int
    status: int


async def take(_: WebhookEvent) -> web.Response:
    return web.Response(status=204)


@dataclass
class Receiver:
    """Answers as `reply` says; remembers every request whose signature was right, and how it ended."""

    reply: Callable[[WebhookEvent], Awaitable[web.Response]] = take
    url: str = ""
    tried: list[Tried] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        event = verify(body, request.headers, SECRET)
        assert request.headers["webhook-id"] == event.id
        response = await self.reply(event)
        assert event.sequence is not None
        kind = event.type.removeprefix("tusd_py.upload.")
        self.bodies.append(body)
        self.tried.append(Tried(event.id, event.subject, kind, int(event.sequence), response.status))
        return response

    @property
    def taken(self) -> list[Tried]:
        """Those that were taken, in the order of their replies."""
        return [each for each in self.tried if each.status < 300]

    def kinds(self, upload_id: object) -> list[str]:
        """What was taken of an upload, without repetitions."""
        return list(dict.fromkeys(each.kind for each in self.taken if each.upload_id == str(upload_id)))

    def sequences(self, upload_id: object) -> list[int]:
        """The numbers of all that was taken of an upload, repetitions included."""
        return [each.sequence for each in self.taken if each.upload_id == str(upload_id)]

    def times(self) -> Counter[str]:
        """How often each event was taken, by its id."""
        return Counter(each.id for each in self.taken)


@contextlib.asynccontextmanager
async def receiving(reply: Callable[[WebhookEvent], Awaitable[web.Response]] = take) -> AsyncIterator[Receiver]:
    """Serve a receiver on loopback."""
    receiver = Receiver(reply)
    app = web.Application()
    app.router.add_post("/in", receiver.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/in"
    try:
        yield receiver
    finally:
        await runner.cleanup()
