"""Who may do what: the whole table."""

from __future__ import annotations

import pytest

from tusd_py.errors import Forbidden, TusdError, Unauthenticated, UploadNotFound
from tusd_py.policy import ANONYMOUS, Intent, Principal, permits

CREATE_SCOPE = "files:create"
READ_ANY = "files:read:any"

OWNER = Principal("alice", frozenset())
EXPIRED = Principal("alice", frozenset({CREATE_SCOPE, READ_ANY}), expired=True)
STRANGER = Principal("mallory", frozenset({CREATE_SCOPE}))
EXPIRED_STRANGER = Principal("mallory", frozenset({CREATE_SCOPE, READ_ANY}), expired=True)
STAFF = Principal("bob", frozenset({READ_ANY}))
NOBODY = Principal(None, frozenset({CREATE_SCOPE, READ_ANY}))

PER_UPLOAD = [intent for intent in Intent if intent is not Intent.CREATE]

# Rows: who asks. Columns: the outcome for an upload of alice, None where it is permitted.
TABLE: list[tuple[str, Principal, dict[Intent, type[TusdError] | None]]] = [
    ("anonymous", ANONYMOUS, dict.fromkeys(Intent)),
    ("owner", OWNER, dict.fromkeys(PER_UPLOAD)),
    (
        "expired owner",
        EXPIRED,
        dict.fromkeys(Intent, Unauthenticated) | {Intent.HEAD: None, Intent.WRITE: None},
    ),
    ("stranger", STRANGER, dict.fromkeys(PER_UPLOAD, UploadNotFound)),
    (
        "expired stranger",
        EXPIRED_STRANGER,
        dict.fromkeys(Intent, Unauthenticated) | {Intent.HEAD: UploadNotFound, Intent.WRITE: UploadNotFound},
    ),
    (
        "staff",
        STAFF,
        dict.fromkeys(PER_UPLOAD, UploadNotFound)
        | {Intent.READ: None, Intent.DOWNLOAD: None, Intent.LIST: None},
    ),
    ("nobody", NOBODY, dict.fromkeys(Intent, Unauthenticated)),
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
    create_scope: str = "",
    read_any_scope: str = READ_ANY,
) -> type[TusdError] | None:
    try:
        permits(principal, intent, owner, create_scope=create_scope, read_any_scope=read_any_scope)
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
    assert outcome_of(OWNER, intent, None) is UploadNotFound


@pytest.mark.parametrize("intent", [Intent.READ, Intent.DOWNLOAD, Intent.LIST])
def test_staff_sees_uploads_without_owner_too(intent: Intent) -> None:
    assert outcome_of(STAFF, intent, None) is None


@pytest.mark.parametrize("intent", PER_UPLOAD)
def test_an_empty_read_any_scope_is_held_by_nobody(intent: Intent) -> None:
    odd = Principal("mallory", frozenset({""}))

    assert outcome_of(odd, intent, "alice", read_any_scope="") is UploadNotFound


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
        permits(STRANGER, Intent.WRITE, "alice", create_scope="", read_any_scope="")

    assert refusal.value.context == {"intent": "write", "subject": "mallory"}
    assert refusal.value.detail == "There is no such upload."
