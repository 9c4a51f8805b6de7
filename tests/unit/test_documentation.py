"""The documentation says what the code does, wherever a machine can tell."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from scripts.state_diagram import DOCUMENT, with_diagram
from tests.support.s3_proxy import ACTIONS, OF_VERSIONS
from tusd_py.config.reference import render_reference
from tusd_py.metrics import Metrics, readiness_gauges, stats_gauges
from tusd_py.ports import QueueStats
from tusd_py.stores.s3_permissions import OF_BUCKET

ROOT = Path(__file__).resolve().parents[2]


def test_the_state_diagram_is_the_one_of_the_code():
    text = DOCUMENT.read_text(encoding="utf-8")

    assert with_diagram(text) == text


def test_every_module_of_the_tree_exists_and_every_package_is_in_it():
    text = DOCUMENT.read_text(encoding="utf-8")
    tree = text.split("```")[1]
    packages = {path.parent.name for path in (ROOT / "tusd_py").glob("*/__init__.py")}
    modules = {path.name for path in (ROOT / "tusd_py").glob("*.py")} - {"__init__.py", "__main__.py"}

    assert {name for name in packages if f"  {name}/" not in tree} == set()
    assert {name for name in modules if name not in tree} == set()


def test_the_documented_policy_is_what_is_tried():
    policy = json.loads((ROOT / "docs" / "s3.md").read_text(encoding="utf-8").split("```json")[1].split("```")[0])

    allowed = {action: statement["Resource"] for statement in policy["Statement"] for action in statement["Action"]}

    assert set(allowed) == set((ACTIONS | OF_VERSIONS).values())
    assert {action for action, resource in allowed.items() if not resource.endswith("/*")} == OF_BUCKET


def test_the_configuration_page_is_what_the_renderer_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUSD_SERVER__PORT", "9999")
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")

    assert page == render_reference(), "run: make format"


def test_every_link_of_the_readme_leads_somewhere():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))

    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_readme_names_every_metric():
    families = [
        *Metrics().registry.collect(), *stats_gauges(QueueStats({}, 0, {}, 0)), *readiness_gauges({}, ready=True),
    ]  # fmt: skip
    names = {f"{one.name}_total" if one.type == "counter" else one.name for one in families}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    assert {name for name in names if f"`{name}`" not in readme and f"`{name}{{" not in readme} == set()
