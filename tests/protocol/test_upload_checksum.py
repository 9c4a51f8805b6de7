"""Upload-Checksum."""

from __future__ import annotations

import base64
import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tusd_py.errors import InvalidChecksum
from tusd_py.protocol.checksum import ALGORITHMS, parse_checksum

pytestmark = pytest.mark.unit


def expected(algorithm: str, data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big") if algorithm == "crc32" else hashlib.new(algorithm, data).digest()


@given(st.sampled_from(ALGORITHMS), st.lists(st.binary(), max_size=5))
def test_a_digest_over_pieces_is_the_digest_of_the_whole(algorithm: str, pieces: list[bytes]) -> None:
    """CSUM-02 CSUM-03"""
    digest = expected(algorithm, b"".join(pieces))
    checksum = parse_checksum(f"{algorithm} {base64.b64encode(digest).decode()}")
    hasher = checksum.hasher()

    for piece in pieces:
        hasher.update(memoryview(piece))

    assert hasher.digest() == checksum.digest


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    """CSUM-06"""
    try:
        checksum = parse_checksum(text)
    except InvalidChecksum as error:
        assert error.status == 400  # noqa: PT017 -- refusing is one of two right answers
    else:
        assert checksum.algorithm in ALGORITHMS


@pytest.mark.parametrize(
    "value",
    [
        "",
        "sha1",
        "sha1 ",
        "SHA1 qvTGHdzF6KLavt4PO0gs2a6pQ00=",
        "sha3 AA==",
        "sha1 A",
        "sha1  qvTGHdzF6KLavt4PO0gs2a6pQ00=",
        "sha1 ä",
        "sha1\tqvTGHdzF6KLavt4PO0gs2a6pQ00=",
    ],
)
def test_the_grammar_is_strict(value: str) -> None:
    """CSUM-05 CSUM-06"""
    with pytest.raises(InvalidChecksum):
        parse_checksum(value)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_digest_of_the_wrong_length_is_read_and_matches_nothing(algorithm: str) -> None:
    """CSUM-06"""
    checksum = parse_checksum(f"{algorithm} {base64.b64encode(b'no').decode()}")

    assert checksum.digest == b"no"
    assert checksum.hasher().digest() != checksum.digest


def test_an_algorithm_may_be_left_out() -> None:
    """CSUM-05"""
    with pytest.raises(InvalidChecksum):
        parse_checksum("sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=", enabled=["md5"])
