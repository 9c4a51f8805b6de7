"""Making an upload gone, whatever is happening to it at this moment.

The queue's statements lock a job before its upload, so this does as well; the other way round the
two would wait for each other. A transfer that holds its lease may still put the object into the
store. Its removal is therefore due when the lease ends, or earlier if the worker says that it has
stopped: nothing can come after it and bring the object back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from tusd_py.database.pool import Statement
from tusd_py.database.rows import payload_of
from tusd_py.database.statements import (
    DISOWN_LOCAL,
    LIVE,
    NEEDING_PARTIALS,
    NEXT_EVENT,
    RECORDED_COLUMNS,
    REMOVED_WHERE,
    UPLOAD_COLUMNS,
    enqueue,
    record_attempt,
    record_events,
)
from tusd_py.errors import InvalidTransition, PartialInUse, TransferInProgress, UploadHeld, UploadNotFound
from tusd_py.ports import JobKind
from tusd_py.protocol.upload import GONE, Concat, Event, State, UploadId, sources

if TYPE_CHECKING:
    from tusd_py.database.notifier import Transaction
    from tusd_py.database.pool import Connection, Row

LOCK_TRANSFER: Final = f"""
SELECT id, attempt, state = 'running' AS claimed, state = 'running' AND due_at > now() AS leased FROM jobs
 WHERE upload_id = $1 AND kind = 'transfer' AND state IN {LIVE} FOR NO KEY UPDATE
"""  # noqa: S608 -- only constants of this package are inserted, here and below
LOCK_UPLOAD: Final = f"SELECT {UPLOAD_COLUMNS} FROM uploads WHERE id = $1 FOR NO KEY UPDATE"  # noqa: S608
# These give way to whoever removes the upload: at once, or the next time they record something.
STOP_OTHERS: Final = f"""
UPDATE jobs SET cancel_requested = (state = 'running'),
                state = CASE state WHEN 'running' THEN state ELSE 'cancelled' END,
                finished_at = CASE state WHEN 'running' THEN finished_at ELSE now() END
 WHERE upload_id = $1 AND kind IN ('eager', 'finish') AND state IN {LIVE}
"""  # noqa: S608
# Not before the lease ends of a worker that was told to stop.
_AFTER_TRANSFER: Final = "coalesce((SELECT due_at FROM jobs WHERE id = :transfer_id AND cancel_requested), now())"
REMOVE: Final = Statement(f"""
WITH moved AS (
    UPDATE uploads SET state = 'removing', gone_at = now(), updated_at = now(), {NEXT_EVENT}
     WHERE id = :upload_id AND state = ANY (:states::text[])
    RETURNING {RECORDED_COLUMNS}
), {DISOWN_LOCAL}, {record_events("moved", "'upload.terminated'", payload=":payload::jsonb")}
{enqueue(JobKind.REMOVE, REMOVED_WHERE, due_at=_AFTER_TRANSFER)}
""")  # noqa: S608


async def remove_upload(
    transaction: Transaction, upload_id: UploadId, *, force: bool, request: Mapping[str, Any] | None
) -> Row:
    """Move an upload to `removing` and queue its removal, inside the caller's transaction.

    Returns the upload's row as it was.

    Raises:
        UploadNotFound, InvalidTransition, UploadHeld, PartialInUse, TransferInProgress.
    """
    connection = transaction.connection
    transfer = await connection.fetchrow(LOCK_TRANSFER, upload_id)
    await connection.execute(STOP_OTHERS, upload_id)
    upload = await connection.fetchrow(LOCK_UPLOAD, upload_id)
    if upload is None:
        raise UploadNotFound
    await _check(connection, upload)
    if transfer is None:
        transfer = await _transfer_just_queued(connection, upload_id)
    if transfer is not None:
        await _stop(connection, transfer, force=force)
    transfer_id = None if transfer is None else transfer["id"]
    statement = REMOVE(
        upload_id=upload_id, states=sources(Event.REMOVE), transfer_id=transfer_id, payload=payload_of(request)
    )
    await transaction.run(*statement)
    return upload


PARTIAL_IN_USE: Final = f"""
SELECT EXISTS (SELECT 1 FROM upload_parts link JOIN uploads final ON final.id = link.final_id
                WHERE link.part_id = $1 AND final.state IN {NEEDING_PARTIALS})
"""  # noqa: S608


async def _check(connection: Connection, upload: Row) -> None:
    if upload["state"] not in sources(Event.REMOVE):
        raise UploadNotFound if State(upload["state"]) in GONE else InvalidTransition
    if upload["hold"]:
        raise UploadHeld
    if upload["concat"] == Concat.PARTIAL and await connection.fetchval(PARTIAL_IN_USE, upload["id"]):
        raise PartialInUse


LOCK_NEW_TRANSFER: Final = f"{LOCK_TRANSFER} NOWAIT"


async def _transfer_just_queued(connection: Connection, upload_id: UploadId) -> Row | None:
    """Lock a transfer that was queued between the look at the jobs and the lock on the upload."""
    try:
        return await connection.fetchrow(LOCK_NEW_TRANSFER, upload_id)
    except asyncpg.LockNotAvailableError as error:
        # A worker claims it at this moment and waits for the upload that is locked here.
        raise TransferInProgress from error


CANCEL: Final = """
UPDATE jobs SET state = 'cancelled', finished_at = now() WHERE id = $1
"""
RECORD_LOST: Final = record_attempt("'lost'", "jobs WHERE id = $1", worker="worker")
REQUEST_CANCEL: Final = """
UPDATE jobs SET cancel_requested = true WHERE id = $1
"""


async def _stop(connection: Connection, transfer: Row, *, force: bool) -> None:
    if not transfer["leased"]:
        if transfer["claimed"]:
            await connection.execute(RECORD_LOST, transfer["id"])
        await connection.execute(CANCEL, transfer["id"])
    elif force:
        await connection.execute(REQUEST_CANCEL, transfer["id"])
    else:
        raise TransferInProgress
