"""The end of an upload that the application is asked about: `pre-finish`.

Every byte is durable and recorded, the upload is `finishing`, and neither its lock nor a connection is held. Its
finish job asks again if this process does not bring it to the end. Until then the upload is busy for its client, which
would take an offset that is the length for success.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.errors import DatabaseUnavailable, TusdError
from tusd_py.ports.hooks import HookResponse, HookUpload
from tusd_py.protocol.events import HookKind
from tusd_py.protocol.upload import Concat, Upload
from tusd_py.uploads.hooks import hook_upload

if TYPE_CHECKING:
    from tusd_py.database.uploads import PostgresUploads
    from tusd_py.ports import Staging
    from tusd_py.ports.hooks import HookRequest
    from tusd_py.uploads.service import UploadService

log = structlog.get_logger(__name__)

AGAIN_SECONDS: Final = 1.0
"""After which a worker asks, where the request got no answer: about when its client tries again."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A complete upload."""

    upload: Upload
    completed: bool
    """This request has completed it, and no worker."""
    response: HookResponse
    """What the hook wants the client to be told."""


async def finish_upload(service: UploadService, upload: Upload, request: HookRequest | None) -> Finished:
    """Ask about an upload of which this request has brought the last byte, and complete it.

    Raises:
        HookFailed, HookInvalid, DatabaseUnavailable: a worker asks again.
        UploadNotFound, UploadGone: it was removed meanwhile.
    """
    hooks = service.hooks
    assert hooks is not None  # nothing is finishing where nobody is asked
    assert request is not None
    try:
        described = await describe_finishing(service.uploads, service.staging, upload)
        reply = await hooks.ask(HookKind.PRE_FINISH, described, request)
        completed = await _complete(service, upload)
    except TusdError:
        await leave_to_worker(service, upload)
        raise
    # It may be that a worker has asked as well, and was quicker.
    after = completed or await service.refresh(upload.id)
    return Finished(replace(after, repr_digest=upload.repr_digest), completed is not None, reply.response)


async def _complete(service: UploadService, upload: Upload) -> Upload | None:
    """Complete an upload, waiting a while for a database that is away: the hook need not be asked again then."""
    for delay in service.timing.advance_retry_seconds:
        try:
            return await service.uploads.complete(upload.id)
        except DatabaseUnavailable as error:
            log.warning("completion_postponed", upload_id=str(upload.id), reason=str(error))
            await asyncio.sleep(delay)
    return await service.uploads.complete(upload.id)


async def leave_to_worker(service: UploadService, upload: Upload) -> None:
    """Have a worker ask about a finishing upload, since this request does not bring it to its end."""
    # Without this it would be asked about as well, only later.
    with contextlib.suppress(DatabaseUnavailable):
        await service.uploads.finish_soon(upload, AGAIN_SECONDS)


async def describe_finishing(uploads: PostgresUploads, staging: Staging, upload: Upload) -> HookUpload:
    """Return an upload as `pre-finish` is told of it."""
    if upload.concat is not Concat.FINAL:
        return hook_upload(upload, storage={"Type": "filestore", "Path": str(staging.path(upload.id))})
    # A final upload has no file in staging: its bytes are those of its partial uploads.
    partials = await uploads.partials(upload.id)
    return hook_upload(upload, partial_uploads=[str(partial.id) for partial in partials])


def both(first: HookResponse | None, second: HookResponse) -> HookResponse:
    """Return what two hooks want the client to be told; the second one counts where they differ."""
    if first is None:
        return second
    return HookResponse(
        status_code=second.status_code or first.status_code,
        body=second.body or first.body,
        headers={**first.headers, **second.headers},
    )
