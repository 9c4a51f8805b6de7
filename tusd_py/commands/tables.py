"""Columns for people: as wide as what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

MAX_LAST_CHARACTERS: Final = 200
"""Of the last column, which may be any text. JSON has all of it."""
GAP: Final = "  "


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table. Its last column is one line of text, shortened if it is long."""
    lines = [header, *([*row[:-1], _one_line(row[-1])] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header) - 1)]
    for line in lines:
        padded = [cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=True)]
        yield GAP.join([*padded, line[-1]]).rstrip()


def _one_line(text: str) -> str:
    flat = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return flat if len(flat) <= MAX_LAST_CHARACTERS else f"{flat[: MAX_LAST_CHARACTERS - 1]}…"
