"""Final uploads: an ordered list of partial ones, completed with the last of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from tusd_py.database.pool import Statement
from tusd_py.database.rows import signed
from tusd_py.database.statements import (
    FOLLOW_COMPLETION,
    IN_RECEIVING,
    NEEDING_PARTIALS,
    NEXT_EVENT,
    RECORDED_COLUMNS,
    UPLOAD_COLUMNS,
    enqueue,
    enqueue_finish,
    record_events,
    upload_columns,
)
from tusd_py.ports import JobKind
from tusd_py.protocol.upload import UploadId

if TYPE_CHECKING:
    from tusd_py.database.notifier import Transaction
    from tusd_py.database.pool import Connection, Row
    from tusd_py.protocol.concat import Joined
    from tusd_py.protocol.upload import TokenHash


# Of two finals that are created at the same time, the second counts what the first was promised. Locked before
# any row.
ONE_AT_A_TIME: Final = "SELECT pg_advisory_xact_lock(1953854308, $1)"
# Locked against an append that completes a partial upload, and a cleanup that expires one, between this look
# and the final's own row. Exclusively, since KEEP_PARTIALS would have to raise a shared lock: of two finals
# made of the same partial uploads at once, each would wait for the other.
LOCK_PARTIALS: Final = f"""
SELECT token_hash, {UPLOAD_COLUMNS} FROM uploads
 WHERE token_hash = ANY ($1::bytea[]) ORDER BY id FOR NO KEY UPDATE
"""  # noqa: S608 -- only constants of this package are inserted, here and below


async def lock_partials(
    connection: Connection, tokens: Sequence[TokenHash], *, in_turn_for: int | None
) -> list[Row | None]:
    """Lock the partial uploads of a final one; return their rows in its order, None for those that do not exist.

    `in_turn_for` is the place whose room is then checked: only one final upload at a time is.
    """
    if in_turn_for is not None:
        await connection.execute(ONE_AT_A_TIME, in_turn_for)
    rows = {bytes(row["token_hash"]): row for row in await connection.fetch(LOCK_PARTIALS, set(tokens))}
    return [rows.get(token) for token in tokens]


NOW: Final = "SELECT now()"


async def database_time(connection: Connection) -> datetime:
    """Return when this transaction began, by the database's clock."""
    began: datetime = await connection.fetchval(NOW)
    return began


# Finals share their partial uploads in staging, but each is a whole object in the store.
PROMISED: Final = f"""
SELECT coalesce(sum(upload_length), 0)::bigint FROM uploads
 WHERE place_id = $1 AND concat = 'final' AND state IN {NEEDING_PARTIALS}
"""  # noqa: S608


async def promised_bytes(connection: Connection, place_id: int) -> int:
    """Return how many bytes all final uploads in a place will have that are not stored yet."""
    promised: int = await connection.fetchval(PROMISED, place_id)
    return promised


LINK_PARTIALS: Final = """
INSERT INTO upload_parts (final_id, position, part_id)
SELECT $1, position - 1, part_id FROM unnest($2::uuid[]) WITH ORDINALITY AS part (part_id, position)
"""
# A partial upload must not expire before the final that waits for it.
KEEP_PARTIALS: Final = """
UPDATE uploads SET expires_at = greatest(expires_at, $2) WHERE id = ANY ($1::uuid[]) AND expires_at < $2
"""


async def link_partials(connection: Connection, final: Row, partial_ids: Sequence[UploadId]) -> None:
    """Record in their order of which partial uploads a final one is made, and keep them for as long as it."""
    await connection.execute(LINK_PARTIALS, final["id"], partial_ids)
    if final["expires_at"] is not None:
        await connection.execute(KEEP_PARTIALS, partial_ids, final["expires_at"])


# While a partial upload receives bytes, the finals that wait for it stay as well.
PROLONG_FINALS: Final = f"""
UPDATE uploads SET expires_at = $2
 WHERE id IN (SELECT id FROM uploads
               WHERE id IN (SELECT final_id FROM upload_parts WHERE part_id = $1) AND state IN {IN_RECEIVING}
                 AND expires_at < $2
               ORDER BY id FOR NO KEY UPDATE)
"""  # noqa: S608


async def prolong_finals(connection: Connection, partial: Row) -> None:
    """Keep the finals that wait for this partial upload at least as long as itself."""
    if partial["expires_at"] is not None:
        await connection.execute(PROLONG_FINALS, partial["id"], partial["expires_at"])


PENDING_FINALS: Final = f"""
SELECT {UPLOAD_COLUMNS} FROM uploads
 WHERE id IN (SELECT final_id FROM upload_parts WHERE part_id = $1) AND state IN {IN_RECEIVING} AND NOT finishing
 ORDER BY id FOR NO KEY UPDATE
"""  # noqa: S608
PARTIALS: Final = f"""
SELECT {upload_columns("part")} FROM upload_parts link JOIN uploads part ON part.id = link.part_id
 WHERE link.final_id = $1 ORDER BY link.position
"""  # noqa: S608


async def pending_finals(connection: Connection, partial_id: UUID) -> AsyncIterator[tuple[UploadId, list[Row]]]:
    """Yield each final upload that waits for this partial one, locked, and the rows of all its partial uploads."""
    for final in await connection.fetch(PENDING_FINALS, partial_id):
        # Read after the final is locked: of two partial uploads that finish at once, the second sees both.
        yield UploadId(final["id"]), await connection.fetch(PARTIALS, final["id"])


COMPLETE_FINAL: Final = Statement(f"""
WITH changed AS (
    UPDATE uploads
       SET upload_length = :length, upload_offset = :length, crc64nvme = :crc64nvme, finishing = :ask_first,
           state = CASE WHEN :ask_first THEN state ELSE 'completed' END,
           completed_at = CASE WHEN NOT :ask_first THEN now() END,
           event_sequence = event_sequence + (NOT :ask_first)::int,
           expires_at = NULL, updated_at = now()
     WHERE id = :id AND state IN {IN_RECEIVING}
    RETURNING {RECORDED_COLUMNS}
), {FOLLOW_COMPLETION}, {enqueue_finish("now()")}
SELECT staging_id, wake_workers FROM queued UNION ALL SELECT staging_id, wake_workers FROM asked
""")  # noqa: S608
FAIL_FINAL: Final = f"""
WITH moved AS (
    UPDATE uploads SET state = 'expired', error = $2, gone_at = now(), updated_at = now(), {NEXT_EVENT}
     WHERE id = $1 AND state IN {IN_RECEIVING}
    RETURNING {RECORDED_COLUMNS}
), {record_events("moved", "'upload.expired'")}
{enqueue(JobKind.REMOVE, "moved")}
"""  # noqa: S608


async def settle_final(
    transaction: Transaction, final_id: UploadId, joined: Joined, *, max_size: int | None, ask_first: bool
) -> None:
    """Complete a final upload whose partial uploads are complete; one that is too large expires.

    With `ask_first` its finish job does that, once the application was asked: no request is about this upload.
    """
    length, crc64nvme = joined.length, signed(joined.crc64nvme)
    if max_size is not None and length is not None and length > max_size:
        await transaction.run(FAIL_FINAL, final_id, "the parts together are larger than max_size")
    else:
        statement = COMPLETE_FINAL(id=final_id, length=length, crc64nvme=crc64nvme, ask_first=ask_first)
        await transaction.run(*statement)
