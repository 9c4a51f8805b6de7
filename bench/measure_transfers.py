"""The real server with S3 behind it, uploads to it, and what their transfers take."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from client import Endpoint, exchange
from processes import Tree, peak_kib, reset_peaks
from units import MIB

from tests.support.s3_servers import S3Server
from tests.support.server import Server

PART_MIB: Final = 16
CONCURRENCY: Final = 4
"""Parts at once."""
PIECE: Final = MIB
DEADLINE_SECONDS: Final = 300.0


class Transferred(NamedTuple):
    """What it took to move a file to the store, by whichever program."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def random_file(path: Path, size: int) -> Path:
    """Write so many random bytes, durably."""
    with path.open("wb") as file:
        for _ in range(0, size, PIECE):
            file.write(os.urandom(PIECE))
        file.flush()
        os.fsync(file.fileno())
    return path


def settle(s3: S3Server, path: Path) -> None:
    """Remove what was stored before, let the disk come to rest, and drop the file from the page cache."""
    for key in s3.object_keys():
        s3.client().delete_object(Bucket=s3.bucket, Key=key)
    os.sync()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def server_with_s3(
    folder: Path, s3: S3Server, *, eager: bool, checksum: str = "auto", program: Path | None = None
) -> Iterator[Server]:
    """Run the real server until the block ends."""
    storage = s3.storage_config()
    part = PART_MIB * MIB
    sizes = {"part_size": part, "multipart_threshold": part, "part_concurrency": CONCURRENCY}
    storage["s3"] |= {"checksum": checksum, **sizes}
    with Server(folder, {"storage": storage, "transfer": {"eager": eager}}, program=program) as server:
        yield server


def measure_transfer(server: Server, path: Path) -> Transferred:
    """Upload a file as fast as it goes; return what its transfer took."""
    workers = server.ready.worker_pids
    tree = Tree(workers, dict.fromkeys(workers, "worker"))
    reset_peaks(workers)
    before = tree.cpu_seconds()["worker"]
    seen = wait_stored(server, send(server, path))
    tree.wait_until_idle(5)
    cpu = tree.cpu_seconds()["worker"] - before
    return Transferred(seconds_to_store(seen), cpu, max(peak_kib(pid) for pid in workers) / 1024)


def send(server: Server, path: Path, pace_mib: float | None = None) -> str:
    """Upload a file in one PATCH, at so many MiB/s if there is a pace; return the upload's id."""
    endpoint, size = Endpoint.parse(server.url), path.stat().st_size
    created = exchange(endpoint.address, endpoint.create(size), seconds=DEADLINE_SECONDS)
    append = endpoint.append(urlsplit(created.header(b"location")).path, size)
    exchange(endpoint.address, append, paced_pieces(path, pace_mib), seconds=DEADLINE_SECONDS)
    return created.header(b"upload-id")


def paced_pieces(path: Path, pace_mib: float | None) -> Iterator[bytes]:
    """Yield the bytes of a file, each piece no sooner than the pace allows."""
    started, sent = time.monotonic(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece
            sent += len(piece)
            if pace_mib:
                time.sleep(max(0.0, started + sent / MIB / pace_mib - time.monotonic()))


def wait_stored(server: Server, upload_id: str) -> dict[str, Any]:
    """Wait until an upload is stored; return what the API says of it."""
    endpoint = Endpoint.parse(server.url)
    status = endpoint.get(f"/api/v1/uploads/{upload_id}")
    ends_at = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < ends_at:
        seen: dict[str, Any] = json.loads(exchange(endpoint.address, status, seconds=10).body)
        if seen["state"] == "stored":
            return seen
        if seen["state"] == "transfer_failed":
            raise SystemExit(f"bench: the transfer failed: {seen['last_error']}")
        time.sleep(0.05)
    raise SystemExit("bench: the upload is not stored in time")


def seconds_to_store(seen: dict[str, Any]) -> float:
    """Return the time from the last byte to the object, by the database's clock."""
    completed, stored = (datetime.fromisoformat(seen[name]) for name in ("completed_at", "stored_at"))
    return (stored - completed).total_seconds()
