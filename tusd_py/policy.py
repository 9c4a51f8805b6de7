"""Decide whether somebody may do something to an upload. Pure: no input or output, no settings.

Whoever is asking was found out before (`tusd_py.auth`); here is only the rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tusd_py.errors import Forbidden, Unauthenticated, UploadNotFound


class Intent(StrEnum):
    """What somebody wants to do."""

    CREATE = "create"
    WRITE = "write"
    HEAD = "head"
    TERMINATE = "terminate"
    DOWNLOAD = "download"
    READ = "read"
    LIST = "list"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking.

    `expired` says that the token ran out within the grace that resuming is granted; without grace
    there is no principal at all.
    """

    subject: str | None
    scopes: frozenset[str]
    expired: bool = False
    anonymous: bool = False


ANONYMOUS: Final = Principal(subject=None, scopes=frozenset(), anonymous=True)
"""Everybody, on a server that runs without authentication."""

_RESUMING: Final = frozenset({Intent.HEAD, Intent.WRITE})
"""What an expired token still allows: a 401 here makes clients forget a half-done upload."""

_READING: Final = frozenset({Intent.READ, Intent.DOWNLOAD, Intent.LIST})
"""What the scope for other people's uploads allows. HEAD is no reading: it serves to resume."""


def permits(
    principal: Principal, intent: Intent, owner: str | None, *, create_scope: str, read_any_scope: str
) -> None:
    """Return if `principal` may do this to an upload of `owner`, raise otherwise.

    `owner` does not matter for CREATE; for LIST it is whose uploads are wanted, None for everybody's.
    An empty `create_scope` asks for no scope, an empty `read_any_scope` is held by nobody.

    Raises:
        Unauthenticated: nobody in particular is asking, or the token expired.
        Forbidden: the token lacks the scope to create.
        UploadNotFound: the upload is somebody else's, whose existence is nobody's business.
    """
    if principal.anonymous:
        return
    if principal.subject is None or (principal.expired and intent not in _RESUMING):
        raise Unauthenticated(intent=str(intent), expired=principal.expired)
    if intent is Intent.CREATE:
        if create_scope and create_scope not in principal.scopes:
            raise Forbidden(intent=str(intent), subject=principal.subject, missing_scope=create_scope)
    elif owner != principal.subject and not _may_read_any(principal, intent, read_any_scope):
        raise UploadNotFound(intent=str(intent), subject=principal.subject)


def _may_read_any(principal: Principal, intent: Intent, read_any_scope: str) -> bool:
    return intent in _READING and bool(read_any_scope) and read_any_scope in principal.scopes
