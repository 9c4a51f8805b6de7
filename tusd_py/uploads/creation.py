"""Making an upload: a row, a token, and the bytes that came along."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.authorization import Action, Principal, authorize
from tusd_py.errors import (
    BodyError,
    ChecksumMismatch,
    DatabaseUnavailable,
    HookInvalid,
    StorageError,
    TusdError,
)
from tusd_py.ports import NewUpload
from tusd_py.protocol.concat import resolve_partials
from tusd_py.protocol.create import Create
from tusd_py.protocol.events import HookKind
from tusd_py.protocol.fields import is_upload_token
from tusd_py.protocol.metadata import file_name, file_type
from tusd_py.protocol.upload import Append, Concat, State, TokenHash, Trigger, Upload, UploadId
from tusd_py.uploads.append import AppendFailed, receive_body
from tusd_py.uploads.buffers import Block
from tusd_py.uploads.finishing import both, finish_upload
from tusd_py.uploads.hooks import checked_token, with_changes
from tusd_py.uploads.kept_requests import kept_request
from tusd_py.uploads.service import UploadService, hash_token
from tusd_py.uploads.verification import matches, verify_chunks

if TYPE_CHECKING:
    from tusd_py.ports import Body
    from tusd_py.ports.hooks import HookRequest, HookResponse
    from tusd_py.protocol.checksum import DigestSet
    from tusd_py.protocol.concat import Room
    from tusd_py.uploads.hooks import BlockingHooks

log = structlog.get_logger(__name__)

TOKEN_BYTES: Final = 24
"""192 random bits: nobody finds a tus URL by trying."""


@dataclass(frozen=True, slots=True)
class Created:
    """A new upload and the token of its URL, which is told once and not kept."""

    upload: Upload
    token: str
    response: HookResponse | None = None
    """What a hook wants the client to be told with it."""
    completed: bool = False
    """All its bytes came along, and no worker has completed it."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A row to be, the token of its URL, and what a hook wants the client to be told."""

    new: NewUpload
    token: str
    response: HookResponse | None = None


def render_key(template: str, upload_id: UploadId, owner: str | None, now: datetime) -> str:
    """Render an object key: our ids and dates only, never anything a client chose."""
    owner_hash = hashlib.sha256((owner or "").encode()).hexdigest()[:16]
    return template.format(id=upload_id, yyyy=f"{now:%Y}", mm=f"{now:%m}", dd=f"{now:%d}", owner_hash=owner_hash)


async def create_upload(
    service: UploadService, principal: Principal, command: Create, body: Body, request: HookRequest | None = None
) -> Created:
    """Create an upload, with the bytes that came along. Its client learns the URL only if all goes well.

    `request` is what hooks and receivers in tusd's format are told, where there are any.

    Raises:
        AccessError, ProtocolError, StagingFull, StoreFull: nothing was created.
        UploadRejected, HookFailed, HookInvalid: nor here, which a hook is the reason for. Unless that was asked
            about an upload that came whole: a worker asks again, and completes it.
        BodyError, AppendFailed: bytes that came along were cut short; what arrived of a large body is kept.
    """
    prepared = await _prepare(service, principal, command, body, request)
    new = prepared.new
    if command.concat is Concat.FINAL:
        upload = await service.uploads.create_final(
            new,
            _hashes(command.partials),
            allow_unfinished=service.features.offers("concatenation-unfinished"),
            allow_repeated=service.config.limits.allow_repeated_partials,
            room=await _room(service),
        )
    elif command.has_body and _is_small(service, command):
        upload = await _create_small(service, new, command, body)
    elif command.has_body:
        upload = await _create_streamed(service, new, command, body, request)
    elif new.length == 0 and new.completes:
        # Complete at once: the transfer finds an empty file, like any other.
        upload = await _create_stored(service, new, command, [])
    else:
        upload = await service.uploads.create(new)
    log.debug("upload_created", upload_id=str(upload.id), length=upload.length, offset=upload.offset)
    return await _finished(service, Created(upload, prepared.token, prepared.response), request)


async def begin_upload(
    service: UploadService, principal: Principal, command: Create, body: Body, request: HookRequest | None = None
) -> Created:
    """Create an upload whose client is told the URL before its bytes are read, which `receive_first_body` does then.

    Raises:
        AccessError, ProtocolError, StagingFull, UploadRejected, HookFailed, HookInvalid: nothing was created.
    """
    prepared = await _prepare(service, principal, command, body, request)
    # Not even one of 0 bytes is complete before its body has ended.
    upload = await service.uploads.create(replace(prepared.new, completes=False))
    return Created(upload, prepared.token, prepared.response)


async def receive_first_body(
    service: UploadService, begun: Created, command: Create, body: Body, request: HookRequest | None = None
) -> Created:
    """Receive the bytes of an upload that has begun; they are kept as those of a PATCH are.

    Raises:
        AppendFailed: see `receive_body`; and by `HookFailed` and `HookInvalid`, as `append_body` says.
    """
    append = _first_append(begun.upload, command, url_sent_only_on_success=False)
    upload = await receive_body(service, begun.upload, append, body, request)
    log.debug("upload_created", upload_id=str(upload.id), length=upload.length, offset=upload.offset)
    try:
        return await _finished(service, Created(upload, begun.token, begun.response), request)
    except TusdError as error:
        raise AppendFailed(upload, error) from error


async def _finished(service: UploadService, created: Created, request: HookRequest | None) -> Created:
    """Return what was created. If all its bytes came along, the application is asked about it where it wants to be."""
    if not created.upload.finishing:
        return replace(created, completed=created.upload.complete)
    finished = await finish_upload(service, created.upload, request)
    response = both(created.response, finished.response)
    return replace(created, upload=finished.upload, response=response, completed=finished.completed)


async def _prepare(
    service: UploadService, principal: Principal, command: Create, body: Body, request: HookRequest | None
) -> _Prepared:
    """Return what is to be created. Raises unless it may be; a hook is asked last of all."""
    authorize(principal, Action.CREATE, None, service.rules)
    if command.unwanted_body is not None:
        await body.accept()
        if await body.read():
            raise command.unwanted_body
    if command.concat is not Concat.FINAL:
        service.staging.check_space(max(command.length or 0, command.content_length or 0))
    new, token = await _new_upload(service, principal, command, request)
    if service.hooks is None or not service.hooks.wants(HookKind.PRE_CREATE):
        return _Prepared(new, token)
    assert request is not None  # whoever configures hooks serves requests
    return await _ask(service, service.hooks, command, _Prepared(new, token), request)


async def _ask(
    service: UploadService, hooks: BlockingHooks, command: Create, wanted: _Prepared, request: HookRequest
) -> _Prepared:
    """Ask `pre-create`, and return what is to be created after its reply."""
    new, token = wanted.new, wanted.token
    reply = await hooks.may_create(new, await _partials_of(service, new, command), request)
    if (changes := reply.change_file_info) is None:
        return replace(wanted, response=reply.response)
    with hooks.judging(HookKind.PRE_CREATE):
        new = with_changes(new, changes, service.config)
        if changes.id is not None:
            token = checked_token(changes.id)
            new = replace(new, token_hash=hash_token(token))
        if changes.storage_path is not None:
            directories = service.config.storage.backend == "filesystem"
            if await service.lists.key_taken(new.object_key, new.place_id, directories):
                raise HookInvalid("ChangeFileInfo.Storage.Path is taken.")
    # Whether the token is taken, and once more whether the key is, the database says when the row is inserted.
    return _Prepared(new, token, reply.response)


async def _partials_of(service: UploadService, new: NewUpload, command: Create) -> list[Upload]:
    """Return the partial uploads of a final one, as they are now: locked and looked at again once it is created."""
    if command.concat is not Concat.FINAL:
        return []
    return resolve_partials(
        await service.lists.behind(_hashes(command.partials)),
        owner=new.owner,
        staging_id=new.staging_id,
        allow_unfinished=service.features.offers("concatenation-unfinished"),
        allow_repeated=service.config.limits.allow_repeated_partials,
        max_size=service.features.max_size,
        now=datetime.now(UTC),
    )


def _hashes(tokens: Sequence[str]) -> list[TokenHash]:
    return [hash_token(each) if is_upload_token(each) else TokenHash(b"") for each in tokens]


async def _new_upload(
    service: UploadService, principal: Principal, command: Create, request: HookRequest | None
) -> tuple[NewUpload, str]:
    config = service.config
    upload_id = service.staging.new_id()
    token = secrets.token_urlsafe(TOKEN_BYTES)
    new = NewUpload(
        id=upload_id,
        token_hash=hash_token(token),
        owner=principal.subject,
        staging_id=service.staging.identity.id,
        length=command.length,
        metadata=command.metadata,
        filename=file_name(command.pairs),
        content_type=file_type(command.pairs),
        content_encoding=command.content_encoding,
        content_language=command.content_language,
        concat=command.concat,
        concat_header=command.concat_header,
        repr_digest=command.repr_digest,
        protocol=command.protocol,
        completes=command.completes is not False,
        object_key=render_key(config.storage.key_template, upload_id, principal.subject, datetime.now(UTC)),
        place_id=await service.stores.current_id(),
        profile=principal.profile,
        trigger=Trigger(config.profiles[principal.profile].trigger or config.transfer.trigger),
        expires_after_seconds=service.expires_after_seconds,
        request=kept_request(config, request),
    )
    return new, token


async def _room(service: UploadService) -> Room | None:
    """Return what the store can take, None where that has no end or is not known just now."""
    if service.stores.measured is None:
        return None
    try:
        return (await service.stores.measured.room()).less(service.config.staging.reserve)
    except StorageError as error:
        # Nobody has to wait for a store that is away; the transfer will.
        log.warning("store_room_unknown", reason=str(error))
        return None


def _is_small(service: UploadService, command: Create) -> bool:
    """Return whether a body fits into one block, and can be verified before it is written."""
    if command.content_length is None or command.checksum_in_trailer:
        return False
    with service.budget as budget:
        return command.content_length <= budget.block_bytes


async def _create_small(service: UploadService, new: NewUpload, command: Create, body: Body) -> Upload:
    """Receive first and record once. A body that is cut short leaves nothing behind.

    Nobody has been told the URL yet, so nobody could resume what would be kept.
    """
    with service.budget:
        await body.accept()
        block = Block()
        while chunk := await body.read():
            block.append(chunk)
        if command.checksum is not None and not await asyncio.to_thread(matches, command.checksum, block.chunks):
            raise ChecksumMismatch
        return await _create_stored(service, new, command, block.chunks)


async def _create_stored(
    service: UploadService, new: NewUpload, command: Create, chunks: Sequence[bytes | memoryview]
) -> Upload:
    received = replace(new, offset=sum(map(len, chunks)))
    digest: DigestSet | None = None
    if received.state is State.COMPLETED and (command.repr_digest or command.want_repr_digest):
        digest = await asyncio.to_thread(verify_chunks, command, chunks)
    crc = await service.staging.store_small(new.id, chunks)
    try:
        upload = await service.uploads.create(replace(received, crc64nvme=crc))
    except (DatabaseUnavailable, asyncio.CancelledError):
        # The row may have been written before the connection went away; the cleanup finds out.
        raise
    except BaseException:
        await asyncio.shield(service.staging.remove([new.id]))
        raise
    return upload if digest is None else replace(upload, repr_digest=digest)


async def _create_streamed(
    service: UploadService, new: NewUpload, command: Create, body: Body, request: HookRequest | None
) -> Upload:
    unannounced = replace(new, expires_after_seconds=service.unannounced_seconds)
    upload = await service.uploads.create(unannounced)
    append = _first_append(upload, command, url_sent_only_on_success=True)
    try:
        return await receive_body(service, upload, append, body, request)
    except (AppendFailed, TusdError) as failed:
        cut_short = isinstance(failed, AppendFailed) and isinstance(failed.error, BodyError)
        if not cut_short or command.checksum or command.checksum_in_trailer:
            # Refused as a whole: the client gets no URL, so nothing may stay behind.
            with contextlib.suppress(TusdError):
                await service.uploads.remove(upload.id)
        raise


def _first_append(upload: Upload, command: Create, *, url_sent_only_on_success: bool) -> Append:
    return Append(
        protocol=upload.protocol,
        offset=0,
        content_length=command.content_length,
        checksum=command.checksum,
        checksum_in_trailer=command.checksum_in_trailer,
        completes=command.completes,
        want_repr_digest=command.want_repr_digest,
        max_body_bytes=command.max_body_bytes,
        fail_on_overrun=not url_sent_only_on_success,
        url_sent_only_on_success=url_sent_only_on_success,
    )
