"""What the README and "Getting started" tell a new user to type does what they say."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.files import download
from tests.support.server import Server, StartServer
from tests.support.tools import ROOT

pytestmark = pytest.mark.acceptance

README = (ROOT / "README.md").read_text(encoding="utf-8")
GETTING_STARTED = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:1080"


def block(page: str, language: str, holding: str) -> str:
    """The only code block of a page in this language that holds a text."""
    found: str
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if holding in text]
    return found


@pytest.fixture
def video(tmp_path: Path) -> bytes:
    """The content of the file `video.mp4`."""
    content = os.urandom(20 * 2**20 + 1)
    (tmp_path / "video.mp4").write_bytes(content)
    return content


def run(command: list[str], directory: Path) -> str:
    """Run a command; return what it prints."""
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def header(answer: str, name: str) -> str:
    """A header of an answer as curl shows it."""
    found = re.search(rf"(?im)^{name}: (\S+)", answer)
    assert found, answer
    return found[1]


def id_of(url: str, directory: Path) -> str:
    """The public id of an upload, as HEAD tells it."""
    head = run(["curl", "-sI", url, "-H", "Tus-Resumable: 1.0.0"], directory)
    return header(head, "upload-id")


def uploaded_by(page: str, server: Server, directory: Path) -> str:
    """Run the Python of a page; return the id of what it uploads, once that is stored."""
    program = block(page, "python", "tusclient").replace(ADDRESS, server.origin)
    upload_id = id_of(run([sys.executable, "-c", program], directory).strip(), directory)
    server.wait_for_state(upload_id, "stored")
    return upload_id


@pytest.mark.parametrize("page", [README, GETTING_STARTED], ids=["README", "getting-started"])
def test_the_python_of_the_page(page: str, start_server: StartServer, tmp_path: Path, video: bytes) -> None:
    server = start_server()

    upload_id = uploaded_by(page, server, tmp_path)

    assert server.upload_json(upload_id)["filename"] == "video.mp4"
    assert download(f"{server.origin}/download/{upload_id}").sha256 == hashlib.sha256(video).hexdigest()


def test_the_curl_of_getting_started(start_server: StartServer, tmp_path: Path, video: bytes) -> None:
    server = start_server()
    commands = block(GETTING_STARTED, "sh", "tail -c +7340033").replace(ADDRESS, server.origin)
    create, send, resume, fetch = re.split(r"\n\n", commands)

    created = run(["sh", "-c", create], tmp_path)
    location, upload_id = header(created, "location"), header(created, "upload-id")

    def known(text: str) -> str:
        return text.replace("/files/<token>", location).replace("<id>", upload_id)

    # As if the first curl had been interrupted just there.
    (tmp_path / "beginning").write_bytes(video[:7340032])
    run(["sh", "-c", known(send).replace("@video.mp4", "@beginning")], tmp_path)
    assert "Upload-Offset: 7340032" in run(["sh", "-c", known(resume)], tmp_path)
    server.wait_for_state(upload_id, "stored")
    assert f'"id":"{upload_id}"' in run(["sh", "-c", known(fetch)], tmp_path)
    assert (tmp_path / "copy.mp4").read_bytes() == video


def test_the_back_end_commands_of_the_readme(start_server: StartServer, tmp_path: Path, video: bytes) -> None:
    server = start_server()
    upload_id = uploaded_by(README, server, tmp_path)
    commands = block(README, "sh", "?wait=30").replace(ADDRESS, server.origin).replace("<id>", upload_id)

    done = run(["sh", "-ec", commands.replace("curl -s", "curl --fail -s")], tmp_path)

    assert f'"id":"{upload_id}"' in done
    assert '"committed_at":"' in done
    assert (tmp_path / "copy.mp4").read_bytes() == video
    assert server.upload_json(upload_id)["state"] in {"removing", "removed"}
