"""Blocking hooks as a whole: a handler that was written for tusd, in each of its forms, and real clients."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

from tests.process import tusd_hook_handler
from tests.process.test_reconcile_command import let_time_pass, reconcile
from tests.process.tusd_hook_handler import HTTPHookHandler
from tests.support.blocking_client import request
from tests.support.files import download, seeded
from tests.support.node import run_node
from tests.support.ports import LOOPBACK
from tests.support.process import wait_until
from tests.support.s3_servers import S3_SERVERS
from tests.support.server import Server, StartServer
from tests.support.tools import ROOT

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]

CONTENT = seeded("hooks").randbytes(300_000)
PYTHON_PATH = {"PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def handling(handler: type[HTTPHookHandler]) -> Iterator[str]:
    """Serve a handler and yield its URL."""
    server = ThreadingHTTPServer((LOOPBACK, 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}/write"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def endpoint() -> Iterator[str]:
    """The handler as a server."""
    with handling(HTTPHookHandler) as url:
        yield url


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The handler as executables in a directory."""
    directory = tmp_path / "hooks"
    directory.mkdir()
    source = Path(tusd_hook_handler.__file__).read_text()
    for name in ("pre-create", "pre-terminate"):
        program = directory / name
        program.write_text(f"#!/usr/bin/env python3\n{source}")
        program.chmod(0o755)
    return directory


@pytest.fixture(params=["http", "file", "python"])
def server(request: pytest.FixtureRequest, start_server: StartServer) -> Server:
    """A server that asks the handler in one of its forms."""
    match request.param:
        case "http":
            where = {"http": request.getfixturevalue("endpoint")}
        case "file":
            where = {"file": str(request.getfixturevalue("directory"))}
        case _:
            where = {"python": "tests.process.python_hook:hook"}
    return start_server({"hooks": where | {"events": ["pre-create", "pre-terminate"]}}, env=PYTHON_PATH)


def upload(server: Server, metadata: dict[str, str]) -> str:
    """Upload by tuspy; return the URL's path."""
    client = TusClient(server.url, headers={"X-Project": "apollo"})
    uploader = client.uploader(file_stream=io.BytesIO(CONTENT), metadata=metadata, chunk_size=100_000)
    uploader.upload()
    assert uploader.url is not None
    return str(uploader.url).removeprefix(server.origin)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_handler_for_tusd_decides_over_uploads(server: Server) -> None:
    with pytest.raises(TusCommunicationError) as refused:
        upload(server, {"name": "no name for tusd"})
    assert (refused.value.status_code, refused.value.response_content) == (400, b"no filename provided")

    path = upload(server, {"filename": "räksmörgås.bin", "secret": "x"})

    token = path.removeprefix("/files/")
    assert token.startswith("upload-")
    head = request(server.port, "HEAD", path)
    pairs = dict(item.partition(" ")[::2] for item in head.headers["upload-metadata"].split(","))
    metadata = {key: base64.b64decode(value).decode() for key, value in pairs.items()}
    assert metadata == {"filename": "räksmörgås.bin", "keep": "", "project": "apollo"}
    stored = server.store / "apollo" / token / "räksmörgås.bin"
    wait_until(stored.exists, deadline=20, what="the object is in its place")
    assert stored.read_bytes() == CONTENT

    kept = upload(server, {"filename": "b", "keep": "yes"})
    tus = {"Tus-Resumable": "1.0.0"}
    refusal = request(server.port, "DELETE", kept, tus)
    assert (refusal.status, refusal.body) == (403, b"this one stays")
    assert request(server.port, "HEAD", kept).status == 200
    assert request(server.port, "DELETE", path, tus).status == 204
    assert request(server.port, "HEAD", path).status == 404


def test_what_is_told_with_a_creation_reaches_the_client(server: Server) -> None:
    named = base64.b64encode(b"a").decode()
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "7", "Upload-Metadata": f"filename {named}"}
    created = request(server.port, "POST", "/files/", headers)
    assert (created.status, created.headers["x-size"]) == (201, "7")


class FailingAtFirst(HTTPHookHandler):
    """Fails the first time that it is asked."""

    failures_left = 1

    def do_POST(self) -> None:  # noqa: N802 -- as the library calls it
        if type(self).failures_left:
            type(self).failures_left -= 1
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(500)
        else:
            super().do_POST()


@pytest.mark.parametrize("client", [4, 5])
def test_a_browsers_client_tries_again_until_the_application_can_be_asked(
    client: int, start_server: StartServer, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    with handling(type("Handler", (FailingAtFirst,), {})) as url:
        server = start_server({"hooks": {"http": url, "retries": 0}})
        options = {"endpoint": server.url, "client": client, "file": str(source), "metadata": {"filename": "a"}}
        result = run_node("upload.mjs", options, log=tmp_path / "node.log")

    assert result["ok"], result
    assert [(each["method"], each["status"]) for each in result["requests"]] == [
        ("POST", 503), ("POST", 201), ("PATCH", 204),
    ]  # fmt: skip


# --- a configuration that does not work ----------------------------------------------------------------


def check(tmp_path: Path, hooks: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "config.toml"
    file.write_text(f"[hooks]\n{hooks}\n")
    command = [str(Path(sys.executable).with_name("tusd-py")), "check-config", "--quiet", "--config", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | PYTHON_PATH)


@pytest.mark.parametrize(
    ("hooks", "problem"),
    [
        ('python = "tests.process.python_hook:nothing"', "hooks.python: 'tests.process.python_hook:nothing' cannot be"),
        ('python = "no_such_module:hook"', "hooks.python: 'no_such_module:hook' cannot be loaded: ModuleNotFoundError"),
        ('python = "tests.process.python_hook:__doc__"', "hooks.python: 'tests.process.python_hook:__doc__' cannot be"),
        ('python = "no form"', "hooks.python: 'no form' does not have the form"),
        ('file = "/no/such/directory"', "hooks.file: /no/such/directory is not a directory"),
        ('http = "ftp://x"', "hooks.http: an absolute http:// or https:// URL"),
        ('http = "http://x"\nfile = "/tmp"', "hooks: http and file exclude each other"),
        ('events = ["post-create"]', "hooks.events.0:"),
        ('forward_headers = ["a b"]', "hooks.forward_headers.0: 'a b' is not the name of a header field"),
        ('on_error = "ignore"', "hooks.on_error:"),
        ('timeout = "0s"', "hooks.timeout:"),
    ],
)
def test_what_cannot_be_asked_is_an_error_of_the_configuration(tmp_path: Path, hooks: str, problem: str) -> None:
    result = check(tmp_path, hooks)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"tusd-py: {problem}" in result.stderr


def test_a_program_that_cannot_be_executed_is_an_error_of_the_configuration(tmp_path: Path, directory: Path) -> None:
    assert check(tmp_path, f'file = "{directory}"').returncode == 0
    (directory / "pre-create").chmod(0o644)
    assert f"hooks.file: {directory}/pre-create cannot be executed" in check(tmp_path, f'file = "{directory}"').stderr


def test_a_hook_that_can_be_loaded_is_fine(tmp_path: Path) -> None:
    assert check(tmp_path, 'python = "tests.process.python_hook:hook"').returncode == 0


def test_a_server_whose_hook_cannot_be_loaded_does_not_start(tmp_path: Path) -> None:
    server = Server(tmp_path / "server", {"hooks": {"python": "tests.process.no_such_module:hook"}}, env=PYTHON_PATH)
    try:
        server.spawn()
        assert server.child.wait(30) != 0
        assert "hooks.python: 'tests.process.no_such_module:hook' cannot be loaded" in server.log_text()
    finally:
        server.close()


# --- the keys that a hook chooses ----------------------------------------------------------------------

CHOOSING = {"python": "tests.process.python_hook:hook"}


def stored_under_chosen_keys(server: Server) -> set[str]:
    """Upload some files, look that each can be downloaded, and return the keys."""
    keys = set()
    for filename in ("ä b.bin", "a-b", "a"):
        path = upload(server, {"filename": filename})
        upload_id = request(server.port, "HEAD", path).headers["upload-id"]
        key = server.wait_for_state(upload_id, "stored")["object_key"]
        assert key == f"apollo/{path.removeprefix('/files/')}/{filename}"
        assert download(f"{server.origin}/download/{upload_id}").sha256 == hashlib.sha256(CONTENT).hexdigest()
        keys.add(key)
    return keys


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_bucket_gets_the_keys_that_a_hook_chooses(start_server: StartServer, tmp_path: Path) -> None:
    with S3_SERVERS["rclone"](tmp_path) as bucket:
        server = start_server({"hooks": CHOOSING, "storage": bucket.storage_config()}, env=PYTHON_PATH)
        assert stored_under_chosen_keys(server) == set(bucket.object_keys())


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_reconciliation_knows_such_objects_by_their_rows(start_server: StartServer) -> None:
    server = start_server({"hooks": CHOOSING}, env=PYTHON_PATH)
    lost = min(stored_under_chosen_keys(server))
    let_time_pass(server)
    whole = reconcile(server)
    assert (whole.returncode, "3 uploads" in whole.stdout) == (0, True), whole

    (server.store / lost).unlink()

    found = reconcile(server)
    assert (found.returncode, f"key {lost}" in found.stdout) == (1, True), found
