"""Uploads out of nothing, for tests of pure rules."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from tusd_py.protocol.upload import StagingId, State, Upload, UploadId

HERE = StagingId(uuid4())
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def upload(**changes: Any) -> Upload:
    """Return an upload of 100 bytes of which 70 are there, unless told otherwise."""
    facts: dict[str, Any] = {
        "id": UploadId(uuid4()), "owner": None, "staging_id": HERE, "state": State.UPLOADING, "length": 100,
        "offset": 70, "metadata": None, "filename": None, "content_type": None, "concat": None, "concat_header": None,
        "crc64nvme": 0, "object_key": "k", "local_present": True, "remote_present": False, "hold": False,
        "created_at": NOW, "updated_at": NOW, "expires_at": None,
    }  # fmt: skip
    return Upload(**facts | changes)
