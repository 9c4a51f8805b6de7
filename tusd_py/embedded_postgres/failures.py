"""The errors of the embedded server, with what the user can do about them."""

from __future__ import annotations

import pwd
from pathlib import Path

from tusd_py.embedded_postgres import directories
from tusd_py.errors import ConfigError, TusdError


class EmbeddedPostgresError(TusdError):
    """The embedded PostgreSQL server failed."""

    code = "ERR_EMBEDDED_POSTGRES"


def data_problem(data_dir: Path, text: str) -> ConfigError:
    """Return the error for what is wrong with the data and can be corrected by the user."""
    return ConfigError([f"database.dsn: not set, and the database in {data_dir} {text}, or set database.dsn"])


def log_failure(log_path: Path, what: str, begin: int) -> EmbeddedPostgresError:
    """Return the error with the end of what PostgreSQL logged since the position `begin`."""
    return EmbeddedPostgresError(f"{what}; the end of {log_path}:\n{directories.log_since(log_path, begin)}")


def user_name(uid: int) -> str:
    """Return the name of a user, or its number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
