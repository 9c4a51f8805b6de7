"""A webhook against a real HTTP server."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.resolver import ThreadedResolver

from tusd_py.endpoints.addresses import is_public
from tusd_py.endpoints.webhook import WebhookEndpoint
from tusd_py.ports.events import DeliveryFailed, Message
from tusd_py.webhooks import verify_signature

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE = Message(
    id="3e1f0c0e-6c1b-4b43-8e0d-6c6a9a2c7b11",
    name="tusd_py.upload.stored",
    body=b'{"specversion": "1.0"}',
    content_type="application/cloudevents+json",
)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def receiver(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/in"
    finally:
        await runner.cleanup()


async def send(url: str, message: Message = MESSAGE, **settings: Any) -> None:
    defaults: dict[str, Any] = {
        "secrets": [SECRET],
        "timeout_seconds": 30.0,
        "concurrency": 1,
        "allow_private": True,
    }
    endpoint = WebhookEndpoint(url, **defaults | settings)
    try:
        await endpoint.send(message)
    finally:
        await endpoint.close()


def replying(status: int, **headers: str) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, headers=headers)

    return handler


async def test_message_arrives_signed() -> None:
    received: list[tuple[bytes, Any]] = []

    async def handler(request: web.Request) -> web.Response:
        received.append((await request.read(), request.headers))
        return web.Response(status=204)

    async with receiver(handler) as url:
        await send(url)
        await send(url, secrets=[], hook_name=True)
    body, headers = received[0]
    assert body == MESSAGE.body
    assert headers["Content-Type"] == "application/cloudevents+json"
    assert headers["webhook-id"] == MESSAGE.id
    assert "Hook-Name" not in headers
    verify_signature(body, headers, SECRET)
    assert "webhook-signature" not in received[1][1]
    assert received[1][1]["Hook-Name"] == MESSAGE.name


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 410, 429, 500, 503])
async def test_status_that_is_no_success_is_a_failure_and_no_redirect_is_followed(status: int) -> None:
    paths: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    async with receiver(handler) as url:
        with pytest.raises(DeliveryFailed, match=str(status)) as failed:
            await send(url)
    assert failed.value.gone is (status == 410)
    assert paths == ["/in"]


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("7", 7.0),
        ("999999", 3600.0),
        ("Sat, 21 Nov 2026 12:00:30 GMT", 30.0),
        ("Sat, 21 Nov 2020 12:00:30 GMT", 0.0),
        ("soon", None),
        ("-1", None),
    ],
)
async def test_endpoint_says_when_it_wants_to_be_asked_again(retry_after: str, seconds: float | None) -> None:
    async with receiver(replying(503, **{"Retry-After": retry_after})) as url:
        with pytest.raises(DeliveryFailed) as failed:
            await send(url, clock=lambda: 1795262400.0)
    assert failed.value.retry_after_seconds == seconds


async def test_endpoint_that_is_down_or_silent_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(DeliveryFailed, match="in time"):
            await send(url, timeout_seconds=0.3)
    with pytest.raises(DeliveryFailed, match="cannot be reached"):
        await send(url)


async def test_large_reply_is_not_read() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(bytes(2**16))
        return response

    async with receiver(handler) as url:
        await send(url)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254"])
async def test_private_address_is_refused_where_it_is_not_allowed(host: str) -> None:
    requests: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        requests.append(request.path)
        return web.Response()

    async with receiver(handler) as url:
        with pytest.raises(DeliveryFailed, match="private address"):
            await send(url.replace("127.0.0.1", host), allow_private=False)
    assert requests == []


async def test_name_that_is_resolved_to_a_private_address_only_when_connecting_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def rebound(_: ThreadedResolver, host: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        return [
            {"hostname": host, "host": address, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
            for address in ("93.184.216.34", "10.0.0.1")
        ]

    monkeypatch.setattr(ThreadedResolver, "resolve", rebound)
    with pytest.raises(DeliveryFailed, match=r"10\.0\.0\.1"):
        await send("http://app.example/in", allow_private=False)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("::ffff:10.0.0.1", False),
        ("::", False),
    ],
)
def test_addresses_of_the_public_internet_are_told_from_others(address: str, public: bool) -> None:
    assert is_public(address) is public


async def test_each_try_is_signed_at_its_own_time() -> None:
    stamps: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        stamps.append(request.headers["webhook-timestamp"])
        return web.Response()

    times = iter([time.time() - 100, time.time()])
    async with receiver(handler) as url:
        endpoint = WebhookEndpoint(
            url, secrets=[SECRET], timeout_seconds=30, concurrency=1, allow_private=True, clock=lambda: next(times)
        )
        await endpoint.send(MESSAGE)
        await endpoint.send(MESSAGE)
        await endpoint.close()
    assert len(set(stamps)) == 2
