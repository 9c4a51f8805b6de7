"""Decide which host names the server answers to. Pure.

DNS rebinding: a page of evil.example lets its own name point to 127.0.0.1. To the browser the server is
then the page's own origin, and no rule about other origins applies. What gives the page away is the name
in `Host`. An address in there cannot have been rebound, so addresses are always answered.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from tusd_py.config import ServerConfig
from tusd_py.http.forwarded import HOST

LOOPBACK_NAME: Final = "localhost"
"""It and every name below it mean this machine (RFC 6761 §6.3)."""


class HostPolicy:
    """The host names that are answered to."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Take names besides those of loopback."""
        self._names = frozenset({LOOPBACK_NAME, *(name.lower().rstrip(".") for name in names)})

    def refuses(self, host: str) -> bool:
        """Return whether a request for `host`, with or without a port, must be answered with 421.

        None is named by clients of HTTP/1.0, which browsers are not.
        """
        if not host:
            return False
        name = _name(host)
        return not (name in self._names or name.endswith(f".{LOOPBACK_NAME}") or _is_address(name))


def public_names(server: ServerConfig) -> list[str]:
    """Return the names by which the configuration says that clients reach the server."""
    public = urlsplit(server.public_url or "").hostname
    return [server.host, *([public] if public else []), *server.allowed_hosts]


@lru_cache(1024)
def _name(host: str) -> str:
    """Return the host without its port and in lower case, an empty text if it is no host."""
    match = HOST.fullmatch(host)
    return match["name"].lower().rstrip(".") if match else ""


@lru_cache(1024)
def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
