"""NOTIFY, gathered: one notification for all that happened within a few hundredths of a second.

PostgreSQL takes a global lock for a transaction that notifies, until it is durable. A trigger would
therefore line up every completing upload of the whole server; one statement for many does not.
A notification that gets lost costs whoever waits for it one poll interval, nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
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
PROGRESS_CHANNEL: Final = "tusd_progress"
LISTENERS_CHANNEL: Final = "tusd_listeners"
NOTIFY: Final = "SELECT pg_notify($1, $2)"
NOTIFY_ALL: Final = """
SELECT pg_notify(channel, payload) FROM unnest($1::text[], $2::text[]) AS note (channel, payload)
"""
GATHER_SECONDS: Final = 0.03
IDS_PER_NOTIFICATION: Final = 200
"""A payload has less than 8000 bytes, and an id 36."""
PROGRESS_PER_NOTIFICATION: Final = 100
"""With two numbers of up to 19 digits each."""
ALL_UPLOADS: Final = "*"
"""Stands for every upload among the ids that somebody listens to."""
LISTENING_SECONDS: Final = 30.0
"""How long a process that said so counts as listening. It says so again long before."""


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

    Progress is told of only while somebody listens. Who listens to what, each process says to all by
    `notify_listening` every few seconds.
    """

    def __init__(
        self,
        database: Database,
        *,
        jobs_channel: str = JOBS_CHANNEL,
        progress_seconds: float = 1.0,
        listening_seconds: float = LISTENING_SECONDS,
        tells_progress: bool = False,
    ) -> None:
        """`progress_seconds` lie between two reports of how far an upload is.

        `tells_progress`: somebody always wants to know that, of every upload.
        """
        self._database = database
        self._jobs_channel = jobs_channel
        self._progress_seconds = progress_seconds
        self._listening_seconds = listening_seconds
        self._directories: set[StagingId | None] = set()
        self._uploads: set[UploadId] = set()
        self._listening: set[str] = set()
        self._progress: dict[UploadId, str] = {}
        self._listened_until: dict[str, float] = {ALL_UPLOADS: math.inf} if tells_progress else {}
        self._someone_until = math.inf if tells_progress else 0.0
        self._task: asyncio.Task[None] | None = None
        self._progress_task: asyncio.Task[None] | None = None

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

    def notify_progress(self, upload_id: UploadId, offset: int, length: int | None) -> None:
        """Send those who listen how many bytes are durable. What waits to be told is replaced by what is newer."""
        if self._listened_until and self._is_listened_to(str(upload_id)):
            self._progress[upload_id] = f"{upload_id}:{offset}:{'' if length is None else length}"
            if self._progress_task is None or self._progress_task.done():
                self._progress_task = asyncio.create_task(self._send_progress(), name="database-progress")

    def notify_listening(self, upload_ids: Iterable[UploadId | None]) -> None:
        """Announce to every process that somebody listens to these uploads; None: to all."""
        self._listening.update(ALL_UPLOADS if each is None else str(each) for each in upload_ids)
        if self._listening:
            self._send_soon()

    def someone_listens(self, payload: str) -> None:
        """Take what a process has said by `notify_listening`."""
        now, listened = time.monotonic(), self._listened_until
        for name in [name for name, until in listened.items() if until < now]:
            del listened[name]
        for name in filter(None, payload.split(",")):
            listened[name] = max(listened.get(name, 0), now + self._listening_seconds)
            self._someone_until = max(self._someone_until, now + self._listening_seconds)

    def _is_listened_to(self, name: str) -> bool:
        now, listened = time.monotonic(), self._listened_until
        if self._someone_until < now:
            listened.clear()
        return listened.get(ALL_UPLOADS, 0) >= now or listened.get(name, 0) >= now

    async def close(self) -> None:
        """Send what is gathered."""
        if self._progress_task is not None:
            self._progress_task.cancel()
        if self._task is not None:
            await self._task

    def _send_soon(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send(), name="database-notifier")

    async def _send(self) -> None:
        while self._directories or self._uploads or self._listening:
            await asyncio.sleep(GATHER_SECONDS)
            await self._notify(list(self._gathered()))

    async def _send_progress(self) -> None:
        # One statement for all uploads of the process: so often as each of them may be told of.
        while self._progress:
            told, self._progress = list(self._progress.values()), {}
            await self._notify([(PROGRESS_CHANNEL, each) for each in _joined(told, PROGRESS_PER_NOTIFICATION)])
            await asyncio.sleep(self._progress_seconds)

    async def _notify(self, notes: Sequence[tuple[str, str]]) -> None:
        try:
            await self._database.execute(NOTIFY_ALL, *map(list, zip(*notes, strict=True)))
        except DatabaseUnavailable as error:
            log.warning("notify_failed", notifications=len(notes), error=str(error))

    def _gathered(self) -> Iterator[tuple[str, str]]:
        directories, self._directories = self._directories, set()
        upload_ids, self._uploads = [str(upload_id) for upload_id in self._uploads], set()
        listening, self._listening = list(self._listening), set()
        for staging_id in directories:
            yield self._jobs_channel, "" if staging_id is None else str(staging_id)
        for payload in _joined(upload_ids, IDS_PER_NOTIFICATION):
            yield UPLOADS_CHANNEL, payload
        for payload in _joined(listening, IDS_PER_NOTIFICATION):
            yield LISTENERS_CHANNEL, payload


def _joined(words: Sequence[str], count: int) -> Iterator[str]:
    for start in range(0, len(words), count):
        yield ",".join(words[start : start + count])
