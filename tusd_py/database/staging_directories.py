"""Staging directories as the database knows them: whose uploads lie where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from tusd_py.database.pool import Statement
from tusd_py.protocol.upload import GONE, StagingId

if TYPE_CHECKING:
    from tusd_py.database.pool import Database, Row


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

    FIND: Final = Statement("SELECT id, node, path FROM staging_directories WHERE id = :id")

    async def find(self, staging_id: StagingId) -> StagingDirectory | None:
        """Return a directory that the database knows."""
        row = await self._database.read(*self.FIND(id=staging_id))
        return None if row is None else _directory(row)

    ADD: Final = Statement("INSERT INTO staging_directories (id, node) VALUES (:id, :node) ON CONFLICT DO NOTHING")

    async def add(self, staging_id: StagingId, node: str) -> None:
        """Make a directory known that is about to get this id."""
        await self._database.execute(*self.ADD(id=staging_id, node=node))

    SEEN: Final = Statement(
        """
        UPDATE staging_directories SET node = :node, path = :path
         WHERE id = :id AND (node <> :node OR path IS DISTINCT FROM :path)
        """
    )

    async def seen(self, staging_id: StagingId, node: str, path: str) -> None:
        """Record who uses a directory, and where."""
        await self._database.execute(*self.SEEN(id=staging_id, node=node, path=path))

    # From before directories had ids: that of the node's name, and those whose files lie here.
    NOT_TAKEN: Final = Statement(
        """
        SELECT id, node, path FROM staging_directories
         WHERE path IS NULL AND (node = :node OR id = ANY (:holders::uuid[])) ORDER BY node <> :node, created_at, id
        """
    )

    async def not_taken(self, node: str, holders: Sequence[StagingId]) -> list[StagingDirectory]:
        """Return those that no directory has taken: of this node's name first, then those among `holders`."""
        rows = await self._database.fetch(*self.NOT_TAKEN(node=node, holders=holders))
        return [_directory(row) for row in rows]

    MERGE: Final = Statement(
        """
        WITH uploads_moved AS (
            UPDATE uploads SET staging_id = :id WHERE staging_id = ANY (:others::uuid[])
        ), jobs_moved AS (
            UPDATE jobs SET staging_id = :id WHERE staging_id = ANY (:others::uuid[])
        )
        DELETE FROM staging_directories WHERE id = ANY (:others::uuid[]) AND path IS NULL
        """
    )

    async def merge(self, staging_id: StagingId, others: Sequence[StagingId]) -> None:
        """Give everything of other directories to one: they were one, under several names."""
        if others:
            await self._database.execute(*self.MERGE(id=staging_id, others=others))

    HOLDERS: Final = Statement(
        """
        SELECT staging_id, count(*) AS files FROM uploads WHERE id = ANY (:upload_ids::uuid[]) GROUP BY staging_id
        """
    )

    async def holders(self, upload_ids: Sequence[UUID]) -> dict[StagingId, int]:
        """Return to which directories these uploads belong, and how many to each."""
        rows = await self._database.fetch(*self.HOLDERS(upload_ids=upload_ids))
        return {row["staging_id"]: row["files"] for row in rows}

    ANY_UPLOAD: Final = Statement("SELECT EXISTS (SELECT 1 FROM uploads) AS found")

    async def any_upload(self) -> bool:
        """Return whether the database knows any upload at all."""
        row = await self._database.read(*self.ANY_UPLOAD())
        return row is not None and bool(row["found"])

    STAGED_BYTES: Final = Statement(
        """
        SELECT count(*) AS uploads FROM uploads
         WHERE staging_id = ANY (:staging_ids::uuid[]) AND local_present AND upload_offset > 0
           AND concat IS DISTINCT FROM 'final' AND state <> ALL (:gone_states::text[])
        """
    )

    async def uploads_with_bytes(self, staging_ids: Sequence[StagingId]) -> int:
        """Return how many uploads should have bytes in these directories."""
        statement = self.STAGED_BYTES(staging_ids=staging_ids, gone_states=[state.value for state in GONE])
        row = await self._database.read(*statement)
        return 0 if row is None else int(row["uploads"])

    WHERE: Final = Statement("SELECT current_user || ' in ' || current_database() AS place")

    async def place(self) -> str:
        """Return which database this is, for people."""
        row = await self._database.read(*self.WHERE())
        return "" if row is None else str(row["place"])


def _directory(row: Row) -> StagingDirectory:
    return StagingDirectory(row["id"], row["node"], row["path"])
