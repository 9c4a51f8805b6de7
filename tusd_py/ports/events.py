"""Events: facts about uploads, recorded together with the change that makes them true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from tusd_py.protocol.events import EventKind
from tusd_py.protocol.upload import UploadId


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEvent:
    """An event as it was recorded."""

    id: UUID
    """The same on every delivery."""
    upload_id: UploadId
    kind: EventKind
    sequence: int
    """Counts the events of an upload from 1 without gaps."""
    created_at: datetime
    payload: Mapping[str, Any]
    """Facts of the change itself, such as the error code of a failed transfer."""
    snapshot: Mapping[str, Any]
    """The columns of the upload as they were then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRecord:
    """What the database knows of an endpoint."""

    name: str
    kinds: frozenset[EventKind]
    profiles: frozenset[str]
    """Empty: all."""
    paused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An event as an endpoint receives it."""

    id: str
    """The same on every try."""
    name: str
    """What the endpoint calls such an event: the type of a CloudEvent, or the name of a hook of tusd."""
    body: bytes
    content_type: str


class DeliveryFailed(Exception):
    """An endpoint did not take a message."""

    def __init__(self, reason: str, *, retry_after_seconds: float | None = None, gone: bool = False) -> None:
        """`retry_after_seconds` is when the endpoint wants to be asked again; `gone`: never (410)."""
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds
        self.gone = gone


class Endpoint(Protocol):
    """Somebody who is told of events."""

    async def send(self, message: Message) -> None:
        """Hand over a message; return once it is taken.

        Raises:
            DeliveryFailed: it was not, or perhaps not.
        """

    async def close(self) -> None:
        """Close connections."""
