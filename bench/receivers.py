"""Whoever is asked by a hook or told of events: a process of its own, whose CPU time is not the server's.

It prints the port at which it listens.

    python bench/receivers.py hook DELAY_MS
    python bench/receivers.py events
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from aiohttp import web


@contextmanager
def receiver(*arguments: str) -> Iterator[str]:
    """Run a receiver, and yield its URL."""
    with subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def hook_handler(delay_ms: float) -> web.Application:
    """Return what answers each hook after so long, and wants nothing."""

    async def reply(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(delay_ms / 1000)
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/", reply)
    return app


def event_receiver() -> web.Application:
    """Return what takes events at once, and tells how many ms after its commit each has arrived."""
    delays: list[float] = []

    async def receive(request: web.Request) -> web.Response:
        event = json.loads(await request.read())
        delays.append((time.time() - datetime.fromisoformat(event["time"]).timestamp()) * 1000)
        return web.Response(status=204)

    async def tell(_: web.Request) -> web.Response:
        return web.json_response(delays)

    app = web.Application()
    app.router.add_post("/in", receive)
    app.router.add_get("/delays", tell)
    return app


async def serve(app: web.Application) -> None:
    """Serve on a free port, and print it."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    asyncio.run(serve(hook_handler(float(rest[0])) if what == "hook" else event_receiver()))
