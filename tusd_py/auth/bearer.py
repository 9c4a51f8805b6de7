"""Who is asking, by a JSON Web Token in `Authorization: Bearer` (RFC 6750, RFC 7519).

Whatever is wrong with a token, the caller learns only that it was not accepted; the reason goes
into the error's context, for the log.
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

from tusd_py.auth.keys import JwksFile, Key, KeySource, SecretKeys
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
    """When it has to be looked at again, in seconds since the epoch."""


class BearerAuthenticator(Authenticator):
    """Verifies tokens against a shared secret or a file of public keys.

    Verified tokens are remembered, because every PATCH of an upload repeats the same one. The memory
    is emptied when the keys change, so that withdrawing a key takes effect at once.
    """

    def __init__(
        self,
        config: JwtConfig,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the keys. Raises `ConfigError` if there are none to use."""
        self._config = config
        self._now = now
        self._source = _key_source(config, monotonic)
        self._keys: Sequence[Key] = self._source.keys()
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()

    def authenticate(self, authorization_header: str | None) -> Principal:
        token = _token(authorization_header)
        self._follow_keys()
        digest = hashlib.sha256(token.encode("ascii")).digest()
        known = self._verified.get(digest)
        if known is None or known.until <= self._now():
            known = self._remember(digest, self._verify(token))
        self._verified.move_to_end(digest)
        return known.principal

    def _follow_keys(self) -> None:
        if (keys := self._source.keys()) is not self._keys:
            self._keys = keys
            self._verified.clear()

    def _remember(self, digest: bytes, verified: _Verified) -> _Verified:
        self._verified[digest] = verified
        if len(self._verified) > CACHE_ENTRIES:
            self._verified.popitem(last=False)
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
        principal = Principal(_subject(claims), _scopes(claims), expired=expired, profile=_profile(claims))
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
        """Return the keys that may have signed the token: its algorithm, and its kid where both have one."""
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
                "verify_exp": False,  # ours to judge, because of the grace for resuming
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
    # It becomes the owner in the database and stands in logs: no NUL, no line breaks, no half characters.
    if not subject or len(subject) > MAX_SUBJECT_LENGTH or not subject.isprintable():
        raise Unauthenticated(reason="sub is empty, too long or not printable")
    return subject


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """Return the scopes: `scope` (RFC 8693 §4.2) or else `scp`, as words in a text or as a list."""
    granted = claims.get("scope", claims.get("scp"))
    if isinstance(granted, str):
        granted = granted.split()
    if not isinstance(granted, list):
        return frozenset()
    return frozenset(scope for scope in granted if isinstance(scope, str))


def _profile(claims: Mapping[str, Any]) -> str:
    """Return the profile that the token asks for; what is no text names none that there is."""
    profile = claims.get("profile", DEFAULT_PROFILE)
    return profile if isinstance(profile, str) else ""
