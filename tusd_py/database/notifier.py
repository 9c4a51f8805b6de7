"""NOTIFY, gathered: one notification for all that happened within a few hundredths of a second.

PostgreSQL takes a global lock for a transaction that notifies, until it is durable. A trigger would
therefore line up every completing upload of the whole server; one statement for many does not.
A notification that gets lost costs whoever waits for it one poll interval, nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import structlog

from tusd_py.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from tusd_py.database.pool import Connection, Database, Row
    from tusd_py.protocol.upload import StagingId, UploadId

log = structlog.get_logger(__name__)

JOBS_CHANNEL: Final = "tusd_jobs"
RELEASE_CHANNEL: Final = "tusd_release"
UPLOADS_CHANNEL: Final = "tusd_uploads"
NOTIFY: Final = "SELECT pg_notify($1, $2)"
NOTIFY_ALL: Final = """
SELECT pg_notify(channel, payload) FROM unnest($1::text[], $2::text[]) AS note (channel, payload)
"""
GATHER_SECONDS: Final = 0.03
IDS_PER_NOTIFICATION: Final = 200
"""A payload has less than 8000 bytes, and an id 36."""


class Transaction:
    """Several statements in one transaction. The workers that they wake are notified once it is committed."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.rows: list[Row] = []

    async def run(self, sql: str, *arguments: Any) -> list[Row]:
        """Run a statement as `Notifier.run` does."""
        rows: list[Row] = await self.connection.fetch(sql, *arguments)
        self.rows += rows
        return rows


class Notifier:
    """Wakes the workers beside a staging directory, and those who wait for a change of an upload.

    Every statement that may enqueue a job goes through `run`, here or of a transaction: who enqueues, notifies.
    """

    def __init__(self, database: Database, *, jobs_channel: str = JOBS_CHANNEL) -> None:
        self._database = database
        self._jobs_channel = jobs_channel
        self._directories: set[StagingId | None] = set()
        self._uploads: set[UploadId] = set()
        self._task: asyncio.Task[None] | None = None

    async def run(self, sql: str, *arguments: Any) -> list[Row]:
        """Run a statement and return its rows; for each that says `wake_workers`, wake those beside `staging_id`."""
        rows = await self._database.fetch(sql, *arguments)
        self._wake(rows)
        return rows

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Hold a transaction; rolled back on any error, and then nobody is notified."""
        async with self._database.transaction() as connection:
            transaction = Transaction(connection)
            yield transaction
        self._wake(transaction.rows)

    def _wake(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if row["wake_workers"]:
                self.notify_workers(row["staging_id"])

    def notify_workers(self, staging_id: StagingId | None) -> None:
        """Wake the workers beside a staging directory soon, None: all of them. Never blocks and never fails."""
        self._directories.add(staging_id)
        self._send_soon()

    def notify_changed(self, *upload_ids: UploadId) -> None:
        """Wake those who wait for a change of these uploads. Never blocks and never fails."""
        self._uploads.update(upload_ids)
        self._send_soon()

    async def close(self) -> None:
        """Send what is gathered."""
        if self._task is not None:
            await self._task

    def _send_soon(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send(), name="database-notifier")

    async def _send(self) -> None:
        while self._directories or self._uploads:
            await asyncio.sleep(GATHER_SECONDS)
            notes = list(self._gathered())
            try:
                await self._database.execute(NOTIFY_ALL, *map(list, zip(*notes, strict=True)))
            except DatabaseUnavailable as error:
                log.warning("notify_failed", notifications=len(notes), error=str(error))

    def _gathered(self) -> Iterator[tuple[str, str]]:
        directories, self._directories = self._directories, set()
        upload_ids, self._uploads = [str(upload_id) for upload_id in self._uploads], set()
        for staging_id in directories:
            yield self._jobs_channel, "" if staging_id is None else str(staging_id)
        for start in range(0, len(upload_ids), IDS_PER_NOTIFICATION):
            yield UPLOADS_CHANNEL, ",".join(upload_ids[start : start + IDS_PER_NOTIFICATION])
