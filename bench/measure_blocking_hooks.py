"""What a blocking hook costs: `pre-create` asked by HTTP, of a handler that takes 1, 50 and 500 ms to reply.

Each creation carries a whole upload of 10 KiB. Measured is how long one takes where nothing else happens, and how many
32 connections get done; beside it a server without hooks, and one whose hook is a Python coroutine that replies at
once. What the handler itself needs is not counted: it is a process of its own.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client import Endpoint, exchange
from load import SMALL_BYTES
from measure_uploads import CONNECTIONS, Sizes, measure
from options import FULL, QUICK
from receivers import receiver
from results import Measurement, cpu_of, requests_per_second
from servers import Target, tusd_server
from tables import number, table

DELAYS_MS: Final = (1, 50, 500)
ROUNDS: Final = 40
QUICK_ROUNDS: Final = 10
ANSWER_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured of one server."""

    name: str
    delay_ms: float
    alone_ms: float
    """Of one creation at a time, the median."""
    crowd: Measurement

    def row(self, plain: Costs) -> list[str]:
        rate = requests_per_second(self.crowd)
        most = CONNECTIONS * 1000 / self.delay_ms if self.delay_ms else float("nan")
        cpu, cpu_plain = cpu_of("http")(self.crowd), cpu_of("http")(plain.crowd)
        return [
            self.name,
            number(self.alone_ms),
            number(self.alone_ms - plain.alone_ms - self.delay_ms),
            number(rate, 0),
            number(most, 0),
            number(self.crowd.p50_ms, 1),
            number(self.crowd.p99_ms, 1),
            number(cpu, 2),
            number(cpu - cpu_plain, 2),
        ]


async def instant(_: object) -> None:
    """Reply at once: the Python hook."""


@dataclass(frozen=True, slots=True)
class Run:
    """How much is measured, and where the data go."""

    folder: Path
    rounds: int
    sizes: Sizes

    def measure(self, name: str, delay_ms: float, hooks: dict[str, str]) -> Costs:
        """Start a server with these settings, and measure it."""
        with (
            tempfile.TemporaryDirectory(prefix="tusd-bench-", dir=self.folder) as data,
            tusd_server(name, Path(data), {"operations.port": "0", "logging.requests": "false"} | hooks) as target,
        ):
            return Costs(name, delay_ms, alone_ms(target, self.rounds), measure("small", target, self.sizes))


def alone_ms(target: Target, rounds: int) -> float:
    """Return how long one creation takes where nothing else happens, the median."""
    endpoint = Endpoint.parse(target.url)
    request = endpoint.create(SMALL_BYTES, bytes(SMALL_BYTES))
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        exchange(endpoint.address, request, seconds=ANSWER_SECONDS)
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def measure_blocking_hooks(folder: Path, *, quick: bool) -> str:
    """Return a table: without a hook, of a Python hook, and of HTTP hooks that take 1, 50 and 500 ms."""
    run = Run(folder, QUICK_ROUNDS if quick else ROUNDS, QUICK if quick else FULL)
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    plain = run.measure("no hook", 0, {})
    found = [plain, run.measure("Python, at once", 0, {"hooks.python": f'"{Path(__file__).stem}:instant"'})]
    for delay_ms in DELAYS_MS:
        with receiver("hook", str(delay_ms)) as url:
            found.append(run.measure(f"HTTP, {delay_ms} ms", delay_ms, {"hooks.http": f'"{url}"'}))
    header = [
        "pre-create", "alone ms", "beyond the hook", f"req/s of {CONNECTIONS}", "at most", "p50 ms", "p99 ms",
        "HTTP CPU ms", "for the hook",
    ]  # fmt: skip
    return table(header, (one.row(plain) for one in found))
