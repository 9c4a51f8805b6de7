"""The upload page in a real browser: its list, its warnings, its keyboard, and a server that wants tokens."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from playwright.sync_api import BrowserContext, Dialog, Locator, Page, expect

from tests.support.blocking_client import OCTETS, TUS, create, request
from tests.support.browser import WAIT_MS, Complaints, add, button, finished, press_upload, row_of, start
from tests.support.cutting_proxy import CuttingProxy, Stall
from tests.support.files import files_under, sha256_of
from tests.support.fixtures import MakeFile
from tests.support.process import wait_until
from tests.support.s3_servers import rclone_s3
from tests.support.server import Server, StartServer

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180), pytest.mark.usefixtures("built")]

MIB = 2**20
SECRET = "0123456789abcdef0123456789abcdef"
OTHER_SECRET = "another-secret-of-thirty-two-bytes"
NEVER_RECORDED = {"staging": {"checkpoint_seconds": 600}}
"""The server says nothing of an upload before its request has ended."""


def row(page: Page, name: str) -> Locator:
    """The row of a file."""
    return page.get_by_role("row").filter(has_text=name)


def answer_dialogs(page: Page, *, accept: bool) -> list[str]:
    """Return every question of the page alike; return the list that they are added to."""
    asked: list[str] = []

    def answer(dialog: Dialog) -> None:
        asked.append(dialog.message)
        if accept:
            dialog.accept()
        else:
            dialog.dismiss()

    page.on("dialog", answer)
    return asked


def patch(server: Server, target: str, offset: int, size: int) -> None:
    """Append to an upload, as another client would."""
    headers = {**TUS, **OCTETS, "Upload-Offset": str(offset)}
    assert request(server.port, "PATCH", target, headers, bytes(size)).status == 204


@contextlib.contextmanager
def stalled(page: Page, server: Server, path: Path) -> Iterator[CuttingProxy]:
    """Have the page upload a file that gets no further than its first bytes."""
    with CuttingProxy(server.port, Stall(2 * MIB)) as proxy:
        page.goto(f"{proxy.origin}/")
        start(page, path)
        proxy.wait_struck()
        row_of(page, path.name, "uploading")
        yield proxy


# --- what is under way -------------------------------------------------------------------------------


def test_the_list_shows_every_byte_that_the_page_sends(
    page: Page, start_server: StartServer, make_file: MakeFile
) -> None:
    path, _ = make_file("film.bin", 8 * MIB)
    server = start_server(NEVER_RECORDED)
    with stalled(page, server, path):
        bar = page.get_by_role("progressbar", name=path.name)
        expect(bar).to_be_visible()
        wait_until(lambda: bar.evaluate("bar => bar.value") >= 2 * MIB, deadline=60, what="the bar shows what was sent")
        expect(row(page, path.name)).to_contain_text(re.compile(r"\d MB of 8 MB"))

        (known,) = page.evaluate("fetch('api/v1/uploads').then(answer => answer.json())")["uploads"]
        assert known["offset"] == 0  # nobody but the page can know

        button(page, "Pause")
        row_of(page, path.name, "paused")
        button(page, "Resume")
        row_of(page, path.name, "uploading")


def test_a_large_file_in_parts_is_in_the_list_while_it_is_sent(
    page: Page, start_server: StartServer, make_file: MakeFile
) -> None:
    path, _ = make_file("large.bin", 33 * MIB)
    server = start_server(NEVER_RECORDED)
    with CuttingProxy(server.port, Stall(MIB), Stall(MIB)) as proxy:
        page.goto(f"{proxy.origin}/")
        start(page, path)
        proxy.wait_struck(2)
        row_of(page, path.name, "uploading")
        expect(row(page, path.name)).to_contain_text(re.compile(r"\d MB of 33 MB"))
        expect(row(page, path.name)).to_have_count(1)


def test_the_list_follows_what_other_clients_send(page: Page, start_server: StartServer) -> None:
    server = start_server()
    target = create(server.port, 8 * MIB).headers["location"]
    page.goto(f"{server.origin}/")
    expect(page.locator("tbody tr")).to_contain_text("8 MB")
    for offset in (0, MIB, 2 * MIB):
        patch(server, target, offset, MIB)
        expect(page.locator("tbody tr")).to_contain_text(f"{offset // MIB + 1} MB of 8 MB", timeout=WAIT_MS)


def test_a_button_keeps_the_focus_while_the_numbers_of_its_row_move(page: Page, start_server: StartServer) -> None:
    server = start_server()
    target = create(server.port, 8 * MIB).headers["location"]
    patch(server, target, 0, MIB)
    page.goto(f"{server.origin}/")
    cancel = page.locator("tbody tr button")
    cancel.focus()
    patch(server, target, MIB, MIB)
    expect(page.locator("tbody tr")).to_contain_text("2 MB of 8 MB", timeout=WAIT_MS)

    expect(cancel).to_be_focused()


# --- cancel and delete -------------------------------------------------------------------------------


def test_cancelling_in_the_list_ends_the_upload_of_this_page(
    page: Page, start_server: StartServer, make_file: MakeFile
) -> None:
    path, _ = make_file("film.bin", 8 * MIB)
    server = start_server()
    with stalled(page, server, path) as proxy:
        asked = answer_dialogs(page, accept=True)
        page.get_by_role("button", name=f"Cancel {path.name}").click()
        wait_until(lambda: [r.status for r in proxy.of("DELETE")] == [204], deadline=60, what="the upload is deleted")

        expect(page.get_by_text("Nothing here yet.")).to_be_visible(timeout=WAIT_MS)
        expect(page.get_by_text("Drop files here")).to_be_visible()
        assert len(asked) == 1
        assert path.name in asked[0]


def test_cancelling_in_the_list_ends_the_upload_of_somebody_else(page: Page, start_server: StartServer) -> None:
    server = start_server()
    target = create(server.port, 8 * MIB).headers["location"]
    patch(server, target, 0, MIB)
    page.goto(f"{server.origin}/")
    answer_dialogs(page, accept=True)
    page.get_by_role("button", name=re.compile("^Cancel ")).click()

    expect(page.get_by_text("Nothing here yet.")).to_be_visible(timeout=WAIT_MS)
    assert request(server.port, "HEAD", target, TUS).status == 404
    expect(page.get_by_role("heading", name="Recent uploads")).to_be_focused()


def test_deleting_asks_first_and_removes_the_stored_file(
    page: Page, complaints: Complaints, start_server: StartServer, make_file: MakeFile
) -> None:
    path, _ = make_file("small.bin", 100_000)
    server = start_server()
    page.goto(f"{server.origin}/")
    start(page, path)
    row_of(page, path.name, "stored")
    delete = page.get_by_role("button", name=f"Delete {path.name}")

    page.once("dialog", lambda dialog: dialog.dismiss())
    delete.click()
    assert len(files_under(server.store)) == 1
    page.once("dialog", lambda dialog: dialog.accept())
    delete.click()

    expect(page.get_by_text("Nothing here yet.")).to_be_visible(timeout=WAIT_MS)
    expect(page.locator("#news")).to_have_text(f"Deleted: {path.name}")
    wait_until(lambda: not files_under(server.store), deadline=60, what="the file is gone from the store")
    assert complaints.lines == []


def test_what_could_not_be_deleted_is_said(page: Page, start_server: StartServer, make_file: MakeFile) -> None:
    path, _ = make_file("small.bin", 100_000)
    server = start_server()
    page.goto(f"{server.origin}/")
    start(page, path)
    row_of(page, path.name, "stored")
    server.terminate()
    answer_dialogs(page, accept=True)
    page.get_by_role("button", name=f"Delete {path.name}").click()

    expect(page.locator("#recent-problem")).to_contain_text("does not answer")
    expect(page.get_by_role("button", name=f"Delete {path.name}")).to_be_visible()


# --- leaving, sizes, keyboard ------------------------------------------------------------------------


def test_leaving_the_page_is_asked_about_only_while_it_uploads(
    page: Page, start_server: StartServer, make_file: MakeFile
) -> None:
    film, _ = make_file("film.bin", 8 * MIB)
    small, _ = make_file("small.bin", 1000)
    server = start_server()
    with stalled(page, server, film):
        with page.expect_event("dialog") as asked:
            page.close(run_before_unload=True)
        assert asked.value.type == "beforeunload"
        asked.value.dismiss()

        # Where the user stayed, nothing is lost.
        button(page, "Cancel")
        expect(page.get_by_text("Drop files here")).to_be_visible()
        start(page, small)
        finished(page)
        row_of(page, small.name, "stored")
        questions = answer_dialogs(page, accept=True)
        with page.expect_event("close"):
            page.close(run_before_unload=True)
        assert questions == []


def test_sizes_are_written_as_in_the_dashboard(page: Page, start_server: StartServer, make_file: MakeFile) -> None:
    sizes = {"a.bin": 1, "b.bin": 1023, "c.bin": 1024, "d.bin": 1537, "e.bin": 38_000, "f.bin": 3 * MIB + 60_000}
    server = start_server()
    page.goto(f"{server.origin}/")
    add(page, *[make_file(name, size)[0] for name, size in sizes.items()])
    items = page.locator(".uppy-Dashboard-Item")
    expect(items).to_have_count(len(sizes))
    names = items.locator(".uppy-Dashboard-Item-name").all_text_contents()
    shown = dict(zip(names, items.locator(".uppy-Dashboard-Item-statusSize").all_text_contents(), strict=True))
    press_upload(page)
    for name in sizes:
        row_of(page, name, "stored")

    assert {name: row(page, name).locator(".number").text_content() for name in sizes} == shown
    texts = page.evaluate(
        "async (counts) => counts.map((await import('./assets/rows.js')).formatBytes)",
        [0, 2**30, 2**30 * 3 // 2, 2**40 + 2**38, None],
    )
    assert texts == ["0 B", "1 GB", "1.50 GB", "1.25 TB", "unknown"]


OUTLINE = """() => {
    const element = document.activeElement
    if (element === document.body) {
        return null
    }
    const { outlineStyle, outlineWidth } = getComputedStyle(element)
    const again = element.hasAttribute("data-seen")
    element.setAttribute("data-seen", "")
    const name = (element.ariaLabel || element.textContent || element.tagName).trim()
    return { again, name, width: outlineStyle === "solid" ? parseFloat(outlineWidth) : 0 }
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_whatever_has_the_focus_is_outlined(
    page: Page, start_server: StartServer, make_file: MakeFile, scheme: Any
) -> None:
    path, _ = make_file("film.bin", 8 * MIB)
    server = start_server()
    page.emulate_media(color_scheme=scheme)

    def walk() -> list[tuple[str, float]]:
        """Press Tab until it begins anew; return the name of each stop and the width of its outline."""
        stops: list[tuple[str, float]] = []
        for _ in range(40):
            page.keyboard.press("Tab")
            stop = page.evaluate(OUTLINE)  # None at the end of the page
            if stop and stop["again"]:
                break
            if stop:
                stops.append((stop["name"], stop["width"]))
        return stops

    page.goto(f"{server.origin}/")
    expect(page.get_by_text("Drop files here")).to_be_visible()
    empty = walk()
    with stalled(page, server, path):
        busy = walk()

    names = {name for name, _ in empty + busy}
    assert {"browse files", "Pause", "Remove file", "Pause upload", f"Cancel {path.name}"} <= names
    assert [stop for stop in empty + busy if stop[1] < 2] == []


# --- a server that wants tokens ----------------------------------------------------------------------


def token_for(subject: str, secret: str = SECRET) -> str:
    """A token as an application would hand it out."""
    return jwt.encode({"sub": subject, "exp": time.time() + 3600}, secret)


def enter(page: Page, token: str) -> None:
    """Type a token and press Enter."""
    page.get_by_label("Token", exact=True).fill(token)
    page.keyboard.press("Enter")


@pytest.fixture
def closed_server(start_server: StartServer) -> Server:
    """A server with tokens that shows the page."""
    return start_server({"server": {"page": "on"}, "auth": {"mode": "jwt", "jwt": {"secret": SECRET}}})


def test_with_a_token_files_go_up_are_listed_come_down_and_are_deleted(
    page: Page, complaints: Complaints, closed_server: Server, make_file: MakeFile, tmp_path: Path
) -> None:
    path, sha256 = make_file("Überraschung & co.bin", 3 * MIB)
    large, _ = make_file("large.bin", 33 * MIB)
    page.goto(f"{closed_server.origin}/")
    expect(page.get_by_label("Token", exact=True)).to_be_visible()
    expect(page.get_by_text("With a token you see your uploads here.")).to_be_visible()
    expect(page.locator("#uploader")).to_be_hidden()

    enter(page, f"Bearer {token_for('ann')}")
    expect(page.get_by_label("Token", exact=True)).to_be_hidden()
    start(page, path, large)
    finished(page)
    row_of(page, path.name, "stored")
    row_of(page, large.name, "stored")
    with page.expect_download() as started:
        page.get_by_role("link", name=path.name).click()
    copy = tmp_path / "copy"
    started.value.save_as(copy)
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name=f"Delete {large.name}").click()
    expect(row(page, large.name)).to_have_count(0)

    assert sha256_of(copy) == sha256
    assert started.value.suggested_filename == path.name
    assert complaints.lines == []
    assert page.evaluate("localStorage.length") == 0  # nor is the token kept for longer than the tab


def test_the_token_outlives_a_reload_and_is_forgotten_when_told(
    page: Page, context: BrowserContext, closed_server: Server
) -> None:
    page.goto(f"{closed_server.origin}/")
    enter(page, token_for("ann"))
    expect(page.get_by_text("Nothing here yet.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("Nothing here yet.")).to_be_visible()
    other_tab = context.new_page()
    other_tab.goto(f"{closed_server.origin}/")
    expect(other_tab.get_by_label("Token", exact=True)).to_be_visible()

    page.get_by_role("button", name="Forget token").click()
    expect(page.get_by_label("Token", exact=True)).to_be_focused()
    page.reload()
    expect(page.get_by_label("Token", exact=True)).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize(
    ("token", "complaint"),
    [
        (token_for("ann", OTHER_SECRET), "The server refused the token: A valid bearer token is required."),
        ("not a token", "This is not a token"),
    ],
    ids=["foreign", "malformed"],
)
def test_a_refused_token_is_said_and_asked_for_again(
    page: Page, closed_server: Server, token: str, complaint: str
) -> None:
    page.goto(f"{closed_server.origin}/")
    enter(page, token)

    expect(page.get_by_role("alert").filter(has_text=complaint)).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_label("Token", exact=True)).to_be_focused()
    enter(page, token_for("ann"))
    expect(page.get_by_text("Nothing here yet.")).to_be_visible()


def test_an_upload_whose_token_was_refused_goes_on_with_another(
    page: Page, closed_server: Server, make_file: MakeFile
) -> None:
    path, sha256 = make_file("small.bin", 100_000)
    page.goto(f"{closed_server.origin}/")
    enter(page, token_for("ann"))
    expect(page.get_by_text("Nothing here yet.")).to_be_visible()
    add(page, path)
    closed_server.terminate()
    config = closed_server.data_dir.with_name("config.toml")
    config.write_text(config.read_text().replace(SECRET, OTHER_SECRET))
    closed_server.restart()
    press_upload(page)

    expect(page.get_by_role("alert").filter(has_text="The server refused the token")).to_be_visible(timeout=WAIT_MS)
    enter(page, token_for("ann", OTHER_SECRET))
    page.locator(".uppy-StatusBar").get_by_role("button", name="Retry upload").click()
    finished(page)
    row_of(page, path.name, "stored")
    assert {sha256_of(stored) for stored in files_under(closed_server.store)} == {sha256}


def test_with_a_token_a_file_comes_down_from_the_store_without_it(
    page: Page, start_server: StartServer, make_file: MakeFile, tmp_path: Path
) -> None:
    path, sha256 = make_file("film.bin", 3 * MIB)
    with rclone_s3(tmp_path) as bucket:
        server = start_server(
            {
                "server": {"page": "on"},
                "auth": {"mode": "jwt", "jwt": {"secret": SECRET}},
                "storage": bucket.storage_config(),
            }
        )
        page.goto(f"{server.origin}/")
        enter(page, token_for("ann"))
        start(page, path)
        row_of(page, path.name, "stored")
        with page.expect_download() as started:
            page.get_by_role("link", name=path.name).click()
        copy = tmp_path / "copy"
        started.value.save_as(copy)

        assert sha256_of(copy) == sha256
        assert started.value.url.startswith(bucket.endpoint_url)
        assert page.url == f"{server.origin}/"
