"""Headless Chromium from Debian, what a page in it complained of, and a static server for other origins."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.ports import LOOPBACK
from tests.support.tools import require_tool

WAIT_MS = 30_000
REBOUND_NAME = "rebound.example"
"""A name of somebody else's that this machine's address was given to."""
FLAGS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--no-first-run",
    "--no-pings",
    f"--host-resolver-rules=MAP {REBOUND_NAME} {LOOPBACK}",
    *(["--no-sandbox"] if os.geteuid() == 0 else []),
]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run the system's Chromium; nothing is downloaded."""
    program = require_tool("chromium", install="apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Complaints:
    """What the console of a page said that is more than news."""

    lines: list[str] = field(default_factory=list)

    def listen(self, page: Page) -> None:
        """Collect warnings, errors and uncaught exceptions of a page."""
        page.on("console", lambda said: self._add(said.type, said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: self._add("uncaught", str(error)))

    def _add(self, kind: str, text: str) -> None:
        self.lines.append(f"{kind}: {text}")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        """Write no log line."""


@contextlib.contextmanager
def static_server(directory: Path) -> Iterator[str]:
    """Serve a directory and return its origin, whose host is `localhost` and so not the server's."""
    handler = functools.partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer((LOOPBACK, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://localhost:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(5)


# --- Uppy and the list of the page -------------------------------------------------------------------


def add(page: Page, *files: Path) -> None:
    """Choose files in the Dashboard."""
    page.locator("input.uppy-Dashboard-input").first.set_input_files(files)


def start(page: Page, *files: Path) -> None:
    """Choose files and press the button."""
    add(page, *files)
    press_upload(page)


def press_upload(page: Page) -> None:
    """Press the button that begins."""
    page.get_by_role("button", name=re.compile(r"^Upload \d+ file")).click()


def button(page: Page, name: str) -> None:
    """Press a button of the status bar."""
    page.locator(".uppy-StatusBar").get_by_role("button", name=name, exact=True).click()


def finished(page: Page) -> None:
    """Wait until Uppy says that everything is uploaded."""
    expect(page.locator(".uppy-StatusBar.is-complete")).to_be_visible(timeout=WAIT_MS)


def row_of(page: Page, name: str, state: str) -> None:
    """Wait until the list shows a file in a state."""
    row = page.get_by_role("row").filter(has_text=name)
    expect(row.locator(f".state[data-state={state}]")).to_be_visible(timeout=WAIT_MS)
