"""The floors: what the framework, the disk and the file system could do if nothing else were done.

`count` and `answer` are aiohttp servers in a process of their own, with our runner's settings; both speak
enough tus for the load generator to drive them as it drives the real server. `count` reads the body and
counts it; `answer` only answers. They write their address to TUSD_READY_FILE, as `tusd-py serve` does.
`write_with_dd` and `write_small_files` are the floors of the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web
from load import SMALL_BYTES

READ_BUFFER_BYTES: Final = 256 * 1024
BASE_PATH: Final = "/files/"
STATUS_OF: Final = {"POST": 201, "PATCH": 204, "HEAD": 200, "DELETE": 204}


@dataclass(frozen=True, slots=True)
class Written:
    """How long something took to write, and what it cost the CPU."""

    wall_seconds: float
    cpu_seconds: float


async def count(request: web.Request) -> web.Response:
    """Count the bytes of a body and answer as a tus server would."""
    received = 0
    async for data in request.content.iter_any():
        received += len(data)
    return reply(request.method, SMALL_BYTES if request.method == "HEAD" else received)


async def answer(request: web.Request) -> web.Response:
    """Answer as a tus server would, at once."""
    return reply(request.method, SMALL_BYTES)


def reply(method: str, offset: int) -> web.Response:
    """Build the answer that the load generator expects."""
    fields = {"Upload-Offset": str(offset), "Location": BASE_PATH + "floor"}
    return web.Response(status=STATUS_OF[method], headers=fields)


async def serve(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> None:
    """Serve one handler until killed."""
    application = web.Application()
    application.router.add_route("*", BASE_PATH + "{token:.*}", handler)
    runner = web.AppRunner(
        application,
        access_log=None,
        auto_decompress=False,
        read_bufsize=READ_BUFFER_BYTES,
        keepalive_timeout=75,
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    tell_ready(runner.addresses[0][1])
    await asyncio.Event().wait()


def tell_ready(port: int) -> None:
    """Write the ready file, whole or not at all."""
    ready = Path(os.environ["TUSD_READY_FILE"])
    facts = {
        "url": f"http://127.0.0.1:{port}{BASE_PATH}",
        "supervisor_pid": os.getpid(),
        "http_pids": [os.getpid()],
        "worker_pids": [],
    }
    unfinished = ready.with_suffix(".new")
    unfinished.write_text(json.dumps(facts))
    unfinished.rename(ready)


def write_with_dd(folder: Path, mebibytes: int) -> Written:
    """Write so many MiB of zeros with dd, durably, into a fresh file; remove it."""
    target = folder / "dd"
    command = ["dd", "if=/dev/zero", f"of={target}", "bs=1M", f"count={mebibytes}", "conv=fdatasync"]
    cpu, began = children_cpu_seconds(), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    written = Written(time.perf_counter() - began, children_cpu_seconds() - cpu)
    target.unlink()
    return written


def children_cpu_seconds() -> float:
    """Return the CPU time of the children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def write_small_files(folder: Path, seconds: float, threads: int) -> tuple[int, Written]:
    """Create, write and fdatasync small files from several threads for so long; return how many."""
    target = folder / "small"
    target.mkdir()
    cpu, began = time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        counts = pool.map(lambda thread: write_files_until(target, thread, began + seconds), range(threads))
        files = sum(counts)
    written = Written(time.perf_counter() - began, time.process_time() - cpu)
    shutil.rmtree(target)
    return files, written


def write_files_until(folder: Path, thread: int, ends_at: float) -> int:
    """Write small files, one after the other, until then; return how many."""
    body = os.urandom(SMALL_BYTES)
    number = 0
    while time.perf_counter() < ends_at:
        descriptor = os.open(folder / f"{thread}-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(descriptor, body)
        os.fdatasync(descriptor)
        os.close(descriptor)
        number += 1
    return number


def main() -> None:
    """Serve one of the bare handlers."""
    parser = argparse.ArgumentParser(description="A bare aiohttp handler (used by upload.py).")
    parser.add_argument("handler", choices=["count", "answer"])
    parser.add_argument("--event-loop", choices=["asyncio", "uvloop"], default="uvloop")
    arguments = parser.parse_args()
    serving = serve(count if arguments.handler == "count" else answer)
    if arguments.event_loop == "uvloop":
        import uvloop

        uvloop.run(serving)
    else:
        asyncio.run(serving)


if __name__ == "__main__":
    main()
