"""Find mistakes in a DSN by its text. Pure.

The driver guesses: a password with an @ becomes a host name, one with a slash a database. Such a DSN is
refused here, with a message that does not repeat the secret.
"""

from __future__ import annotations

import re
from typing import Final

ESCAPES: Final = "write @ as %40, : as %3A, / as %2F, # as %23, ? as %3F, [ as %5B, % as %25"

_FORM: Final = "postgresql://user:password@host:port/database"
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:@]*)(?::[0-9]*)?")
_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


def dsn_problem(dsn: str) -> str | None:
    """Return what is wrong, None if nothing is found."""
    scheme, separator, rest = dsn.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        return f"is no URL; write {_FORM}"
    if scheme not in {"postgresql", "postgres"}:
        return f'begins with "{scheme}://"; only PostgreSQL is supported: write {_FORM}'
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    path, _, query = rest[len(authority) :].partition("?")
    credentials, _, hosts = authority.rpartition("@")
    suspicious = (
        "@" in credentials + path
        or "#" in rest
        or re.search(r"[\[\]]", credentials)
        or _BROKEN_ESCAPE.search(credentials)
    )
    misread = not all(_HOST.fullmatch(host) for host in hosts.split(",")) or not all(
        "=" in field for field in query.split("&") if field
    )
    if suspicious or (misread and "@" in rest):
        return f"has a character in its user or password that must be escaped: {ESCAPES}"
    return f"cannot be read; write {_FORM}" if misread else None
