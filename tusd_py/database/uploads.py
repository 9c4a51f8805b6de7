"""Uploads in PostgreSQL. Each statement stands above the method that runs it.

The WHERE clauses are the fences: a writer that lost its place updates no row. Whatever must happen
together (offset, state, job, event) is one statement or one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tusd_py.crc64 import combine
from tusd_py.database.concatenation import (
    PARTIALS,
    database_time,
    link_partials,
    lock_partials,
    pending_finals,
    prolong_finals,
    promised_bytes,
    settle_final,
)
from tusd_py.database.finishing import COMPLETE, FINISH_SOON
from tusd_py.database.pool import Statement
from tusd_py.database.refusals import explained_collisions
from tusd_py.database.rows import columns_of, signed, upload_from_row
from tusd_py.database.statements import (
    COMPLETED_KIND,
    ENQUEUE_EAGER,
    FOLLOW_COMPLETION,
    IN_RECEIVING,
    RECORDED_COLUMNS,
    TRANSFER_COMPLETED,
    UPLOAD_COLUMNS,
    enqueue_finish,
    expires,
    record_events,
)
from tusd_py.database.termination import remove_upload
from tusd_py.errors import LengthConflict, OffsetConflict
from tusd_py.ports import NewUpload
from tusd_py.protocol.concat import join_partials, known_length, resolve_partials
from tusd_py.protocol.upload import Concat, State, TokenHash, Upload, UploadId

if TYPE_CHECKING:
    from tusd_py.database.notifier import Notifier, Transaction
    from tusd_py.database.pool import Database, Row
    from tusd_py.protocol.concat import Room


_NEW_UPLOAD: Final = f"""
changed CROSS JOIN LATERAL (VALUES ('upload.created', 1), ({COMPLETED_KIND}, 2)) AS fact (kind, sequence)
  WHERE fact.sequence <= changed.event_sequence
"""
_CREATED_BY: Final = "CASE fact.sequence WHEN 1 THEN :payload::jsonb ELSE '{}' END"
_FINISHES: Final = ":completes AND :new_offset = coalesce(upload_length, :length)"
_ASKS_FIRST: Final = ":finish_after::float8 IS NOT NULL"
_COMPLETES: Final = f"{_FINISHES} AND NOT {_ASKS_FIRST}"
_FINISH_AFTER: Final = "now() + make_interval(secs => :finish_after)"


class PostgresUploads:
    """The truth about uploads. Every method raises `DatabaseUnavailable` when it cannot be reached."""

    def __init__(
        self,
        database: Database,
        notifier: Notifier,
        *,
        max_size: int | None = None,
        eager_above: int | None = None,
        finish_after_seconds: float | None = None,
    ) -> None:
        """`max_size` bounds a final upload whose length becomes known only later.

        What is durable of an upload longer than `eager_above` bytes is sent early of its end.

        With `finish_after_seconds` no upload completes before the application was asked: `complete` does that. A
        worker asks so long after the last byte, unless it is complete by then.
        """
        self._database = database
        self._eager_above = eager_above
        self._notifier = notifier
        self._max_size = max_size
        self._finish_after_seconds = finish_after_seconds

    CREATE: Final = Statement(
        f"""
        WITH changed AS (
            INSERT INTO uploads (id, token_hash, owner, staging_id, state, upload_length, upload_offset, crc64nvme,
                                 metadata, concat, concat_header, filename, content_type, object_key,
                                 protocol, repr_digest, profile, trigger, content_encoding, content_language,
                                 place_id, expires_at, completed_at, finishing, event_sequence)
            VALUES (:id, :token_hash, :owner, :staging_id, :state, :length, :offset, :crc64nvme,
                    :metadata, :concat, :concat_header, :filename, :content_type, :object_key,
                    :protocol, :repr_digest, :profile, :trigger, :content_encoding, :content_language, :place_id,
                    CASE WHEN :state <> 'completed' AND NOT :finishing OR :concat::text = 'partial'
                         THEN {expires(":expires_after::float8")} END,
                    CASE WHEN :state = 'completed' THEN now() END, :finishing,
                    CASE WHEN :state = 'completed' THEN 2 ELSE 1 END)
            RETURNING {RECORDED_COLUMNS}
        ), {TRANSFER_COMPLETED}, {enqueue_finish(_FINISH_AFTER)},
        {record_events(_NEW_UPLOAD, "fact.kind", sequence="fact.sequence", payload=_CREATED_BY)}
        SELECT changed.*, EXISTS (SELECT FROM queued) AS wake_workers FROM changed
        """  # noqa: S608
    )

    async def create(self, new: NewUpload) -> Upload:
        """Insert a row; a complete one comes with its transfer job and event, or with its finish job."""
        with explained_collisions():
            (row,) = await self._notifier.run(*self._create_statement(new))
        self._notifier.notify_changed(new.id)
        return upload_from_row(row)

    def _create_statement(self, new: NewUpload) -> tuple[Any, ...]:
        columns = columns_of(new)
        finishing = new.state is State.COMPLETED and self._finish_after_seconds is not None
        if finishing:
            columns["state"] = State.UPLOADING if new.offset else State.CREATED
        return self.CREATE(**columns, finishing=finishing, finish_after=self._finish_after_seconds)

    FIND_BY_TOKEN: Final = Statement(f"SELECT {UPLOAD_COLUMNS} FROM uploads WHERE token_hash = :token_hash")  # noqa: S608

    async def find_by_token(self, token_hash: TokenHash) -> Upload | None:
        """Return the upload behind a tus URL, whatever its state."""
        row = await self._database.read(*self.FIND_BY_TOKEN(token_hash=token_hash))
        return upload_from_row(row) if row else None

    FIND: Final = Statement(f"SELECT {UPLOAD_COLUMNS} FROM uploads WHERE id = :id")  # noqa: S608

    async def find(self, upload_id: UploadId) -> Upload | None:
        """Return an upload by its public id, whatever its state."""
        row = await self._database.read(*self.FIND(id=upload_id))
        return upload_from_row(row) if row else None

    ADVANCE: Final = Statement(
        f"""
        WITH changed AS (
            UPDATE uploads
               SET upload_offset = :new_offset,
                   upload_length = coalesce(upload_length, :length),
                   crc64nvme = :crc64nvme,
                   state = CASE WHEN {_COMPLETES} THEN 'completed' ELSE 'uploading' END,
                   finishing = {_FINISHES} AND {_ASKS_FIRST},
                   completed_at = CASE WHEN {_COMPLETES} THEN now() END,
                   event_sequence = event_sequence + CASE WHEN {_COMPLETES} THEN 1 ELSE 0 END,
                   expires_at = CASE WHEN {_FINISHES} AND concat IS DISTINCT FROM 'partial' THEN NULL
                                     ELSE greatest(expires_at, {expires(":expires_after::float8")}) END,
                   updated_at = now()
             WHERE id = :id AND upload_offset = :old_offset AND writer = :writer AND :new_offset >= :old_offset
               AND state IN {IN_RECEIVING} AND concat IS DISTINCT FROM 'final' AND NOT finishing
            RETURNING {RECORDED_COLUMNS}
        ), {FOLLOW_COMPLETION}, {ENQUEUE_EAGER}, {enqueue_finish(_FINISH_AFTER)}
        SELECT changed.*, EXISTS (SELECT FROM queued) OR EXISTS (SELECT FROM sendable) AS wake_workers FROM changed
        """  # noqa: S608
    )

    async def advance(  # noqa: PLR0913 -- each is one fact of the row
        self,
        upload: Upload,
        new_offset: int,
        crc64nvme: int | None,
        *,
        expires_after_seconds: float,
        length: int | None = None,
        completes: bool = True,
    ) -> Upload:
        """Record that bytes [upload.offset, new_offset) are durable. Call only after a sync.

        `length` is recorded with it where the upload has none. Reaching the length completes the
        upload and queues its transfer in the same statement, unless `completes` is false. Where the application
        is asked first, it makes it `finishing` instead and queues its finish job.

        Raises:
            OffsetConflict: another writer moved the upload, or became its writer; nothing was changed.
        """
        statement = self.ADVANCE(
            id=upload.id,
            writer=upload.writer,
            old_offset=upload.offset,
            new_offset=new_offset,
            crc64nvme=signed(crc64nvme),
            length=length,
            completes=completes,
            expires_after=float(expires_after_seconds),
            eager_above=self._eager_above,
            finish_after=self._finish_after_seconds,
        )
        finals: list[UploadId] = []
        if upload.concat is None:
            rows = await self._notifier.run(*statement)
        else:
            rows, finals = await self._advance_partial(statement)
        if not rows:
            raise OffsetConflict(upload_id=str(upload.id), expected=upload.offset, new=new_offset)
        after = upload_from_row(rows[0])
        if after.state is not upload.state or after.finishing:
            self._notifier.notify_changed(after.id, *finals)
        if after.state is State.UPLOADING:
            self._notifier.notify_progress(after.id, after.offset, after.length)
        return after

    async def _advance_partial(self, statement: tuple[Any, ...]) -> tuple[list[Row], list[UploadId]]:
        """Advance a partial upload; return its row, and the finals that it completed or failed."""
        settled: list[UploadId] = []
        async with self._notifier.transaction() as transaction:
            rows = await transaction.run(*statement)
            for row in rows:
                await prolong_finals(transaction.connection, row)
                if row["state"] == State.COMPLETED:
                    settled += await self._settle_finals(transaction, row["id"])
        return rows, settled

    async def _settle_finals(self, transaction: Transaction, partial_id: UploadId) -> list[UploadId]:
        """Settle the finals that waited for this partial upload as the last one, and return them."""
        settled: list[UploadId] = []
        async for final_id, partials in pending_finals(transaction.connection, partial_id):
            joined = join_partials([upload_from_row(partial) for partial in partials], combine)
            if joined.complete:
                ask_first = self._finish_after_seconds is not None
                await settle_final(transaction, final_id, joined, max_size=self._max_size, ask_first=ask_first)
                settled.append(final_id)
        return settled

    async def complete(self, upload_id: UploadId) -> Upload | None:
        """Complete a finishing upload, with its event, its transfer job and the end of its finish job.

        Return it, or None if it is not finishing any more: it is complete already, or gone.
        """
        finals: list[UploadId] = []
        async with self._notifier.transaction() as transaction:
            rows = await transaction.run(*COMPLETE(upload_id=upload_id))
            for row in rows:
                if row["concat"] == Concat.PARTIAL:
                    await prolong_finals(transaction.connection, row)
                    finals = await self._settle_finals(transaction, upload_id)
        if not rows:
            return None
        self._notifier.notify_changed(upload_id, *finals)
        return upload_from_row(rows[0])

    async def finish_soon(self, upload: Upload, delay_seconds: float) -> None:
        """Have a worker ask about a finishing upload soon: the request that asked has got no answer."""
        await self._database.execute(*FINISH_SOON(upload_id=upload.id, delay_seconds=float(delay_seconds)))
        self._notifier.notify_workers(upload.staging_id)

    DECLARE_LENGTH: Final = Statement(
        f"""
        UPDATE uploads SET upload_length = :length, updated_at = now()
         WHERE id = :id AND state IN {IN_RECEIVING} AND (upload_length IS NULL OR upload_length = :length)
           AND upload_offset <= :length AND writer = :writer
        RETURNING {UPLOAD_COLUMNS}
        """  # noqa: S608
    )

    async def declare_length(self, upload: Upload, length: int) -> Upload:
        """Fix the length of an upload created without one. Raises `LengthConflict`."""
        row = await self._database.fetchrow(*self.DECLARE_LENGTH(id=upload.id, length=length, writer=upload.writer))
        if row is None:
            raise LengthConflict
        return upload_from_row(row)

    BECOME_WRITER: Final = Statement(
        f"""
        UPDATE uploads SET writer = writer + 1 WHERE id = :id AND state IN {IN_RECEIVING} RETURNING {UPLOAD_COLUMNS}
        """  # noqa: S608
    )

    async def become_writer(self, upload_id: UploadId) -> Upload | None:
        """Fence out all earlier writers and return the upload with the offset that is then final for them.

        None: it does not receive bytes any more. To be called by whoever holds the file and is about to cut it.
        """
        row = await self._database.fetchrow(*self.BECOME_WRITER(id=upload_id))
        return upload_from_row(row) if row else None

    async def create_final(
        self,
        new: NewUpload,
        tokens: Sequence[TokenHash],
        *,
        allow_unfinished: bool,
        allow_repeated: bool = False,
        room: Room | None = None,
    ) -> Upload:
        """Insert a final upload over the partial ones of these tokens, complete if they are.

        With `room` it must fit into that beside all finals that are not stored yet.

        Raises:
            InvalidConcat, PartialNotFinished, UploadTooLarge, StoreFull: nothing is created.
        """
        async with self._notifier.transaction() as transaction:
            connection = transaction.connection
            rows = await lock_partials(connection, tokens, in_turn_for=None if room is None else new.place_id)
            partials = resolve_partials(
                [None if row is None else upload_from_row(row) for row in rows],
                owner=new.owner,
                staging_id=new.staging_id,
                allow_unfinished=allow_unfinished,
                allow_repeated=allow_repeated,
                max_size=self._max_size,
                now=await database_time(connection),
            )
            if room is not None:
                room.check(known_length(partials), promised=await promised_bytes(connection, new.place_id))
            final = new.joined(join_partials(partials, combine))
            with explained_collisions():
                (row,) = await transaction.run(*self._create_statement(final))
            await link_partials(connection, row, [partial.id for partial in partials])
        self._notifier.notify_changed(new.id)
        return upload_from_row(row)

    async def partials(self, final_id: UploadId) -> list[Upload]:
        """Return the partial uploads of a final one in order."""
        return [upload_from_row(row) for row in await self._database.fetch(PARTIALS, final_id)]

    DAMAGE: Final = Statement(
        f"""
        UPDATE uploads SET error = :reason, updated_at = now() WHERE id = :id AND state IN {IN_RECEIVING}
        """  # noqa: S608
    )

    async def record_damage(self, upload_id: UploadId, reason: str) -> None:
        """Note that the staged bytes of an unfinished upload are damaged."""
        await self._database.execute(*self.DAMAGE(id=upload_id, reason=reason))

    async def remove(
        self, upload_id: UploadId, *, force: bool = False, request: Mapping[str, Any] | None = None
    ) -> Upload:
        """Make the upload gone for everybody and queue the removal of its bytes.

        `request` is what the event keeps of the client's request.

        With `force` a transfer under way is cancelled; the removal then waits until its worker has
        acknowledged that, or its lease has ended.

        Raises:
            UploadNotFound, UploadHeld, PartialInUse, TransferInProgress: nothing was changed.
        """
        async with self._notifier.transaction() as transaction:
            upload = upload_from_row(await remove_upload(transaction, upload_id, force=force, request=request))
        self._notifier.notify_changed(upload.id)
        return upload
