"""Decide whether somebody may do something to an upload. Pure: no input or output, no settings.

Whoever is asking was found out before (`tusd_py.auth`); here is only the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from tusd_py.errors import Forbidden, Unauthenticated, UnknownProfile, UploadNotFound
from tusd_py.protocol.upload import DEFAULT_PROFILE

OWNER: Final = "owner"
PUBLIC: Final = "public"


class Action(StrEnum):
    """What a principal wants to do."""

    CREATE = "create"
    WRITE = "write"
    HEAD = "head"
    TERMINATE = "terminate"
    DOWNLOAD = "download"
    READ = "read"
    LIST = "list"
    COMMIT = "commit"
    TRANSFER = "transfer"
    REMOVE = "remove"
    FORCE = "force"


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
    profile: str = DEFAULT_PROFILE
    """Under which profile its uploads are made. Not known to exist."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says about who may do what. An empty scope is held by nobody."""

    create_scope: str = ""
    """The scope without which nobody creates; empty: none is needed."""
    read_any_scope: str = ""
    admin_scope: str = ""
    downloads: Mapping[str, str] = field(default_factory=lambda: {DEFAULT_PROFILE: OWNER})
    """Every profile, and who may download its uploads: "owner", "public", or a scope."""

    @property
    def serves_nobody_in_particular(self) -> bool:
        """Return whether there are uploads that everybody may download."""
        return PUBLIC in self.downloads.values()

    def may_download(self, profile: str) -> str:
        """Return who may download the uploads of a profile; one that is configured no more is private."""
        return self.downloads.get(profile, OWNER)


ANONYMOUS: Final = Principal(subject=None, scopes=frozenset(), anonymous=True)
"""Everybody, on a server that runs without authentication."""
UNAUTHENTICATED: Final = Principal(subject=None, scopes=frozenset())
"""Who shows no credential where one is asked for."""

_RESUMING: Final = frozenset({Action.HEAD, Action.WRITE})
"""What an expired token still allows: a 401 here makes clients forget a half-done upload."""

_READING: Final = frozenset({Action.READ, Action.DOWNLOAD, Action.LIST})
"""What the scope for other people's uploads allows. HEAD is no reading: it serves to resume."""

_MANAGING: Final = frozenset({Action.READ, Action.LIST, Action.COMMIT, Action.TRANSFER, Action.REMOVE, Action.FORCE})
"""What the scope of operators allows. They see that an upload is there, and not what is in it."""


def authorize(
    principal: Principal, action: Action, owner: str | None, rules: Rules, *, profile: str = DEFAULT_PROFILE
) -> None:
    """Return if `principal` may do this to an upload of `owner` under `profile`, raise otherwise.

    Both do not matter for CREATE, which asks for the profile of the principal; for LIST `owner` is
    whose uploads are wanted, None for everybody's.

    Raises:
        Unauthenticated: nobody in particular is asking, or the token expired.
        Forbidden: the token lacks the scope to create, to list other people's uploads, or to use force.
        UnknownProfile: the token asks for a profile that is not configured.
        UploadNotFound: the upload is somebody else's, whose existence is nobody's business.
    """
    if principal.anonymous or (action is Action.DOWNLOAD and rules.may_download(profile) == PUBLIC):
        return
    if principal.subject is None or (principal.expired and action not in _RESUMING):
        raise Unauthenticated(action=str(action), expired=principal.expired)
    if action is Action.CREATE:
        _permit_creation(principal, rules)
    elif not _may_any(principal, action, rules, profile):
        _permit_own(principal, action, owner)


def _permit_creation(principal: Principal, rules: Rules) -> None:
    if rules.create_scope and rules.create_scope not in principal.scopes:
        raise Forbidden(action="create", subject=principal.subject, missing_scope=rules.create_scope)
    if principal.profile not in rules.downloads:
        raise UnknownProfile(subject=principal.subject, profile=principal.profile)


def _may_any(principal: Principal, action: Action, rules: Rules, profile: str) -> bool:
    """Return whether a scope allows this, whoever owns the upload."""
    scopes = set()
    if action in _READING:
        scopes.add(rules.read_any_scope)
    if action in _MANAGING:
        scopes.add(rules.admin_scope)
    if action is Action.DOWNLOAD and rules.may_download(profile) != OWNER:
        scopes.add(rules.may_download(profile))
    return bool((scopes - {""}) & principal.scopes)


def _permit_own(principal: Principal, action: Action, owner: str | None) -> None:
    if action is Action.FORCE or (action is Action.LIST and owner != principal.subject):
        raise Forbidden(action=str(action), subject=principal.subject)
    if owner != principal.subject:
        raise UploadNotFound(action=str(action), subject=principal.subject)
