"""The walk of a PATCH: every step from the look-up to the recorded offset, in `receive_body`.

The database says how much of an upload there is, and the staging file has the bytes. The file may have more
than the row says, after a crash or while a request still writes, and never less. An append therefore makes
itself the only writer first (in this process, then among all), looks at both, cuts what nobody has acknowledged,
and only then asks the client for a byte. The row may move until the file is locked: whoever finds that file and
row do not agree reads the row again and plans anew.

How bytes get to the disk and into the row is in `body_writer`.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.authorization import Action, Principal
from tusd_py.errors import (
    DatabaseUnavailable,
    EmptyPatchLimit,
    LengthExceeded,
    OffsetConflict,
    StagingDamaged,
    StorageError,
    TakenOver,
    TusdError,
    UploadGone,
    UploadLocked,
    UploadNotFound,
    UploadStopped,
    WholeChecksumMismatch,
)
from tusd_py.protocol.events import HookKind
from tusd_py.protocol.upload import RECEIVING, Append, AppendPlan, Upload, check_append, plan_append
from tusd_py.uploads.body_writer import BodyWriter, Received
from tusd_py.uploads.finishing import finish_upload, leave_to_worker
from tusd_py.uploads.post_receive import ask_while_receiving
from tusd_py.uploads.service import UploadService, receives_bytes

if TYPE_CHECKING:
    from tusd_py.ports import Body, StagingFile
    from tusd_py.ports.hooks import HookRequest, HookResponse

log = structlog.get_logger(__name__)

MAX_COUNTED_UPLOADS: Final = 10_000
UNCERTAIN: Final = (DatabaseUnavailable, OffsetConflict, StagingDamaged, UploadGone, UploadLocked, UploadNotFound)
"""After these nobody knows the offset at which the client may go on: it is not told any."""


class AppendFailed(Exception):
    """An append that ended by `error`, with `upload` as it is recorded now; None if that is not known."""

    def __init__(self, upload: Upload | None, error: TusdError) -> None:
        super().__init__(str(error))
        self.upload = upload
        self.error = error


@dataclass(frozen=True, slots=True)
class Appended:
    """The upload as an append left it, and whether it was the one that completed it."""

    upload: Upload
    completed: bool
    response: HookResponse | None = None
    """What a hook wants the client to be told with it."""


async def append_body(  # noqa: PLR0913, PLR0917 -- a request has that much
    service: UploadService,
    principal: Principal,
    token: str,
    command: Append,
    body: Body,
    request: HookRequest | None = None,
) -> Appended:
    """Append the body of a PATCH. `request` is what hooks are told of it, where there are any.

    Raises:
        HookFailed, HookInvalid: the application was asked whether it is complete, and a worker asks again.
        UploadNotFound, UploadGone, AccessError: for this client there is no such upload.
        WrongNode: its bytes are in another staging directory; nothing was opened or changed.
        AppendFailed: see `receive_body`; and by `EmptyPatchLimit`, after too many without a byte.
    """
    upload = await service.get_by_token(principal, token, Action.WRITE)
    if receives_bytes(upload):
        service.demand_staged_here(upload)
    after = await receive_body(service, upload, command, body, request)
    appended = Appended(after, after.complete and not upload.complete)
    if after.finishing:
        finished = await finish_upload(service, after, request)
        appended = Appended(finished.upload, finished.completed, finished.response)
    if appended.completed:
        log.info("upload_completed", upload_id=str(after.id), length=after.length)
    _limit_empty_patches(service, after, moved=after.offset != command.offset)
    return appended


async def receive_body(
    service: UploadService, upload: Upload, command: Append, body: Body, request: HookRequest | None = None
) -> Upload:
    """Append a body and return the upload as it is then recorded. One that is `finishing` is the caller's to finish.

    The steps and their order are those of docs/architecture.md. Until `body.accept()` a refusal costs
    the client no byte; from there on whatever arrived is kept, or discarded as a whole under a checksum.

    Raises:
        AppendFailed: by one of these.
            ProtocolError: refused before a byte was read, or too large, or a wrong checksum.
            StagingFull, UploadTooLarge: there is no room for it.
            UploadLocked: another request did not let go in time.
            BodyError: the body was cut short; what arrived is kept.
            UploadStopped: a hook wanted that; the upload is terminated.
            StorageError, DatabaseUnavailable: what was acknowledged before is kept.
    """
    max_size = service.features.max_size
    received, file_may_be_new = Received(None), False
    async with contextlib.AsyncExitStack() as held:
        try:
            # What no offset could make right is refused before anybody is disturbed.
            check_append(upload, command)
            _check_space(service, upload, command)
            # Become the only writer in this process. Whoever was, has stored what it had and moved the row.
            if await held.enter_async_context(service.locks.hold(upload.id, lambda: body.interrupt(TakenOver()))):
                upload = await service.refresh(upload.id)
            if command.offset != upload.offset:
                # The client is told the true offset, so whoever may still be moving it is ended first.
                upload = await service.settle(upload)
            # Decide how much may be written, and whether there is anything to do.
            plan = plan_append(upload, command, max_size=max_size)
            if upload.state not in RECEIVING or plan.changes_nothing(upload, command):
                return await _expect_no_byte(upload, plan, body)
            # Become the only writer among all processes, and let file and row agree.
            file = await _open(service, upload)
            held.push_async_callback(file.close)
            file_may_be_new = upload.offset == 0
            if file.size != upload.offset:
                upload = await _reread(service, upload, file)
                plan = plan_append(upload, command, max_size=max_size)
                if upload.state not in RECEIVING:
                    return await _expect_no_byte(upload, plan, body)
                await file.truncate(upload.offset)
            if plan.length is not None and plan.length not in {upload.length, upload.offset}:
                # Before the body, which may never end. A length that is reached already is recorded
                # together with what follows from that.
                upload = await service.uploads.declare_length(upload, plan.length)
            # Receive, write, sync, record. From here on whatever arrives counts.
            await body.accept()
            writer = BodyWriter(service, file, upload, plan, command, body)
            with service.budget, _asked_meanwhile(service, writer, body, request):
                received = await writer.run()
            return received.result()
        except TusdError as error:
            await _clean_up(service, upload, command, error, received=received, file_may_be_new=file_may_be_new)
            # A body that the disk has ended, and of which nothing could be recorded, leaves it unknown as well.
            unknown = isinstance(error, UNCERTAIN) or isinstance(received.error, StorageError)
            recorded = received.upload or (None if unknown else upload)
            raise AppendFailed(await _tellable(service, recorded), error) from error


def _asked_meanwhile(
    service: UploadService, writer: BodyWriter, body: Body, request: HookRequest | None
) -> contextlib.AbstractContextManager[object]:
    """Have `post-receive` asked until the context ends, where somebody wants that."""
    if request is None or service.hooks is None or not service.hooks.wants(HookKind.POST_RECEIVE):
        return contextlib.nullcontext()
    asking = asyncio.create_task(ask_while_receiving(service, writer, body, request), name="post-receive")
    held = contextlib.ExitStack()
    held.callback(asking.cancel)
    return held


def _check_space(service: UploadService, upload: Upload, command: Append) -> None:
    wanted = command.content_length or 0
    if upload.length is None and command.length is not None:
        wanted = max(wanted, command.length - upload.offset)
    if wanted:
        service.staging.check_space(wanted)


async def _expect_no_byte(upload: Upload, plan: AppendPlan, body: Body) -> Upload:
    # A client that lost the reply to its last byte sends an empty body and must see success.
    if body.length is None:
        await body.accept()
        if await body.read():
            raise plan.too_large
    return upload


async def _open(service: UploadService, upload: Upload) -> StagingFile:
    """Open the staging file once no other process writes to it.

    Raises:
        UploadLocked: the other process did not let go in time.
        StagingMissing: bytes were acknowledged, and the file is not there.
    """

    async def attempt() -> StagingFile | None:
        return await service.staging.open(upload.id, create=upload.offset == 0)

    try:
        return await service.locks.wait_for_file_lock(upload.id, attempt)
    except StagingDamaged:
        # Unless the upload was removed meanwhile, and its file with it.
        await service.refresh(upload.id)
        raise


async def _reread(service: UploadService, upload: Upload, file: StagingFile) -> Upload:
    """Return the row of a file that does not agree with it, once more.

    Another process moved the upload since our look, or there is a torn tail of a crash.
    """
    upload = await service.refresh(upload.id)
    if file.size > upload.offset and upload.receiving:
        # An UPDATE of whoever wrote the tail may still wait inside the database. It comes before this
        # one, and tells a greater offset, or finds no row any more.
        upload = await service.uploads.become_writer(upload.id) or await service.refresh(upload.id)
    return upload


async def _clean_up(  # noqa: PLR0913 -- how far the append came
    service: UploadService,
    upload: Upload,
    command: Append,
    error: TusdError,
    *,
    received: Received,
    file_may_be_new: bool,
) -> None:
    """Do what a failed append leaves to be done, while its locks are still held."""
    if file_may_be_new and isinstance(error, UploadNotFound | UploadGone):
        # Removed while we were waiting: the file may be one that our opening made anew.
        await service.staging.remove([upload.id])
    if isinstance(error, StagingDamaged) and received.error is None:
        await _report_damage(service, upload, error)
    overrun = isinstance(error, LengthExceeded) and command.fail_on_overrun
    if upload.state in RECEIVING and (overrun or isinstance(error, UploadStopped | WholeChecksumMismatch)):
        # Nothing can become of it any more.
        await service.uploads.remove(upload.id)


async def _report_damage(service: UploadService, upload: Upload, error: StagingDamaged) -> None:
    log.error("staging_damaged", upload_id=str(upload.id), offset=upload.offset, reason=str(error))
    with contextlib.suppress(DatabaseUnavailable):
        # The owner reads it: no path.
        await service.uploads.record_damage(upload.id, error.detail)


async def _tellable(service: UploadService, recorded: Upload | None) -> Upload | None:
    """Return what the client may be told of an upload with an error. The full offset of a finishing one means success.

    No request asks about it, for the body did not end well.
    """
    if recorded is None or not recorded.finishing:
        return recorded
    await leave_to_worker(service, recorded)
    return None


def _limit_empty_patches(service: UploadService, upload: Upload, *, moved: bool) -> None:
    """Stop clients that ask for ever without sending anything, which released ones do.

    Counted by what arrived and not by Content-Length, which a chunked body lacks.
    """
    counts = service.empty_patches
    count = counts.pop(upload.id, 0) + 1
    if moved:
        return
    # Kept when it refuses as well: only bytes begin the count anew.
    counts[upload.id] = count
    if len(counts) > MAX_COUNTED_UPLOADS:
        del counts[next(iter(counts))]
    if count > service.config.limits.max_empty_patches:
        raise AppendFailed(upload, EmptyPatchLimit())
