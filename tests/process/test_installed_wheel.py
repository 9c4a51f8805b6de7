"""The wheel of `make wheel`, installed into a clean environment from the package registry, and run."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest

from tests.support.blocking_client import OCTETS, create, fetch, request
from tests.support.files import download, random_file, seeded, sha256_of
from tests.support.server import Server
from tests.support.tools import ROOT, require_tool

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.timeout(600)]

INSTALL_SECONDS = 500
SOURCES = (
    "LICENSE", "Makefile", "README.md", "constraints.txt", "frontend", "migrations", "pyproject.toml", "scripts",
    "tusd_py", ".gitignore",
)  # fmt: skip
NOT_SOURCES = shutil.ignore_patterns("__pycache__", "assets", "node_modules")
SHELL_TOOLS = ("sh", "find", "python3", "make")


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that must end in time; return how it went."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MAKE"))}
    return subprocess.run(
        command, cwd=cwd, env=clean | (env or {}), capture_output=True, text=True, timeout=INSTALL_SECONDS
    )


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    """What a command has printed, which must have succeeded."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_sources(target: Path) -> Path:
    """A copy of what a wheel is made of, in which nothing was built yet."""
    target.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=NOT_SOURCES)
        else:
            shutil.copy(ROOT / name, target)
    return target


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as `make wheel` builds it."""
    require_tool("npm", install="apt-get install nodejs npm")
    modules = require_tool(
        "the page's packages",
        at=ROOT / "frontend" / "node_modules" / ".done",
        install="scripts/npm-install frontend",
    ).parent
    tree = copy_sources(tmp_path_factory.mktemp("build") / "tree")
    (tree / "frontend" / "node_modules").symlink_to(modules)
    printed = succeeded(run("make", "wheel", f"PYTHON={sys.executable}", cwd=tree))
    return tree / printed.split()[-1]


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, the embedded database and nothing else."""
    directory = tmp_path_factory.mktemp("clean")
    succeeded(run(sys.executable, "-m", "venv", directory / "venv", cwd=directory))
    requirement = f"tusd-py[embedded] @ {wheel.as_uri()}"
    python = directory / "venv" / "bin" / "python"
    options = ["--quiet", "-c", str(ROOT / "constraints.txt")]
    succeeded(run(python, "-m", "pip", "install", *options, requirement, cwd=directory))
    return directory / "venv"


@pytest.fixture
def installed(clean: Path, tmp_path: Path) -> Iterator[Server]:
    """A server of the clean environment."""
    server = Server(tmp_path / "server", env={"PYTHONPATH": ""}, program=clean / "bin" / "tusd-py")
    yield server
    print(server.log_text()[-10_000:])
    server.close()


def assert_a_file_goes_through(server: Server, directory: Path) -> None:
    """Upload a file, wait until it is stored, and get it back."""
    source = directory / "source.bin"
    sha256 = random_file(source, 3_000_000, seeded("wheel"))
    created = create(server.port, source.stat().st_size)
    headers = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", **OCTETS}
    assert request(server.port, "PATCH", created.headers["location"], headers, source.read_bytes()).status == 204
    upload_id = created.headers["upload-id"]
    server.wait_for_state(upload_id, "stored", deadline=60)
    assert download(f"{server.origin}/download/{upload_id}").sha256 == sha256 == sha256_of(source)


def test_the_installed_wheel_serves_its_page_and_files(
    clean: Path, wheel: Path, installed: Server, tmp_path: Path
) -> None:
    where = succeeded(run(clean / "bin" / "python", "-c", "import tusd_py; print(tusd_py.__file__)", cwd=tmp_path))
    assert Path(where.strip()).is_relative_to(clean)
    installed.start(deadline=120)

    page = fetch(f"{installed.origin}/").body.decode()
    assert 'data-script="assets/uppy.js"' in page  # and not the CDN's
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("tusd_py/web/") and not name.endswith(".html")]
        assert "tusd_py/web/assets/uppy.js" in names
        for name in names:
            assert fetch(f"{installed.origin}/assets/{name.rpartition('/')[2]}").body == archive.read(name)
    assert_a_file_goes_through(installed, tmp_path)


def test_without_uvloop_the_server_runs_on_asyncio(clean: Path, installed: Server, tmp_path: Path) -> None:
    python = clean / "bin" / "python"
    succeeded(run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "uvloop", cwd=tmp_path))
    installed.start(deadline=120)
    assert_a_file_goes_through(installed, tmp_path)

    wanted = run(clean / "bin" / "tusd-py", "check-config", cwd=tmp_path, env={"TUSD_SERVER__EVENT_LOOP": "uvloop"})
    assert wanted.returncode != 0
    assert "server.event_loop: uvloop is not installed" in wanted.stdout + wanted.stderr


def test_the_wheel_asks_for_uvloop_only_where_it_can_be_had(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(name))

    (uvloop,) = [wanted for wanted in metadata.get_all("Requires-Dist") or [] if wanted.startswith("uvloop")]
    assert "sys_platform != 'win32'" in uvloop.replace('"', "'")
    assert "platform_python_implementation == 'CPython'" in uvloop.replace('"', "'")


def test_without_npm_there_is_no_wheel_but_a_reason(tmp_path: Path) -> None:
    tree = copy_sources(tmp_path / "tree")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in SHELL_TOOLS:
        (tools / name).symlink_to(require_tool(name, install=f"apt-get install {name}"))
    (tree / ".venv" / "bin").mkdir(parents=True)
    (tree / ".venv" / "bin" / "python").symlink_to(sys.executable)

    done = run("make", "wheel", cwd=tree, env={"PATH": str(tools)})

    assert done.returncode != 0
    assert "npm is missing" in done.stderr
    assert "apt-get install nodejs npm" in done.stderr
    assert not (tree / "dist").exists()


@pytest.mark.parametrize("name", ["docs/deploy/README.md", "docs/deploy/tusd-py.service"])
def test_the_documentation_installs_what_is_built_here(wheel: Path, name: str) -> None:
    """And nothing from the package index, where the name may become somebody else's."""
    text = (ROOT / name).read_text(encoding="utf-8")
    installed = re.findall(r"pip install (?:-c constraints\.txt )?(\S*tusd\S*)", text)

    assert installed
    assert all(fnmatch.fnmatchcase(f"dist/{wheel.name}", pattern) for pattern in installed)


@pytest.mark.parametrize("name", ["tusd-py.service", "tusd-py-reconcile.service"])
def test_a_unit_starts_the_program_that_was_installed(clean: Path, name: str) -> None:
    unit = (ROOT / "docs" / "deploy" / name).read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    started = re.findall(r"^Exec\w+=(\S+)", unit, re.MULTILINE)

    assert {Path(program).name for program in started} <= project["scripts"].keys()
    assert all((clean / "bin" / Path(program).name).exists() for program in started)
    # Where docs/deploy/README.md installs it.
    assert {str(Path(program).parent) for program in started} == {"/opt/tusd_py/.venv/bin"}
