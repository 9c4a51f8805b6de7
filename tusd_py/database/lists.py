"""Lists of uploads, newest first, in pages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from tusd_py.database.pool import Statement
from tusd_py.database.rows import upload_from_row
from tusd_py.database.statements import UPLOAD_COLUMNS
from tusd_py.ports import ListPosition
from tusd_py.protocol.upload import State, Upload, UploadId

if TYPE_CHECKING:
    from tusd_py.database.pool import Database
    from tusd_py.protocol.upload import TokenHash


def _list(which: str) -> str:
    return f"""
SELECT {UPLOAD_COLUMNS} FROM uploads
 WHERE {which} AND concat IS DISTINCT FROM 'partial' AND (created_at, id) < ($1::timestamptz, $2::uuid)
 ORDER BY created_at DESC, id DESC LIMIT $3
"""  # noqa: S608


# A state is written out: only then may every plan use the partial index that has it.
LIST: Final = _list("state <> ALL ($4::text[])")
LIST_OF_OWNER: Final = _list("state <> ALL ($4::text[]) AND owner = $5")
LIST_IN_STATE: Final = {state: _list(f"state = '{state.value}'") for state in State}
LIST_OF_OWNER_IN_STATE: Final = {state: _list(f"state = '{state.value}' AND owner = $4") for state in State}
BY_TOKENS: Final = f"SELECT token_hash, {UPLOAD_COLUMNS} FROM uploads WHERE token_hash = ANY ($1::bytea[])"  # noqa: S608
# The keys are compared byte by byte, so that what begins with a key and a slash comes before the key and a 0.
KEY_TAKEN: Final = Statement("""
SELECT EXISTS (
    SELECT FROM uploads
     WHERE place_id = :place_id
       AND (object_key = ANY (:keys::text[])
            OR (:directories AND object_key > :key || '/' AND object_key < :key || '0'))
) AS taken
""")
BEFORE_ALL: Final = ListPosition(datetime.max.replace(tzinfo=UTC), UploadId(UUID(int=2**128 - 1)))


class UploadLists:
    """Lists of uploads. Every method raises `DatabaseUnavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def newest(
        self,
        owner: str | None,
        *,
        after: ListPosition | None,
        limit: int,
        hide: Sequence[State],
        state: State | None = None,
    ) -> list[Upload]:
        """Return the newest uploads of an owner (None: everybody's) that follow a position.

        With a `state` only those in it, else all but those in a state to `hide`.
        """
        position = after or BEFORE_ALL
        arguments: list[object] = [position.created_at, position.id, limit]
        if state is None:
            statement = LIST if owner is None else LIST_OF_OWNER
            arguments.append([hidden.value for hidden in hide])
        else:
            statement = (LIST_IN_STATE if owner is None else LIST_OF_OWNER_IN_STATE)[state]
        if owner is not None:
            arguments.append(owner)
        return [upload_from_row(row) for row in await self._database.fetch(statement, *arguments)]

    async def behind(self, tokens: Sequence[TokenHash]) -> list[Upload | None]:
        """Return the uploads behind tus URLs in this order, None for those that do not exist."""
        rows = await self._database.fetch(BY_TOKENS, set(tokens))
        found = {bytes(row["token_hash"]): upload_from_row(row) for row in rows}
        return [found.get(token) for token in tokens]

    async def key_taken(self, key: str, place_id: int, directories: bool) -> bool:  # noqa: FBT001 -- a fact of the store
        """Return whether an upload has this object key; with `directories` also, whether its file would be in the way.

        No file can have the name of a directory above another one.
        """
        steps = key.split("/")
        above = ["/".join(steps[:count]) for count in range(1, len(steps))] if directories else []
        statement = KEY_TAKEN(place_id=place_id, keys=[key, *above], directories=directories, key=key)
        (row,) = await self._database.fetch(*statement)
        return bool(row["taken"])
