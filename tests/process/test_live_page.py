"""The upload page listens: its list follows live events, and asks the server only where there are none."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest
from playwright.sync_api import Page, Request, Route, expect

from tests.support.blocking_client import OCTETS, TUS, create, request
from tests.support.browser import WAIT_MS
from tests.support.process import wait_until
from tests.support.proxies import PROXIES
from tests.support.server import Server, StartServer

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180), pytest.mark.usefixtures("built")]

MIB = 2**20
SECRET = "0123456789abcdef0123456789abcdef"
FREQUENT = {"events": {"progress_interval": 0.1}}


class Asked:
    """What a page has asked of the list and of the stream."""

    def __init__(self, page: Page) -> None:
        self.lists = 0
        self.streams: list[Request] = []
        page.on("request", self._note)
        self._page = page

    def _note(self, sent: Request) -> None:
        if sent.url.endswith("/api/v1/events"):
            self.streams.append(sent)
        elif "/api/v1/uploads?" in sent.url:
            self.lists += 1

    def settled(self) -> None:
        """Wait until the page listens, and has asked for what it may have missed before: at first, then, and after."""
        wait_until(lambda: self._later() and len(self.streams) == 1 and self.lists >= 3, deadline=30, what="it listens")

    def _later(self) -> bool:
        self._page.wait_for_timeout(20)
        return True


def cut_off(page: Page) -> None:
    """Refuse the list from now on: what the page shows then, it has heard."""
    page.route("**/api/v1/uploads?*", lambda route: route.abort())


def patch(server: Server, target: str, offset: int, size: int, headers: dict[str, str] | None = None) -> None:
    sent = {**TUS, **OCTETS, **(headers or {}), "Upload-Offset": str(offset)}
    assert request(server.port, "PATCH", target, sent, bytes(size)).status == 204


def test_list_follows_what_is_heard_without_asking(page: Page, start_server: StartServer) -> None:
    server = start_server(FREQUENT)
    target = create(server.port, 4 * MIB).headers["location"]
    asked = Asked(page)
    page.goto(f"{server.origin}/")
    asked.settled()
    cut_off(page)
    shown = page.locator("tbody tr")

    for offset in (0, MIB, 2 * MIB):
        patch(server, target, offset, MIB)
        expect(shown).to_contain_text(f"{offset // MIB + 1} MB of 4 MB", timeout=WAIT_MS)
    patch(server, target, 3 * MIB, MIB)

    expect(shown.locator(".state[data-state=stored]")).to_be_visible(timeout=WAIT_MS)
    expect(page.locator("#news")).to_contain_text("Stored: ")
    assert len(asked.streams) == 1


def test_new_upload_and_a_removed_one_are_seen_at_once(page: Page, start_server: StartServer) -> None:
    server = start_server()
    asked = Asked(page)
    page.goto(f"{server.origin}/")
    asked.settled()
    expect(page.get_by_text("Nothing here yet.")).to_be_visible()

    target = create(server.port, 4 * MIB).headers["location"]
    expect(page.locator("tbody tr")).to_have_count(1, timeout=WAIT_MS)
    cut_off(page)
    request(server.port, "DELETE", target, TUS)

    expect(page.locator("tbody tr")).to_have_count(0, timeout=WAIT_MS)


@pytest.mark.parametrize("proxy", PROXIES)
def test_page_listens_through_the_documented_proxies(
    page: Page, start_server: StartServer, tmp_path: Path, proxy: str
) -> None:
    server = start_server(FREQUENT | {"server": {"trusted_proxies": ["127.0.0.1/32"]}})
    target = create(server.port, 4 * MIB).headers["location"]
    asked = Asked(page)
    with PROXIES[proxy](tmp_path / proxy, server.port) as front:
        page.goto(f"{front.origin}/")
        asked.settled()
        cut_off(page)
        patch(server, target, 0, MIB)

        expect(page.locator("tbody tr")).to_contain_text("1 MB of 4 MB", timeout=WAIT_MS)
        page.close()


def gather(_: Route) -> None:
    """Pass nothing on, as a proxy does that waits for the end of a response."""


def refuse(route: Route) -> None:
    route.fulfill(status=503)


@pytest.mark.parametrize("away", [gather, refuse])
def test_page_asks_again_where_the_stream_cannot_be_had(
    page: Page, start_server: StartServer, away: Callable[[Route], None]
) -> None:
    server = start_server(FREQUENT)
    target = create(server.port, 4 * MIB).headers["location"]
    asked = Asked(page)
    page.route("**/api/v1/events", away)
    page.goto(f"{server.origin}/")
    for offset in (0, MIB, 2 * MIB):
        patch(server, target, offset, MIB)
        expect(page.locator("tbody tr")).to_contain_text(f"{offset // MIB + 1} MB of 4 MB", timeout=WAIT_MS)
    before = asked.lists
    patch(server, target, 3 * MIB, MIB)
    expect(page.locator("tbody tr .state[data-state=stored]")).to_be_visible(timeout=WAIT_MS)

    assert asked.lists > before
    # It is tried again, and taken as soon as it can be had.
    page.unroute("**/api/v1/events")
    with page.expect_response(lambda got: got.url.endswith("/api/v1/events") and got.ok, timeout=WAIT_MS):
        pass
    page.close()


def test_page_comes_back_to_the_stream_after_a_restart(page: Page, start_server: StartServer) -> None:
    server = start_server(FREQUENT)
    target = create(server.port, 4 * MIB).headers["location"]
    asked = Asked(page)
    page.goto(f"{server.origin}/")
    asked.settled()
    server.terminate()
    expect(page.get_by_text("The server does not answer")).to_be_visible(timeout=WAIT_MS)
    server.restart()
    with page.expect_response(lambda got: got.url.endswith("/api/v1/events") and got.ok, timeout=WAIT_MS):
        pass
    expect(page.get_by_text("The server does not answer")).to_be_hidden(timeout=WAIT_MS)

    patch(server, target, 0, MIB)

    expect(page.locator("tbody tr")).to_contain_text("1 MB of 4 MB", timeout=WAIT_MS)


def test_stream_is_asked_for_with_the_token_and_ends_with_it(page: Page, start_server: StartServer) -> None:
    server = start_server({"server": {"page": "on"}, "auth": {"mode": "jwt", "jwt": {"secret": SECRET}}} | FREQUENT)
    headers = {"Authorization": f"Bearer {jwt.encode({'sub': 'ann', 'exp': time.time() + 3600}, SECRET)}"}
    created = request(server.port, "POST", "/files/", {**TUS, **headers, "Upload-Length": str(4 * MIB)})
    asked = Asked(page)
    page.goto(f"{server.origin}/")
    expect(page.get_by_label("Token", exact=True)).to_be_visible()
    assert asked.streams == []
    page.get_by_label("Token", exact=True).fill(headers["Authorization"])
    page.keyboard.press("Enter")
    asked.settled()
    cut_off(page)

    patch(server, created.headers["location"], 0, MIB, headers)
    expect(page.locator("tbody tr")).to_contain_text("1 MB of 4 MB", timeout=WAIT_MS)
    with page.expect_event("requestfailed", lambda ended: ended.url.endswith("/api/v1/events")):
        page.get_by_role("button", name="Forget token").click()

    assert asked.streams[0].headers["authorization"] == headers["Authorization"]
