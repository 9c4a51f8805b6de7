"""The checksum extension: algorithms, the header, and a hasher fed while bytes stream by."""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from tusd_py.errors import InvalidChecksum


class Hasher(Protocol):
    """The interface of `hashlib` objects."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Feed bytes."""

    def digest(self) -> bytes:
        """Return the digest of everything fed so far."""


class _Crc32:
    """CRC-32 (ISO 3309, as in zlib), four bytes big-endian."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


_ALGORITHMS: Final[dict[str, Callable[[], Hasher]]] = {
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "sha256": hashlib.sha256,
    "sha512": hashlib.sha512,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "crc32": _Crc32,
}
ALGORITHMS: Final = tuple(_ALGORITHMS)
"""Names as announced in Tus-Checksum-Algorithm; sha1 is required by the specification."""


@dataclass(frozen=True, slots=True)
class Checksum:
    """The digest a client promises for one body."""

    algorithm: str
    digest: bytes

    def hasher(self) -> Hasher:
        """Return a fresh hasher for the algorithm."""
        return _ALGORITHMS[self.algorithm]()


def new_hasher(algorithm: str) -> Hasher:
    """Return a fresh hasher."""
    return _ALGORITHMS[algorithm]()


@dataclass(frozen=True, slots=True)
class DigestSet:
    """Several digests of one body, of which every one must be right."""

    checksums: tuple[Checksum, ...]

    @property
    def digest(self) -> bytes:
        """The digests in a row."""
        return b"".join(checksum.digest for checksum in self.checksums)

    def hasher(self) -> Hasher:
        """Return a hasher that feeds one of each algorithm."""
        return _Several([checksum.hasher() for checksum in self.checksums])

    def to_text(self) -> str:
        """Write it down; `from_text` reads it."""
        pairs = [(one.algorithm, base64.b64encode(one.digest).decode()) for one in self.checksums]
        return ", ".join(f"{algorithm} {encoded}" for algorithm, encoded in pairs)

    @classmethod
    def from_text(cls, text: str) -> DigestSet:
        """Read what `to_text` wrote."""
        return cls(tuple(parse_checksum(item) for item in text.split(", ")))


class _Several:
    def __init__(self, hashers: list[Hasher]) -> None:
        self._hashers = hashers

    def update(self, data: bytes | memoryview, /) -> None:
        for hasher in self._hashers:
            hasher.update(data)

    def digest(self) -> bytes:
        return b"".join(hasher.digest() for hasher in self._hashers)


def parse_checksum(value: str, *, enabled: Iterable[str] = ALGORITHMS) -> Checksum:
    """Read `algorithm SP base64` (tus 1.0.0 §Upload-Checksum).

    The digest may have any length: one of the wrong length matches no body, which is then discarded
    as after any other mismatch.

    Raises:
        InvalidChecksum: malformed, or an algorithm that is not offered.
    """
    algorithm, _, encoded = value.partition(" ")
    if algorithm not in _ALGORITHMS or algorithm not in enabled:
        raise InvalidChecksum("Upload-Checksum names an algorithm that this server does not offer.")
    try:
        digest = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidChecksum("Upload-Checksum is not base64.") from error
    if not digest:
        raise InvalidChecksum("Upload-Checksum has no digest after the algorithm.")
    return Checksum(algorithm, digest)
