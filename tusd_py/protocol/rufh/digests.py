"""Digests as HTTP names them (RFC 9530), and as the hashers are called here."""

from __future__ import annotations

from typing import Final

from tusd_py.protocol.checksum import Checksum, DigestSet
from tusd_py.protocol.fields import Headers
from tusd_py.protocol.rufh import structured

_ALGORITHMS: Final = {"sha-256": ("sha256", 32), "sha-512": ("sha512", 64)}
_NAMES: Final = {algorithm: name for name, (algorithm, _) in _ALGORITHMS.items()}


def parse_digests(headers: Headers, name: str) -> DigestSet | None:
    """Return the digests of the body or of all (§2, §3); unknown algorithms count for nothing."""
    known = [
        Checksum(algorithm, digest)
        for key, digest in structured.byte_sequences(headers, name).items()
        if key in _ALGORITHMS
        for algorithm, size in (_ALGORITHMS[key],)
        if len(digest) == size
    ]
    return DigestSet(tuple(known)) if known else None


def parse_wanted(headers: Headers, name: str) -> str | None:
    """Return the algorithm that the client likes best (§4), None if it wants none that is known."""
    weights = structured.weights(headers, name)
    wanted = {key: weight for key, weight in weights.items() if key in _ALGORITHMS and weight > 0}
    return _ALGORITHMS[max(wanted, key=wanted.__getitem__)][0] if wanted else None


def render_digests(checksums: DigestSet) -> str:
    """Write digests."""
    return structured.render_byte_sequences({_NAMES[one.algorithm]: one.digest for one in checksums.checksums})
