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
    from tusd_py.ports import DownloadHeaders
    from tusd_py.uploads.service import UploadService

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StagedFiles:
    """The bytes are in staging, in these files and this order."""

    segments: tuple[Segment, ...]
    tag: str
    """Changes whenever the bytes do."""


async def locate_bytes(
    service: UploadService, upload: Upload, headers: DownloadHeaders, *, method: str
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
        raise service.gone_error()
    if upload.state in RECEIVING:
        raise NotReady
    if upload.state is not State.STORED or not upload.remote_present:
        if not upload.local_present:
            raise StagingMissing(upload_id=str(upload.id))
        return _staged(upload, await _segments(service, upload))
    # Reconcile has recorded the loss: the store is not asked again for each download.
    if upload.missing_at is not None and (copy := await _staged_copy(service, upload)) is not None:
        return copy
    try:
        store = await service.stores.at(upload.place_id)
        return await store.locate(
            upload.object_key, headers, method=method, expires_seconds=int(service.config.downloads.url_expiry)
        )
    except (StoreNotConfigured, StoredObjectMissing) as error:
        copy = await _staged_copy(service, upload)
        if copy is None:
            raise
        if isinstance(error, StoredObjectMissing):
            log.warning("object_missing", upload_id=str(upload.id), served_from="staging")
        return copy


async def _staged_copy(service: UploadService, upload: Upload) -> StagedFiles | None:
    """Return the staged copy of a stored upload, None if it is not there whole."""
    segments = await _segments(service, upload)
    # The partial uploads of a stored final may have been removed, one or all of them.
    if sum(each.length for each in segments) != upload.offset or not await asyncio.to_thread(_are_whole, segments):
        return None
    return _staged(upload, segments)


async def _segments(service: UploadService, upload: Upload) -> list[Segment]:
    """Return the staged files that make up an upload, in order. Raises `WrongNode`."""
    service.demand_staged_here(upload)
    sources = await service.uploads.partials(upload.id) if upload.concat is Concat.FINAL else [upload]
    return [Segment(service.staging.path(source.id), source.offset) for source in sources]


def _staged(upload: Upload, segments: Sequence[Segment]) -> StagedFiles:
    return StagedFiles(tuple(segments), f"{upload.id}-{upload.offset}")


def _are_whole(segments: Sequence[Segment]) -> bool:
    try:
        return all(segment.length == 0 or segment.path.stat().st_size >= segment.length for segment in segments)
    except OSError:
        return False
