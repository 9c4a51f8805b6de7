"""Problems that only several keys together show. Pure: nothing is opened or connected."""

from __future__ import annotations

import importlib.util
import os
import re
import string
from collections.abc import Callable, Collection, Iterator
from typing import Final

from tusd_py.config.dsn import dsn_problem
from tusd_py.config.model import Config
from tusd_py.config.object_keys import form_problems, length_problems
from tusd_py.config.place import place_of
from tusd_py.config.s3_validation import s3_pool_problems, s3_problems, s3_warnings
from tusd_py.config.sections import CorsConfig, JwtConfig, is_loopback
from tusd_py.config.sections.webhooks import HOOKS_ENDPOINT

KEY_FIELDS: Final = frozenset({"id", "yyyy", "mm", "dd", "owner_hash"})
MIN_HMAC_KEY_BYTES: Final = 32
"""RFC 7518 §3.2: an HS256 key has at least the size of the hash."""

_EVERY_INTERFACE: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9.*:\[\]_-]+")
_ANY_HOST: Final = re.compile(r"[^:]+://[*.-]+(?::[0-9*]+)?")
_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'+.^_`|~-]+")


def cross_field_problems(config: Config, broken: Collection[str] = ()) -> list[str]:
    """Return every problem between keys as `key.path: message`, none if there is none.

    Checks that read one of the `broken` sections are left out: those hold defaults instead of what
    was written.
    """
    return [problem for sections, check in _CHECKS if sections.isdisjoint(broken) for problem in check(config)]


def warnings(config: Config) -> list[str]:
    """Return what is allowed but risky, as `key.path: message`."""
    found = list(_open_to_pages(config))
    return [*found, *s3_warnings(config)] if config.storage.backend == "s3" else found


def _open_to_pages(config: Config) -> Iterator[str]:
    if config.auth.mode == "none" and config.cors.enabled and "*" in config.cors.allow_origins:
        yield (
            'cors.allow_origins: "*" with auth.mode = "none": every web page that somebody opens who can reach the '
            "server can list, download and delete all uploads; name the origins of your own pages"
        )


def _event_loop(config: Config) -> Iterator[str]:
    if config.server.event_loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
        yield 'server.event_loop: uvloop is not installed; "auto" uses asyncio\'s own loop instead'


def _auth_mode(config: Config) -> Iterator[str]:
    auth = config.auth
    if auth.mode == "none" and not is_loopback(config.server.host) and not auth.allow_anonymous:
        yield (
            f'auth.mode: "none" on {config.server.host} lets everybody upload; '
            "configure [auth] or set allow_anonymous = true"
        )


def _jwt(config: Config) -> Iterator[str]:
    jwt = config.auth.jwt
    if config.auth.mode != "jwt":
        return
    if bool(jwt.secret) == bool(jwt.jwks_file):
        yield "auth.jwt: exactly one of secret and jwks_file is needed"
        return
    symmetric = [name for name in jwt.algorithms if name.startswith("HS")]
    if not jwt.algorithms:
        yield "auth.jwt.algorithms: at least one is needed"
    if jwt.jwks_file and symmetric:
        yield "auth.jwt.algorithms: HS… does not go with jwks_file; name the algorithms of its keys"
    if jwt.secret and len(symmetric) != len(jwt.algorithms):
        yield "auth.jwt.algorithms: only HS… goes with secret"
    if jwt.secret and len(jwt.secret.get_secret_value().encode()) < (needed := _hmac_key_bytes(jwt)):
        yield f"auth.jwt.secret: at least {needed} bytes are needed"
    if jwt.jwks_file and not jwt.jwks_file.is_file():
        yield f"auth.jwt.jwks_file: {jwt.jwks_file} is not a file"


def _hmac_key_bytes(jwt: JwtConfig) -> int:
    # RFC 7518 §3.2 for the longest hash among the algorithms: HS512 needs 64 bytes.
    return max([MIN_HMAC_KEY_BYTES, *(int(name[2:]) // 8 for name in jwt.algorithms if name.startswith("HS"))])


def _cors(config: Config) -> Iterator[str]:
    cors = config.cors
    for origin in cors.allow_origins:
        if origin not in {"*", "null"} and not _ORIGIN.fullmatch(origin):
            yield f'cors.allow_origins: {origin!r} is not an origin; write for example "https://app.example.com"'
    for key, names in (("allow_headers", cors.allow_headers), ("expose_headers", cors.expose_headers)):
        if wrong := [name for name in names if not _FIELD_NAME.fullmatch(name)]:
            yield f"cors.{key}: not a header name: {', '.join(map(repr, wrong))}"
    yield from _cors_credentials(cors)


def _cors_credentials(cors: CorsConfig) -> Iterator[str]:
    if not cors.allow_credentials:
        return
    # Any page can get the origin "null" by a sandboxed frame.
    for origin in cors.allow_origins:
        if origin in {"*", "null"} or _ANY_HOST.fullmatch(origin):
            yield f'cors.allow_credentials: needs explicit allow_origins instead of "{origin}"'


def _storage(config: Config) -> Iterator[str]:
    problems = list(_key_template(config.storage.key_template))
    yield from problems or _key_length(config)
    if config.storage.backend == "s3":
        yield from s3_problems(config, config.storage.s3)


def _key_length(config: Config) -> Iterator[str]:
    # Every field is as long in each key, so one key stands for all of them.
    widths = {"id": 36, "yyyy": 4, "mm": 2, "dd": 2, "owner_hash": 16}
    key = config.storage.key_template.format(**{name: "0" * width for name, width in widths.items()})
    yield from (f"storage.key_template: {problem}" for problem in length_problems(config, key))


def _key_template(template: str) -> Iterator[str]:
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        yield f"storage.key_template: {error}"
        return
    fields = {name for _, name, _, _ in parsed if name is not None}
    if any(spec or conversion for _, _, spec, conversion in parsed):
        yield "storage.key_template: fields take neither ! nor :"
    if unknown := fields - KEY_FIELDS:
        known = ", ".join(sorted(KEY_FIELDS))
        yield f"storage.key_template: unknown {', '.join(sorted(unknown))} (known: {known})"
    if "id" not in fields:
        yield "storage.key_template: must contain {id}, or two uploads could get the same key"
    yield from (f"storage.key_template: {problem}" for problem in form_problems(template))


def _former_stores(config: Config) -> Iterator[str]:
    seen = {place_of(config, config.storage): "the current store"}
    for number, former in enumerate(config.storage.former):
        path = f"storage.former.{number}"
        if former.backend == "s3":
            yield from s3_problems(config, former.s3, path=f"{path}.s3")
        if (same := seen.get(place := place_of(config, former))) is not None:
            yield f"{path}: is {same}: the {place}"
        seen.setdefault(place, path)


def _webhooks(config: Config) -> Iterator[str]:
    seen: dict[str, int] = {}
    for number, webhook in enumerate(config.webhooks):
        if (other := seen.setdefault(webhook.endpoint, number)) != number:
            yield (
                f"webhooks.{number}.name: {webhook.endpoint!r} is webhooks.{other} already; give each endpoint a name "
                "of its own"
            )
        if webhook.endpoint == HOOKS_ENDPOINT:
            yield f"webhooks.{number}.name: {HOOKS_ENDPOINT!r} is the endpoint of the programs in hooks.file"


def _profiles_of_webhooks(config: Config) -> Iterator[str]:
    for number, webhook in enumerate(config.webhooks):
        if unknown := [name for name in webhook.profiles if name not in config.profiles]:
            known = ", ".join(sorted(config.profiles))
            yield f"webhooks.{number}.profiles: unknown {', '.join(map(repr, unknown))} (profiles: {known})"


def _hooks(config: Config) -> Iterator[str]:
    directory = config.hooks.file
    if directory is None:
        return
    if not directory.is_dir():
        yield f"hooks.file: {directory} is not a directory"
    for kind in config.hooks.events:
        program = directory / kind.value
        if program.exists() and not (program.is_file() and os.access(program, os.X_OK)):
            yield f"hooks.file: {program} cannot be executed"


def _listeners(config: Config) -> Iterator[str]:
    server, operations = config.server, config.operations
    # With SO_REUSEPORT both could bind the same port, and metrics would be public.
    if operations.enabled and server.port == operations.port != 0 and _overlap(server.host, operations.host):
        yield "operations.port: is the same as server.port"


def _overlap(host: str, other: str) -> bool:
    if host == other or {host, other} & _EVERY_INTERFACE:
        return True
    return "localhost" in {host, other} and is_loopback(host) and is_loopback(other)


def _database(config: Config) -> Iterator[str]:
    for key, dsn in (("dsn", config.database.dsn), ("listen_dsn", config.database.listen_dsn)):
        if dsn is not None and (problem := dsn_problem(dsn.get_secret_value())):
            yield f"database.{key}: {problem}"


def _transfer(config: Config) -> Iterator[str]:
    if config.transfer.retry_delay > config.transfer.retry_max_delay:
        yield "transfer.retry_delay: is longer than retry_max_delay"


_CHECKS: Final[tuple[tuple[frozenset[str], Callable[[Config], Iterator[str]]], ...]] = (
    (frozenset({"server"}), _event_loop),
    (frozenset({"auth", "server"}), _auth_mode),
    (frozenset({"auth"}), _jwt),
    (frozenset({"cors"}), _cors),
    (frozenset({"storage"}), _storage),
    (frozenset({"storage", "data_dir"}), _former_stores),
    (frozenset({"storage", "transfer"}), s3_pool_problems),
    (frozenset({"server", "operations"}), _listeners),
    (frozenset({"database"}), _database),
    (frozenset({"transfer"}), _transfer),
    (frozenset({"webhooks"}), _webhooks),
    (frozenset({"hooks"}), _hooks),
    (frozenset({"webhooks", "profiles"}), _profiles_of_webhooks),
)
"""Every check with the sections that it reads."""
