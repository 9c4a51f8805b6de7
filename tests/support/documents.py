"""The code blocks of the documentation, as tests run them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.tools import ROOT

DOCS = ROOT / "docs"


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def block(page: Path, language: str, holding: str) -> str:
    """Return the only code block of a page that holds a text."""
    (found,) = [text for text in blocks(page, language) if holding in text]
    return found
