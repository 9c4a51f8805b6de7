"""What a wheel contains: code, migrations, the upload page, and Uppy where it was built."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.tools import ROOT

BUILT = {"uppy.js", "uppy.css", "licenses.txt"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a wheel is made of, without anything that was built."""
    root = tmp_path / "tree"
    root.mkdir()
    for name in ("pyproject.toml", "README.md", ".gitignore"):
        shutil.copy(ROOT / name, root)
    for name in ("tusd_py", "migrations"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    return root


def wheel_of(tree: Path) -> set[str]:
    """Build a wheel and return the names in it."""
    target = tree.parent / "wheel"
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=50)
    assert built.returncode == 0, built.stderr
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_a_wheel_has_the_migrations_and_the_page(tree: Path) -> None:
    names = wheel_of(tree)

    assert {f"tusd_py/migrations/{path.name}" for path in (ROOT / "migrations").glob("*.sql")} <= names
    assert {f"tusd_py/web/{path.name}" for path in (ROOT / "tusd_py" / "web").iterdir() if path.is_file()} <= names
    assert "tusd_py/web/index.html" in names
    assert not [name for name in names if "assets" in name or "node_modules" in name]


def test_a_wheel_has_uppy_where_it_was_built_although_git_ignores_it(tree: Path) -> None:
    assets = tree / "tusd_py" / "web" / "assets"
    assets.mkdir()
    for name in (*BUILT, ".done"):
        (assets / name).write_text("built")

    names = wheel_of(tree)

    assert {name for name in names if "/assets/" in name} == {f"tusd_py/web/assets/{name}" for name in BUILT}
