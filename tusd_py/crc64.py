"""CRC-64/NVME, the checksum that S3 computes over whole objects.

It runs over the bytes as they arrive from the client, is combined where pieces are checksummed
apart, and is handed to the store with the object. Importing awscrt costs about 60 ms and 8 MiB
resident (nearly all of it the shared library) and starts no thread.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Final

from awscrt import checksums

EMPTY: Final = 0
"""The CRC of no bytes, and what `update` starts from."""

_SIZE_BYTES: Final = 8


update: Final[Callable[..., int]] = checksums.crc64nvme
"""`update(data, running=EMPTY)`: the CRC of everything that led to `running`, followed by `data`.

Releases the GIL on large buffers, so threads run side by side.
"""

combine: Final[Callable[[int, int, int], int]] = checksums.combine_crc64nvme
"""`combine(first, second, second_length)`: the CRC of two pieces in a row, the second one so many bytes long."""


def to_base64(value: int) -> str:
    """Render a CRC as S3's x-amz-checksum-crc64nvme does: eight bytes, big-endian, base64."""
    return base64.b64encode(value.to_bytes(_SIZE_BYTES, "big")).decode("ascii")


def from_base64(text: str) -> int:
    """Read what `to_base64` renders.

    Raises:
        ValueError: this is not the base64 of eight bytes.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{text!r} is not base64") from error
    if len(raw) != _SIZE_BYTES:
        raise ValueError(f"{text!r} does not hold {_SIZE_BYTES} bytes")
    return int.from_bytes(raw, "big")
