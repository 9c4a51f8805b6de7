"""Signatures of webhooks, compared with another implementation of Standard Webhooks."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tusd_py.webhooks import InvalidWebhook, sign, signing_key, verify, verify_signature

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(b"another key of thirty-two bytes!").decode()
NOW = 1_800_000_000
DOCUMENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "3e1f0c0e-6c1b-4b43-8e0d-6c6a9a2c7b11",
    "source": "https://uploads.example",
    "type": "tusd_py.upload.stored",
    "subject": "0b8f7d7a-93ff-4a0e-a32c-5b4c1e6f9b42",
    "time": "2026-11-21T12:00:00+00:00",
    "sequence": "00000000000000000003",
    "data": {"id": "0b8f7d7a-93ff-4a0e-a32c-5b4c1e6f9b42", "state": "stored", "length": 3, "offset": 3, "new": 1},
}
BODY = json.dumps(DOCUMENT).encode()


def signed(body: bytes = BODY, secrets: tuple[str, ...] = (SECRET,), at: int = NOW) -> dict[str, str]:
    return sign(secrets, "msg_1", at, body)


def test_event_is_returned_once_its_signature_is_verified() -> None:
    event = verify(BODY, signed(), SECRET, now=NOW)
    assert (event.type, event.subject, event.sequence) == (
        "tusd_py.upload.stored",
        DOCUMENT["subject"],
        "00000000000000000003",
    )
    assert (event.data.state, event.data.length, event.data.owner) == ("stored", 3, None)
    assert event.data.extra == {"new": 1}
    assert event.time.isoformat() == DOCUMENT["time"]


@given(st.binary(), st.integers(min_value=0, max_value=2**40))
def test_own_signatures_are_those_of_the_other_implementation(body: bytes, timestamp: int) -> None:
    # The other one takes only text.
    text = base64.b64encode(body)
    headers = sign([SECRET], "msg_1", timestamp, text)
    verify_signature(text, headers, SECRET, now=timestamp)
    key = Webhook(SECRET)
    if timestamp < 2**33:
        moment = datetime.fromtimestamp(timestamp, tz=UTC)
        assert headers["webhook-signature"] == key.sign("msg_1", moment, text.decode())


def test_other_implementation_verifies_our_messages() -> None:
    assert Webhook(SECRET).verify(BODY, sign([OTHER, SECRET], "msg_1", int(time.time()), BODY)) == DOCUMENT
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(BODY, sign([OTHER], "msg_1", int(time.time()), BODY))


def test_secret_can_be_replaced_on_either_side_first() -> None:
    verify(BODY, signed(secrets=(OTHER, SECRET)), SECRET, now=NOW)
    verify(BODY, signed(secrets=(SECRET,)), [OTHER, SECRET], now=NOW)


def test_header_names_are_compared_without_case() -> None:
    verify(BODY, {name.title(): value for name, value in signed().items()}, SECRET, now=NOW)


@pytest.mark.parametrize("changed", [BODY + b" ", BODY[:-1], b""])
def test_changed_body_is_refused(changed: bytes) -> None:
    with pytest.raises(InvalidWebhook, match="no signature fits"):
        verify(changed, signed(), SECRET, now=NOW)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_missing_header_is_named(name: str) -> None:
    headers = signed()
    del headers[name]
    with pytest.raises(InvalidWebhook, match=name):
        verify(BODY, headers, SECRET, now=NOW)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook-id", "msg_2"),
        ("webhook-timestamp", str(NOW + 1)),
        ("webhook-signature", "v1,AAAA"),
        ("webhook-signature", "v2," + "A" * 44),
        ("webhook-signature", ""),
        ("webhook-signature", "v1,ü"),
        ("webhook-timestamp", "soon"),
        ("webhook-timestamp", "-1"),
        ("webhook-timestamp", "١٢"),
    ],
)
def test_changed_header_is_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidWebhook):
        verify(BODY, signed() | {name: value}, SECRET, now=NOW)


@pytest.mark.parametrize("seconds", [-301, 301])
def test_old_message_and_one_from_the_future_are_refused(seconds: int) -> None:
    with pytest.raises(InvalidWebhook, match="too old"):
        verify(BODY, signed(at=NOW + seconds), SECRET, now=NOW)
    verify(BODY, signed(at=NOW + seconds), SECRET, now=NOW, tolerance_seconds=301)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"{}", b'"text"', b"\xff", json.dumps(DOCUMENT | {"specversion": "0.3"}).encode()]
    + [json.dumps({k: v for k, v in DOCUMENT.items() if k != name}).encode() for name in ("id", "type", "data", "time")]
    + [json.dumps(DOCUMENT | {"data": []}).encode(), json.dumps(DOCUMENT | {"time": "today"}).encode()],
)
def test_signed_body_that_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidWebhook):
        verify(body, signed(body), SECRET, now=NOW)


@pytest.mark.parametrize(
    "secret",
    ["", "secret", "whsec_", "whsec_***", "whsec_" + base64.b64encode(b"x" * 23).decode(), "whsec_" + "A" * 88],
)
def test_malformed_secret_is_an_error_of_the_configuration(secret: str) -> None:
    with pytest.raises(ValueError, match="webhook secret"):
        signing_key(secret)


def test_message_without_a_secret_has_no_signature() -> None:
    assert sign([], "msg_1", NOW, BODY) == {"webhook-id": "msg_1", "webhook-timestamp": str(NOW)}
