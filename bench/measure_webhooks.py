"""How fast events reach an endpoint: how long after their commit when nothing else happens, and how many per second.

The receiver is a process of its own on the same machine, and replies at once. The delay is from the `time` of the
event, which is that of its transaction, to the request. For the rate, whole uploads of 10 KiB are sent as fast as they
go, each of which has four events; it is taken from when the last upload was answered until the last event has arrived,
that is, while deliveries (and transfers) have the machine for themselves.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from receivers import receiver
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


def measure_webhooks(folder: Path, *, quick: bool) -> str:
    """Return a table of one row: the delay and the rate."""
    rounds, uploads = (50, 300) if quick else (200, 2000)
    with receiver("events") as url, tempfile.TemporaryDirectory(prefix="tusd-bench-", dir=folder) as data:
        webhook = {"name": "bench", "url": f"{url}/in", "secret": SECRET}
        config = {"webhooks": [webhook], "logging": {"requests": False}}
        with Server(Path(data), config) as server:
            times = idle_delays(server, url, rounds)
            rate = events_per_second(server, url, uploads)
    p50, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
    header = ["commit to request, p50 ms", "p99 ms", "expected p50", "verdict", "events/s to one endpoint"]
    verdict = "meets" if p50 <= EXPECTED_MS else "misses"
    return table(header, [[number(p50, 1), number(p99, 1), f"≤ {EXPECTED_MS:.0f}", verdict, number(rate, 0)]])
