"""Receive the webhooks of a server: verify them, and read their events as typed objects.

This package needs nothing but the standard library, so that a receiver may import it from any framework:

    from tusd_py.webhooks import verify

    event = verify(body, request.headers, secret)
    if event.type == "tusd_py.upload.stored":
        ...
"""

from tusd_py.webhooks.events import EventType, InvalidWebhook, UploadData, WebhookEvent, parse_event
from tusd_py.webhooks.signatures import (
    TOLERANCE_SECONDS,
    sign,
    signing_key,
    verify,
    verify_signature,
)

__all__ = [
    "TOLERANCE_SECONDS",
    "EventType",
    "InvalidWebhook",
    "UploadData",
    "WebhookEvent",
    "parse_event",
    "sign",
    "signing_key",
    "verify",
    "verify_signature",
]
