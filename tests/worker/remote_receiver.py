"""A receiver of webhooks in a process of its own, so that the memory of the test is that of the sender alone.

`python -m tests.worker.remote_receiver` prints its URL, and once its input ends, what it has taken: the id, the upload
and the sequence of each event.
"""

from __future__ import annotations

import asyncio
import json
import sys

from tests.support.receivers import receiving


async def main() -> None:
    """Receive until the input ends."""
    async with receiving() as receiver:
        print(receiver.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        print(json.dumps([(each.id, each.upload_id, each.sequence) for each in receiver.taken]))


if __name__ == "__main__":
    asyncio.run(main())
