"""Asking hooks about an upload that is there. Only where hooks are configured is any of this run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tusd_py.protocol.events import HookKind
from tusd_py.protocol.upload import Concat
from tusd_py.uploads.hooks import hook_upload
from tusd_py.uploads.service import receives_bytes
from tusd_py.uploads.tusd_events import tusd_storage

if TYPE_CHECKING:
    from tusd_py.ports.hooks import HookRequest, HookResponse, HookUpload
    from tusd_py.protocol.upload import Upload
    from tusd_py.uploads.hooks import BlockingHooks
    from tusd_py.uploads.service import UploadService


async def ask_to_terminate(
    service: UploadService, hooks: BlockingHooks, upload: Upload, request: HookRequest
) -> HookResponse | None:
    """Ask `pre-terminate`, and return what the response is to be like.

    Raises:
        WrongNode: its bytes are in another staging directory, whose node asks.
        TerminationRejected, HookFailed, HookInvalid: see `BlockingHooks.may_terminate`.
    """
    if not hooks.wants(HookKind.PRE_TERMINATE):
        return None
    if receives_bytes(upload):
        service.demand_staged_here(upload)
    return await hooks.may_terminate(await as_hooks_see(service, upload), request)


async def as_hooks_see(service: UploadService, upload: Upload) -> HookUpload:
    """Return an upload with what hooks are told beside its row: its partial uploads, and where its bytes are."""
    partials = await service.uploads.partials(upload.id) if upload.concat is Concat.FINAL else None
    place = await service.stores.place(upload.place_id) if upload.remote_present else None
    return hook_upload(upload, partials, storage=tusd_storage(upload, service.config, place))
