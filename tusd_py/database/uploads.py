"""Uploads in PostgreSQL. Each statement stands above the method that runs it.

The WHERE clauses are the fences: a writer that lost its place updates no row. Whatever must happen
together (offset, state, job, event) is one statement or one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from tusd_py.database.pool import Statement
from tusd_py.database.statements import (
    COMPLETED_KIND,
    ENQUEUE_EAGER,
    FOLLOW_COMPLETION,
    IN_RECEIVING,
    RECORDED_COLUMNS,
    TRANSFER_COMPLETED,
    UPLOAD_COLUMNS,
    expires,
    record_events,
)
from tusd_py.database.termination import remove_upload
from tusd_py.errors import LengthConflict, OffsetConflict
from tusd_py.ports import NewUpload
from tusd_py.protocol.checksum import DigestSet
from tusd_py.protocol.concat import join_partials, known_length, resolve_partials
from tusd_py.protocol.upload import Concat, State, TokenHash, Trigger, Upload, UploadId, UploadProtocol

if TYPE_CHECKING:
    from tusd_py.database.notifier import Notifier
    from tusd_py.database.pool import Database, Row
    from tusd_py.protocol.concat import Room

_STATES: Final = {state.value: state for state in State}
_PROTOCOLS: Final = {protocol.value: protocol for protocol in UploadProtocol}
_CONCATS: Final[dict[str | None, Concat | None]] = {None: None} | {concat.value: concat for concat in Concat}
_TRIGGERS: Final = {trigger.value: trigger for trigger in Trigger}


_NEW_UPLOAD: Final = f"""
changed CROSS JOIN LATERAL (VALUES ('upload.created', 1), ({COMPLETED_KIND}, 2)) AS fact (kind, sequence)
  WHERE fact.sequence <= changed.event_sequence
"""
_COMPLETES: Final = ":completes AND :new_offset = coalesce(upload_length, :length)"


class PostgresUploads:
    """The truth about uploads. Every method raises `DatabaseUnavailable` when it cannot be reached."""

    def __init__(
        self, database: Database, notifier: Notifier, *, max_size: int | None = None, eager_above: int | None = None
    ) -> None:
        """`max_size` bounds a final upload whose length becomes known only later.

        What is durable of an upload longer than `eager_above` bytes is sent early of its end.
        """
        self._database = database
        self._eager_above = eager_above
        self._notifier = notifier
        self._max_size = max_size

    CREATE: Final = Statement(
        f"""
        WITH changed AS (
            INSERT INTO uploads (id, token_hash, owner, staging_id, state, upload_length, upload_offset, crc64nvme,
                                 metadata, concat, concat_header, filename, content_type, object_key,
                                 protocol, repr_digest, profile, trigger, content_encoding, content_language,
                                 place_id, expires_at, completed_at, event_sequence)
            VALUES (:id, :token_hash, :owner, :staging_id, :state, :length, :offset, :crc64nvme,
                    :metadata, :concat, :concat_header, :filename, :content_type, :object_key,
                    :protocol, :repr_digest, :profile, :trigger, :content_encoding, :content_language, :place_id,
                    CASE WHEN :state <> 'completed' OR :concat::text = 'partial'
                         THEN {expires(":expires_after::float8")} END,
                    CASE WHEN :state = 'completed' THEN now() END, CASE WHEN :state = 'completed' THEN 2 ELSE 1 END)
            RETURNING {RECORDED_COLUMNS}
        ), {TRANSFER_COMPLETED}, {record_events(_NEW_UPLOAD, "fact.kind", sequence="fact.sequence")}
        SELECT changed.*, EXISTS (SELECT FROM queued) AS wake_workers FROM changed
        """  # noqa: S608
    )

    async def create(self, new: NewUpload) -> Upload:
        """Insert a row; a complete one comes with its transfer job and event."""
        (row,) = await self._notifier.run(*self.CREATE(**_columns_of(new)))
        self._notifier.notify_changed(new.id)
        return upload_from_row(row)

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
                   completed_at = CASE WHEN {_COMPLETES} THEN now() END,
                   event_sequence = event_sequence + CASE WHEN {_COMPLETES} THEN 1 ELSE 0 END,
                   expires_at = CASE WHEN {_COMPLETES} AND concat IS DISTINCT FROM 'partial' THEN NULL
                                     ELSE greatest(expires_at, {expires(":expires_after::float8")}) END,
                   updated_at = now()
             WHERE id = :id AND upload_offset = :old_offset AND writer = :writer AND :new_offset >= :old_offset
               AND state IN {IN_RECEIVING} AND concat IS DISTINCT FROM 'final'
            RETURNING {RECORDED_COLUMNS}
        ), {FOLLOW_COMPLETION}, {ENQUEUE_EAGER}
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
        upload and queues its transfer in the same statement, unless `completes` is false.

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
        )
        finals: list[UploadId] = []
        if upload.concat is None:
            rows = await self._notifier.run(*statement)
        else:
            rows, finals = await self._advance_partial(statement)
        if not rows:
            raise OffsetConflict(upload_id=str(upload.id), expected=upload.offset, new=new_offset)
        after = upload_from_row(rows[0])
        if after.state is not upload.state:
            self._notifier.notify_changed(after.id, *finals)
        return after

    async def _advance_partial(self, statement: tuple[Any, ...]) -> tuple[list[Row], list[UploadId]]:
        """Advance a partial upload; return its row, and the finals that it completed or failed."""
        settled: list[UploadId] = []
        async with self._notifier.transaction() as transaction:
            rows = await transaction.run(*statement)
            for row in rows:
                await prolong_finals(transaction.connection, row)
                if row["state"] != State.COMPLETED:
                    continue
                async for final_id, partials in pending_finals(transaction.connection, row["id"]):
                    joined = join_partials([upload_from_row(partial) for partial in partials], combine)
                    if joined.complete and joined.length is not None:
                        crc = signed(joined.crc64nvme)
                        await settle_final(transaction, final_id, joined.length, crc, max_size=self._max_size)
                        settled.append(final_id)
        return rows, settled

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
            (row,) = await transaction.run(*self.CREATE(**_columns_of(final)))
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

    async def remove(self, upload_id: UploadId, *, force: bool = False) -> Upload:
        """Make the upload gone for everybody and queue the removal of its bytes.

        With `force` a transfer under way is cancelled; the removal then waits until its worker has
        acknowledged that, or its lease has ended.

        Raises:
            UploadNotFound, UploadHeld, PartialInUse, TransferInProgress: nothing was changed.
        """
        async with self._notifier.transaction() as transaction:
            upload = upload_from_row(await remove_upload(transaction, upload_id, force=force))
        self._notifier.notify_changed(upload.id)
        return upload


def upload_from_row(row: Row) -> Upload:
    """Build an upload from a row that has `UPLOAD_COLUMNS`."""
    return Upload(
        id=row["id"],
        owner=row["owner"],
        staging_id=row["staging_id"],
        state=_STATES[row["state"]],
        length=row["upload_length"],
        offset=row["upload_offset"],
        metadata=row["metadata"],
        filename=row["filename"],
        content_type=row["content_type"],
        content_encoding=row["content_encoding"],
        content_language=row["content_language"],
        writer=row["writer"],
        concat=_CONCATS[row["concat"]],
        concat_header=row["concat_header"],
        crc64nvme=unsigned(row["crc64nvme"]),
        object_key=row["object_key"],
        local_present=row["local_present"],
        remote_present=row["remote_present"],
        hold=row["hold"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        expires_at=row["expires_at"],
        completed_at=row["completed_at"],
        committed_at=row["committed_at"],
        stored_at=row["stored_at"],
        etag=row["etag"],
        version_id=row["version_id"],
        place_id=row["place_id"],
        missing_at=row["missing_at"],
        sha256=row["sha256"],
        md5=row["md5"],
        error=row["error"],
        protocol=_PROTOCOLS[row["protocol"]],
        repr_digest=DigestSet.from_text(promised) if (promised := row["repr_digest"]) is not None else None,
        profile=row["profile"],
        trigger=_TRIGGERS[row["trigger"]],
    )


def signed(value: int | None) -> int | None:
    """Return an unsigned 64-bit number as the bigint with the same bits."""
    return value - (1 << 64) if value is not None and value >= 1 << 63 else value


def unsigned(value: int | None) -> int | None:
    """Return a bigint as the unsigned 64-bit number with the same bits."""
    return value + (1 << 64) if value is not None and value < 0 else value


def _columns_of(new: NewUpload) -> dict[str, Any]:
    """Return the arguments of `CREATE`."""
    return {
        "id": new.id,
        "token_hash": new.token_hash,
        "owner": new.owner,
        "staging_id": new.staging_id,
        "state": new.state,
        "length": new.length,
        "offset": new.offset,
        "crc64nvme": signed(new.crc64nvme),
        "metadata": new.metadata,
        "concat": new.concat,
        "concat_header": new.concat_header,
        "filename": new.filename,
        "content_type": new.content_type,
        "content_encoding": new.content_encoding,
        "content_language": new.content_language,
        "object_key": new.object_key,
        "place_id": new.place_id,
        "protocol": new.protocol,
        "repr_digest": None if new.repr_digest is None else new.repr_digest.to_text(),
        "profile": new.profile,
        "trigger": new.trigger,
        "expires_after": float(new.expires_after_seconds),
    }
