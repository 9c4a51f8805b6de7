"""The programs that tests need from outside the package, and what to do without them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # daemons live outside a user's PATH


def require_tool(name: str, *, at: Path | None = None, install: str) -> Path:
    """Return where a program (or, with `at`, a file) is, or end the test.

    A missing tool fails the test where CI is set, so that nothing is left out in silence there, and
    skips it on a developer's machine. `install` is the command that brings the tool.
    """
    if at is not None:
        return at if at.exists() else _missing(name, f"{at} does not exist", install)
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), *_SYSTEM_DIRECTORIES])
    found = shutil.which(name, path=search)
    return Path(found) if found else _missing(name, "it is not on PATH", install)


def _missing(name: str, why: str, install: str) -> NoReturn:
    reason = f"needs {name}, but {why}; install it with: {install}"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
