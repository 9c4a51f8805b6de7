"""No write token in anything that the real server writes, at the level that says most."""

from __future__ import annotations

import secrets
import socket
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.blocking_client import OCTETS, create, request
from tests.support.ports import LOOPBACK
from tests.support.process import wait_until
from tests.support.server import Server

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180)]

FAULTS = """
    import asyncio, logging, threading, warnings
    from tusd_py.uploads.service import UploadService

    get_by_token = UploadService.get_by_token

    async def forgotten(token):
        raise KeyError(token)

    def thread(token):
        raise KeyError(token)

    class Finalized:
        def __init__(self, token):
            self.token = token

        def __del__(self):
            raise ValueError(f"/files/{self.token}")

    async def failing(self, principal, token, action):
        if not token.startswith("fail"):
            return await get_by_token(self, principal, token, action)
        asyncio.ensure_future(forgotten(token))
        threading.Thread(target=thread, args=(token,)).start()
        Finalized(token)
        warnings.warn(f"about /files/{token}", UserWarning)
        logging.getLogger("aiohttp.server").debug("an inner record of %s", f"/files/{token}")
        local = {"token": token}
        try:
            raise KeyError(token)
        except KeyError as error:
            raise RuntimeError(f"cannot read /files/{token}, {local}") from error

    UploadService.get_by_token = failing
"""
"""What a server is given that shall fail: an error in every kind of record, with the token in its text."""

BEFORE = ["/files/", "//files/", "/files//", "/FILES/", "/Files/", "/", "/media/files/", "/files/x/", "/download/",
          "/api/v1/uploads/", "/api/v1/uploads//", "/%66iles/", "/files%2F", "/files/%2F", "/assets/", "/files/../",
          "/files/x?upload=", "/?", "/files/?a=1&token=", "/download/x/", "http://localhost/files/"]  # fmt: skip
AFTER = ["", "/", "/x", "//", "?x=1", "#x", "%2F", ".bin", "/commit", "/attempts?wait=60", "%20", "%ff"]
METHODS = ["GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS", "PUT", "FROB"]
FIELDS = ["Tus-Resumable: 1.0.0", "Upload-Draft-Interop-Version: 6", "X-Request-ID: {}", "Upload-Offset: {}",
          "Upload-Concat: final;/files/{0} http://localhost/files/{0}", "Upload-Metadata: {}", "Referer: /files/{}",
          "Bad Header : {}", "Content-Length: {}", "Authorization: Bearer {}", "Upload-Length: 5"]  # fmt: skip
SPELLINGS = [str, lambda token: f"%{ord(token[0]):02x}{token[1:]}", lambda token: "%" + token.encode().hex("%")]


@pytest.fixture(scope="module", params=["json", "console"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("secrecy")
    (directory / "faults").mkdir()
    (directory / "faults" / "sitecustomize.py").write_text(textwrap.dedent(FAULTS))
    config = {"logging": {"level": "debug", "format": request.param}, "limits": {"idle_timeout": 1}}
    env = {"PYTHONPATH": str(directory / "faults"), "PYTHONASYNCIODEBUG": "1"}
    with Server(directory, config, env=env) as running:
        yield running


def exchange(server: Server, data: bytes) -> bytes:
    """Send bytes on a connection of their own and read all that comes back."""
    with socket.create_connection((LOOPBACK, server.port), timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while block := connection.recv(65536):
            received += block
    return received


def assert_secret(server: Server, tokens: list[str], marker: str) -> None:
    """Wait until the log has come to a marker, and assert that no token stands in it."""
    request(server.port, "GET", f"/{marker}")
    wait_until(lambda: marker in server.log_text(), deadline=20, what="the log is written")
    log = server.log_text()
    for text in (log, unquote(log)):
        assert [token for token in tokens if token in text] == []


def says(server: Server, words: str) -> bool:
    return words in server.log_text()


def test_no_request_however_it_is_written_shows_a_token(server: Server) -> None:
    tokens: list[str] = []

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(METHODS), st.sampled_from(BEFORE), st.sampled_from(AFTER), st.sampled_from(SPELLINGS),
        st.lists(st.sampled_from(FIELDS), max_size=3, unique=True),
    )  # fmt: skip
    def ask(method: str, before: str, after: str, spelling: Callable[[str], str], fields: list[str]) -> None:
        token = secrets.token_urlsafe(24)
        tokens.append(token)
        lines = [f"{method} {before}{spelling(token)}{after} HTTP/1.1", "Host: localhost", "Connection: close",
                 *(field.format(token) for field in fields)]  # fmt: skip
        exchange(server, "\r\n".join([*lines, "", ""]).encode())

    ask()

    assert len(tokens) >= 100
    assert_secret(server, tokens, "the-end-of-the-paths")


def test_no_traceback_and_no_record_of_a_library_shows_a_token(server: Server) -> None:
    tokens = [f"fail{secrets.token_urlsafe(21)}" for _ in range(5)]
    for token in tokens:
        assert request(server.port, "GET", f"/files/{token}").status == 500

    wait_until(lambda: "never retrieved" in server.log_text(), deadline=20, what="asyncio complains")
    for said in ("an inner record of", "exception in thread", "__del__", "UserWarning: about"):
        wait_until(partial(says, server, said), deadline=20, what=f"the log says {said}")
    assert "cannot read /files/fail" in server.log_text()
    assert_secret(server, tokens, "the-end-of-the-faults")


def test_no_part_of_an_uploads_life_shows_its_token(server: Server, tmp_path: Path) -> None:
    tokens, upload_ids = [], []
    for _ in range(3):
        created = create(server.port, 10)
        location, upload_id = created.headers["location"], created.headers["upload-id"]
        tokens.append(location.rpartition("/")[2])
        upload_ids.append(upload_id)
        request(server.port, "PATCH", location, {**OCTETS, "Upload-Offset": "3"}, b"hello")
        request(server.port, "PATCH", location, {**OCTETS, "Upload-Offset": "0"}, b"helloworld")
        server.wait_for_state(upload_id, "stored")
        assert request(server.port, "GET", location).body == b"helloworld"
        assert request(server.port, "DELETE", location).status == 204
    exchange(server, f"PATCH /files/{tokens[0]} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhe".encode())
    exchange(server, f"\x16\x03\x01/files/{tokens[0]}\r\n\r\n".encode())

    assert_secret(server, tokens, "the-end-of-the-lives")
    assert upload_ids[-1] in server.log_text()
