"""Staging directories as the database knows them: whose uploads lie where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from tusd_py.protocol.upload import GONE, StagingId

if TYPE_CHECKING:
    from tusd_py.database.pool import Database, Row

FIND: Final = "SELECT id, node, path FROM staging_directories WHERE id = $1"
ADD: Final = "INSERT INTO staging_directories (id, node) VALUES ($1, $2) ON CONFLICT DO NOTHING"
SEEN: Final = """
UPDATE staging_directories SET node = $2, path = $3
 WHERE id = $1 AND (node <> $2 OR path IS DISTINCT FROM $3)
"""
# From before directories had ids: that of the node's name, and those whose files lie here.
NOT_TAKEN: Final = """
SELECT id, node, path FROM staging_directories
 WHERE path IS NULL AND (node = $1 OR id = ANY ($2::uuid[])) ORDER BY node <> $1, created_at, id
"""
HOLDERS: Final = """
SELECT staging_id, count(*) AS files FROM uploads WHERE id = ANY ($1::uuid[]) GROUP BY staging_id
"""
ANY_UPLOAD: Final = "SELECT EXISTS (SELECT 1 FROM uploads) AS found"
STAGED_BYTES: Final = """
SELECT count(*) AS uploads FROM uploads
 WHERE staging_id = ANY ($1::uuid[]) AND local_present AND upload_offset > 0 AND concat IS DISTINCT FROM 'final'
   AND state <> ALL ($2::text[])
"""
MERGE: Final = """
WITH uploads_moved AS (
    UPDATE uploads SET staging_id = $1 WHERE staging_id = ANY ($2::uuid[])
), jobs_moved AS (
    UPDATE jobs SET staging_id = $1 WHERE staging_id = ANY ($2::uuid[])
)
DELETE FROM staging_directories WHERE id = ANY ($2::uuid[]) AND path IS NULL
"""
WHERE: Final = "SELECT current_user || ' in ' || current_database() AS place"


@dataclass(frozen=True, slots=True)
class StagingDirectory:
    """One staging directory. The node and the path are those of its last use, for people."""

    id: StagingId
    node: str
    path: str | None
    """None: it dates from before directories had ids, and no directory has taken this one yet."""

    def __str__(self) -> str:
        return f'{self.id} (node "{self.node}", {self.path or "never seen since directories have ids"})'


class StagingDirectories:
    """The table of staging directories."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, staging_id: StagingId) -> StagingDirectory | None:
        """Return a directory that the database knows."""
        row = await self._database.read(FIND, staging_id)
        return None if row is None else _directory(row)

    async def add(self, staging_id: StagingId, node: str) -> None:
        """Make a directory known that is about to get this id."""
        await self._database.execute(ADD, staging_id, node)

    async def seen(self, staging_id: StagingId, node: str, path: str) -> None:
        """Record who uses a directory, and where."""
        await self._database.execute(SEEN, staging_id, node, path)

    async def not_taken(self, node: str, holders: Sequence[StagingId]) -> list[StagingDirectory]:
        """Return those that no directory has taken: of this node's name first, then those among `holders`."""
        return [_directory(row) for row in await self._database.fetch(NOT_TAKEN, node, holders)]

    async def merge(self, staging_id: StagingId, others: Sequence[StagingId]) -> None:
        """Give everything of other directories to one: they were one, under several names."""
        if others:
            await self._database.execute(MERGE, staging_id, others)

    async def holders(self, upload_ids: Sequence[UUID]) -> dict[StagingId, int]:
        """Return to which directories these uploads belong, and how many to each."""
        rows = await self._database.fetch(HOLDERS, upload_ids)
        return {row["staging_id"]: row["files"] for row in rows}

    async def any_upload(self) -> bool:
        """Return whether the database knows any upload at all."""
        row = await self._database.read(ANY_UPLOAD)
        return row is not None and bool(row["found"])

    async def uploads_with_bytes(self, staging_ids: Sequence[StagingId]) -> int:
        """Return how many uploads should have bytes in these directories."""
        row = await self._database.read(STAGED_BYTES, staging_ids, [state.value for state in GONE])
        return 0 if row is None else int(row["uploads"])

    async def place(self) -> str:
        """Return which database this is, for people."""
        row = await self._database.read(WHERE)
        return "" if row is None else str(row["place"])


def _directory(row: Row) -> StagingDirectory:
    return StagingDirectory(row["id"], row["node"], row["path"])
