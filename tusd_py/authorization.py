"""Decide whether a principal may do something to an upload. Pure.

Who the principal is was decided before (`tusd_py.auth`); the rules come from the configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from tusd_py.errors import Forbidden, Unauthenticated, UnknownProfile, UploadNotFound
from tusd_py.protocol.upload import DEFAULT_PROFILE

if TYPE_CHECKING:
    from tusd_py.config import JwtConfig, ProfileConfig

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

    `expired`: the token has expired, but is still within `auth.jwt.resume_grace`. A token beyond that
    is refused and becomes no principal.
    """

    subject: str | None
    scopes: frozenset[str]
    expired: bool = False
    anonymous: bool = False
    profile: str = DEFAULT_PROFILE
    """The profile of the uploads that it creates. Not yet known to exist."""
    expires_at: float = field(default=math.inf, compare=False)
    """When its token expires, in seconds since the epoch: for what lasts longer than a request."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says about who may do what."""

    scopes: JwtConfig
    """Nobody holds an empty scope."""
    profiles: Mapping[str, ProfileConfig]

    @property
    def has_public_uploads(self) -> bool:
        """Return whether there may be uploads that everybody may download."""
        return any(profile.perm_download == PUBLIC for profile in self.profiles.values())

    def may_download(self, profile: str) -> str:
        """Return who may download the uploads of a profile; a profile that is no longer configured is private."""
        return self.profiles[profile].perm_download if profile in self.profiles else OWNER

    def is_operator(self, principal: Principal) -> bool:
        """Return whether `principal` may see what is for operators."""
        return principal.anonymous or bool({self.scopes.admin_scope} - {""} & principal.scopes)


ANONYMOUS: Final = Principal(subject=None, scopes=frozenset(), anonymous=True)
"""Everybody, on a server that runs without authentication."""
UNAUTHENTICATED: Final = Principal(subject=None, scopes=frozenset())
"""A request without a credential on a server that asks for one."""

_RESUMING: Final = frozenset({Action.HEAD, Action.WRITE})
"""What an expired token still allows: a 401 here makes clients forget an unfinished upload."""

_READING: Final = frozenset({Action.READ, Action.DOWNLOAD, Action.LIST})
"""What `read_any_scope` allows. HEAD is not among them: it serves to resume."""

_MANAGING: Final = frozenset({Action.READ, Action.LIST, Action.COMMIT, Action.TRANSFER, Action.REMOVE, Action.FORCE})
"""What `admin_scope` allows. Operators see that an upload exists, not what is in it."""


def authorize(
    principal: Principal, action: Action, owner: str | None, rules: Rules, *, profile: str = DEFAULT_PROFILE
) -> None:
    """Raise unless `principal` may do this to an upload of `owner` under `profile`.

    CREATE ignores both and checks the principal's own profile. For LIST, `owner` is whose uploads are
    wanted, None for everybody's.

    Raises:
        Unauthenticated: there is no credential, or the token has expired.
        Forbidden: the token lacks the scope to create, to list other people's uploads, or to use force.
        UnknownProfile: the token asks for a profile that is not configured.
        UploadNotFound: the upload is somebody else's; that it exists is not disclosed.
    """
    if principal.anonymous or (action is Action.DOWNLOAD and rules.may_download(profile) == PUBLIC):
        return
    if principal.subject is None or (principal.expired and action not in _RESUMING):
        raise Unauthenticated(action=str(action), expired=principal.expired)
    if action is Action.CREATE:
        _authorize_creation(principal, rules)
    elif not _may_any(principal, action, rules, profile):
        _authorize_own(principal, action, owner)


def _authorize_creation(principal: Principal, rules: Rules) -> None:
    if rules.scopes.create_scope and rules.scopes.create_scope not in principal.scopes:
        raise Forbidden(action="create", subject=principal.subject, missing_scope=rules.scopes.create_scope)
    if principal.profile not in rules.profiles:
        raise UnknownProfile(subject=principal.subject, profile=principal.profile)


def _may_any(principal: Principal, action: Action, rules: Rules, profile: str) -> bool:
    """Return whether one of the scopes allows this on any upload, whoever owns it."""
    scopes = set()
    if action in _READING:
        scopes.add(rules.scopes.read_any_scope)
    if action in _MANAGING:
        scopes.add(rules.scopes.admin_scope)
    if action is Action.DOWNLOAD and rules.may_download(profile) != OWNER:
        scopes.add(rules.may_download(profile))
    return bool((scopes - {""}) & principal.scopes)


def _authorize_own(principal: Principal, action: Action, owner: str | None) -> None:
    if action is Action.FORCE or (action is Action.LIST and owner != principal.subject):
        raise Forbidden(action=str(action), subject=principal.subject)
    if owner != principal.subject:
        raise UploadNotFound(action=str(action), subject=principal.subject)
