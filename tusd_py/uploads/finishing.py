"""The end of an upload that the application is asked about: `pre-finish`.

Every byte is durable and recorded, the upload is `finishing`, and neither its lock nor a connection is held. Its
finish job asks again if this process does not bring it to the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tusd_py.ports.hooks import HookUpload
from tusd_py.protocol.upload import Concat, Upload
from tusd_py.uploads.hooks import hook_upload

if TYPE_CHECKING:
    from tusd_py.database.uploads import PostgresUploads
    from tusd_py.ports import Staging


async def describe_finishing(uploads: PostgresUploads, staging: Staging, upload: Upload) -> HookUpload:
    """Return an upload as `pre-finish` is told of it."""
    if upload.concat is not Concat.FINAL:
        return hook_upload(upload, storage={"Type": "filestore", "Path": str(staging.path(upload.id))})
    # A final upload has no file in staging: its bytes are those of its partial uploads.
    partials = await uploads.partials(upload.id)
    return hook_upload(upload, partial_uploads=[str(partial.id) for partial in partials])
