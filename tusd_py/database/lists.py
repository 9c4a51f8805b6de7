"""Lists of uploads, newest first, in pages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from tusd_py.database.rows import upload_from_row
from tusd_py.database.statements import UPLOAD_COLUMNS
from tusd_py.ports import ListPosition
from tusd_py.protocol.upload import State, Upload, UploadId

if TYPE_CHECKING:
    from tusd_py.database.pool import Database


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
