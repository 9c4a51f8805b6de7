"""Uppy in a real browser: the page of our own, and the example on a page of another origin."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.support.blocking_client import request
from tests.support.browser import (
    REBOUND_NAME,
    WAIT_MS,
    Complaints,
    add,
    button,
    finished,
    press_upload,
    row_of,
    start,
    static_server,
)
from tests.support.cutting_proxy import CuttingProxy, Request, Stall
from tests.support.files import download, files_under, sha256_of
from tests.support.fixtures import MakeFile
from tests.support.nginx import MAIN
from tests.support.ports import LOOPBACK, free_port, is_listening
from tests.support.process import Child, wait_until
from tests.support.server import Server, StartServer
from tests.support.tools import ROOT, require_tool
from tusd_py.http.upload_page import CDN

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]

MIB = 2**20
EXAMPLE = ROOT / "examples" / "uppy"
FRONTEND = ROOT / "frontend"
WELCOME = {"cors": {"allow_origins": ["http://localhost:*"]}}
"""What a server must say for the example's pages."""
PREFIXED = """\
server {{
    listen {LOOPBACK}:{port};
    client_max_body_size 0;
    location /media/ {{
        proxy_pass http://{LOOPBACK}:{upstream}/;
        proxy_request_buffering off;
        proxy_http_version 1.1;
    }}
}}
"""


# --- helpers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built from its npm packages into a folder of the tests."""
    bundler = require_tool(
        "esbuild",
        at=EXAMPLE / "node_modules" / ".bin" / "esbuild",
        install=f"npm ci --prefix {EXAMPLE.relative_to(ROOT)}",
    )
    require_tool("node", install="apt-get install nodejs npm")
    target = tmp_path_factory.mktemp("example")
    command = [str(bundler), "main.js", "--bundle", "--target=es2022", f"--outfile={target / 'dist' / 'main.js'}"]
    subprocess.run(command, cwd=EXAMPLE, check=True, capture_output=True, timeout=60)
    shutil.copy(EXAMPLE / "index.html", target)
    return target


OpenExample = Callable[..., None]


@pytest.fixture
def open_example(example: Path, page: Page) -> Iterator[OpenExample]:
    """Open the example from another origin, told by its address where to upload and how."""
    with static_server(example) as origin:

        def go(endpoint: str, **options: str) -> None:
            page.goto(f"{origin}/?{urlencode({'endpoint': endpoint, **options})}")

        yield go


def target_of(proxy: CuttingProxy, *, number: int = 0) -> str:
    """The tus URL's path of an upload, as the server named it."""
    created = proxy.of("POST")[number]
    wait_until(lambda: "location" in created.response_headers, deadline=30, what="the upload is created")
    return created.response_headers["location"]


def stored_sha256(server: Server, count: int) -> set[str]:
    """Wait until so many files are in the store, and return their digests."""
    wait_until(lambda: len(files_under(server.store)) >= count, deadline=20, what=f"{count} files are stored")
    return {sha256_of(path) for path in files_under(server.store)}


def resumed(requests: list[Request]) -> int:
    """Assert that an upload was asked about and went on from there; return the offset."""
    after = [request for request in requests if request.method not in {"OPTIONS", "GET"}]
    assert [request.method for request in after] == ["HEAD", "PATCH"], after
    assert after[1].offset == int(after[0].response_headers["upload-offset"])
    assert after[1].offset is not None
    return after[1].offset


# --- the page of a server without any configuration ------------------------------------------------


@pytest.mark.usefixtures("built")
def test_a_file_goes_up_through_the_page_and_comes_down_equal(
    page: Page,
    complaints: Complaints,
    start_server: StartServer,
    make_file: MakeFile,
    tmp_path: Path,
) -> None:
    path, sha256 = make_file("Überraschung & co.bin", 3 * MIB)
    server = start_server()

    page.goto(f"{server.origin}/")
    expect(page.get_by_text("Nothing here yet.")).to_be_visible()
    start(page, path)
    finished(page)
    row_of(page, path.name, "stored")
    with page.expect_download() as started:
        page.get_by_role("link", name=path.name).click()
    copy = tmp_path / "copy"
    started.value.save_as(copy)

    assert sha256_of(copy) == sha256
    assert started.value.suggested_filename == path.name
    assert complaints.lines == []  # nor did the content security policy refuse anything


@pytest.mark.usefixtures("built")
def test_a_large_file_goes_up_in_parts_that_are_joined(
    page: Page, start_server: StartServer, make_file: MakeFile
) -> None:
    path, sha256 = make_file("large.bin", 33 * MIB)
    server = start_server()
    with CuttingProxy(server.port) as proxy:
        page.goto(f"{proxy.origin}/")
        start(page, path)
        finished(page)
        row_of(page, path.name, "stored")
        link = page.get_by_role("link", name=path.name).get_attribute("href")

        assert download(f"{server.origin}/{link}").sha256 == sha256
        kinds = [request.headers["upload-concat"].partition(";")[0] for request in proxy.of("POST")]
        assert sorted(kinds) == ["final", "partial", "partial"]
        assert proxy.body_bytes == 33 * MIB


@pytest.mark.usefixtures("built")
def test_cancelling_a_large_file_removes_its_parts(page: Page, start_server: StartServer, make_file: MakeFile) -> None:
    path, _ = make_file("large.bin", 33 * MIB)
    server = start_server()
    with CuttingProxy(server.port, Stall(MIB), Stall(MIB)) as proxy:
        page.goto(f"{proxy.origin}/")
        start(page, path)
        proxy.wait_struck(2)
        button(page, "Cancel")
        wait_until(lambda: [r.status for r in proxy.of("DELETE")] == [204, 204], deadline=20, what="parts are removed")

        targets = [target_of(proxy, number=number) for number in (0, 1)]
        assert [request(server.port, "HEAD", target).status for target in targets] == [404, 404]
        assert page.get_by_text("Drop files here").is_visible()


@pytest.mark.usefixtures("built")
def test_the_list_shows_what_is_under_way_and_goes_on_after_a_reload(
    page: Page, start_server: StartServer, make_file: MakeFile
) -> None:
    path, sha256 = make_file("film.bin", 8 * MIB)
    server = start_server({"staging": {"checkpoint_seconds": 0.2}})
    with CuttingProxy(server.port, Stall(2 * MIB)) as proxy:
        page.goto(f"{proxy.origin}/")
        start(page, path)
        proxy.wait_struck()
        row_of(page, path.name, "uploading")
        expect(page.get_by_role("progressbar", name=path.name)).to_be_visible()
        before = len(proxy.requests)
        page.reload()
        start(page, path)
        row_of(page, path.name, "stored")

        assert resumed([seen for seen in proxy.requests[before:] if seen.target.startswith("/files/")]) > 0
        assert stored_sha256(server, 1) == {sha256}


@pytest.mark.usefixtures("built")
def test_below_a_prefix_of_a_proxy_the_page_works_the_same(
    page: Page,
    complaints: Complaints,
    start_server: StartServer,
    make_file: MakeFile,
    tmp_path: Path,
) -> None:
    path, sha256 = make_file("small.bin", 100_000)
    port = free_port()
    server = start_server({"server": {"public_url": f"http://{LOOPBACK}:{port}/media"}})
    program = require_tool("nginx", install="apt-get install nginx-light")
    (tmp_path / "tusd-py.conf").write_text(PREFIXED.format(LOOPBACK=LOOPBACK, port=port, upstream=server.port))
    (tmp_path / "nginx.conf").write_text(MAIN.format(directory=tmp_path))
    command: list[str | Path] = [program, "-p", tmp_path, "-e", tmp_path / "error.log", "-c", tmp_path / "nginx.conf"]
    with Child(command, log=tmp_path / "nginx.log") as front:
        front.wait_ready(lambda: is_listening(port), deadline=30, what="nginx listens")
        page.goto(f"http://{LOOPBACK}:{port}/media/")
        start(page, path)
        finished(page)
        row_of(page, path.name, "stored")
        link = page.get_by_role("link", name=path.name).evaluate("link => link.href")

        assert link.startswith(f"http://{LOOPBACK}:{port}/media/download/")
        assert download(link).sha256 == sha256
        assert complaints.lines == []


# --- the page without built files ------------------------------------------------------------------


@pytest.fixture
def unbuilt_server(start_server: StartServer, tmp_path: Path) -> Server:
    """A server whose code is a copy of ours without the built files."""
    tree = tmp_path / "tree"
    for name in ("tusd_py", "migrations"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    return start_server(env={"PYTHONPATH": str(tree)})


def test_the_page_says_when_its_scripts_cannot_be_loaded(page: Page, unbuilt_server: Server) -> None:
    page.route("https://**", lambda route: route.abort("internetdisconnected"))
    page.goto(f"{unbuilt_server.origin}/")

    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("could not load its scripts from cdn.jsdelivr.net")
    expect(alert).to_contain_text(unbuilt_server.url)
    expect(page.get_by_text("Nothing here yet.")).to_be_visible()


def serve_cdn(page: Page, change: Callable[[bytes], bytes] = bytes) -> None:
    """Be the CDN, with the files of the npm package."""
    files = require_tool("uppy", at=FRONTEND / "node_modules" / "uppy" / "dist", install="npm ci --prefix frontend")

    def answer(route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        body = change((files / name).read_bytes())
        route.fulfill(body=body, content_type=kind, headers={"Access-Control-Allow-Origin": "*"})

    page.route(f"{CDN.script.rpartition('/')[0]}/**", answer)


def test_with_the_files_of_the_cdn_the_page_works_the_same(
    page: Page, complaints: Complaints, unbuilt_server: Server, make_file: MakeFile
) -> None:
    path, sha256 = make_file("small.bin", 100_000)
    serve_cdn(page)

    page.goto(f"{unbuilt_server.origin}/")
    start(page, path)
    finished(page)
    row_of(page, path.name, "stored")

    assert stored_sha256(unbuilt_server, 1) == {sha256}
    assert complaints.lines == []


def test_files_that_differ_from_the_pinned_ones_are_refused(page: Page, unbuilt_server: Server) -> None:
    serve_cdn(page, lambda body: body + b"\n")

    page.goto(f"{unbuilt_server.origin}/")

    expect(page.get_by_role("alert")).to_contain_text("could not load its scripts")
    assert page.evaluate("typeof window.Uppy") == "undefined"


# --- Uppy on a page of another origin --------------------------------------------------------------


def test_three_files_from_another_origin_are_stored(
    page: Page,
    complaints: Complaints,
    open_example: OpenExample,
    start_server: StartServer,
    make_file: MakeFile,
) -> None:
    files = [make_file(f"{number}.bin", size) for number, size in enumerate((3 * MIB, 1, 3 * MIB + 1))]
    server = start_server(WELCOME)
    open_example(server.url)

    start(page, *[path for path, _ in files])
    expect(page.get_by_text("3 uploaded")).to_be_visible(timeout=WAIT_MS)

    assert stored_sha256(server, 3) == {sha256 for _, sha256 in files}
    assert complaints.lines == []


def test_a_page_that_the_configuration_does_not_name_is_refused(
    page: Page, open_example: OpenExample, start_server: StartServer, make_file: MakeFile
) -> None:
    path, _ = make_file("film.bin", 1000)
    server = start_server()
    open_example(server.url)

    start(page, path)
    expect(page.get_by_text("film.bin: no answer")).to_be_visible(timeout=WAIT_MS)

    reads = "url => fetch(url).then(answer => answer.text(), () => 'refused')"
    simple = "url => fetch(url, {method: 'POST', mode: 'no-cors'}).then(() => 'sent', () => 'refused')"
    assert page.evaluate(reads, f"{server.origin}/api/v1/uploads") == "refused"
    page.evaluate(simple, server.url)
    assert json.loads(request(server.port, "GET", "/api/v1/uploads").body)["uploads"] == []


def test_a_name_rebound_to_this_machine_shows_nothing(page: Page, start_server: StartServer) -> None:
    server = start_server()

    for port, path in ((server.port, "/"), (server.port, "/api/v1/uploads"), (server.operations_port, "/metrics")):
        answer = page.goto(f"http://{REBOUND_NAME}:{port}{path}")
        assert answer is not None
        assert answer.status == 421


def test_a_paused_upload_goes_on_from_its_offset(
    page: Page, open_example: OpenExample, start_server: StartServer, make_file: MakeFile
) -> None:
    path, sha256 = make_file("film.bin", 8 * MIB)
    server = start_server(WELCOME)
    with CuttingProxy(server.port, Stall(2 * MIB)) as proxy:
        open_example(proxy.url)
        start(page, path)
        proxy.wait_struck()
        button(page, "Pause")
        expect(page.locator(".uppy-StatusBar").get_by_text("Paused")).to_be_visible()
        before = len(proxy.requests)
        button(page, "Resume")
        finished(page)

        assert resumed(proxy.requests[before:]) > 0
        assert len(proxy.of("POST")) == 1
        assert stored_sha256(server, 1) == {sha256}


def test_cancelling_deletes_the_upload_at_the_server(
    page: Page, open_example: OpenExample, start_server: StartServer, make_file: MakeFile
) -> None:
    path, _ = make_file("film.bin", 8 * MIB)
    server = start_server(WELCOME)
    with CuttingProxy(server.port, Stall(2 * MIB)) as proxy:
        open_example(proxy.url)
        start(page, path)
        proxy.wait_struck()
        target = target_of(proxy)
        assert request(server.port, "GET", target).status != 404
        button(page, "Cancel")
        wait_until(lambda: [r.status for r in proxy.of("DELETE")] == [204], deadline=20, what="the upload is deleted")

        assert proxy.of("DELETE")[0].target == target
        assert request(server.port, "HEAD", target).status == 404


KEPT = """() => new Promise((resolve) => {
    const opened = indexedDB.open("uppy-blobs")
    opened.onsuccess = () => {
        const counted = opened.result.transaction("files").objectStore("files").count()
        counted.onsuccess = () => { opened.result.close(); resolve(counted.result) }
    }
})"""
"""How many files Golden Retriever has put away."""


def test_after_a_reload_the_file_is_there_again_and_goes_on_from_its_offset(
    page: Page, open_example: OpenExample, start_server: StartServer, make_file: MakeFile
) -> None:
    path, sha256 = make_file("film.bin", 8 * MIB)
    server = start_server(WELCOME)
    with CuttingProxy(server.port, Stall(2 * MIB)) as proxy:
        open_example(proxy.url)
        add(page, path)
        wait_until(lambda: page.evaluate(KEPT) == 1, deadline=60, what="the file is kept in the browser")
        press_upload(page)
        proxy.wait_struck()
        before = len(proxy.requests)
        page.reload()
        press_upload(page)  # without choosing the file again
        finished(page)

        assert resumed(proxy.requests[before:]) > 0
        assert len(proxy.of("POST")) == 1
        assert stored_sha256(server, 1) == {sha256}


def test_npm_start_serves_the_example_without_a_terminal(
    page: Page,
    complaints: Complaints,
    start_server: StartServer,
    make_file: MakeFile,
    tmp_path: Path,
) -> None:
    """A watching esbuild ends with its standard input, which a service or a script closes."""
    npm = require_tool("npm", install="apt-get install npm")
    require_tool("esbuild", at=EXAMPLE / "node_modules" / ".bin" / "esbuild", install="npm ci --prefix examples/uppy")
    path, sha256 = make_file("small.bin", 100_000)
    port = free_port()
    server = start_server({"cors": {"allow_origins": [f"http://{LOOPBACK}:{port}"]}})
    command: list[str | Path] = [npm, "start", "--prefix", EXAMPLE, "--", f"--serve={LOOPBACK}:{port}"]
    with Child(command, log=tmp_path / "npm.log") as started:
        started.wait_ready(lambda: is_listening(port), deadline=60, what="the example is served")
        page.goto(f"http://{LOOPBACK}:{port}/?{urlencode({'endpoint': server.url})}")
        start(page, path)
        expect(page.get_by_text("1 uploaded")).to_be_visible(timeout=WAIT_MS)
        assert started.running
        os.killpg(started.pid, signal.SIGTERM)  # as Ctrl-C does: npm does not pass signals on
        wait_until(lambda: not is_listening(port), deadline=60, what="it has ended")

    assert stored_sha256(server, 1) == {sha256}
    assert complaints.lines == []


def test_a_refused_file_shows_what_the_server_says(
    page: Page, open_example: OpenExample, start_server: StartServer, make_file: MakeFile
) -> None:
    path, _ = make_file("film.bin", 2 * MIB)
    server = start_server({**WELCOME, "limits": {"max_size": MIB}})
    with CuttingProxy(server.port) as proxy:
        open_example(proxy.url)
        start(page, path)
        expect(page.get_by_text("film.bin: ERR_MAX_SIZE_EXCEEDED")).to_be_visible(timeout=WAIT_MS)

        assert [(r.status, r.response_headers["access-control-allow-origin"]) for r in proxy.of("POST")] == [
            (413, proxy.of("POST")[0].headers["origin"])
        ]


def test_parallel_parts_become_one_file(
    page: Page, open_example: OpenExample, start_server: StartServer, make_file: MakeFile
) -> None:
    path, sha256 = make_file("film.bin", 6 * MIB + 1)
    server = start_server(WELCOME)
    with CuttingProxy(server.port) as proxy:
        open_example(proxy.url, parallel="3")
        start(page, path)
        finished(page)

        kinds = [request.headers["upload-concat"].partition(";")[0] for request in proxy.of("POST")]
        assert sorted(kinds) == ["final", "partial", "partial", "partial"]
        assert stored_sha256(server, 1) == {sha256}


def test_credentials_are_sent_to_a_server_that_names_the_origin(
    page: Page,
    context: BrowserContext,
    example: Path,
    start_server: StartServer,
    make_file: MakeFile,
) -> None:
    path, sha256 = make_file("film.bin", MIB)
    with static_server(example) as origin:
        server = start_server({"cors": {"allow_origins": [origin], "allow_credentials": True}})
        with CuttingProxy(server.port) as proxy:
            # Another origin of the same site, for without TLS no cookie goes to another site.
            endpoint = proxy.url.replace(LOOPBACK, "localhost")
            context.add_cookies([{"name": "session", "value": "mine", "domain": "localhost", "path": "/"}])
            page.goto(f"{origin}/?{urlencode({'endpoint': endpoint, 'credentials': 'true'})}")
            start(page, path)
            finished(page)

            sent = [*proxy.of("POST"), *proxy.of("PATCH")]
            assert {request.headers.get("cookie") for request in sent} == {"session=mine"}
            assert {request.response_headers["access-control-allow-credentials"] for request in sent} == {"true"}
            assert {request.response_headers["access-control-allow-origin"] for request in sent} == {origin}
            assert stored_sha256(server, 1) == {sha256}
