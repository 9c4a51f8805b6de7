"""Events in the format of tusd's post-hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tusd_py.hooks.messages import hook_document
from tusd_py.protocol.events import EventKind
from tusd_py.protocol.upload import Concat
from tusd_py.uploads.hooks import hook_upload
from tusd_py.uploads.snapshot import upload_from_snapshot

if TYPE_CHECKING:
    from tusd_py.config import Config
    from tusd_py.config.place import Place
    from tusd_py.ports.events import RecordedEvent
    from tusd_py.protocol.upload import Upload

HOOK_NAMES: Final[Mapping[EventKind, str]] = {
    EventKind.CREATED: "post-create",
    EventKind.PROGRESS: "post-receive",
    EventKind.STORED: "post-finish",
    EventKind.TERMINATED: "post-terminate",
}
"""What tusd calls an event. It has no other ones."""
NO_REQUEST: Final[Mapping[str, Any]] = {"Method": "", "URI": "", "RemoteAddr": "", "Header": {}}


def tusd_event(
    event: RecordedEvent, config: Config, *, place: Place | None, partial_uploads: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return an event, whose kind is one of `HOOK_NAMES`, as tusd's hooks have it.

    `partial_uploads` are the ids of those that a final upload is made of.
    """
    upload = upload_from_snapshot(event.snapshot)
    storage = tusd_storage(upload, config, place)
    request = NO_REQUEST | event.payload.get("request", {})
    described = hook_upload(upload, storage=storage, partial_uploads=partial_uploads)
    return hook_document(HOOK_NAMES[event.kind], described, request)


def tusd_progress(upload: Upload, config: Config) -> dict[str, Any]:
    """Return how far an upload is, as tusd's post-receive has it."""
    storage = tusd_storage(upload, config, None)
    return hook_document(HOOK_NAMES[EventKind.PROGRESS], hook_upload(upload, storage=storage), NO_REQUEST)


def tusd_storage(upload: Upload, config: Config, place: Place | None) -> dict[str, str] | None:
    """Return where the bytes of an upload are: in the store, in staging, or (None) nowhere."""
    if upload.remote_present and place is not None:
        if place.backend == "s3":
            key = f"{place.prefix}/{upload.object_key}" if place.prefix else upload.object_key
            return {"Type": "s3store", "Bucket": place.bucket, "Key": key}
        path = (config.data_dir / place.directory / upload.object_key).absolute()
        return {"Type": "filestore", "Path": str(path)}
    # In staging a final upload has no file of its own.
    if upload.local_present and upload.concat is not Concat.FINAL:
        name = str(upload.id)
        return {"Type": "filestore", "Path": str(Path(config.staging_directory, name[-2:], name))}
    return None
