"""The events of webhooks as typed objects: CloudEvents 1.0 in structured JSON (cloudevents.io)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal

EventType = Literal[
    "tusd_py.upload.created",
    "tusd_py.upload.progress",
    "tusd_py.upload.completed",
    "tusd_py.upload.part_completed",
    "tusd_py.upload.committed",
    "tusd_py.upload.transferring",
    "tusd_py.upload.stored",
    "tusd_py.upload.transfer_failed",
    "tusd_py.upload.object_missing",
    "tusd_py.upload.bytes_missing",
    "tusd_py.upload.rejected",
    "tusd_py.upload.terminated",
    "tusd_py.upload.expired",
    "tusd_py.upload.removed",
    "tusd_py.webhook.test",
]
"""Every type that is sent today. A receiver should ignore those that it does not know."""


class InvalidWebhook(ValueError):
    """A request that is not a webhook of ours: answer it with 400 or 401, and do nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadData:
    """The upload as it stood when the event happened: the fields of `GET /api/v1/uploads/{id}`.

    Fields of later versions are in `extra`.
    """

    id: str
    state: str
    length: int | None = None
    """In bytes; None while the client has not declared it."""
    offset: int = 0
    """How many bytes have been received."""
    owner: str | None = None
    filename: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    content_language: str | None = None
    profile: str = "default"
    trigger: str = "complete"
    metadata: Mapping[str, str | None] = field(default_factory=dict)
    """Upload-Metadata decoded; None for a value that is not UTF-8."""
    object_key: str = ""
    location: str | Mapping[str, str] | None = None
    download_url: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    completed_at: str | None = None
    committed_at: str | None = None
    stored_at: str | None = None
    expires_at: str | None = None
    sha256: str | None = None
    md5: str | None = None
    error: str | None = None
    links: Mapping[str, str | None] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """Something that happened to an upload."""

    id: str
    """The same on every delivery of this event: a receiver that has seen it already may stop here."""
    source: str
    type: str
    """See `EventType`."""
    subject: str
    """The public id of the upload."""
    time: datetime
    sequence: str | None
    """Counts the events of one upload from 1 without gaps, zero-padded: compare as text. None: not stored."""
    data: UploadData


def parse_event(body: bytes) -> WebhookEvent:
    """Return the event in the body of a webhook, whose signature was verified before.

    Raises:
        InvalidWebhook: it is not a CloudEvent of this server.
    """
    try:
        document = json.loads(body)
        if document["specversion"] != "1.0":
            raise InvalidWebhook(f"specversion is {document['specversion']!r} and not 1.0")
        return WebhookEvent(
            id=document["id"],
            source=document["source"],
            type=document["type"],
            subject=document["subject"],
            time=datetime.fromisoformat(document["time"]),
            sequence=document.get("sequence"),
            data=_upload_data(document["data"]),
        )
    except InvalidWebhook:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidWebhook(f"the body is not an event: {error!r}") from None


def _upload_data(document: Mapping[str, Any]) -> UploadData:
    known = {each.name for each in fields(UploadData)} - {"extra"}
    extra = {name: value for name, value in document.items() if name not in known}
    return UploadData(**{name: value for name, value in document.items() if name in known}, extra=extra)
