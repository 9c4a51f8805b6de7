"""Checks that need more than one key at once. Pure: nothing is opened or connected."""

from __future__ import annotations

import ipaddress
import string
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tusd_py.config.load import Config

KEY_FIELDS: Final = frozenset({"id", "yyyy", "mm", "dd", "owner_hash"})
MIN_HMAC_KEY_BYTES: Final = 32
"""RFC 7518 §3.2: an HS256 key has at least the size of the hash."""


def cross_problems(config: Config) -> list[str]:
    """Answer every problem between keys as `key.path: message`, none if the whole is sound."""
    return [*_auth(config), *_cors(config), *_storage(config), *_listeners(config), *_transfer(config)]


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _auth(config: Config) -> Iterator[str]:
    auth = config.auth
    if auth.mode == "none" and not is_loopback(config.server.host) and not auth.allow_anonymous:
        yield (
            f'auth.mode: "none" on {config.server.host} lets everybody upload; '
            "configure [auth] or say allow_anonymous = true"
        )
    if auth.mode != "jwt":
        return
    if bool(auth.jwt.secret) == bool(auth.jwt.jwks_file):
        yield "auth.jwt: exactly one of secret and jwks_file is needed"
    symmetric = [name for name in auth.jwt.algorithms if name.startswith("HS")]
    if not auth.jwt.algorithms:
        yield "auth.jwt.algorithms: at least one is needed"
    if auth.jwt.jwks_file and symmetric:
        yield "auth.jwt.algorithms: HS… does not go with jwks_file; name the algorithms of its keys"
    if auth.jwt.secret and len(symmetric) != len(auth.jwt.algorithms):
        yield "auth.jwt.algorithms: only HS… goes with secret"
    if auth.jwt.secret and len(auth.jwt.secret.get_secret_value().encode()) < MIN_HMAC_KEY_BYTES:
        yield f"auth.jwt.secret: at least {MIN_HMAC_KEY_BYTES} bytes are needed"
    if auth.jwt.jwks_file and not auth.jwt.jwks_file.is_file():
        yield f"auth.jwt.jwks_file: {auth.jwt.jwks_file} is not a file"


def _cors(config: Config) -> Iterator[str]:
    if config.cors.allow_credentials and "*" in config.cors.allow_origins:
        yield 'cors.allow_credentials: needs explicit allow_origins instead of "*"'


def _storage(config: Config) -> Iterator[str]:
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(config.storage.key_template) if name is not None}
    except ValueError as error:
        yield f"storage.key_template: {error}"
        return
    if unknown := fields - KEY_FIELDS:
        yield f"storage.key_template: unknown {', '.join(sorted(unknown))} (known: {', '.join(sorted(KEY_FIELDS))})"
    if "id" not in fields:
        yield "storage.key_template: must contain {id}, or two uploads could share a key"
    if any(step in {"", ".", ".."} for step in config.storage.key_template.split("/")):
        yield "storage.key_template: must not start or end with a slash, nor contain //, . or .."
    if config.storage.backend == "s3":
        yield from _s3(config)


def _s3(config: Config) -> Iterator[str]:
    s3 = config.storage.s3
    if not s3.bucket:
        yield "storage.s3.bucket: is required with backend = s3"
    if bool(s3.access_key) != bool(s3.secret_key):
        yield "storage.s3: access_key and secret_key go together"
    if s3.profile and s3.access_key:
        yield "storage.s3.profile: excludes access_key and secret_key"
    if s3.location.startswith("/") or ".." in s3.location.split("/"):
        yield "storage.s3.location: must not start with a slash nor contain .."
    if s3.sse_kms_key_id and s3.sse != "aws:kms":
        yield 'storage.s3.sse_kms_key_id: needs sse = "aws:kms"'


def _listeners(config: Config) -> Iterator[str]:
    same_host = config.server.host == config.operations.host
    if config.operations.enabled and same_host and config.server.port == config.operations.port != 0:
        yield "operations.port: is the same as server.port"


def _transfer(config: Config) -> Iterator[str]:
    if config.transfer.retry_delay > config.transfer.retry_max_delay:
        yield "transfer.retry_delay: is longer than retry_max_delay"
