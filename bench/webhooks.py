"""How fast events reach an endpoint: how long after their commit when nothing else happens, and how many per second.

The receiver is a process of its own on the same machine, and replies at once. The delay is from the `time` of the
event, which is that of its transaction, to the request. For the rate, whole uploads of 10 KiB are sent as fast as they
go, each of which has four events; it is taken from when the last upload was answered until the last event has arrived,
that is, while deliveries (and transfers) have the machine for themselves.

    python bench/webhooks.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from aiohttp import web

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tables import number, table

from tests.support.blocking_client import create, get, upload_whole
from tests.support.process import wait_until
from tests.support.server import Server

SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY: Final = bytes(10 * 1024)
EVENTS_OF_A_STORED_UPLOAD: Final = 4
EXPECTED_MS: Final = 100.0
CLIENTS: Final = 8
ENOUGH_SECONDS: Final = 120.0


async def serve() -> None:
    """Receive events, and say when each arrived after its commit; print the port."""
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
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


@contextmanager
def receiver() -> Iterator[str]:
    """Run the receiver in a process of its own, and yield where it listens."""
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def delays(url: str) -> list[float]:
    """Return the delay of each event that has arrived, in milliseconds."""
    found: list[float] = json.loads(get(f"{url}/delays")[1])
    return found


def wait_for(url: str, count: int) -> list[float]:
    wait_until(lambda: len(delays(url)) >= count, deadline=ENOUGH_SECONDS, what=f"{count} events have arrived")
    return delays(url)


def idle_delays(server: Server, url: str, rounds: int) -> list[float]:
    """Create one upload after the other, each once the event of the one before has arrived."""
    for count in range(1, rounds + 1):
        create(server.port, 1)
        wait_for(url, count)
    return delays(url)


def events_per_second(server: Server, url: str, uploads: int) -> float:
    """Send uploads as fast as they go, and return how fast the events arrive that are left when all are answered."""
    before = len(delays(url))
    with ThreadPoolExecutor(CLIENTS) as threads:
        for _ in threads.map(lambda _: upload_whole(server.url, BODY), range(uploads)):
            pass
    started, arrived = time.perf_counter(), len(delays(url))
    total = before + uploads * EVENTS_OF_A_STORED_UPLOAD
    wait_for(url, total)
    return (total - arrived) / (time.perf_counter() - started)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything: half a minute")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
    rounds, uploads = (50, 300) if arguments.quick else (200, 2000)
    with receiver() as url, tempfile.TemporaryDirectory(prefix="tusd-bench-") as folder:
        webhook = {"name": "bench", "url": f"{url}/in", "secret": SECRET}
        config = {"webhooks": [webhook], "logging": {"requests": False}}
        with Server(Path(folder), config) as server:
            times = idle_delays(server, url, rounds)
            rate = events_per_second(server, url, uploads)
    p50, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
    header = ["commit to request, p50 ms", "p99 ms", "expected p50", "verdict", "events/s to one endpoint"]
    verdict = "meets" if p50 <= EXPECTED_MS else "misses"
    print(table(header, [[number(p50, 1), number(p99, 1), f"≤ {EXPECTED_MS:.0f}", verdict, number(rate, 0)]]))


if __name__ == "__main__":
    main()
