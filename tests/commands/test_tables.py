"""Tables for people stay tables whatever is in them."""

from __future__ import annotations

import pytest

from tusd_py.commands.tables import MAX_LAST_CHARACTERS, table

pytestmark = pytest.mark.unit


def test_columns_are_as_wide_as_what_is_in_them() -> None:
    long = "https://app.example.com/a/very/long/url/that/is/the/name/of/an/endpoint"

    header, *lines = table(("NAME", "DEAD", "ERROR"), [("app", "1", "first"), (long, "1000", "second")])

    assert header.index("ERROR") == len(long) + 2 + len("DEAD") + 2
    assert [line[header.index("ERROR") :] for line in lines] == ["first", "second"]
    assert [line[header.index("DEAD") :].split()[0] for line in lines] == ["1", "1000"]


def test_last_column_is_one_line_that_cannot_steer_a_terminal() -> None:
    (_, line) = table(("NAME", "ERROR"), [("app", "cannot\nbe\x1b[2J  reached\t")])

    assert line == "app   cannot be [2J reached"


def test_long_text_is_shortened() -> None:
    (_, line) = table(("NAME", "ERROR"), [("app", "x" * 2000)])

    assert line.endswith("x…")
    assert len(line) == len("app   ") + MAX_LAST_CHARACTERS


def test_no_line_ends_in_spaces() -> None:
    assert list(table(("A", "B"), [("long", "")])) == ["A     B", "long"]
