"""A worker that kills or stops itself at a given point.

`python -m tests.worker.killed_worker DSN ROOT POINT SIGKILL|SIGSTOP`; one that was stopped and is
continued does what it still has to do, and ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.support.workers import InParts, working
from tests.support.world import open_world
from tusd_py.errors import StorageError
from tusd_py.ports import ObjectSpec, TransferState
from tusd_py.protocol.upload import UploadId

POINTS: Final = (
    "before the first part",
    "between a part and its record",
    "after the record of a part",
    "between the object and its record",
    "between the record and the end of the staged copy",
    "between the end of the staged copy and its record",
)


how = signal.SIGKILL
continued = asyncio.Event()


def die() -> None:
    """End like a process that the kernel kills for its memory, or be frozen like one whose machine sleeps."""
    os.kill(os.getpid(), how)
    continued.set()


class Deadly(InParts):
    """Kills its process at a point of the walk."""

    point = ""

    async def sent(self, number: int) -> None:
        if (number, self.point) in {(1, POINTS[0]), (2, POINTS[1])}:
            die()

    async def recorded(self, number: int) -> None:
        if (number, self.point) == (2, POINTS[2]):
            die()

    async def after(self, spec: ObjectSpec, transfer_state: TransferState) -> None:
        if self.point == POINTS[3]:
            die()


async def main(dsn: str, root: Path, point: str) -> None:
    """Work until the point is reached."""
    async with open_world(dsn, root, empty=False) as world:
        store = Deadly(world.store)
        store.point = point
        remove = world.staging.try_remove

        async def remove_or_die(upload_ids: Sequence[UploadId]) -> dict[UploadId, StorageError]:
            if point == POINTS[4]:
                die()
            failed = await remove(upload_ids)
            if point == POINTS[5]:
                die()
            return failed

        world.staging.try_remove = remove_or_die  # type: ignore[method-assign]  # this process is not to be used again
        async with working(world, store, name="killed"):
            await continued.wait()


if __name__ == "__main__":
    how = signal.Signals[sys.argv[4]]
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
