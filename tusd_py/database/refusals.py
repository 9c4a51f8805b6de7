"""Refusals of the database that have a reason outside of it, each explained in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import asyncpg

from tusd_py.config.dsn import ESCAPES
from tusd_py.errors import ConfigError, HookInvalid

_CHOSEN_BY_HOOKS: Final = {
    "uploads_token_hash_key": "ChangeFileInfo.ID is taken.",
    "uploads_object_key_place": "ChangeFileInfo.Storage.Path is taken.",
}
"""What must be unique. Our own tokens and keys are random, so two that are the same were chosen."""


@contextlib.contextmanager
def explained_collisions() -> Iterator[None]:
    """Raise HookInvalid for a token or an object key that another upload has."""
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        if (explanation := _CHOSEN_BY_HOOKS.get(error.constraint_name or "")) is None:
            raise
        raise HookInvalid(explanation) from error


@contextlib.contextmanager
def explained_refusals() -> Iterator[None]:
    """Raise ConfigError for what only a person can cure: the user, its password, the database, a right."""
    try:
        yield
    except asyncpg.InvalidAuthorizationSpecificationError as error:
        cure = f"correct its user or password; in a password {ESCAPES}"
        raise ConfigError([f"database.dsn: the server refuses the login ({error}): {cure}"]) from error
    except asyncpg.InvalidCatalogNameError as error:
        raise ConfigError([f"database.dsn: {error}: create it (CREATE DATABASE), or correct its name"]) from error
    except asyncpg.InsufficientPrivilegeError as error:
        cure = "as an administrator, GRANT CONNECT ON DATABASE, and GRANT USAGE, CREATE ON SCHEMA, to it"
        raise ConfigError([f"database.dsn: its user lacks a right ({error}): {cure}"]) from error
