"""The places where uploads lie. Each has one row, which is never removed; an upload names it by its id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tusd_py.config.place import Place
from tusd_py.database.pool import Statement
from tusd_py.errors import StoreNotConfigured

if TYPE_CHECKING:
    from tusd_py.database.pool import Database

_COLUMNS: Final = "backend, endpoint, bucket, prefix, directory"
_VALUES: Final = ":backend, :endpoint, :bucket, :prefix, :directory"


class PlaceRecords:
    """Every place that was ever configured. Every method raises `DatabaseUnavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # What was stored before places were recorded lies in the one that has no name yet.
    CLAIM_UNNAMED: Final = Statement(
        f"""
        UPDATE store_places SET ({_COLUMNS}) = ({_VALUES}), first_used_at = now()
         WHERE backend IS NULL
        """  # noqa: S608
    )

    REGISTER: Final = Statement(
        f"""
        INSERT INTO store_places ({_COLUMNS}) SELECT {_VALUES}
         WHERE NOT EXISTS (SELECT 1 FROM store_places WHERE ({_COLUMNS}) = ({_VALUES}))
        ON CONFLICT DO NOTHING
        """  # noqa: S608
    )

    FIND: Final = Statement(f"SELECT id FROM store_places WHERE ({_COLUMNS}) = ({_VALUES})")  # noqa: S608

    # Whatever waited for its place to be configured need not wait for the time of its next try.
    MAKE_DUE: Final = Statement(
        """
        UPDATE jobs SET due_at = now() FROM uploads
         WHERE jobs.upload_id = uploads.id AND uploads.place_id = ANY (:place_ids::integer[])
           AND jobs.state = 'retry_wait' AND jobs.error_code = :code
        """
    )

    async def register(self, current: Place, former: Sequence[Place]) -> dict[Place, int]:
        """Return the ids of places, making those that are new.

        Uploads from before places were recorded lie in the first of `former`, else in `current`, of the
        first call.
        """
        ids = {}
        async with self._database.transaction() as connection:
            # A former place that is configured at the very first start is where earlier uploads lie.
            await connection.execute(*self.CLAIM_UNNAMED(**_row(former[0] if former else current)))
            for place in (current, *former):
                await connection.execute(*self.REGISTER(**_row(place)))
                ids[place] = await connection.fetchval(*self.FIND(**_row(place)))
            await connection.execute(*self.MAKE_DUE(place_ids=list(ids.values()), code=StoreNotConfigured.code))
        return ids

    ALL: Final = Statement(f"SELECT id, {_COLUMNS} FROM store_places WHERE backend IS NOT NULL")  # noqa: S608

    async def places(self) -> dict[int, Place]:
        """Return all places by their ids."""
        rows = await self._database.fetch(*self.ALL())
        return {row["id"]: Place(*(row[name] for name in _COLUMNS.split(", "))) for row in rows}


def _row(place: Place) -> dict[str, str]:
    return {name: getattr(place, name) for name in _COLUMNS.split(", ")}
