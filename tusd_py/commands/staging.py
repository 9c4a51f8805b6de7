"""`tusd-py staging adopt`: bind the staging directory to the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tusd_py.app import adopt, make_records, plan_adoption
from tusd_py.protocol.upload import StagingId

if TYPE_CHECKING:
    from tusd_py.config import Config


async def adopt_staging(
    config: Config, wanted: StagingId | None, *, confirm: Callable[[], bool], say: Callable[[str], None]
) -> bool:
    """Report what is in the staging directory and whose it is; if confirmed, bind it to the database.

    Raises:
        StagingMismatch, StorageError, DatabaseUnavailable: nothing was changed.
    """
    records = make_records(config)
    await records.database.open()
    try:
        adoption = await plan_adoption(records, wanted)
        for line in adoption.describe():
            say(line)
        if not confirm():
            say('nothing was changed; run it with "--yes" to continue')
            return False
        await adopt(records, adoption)
        say(f"the staging directory has the id {adoption.chosen}; restart the servers that use it")
        return True
    finally:
        await records.database.close()
