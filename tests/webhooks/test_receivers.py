"""The receivers of docs/events.md, each in a server of its framework, against what the server really sends."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.blocking_client import fetch
from tests.support.documents import DOCS, block
from tests.support.ports import LOOPBACK, free_port, is_listening
from tests.support.process import Child
from tests.support.tools import ROOT
from tests.support.webhook_receiver import SECRET
from tusd_py.endpoints.webhook import WebhookEndpoint
from tusd_py.ports.events import DeliveryFailed, Message
from tusd_py.webhooks import sign

pytestmark = pytest.mark.acceptance

START_SECONDS = 40
EVENTS = DOCS / "events.md"
GOLDEN = ROOT / "tests" / "uploads" / "golden"
OTHER_SECRET = "whsec_" + "QUFB" * 8
# What starts each server, with a URL more that shows what the receiver has stored.
SERVERS = {
    "FastAPI()": """
        import sys, uvicorn, receiver
        receiver.app.add_api_route("/stored", lambda: receiver.stored)
        uvicorn.run(receiver.app, host="127.0.0.1", port=int(sys.argv[1]))
    """,
    "django": """
        import sys, django, receiver
        from django.conf import settings
        from django.core.management import execute_from_command_line
        from django.http import JsonResponse
        from django.urls import path
        urlpatterns = [
            path("webhooks/uploads", receiver.receive),
            path("stored", lambda request: JsonResponse(receiver.stored, safe=False)),
        ]
        settings.configure(
            SECRET_KEY="for the tests", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"], USE_TZ=True,
            MIDDLEWARE=["django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware"],
        )
        execute_from_command_line(["manage.py", "runserver", "--noreload", f"127.0.0.1:{sys.argv[1]}"])
    """,
    "web.Application()": """
        import sys, receiver
        from aiohttp import web
        async def stored(request):
            return web.json_response(receiver.stored)
        receiver.app.router.add_get("/stored", stored)
        web.run_app(receiver.app, host="127.0.0.1", port=int(sys.argv[1]))
    """,
}


@pytest.fixture(params=SERVERS, ids=["fastapi", "django", "aiohttp"])
def origin(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A running receiver, as the page has it."""
    (tmp_path / "receiver.py").write_text(block(EVENTS, "python", request.param))
    program = "\n".join(line.removeprefix(" " * 8) for line in SERVERS[request.param].splitlines())
    (tmp_path / "serve.py").write_text(program)
    port = free_port()
    with Child([sys.executable, "serve.py", str(port)], log=tmp_path / "server.log", cwd=tmp_path) as server:
        server.wait_ready(lambda: is_listening(port), deadline=START_SECONDS, what="the receiver listens")
        yield f"http://{LOOPBACK}:{port}"


def message(name: str) -> Message:
    body = (GOLDEN / name).read_bytes()
    event = json.loads(body)
    return Message(id=event["id"], name=event["type"], body=body, content_type="application/cloudevents+json")


STORED = message("cloud-stored-in-folder.json")


async def send(origin: str, message: Message, *, secret: str = SECRET, age_seconds: float = 0) -> None:
    endpoint = WebhookEndpoint(
        f"{origin}/webhooks/uploads",
        secrets=[secret] if secret else [],
        timeout_seconds=30,
        concurrency=1,
        allow_private=True,
        clock=lambda: time.time() - age_seconds,
    )
    try:
        await endpoint.send(message)
    finally:
        await endpoint.close()


def kept(origin: str) -> list[list[str]]:
    response = fetch(f"{origin}/stored", timeout=30)
    assert response.status == 200, response
    stored: list[list[str]] = json.loads(response.body)
    return stored


async def test_signed_event_is_stored_and_a_forged_one_is_refused(origin: str) -> None:
    data = json.loads(STORED.body)["data"]
    forged = dataclasses.replace(STORED, body=STORED.body.replace(data["id"].encode(), b"0" * 36))

    for what, secret, age_seconds in (
        (STORED, OTHER_SECRET, 0),
        (STORED, "", 0),
        (STORED, SECRET, 3600),
        (dataclasses.replace(STORED, body=b"{}"), SECRET, 0),
    ):
        with pytest.raises(DeliveryFailed, match="replied 400"):
            await send(origin, what, secret=secret, age_seconds=age_seconds)
    assert kept(origin) == []

    await send(origin, STORED)
    assert kept(origin) == [[data["id"], data["filename"]]]
    # Signed as one event and sent as another: the headers fit another body.
    await send_with_the_signature_of(origin, STORED, forged)
    assert kept(origin) == [[data["id"], data["filename"]]]


async def send_with_the_signature_of(origin: str, signed: Message, sent: Message) -> None:
    headers = {"Content-Type": signed.content_type, **sign([SECRET], signed.id, int(time.time()), signed.body)}
    response = fetch(f"{origin}/webhooks/uploads", "POST", headers, sent.body, timeout=30)
    assert response.status == 400, response


async def test_event_that_the_receiver_does_not_want_is_accepted(origin: str) -> None:
    await send(origin, message("cloud-created.json"))

    assert kept(origin) == []


def test_nothing_but_post_is_answered(origin: str) -> None:
    assert fetch(f"{origin}/webhooks/uploads", timeout=30).status == 405
