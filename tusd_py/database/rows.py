"""A row of `uploads` as an `Upload`, and a `NewUpload` as the arguments of the statement that inserts it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from tusd_py.protocol.checksum import DigestSet
from tusd_py.protocol.upload import Concat, State, Trigger, Upload, UploadProtocol

if TYPE_CHECKING:
    from tusd_py.database.pool import Row
    from tusd_py.ports import NewUpload

_STATES: Final = {state.value: state for state in State}
_PROTOCOLS: Final = {protocol.value: protocol for protocol in UploadProtocol}
_CONCATS: Final[dict[str | None, Concat | None]] = {None: None} | {concat.value: concat for concat in Concat}
_TRIGGERS: Final = {trigger.value: trigger for trigger in Trigger}


def upload_from_row(row: Row) -> Upload:
    """Build an upload from a row that has `UPLOAD_COLUMNS`."""
    return Upload(
        id=row["id"],
        owner=row["owner"],
        staging_id=row["staging_id"],
        state=_STATES[row["state"]],
        length=row["upload_length"],
        offset=row["upload_offset"],
        metadata=row["metadata"],
        filename=row["filename"],
        content_type=row["content_type"],
        content_encoding=row["content_encoding"],
        content_language=row["content_language"],
        writer=row["writer"],
        concat=_CONCATS[row["concat"]],
        concat_header=row["concat_header"],
        crc64nvme=unsigned(row["crc64nvme"]),
        object_key=row["object_key"],
        local_present=row["local_present"],
        remote_present=row["remote_present"],
        hold=row["hold"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        expires_at=row["expires_at"],
        completed_at=row["completed_at"],
        committed_at=row["committed_at"],
        stored_at=row["stored_at"],
        etag=row["etag"],
        version_id=row["version_id"],
        place_id=row["place_id"],
        missing_at=row["missing_at"],
        finishing=row["finishing"],
        sha256=row["sha256"],
        md5=row["md5"],
        error=row["error"],
        protocol=_PROTOCOLS[row["protocol"]],
        repr_digest=DigestSet.from_text(promised) if (promised := row["repr_digest"]) is not None else None,
        profile=row["profile"],
        trigger=_TRIGGERS[row["trigger"]],
    )


def signed(value: int | None) -> int | None:
    """Return an unsigned 64-bit number as the bigint with the same bits."""
    return value - (1 << 64) if value is not None and value >= 1 << 63 else value


def unsigned(value: int | None) -> int | None:
    """Return a bigint as the unsigned 64-bit number with the same bits."""
    return value + (1 << 64) if value is not None and value < 0 else value


def payload_of(request: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what an event keeps that a client's request has made; nothing of it where that is None."""
    return {} if request is None else {"request": request}


def columns_of(new: NewUpload) -> dict[str, Any]:
    """Return the arguments of `CREATE`."""
    return {
        "id": new.id,
        "token_hash": new.token_hash,
        "owner": new.owner,
        "staging_id": new.staging_id,
        "state": new.state,
        "length": new.length,
        "offset": new.offset,
        "crc64nvme": signed(new.crc64nvme),
        "metadata": new.metadata,
        "concat": new.concat,
        "concat_header": new.concat_header,
        "filename": new.filename,
        "content_type": new.content_type,
        "content_encoding": new.content_encoding,
        "content_language": new.content_language,
        "object_key": new.object_key,
        "place_id": new.place_id,
        "protocol": new.protocol,
        "repr_digest": None if new.repr_digest is None else new.repr_digest.to_text(),
        "profile": new.profile,
        "trigger": new.trigger,
        "expires_after": float(new.expires_after_seconds),
        "payload": payload_of(new.request),
    }
