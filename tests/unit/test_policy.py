"""Who may do what: the whole table."""

from __future__ import annotations

from typing import Any

import pytest

from tusd_py.errors import Forbidden, TusdError, Unauthenticated, UnknownProfile, UploadNotFound
from tusd_py.policy import ANONYMOUS, NOBODY, Intent, Principal, Rules, permits

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

PER_UPLOAD = [intent for intent in Intent if intent is not Intent.CREATE]

# What is somebody else's does not exist; what is asked of all uploads is refused.
STRANGERS = dict.fromkeys(PER_UPLOAD, UploadNotFound) | {Intent.LIST: Forbidden, Intent.FORCE: Forbidden}

# Rows: who asks. Columns: the outcome for an upload of alice, None where it is permitted.
TABLE: list[tuple[str, Principal, dict[Intent, type[TusdError] | None]]] = [
    ("anonymous", ANONYMOUS, dict.fromkeys(Intent)),
    ("owner", OWNER, dict.fromkeys(PER_UPLOAD) | {Intent.FORCE: Forbidden}),
    (
        "expired owner",
        EXPIRED,
        dict.fromkeys(Intent, Unauthenticated) | {Intent.HEAD: None, Intent.WRITE: None},
    ),
    ("stranger", STRANGER, STRANGERS),
    (
        "expired stranger",
        EXPIRED_STRANGER,
        dict.fromkeys(Intent, Unauthenticated) | {Intent.HEAD: UploadNotFound, Intent.WRITE: UploadNotFound},
    ),
    (
        "staff",
        STAFF,
        STRANGERS | {Intent.READ: None, Intent.DOWNLOAD: None, Intent.LIST: None},
    ),
    (
        "operator",
        ADMIN,
        STRANGERS
        | dict.fromkeys((Intent.READ, Intent.LIST, Intent.COMMIT, Intent.TRANSFER, Intent.REMOVE, Intent.FORCE)),
    ),
    ("nobody", NOBODY, dict.fromkeys(Intent, Unauthenticated)),
    ("nobody with scopes", SCOPED_NOBODY, dict.fromkeys(Intent, Unauthenticated)),
]

CASES = [
    pytest.param(principal, intent, outcome, id=f"{who} {intent}")
    for who, principal, outcomes in TABLE
    for intent, outcome in outcomes.items()
]


def outcome_of(
    principal: Principal,
    intent: Intent,
    owner: str | None,
    *,
    profile: str = "default",
    **rules: Any,
) -> type[TusdError] | None:
    held = Rules(**({"read_any_scope": READ_ANY, "admin_scope": ADMIN_SCOPE} | rules))
    try:
        permits(principal, intent, owner, held, profile=profile)
    except TusdError as error:
        return type(error)
    return None


@pytest.mark.parametrize(("principal", "intent", "outcome"), CASES)
def test_an_upload_of_alice(principal: Principal, intent: Intent, outcome: type[TusdError] | None) -> None:
    assert outcome_of(principal, intent, "alice") is outcome


@pytest.mark.parametrize("intent", Intent)
def test_without_authentication_everybody_may_do_everything(intent: Intent) -> None:
    assert outcome_of(ANONYMOUS, intent, None, create_scope=CREATE_SCOPE) is None


@pytest.mark.parametrize("intent", PER_UPLOAD)
def test_an_upload_without_owner_belongs_to_no_token(intent: Intent) -> None:
    assert outcome_of(OWNER, intent, None) is STRANGERS[intent]


@pytest.mark.parametrize("intent", [Intent.READ, Intent.DOWNLOAD, Intent.LIST])
def test_staff_sees_uploads_without_owner_too(intent: Intent) -> None:
    assert outcome_of(STAFF, intent, None) is None


@pytest.mark.parametrize("intent", PER_UPLOAD)
def test_an_empty_scope_is_held_by_nobody(intent: Intent) -> None:
    odd = Principal("mallory", frozenset({""}))

    assert outcome_of(odd, intent, "alice", read_any_scope="", admin_scope="") is STRANGERS[intent]


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
    assert outcome_of(principal, Intent.CREATE, None, create_scope=create_scope) is outcome


def test_the_reason_stays_in_the_log() -> None:
    with pytest.raises(UploadNotFound) as refusal:
        permits(STRANGER, Intent.WRITE, "alice", Rules())

    assert refusal.value.context == {"intent": "write", "subject": "mallory"}
    assert refusal.value.detail == "There is no such upload."


# --- profiles --------------------------------------------------------------------------------------

DOWNLOADS = {"default": "owner", "open": "public", "team": "team:read"}
TEAM = Principal("dave", frozenset({"team:read"}))


@pytest.mark.parametrize(
    ("profile", "allowed"),
    [
        ("default", {OWNER, STAFF}),
        ("open", {OWNER, STAFF, STRANGER, TEAM, ADMIN, NOBODY, EXPIRED_STRANGER}),
        ("team", {OWNER, STAFF, TEAM}),
        ("configured no more", {OWNER, STAFF}),
    ],
)
def test_a_profile_says_who_may_download(profile: str, allowed: set[Principal]) -> None:
    for principal in (OWNER, STAFF, STRANGER, TEAM, ADMIN, NOBODY, EXPIRED_STRANGER):
        outcome = outcome_of(principal, Intent.DOWNLOAD, "alice", profile=profile, downloads=DOWNLOADS)
        assert (outcome is None) == (principal in allowed), principal


@pytest.mark.parametrize("intent", [intent for intent in PER_UPLOAD if intent is not Intent.DOWNLOAD])
def test_who_may_download_may_do_nothing_else(intent: Intent) -> None:
    for profile, principal in (("open", STRANGER), ("team", TEAM)):
        assert outcome_of(principal, intent, "alice", profile=profile, downloads=DOWNLOADS) is STRANGERS[intent]


@pytest.mark.parametrize(("profile", "outcome"), [("default", None), ("team", None), ("", UnknownProfile)])
def test_only_what_is_configured_can_be_asked_for(profile: str, outcome: type[TusdError] | None) -> None:
    asking = Principal("alice", frozenset(), profile=profile)

    assert outcome_of(asking, Intent.CREATE, None, downloads=DOWNLOADS) is outcome
    assert outcome_of(asking, Intent.WRITE, "alice", downloads=DOWNLOADS) is None
