"""NOTIFY, gathered: one notification for all that happened within a few hundredths of a second.

PostgreSQL takes a global lock for a transaction that notifies, until it is durable. A trigger would
therefore line up every completing upload of the whole server; one statement for many does not.
A notification that gets lost costs a worker one poll interval, nothing else.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from tusd_py.database.pool import Database

log = structlog.get_logger(__name__)

JOBS_CHANNEL: Final = "tusd_jobs"
RELEASE_CHANNEL: Final = "tusd_release"
NOTIFY: Final = "SELECT pg_notify($1, $2)"
GATHER_SECONDS: Final = 0.03


class Wakeups:
    """Rings the workers of a node."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._nodes: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def ring(self, node: str) -> None:
        """Wake the workers of `node` soon. Never blocks and never fails."""
        self._nodes.add(node)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send(), name="database-wakeups")

    async def close(self) -> None:
        """Send what is gathered."""
        if self._task is not None:
            await self._task

    async def _send(self) -> None:
        while self._nodes:
            await asyncio.sleep(GATHER_SECONDS)
            nodes, self._nodes = self._nodes, set()
            for node in nodes:
                try:
                    await self._database.execute(NOTIFY, JOBS_CHANNEL, node)
                except DatabaseUnavailable as error:
                    log.warning("wakeup_failed", node=node, error=str(error))
