"""Fixtures for the real process, ended after each test, and for browsers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests.support.browser import WAIT_MS, Complaints, chromium
from tests.support.files import random_file, seeded
from tests.support.fixtures import MakeFile
from tests.support.server import Config, Server, StartServer
from tests.support.tools import ROOT, require_tool

LOG_TAIL_LINES = 200


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Start servers that end with the test; the log of each is shown if the test fails."""
    servers: list[Server] = []

    def start(config: Config | None = None, *, env: Mapping[str, str] | None = None) -> Server:
        server = Server(tmp_path / f"server-{len(servers)}", config, env=env)
        servers.append(server)
        server.start()
        return server

    yield start

    for server in servers:
        # The polling of wait_for_state would bury everything else.
        lines = [line for line in server.log_text().splitlines() if '"path":"/api/v1/uploads/' not in line]
        print(f"--- {server.child.log} ---", *lines[-LOG_TAIL_LINES:], sep="\n")
    with contextlib.ExitStack() as ending:
        for server in servers:
            ending.callback(server.close)


# --- the browser and its pages ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(locale="en-GB", accept_downloads=True)
    context.set_default_timeout(WAIT_MS)
    yield context
    context.close()


@pytest.fixture
def complaints() -> Iterator[Complaints]:
    complaints = Complaints()
    yield complaints
    print("--- the browser's console ---", *complaints.lines, sep="\n")


@pytest.fixture
def page(context: BrowserContext, complaints: Complaints) -> Page:
    page = context.new_page()
    complaints.listen(page)
    return page


@pytest.fixture
def built() -> None:
    """Uppy lies beside the page."""
    require_tool("the built page", at=ROOT / "tusd_py" / "web" / "assets" / "uppy.js", install="scripts/frontend")


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    rng = seeded("browser")

    def make(name: str, size: int) -> tuple[Path, str]:
        path = tmp_path / name
        return path, random_file(path, size, rng)

    return make
