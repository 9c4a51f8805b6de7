"""`tusd-py events test` against a real HTTP server: what is sent, and what is said of the reply."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

import pytest
from aiohttp import web

from tests.endpoints.test_webhook import SECRET, receiver, replying
from tests.support.ports import LOOPBACK, free_port
from tusd_py.commands.events import send_test
from tusd_py.config import Config
from tusd_py.config.sections import WebhookConfig
from tusd_py.errors import TusdError
from tusd_py.webhooks import verify, verify_signature


async def tried(url: str, **settings: Any) -> tuple[bool, str]:
    """Return whether the endpoint has accepted the event, and the only line that is printed."""
    webhook = WebhookConfig.model_validate({"name": "app", "url": url, "secret": SECRET, **settings})
    lines: list[str] = []
    accepted = await send_test(Config(webhooks=[webhook]), Namespace(name="app"), lines.append)
    (line,) = lines
    return accepted, line


async def test_cloud_event_of_no_upload_is_sent() -> None:
    received: list[tuple[bytes, Any]] = []

    async def handler(request: web.Request) -> web.Response:
        received.append((await request.read(), request.headers))
        return web.Response(status=202)

    async with receiver(handler) as url:
        accepted, line = await tried(url)
    assert accepted
    assert line.startswith("app: 202 in ")
    ((body, headers),) = received
    event = verify(body, headers, SECRET)
    assert (event.type, event.source, event.sequence) == ("tusd_py.webhook.test", "urn:tusd_py:test", None)
    assert event.subject == event.data.id == "00000000-0000-0000-0000-000000000000"
    assert headers["webhook-id"] == event.id != event.subject


async def test_endpoint_in_the_format_of_tusd_gets_a_hook_that_tusd_does_not_have() -> None:
    received: list[tuple[bytes, Any]] = []

    async def handler(request: web.Request) -> web.Response:
        received.append((await request.read(), request.headers))
        return web.Response()

    async with receiver(handler) as url:
        accepted, _ = await tried(url, format="tusd")
    assert accepted
    ((body, headers),) = received
    verify_signature(body, headers, SECRET)
    assert headers["Hook-Name"] == json.loads(body)["Type"] == "test"
    assert json.loads(body)["Event"]["Upload"]["ID"] == ""


@pytest.mark.parametrize("status", [301, 400, 410, 500])
async def test_status_that_takes_no_event_is_said(status: int) -> None:
    async with receiver(replying(status, Location="/elsewhere")) as url:
        accepted, line = await tried(url)
    assert not accepted
    assert line.startswith(f"app: {status} in ")
    assert line.endswith("not accepted: only a 2xx status takes an event")


async def test_endpoint_that_cannot_be_reached_is_said() -> None:
    accepted, line = await tried(f"http://{LOOPBACK}:{free_port()}/")
    assert not accepted
    assert line.startswith("app: the endpoint cannot be reached: ")


async def test_private_address_is_refused_as_in_a_delivery() -> None:
    accepted, line = await tried(f"http://{LOOPBACK}:{free_port()}/", allow_private=False)
    assert not accepted
    assert line.startswith(f"app: {LOOPBACK} is a private address; see allow_private, after ")


async def test_webhook_that_is_not_configured_is_an_error_with_the_names_that_are() -> None:
    webhook = WebhookConfig.model_validate({"url": "https://app.example.com/in?key=secret"})
    with pytest.raises(TusdError, match=r"'app'.*Configured: https://app\.example\.com/in\."):
        await send_test(Config(webhooks=[webhook]), Namespace(name="app"), print)
