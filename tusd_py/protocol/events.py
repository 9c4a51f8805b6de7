"""What applications are told of, and what they are asked before it happens."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

TYPE_PREFIX: Final = "tusd_py."
"""What the type of a CloudEvent begins with; the rest is the kind."""

TEST_TYPE: Final = "tusd_py.webhook.test"
"""Of the event by which an operator tries an endpoint. It is not recorded."""


class EventKind(StrEnum):
    """What has happened."""

    CREATED = "upload.created"
    PROGRESS = "upload.progress"
    """Bytes have become durable. Not recorded: it is told to those who listen, and may be dropped."""
    COMPLETED = "upload.completed"
    """Every byte is here."""
    PART_COMPLETED = "upload.part_completed"
    """Every byte of a partial upload is here."""
    COMMITTED = "upload.committed"
    TRANSFERRING = "upload.transferring"
    STORED = "upload.stored"
    TRANSFER_FAILED = "upload.transfer_failed"
    OBJECT_MISSING = "upload.object_missing"
    """Reconciliation did not find the object in the store."""
    BYTES_MISSING = "upload.bytes_missing"
    """Reconciliation did not find the bytes in staging."""
    REJECTED = "upload.rejected"
    TERMINATED = "upload.terminated"
    """Somebody asked for its removal."""
    EXPIRED = "upload.expired"
    REMOVED = "upload.removed"
    """Its bytes are gone."""


RECORDED: Final = frozenset(EventKind) - {EventKind.PROGRESS}


def kinds_matching(patterns: Iterable[str]) -> list[EventKind]:
    """Return the kinds that match one of the patterns (`upload.stored`, `upload.*`), in their own order.

    No pattern with a wildcard matches `upload.progress`: whoever wants that says so.
    """
    wanted = set(patterns)
    return [
        kind
        for kind in EventKind
        if kind.value in wanted or (kind in RECORDED and any(fnmatchcase(kind.value, each) for each in wanted))
    ]


class HookKind(StrEnum):
    """When a hook is asked. The values are the names that tusd uses."""

    PRE_CREATE = "pre-create"
    """Before an upload is created: it may be refused, or get another token, metadata or object key."""
    PRE_FINISH = "pre-finish"
    """After the last byte is durable and before the upload is complete."""
    PRE_TERMINATE = "pre-terminate"
    """Before a client's DELETE."""
    POST_RECEIVE = "post-receive"
    """While a body arrives, now and then: the upload may be stopped."""
