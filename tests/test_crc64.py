"""CRC-64/NVME: the published check value, combination, and the form in which S3 writes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tusd_py import crc64

pytestmark = pytest.mark.unit

CHECK = 0xAE8B14860A799888


def test_the_published_check_value() -> None:
    assert crc64.update(b"123456789") == CHECK


@given(st.binary(), st.binary())
def test_going_on_and_combining_equal_one_pass(first: bytes, second: bytes) -> None:
    whole = crc64.update(first + second)

    assert crc64.update(second, crc64.update(first)) == whole
    assert crc64.combine(crc64.update(first), crc64.update(second), len(second)) == whole


@given(st.lists(st.binary(max_size=50), max_size=6))
def test_any_number_of_pieces_combines(pieces: list[bytes]) -> None:
    running = crc64.EMPTY
    for piece in pieces:
        running = crc64.combine(running, crc64.update(piece), len(piece))

    assert running == crc64.update(b"".join(pieces))


def test_lengths_beyond_32_bits_combine() -> None:
    zeros = 2**33
    half = crc64.combine(CHECK, crc64.EMPTY, 0)

    assert half == CHECK
    # 2**33 zero bytes, doubled up from one: the length must not be cut to 32 bits.
    crc, length = crc64.update(b"\0"), 1
    while length < zeros:
        crc, length = crc64.combine(crc, crc, length), length * 2
    assert crc64.combine(CHECK, crc, zeros) != crc64.combine(CHECK, crc, zeros % 2**32)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_read(kind: type) -> None:
    assert crc64.update(kind(b"123456789")) == CHECK


def test_base64_is_eight_bytes_big_endian() -> None:
    assert crc64.to_base64(CHECK) == "rosUhgp5mIg="
    assert crc64.to_base64(0) == "AAAAAAAAAAA="


@given(st.integers(0, 2**64 - 1))
def test_base64_reads_back(value: int) -> None:
    assert crc64.from_base64(crc64.to_base64(value)) == value


@pytest.mark.parametrize("text", ["", "AAAA", "rosUhgp5mIg=-3", "not base64", "rosUhgp5mIg", "é"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        crc64.from_base64(text)
