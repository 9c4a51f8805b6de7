"""The same handler as a Python hook; see `tusd_hook_handler`."""

from __future__ import annotations

import secrets

from tusd_py.hooks import FileInfoChanges, HookEvent, HookKind, HookReply, HookResponse


def hook(event: HookEvent) -> HookReply | None:
    metadata = event.upload.metadata
    if event.kind is HookKind.PRE_TERMINATE and metadata["keep"] == "yes":
        return HookReply(reject_termination=True, response=HookResponse(status_code=403, body="this one stays"))
    if event.kind is not HookKind.PRE_CREATE:
        return None
    if "filename" not in metadata:
        told = HookResponse(status_code=400, body="no filename provided", headers={"X-Some-Header": "yes"})
        return HookReply(reject_upload=True, response=told)
    upload_id = f"upload-{secrets.token_hex(16)}"
    sender = event.request.headers.get("X-Project", ["none"])[0]
    changes = FileInfoChanges(
        id=upload_id,
        metadata={"filename": metadata["filename"], "keep": metadata.get("keep", ""), "project": sender},
        storage_path=f"./{sender}/{upload_id}/{metadata['filename']}",
    )
    told = HookResponse(headers={"X-Size": str(event.upload.size)})
    return HookReply(change_file_info=changes, response=told)
