"""The curl of docs/events.md listens to a real server."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.blocking_client import fetch, upload_whole
from tests.support.documents import DOCS, block
from tests.support.process import Child, wait_until
from tests.support.server import Server, StartServer

pytestmark = pytest.mark.acceptance


def curl(server: Server, number: int, upload_id: str = "") -> list[str]:
    """Return one of the two commands of the page, for this server."""
    lines = block(DOCS / "events.md", "sh", "curl -N").strip().splitlines()
    assert len(lines) == 2
    command = lines[number].replace("https://uploads.example.com", server.origin)
    return shlex.split(command.replace("$ID", upload_id).replace("$TOKEN", "none"))


def kinds(text: str) -> list[str]:
    return re.findall(r"^event: upload\.(\w+)$", text, re.MULTILINE)


def test_curl_listens_to_one_upload_until_nothing_is_left_of_it(start_server: StartServer) -> None:
    server = start_server()
    _, upload_id = upload_whole(server.url, b"hello")
    server.wait_for_state(upload_id, "stored")
    assert fetch(f"{server.origin}/api/v1/uploads/{upload_id}", "DELETE").status == 204

    done = subprocess.run(curl(server, 0, upload_id), capture_output=True, text=True, timeout=50, check=True)

    assert kinds(done.stdout) == ["created", "completed", "transferring", "stored", "terminated", "removed"]


def test_curl_listens_to_all_uploads(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    with Child(curl(server, 1), log=tmp_path / "curl.log") as listener:
        listener.wait_ready(lambda: ": listening" in listener.log_text(), deadline=20, what="it listens")
        _, upload_id = upload_whole(server.url, b"hello")

        wait_until(lambda: "stored" in kinds(listener.log_text()), deadline=20, what="it hears of the last step")

        assert f'"subject":"{upload_id}"' in listener.log_text()
        heard = [kind for kind in kinds(listener.log_text()) if kind != "progress"]
        assert heard == ["created", "completed", "transferring", "stored"]
