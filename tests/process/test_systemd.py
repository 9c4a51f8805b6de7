"""The systemd units in docs/deploy/: well-formed, hardened, and the server lives with what they leave it."""

from __future__ import annotations

import ctypes.util
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.blocking_client import OCTETS, create, request
from tests.support.files import download
from tests.support.server import Server
from tests.support.tools import ROOT, require_tool

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]

UNITS = [ROOT / "docs" / "deploy" / name for name in ("tusd-py.service", "tusd-py-reconcile.service")]
MOST_EXPOSURE = 2.0
MIB = 2**20


def analyze(*arguments: str) -> str:
    program = require_tool("systemd-analyze", install="apt-get install systemd")
    done = subprocess.run([program, "--no-pager", *arguments], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_well_formed(unit: Path, tmp_path: Path) -> None:
    here = tmp_path / unit.name
    here.write_text(unit.read_text().replace("/opt/tusd_py/.venv/bin/tusd-py", "/bin/true"))

    assert analyze("verify", str(here)) == ""


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_leaves_little_to_whoever_breaks_in(unit: Path) -> None:
    said = analyze("security", "--offline=true", str(unit))

    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert exposure, said
    assert float(exposure[1]) <= MOST_EXPOSURE, said


def test_the_server_lives_with_the_system_calls_that_its_unit_leaves_it(tmp_path: Path) -> None:
    if ctypes.util.find_library("seccomp") is None:
        require_tool("libseccomp", at=Path("/usr/lib/libseccomp.so.2"), install="apt-get install libseccomp2")
    content = os.urandom(20 * MIB)
    server = Server(tmp_path)
    confined = ROOT / "tests" / "support" / "confined.py"
    server.child.argv = [sys.executable, str(confined), str(UNITS[0]), *server.child.argv]
    with server:
        created = create(server.port, len(content))
        target = created.headers["location"]
        sent = request(server.port, "PATCH", target, {**OCTETS, "Upload-Offset": "0"}, content)
        server.wait_for_state(created.headers["upload-id"], "stored")
        fetched = download(f"{server.origin}/download/{created.headers['upload-id']}")
        removed = request(server.port, "DELETE", target)

    assert (sent.status, removed.status) == (204, 204)
    assert fetched.sha256 == hashlib.sha256(content).hexdigest()
    assert "Operation not permitted" not in server.log_text()
