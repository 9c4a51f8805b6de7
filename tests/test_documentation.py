"""The documentation says what the code does, wherever a machine can tell."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_origin

import pytest
from pydantic import BaseModel

from scripts.state_diagram import DOCUMENT, with_diagram
from tests.support.documents import blocks
from tests.support.s3_proxy import ACTIONS, OF_VERSIONS
from tests.support.uploads import NOW, upload
from tusd_py.cli import main, make_parser
from tusd_py.config import Config, load_config
from tusd_py.config.reference import render_reference
from tusd_py.errors import TusdError
from tusd_py.http.api.views import attempt_view, transfer_view
from tusd_py.metrics import Metrics, readiness_gauges, stats_gauges
from tusd_py.ports import AttemptView, JobKind, QueueStats
from tusd_py.protocol.upload import State
from tusd_py.stores.s3.permissions import BUCKET_ACTIONS
from tusd_py.uploads.view import upload_view

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[1]
API = ROOT / "docs" / "api.md"
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "bench" / "README.md", ROOT / "examples/uppy/README.md"]
)
NEVER_ANSWERED = {"ERR_CONFIG", "ERR_MIGRATION", "ERR_STAGING_MISMATCH", "ERR_TRANSFER_CANCELLED"}
"""Errors of commands, of the start and of workers."""


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_the_state_diagram_is_the_one_of_the_code() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")

    assert with_diagram(text) == text


def test_every_module_of_the_tree_exists_and_every_package_is_in_it() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    tree = text.split("```")[1]
    packages = {path.parent.name for path in (ROOT / "tusd_py").glob("*/__init__.py")}
    modules = {path.name for path in (ROOT / "tusd_py").glob("*.py")} - {"__init__.py", "__main__.py"}

    assert {name for name in packages if f"  {name}/" not in tree} == set()
    assert {name for name in modules if name not in tree} == set()


def test_the_documented_policy_is_what_is_tried() -> None:
    policy = json.loads((ROOT / "docs" / "s3.md").read_text(encoding="utf-8").split("```json")[1].split("```")[0])

    allowed = {action: statement["Resource"] for statement in policy["Statement"] for action in statement["Action"]}

    assert set(allowed) == set((ACTIONS | OF_VERSIONS).values())
    assert {action for action, resource in allowed.items() if not resource.endswith("/*")} == BUCKET_ACTIONS


def test_the_configuration_page_is_what_the_renderer_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUSD_SERVER__PORT", "9999")
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")

    assert page == render_reference(), "run: make format"


def test_every_metric_is_in_operations() -> None:
    families = [
        *Metrics().registry.collect(), *stats_gauges(QueueStats({}, 0, {}, 0)), *readiness_gauges({}, ready=True),
    ]  # fmt: skip
    names = {f"{one.name}_total" if one.type == "counter" else one.name for one in families}
    page = read(ROOT / "docs" / "operations.md")

    assert {name for name in names if f"`{name}`" not in page and f"`{name}{{" not in page} == set()


# --- docs/api.md ------------------------------------------------------------------------------------------


def fields_in(section: str) -> set[str]:
    """Return the names in the first column of the tables below a heading of docs/api.md."""
    _, _, rest = read(API).partition(f"\n{section}\n")
    text = re.split(r"^##", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return {
        name for cell in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }


def test_every_field_of_an_upload_is_documented() -> None:
    assert set(upload_view(upload(), Config(), place=None)) == fields_in("### Fields of an upload")


def test_every_field_of_a_transfer_is_documented() -> None:
    assert set(transfer_view(None)) == fields_in("### Fields of its transfer")


def test_every_field_of_an_attempt_is_documented() -> None:
    attempt = AttemptView(
        job_id=1, kind=JobKind.TRANSFER, number=1, worker=None, outcome=None, error_code=None, error=None,
        started_at=NOW, finished_at=None,
    )  # fmt: skip

    assert set(attempt_view(attempt, operator=True)) == fields_in("## `GET /api/v1/uploads/{id}/attempts`")


def test_every_state_is_documented() -> None:
    assert set(State) == fields_in("### States")


def test_every_error_is_documented_with_its_status_and_sentence() -> None:
    errors = {(error.code, str(error.status)) for error in answered()}
    rows = re.findall(r"^\| `(ERR_\w+)` \| (\d+) \| (.*) \|$", read(API), re.MULTILINE)
    sentences = {code: sentence for code, _, sentence in rows}

    assert {(code, status) for code, status, _ in rows} == errors
    assert {error.code for error in answered() if error.sentence not in sentences[error.code]} == set()


def answered() -> list[type[TusdError]]:
    """Return every error that a client may be answered with; one without a code of its own is a group."""
    return [error for error in tree(TusdError) if "code" in vars(error) and error.code not in NEVER_ANSWERED]


def tree(error: type[TusdError]) -> Iterator[type[TusdError]]:
    """Yield an error and everything that is derived from it in the errors' own module."""
    yield error
    for below in error.__subclasses__():
        if below.__module__ == TusdError.__module__:
            yield from tree(below)


# --- what the pages say of configuration and commands ----------------------------------------------------


TOML = [
    pytest.param(text, id=f"{page.stem}-{number}") for page in PAGES for number, text in enumerate(blocks(page, "toml"))
]


@pytest.mark.parametrize("text", TOML)
def test_every_configuration_can_be_loaded(text: str, tmp_path: Path) -> None:
    (tmp_path / "dsn").write_text("postgresql://somebody:secret@db.example.com/uploads")
    (tmp_path / "jwt-key").write_text("k" * 32)
    (tmp_path / "webhook-secret").write_text(f"whsec_{'MTIz' * 8}")
    (tmp_path / "config.toml").write_text(text.replace("/etc/tusd_py", str(tmp_path)))

    load_config(tmp_path / "config.toml", {"auth": {"allow_anonymous": True}})


def exists(key: str) -> bool:
    """Return whether a key such as "storage.s3.bucket" is one of the configuration."""
    model: object = Config
    for name in key.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or name not in model.model_fields:
            return False
        model = model.model_fields[name].annotation
        if get_origin(model) is list:
            (model,) = get_args(model)
    return True


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_key_that_is_named_exists(page: Path) -> None:
    sections = "|".join(set(Config.model_fields) - {"data_dir", "profiles"})
    named = set(re.findall(rf"`((?:{sections})(?:\.[a-z_0-9]+)+)(?: = [^`]*)?`", prose(page)))
    others = {key for key in named if key.endswith((".py", ".md", ".lock"))} | {"transfer.state"}  # of the JSON API

    assert {key for key in named - others if not exists(key)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_is_named_exists(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    known = set(re.findall(r"^    ([a-z-]+)(?: |$)", capsys.readouterr().out, re.MULTILINE))

    assert {"serve", "reconcile"} <= known
    assert set(re.findall(r"(?:`|^|/)tusd-py ([a-z][a-z-]*)", read(page), re.MULTILINE)) <= known


COMMANDS = [
    pytest.param(line, id=f"{page.stem}: {line}")
    for page in PAGES
    for text in blocks(page, "sh")
    for line in re.findall(r"^(?:\S*/)?tusd-py (.*?)(?: *#.*)?$", text, re.MULTILINE)
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_line_is_understood(line: str) -> None:
    words = [str(uuid.uuid4()) if word in {"ID", "EVENT_ID"} else word for word in shlex.split(line)]

    assert callable(make_parser().parse_args(words).command)


def test_the_application_of_the_library_page_is_built(tmp_path: Path) -> None:
    (program,) = blocks(ROOT / "docs" / "library.md", "python")

    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr


# --- links ------------------------------------------------------------------------------------------------


def prose(page: Path) -> str:
    """Return the text of a page without its code blocks."""
    return re.sub(r"^```.*?^```", "", read(page), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ +(.*?) *$", prose(page), re.MULTILINE)
    texts = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def links(page: Path) -> list[tuple[Path, str]]:
    """Return the relative links of a page: where they lead, and the anchor there."""
    found = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)", prose(page))
    return [((page.parent / target).resolve() if target else page, anchor) for target, anchor in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = [
        f"{target.relative_to(ROOT)}#{anchor}"
        for target, anchor in links(page)
        if not target.exists() or (anchor and anchor not in anchors(target))
    ]

    assert broken == []


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    listed = {target for target, _ in links(index)}

    assert {page.name for page in set((ROOT / "docs").glob("*.md")) - listed} == {"index.md"}


def test_every_page_can_be_reached_from_the_index() -> None:
    seen, waiting = set[Path](), [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        if page not in seen:
            seen.add(page)
            waiting += [target for target, _ in links(page) if target.suffix == ".md" and target.exists()]
    files = {path for path in (ROOT / "docs").rglob("*") if path.is_file() and path.suffix != ".png"}
    linked = {target for page in seen for target, _ in links(page)}

    assert sorted(str(path.relative_to(ROOT)) for path in files - linked - {ROOT / "docs" / "index.md"}) == []
    assert {page for page in PAGES if page != ROOT / "README.md"} <= seen


def test_every_function_that_a_walk_names_exists() -> None:
    walks = re.findall(r"^## The walk of.*?(?=^## )", read(DOCUMENT), re.DOTALL | re.MULTILINE)
    named = {name.rstrip("/") for walk in walks for name in re.findall(r"`([A-Za-z_/]+(?:\.[A-Za-z_]+)*)`", walk)}
    package = ROOT / "tusd_py"
    words = {word for path in package.rglob("*.py") for word in re.findall(r"\w+", read(path))}

    def is_there(name: str) -> bool:
        module, _, attribute = name.partition(".")
        path = package / f"{module}.py"
        if "/" in name and attribute and path.exists():
            return re.search(rf"^ *(?:async def|def|class) {attribute}\b", read(path), re.MULTILINE) is not None
        return path.exists() or (package / module).is_dir() or name.rpartition(".")[2] in words

    assert len(walks) == 5
    assert {name for name in named if not is_there(name)} == set()


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/development.md", "docs/architecture.md"])
def test_every_path_that_is_named_exists(name: str) -> None:
    text = prose(ROOT / name)
    paths = re.findall(r"`((?:tusd_py|tests|bench|scripts|docs|frontend|examples)/[\w./-]*)`", text)
    modules = set(re.findall(r"`([\w./]+\.py)`", text))
    known = [f"/{path.relative_to(ROOT)}" for path in ROOT.glob("[bst]*/**/*.py")]

    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert {module for module in modules if not any(path.endswith(f"/{module}") for path in known)} == set()


def test_the_readme_is_short() -> None:
    assert len(read(ROOT / "README.md").splitlines()) <= 150
