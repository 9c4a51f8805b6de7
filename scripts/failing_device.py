"""Upload to a block device that really loses bytes, and look after a remount whether any of them counted.

    sudo .venv/bin/python scripts/failing_device.py [--rounds 4]

A loop device over a sparse file promises 256 MiB, and the memory below it has 48: once that is used up,
the kernel cannot write back what it has taken, says so to one `fdatasync`, and drops the pages. ext4
without a journal goes on. The server takes uploads through the page cache until it refuses them; then
everything is killed, unmounted and mounted again, and each acknowledged byte must be there. With more
room the uploads are then finished and compared as a whole.

Needs root, losetup, mkfs.ext4 and loop devices: `make test` shows the same without them, by
`tests/process/test_failing_disk.py`. Exit status 0: nothing was lost; 1: something was.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.blocking_client import OCTETS, create, request
from tests.support.files import download, seeded
from tests.support.server import Server

MIB = 2**20
ROOM, MORE_ROOM, PROMISED = "48m", "400m", 256 * MIB
UPLOADS, LENGTH, BODY = 3, 24 * MIB, 8 * MIB


class ThinDevice:
    """A file system on a loop device whose memory runs out."""

    def __init__(self, directory: Path) -> None:
        """Prepare directories; `mounted` does the rest."""
        self.mount_point = directory / "mounted"
        self._memory = directory / "memory"
        self._disk = self._memory / "disk"
        self.mount_point.mkdir()
        self._memory.mkdir()

    @contextlib.contextmanager
    def formatted(self) -> Iterator[None]:
        """Provide the memory, with an empty file system in it."""
        run("mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", self._memory)
        try:
            with self._disk.open("wb") as disk:
                disk.truncate(PROMISED)
            run("mkfs.ext4", "-q", "-O", "^has_journal", self._disk)
            yield
        finally:
            run("umount", self._memory)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        """Mount the file system through a loop device of its own: nothing is left of its page cache afterwards."""
        loop = run("losetup", "--find", "--show", self._disk).strip()
        try:
            # The loop driver calls a write that was cut short a success. One of a single page cannot be.
            Path(f"/sys/block/{Path(loop).name}/queue/max_sectors_kb").write_text("4")
            run("mount", loop, self.mount_point)
            try:
                yield
            finally:
                run("umount", self.mount_point)
        finally:
            run("losetup", "--detach", loop)

    def repair(self) -> None:
        """Give the device the room that it has promised, and check the file system as after any such fault."""
        run("mount", "-o", f"remount,size={MORE_ROOM}", self._memory)
        subprocess.run(["e2fsck", "-fy", self._disk], check=False, capture_output=True)


@dataclass
class Sent:
    """An upload, and how much of it was acknowledged."""

    target: str
    id: str
    content: bytes
    offset: int = 0


def run(*command: str | Path) -> str:
    """Run a program and return what it says."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def send(server: Server, upload: Sent) -> int:
    """Append in bodies of some MiB until the end or a refusal; return the last status."""
    status = 204
    while upload.offset < LENGTH and status == 204:
        body = upload.content[upload.offset : upload.offset + BODY]
        answer = request(server.port, "PATCH", upload.target, {**OCTETS, "Upload-Offset": str(upload.offset)}, body)
        status = answer.status
        upload.offset = request(server.port, "HEAD", upload.target).offset
        print(f"  {upload.id}: {status}, {upload.offset / MIB:.1f} MiB acknowledged")
    return status


def lost(staging: Path, upload: Sent) -> int:
    """Return how many acknowledged bytes are not what was sent."""
    if upload.offset == 0:
        return 0
    path = staging / upload.id[-2:] / upload.id
    found = path.read_bytes()[: upload.offset] if path.exists() else b""
    if found == upload.content[: upload.offset]:
        return 0
    pairs = zip(found.ljust(upload.offset, b"\0"), upload.content, strict=False)
    return sum(one != other for one, other in pairs) or 1


def one_round(directory: Path, rng: random.Random) -> bool:
    """Return whether every acknowledged byte has survived."""
    device = ThinDevice(directory)
    staging = device.mount_point / "staging"
    config = {
        "staging": {"directory": str(staging), "reserve": 0, "write_path": "page-cache", "checkpoint_bytes": "3MiB"},
        "transfer": {"trigger": "manual"},
    }
    server = Server(directory / "server", config)
    with device.formatted():
        with device.mounted():
            server.start()
            try:
                sent, statuses = fill(server, rng)
            finally:
                server.kill_supervisor()
                server.wait_gone()
        device.repair()
        with device.mounted():
            losses = [lost(staging, upload) for upload in sent]
            with server:
                whole = [finish(server, upload) for upload in sent]
    print(f"  refused {statuses.count(500)} times; lost {losses} acknowledged bytes; whole in the end: {whole}")
    if 500 not in statuses:
        print("  the device has refused nothing: this round shows nothing")
    return not any(losses) and all(whole) and 500 in statuses


def fill(server: Server, rng: random.Random) -> tuple[list[Sent], list[int]]:
    """Upload more than there is room for."""
    sent = []
    for _ in range(UPLOADS):
        created = create(server.port, LENGTH)
        sent.append(Sent(created.headers["location"], created.headers["upload-id"], rng.randbytes(LENGTH)))
    statuses = [send(server, upload) for upload in sent * 2]
    return sent, statuses


def finish(server: Server, upload: Sent) -> bool:
    """Send what is missing; return whether the download is what was sent."""
    if request(server.port, "HEAD", upload.target).status != 200:
        return False
    send(server, upload)
    got = download(f"{server.origin}/download/{upload.id}")
    return got.sha256 == hashlib.sha256(upload.content).hexdigest()


def main() -> int:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    rounds = parser.parse_args().rounds
    if os.geteuid() != 0:
        print("This needs root: it makes a loop device and mounts it.", file=sys.stderr)
        return 2
    rng, good = seeded("failing-device"), 0
    for number in range(rounds):
        print(f"round {number + 1}")
        with tempfile.TemporaryDirectory(prefix="failing-device-") as directory:
            good += one_round(Path(directory), rng)
    print(f"{good} of {rounds} rounds kept every acknowledged byte")
    return 0 if good == rounds else 1


if __name__ == "__main__":
    sys.exit(main())
