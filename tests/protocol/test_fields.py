"""Header values, both ways."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from tusd_py.protocol.fields import (
    MAX_INTEGER,
    http_date,
    is_printable,
    is_upload_token,
    media_type,
    parse_integer,
    single,
)

pytestmark = pytest.mark.unit


@given(st.integers(0, MAX_INTEGER))
def test_every_length_is_read_back(number: int) -> None:
    assert parse_integer(str(number)) == number


@given(st.text())
def test_only_digits_are_a_number(text: str) -> None:
    number = parse_integer(text)

    assert number is None or (text.isascii() and text.isdigit() and 0 <= number <= MAX_INTEGER)


@pytest.mark.parametrize("text", [None, "", "-1", "+5", "5.0", "0x5", "5, 5", "1e3", " 5", "5\n", "\u0665", str(2**63)])
def test_anything_else_is_none(text: str | None) -> None:
    """GEN-06"""
    assert parse_integer(text) is None


def test_a_field_that_stands_once_is_answered() -> None:
    assert single(CIMultiDict({"Upload-Offset": "5"}), "upload-offset") == "5"
    assert single(CIMultiDict(), "Upload-Offset") is None


def test_a_field_that_stands_twice_is_refused() -> None:
    """GEN-08"""
    with pytest.raises(ValueError, match="Upload-Offset"):
        single(CIMultiDict([("Upload-Offset", "5"), ("upload-offset", "5")]), "Upload-Offset")


@pytest.mark.parametrize(
    ("value", "essence"), [(None, ""), ("", ""), ("A/B; c=d", "a/b"), (" text/plain ;x", "text/plain"), (";", "")]
)
def test_a_media_type_has_neither_case_nor_parameters(value: str | None, essence: str) -> None:
    assert media_type(value) == essence


@pytest.mark.parametrize("token", ["a" * 21, "a" * 65, "a" * 31 + "/", "a" * 31 + ".", "", "ä" * 32, "a" * 32 + "\n"])
def test_what_is_no_token_is_not_looked_up(token: str) -> None:
    """GEN-09"""
    assert not is_upload_token(token)


@given(st.text())
def test_what_is_printable_can_be_repeated_in_a_header(text: str) -> None:
    if is_printable(text):
        assert not {"\r", "\n", "\0"} & set(text)
        assert text.isascii()


@given(st.floats(86400, 4e9), st.integers(-12, 14))
def test_a_date_is_in_gmt_and_is_read_back(seconds: float, hours: int) -> None:
    """EXP-04"""
    aware = datetime.fromtimestamp(seconds, timezone(timedelta(hours=hours)))

    text = http_date(aware)

    assert text.endswith(" GMT")
    assert parsedate_to_datetime(text) == aware.astimezone(UTC).replace(microsecond=0)


def test_the_date_of_the_specification() -> None:
    """EXP-04"""
    assert http_date(datetime(2014, 6, 25, 16, tzinfo=UTC)) == "Wed, 25 Jun 2014 16:00:00 GMT"
