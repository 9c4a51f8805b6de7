"""What can be done with an upload: create, ask, append, terminate, locate.

Each use-case authorises first, before a byte of a body is read and before anything is locked.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.errors import (
    BodyError,
    ChecksumMismatch,
    DatabaseUnavailable,
    EmptyPatchLimit,
    NotReady,
    StagingDamaged,
    StagingMissing,
    TusdError,
    UploadGone,
    UploadNotFound,
)
from tusd_py.policy import Intent, Principal, permits
from tusd_py.ports import NewUpload, Segment
from tusd_py.protocol.checksum import Checksum
from tusd_py.protocol.commands import Append, Create
from tusd_py.protocol.fields import is_upload_token
from tusd_py.protocol.metadata import text_value
from tusd_py.protocol.upload import RECEIVING, Concat, State, TokenHash, Upload, UploadId
from tusd_py.services.append import Appender
from tusd_py.services.buffers import AppendSettings, Block
from tusd_py.services.reception import orphan_seconds
from tusd_py.services.waiting import until_free

if TYPE_CHECKING:
    from tusd_py.ports import Body, Staging, TransferView, UploadLocks, UploadRepository

log = structlog.get_logger(__name__)

TOKEN_BYTES: Final = 24
"""192 random bits: nobody finds a tus URL by trying."""
MAX_COUNTED_UPLOADS: Final = 10_000
HIDDEN_IN_LISTS: Final = (State.EXPIRED, State.REMOVING, State.REMOVED)


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """What the use-cases need to know of the configuration."""

    node: str
    key_template: str
    append: AppendSettings
    allow_unfinished_parts: bool
    max_empty_patches: int
    gone_status: int
    create_scope: str
    read_any_scope: str


@dataclass(frozen=True, slots=True)
class Created:
    """A new upload and the token of its URL, which is told once and not kept."""

    upload: Upload
    token: str


@dataclass(frozen=True, slots=True)
class Staged:
    """The bytes are in staging, in these files and this order."""

    upload: Upload
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """The bytes are in the store."""

    upload: Upload


def hash_token(token: str) -> TokenHash:
    """Answer what the database knows of a token."""
    return TokenHash(hashlib.sha256(token.encode("ascii")).digest())


def render_key(template: str, upload_id: UploadId, owner: str | None, now: datetime) -> str:
    """Render an object key: our ids and dates only, never anything a client chose."""
    owner_hash = hashlib.sha256((owner or "").encode()).hexdigest()[:16]
    return template.format(id=upload_id, yyyy=f"{now:%Y}", mm=f"{now:%m}", dd=f"{now:%d}", owner_hash=owner_hash)


class UploadService:
    """The use-cases. Knows no HTTP, no SQL and no adapter."""

    def __init__(
        self, uploads: UploadRepository, staging: Staging, locks: UploadLocks, settings: UploadSettings
    ) -> None:
        self._uploads = uploads
        self._staging = staging
        self._locks = locks
        self._settings = settings
        self._appender = Appender(uploads, staging, locks, settings.append)
        self._empty_patches: dict[UploadId, int] = {}

    # --- create ------------------------------------------------------------------------------------

    def permit(self, principal: Principal, intent: Intent, owner: str | None = None) -> None:
        """Raise unless `principal` may do this; see `policy.permits`."""
        permits(
            principal,
            intent,
            owner,
            create_scope=self._settings.create_scope,
            read_any_scope=self._settings.read_any_scope,
        )

    async def create(self, principal: Principal, command: Create, body: Body) -> Created:
        """Create an upload, with the bytes that came along.

        Raises:
            AccessError, ProtocolError, StagingFull: nothing was created.
            BodyError: bytes that came along were cut short; what arrived of a large body is kept.
        """
        self.permit(principal, Intent.CREATE)
        if command.unwanted_body is not None:
            await self._demand_no_byte(body, command.unwanted_body)
        self._staging.check_space(command.length or 0)
        new, token = self._new_upload(principal, command)
        if command.concat is Concat.FINAL:
            upload = await self._uploads.create_final(
                new,
                [hash_token(part) if is_upload_token(part) else TokenHash(b"") for part in command.parts],
                allow_unfinished=self._settings.allow_unfinished_parts,
            )
        elif command.has_body:
            upload = await self._create_with_body(new, command, body)
        else:
            upload = await self._create_empty(new)
        log.debug("upload_created", upload_id=str(upload.id), length=upload.length, offset=upload.offset)
        return Created(upload, token)

    @staticmethod
    async def _demand_no_byte(body: Body, refusal: TusdError) -> None:
        await body.accept()
        if await body.read():
            raise refusal

    def _new_upload(self, principal: Principal, command: Create) -> tuple[NewUpload, str]:
        upload_id = self._staging.new_id()
        token = secrets.token_urlsafe(TOKEN_BYTES)
        new = NewUpload(
            id=upload_id,
            token_hash=hash_token(token),
            owner=principal.subject,
            node=self._settings.node,
            length=command.length,
            metadata=command.metadata,
            filename=text_value(command.pairs, "filename", "name"),
            content_type=text_value(command.pairs, "filetype", "type", "content_type"),
            concat=command.concat,
            concat_header=command.concat_header,
            object_key=render_key(self._settings.key_template, upload_id, principal.subject, datetime.now(UTC)),
            expires_after_seconds=self._settings.append.expires_after_seconds,
        )
        return new, token

    async def _create_empty(self, new: NewUpload) -> Upload:
        if new.length != 0:
            return await self._uploads.create(new)
        # Complete at once: the transfer finds an empty file, like any other.
        return await self._create_stored(new, [])

    async def _create_with_body(self, new: NewUpload, command: Create, body: Body) -> Upload:
        with self._appender.budget as budget:
            small = command.content_length is not None and command.content_length <= budget.block_bytes
            if small and not command.checksum_in_trailer:
                return await self._create_small(new, command, body)
        return await self._create_streamed(new, command, body)

    async def _create_small(self, new: NewUpload, command: Create, body: Body) -> Upload:
        """Receive first and record once. A body that is cut short leaves nothing behind.

        Nobody has been told the URL yet, so nobody could resume what would be kept.
        """
        await body.accept()
        block = Block()
        while chunk := await body.read():
            block.append(chunk)
        if command.checksum is not None:
            await asyncio.to_thread(_verify, command.checksum, block.chunks)
        return await self._create_stored(new, block.chunks)

    async def _create_stored(self, new: NewUpload, chunks: Sequence[bytes | memoryview]) -> Upload:
        crc = await self._staging.store_small(new.id, chunks)
        try:
            return await self._uploads.create(_with_bytes(new, sum(map(len, chunks)), crc))
        except (DatabaseUnavailable, asyncio.CancelledError):
            # The row may have been written before the connection went away; the sweep finds out.
            raise
        except BaseException:
            await asyncio.shield(self._staging.remove([new.id]))
            raise

    async def _create_streamed(self, new: NewUpload, command: Create, body: Body) -> Upload:
        orphaned = replace(new, expires_after_seconds=orphan_seconds(self._settings.append))
        upload = await self._uploads.create(orphaned)
        append = Append(
            offset=0,
            content_length=command.content_length,
            checksum=command.checksum,
            checksum_in_trailer=command.checksum_in_trailer,
            url_unknown=True,
        )
        try:
            return await self._appender.append(upload, append, body, partial(self._reload, upload.id))
        except TusdError as error:
            if not isinstance(error, BodyError) or command.checksum or command.checksum_in_trailer:
                # Refused as a whole: the client gets no URL, so nothing may stay behind.
                with contextlib.suppress(TusdError):
                    await self._uploads.remove(upload.id)
            raise

    # --- ask, append, terminate ------------------------------------------------------------------

    async def status(self, principal: Principal, token: str) -> Upload:
        """Answer the upload with its true offset: a request that still writes is ended first.

        Raises:
            UploadNotFound, UploadGone, AccessError: for this client there is no such upload.
            UploadLocked: the writer did not let go in time.
            StagingDamaged: acknowledged bytes are not in staging any more.
        """
        upload = await self.load(principal, token, Intent.HEAD)
        if upload.state not in RECEIVING or upload.concat is Concat.FINAL:
            return upload
        if self._locks.held(upload.id):
            async with self._locks.hold(upload.id, _no_body):
                return await self._settled(await self._reload(upload.id))
        return await self._settled(upload)

    async def _settled(self, upload: Upload) -> Upload:
        """Answer the upload once no other process writes to it."""
        if upload.state not in RECEIVING:
            return upload
        size = self._staging.probe(upload.id)
        if size is None:
            await self._wait_for_other_process(upload)
        elif size == upload.offset:
            return upload
        upload = await self._reload(upload.id)
        if upload.state in RECEIVING and (self._staging.probe(upload.id) or 0) < upload.offset:
            raise StagingDamaged(upload_id=str(upload.id), expected=upload.offset)
        return upload

    async def _wait_for_other_process(self, upload: Upload) -> None:
        async def attempt() -> int | None:
            return self._staging.probe(upload.id)

        timeout = self._settings.append.lock_timeout_seconds
        await until_free(self._locks, upload.id, attempt, timeout_seconds=timeout)

    async def append(self, principal: Principal, token: str, parse: Callable[[], Append], body: Body) -> Upload:
        """Append a body. `parse` runs after the upload was found, as the order of checks demands.

        Raises:
            see `status` and `Appender.append`; `error.upload` tells where the upload stands.
        """
        upload = await self.load(principal, token, Intent.WRITE)
        if upload.concat is Concat.FINAL:
            append = Append(offset=upload.offset, content_length=0)
        else:
            append = self._parse(parse, upload)
        if append.content_length:
            self._check_space(upload, append.content_length)
        after = await self._appender.append(upload, append, body, partial(self._reload, upload.id))
        if after.complete and not upload.complete:
            log.info("upload_completed", upload_id=str(after.id), length=after.length)
        self._limit_empty_patches(after, moved=after.offset != append.offset)
        return after

    @staticmethod
    def _parse(parse: Callable[[], Append], upload: Upload) -> Append:
        try:
            return parse()
        except TusdError as error:
            error.upload = upload
            raise

    def _check_space(self, upload: Upload, wanted: int) -> None:
        try:
            self._staging.check_space(wanted)
        except TusdError as error:
            error.upload = upload
            raise

    def _limit_empty_patches(self, upload: Upload, *, moved: bool) -> None:
        """Stop clients that ask for ever without sending anything, which released ones do.

        Counted by what arrived and not by Content-Length, which a chunked body lacks.
        """
        count = self._empty_patches.pop(upload.id, 0) + 1
        if moved:
            return
        if count > self._settings.max_empty_patches:
            error = EmptyPatchLimit()
            error.upload = upload
            raise error
        self._empty_patches[upload.id] = count
        if len(self._empty_patches) > MAX_COUNTED_UPLOADS:
            del self._empty_patches[next(iter(self._empty_patches))]

    async def terminate(self, principal: Principal, token: str) -> None:
        """Make an upload gone for everybody; its bytes are removed in the background.

        A request that still writes to it is ended first and cannot bring it back.

        Raises:
            UploadNotFound, UploadGone, AccessError, UploadHeld, PartInUse, TransferInProgress.
        """
        upload = await self.load(principal, token, Intent.TERMINATE)
        if upload.state not in RECEIVING:
            await self._uploads.remove(upload.id)
        else:
            async with self._locks.hold(upload.id, _no_body):
                if self._staging.probe(upload.id) is None:
                    await self._wait_for_other_process(upload)
                await self._uploads.remove(upload.id)
        log.info("upload_terminated", upload_id=str(upload.id), state=upload.state.value)

    # --- read --------------------------------------------------------------------------------------

    async def load(self, principal: Principal, token: str, intent: Intent) -> Upload:
        """Answer the upload behind a tus URL, for somebody who may use it so.

        Raises:
            UploadNotFound, UploadGone, AccessError.
        """
        upload = await self._uploads.find_by_token(hash_token(token)) if is_upload_token(token) else None
        return self._usable(upload, principal, intent)

    async def view(self, principal: Principal, upload_id: UploadId, intent: Intent) -> Upload:
        """Answer an upload by its public id, for somebody who may see it; gone ones as well."""
        upload = await self._uploads.find(upload_id)
        self._permit_on(upload, principal, intent)
        if upload is None:
            raise UploadNotFound
        return upload

    async def newest(self, principal: Principal, *, before: datetime | None, limit: int) -> Sequence[Upload]:
        """Answer the newest uploads that `principal` may see."""
        owner = principal.subject
        if not principal.anonymous:
            self.permit(principal, Intent.LIST, owner)
        return await self._uploads.newest(owner, before=before, limit=limit, hide=HIDDEN_IN_LISTS)

    async def transfer_view(self, upload: Upload) -> TransferView | None:
        """Answer how the transfer of an upload stands."""
        return None if upload.state in RECEIVING else await self._uploads.transfer_view(upload.id)

    async def refresh(self, upload_id: UploadId) -> Upload:
        """Answer the upload as it stands now, for somebody who was permitted already."""
        return await self._reload(upload_id)

    async def locate(self, upload: Upload) -> Staged | Stored:
        """Answer where a complete upload's bytes are.

        Raises:
            NotReady: bytes are still missing.
            UploadNotFound, UploadGone: nothing can be served any more.
            StagingMissing: the bytes ought to be in staging and are not.
        """
        if upload.gone(datetime.now(UTC)):
            raise self._gone()
        if upload.state in RECEIVING:
            raise NotReady
        if upload.state is State.STORED and upload.remote_present:
            return Stored(upload)
        if not upload.local_present:
            raise StagingMissing(upload_id=str(upload.id))
        return Staged(upload, tuple(await self.segments(upload)))

    async def segments(self, upload: Upload) -> list[Segment]:
        """Answer the staged files that make up an upload, in order."""
        sources = await self._uploads.parts(upload.id) if upload.concat is Concat.FINAL else [upload]
        return [Segment(self._staging.path(source.id), source.offset) for source in sources]

    def _usable(self, upload: Upload | None, principal: Principal, intent: Intent) -> Upload:
        self._permit_on(upload, principal, intent)
        if upload is None:
            raise UploadNotFound
        if upload.gone(datetime.now(UTC)):
            raise self._gone()
        return upload

    def _permit_on(self, upload: Upload | None, principal: Principal, intent: Intent) -> None:
        # An unknown upload is checked as one's own: an invalid token is told so, everybody else gets 404.
        self.permit(principal, intent, upload.owner if upload is not None else principal.subject)

    def _gone(self) -> TusdError:
        return UploadGone() if self._settings.gone_status == UploadGone.status else UploadNotFound()

    async def _reload(self, upload_id: UploadId) -> Upload:
        upload = await self._uploads.find(upload_id)
        if upload is None or upload.gone(datetime.now(UTC)):
            raise self._gone()
        return upload


def _with_bytes(new: NewUpload, offset: int, crc64nvme: int) -> NewUpload:
    return replace(new, offset=offset, crc64nvme=crc64nvme)


def _verify(checksum: Checksum, chunks: Sequence[bytes | memoryview]) -> None:
    hasher = checksum.hasher()
    for chunk in chunks:
        hasher.update(chunk)
    if hasher.digest() != checksum.digest:
        raise ChecksumMismatch


def _no_body() -> None:
    """Nothing to stop: requests without a body are over in a moment."""
