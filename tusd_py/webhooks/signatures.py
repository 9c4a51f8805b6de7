"""Signatures of webhooks as Standard Webhooks describes them (standardwebhooks.com, version 1).

The signature is an HMAC-SHA256 over `id.timestamp.body`. A secret is `whsec_` and the key in base64; the
header may carry several signatures, separated by spaces, so that a secret can be replaced while both hold.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from typing import Final

from tusd_py.webhooks.events import InvalidWebhook, WebhookEvent, parse_event

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 -- what every secret begins with
TOLERANCE_SECONDS: Final = 300
"""How far the clocks of sender and receiver may be apart."""
MIN_KEY_BYTES: Final = 24
MAX_KEY_BYTES: Final = 64
_VERSION: Final = "v1"


def signing_key(secret: str) -> bytes:
    """Return the key in a secret like `whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw`.

    Raises:
        ValueError: it does not begin with `whsec_`, is not base64, or its key is not of 24 to 64 bytes.
    """
    if not secret.startswith(SECRET_PREFIX):
        raise ValueError(f"a webhook secret begins with {SECRET_PREFIX}")
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(f"a webhook secret is {SECRET_PREFIX} and a key in base64") from None
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise ValueError(f"the key of a webhook secret has {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes, not {len(key)}")
    return key


def sign(secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the three headers of a message, with a signature by each of the secrets.

    `timestamp` is in whole seconds since the epoch.
    """
    signatures = [f"{_VERSION},{_signature(signing_key(secret), message_id, timestamp, body)}" for secret in secrets]
    headers = {ID_HEADER: message_id, TIMESTAMP_HEADER: str(timestamp)}
    return headers | {SIGNATURE_HEADER: " ".join(signatures)} if signatures else headers


def verify(
    body: bytes,
    headers: Mapping[str, str],
    secret: str | Sequence[str],
    *,
    tolerance_seconds: float = TOLERANCE_SECONDS,
    now: float | None = None,
) -> WebhookEvent:
    """Return the event in a request, once its signature is verified.

    `body` is the body as it arrived, before anything has parsed it; `secret` one secret or several of which
    any may have signed. An event may arrive more than once, under the same `event.id`.

    Raises:
        InvalidWebhook: a header is missing or malformed, the message is too old or from the future, no
            signature fits, or the body is no event.
    """
    verify_signature(body, headers, secret, tolerance_seconds=tolerance_seconds, now=now)
    return parse_event(body)


def verify_signature(
    body: bytes,
    headers: Mapping[str, str],
    secret: str | Sequence[str],
    *,
    tolerance_seconds: float = TOLERANCE_SECONDS,
    now: float | None = None,
) -> None:
    """Check the signature alone, for bodies in another format. Raises `InvalidWebhook`."""
    found = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp, signatures = (found[name] for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER))
    except KeyError as error:
        raise InvalidWebhook(f"the header {error.args[0]} is missing") from None
    if not (timestamp.isascii() and timestamp.isdecimal()):
        raise InvalidWebhook(f"{TIMESTAMP_HEADER} is not a number of seconds")
    if abs((time.time() if now is None else now) - int(timestamp)) > tolerance_seconds:
        raise InvalidWebhook("the message is too old, or from the future; are the clocks right?")
    given = [value for version, _, value in (each.partition(",") for each in signatures.split()) if version == _VERSION]
    secrets = [secret] if isinstance(secret, str) else secret
    expected = [_signature(signing_key(each), message_id, int(timestamp), body) for each in secrets]
    # Each pair is compared, so that the time says nothing of which one fits.
    fits = [hmac.compare_digest(ours.encode(), theirs.encode()) for ours in expected for theirs in given]
    if not any(fits):
        raise InvalidWebhook("no signature fits; is it the secret of this endpoint, and the body as it arrived?")


def _signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp, body)
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode("ascii")
