"""What a blocking hook costs: `pre-create` asked by HTTP, of a handler that takes 1, 50 and 500 ms to reply.

Each creation carries a whole upload of 10 KiB. Measured is how long one takes where nothing else happens, and how many
32 connections get done; beside it a server without hooks, and one whose hook is a Python coroutine that replies at
once. What the handler itself needs is not counted: it is a process of its own.

    python bench/blocking_hooks.py [--quick] [--dir DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web
from client import Endpoint, exchange
from load import SMALL_BYTES
from measure_uploads import CONNECTIONS, Sizes, fail_when_stuck, measure
from options import FULL, QUICK
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


async def serve_hook(delay_ms: float) -> None:
    """Serve a handler that takes so long, and print its port."""

    async def reply(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(delay_ms / 1000)
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/hooks", reply)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


@contextmanager
def handler(delay_ms: float) -> Iterator[str]:
    """Run the handler in a process of its own, and yield its URL."""
    command = [sys.executable, __file__, "--serve", str(delay_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/hooks"
        finally:
            process.kill()


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


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything: half a minute")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where the data go")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        asyncio.run(serve_hook(arguments.serve))
    fail_when_stuck()
    run = Run(arguments.dir, QUICK_ROUNDS if arguments.quick else ROUNDS, QUICK if arguments.quick else FULL)
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    plain = run.measure("no hook", 0, {})
    found = [plain, run.measure("Python, at once", 0, {"hooks.python": f'"{Path(__file__).stem}:instant"'})]
    for delay_ms in DELAYS_MS:
        with handler(delay_ms) as url:
            found.append(run.measure(f"HTTP, {delay_ms} ms", delay_ms, {"hooks.http": f'"{url}"'}))
    header = [
        "pre-create", "alone ms", "beyond the hook", f"req/s of {CONNECTIONS}", "at most", "p50 ms", "p99 ms",
        "HTTP CPU ms", "for the hook",
    ]  # fmt: skip
    print(table(header, (one.row(plain) for one in found)))


if __name__ == "__main__":
    main()
