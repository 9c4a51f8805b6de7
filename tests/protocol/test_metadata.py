"""Upload-Metadata."""

from __future__ import annotations

import base64
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tusd_py.errors import InvalidMetadata
from tusd_py.protocol.metadata import parse_metadata, text_value

pytestmark = pytest.mark.unit

KEYS = st.text(st.sampled_from([c for c in string.printable[:94] if c != ","]), min_size=1)
ANY_HEADER = st.text(st.characters(exclude_categories=["Cs"])) | st.text(
    st.sampled_from("aZ09+/=, -\t\x01\xff"), max_size=60
)


def parse(header: str | None, max_bytes: int = 4096) -> dict[str, bytes]:
    return parse_metadata(header, max_bytes=max_bytes)


@given(st.dictionaries(KEYS, st.binary(max_size=50), max_size=10))
def test_pairs_are_read_in_their_order(pairs: dict[str, bytes]) -> None:
    """CRE-08"""
    header = ",".join(f"{key} {base64.b64encode(value).decode()}" for key, value in pairs.items())

    parsed = parse_metadata(header, max_bytes=1_000_000)

    assert list(parsed.items()) == list(pairs.items())


@given(ANY_HEADER)
def test_any_other_text_is_read_or_refused(header: str) -> None:
    """CRE-08"""
    try:
        pairs = parse(header)
    except InvalidMetadata as error:
        assert error.detail.isprintable()  # noqa: PT017 -- refusing is one of two right answers
    else:
        assert all(key.isascii() and " " not in key for key in pairs)


@pytest.mark.parametrize(
    ("header", "pairs"),
    [
        (None, {}), ("", {}), (" \t ", {}), ("a", {"a": b""}), ("a ,b Yg==", {"a": b"", "b": b"b"}),
        ("a Yg", {"a": b"b"}), ("a Yg=", {"a": b"b"}), ("a /w==", {"a": b"\xff"}),
        ("a Yg== ,\tb Yg==", {"a": b"b", "b": b"b"}),
    ],
)  # fmt: skip
def test_what_real_clients_send_is_accepted(header: str | None, pairs: dict[str, bytes]) -> None:
    """CRE-08"""
    assert parse(header) == pairs


@pytest.mark.parametrize(
    "header",
    [",", "a,", ",a", "a Yg==,a Yg==", "a Y", "a Yg==x!", "a -_", "ä Yg==", "a\r\nb", "a\0", "a Yg== Yg==", "a" * 4097],
)
def test_the_rest_is_refused(header: str) -> None:
    """CRE-08"""
    with pytest.raises(InvalidMetadata):
        parse(header)


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        ({}, None), ({"a": b"x"}, "x"), ({"b": b"y"}, "y"), ({"a": b"", "b": b"y"}, "y"),
        ({"a": b"null", "b": b"y"}, "y"),
        ({"a": b"\xff", "b": b"y"}, "y"), ({"a": b"x\ny"}, None), ({"a": b"\0"}, None), ({"a": " ä ".encode()}, "ä"),
    ],
)  # fmt: skip
def test_the_first_key_with_usable_text_counts(pairs: dict[str, bytes], text: str | None) -> None:
    """CRE-10"""
    assert text_value(pairs, "a", "b") == text


@given(st.binary())
def test_a_text_value_holds_nothing_that_breaks_out_of_a_line(value: bytes) -> None:
    """CRE-10"""
    text = text_value({"a": value}, "a")

    assert text is None or text.isprintable()
