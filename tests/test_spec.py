"""Every row of the protocol is named by a test, and no test names a row that is not there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.spec import SPEC

pytestmark = pytest.mark.unit

TESTS = Path(__file__).parent
ROW = re.compile(r"\b(?:GEN|CORE|CRE|DEF|CWU|EXP|CSUM|TRL|TERM|CAT|CATU|LOCK|CORS|AIO|RC|RH|RA|RD|RL|RP|RG|RX)-\d\d\b")


@pytest.fixture(scope="module")
def rows_named() -> set[str]:
    """The rows in the docstrings of all tests."""
    texts = [text for path in TESTS.rglob("test_*.py") if ROW.search(text := path.read_text())]
    return {
        row
        for text in texts
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        for row in ROW.findall(ast.get_docstring(node) or "")
    }


def test_every_row_is_named_by_a_test(rows_named: set[str]) -> None:
    assert rows_named >= SPEC.keys(), f"no test names {sorted(SPEC.keys() - rows_named)}"


def test_no_test_names_an_unknown_row(rows_named: set[str]) -> None:
    assert rows_named <= SPEC.keys()
