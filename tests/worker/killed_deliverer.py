"""A worker that kills itself between a delivery and the record of it.

`python -m tests.worker.killed_deliverer DSN ROOT URL advance|finish`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from tests.support.deliverers import delivering, subscribe
from tests.support.world import open_world
from tusd_py.database.deliveries import Delivery, DeliveryQueue


class Deadly(DeliveryQueue):
    """Dies instead of recording."""

    point = ""

    async def advance(self, delivery: Delivery, next_sequence: int, *, lease_seconds: float) -> bool:
        if self.point == "advance":
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().advance(delivery, next_sequence, lease_seconds=lease_seconds)

    async def finish(self, delivery: Delivery, next_sequence: int) -> int | None:
        os.kill(os.getpid(), signal.SIGKILL)
        return await super().finish(delivery, next_sequence)


async def main(dsn: str, root: Path, url: str, point: str) -> None:
    """Deliver until the point is reached."""
    async with open_world(dsn, root, empty=False) as world:
        queue = Deadly(world.database, worker="killed")
        queue.point = point
        async with delivering(world, subscribe(url), queue=queue):
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
