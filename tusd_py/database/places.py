"""The places where uploads lie. Each has one row, which is never removed; an upload names it by its id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tusd_py.config.place import Place
from tusd_py.errors import StoreNotConfigured

if TYPE_CHECKING:
    from tusd_py.database.pool import Database

_COLUMNS: Final = "backend, endpoint, bucket, prefix, directory"
# What was stored before places were recorded lies in the one that has no name yet.
CLAIM_UNNAMED: Final = """
UPDATE store_places SET backend = $1, endpoint = $2, bucket = $3, prefix = $4, directory = $5, first_used_at = now()
 WHERE backend IS NULL
"""
REGISTER: Final = f"""
INSERT INTO store_places ({_COLUMNS}) SELECT $1, $2, $3, $4, $5
 WHERE NOT EXISTS (SELECT 1 FROM store_places WHERE ({_COLUMNS}) = ($1, $2, $3, $4, $5))
ON CONFLICT DO NOTHING
"""  # noqa: S608 -- only constants of this module are inserted, here and below
FIND: Final = f"SELECT id FROM store_places WHERE ({_COLUMNS}) = ($1, $2, $3, $4, $5)"  # noqa: S608
ALL: Final = f"SELECT id, {_COLUMNS} FROM store_places WHERE backend IS NOT NULL"  # noqa: S608
# Whatever waited for its place to be configured need not wait for the time of its next try.
HASTEN: Final = """
UPDATE jobs SET due_at = now() FROM uploads
 WHERE jobs.upload_id = uploads.id AND uploads.place_id = ANY ($1::integer[])
   AND jobs.state = 'retry_wait' AND jobs.error_code = $2
"""


class PlaceRecords:
    """Every place that was ever configured. Every method raises `DatabaseUnavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, current: Place, former: Sequence[Place]) -> dict[Place, int]:
        """Return the ids of places, making those that are new.

        Uploads from before places were recorded lie in the first of `former`, else in `current`, of the
        first call.
        """
        ids = {}
        async with self._database.transaction() as connection:
            # A former place that is configured at the very first start is where earlier uploads lie.
            await connection.execute(CLAIM_UNNAMED, *_row(former[0] if former else current))
            for place in (current, *former):
                await connection.execute(REGISTER, *_row(place))
                ids[place] = await connection.fetchval(FIND, *_row(place))
            await connection.execute(HASTEN, list(ids.values()), StoreNotConfigured.code)
        return ids

    async def places(self) -> dict[int, Place]:
        """Return all places by their ids."""
        rows = await self._database.fetch(ALL)
        return {row["id"]: Place(*(row[name] for name in _COLUMNS.split(", "))) for row in rows}


def _row(place: Place) -> tuple[str, str, str, str, str]:
    return place.backend, place.endpoint, place.bucket, place.prefix, place.directory
