"""Blocking hooks: what they are asked, and what they may change.

The types are those of a Python hook as well; see `docs/events.md`. What a hook may not change, the size and the
offset above all, is in no type that it returns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tusd_py.protocol.events import HookKind


@dataclass(frozen=True, slots=True, kw_only=True)
class HookUpload:
    """The upload as a hook sees it."""

    id: str
    """The public id; empty before the upload is created."""
    size: int | None
    """In bytes, None while it is not known."""
    offset: int
    metadata: Mapping[str, str]
    """Decoded; values that are not UTF-8 have replacement characters."""
    is_partial: bool = False
    is_final: bool = False
    partial_uploads: Sequence[str] | None = None
    """The public ids of the uploads that a final one is made of."""
    storage: Mapping[str, str] | None = None
    """Where the bytes are; None before the upload is created."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookRequest:
    """The request that a hook is asked about. In its URI the token is shortened."""

    method: str
    uri: str
    remote_addr: str
    headers: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HookEvent:
    """One question to a hook."""

    kind: HookKind
    upload: HookUpload
    request: HookRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class HookResponse:
    """What the response to the client is to be instead. 0, an empty body and no headers leave it as it is."""

    status_code: int = 0
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfoChanges:
    """What `pre-create` may change of the upload. None leaves it as it is."""

    id: str | None = None
    """Becomes the token in the upload's URL."""
    metadata: Mapping[str, str] | None = None
    """Replaces all metadata of the client."""
    storage_path: str | None = None
    """Becomes the object's key: a relative path without `..`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookReply:
    """What a hook wants. The default changes nothing."""

    response: HookResponse = field(default_factory=HookResponse)
    reject_upload: bool = False
    """In `pre-create`: nothing is created."""
    reject_termination: bool = False
    """In `pre-terminate`: the upload stays."""
    change_file_info: FileInfoChanges | None = None
    """In `pre-create`."""
    stop_upload: bool = False
    """In `post-receive`: the upload is terminated."""


class Hooks(Protocol):
    """Asks the application, by HTTP, by a program or by a function in this process."""

    async def ask(self, event: HookEvent) -> HookReply:
        """Return what the hook wants.

        Raises:
            HookFailed: there was no usable reply in time.
        """

    async def close(self) -> None:
        """Close connections."""


class PythonHook(Protocol):
    """A function or object that the configuration names as `package.module:object`.

    An ordinary function runs in a thread of its own. None is the reply that changes nothing; an exception is
    a failure, as a status other than 2xx is one of an HTTP hook.
    """

    def __call__(self, event: HookEvent, /) -> HookReply | Awaitable[HookReply | None] | None: ...
