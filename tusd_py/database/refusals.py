"""Refusals of the database that only a person can cure, each explained in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import asyncpg

from tusd_py.config.dsn import ESCAPES
from tusd_py.errors import ConfigError


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
