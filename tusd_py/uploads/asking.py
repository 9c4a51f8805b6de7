"""Asking hooks about an upload that is there. Only where hooks are configured is any of this run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tusd_py.protocol.events import HookKind
from tusd_py.protocol.upload import Concat
from tusd_py.uploads.hooks import hook_upload
from tusd_py.uploads.tusd_events import tusd_storage

if TYPE_CHECKING:
    from tusd_py.config import Config
    from tusd_py.configured_stores import Stores
    from tusd_py.database.uploads import PostgresUploads
    from tusd_py.ports.hooks import HookRequest, HookResponse, HookUpload
    from tusd_py.protocol.upload import Upload
    from tusd_py.uploads.hooks import BlockingHooks


class Describer:
    """Tells of an upload what hooks are told beside its row: its partial uploads, and where its bytes are."""

    def __init__(self, config: Config, uploads: PostgresUploads, stores: Stores) -> None:
        self._config = config
        self._uploads = uploads
        self._stores = stores

    async def describe(self, upload: Upload) -> HookUpload:
        """Return an upload as hooks see it."""
        place = await self._stores.place(upload.place_id) if upload.remote_present else None
        if upload.concat is not Concat.FINAL:
            return hook_upload(upload, storage=tusd_storage(upload, self._config, place))
        partials = [str(partial.id) for partial in await self._uploads.partials(upload.id)]
        # In staging it has no file of its own.
        storage = None if place is None else tusd_storage(upload, self._config, place)
        return hook_upload(upload, storage=storage, partial_uploads=partials)


async def ask_to_terminate(
    hooks: BlockingHooks, describer: Describer, upload: Upload, request: HookRequest
) -> HookResponse | None:
    """Ask `pre-terminate`, and return what the response is to be like.

    Raises:
        TerminationRejected, HookFailed, HookInvalid: see `BlockingHooks.may_terminate`.
    """
    if not hooks.wants(HookKind.PRE_TERMINATE):
        return None
    return await hooks.may_terminate(await describer.describe(upload), request)
