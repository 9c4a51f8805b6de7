"""Structured Fields, as far as the IETF's dialect reads and writes them."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from tusd_py.protocol.rufh.structured import boolean, byte_sequences, integer, render_boolean, render_integers

pytestmark = pytest.mark.unit

GRAMMAR = st.text(alphabet='ab*1-.:;=,()?"\\ \t@%/+', max_size=24)


def field(*lines: str) -> CIMultiDict[str]:
    return CIMultiDict([("X", line) for line in lines])


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("0", 0), ("10", 10), ("999999999999999", 10**15 - 1), (" 5 ", 5), ("007", 7), ("-0", 0),
        ("10;x=1", 10), ('10;a;b=?0;c="x;y";d=:AA==:;e=tok;f=1.5;g=@1;h=%"%c3%a4"', 10), ("10; x", 10),
        ("-1", None), ("1" * 16, None), ("1.0", None), ("1.", None), ("+1", None), ("0x5", None), ("?1", None),
        ('"1"', None), ("1 2", None), ("1,2", None), ("1;", None), ("1;X=1", None), ("1;x=", None), ("", None),
        ("\u0661", None), ("1_0", None), ("(1)", None), ("1;x=(1)", None), ('1;x="\\a"', None), ('1;x="é"', None),
    ],
)  # fmt: skip
def test_integers(value: str, number: int | None) -> None:
    """GEN-07"""
    assert integer(field(value), "x") == number


@pytest.mark.parametrize(
    ("value", "truth"),
    [("?1", True), ("?0", False), ("?1;x", True), (" ?0", False)]
    + [(value, None) for value in ("1", "true", "?", "?2", "?10", "? 1", "", "??1", "?1,", "?1 ?1")],
)
def test_booleans(value: str, truth: bool | None) -> None:
    """GEN-07"""
    assert boolean(field(value), "x") is truth


def test_a_field_of_several_lines_is_no_item() -> None:
    """GEN-07 GEN-08"""
    assert integer(field("5", "5"), "x") is None
    assert boolean(field("?1", "?1"), "x") is None
    assert integer(field(), "x") is None


@pytest.mark.parametrize(
    ("lines", "members"),
    [
        (["a=:AAEC:"], {"a": b"\0\1\2"}),
        (["a=:AAE=:, b=:AAE:"], {"a": b"\0\1", "b": b"\0\1"}),
        (["a=:AAEC:;q=1 ,\tb=1, c, d=?1, e=(1 :AA==:);x, *f=:AAEC:"], {"a": b"\0\1\2", "*f": b"\0\1\2"}),
        (["a=:AAEC:", "b=:AAEC:"], {"a": b"\0\1\2", "b": b"\0\1\2"}),
        (["a=:AAEC:, a=::"], {"a": b""}),
        (["a=:AAEC:,"], {}),
        (["a=:AAEC: b=1"], {}),
        (["a=:A:"], {}),
        (["a=:A-_A:"], {}),
        (["A=:AAEC:"], {}),
        (["a=:AAEC"], {}),
        (["a=(1"], {}),
        (["a=(1?1)"], {}),
        ([""], {}),
        ([], {}),
    ],
)
def test_dictionaries_of_byte_sequences(lines: list[str], members: dict[str, bytes]) -> None:
    """RG-01 GEN-07"""
    assert byte_sequences(field(*lines), "x") == members


@given(st.lists(GRAMMAR | st.text(max_size=12), max_size=3))
def test_whatever_stands_there_is_read_or_ignored(lines: list[str]) -> None:
    """GEN-07"""
    headers = field(*lines)

    assert isinstance(byte_sequences(headers, "x"), dict)
    number = integer(headers, "x")
    assert number is None or 0 <= number < 10**15
    assert boolean(headers, "x") in {True, False, None}
    assert number is None or boolean(headers, "x") is None


@given(st.integers(0, 10**15 - 1), st.booleans(), st.binary(max_size=64))
def test_what_is_written_can_be_read(number: int, truth: bool, data: bytes) -> None:
    """RL-01"""
    assert render_integers({"max-size": number, "max-age": 1}) == f"max-size={number}, max-age=1"
    assert integer(field(str(number)), "x") == number
    assert boolean(field(render_boolean(truth)), "x") is truth
    assert byte_sequences(field(f"a=:{base64.b64encode(data).decode()}:"), "x") == {"a": data}


def test_a_long_field_takes_no_long_time() -> None:
    members = ",".join(f"k{number}" for number in range(12_000))

    assert byte_sequences(field(f"{members}, a=:AAEC:"), "x") == {"a": b"\0\1\2"}
