"""Tokens: what is accepted, what is refused, and what happens when keys change."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from pydantic import SecretStr
from structlog.testing import capture_logs

from tusd_py.auth import jwt as jwt_module
from tusd_py.auth.jwt import MAX_TOKEN_LENGTH, JwtAuthenticator
from tusd_py.config import JwtConfig
from tusd_py.errors import ConfigError, Unauthenticated

pytestmark = pytest.mark.unit

SECRET = "a secret of the service, sixty-four bytes long so that HS512 fits"
NOW = int(time.time())

Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.seconds = float(NOW)

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def claims(**changes: object) -> dict[str, object]:
    return {"sub": "alice", "exp": NOW + 3600} | changes


def token(**changes: object) -> str:
    return jwt.encode(claims(**changes), SECRET, algorithm="HS256")


def bearer(text: str) -> str:
    return f"Bearer {text}"


def by_secret(now: Callable[[], float] = time.time, **changes: Any) -> JwtAuthenticator:
    return JwtAuthenticator(JwtConfig(**{"secret": SECRET} | changes), now=now)


def reason_of(authenticator: JwtAuthenticator, header: str | None) -> str:
    with pytest.raises(Unauthenticated) as refusal:
        authenticator.authenticate(header)
    return str(refusal.value.context["reason"])


# --- a shared secret ------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_token_signed_with_the_secret_is_accepted(algorithm: str) -> None:
    authenticator = by_secret(algorithms=["HS256", "HS384", "HS512"])
    principal = authenticator.authenticate(bearer(jwt.encode(claims(), SECRET, algorithm=algorithm)))

    assert (principal.subject, principal.scopes) == ("alice", frozenset())
    assert not principal.expired
    assert not principal.anonymous


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER   "])
def test_the_scheme_is_matched_in_any_case(scheme: str) -> None:
    assert by_secret().authenticate(scheme + token()).subject == "alice"


@pytest.mark.parametrize(
    ("granted", "expected"),
    [
        ({"scope": "a b  c"}, {"a", "b", "c"}),
        ({"scope": ["a", "b"]}, {"a", "b"}),
        ({"scp": "a b"}, {"a", "b"}),
        ({"scp": ["a", "b"]}, {"a", "b"}),
        ({"scope": "a", "scp": ["b"]}, {"a"}),
        ({"scope": ["a", 5, None]}, {"a"}),
        ({"scope": {"a": 1}}, set()),
        ({"scope": None}, set()),
        ({}, set()),
    ],
)
def test_scopes_are_read_in_every_usual_form(granted: dict[str, object], expected: set[str]) -> None:
    assert by_secret().authenticate(bearer(token(**granted))).scopes == expected


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({}, "default"),
        ({"profile": "photos"}, "photos"),
        ({"profile": ""}, ""),
        ({"profile": None}, ""),
        ({"profile": ["photos"]}, ""),
        ({"profile": 1}, ""),
    ],
)
def test_a_token_may_name_a_profile(claims: dict[str, object], expected: str) -> None:
    assert by_secret().authenticate(bearer(token(**claims))).profile == expected


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        token(),
        f"Bearer {token()} x",
        f"Bearer {token()}, Bearer {token()}",
        f"Bearer\t{token()}",
        "Bearer ..",
        "Bearer a.b",
        "Bearer a.b.c.d.e",
        "Bearer é.b.c",
        "Bearer \u017f.b.c",
        "Bearer \u212a.b.c",
        f"Bearer {token()}x",
        f"Bearer {token().rsplit('.', 1)[0]}.",
    ],
)
def test_what_is_no_valid_bearer_token_is_refused(header: str | None) -> None:
    with pytest.raises(Unauthenticated):
        by_secret().authenticate(header)


@pytest.mark.parametrize(
    "changes",
    [
        {"sub": None},
        {"sub": ""},
        {"sub": 5},
        {"sub": ["alice"]},
        {"sub": "a\nb"},
        {"sub": "a\0b"},
        {"sub": "\ud800"},
        {"sub": "a" * 256},
        {"exp": "tomorrow"},
        {"exp": None},
        {"exp": True},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"exp": 10**400},
        {"exp": 0},
        {"nbf": NOW + 3600},
        {"nbf": float("inf")},
        {"nbf": "later"},
        {"iat": NOW + 3600},
        {"iat": []},
    ],
)
def test_claims_that_do_not_hold_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(Unauthenticated):
        by_secret().authenticate(bearer(signed_raw(claims(**changes))))


def test_a_token_without_subject_is_refused() -> None:
    with pytest.raises(Unauthenticated):
        by_secret().authenticate(bearer(signed_raw({"exp": NOW + 60})))


def test_a_token_without_expiry_is_refused() -> None:
    forever = bearer(jwt.encode({"sub": "alice"}, SECRET, algorithm="HS256"))

    assert reason_of(by_secret(), forever) == "exp is missing"


def test_a_token_without_expiry_is_accepted_where_that_is_configured(clock: Clock) -> None:
    authenticator = by_secret(clock, require_exp=False)
    forever = bearer(jwt.encode({"sub": "alice"}, SECRET, algorithm="HS256"))
    authenticator.authenticate(forever)
    clock.advance(10**9)

    assert not authenticator.authenticate(forever).expired


def signed_raw(payload: object, header: object = None) -> str:
    """Sign whatever it is, where PyJWT would refuse to write it."""
    parts = [header or {"alg": "HS256", "typ": "JWT"}, payload]
    signed = ".".join(_base64url(json.dumps(part).encode()) for part in parts)
    signature = jwt.get_algorithm_by_name("HS256").sign(signed.encode(), SECRET.encode())
    return f"{signed}.{_base64url(signature)}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.mark.parametrize("payload", [[], "alice", 5, None])
def test_a_payload_that_is_no_object_is_refused(payload: object) -> None:
    with pytest.raises(Unauthenticated):
        by_secret().authenticate(bearer(signed_raw(payload)))


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "HS256", "crit": ["x"], "x": 1},
        {"alg": "HS256", "kid": 5},
        {"alg": "HS256", "b64": False, "crit": ["b64"]},
        {"alg": ["HS256"]},
        {"alg": None},
        {"typ": "JWT"},
        ["HS256"],
    ],
)
def test_a_header_that_asks_for_the_unknown_is_refused(header: object) -> None:
    with pytest.raises(Unauthenticated):
        by_secret().authenticate(bearer(signed_raw(claims(), header)))


@pytest.mark.parametrize("depth", [1_000, 9_000])
def test_a_header_nested_without_end_is_refused(depth: int) -> None:
    nested = _base64url(b"[" * depth)

    with pytest.raises(Unauthenticated):
        by_secret().authenticate(f"Bearer {nested}.e30.e30")


def test_a_token_of_another_secret_is_refused() -> None:
    forged = jwt.encode(claims(), SECRET + "x", algorithm="HS256")

    assert "ignature" in reason_of(by_secret(), bearer(forged))


def test_a_long_token_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    long = token(filler="x" * MAX_TOKEN_LENGTH)
    monkeypatch.setattr(jwt_module, "jwt", None)

    assert reason_of(by_secret(), bearer(long)) == "token too long"


def test_the_longest_token_is_accepted() -> None:
    filler = (MAX_TOKEN_LENGTH - len(token(filler=""))) * 3 // 4
    fitting = token(filler="x" * filler)

    assert MAX_TOKEN_LENGTH - 4 <= len(fitting) <= MAX_TOKEN_LENGTH
    assert by_secret().authenticate(bearer(fitting)).subject == "alice"


def test_the_reason_is_not_told_to_the_client() -> None:
    with pytest.raises(Unauthenticated) as refusal:
        by_secret().authenticate(bearer(token(exp=0)))

    assert refusal.value.detail == "A valid bearer token is required."


# --- issuer and audience --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("required", "claimed", "accepted"),
    [
        ({}, {"iss": "anybody", "aud": "anything"}, True),
        ({"issuer": "idp"}, {"iss": "idp"}, True),
        ({"issuer": "idp"}, {"iss": "other"}, False),
        ({"issuer": "idp"}, {"iss": "id"}, False),
        ({"issuer": "idp"}, {}, False),
        ({"audience": "tus"}, {"aud": "tus"}, True),
        ({"audience": "tus"}, {"aud": ["web", "tus"]}, True),
        ({"audience": "tus"}, {"aud": "web"}, False),
        ({"audience": "tus"}, {"aud": 5}, False),
        ({"audience": "tus"}, {}, False),
    ],
)
def test_issuer_and_audience_are_required_where_configured(
    required: dict[str, Any], claimed: dict[str, object], *, accepted: bool
) -> None:
    authenticator = by_secret(**required)
    header = bearer(token(**claimed))

    if accepted:
        assert authenticator.authenticate(header).subject == "alice"
    else:
        with pytest.raises(Unauthenticated):
            authenticator.authenticate(header)


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("late", "outcome"),
    [
        (-1, "fresh"),
        (29, "fresh"),
        (30, "expired"),
        (30 + 3599, "expired"),
        (30 + 3600, "refused"),
    ],
)
@pytest.mark.parametrize("seen_before", [False, True])
def test_an_expired_token_has_a_grace(clock: Clock, late: int, outcome: str, *, seen_before: bool) -> None:
    authenticator = by_secret(clock, leeway=30, resume_grace=3600)
    header = bearer(token(exp=NOW + 100))
    if seen_before:
        assert not authenticator.authenticate(header).expired
    clock.advance(100 + late)

    if outcome == "refused":
        assert reason_of(authenticator, header) == "expired"
    else:
        assert authenticator.authenticate(header).expired is (outcome == "expired")


def test_the_grace_ends_for_a_token_seen_within_it(clock: Clock) -> None:
    authenticator = by_secret(clock, leeway=0, resume_grace=60)
    header = bearer(token(exp=NOW - 1))
    assert authenticator.authenticate(header).expired
    clock.advance(59)

    assert reason_of(authenticator, header) == "expired"


def test_without_grace_an_expired_token_is_refused(clock: Clock) -> None:
    assert reason_of(by_secret(clock, resume_grace=0), bearer(token(exp=NOW - 31))) == "expired"


# --- the memory of verified tokens ----------------------------------------------------------------


def count_of_checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    decode = jwt.decode

    def counting(text: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        seen.append(text)
        return decode(text, *arguments, **options)

    monkeypatch.setattr(jwt, "decode", counting)
    return seen


def test_a_repeated_token_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = count_of_checks(monkeypatch)
    authenticator = by_secret()
    header = bearer(token())

    assert authenticator.authenticate(header) == authenticator.authenticate(header)
    assert len(checks) == 1


def test_a_refused_token_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    authenticator = by_secret()
    forged = bearer(jwt.encode(claims(), SECRET + "x", algorithm="HS256"))
    reason_of(authenticator, forged)
    checks = count_of_checks(monkeypatch)
    reason_of(authenticator, forged)

    assert len(checks) == 1


def test_the_cache_is_bounded_and_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = count_of_checks(monkeypatch)
    authenticator = JwtAuthenticator(JwtConfig(secret=SecretStr(SECRET)), cache_entries=2)
    first, second, third = (bearer(token(jti=str(n))) for n in range(3))
    for header in (first, second, first, third, first, second):
        authenticator.authenticate(header)

    assert [bearer(text) for text in checks] == [first, second, third, second]
    assert len(authenticator._cached) == 2


# --- public keys ----------------------------------------------------------------------------------


def jwk(key: Private, kid: str | None = None, **more: object) -> dict[str, object]:
    handler = jwt.get_algorithm_by_name(algorithm_of(key))
    public: dict[str, object] = handler.to_jwk(key.public_key(), as_dict=True)
    return public | ({"kid": kid} if kid else {}) | more


def algorithm_of(key: Private) -> str:
    match key:
        case rsa.RSAPrivateKey():
            return "RS256"
        case ec.EllipticCurvePrivateKey():
            return "ES256"
        case ed25519.Ed25519PrivateKey():
            return "EdDSA"


def signed(key: Private, kid: str | None = None, **changes: object) -> str:
    return bearer(
        jwt.encode(claims(**changes), key, algorithm=algorithm_of(key), headers={"kid": kid} if kid else None)
    )


class KeyFile:
    """A JWKS file whose time always changes when it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = 0

    def write(self, *keys: object) -> None:
        self.write_text(json.dumps({"keys": keys}))

    def write_text(self, text: str) -> None:
        self._written += 1
        self.path.write_text(text, encoding="utf-8")
        os.utime(self.path, (NOW, NOW + self._written))


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "jwks.json")


def by_file(
    file: KeyFile, *, clock: Callable[[], float] = time.monotonic, algorithms: Iterable[str] = ()
) -> JwtAuthenticator:
    names = list(algorithms) or ["RS256", "ES256", "EdDSA"]
    return JwtAuthenticator(JwtConfig.model_validate({"jwks_file": file.path, "algorithms": names}), monotonic=clock)


@pytest.mark.parametrize("key", [RSA_KEY, EC_KEY, ED_KEY], ids=algorithm_of)
@pytest.mark.parametrize("kid", ["k1", None])
def test_a_token_of_a_listed_key_is_accepted(file: KeyFile, key: Private, kid: str | None) -> None:
    file.write(jwk(OTHER_RSA_KEY, "other"), jwk(key, "k1"))

    assert by_file(file).authenticate(signed(key, kid)).subject == "alice"


def test_a_key_without_kid_serves_any_kid(file: KeyFile) -> None:
    file.write(jwk(EC_KEY))

    assert by_file(file).authenticate(signed(EC_KEY, "whatever")).subject == "alice"


@pytest.mark.parametrize("kid", ["other", "unknown"])
def test_a_kid_of_another_key_is_refused(file: KeyFile, kid: str) -> None:
    file.write(jwk(RSA_KEY, "k1"), jwk(OTHER_RSA_KEY, "other"))

    with pytest.raises(Unauthenticated):
        by_file(file).authenticate(signed(RSA_KEY, kid))


def test_a_key_that_is_not_listed_is_refused(file: KeyFile) -> None:
    file.write(jwk(RSA_KEY))

    with pytest.raises(Unauthenticated):
        by_file(file).authenticate(signed(OTHER_RSA_KEY))


def test_an_algorithm_that_is_not_configured_is_refused(file: KeyFile) -> None:
    file.write(jwk(RSA_KEY), jwk(EC_KEY))

    with pytest.raises(Unauthenticated):
        by_file(file, algorithms=["ES256"]).authenticate(signed(RSA_KEY))


# --- algorithm confusion --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE"])
def test_a_token_without_signature_is_refused(file: KeyFile, name: str) -> None:
    file.write(jwk(RSA_KEY))
    parts = [{"alg": name, "typ": "JWT"}, claims()]
    unsigned = ".".join(_base64url(json.dumps(part).encode()) for part in parts)

    for authenticator in (by_secret(), by_file(file)):
        with pytest.raises(Unauthenticated):
            authenticator.authenticate(f"Bearer {unsigned}.")


def test_a_public_key_is_never_a_shared_secret(file: KeyFile) -> None:
    file.write(jwk(RSA_KEY, "k1"))
    pem = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, file.path.read_bytes(), json.dumps(jwk(RSA_KEY, "k1")).encode()):
        signing = ".".join(_base64url(json.dumps(part).encode()) for part in [{"alg": "HS256", "kid": "k1"}, claims()])
        signature = jwt.get_algorithm_by_name("HS256").sign(signing.encode(), secret)

        with pytest.raises(Unauthenticated):
            by_file(file).authenticate(f"Bearer {signing}.{_base64url(signature)}")


def test_a_key_does_not_verify_under_another_algorithm(file: KeyFile) -> None:
    file.write(jwk(RSA_KEY, "k1"))
    by_pss = bearer(jwt.encode(claims(), RSA_KEY, algorithm="PS256", headers={"kid": "k1"}))

    with pytest.raises(Unauthenticated):
        by_file(file).authenticate(by_pss)


def test_a_pem_is_no_secret() -> None:
    pem = EC_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    with pytest.raises(ConfigError, match="not a shared secret"):
        by_secret(secret=pem.decode())


# --- the file changes -----------------------------------------------------------------------------


def test_a_new_file_brings_new_keys_and_withdraws_the_old(file: KeyFile, clock: Clock) -> None:
    file.write(jwk(RSA_KEY, "k1"))
    authenticator = by_file(file, clock=clock)
    authenticator.authenticate(signed(RSA_KEY, "k1"))
    file.write(jwk(EC_KEY, "k2"))
    clock.advance(1)

    assert authenticator.authenticate(signed(EC_KEY, "k2")).subject == "alice"
    with pytest.raises(Unauthenticated):
        authenticator.authenticate(signed(RSA_KEY, "k1"))


def test_the_file_is_looked_at_once_a_second(file: KeyFile, clock: Clock) -> None:
    file.write(jwk(RSA_KEY))
    authenticator = by_file(file, clock=clock)
    file.write(jwk(EC_KEY))
    clock.advance(0.9)

    assert authenticator.authenticate(signed(RSA_KEY)).subject == "alice"
    clock.advance(0.1)
    assert authenticator.authenticate(signed(EC_KEY)).subject == "alice"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"keys": 5}', '{"keys": {}}', "[" * 5000, '"' + "x" * 2**20 + '"']
)
def test_a_broken_new_file_keeps_the_old_keys_and_logs_once(file: KeyFile, clock: Clock, text: str) -> None:
    file.write(jwk(RSA_KEY))
    authenticator = by_file(file, clock=clock)
    file.write_text(text)

    with capture_logs() as logs:
        for _ in range(3):
            clock.advance(1)
            assert authenticator.authenticate(signed(RSA_KEY)).subject == "alice"

    assert [entry["event"] for entry in logs if entry["event"] != "jwk_ignored"] == ["jwks_file_unusable"]


@pytest.mark.parametrize("entries", [[], [{"kty": "oct"}], [5], ["new"]])
def test_a_well_formed_set_without_a_key_of_ours_locks_everybody_out(
    file: KeyFile, clock: Clock, entries: list[object]
) -> None:
    file.write(jwk(RSA_KEY))
    authenticator = by_file(file, clock=clock)
    assert authenticator.authenticate(signed(RSA_KEY)).subject == "alice"
    file.write(*[jwk(EC_KEY, use="enc") if entry == "new" else entry for entry in entries])
    clock.advance(1)

    with capture_logs() as logs:
        for _ in range(3):
            assert reason_of(authenticator, signed(RSA_KEY)) == "no key of ours fits the token"
            clock.advance(1)

    (said,) = [entry for entry in logs if entry["event"] != "jwk_ignored"]
    assert (said["event"], said["log_level"]) == ("jwks_file_without_key", "error")
    file.write(jwk(RSA_KEY))
    clock.advance(1)
    assert authenticator.authenticate(signed(RSA_KEY)).subject == "alice"


def test_a_file_that_vanishes_keeps_the_old_keys_until_it_is_back(file: KeyFile, clock: Clock) -> None:
    file.write(jwk(RSA_KEY))
    authenticator = by_file(file, clock=clock)
    file.path.unlink()
    clock.advance(1)
    assert authenticator.authenticate(signed(RSA_KEY)).subject == "alice"
    file.write(jwk(EC_KEY))
    clock.advance(1)

    assert authenticator.authenticate(signed(EC_KEY)).subject == "alice"


@pytest.mark.parametrize("text", ["", "null", '{"keys": []}', '{"keys": {}}', '{"keys": [5]}', '"' + "x" * 2**20 + '"'])
def test_a_file_without_keys_is_refused_at_the_start(file: KeyFile, text: str) -> None:
    file.write_text(text)

    with capture_logs(), pytest.raises(ConfigError, match=r"auth\.jwt\.jwks_file"):
        by_file(file)


def test_a_missing_file_is_refused_at_the_start(file: KeyFile) -> None:
    with pytest.raises(ConfigError, match=r"auth\.jwt\.jwks_file"):
        by_file(file)


def test_no_key_at_all_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="exactly one"):
        JwtAuthenticator(JwtConfig())


def private_jwk() -> dict[str, object]:
    return dict(jwt.get_algorithm_by_name("ES256").to_jwk(EC_KEY, as_dict=True))


WEAK_KEY = rsa.generate_private_key(65537, 1024)


@pytest.mark.parametrize(
    "entry",
    [
        5,
        {},
        {"kty": 5},
        {"kty": "oct", "k": _base64url(SECRET.encode())},
        {"kty": "RSA"},
        {"kty": "RSA", "n": 5, "e": "AQAB"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-256", "x": _base64url(b"\1" * 32), "y": _base64url(b"\1" * 32)},
        {"kty": "EC", "crv": "P-521"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
        {"kty": "OKP", "crv": "X25519", "x": _base64url(b"\1" * 32)},
        jwk(RSA_KEY, use="enc"),
        jwk(RSA_KEY, alg="RS512"),
        jwk(RSA_KEY, key_ops=["encrypt"]),
        jwk(RSA_KEY, key_ops=5),
        jwk(RSA_KEY) | {"kid": 5},
        jwk(WEAK_KEY),
        private_jwk(),
    ],
)
def test_a_key_that_is_not_for_us_is_passed_over(file: KeyFile, entry: object) -> None:
    file.write(entry, jwk(ED_KEY))

    with capture_logs() as logs:
        authenticator = by_file(file)

    assert authenticator.authenticate(signed(ED_KEY)).subject == "alice"
    assert [entry["event"] for entry in logs] == ["jwk_ignored"]
    assert logs[0]["reason"]
