"""Final uploads: an ordered list of partial ones, completed with the last of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from tusd_py.crc64 import combine
from tusd_py.database.rows import UPLOAD_COLUMNS, signed, upload_columns, upload_from_row
from tusd_py.database.statements import (
    CREATE,
    FOLLOW_COMPLETION,
    IN_RECEIVING,
    NEEDING_PARTS,
    create_arguments,
    enqueue,
)
from tusd_py.ports import JobKind
from tusd_py.protocol.concat import Joined, join_parts, known_length, resolve_parts
from tusd_py.protocol.upload import UploadId

if TYPE_CHECKING:
    from tusd_py.database.pool import Connection
    from tusd_py.ports import NewUpload
    from tusd_py.protocol.concat import Room
    from tusd_py.protocol.upload import TokenHash, Upload

# Locked against an append that completes a part, and a cleanup that expires one, between this look and
# the final's own row. Exclusively, since KEEP_PARTS would have to raise a shared lock: of two finals
# made of the same parts at once, each would wait for the other.
LOCK_PARTS: Final = f"""
SELECT token_hash, {UPLOAD_COLUMNS} FROM uploads
 WHERE token_hash = ANY ($1::bytea[]) ORDER BY id FOR NO KEY UPDATE
"""  # noqa: S608 -- only constants of this package are inserted, here and below
# Finals share their parts in staging, but each is a whole object in the store.
PROMISED: Final = f"""
SELECT coalesce(sum(upload_length), 0)::bigint FROM uploads
 WHERE place_id = $1 AND concat = 'final' AND state IN {NEEDING_PARTS}
"""  # noqa: S608
# Of two that look at the same time at what is promised, the second sees the first. Taken before any row.
ONE_AT_A_TIME: Final = "SELECT pg_advisory_xact_lock(1953854308, $1)"
LINK_PARTS: Final = """
INSERT INTO upload_parts (final_id, position, part_id)
SELECT $1, position - 1, part_id FROM unnest($2::uuid[]) WITH ORDINALITY AS part (part_id, position)
"""
# A part must not expire before the final that waits for it.
KEEP_PARTS: Final = """
UPDATE uploads SET expires_at = greatest(expires_at, $2) WHERE id = ANY ($1::uuid[]) AND expires_at < $2
"""
# While a part receives bytes, the finals that wait for it stay as well.
PROLONG_FINALS: Final = f"""
UPDATE uploads SET expires_at = $2
 WHERE id IN (SELECT id FROM uploads
               WHERE id IN (SELECT final_id FROM upload_parts WHERE part_id = $1) AND state IN {IN_RECEIVING}
                 AND expires_at < $2
               ORDER BY id FOR NO KEY UPDATE)
"""  # noqa: S608
PARTS: Final = f"""
SELECT {upload_columns("part")} FROM upload_parts link JOIN uploads part ON part.id = link.part_id
 WHERE link.final_id = $1 ORDER BY link.position
"""  # noqa: S608
PENDING_FINALS: Final = f"""
SELECT {UPLOAD_COLUMNS} FROM uploads
 WHERE id IN (SELECT final_id FROM upload_parts WHERE part_id = $1) AND state IN {IN_RECEIVING}
 ORDER BY id FOR NO KEY UPDATE
"""  # noqa: S608
COMPLETE_FINAL: Final = f"""
WITH changed AS (
    UPDATE uploads
       SET upload_length = $2, upload_offset = $2, crc64nvme = $3, state = 'completed',
           completed_at = now(), expires_at = NULL, updated_at = now()
     WHERE id = $1 AND state IN {IN_RECEIVING}
    RETURNING {UPLOAD_COLUMNS}
), {FOLLOW_COMPLETION}
SELECT * FROM changed
"""  # noqa: S608
FAIL_FINAL: Final = f"""
WITH moved AS (
    UPDATE uploads SET state = 'expired', error = $2, gone_at = now(), updated_at = now()
     WHERE id = $1 AND state IN {IN_RECEIVING}
    RETURNING id, staging_id
)
{enqueue(JobKind.REMOVE, "moved")}
"""  # noqa: S608
NOW: Final = "SELECT now()"


async def create_final(  # noqa: PLR0913 -- the rules that hold, and the room there is
    connection: Connection,
    new: NewUpload,
    tokens: Sequence[TokenHash],
    *,
    allow_unfinished: bool,
    allow_repeated: bool,
    max_size: int | None,
    room: Room | None,
) -> Upload:
    """Insert a final upload and its list of parts, inside the caller's transaction.

    Raises:
        InvalidConcat, PartialNotFinished, UploadTooLarge: see `resolve_parts`; nothing is created.
        StoreFull, UploadTooLarge: the store has no `room` for them.
    """
    if room is not None:
        await connection.execute(ONE_AT_A_TIME, new.place_id)
    found = {bytes(row["token_hash"]): upload_from_row(row) for row in await connection.fetch(LOCK_PARTS, set(tokens))}
    parts = resolve_parts(
        [found.get(token) for token in tokens],
        owner=new.owner,
        staging_id=new.staging_id,
        allow_unfinished=allow_unfinished,
        allow_repeated=allow_repeated,
        max_size=max_size,
        now=await connection.fetchval(NOW),
    )
    if room is not None:
        room.check(known_length(parts), promised=await connection.fetchval(PROMISED, new.place_id))
    joined = join_parts(parts, combine)
    row = await connection.fetchrow(CREATE, *create_arguments(new.joined(joined)))
    assert row is not None  # an INSERT … RETURNING either raises or answers its row
    await connection.execute(LINK_PARTS, new.id, [part.id for part in parts])
    if row["expires_at"] is not None:
        await connection.execute(KEEP_PARTS, [part.id for part in parts], row["expires_at"])
    return upload_from_row(row)


async def prolong_finals(connection: Connection, part_id: UUID, expires_at: datetime | None) -> None:
    """Keep the finals that wait for this part at least as long as the part itself."""
    if expires_at is not None:
        await connection.execute(PROLONG_FINALS, part_id, expires_at)


async def complete_finals(connection: Connection, part_id: UUID, *, max_size: int | None) -> list[UploadId]:
    """Complete every final upload that waited for this part alone, inside the caller's transaction.

    Returns those that are complete now, or failed.
    """
    settled = []
    for final_row in await connection.fetch(PENDING_FINALS, part_id):
        # Read after the final is locked: of two parts that finish at once, the second sees both.
        joined = join_parts([upload_from_row(row) for row in await connection.fetch(PARTS, final_row["id"])], combine)
        if joined.complete:
            await _settle(connection, final_row["id"], joined, max_size)
            settled.append(UploadId(final_row["id"]))
    return settled


async def _settle(connection: Connection, final_id: UUID, joined: Joined, max_size: int | None) -> None:
    if max_size is not None and joined.length is not None and joined.length > max_size:
        await connection.execute(FAIL_FINAL, final_id, "the parts together are larger than max_size")
    else:
        await connection.fetchrow(COMPLETE_FINAL, final_id, joined.length, signed(joined.crc64nvme))
