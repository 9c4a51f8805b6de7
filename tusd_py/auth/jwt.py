"""JSON Web Tokens in `Authorization: Bearer` (RFC 6750, RFC 7519).

Whatever is wrong with a token, the client only learns that it was refused; the reason goes into the
error's context, for the log.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt

from tusd_py.auth.jwks import JwksFile, Key, KeySource, SecretKeys
from tusd_py.authorization import Principal
from tusd_py.config import JwtConfig
from tusd_py.errors import ConfigError, Unauthenticated
from tusd_py.ports import Authenticator
from tusd_py.protocol.upload import DEFAULT_PROFILE

MAX_TOKEN_LENGTH: Final = 16 * 1024
"""Longer tokens are refused before anything is parsed."""
MAX_SUBJECT_LENGTH: Final = 255
CACHE_ENTRIES: Final = 1024

# Without ASCII, ignoring the case lets two letters of Unicode pass as k and s.
_BEARER: Final = re.compile(r"bearer +([A-Za-z0-9_.=-]+) *", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class _Verified:
    principal: Principal
    until: float
    """When it must be verified again, in seconds since the epoch."""


class JwtAuthenticator(Authenticator):
    """Verifies tokens against a shared secret or a file of public keys.

    Verified tokens are cached, because every PATCH of an upload repeats the same one. The cache is
    cleared when the keys change, so that withdrawing a key takes effect at once.
    """

    def __init__(
        self,
        config: JwtConfig,
        *,
        cache_entries: int = CACHE_ENTRIES,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the keys. Raise `ConfigError` if none is usable."""
        self._config = config
        self._cache_entries = cache_entries
        self._now = now
        self._source = _key_source(config, monotonic)
        self._keys: Sequence[Key] = self._source.keys()
        self._cached: OrderedDict[bytes, _Verified] = OrderedDict()

    def authenticate(self, authorization_header: str | None) -> Principal:
        token = _token(authorization_header)
        self._refresh_keys()
        digest = hashlib.sha256(token.encode("ascii")).digest()
        verified = self._cached.get(digest)
        if verified is None or verified.until <= self._now():
            verified = self._cache(digest, self._verify(token))
        self._cached.move_to_end(digest)
        return verified.principal

    def _refresh_keys(self) -> None:
        if (keys := self._source.keys()) is not self._keys:
            self._keys = keys
            self._cached.clear()

    def _cache(self, digest: bytes, verified: _Verified) -> _Verified:
        self._cached[digest] = verified
        if len(self._cached) > self._cache_entries:
            self._cached.popitem(last=False)
        return verified

    def _verify(self, token: str) -> _Verified:
        claims = self._claims(token)
        if self._config.require_exp and "exp" not in claims:
            raise Unauthenticated(reason="exp is missing")
        expires_at = _expires_at(claims)
        fresh_until = expires_at + self._config.leeway
        grace_until = fresh_until + self._config.resume_grace
        if (now := self._now()) >= grace_until:
            raise Unauthenticated(reason="expired", expires_at=expires_at)
        expired = now >= fresh_until
        principal = Principal(
            _subject(claims), _scopes(claims), expired=expired, profile=_profile(claims), expires_at=fresh_until
        )
        return _Verified(principal, until=grace_until if expired else fresh_until)

    def _claims(self, token: str) -> Mapping[str, Any]:
        problem: jwt.PyJWTError = jwt.InvalidKeyError("no key of ours fits the token")
        for key in self._candidates(token):
            try:
                return self._decode(token, key)
            except jwt.InvalidSignatureError as error:
                problem = error
            except jwt.PyJWTError as error:
                raise Unauthenticated(reason=str(error)) from error
        raise Unauthenticated(reason=str(problem)) from problem

    def _candidates(self, token: str) -> list[Key]:
        """Return the keys that may have signed the token: same algorithm, and same kid if both have one."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise Unauthenticated(reason=str(error)) from error
        kid = header.get("kid")
        return [
            key
            for key in self._keys
            if key.algorithm == header.get("alg") and (kid is None or key.kid is None or key.kid == kid)
        ]

    def _decode(self, token: str, key: Key) -> Mapping[str, Any]:
        return jwt.decode(
            token,
            key.material,
            algorithms=[key.algorithm],
            audience=self._config.audience,
            issuer=self._config.issuer,
            leeway=self._config.leeway,
            options={
                "require": ["sub"],
                "verify_aud": self._config.audience is not None,
                "verify_exp": False,  # checked in _verify, because of the grace for resuming
            },
        )


def _key_source(config: JwtConfig, monotonic: Callable[[], float]) -> KeySource:
    if config.secret:
        return SecretKeys(config.secret.get_secret_value().encode(), config.algorithms)
    if config.jwks_file:
        return JwksFile(config.jwks_file, config.algorithms, monotonic=monotonic)
    raise ConfigError(["auth.jwt: exactly one of secret and jwks_file is needed"])


def _token(header: str | None) -> str:
    if header is None:
        raise Unauthenticated(reason="no Authorization header")
    if len(header) > MAX_TOKEN_LENGTH + len("Bearer "):
        raise Unauthenticated(reason="token too long", length=len(header))
    if not (match := _BEARER.fullmatch(header)):
        raise Unauthenticated(reason="not a bearer token")
    return match[1]


def _expires_at(claims: Mapping[str, Any]) -> float:
    """Return `exp` in seconds since the epoch, infinity for a token that never expires."""
    if "exp" not in claims:
        return math.inf
    expires_at = claims["exp"]
    # An infinite or absurd number, which JSON can write, would never expire or overflow.
    if isinstance(expires_at, bool) or not isinstance(expires_at, int | float) or not abs(expires_at) < 2**53:
        raise Unauthenticated(reason="exp is not a time")
    return float(expires_at)


def _subject(claims: Mapping[str, Any]) -> str:
    subject: str = claims["sub"]
    # It becomes the owner in the database and appears in logs: no NUL, no line breaks, no lone surrogates.
    if not subject or len(subject) > MAX_SUBJECT_LENGTH or not subject.isprintable():
        raise Unauthenticated(reason="sub is empty, too long or not printable")
    return subject


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """Return the scopes from `scope` (RFC 8693 §4.2) or else `scp`, a text of words or a list."""
    granted = claims.get("scope", claims.get("scp"))
    if isinstance(granted, str):
        granted = granted.split()
    if not isinstance(granted, list):
        return frozenset()
    return frozenset(scope for scope in granted if isinstance(scope, str))


def _profile(claims: Mapping[str, Any]) -> str:
    """Return the profile that the token asks for; a claim that is no text becomes a profile that cannot exist."""
    profile = claims.get("profile", DEFAULT_PROFILE)
    return profile if isinstance(profile, str) else ""
