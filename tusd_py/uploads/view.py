"""An upload as JSON: the view of the HTTP API and of events."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from tusd_py.protocol.metadata import decoded_metadata
from tusd_py.protocol.upload import GONE, RECEIVING, Concat, State, Trigger

if TYPE_CHECKING:
    from tusd_py.config import Config
    from tusd_py.config.place import Place
    from tusd_py.protocol.upload import Upload

API_PATH: Final = "/api/v1/uploads"
DOWNLOAD_PATH: Final = "/download"


def upload_view(upload: Upload, config: Config, *, place: Place | None, prefix: str = "") -> dict[str, Any]:
    """Return the JSON of an upload. `prefix` is the path under which the application is mounted.

    Where exactly it is stored, its `place`, is for operators; None for everybody else.
    """
    links = upload_links(upload, prefix=prefix, downloads=config.downloads.enabled)
    return {
        "id": str(upload.id),
        "state": upload.state.value,
        "length": upload.length,
        "offset": upload.offset,
        "owner": upload.owner,
        "filename": upload.filename,
        "content_type": upload.content_type,
        "content_encoding": upload.content_encoding,
        "content_language": upload.content_language,
        "profile": upload.profile,
        "trigger": upload.trigger.value,
        "metadata": decoded_metadata(upload.metadata),
        "object_key": upload.object_key,
        "location": _location(upload, config, place),
        "download_url": links["download"],
        "created_at": upload.created_at,
        "updated_at": upload.updated_at,
        "completed_at": upload.completed_at,
        "committed_at": upload.committed_at,
        "stored_at": upload.stored_at,
        "expires_at": _expires_at(upload, config.cleanup.uncommitted_after),
        "sha256": upload.sha256.hex() if upload.sha256 else None,
        "md5": upload.md5.hex() if upload.md5 else None,
        "error": upload.error,
        "links": links,
    }


def _location(upload: Upload, config: Config, place: Place | None) -> str | dict[str, str] | None:
    if not upload.remote_present:
        return "staging" if upload.local_present else None
    if place is None:
        return "store"
    if place.backend == "s3":
        key = f"{place.prefix}/{upload.object_key}" if place.prefix else upload.object_key
        return {"backend": "s3", "bucket": place.bucket, "key": key}
    directory = (config.data_dir / place.directory).absolute()
    return {"backend": "filesystem", "directory": str(directory), "key": upload.object_key}


def _expires_at(upload: Upload, uncommitted_after_seconds: float) -> datetime | None:
    """Return when cleanup will take an upload away if nothing more happens to it."""
    if upload.hold:
        return None
    if upload.state in RECEIVING:
        return upload.expires_at
    if upload.state is not State.COMPLETED or upload.completed_at is None:
        return None
    if upload.concat is Concat.PARTIAL:
        return upload.expires_at
    waits_for_commit = upload.trigger is Trigger.COMMIT and upload.committed_at is None
    if not (waits_for_commit and uncommitted_after_seconds):
        return None
    return upload.completed_at + timedelta(seconds=uncommitted_after_seconds)


def upload_links(upload: Upload, *, prefix: str, downloads: bool) -> dict[str, str | None]:
    """Return where to go on from here; None is what would be refused as the upload stands."""
    own = f"{prefix}{API_PATH}/{upload.id}"
    whole = upload.state not in GONE and upload.state not in RECEIVING
    actionable = whole and upload.concat is not Concat.PARTIAL
    return {
        "self": own,
        "attempts": f"{own}/attempts",
        "download": f"{prefix}{DOWNLOAD_PATH}/{upload.id}" if whole and downloads else None,
        "commit": f"{own}/commit" if actionable else None,
        "transfer": f"{own}/transfer" if actionable and upload.state is not State.STORED else None,
    }
