"""The keys that verify tokens, each bound to exactly one algorithm.

The binding makes algorithm confusion impossible: a public key is never tried as an HMAC secret,
whatever the header of a token claims.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from jwt.algorithms import AllowedPublicKeys

from tusd_py.errors import ConfigError

log = structlog.get_logger(__name__)

CHECK_SECONDS: Final = 1.0
"""The file is checked for changes no more often than this."""
MAX_FILE_BYTES: Final = 2**20

_ALGORITHM_OF: Final = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
"""The signature algorithm by `kty` and `crv` of a JWK (RFC 7518 §6, RFC 8037 §2)."""

_Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Key:
    """A key and the one algorithm it verifies."""

    algorithm: str
    material: AllowedPublicKeys | bytes
    kid: str | None = None


class KeySource(Protocol):
    """Keys that are configured or that may change."""

    def keys(self) -> Sequence[Key]:
        """Return the current keys: the same object until one of them changes, then another."""


class SecretKeys(KeySource):
    """One shared secret."""

    def __init__(self, secret: bytes, algorithms: Sequence[str]) -> None:
        """Bind `secret` to HMAC algorithms. Raise `ConfigError` if it looks like a public key."""
        try:
            self._keys = [Key(name, jwt.get_algorithm_by_name(name).prepare_key(secret)) for name in algorithms]
        except jwt.InvalidKeyError as error:
            raise ConfigError(["auth.jwt.secret: is a public or private key, not a shared secret"]) from error

    def keys(self) -> Sequence[Key]:
        return self._keys


class JwksFile(KeySource):
    """Public keys in a JWK set (RFC 7517), read again when the file changes.

    A file that is missing or malformed is logged and otherwise ignored: a slip while keys are rotated
    must not lock everybody out. A well-formed one takes effect whatever it holds: whoever removes
    the last key wants nobody to get in any more.
    """

    def __init__(
        self, path: Path, algorithms: Collection[str], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Read `path`. Raise `ConfigError` if it holds no usable key."""
        self._path = path
        self._algorithms = frozenset(algorithms)
        self._monotonic = monotonic
        self._checked_at = monotonic()
        self._stamp: _Stamp | None = None
        try:
            self._stamp = self._read_stamp()
            self._keys = self._read()
            if not self._keys:
                raise ValueError(self._no_key())
        except (OSError, ValueError) as error:
            raise ConfigError([f"auth.jwt.jwks_file: {path}: {error}"]) from error

    def keys(self) -> Sequence[Key]:
        now = self._monotonic()
        if now - self._checked_at >= CHECK_SECONDS:
            self._checked_at = now
            self._refresh()
        return self._keys

    def _refresh(self) -> None:
        try:
            stamp: _Stamp | None = self._read_stamp()
        except OSError:
            stamp = None
        if stamp == self._stamp:
            return
        # Remembered before it is read, so that a broken file is logged once and not every second.
        self._stamp = stamp
        try:
            self._keys = self._read()
        except (OSError, ValueError) as error:
            log.warning("jwks_file_unusable", path=str(self._path), error=str(error), kept=len(self._keys))
            return
        if self._keys:
            log.info("jwks_file_read", path=str(self._path), keys=len(self._keys))
        else:
            log.error("jwks_file_without_key", path=str(self._path), reason=f"{self._no_key()}; nobody gets in")

    def _read_stamp(self) -> _Stamp:
        # The modification time alone misses a second change within a clock tick, and an old file renamed into place.
        status = self._path.stat()
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino

    def _read(self) -> Sequence[Key]:
        with self._path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ValueError(f"is larger than {MAX_FILE_BYTES} bytes")
        return [key for entry in _entries(text) if (key := self._usable(entry)) is not None]

    def _no_key(self) -> str:
        return f"holds no public key for {', '.join(sorted(self._algorithms))}"

    def _usable(self, entry: object) -> Key | None:
        # RFC 7517 §5: a set may hold keys that are not for us; they are ignored.
        reason, key = "is not an object", None
        if isinstance(entry, dict):
            reason, key = _parse(entry)
        if key is not None and key.algorithm not in self._algorithms:
            reason, key = f"{key.algorithm} is not among auth.jwt.algorithms", None
        if key is None:
            kid = entry.get("kid") if isinstance(entry, dict) else None
            log.warning("jwk_ignored", path=str(self._path), kid=kid, reason=reason)
        return key


def _entries(text: bytes) -> list[object]:
    try:
        parsed = json.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deep") from error
    entries = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(entries, list):
        raise ValueError('is not a JWK set: {"keys": […]}')  # noqa: TRY004 - the content is wrong
    return entries


def _parse(entry: dict[str, Any]) -> tuple[str, Key | None]:
    """Return ("", key), or (reason, None) for a JWK that cannot be used."""
    kty, crv, kid = entry.get("kty"), entry.get("crv"), entry.get("kid")
    if not isinstance(kty, str) or not isinstance(crv, str | None) or not isinstance(kid, str | None):
        return "kty, crv and kid must be text", None
    algorithm = _ALGORITHM_OF.get((kty, crv))
    if algorithm is None or entry.get("alg", algorithm) != algorithm:
        return "its type is not supported", None
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return "it is not for signatures", None
    if "d" in entry:
        return "it is a private key, which does not belong here", None
    handler = jwt.get_algorithm_by_name(algorithm)
    try:
        material = handler.from_jwk(entry)
        weakness = handler.check_key_length(material)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, UnsupportedAlgorithm) as error:
        return f"it cannot be read: {error}", None
    return (weakness, None) if weakness else ("", Key(algorithm, material, kid))
