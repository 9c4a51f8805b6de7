"""What the JSON API says of an upload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tusd_py.protocol.upload import GONE, RECEIVING

if TYPE_CHECKING:
    from tusd_py.ports import TransferView
    from tusd_py.protocol.upload import Upload

API_PATH: Final = "/api/v1/uploads"
DOWNLOAD_PATH: Final = "/download"


def upload_view(upload: Upload, transfer: TransferView | None, *, downloads: bool) -> dict[str, Any]:
    """Answer the JSON of an upload; `transfer` is how its latest transfer stands, None if there is none."""
    servable = downloads and upload.state not in GONE and upload.state not in RECEIVING
    return {
        "id": str(upload.id),
        "state": upload.state.value,
        "length": upload.length,
        "offset": upload.offset,
        "filename": upload.filename,
        "content_type": upload.content_type,
        "location": "remote" if upload.remote_present else "local" if upload.local_present else None,
        "download_url": f"{DOWNLOAD_PATH}/{upload.id}" if servable else None,
        "created_at": upload.created_at,
        "updated_at": upload.updated_at,
        "completed_at": upload.completed_at,
        "stored_at": upload.stored_at,
        "expires_at": upload.expires_at if upload.state in RECEIVING else None,
        "sha256": upload.sha256.hex() if upload.sha256 else None,
        "md5": upload.md5.hex() if upload.md5 else None,
        "error": upload.error,
        "attempts": transfer.attempts if transfer else 0,
        "bytes_transferred": transfer.bytes_done if transfer else 0,
        "last_error": transfer.last_error if transfer else None,
        "error_code": transfer.error_code if transfer else None,
        "next_attempt_at": transfer.next_attempt_at if transfer else None,
    }
