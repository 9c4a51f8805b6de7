"""Every row of the protocol is named by a test, and no test names a row that is not there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.spec import SPEC

TESTS = Path(__file__).parent
ROW = re.compile(r"\b(?:GEN|CORE|CRE|DEF|CWU|EXP|CSUM|TRL|TERM|CAT|CATU|LOCK|CORS|AIO|RC|RH|RA|RD|RL|RP|RG|RX)-\d\d\b")


def rows_named() -> set[str]:
    named: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                named |= set(ROW.findall(ast.get_docstring(node) or ""))
    return named


def test_every_row_is_named_by_a_test():
    assert rows_named() >= SPEC.keys(), f"no test names {sorted(SPEC.keys() - rows_named())}"


def test_no_test_names_an_unknown_row():
    assert rows_named() <= SPEC.keys()
