"""Where the bytes of a complete upload can be read: in staging, in a file of the store, or at a URL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from tusd_py.errors import NotReady, StagingMissing, StoredObjectMissing, StoreNotConfigured
from tusd_py.ports import LocalFile, PresignedUrl, Segment
from tusd_py.protocol.upload import RECEIVING, Concat, State, Upload

if TYPE_CHECKING:
    from tusd_py.database.uploads import PostgresUploads
    from tusd_py.places import Stores
    from tusd_py.ports import DownloadHeaders, Staging
    from tusd_py.uploads.access import Access

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StagedFiles:
    """The bytes are in staging, in these files and this order."""

    segments: tuple[Segment, ...]
    tag: str
    """Changes whenever the bytes do."""


class Locator:
    """Finds the bytes of uploads, for requests that were permitted already."""

    def __init__(
        self,
        uploads: PostgresUploads,
        staging: Staging,
        access: Access,
        stores: Stores,
        *,
        url_expiry_seconds: int,
    ) -> None:
        self._uploads = uploads
        self._staging = staging
        self._access = access
        self._stores = stores
        self._url_expiry_seconds = url_expiry_seconds

    async def locate(
        self, upload: Upload, headers: DownloadHeaders, *, method: str
    ) -> StagedFiles | LocalFile | PresignedUrl:
        """Return where a complete upload's bytes are.

        Those of a stored upload are in its store, unless that has lost them, or is not configured, and there
        is a staged copy. `headers` and `method` are those of the response, for a store that sends it itself.

        Raises:
            NotReady: bytes are still missing.
            UploadNotFound, UploadGone: nothing can be served any more.
            StoreNotConfigured: they are in a store that this server does not know.
            StoredObjectMissing: the store does not have them, nor is there a staged copy.
            StagingMissing: the bytes ought to be in staging and are not.
            WrongNode: they are in another staging directory.
        """
        if upload.gone(datetime.now(UTC)):
            raise self._access.gone()
        if upload.state in RECEIVING:
            raise NotReady
        if upload.state is not State.STORED or not upload.remote_present:
            if not upload.local_present:
                raise StagingMissing(upload_id=str(upload.id))
            return _staged(upload, await self._segments(upload))
        # Reconcile has recorded the loss: the store is not asked again for each download.
        if upload.missing_at is not None and (copy := await self._staged_copy(upload)) is not None:
            return copy
        try:
            store = await self._stores.at(upload.place_id)
            return await store.locate(
                upload.object_key, headers, method=method, expires_seconds=self._url_expiry_seconds
            )
        except (StoreNotConfigured, StoredObjectMissing) as error:
            copy = await self._staged_copy(upload)
            if copy is None:
                raise
            if isinstance(error, StoredObjectMissing):
                log.warning("object_missing", upload_id=str(upload.id), served_from="staging")
            return copy

    async def _staged_copy(self, upload: Upload) -> StagedFiles | None:
        """Return the staged copy of a stored upload, None if it is not there whole."""
        segments = await self._segments(upload)
        # The partial uploads of a stored final may have been removed, one or all of them.
        if sum(each.length for each in segments) != upload.offset or not await asyncio.to_thread(_are_whole, segments):
            return None
        return _staged(upload, segments)

    async def _segments(self, upload: Upload) -> list[Segment]:
        """Return the staged files that make up an upload, in order. Raises `WrongNode`."""
        self._staging.identity.require(upload)
        sources = await self._uploads.parts(upload.id) if upload.concat is Concat.FINAL else [upload]
        return [Segment(self._staging.path(source.id), source.offset) for source in sources]


def _staged(upload: Upload, segments: Sequence[Segment]) -> StagedFiles:
    return StagedFiles(tuple(segments), f"{upload.id}-{upload.offset}")


def _are_whole(segments: Sequence[Segment]) -> bool:
    try:
        return all(segment.length == 0 or segment.path.stat().st_size >= segment.length for segment in segments)
    except OSError:
        return False
