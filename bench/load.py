"""The load generator: one cheap process that drives one case against one server.

It is run by `measure_uploads.py` and talks to it over pipes, so that creating uploads, measuring and removing
are apart: it prints `ready`, waits for `go`, prints `done` the moment the last answer is in, then one line
of JSON, waits for `clean` (or the end of its input), removes what it created and ends.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Final
from urllib.parse import urlsplit

from client import Answer, Endpoint, Request
from loop import Loop, NextRequest
from units import KIB, MIB

SMALL_BYTES: Final = 10 * KIB
"""Size of a small upload, and of what each upload asked for by HEAD has received."""

UPLOADS_PER_CONNECTION: Final = 4
"""How many uploads a HEAD connection cycles through. None is shared: a HEAD takes the upload's lock."""


class Uploads:
    """The uploads of one case: created before it is measured, removed after it."""

    def __init__(self, endpoint: Endpoint, loop: Loop) -> None:
        self.endpoint = endpoint
        self.loop = loop
        self.paths: list[str] = []

    def create(self, count: int, length: int, body: bytes = b"") -> None:
        """Create so many uploads and keep their paths."""
        tally = self.loop.run(each_of([self.endpoint.create(length, body)] * count), self._keep)
        if tally.failures or len(self.paths) != count:
            raise RuntimeError(f"creation failed: {tally.failures}")

    def _keep(self, created: Answer) -> None:
        location = created.header(b"location")
        if location:
            self.paths.append(urlsplit(location).path)

    def remove(self) -> None:
        """Terminate every upload kept, whatever the server thinks of it."""
        self.loop.run(each_of(self.endpoint.terminate(path) for path in self.paths))


@dataclass(frozen=True, slots=True)
class Result:
    """What one case came to."""

    wall_seconds: float
    cpu_seconds: float
    requests: int
    body_bytes: int
    p50_ms: float
    p99_ms: float
    failures: dict[str, int]
    reconnects: int


def send_uploads(uploads: Uploads, count: int, size: int) -> Result:
    """Send so many uploads at once, each in one PATCH."""
    uploads.create(count, size)
    return measure(uploads.loop, each_of(uploads.endpoint.append(path, size) for path in uploads.paths), size)


def send_small(uploads: Uploads, seconds: float) -> Result:
    """Send one small upload after the other, each in one POST, for so long."""
    request = uploads.endpoint.create(SMALL_BYTES, os.urandom(SMALL_BYTES))
    return measure(uploads.loop, for_a_while(seconds, lambda _: request), SMALL_BYTES)


def ask_offsets(uploads: Uploads, seconds: float) -> Result:
    """Ask for the offset of unfinished uploads, for so long."""
    connections = len(uploads.loop.connections)
    uploads.create(UPLOADS_PER_CONNECTION * connections, MIB, os.urandom(SMALL_BYTES))
    requests = [uploads.endpoint.status(path, SMALL_BYTES) for path in uploads.paths]
    turn = [0] * connections

    def next_head(index: int) -> Request:
        turn[index] = (turn[index] + 1) % UPLOADS_PER_CONNECTION
        return requests[index * UPLOADS_PER_CONNECTION + turn[index]]

    return measure(uploads.loop, for_a_while(seconds, next_head), 0)


def each_of(requests: Iterable[Request]) -> NextRequest:
    """Hand out each of these requests once, to whichever connection asks next."""
    left = iter(list(requests))
    return lambda _: next(left, None)


def for_a_while(seconds: float, next_request: Callable[[int], Request]) -> NextRequest:
    """Hand out requests until so much time has passed since the first."""
    ends_at: list[float] = []

    def limited(index: int) -> Request | None:
        now = time.perf_counter()
        if not ends_at:
            ends_at.append(now + seconds)
        return next_request(index) if now < ends_at[0] else None

    return limited


def measure(loop: Loop, next_request: NextRequest, bytes_per_request: int) -> Result:
    """Run the loop, once `go` has been read from the input, and time it."""
    say("ready")
    sys.stdin.readline()
    cpu, began = cpu_seconds(), time.perf_counter()
    tally = loop.run(next_request)
    wall, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    say("done")
    return Result(
        wall_seconds=wall,
        cpu_seconds=cpu,
        requests=len(tally.latencies),
        body_bytes=len(tally.latencies) * bytes_per_request,
        p50_ms=percentile(tally.latencies, 0.50) * 1000,
        p99_ms=percentile(tally.latencies, 0.99) * 1000,
        failures=tally.failures,
        reconnects=tally.reconnects,
    )


def percentile(values: list[float], share: float) -> float:
    """Return the value that this share of the values does not exceed (nearest rank); NaN of nothing."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def cpu_seconds() -> float:
    """Return the CPU time this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def say(line: str) -> None:
    """Print a line that the parent waits for, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Drive one case against one server (used by measure_uploads.py).")
    parser.add_argument("case", choices=["send", "small", "head"])
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--size", type=int, default=32 * MIB, help="bytes of each upload (send)")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long (small, head)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    endpoint = Endpoint.parse(arguments.url)
    uploads = Uploads(endpoint, Loop(endpoint.address, arguments.connections))
    if arguments.case == "send":
        result = send_uploads(uploads, arguments.connections, arguments.size)
    elif arguments.case == "small":
        result = send_small(uploads, arguments.seconds)
    else:
        result = ask_offsets(uploads, arguments.seconds)
    say(json.dumps(asdict(result)))
    sys.stdin.readline()
    uploads.remove()


if __name__ == "__main__":
    main()
