"""Who may do what: the whole table."""

from __future__ import annotations

from typing import Any

import pytest

from tusd_py.authorization import ANONYMOUS, UNAUTHENTICATED, Action, Principal, Rules, authorize
from tusd_py.config import JwtConfig, ProfileConfig
from tusd_py.errors import Forbidden, TusdError, Unauthenticated, UnknownProfile, UploadNotFound

pytestmark = pytest.mark.unit

CREATE_SCOPE = "files:create"
READ_ANY = "files:read:any"
ADMIN_SCOPE = "files:admin"

OWNER = Principal("alice", frozenset())
EXPIRED = Principal("alice", frozenset({CREATE_SCOPE, READ_ANY}), expired=True)
STRANGER = Principal("mallory", frozenset({CREATE_SCOPE}))
EXPIRED_STRANGER = Principal("mallory", frozenset({CREATE_SCOPE, READ_ANY}), expired=True)
STAFF = Principal("bob", frozenset({READ_ANY}))
ADMIN = Principal("carol", frozenset({ADMIN_SCOPE}))
SCOPED_NOBODY = Principal(None, frozenset({CREATE_SCOPE, READ_ANY, ADMIN_SCOPE}))

Outcomes = dict[Action, type[TusdError] | None]

PER_UPLOAD = [action for action in Action if action is not Action.CREATE]

PERMITTED: Outcomes = dict.fromkeys(PER_UPLOAD)

# What is somebody else's does not exist; what is asked of all uploads is refused.
STRANGERS: Outcomes = dict.fromkeys(PER_UPLOAD, UploadNotFound) | {Action.LIST: Forbidden, Action.FORCE: Forbidden}

# Rows: who asks. Columns: the outcome for an upload of alice, None where it is permitted.
TABLE: list[tuple[str, Principal, Outcomes]] = [
    ("anonymous", ANONYMOUS, dict.fromkeys(Action)),
    ("owner", OWNER, PERMITTED | {Action.FORCE: Forbidden}),
    (
        "expired owner",
        EXPIRED,
        dict.fromkeys(Action, Unauthenticated) | {Action.HEAD: None, Action.WRITE: None},
    ),
    ("stranger", STRANGER, STRANGERS),
    (
        "expired stranger",
        EXPIRED_STRANGER,
        dict.fromkeys(Action, Unauthenticated) | {Action.HEAD: UploadNotFound, Action.WRITE: UploadNotFound},
    ),
    (
        "staff",
        STAFF,
        STRANGERS | {Action.READ: None, Action.DOWNLOAD: None, Action.LIST: None},
    ),
    (
        "operator",
        ADMIN,
        STRANGERS
        | dict.fromkeys((Action.READ, Action.LIST, Action.COMMIT, Action.TRANSFER, Action.REMOVE, Action.FORCE)),
    ),
    ("nobody", UNAUTHENTICATED, dict.fromkeys(Action, Unauthenticated)),
    ("nobody with scopes", SCOPED_NOBODY, dict.fromkeys(Action, Unauthenticated)),
]

CASES = [
    pytest.param(principal, action, outcome, id=f"{who} {action}")
    for who, principal, outcomes in TABLE
    for action, outcome in outcomes.items()
]


def make_rules(downloads: dict[str, str] | None = None, **scopes: Any) -> Rules:
    """Rules with these scopes, and profiles by who may download; only the default one unless they are given."""
    profiles = {name: ProfileConfig(perm_download=who) for name, who in (downloads or {"default": "owner"}).items()}
    return Rules(JwtConfig(**scopes), profiles)


def outcome_of(
    principal: Principal,
    action: Action,
    owner: str | None,
    *,
    profile: str = "default",
    **rules: Any,
) -> type[TusdError] | None:
    held = make_rules(**({"read_any_scope": READ_ANY, "admin_scope": ADMIN_SCOPE} | rules))
    try:
        authorize(principal, action, owner, held, profile=profile)
    except TusdError as error:
        return type(error)
    return None


@pytest.mark.parametrize(("principal", "action", "outcome"), CASES)
def test_an_upload_of_alice(principal: Principal, action: Action, outcome: type[TusdError] | None) -> None:
    assert outcome_of(principal, action, "alice") is outcome


@pytest.mark.parametrize("action", Action)
def test_without_authentication_everybody_may_do_everything(action: Action) -> None:
    assert outcome_of(ANONYMOUS, action, None, create_scope=CREATE_SCOPE) is None


@pytest.mark.parametrize("action", PER_UPLOAD)
def test_an_upload_without_owner_belongs_to_no_token(action: Action) -> None:
    assert outcome_of(OWNER, action, None) is STRANGERS[action]


@pytest.mark.parametrize("action", [Action.READ, Action.DOWNLOAD, Action.LIST])
def test_staff_sees_uploads_without_owner_too(action: Action) -> None:
    assert outcome_of(STAFF, action, None) is None


@pytest.mark.parametrize("action", PER_UPLOAD)
def test_an_empty_scope_is_held_by_nobody(action: Action) -> None:
    odd = Principal("mallory", frozenset({""}))

    assert outcome_of(odd, action, "alice", read_any_scope="", admin_scope="") is STRANGERS[action]


@pytest.mark.parametrize(
    ("principal", "create_scope", "outcome"),
    [
        (OWNER, "", None),
        (OWNER, CREATE_SCOPE, Forbidden),
        (STAFF, CREATE_SCOPE, Forbidden),
        (STRANGER, CREATE_SCOPE, None),
        (EXPIRED, "", Unauthenticated),
        (EXPIRED, CREATE_SCOPE, Unauthenticated),
    ],
)
def test_creating_needs_the_scope_if_there_is_one(
    principal: Principal, create_scope: str, outcome: type[TusdError] | None
) -> None:
    assert outcome_of(principal, Action.CREATE, None, create_scope=create_scope) is outcome


def test_the_reason_stays_in_the_log() -> None:
    with pytest.raises(UploadNotFound) as refusal:
        authorize(STRANGER, Action.WRITE, "alice", make_rules())

    assert refusal.value.context == {"action": "write", "subject": "mallory"}
    assert refusal.value.detail == "There is no such upload."


# --- profiles --------------------------------------------------------------------------------------

DOWNLOADS = {"default": "owner", "open": "public", "team": "team:read"}
TEAM = Principal("dave", frozenset({"team:read"}))


@pytest.mark.parametrize(
    ("profile", "allowed"),
    [
        ("default", {OWNER, STAFF}),
        ("open", {OWNER, STAFF, STRANGER, TEAM, ADMIN, UNAUTHENTICATED, EXPIRED_STRANGER}),
        ("team", {OWNER, STAFF, TEAM}),
        ("configured no more", {OWNER, STAFF}),
    ],
)
def test_a_profile_says_who_may_download(profile: str, allowed: set[Principal]) -> None:
    for principal in (OWNER, STAFF, STRANGER, TEAM, ADMIN, UNAUTHENTICATED, EXPIRED_STRANGER):
        outcome = outcome_of(principal, Action.DOWNLOAD, "alice", profile=profile, downloads=DOWNLOADS)
        assert (outcome is None) == (principal in allowed), principal


@pytest.mark.parametrize("action", [action for action in PER_UPLOAD if action is not Action.DOWNLOAD])
def test_who_may_download_may_do_nothing_else(action: Action) -> None:
    for profile, principal in (("open", STRANGER), ("team", TEAM)):
        assert outcome_of(principal, action, "alice", profile=profile, downloads=DOWNLOADS) is STRANGERS[action]


@pytest.mark.parametrize(("profile", "outcome"), [("default", None), ("team", None), ("", UnknownProfile)])
def test_only_what_is_configured_can_be_asked_for(profile: str, outcome: type[TusdError] | None) -> None:
    asking = Principal("alice", frozenset(), profile=profile)

    assert outcome_of(asking, Action.CREATE, None, downloads=DOWNLOADS) is outcome
    assert outcome_of(asking, Action.WRITE, "alice", downloads=DOWNLOADS) is None
