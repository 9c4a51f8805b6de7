"""Decide which host a request is for and which client it comes from. Pure.

The names that are answered to: DNS rebinding. A page of evil.example lets its own name point to 127.0.0.1. To
the browser the server is then the page's own origin, and no rule about other origins applies. What gives the
page away is the name in `Host`. An address in there cannot have been rebound, so addresses are always answered.

What a proxy says: only a trusted peer is believed, and even its headers are checked: it may have passed on what
a client invented. On any doubt the answer is None, and `Location` becomes a path, which is always right.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from tusd_py.config import ServerConfig
from tusd_py.config.sections import UNIX_PEER

LOOPBACK_NAME: Final = "localhost"
"""It and every name below it mean this machine (RFC 6761 §6.3)."""
MAX_HEADER_LENGTH: Final = 8192
KEPT_DECISIONS: Final = 64
"""Of the latest hosts. A client may name as many as it likes, each as long as a header can be."""
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

HOST: Final = re.compile(
    r"(?P<name>[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?"
)
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)*/?")
_PAIR: Final = re.compile(
    r"""[ \t]*(?P<name>[A-Za-z0-9!#$%&'*+.^_`|~-]+)=
        (?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[A-Za-z0-9!#$%&'*+.^_`|~-]+))[ \t]*(?P<end>[;,]|$)""",
    re.VERBOSE,
)
_NODE: Final = re.compile(
    r"\[(?P<v6>[0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|(?P<v4>[0-9.]+)(?::[0-9]{1,5})?|(?P<bare>[0-9A-Fa-f:.]+)"
)

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class ExternalBase:
    """The origin, and the path below it, at which clients reach the server."""

    scheme: str
    host: str
    """With its port, unless that is the scheme's own."""
    prefix: str = ""
    """The path the proxy took away, without a trailing slash."""

    def url(self, path: str) -> str:
        """Return the absolute URL of a path of ours."""
        return f"{self.scheme}://{self.host}{self.prefix}{path}"


class TrustedProxies:
    """The peers whose forwarding headers are believed."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        """Take networks, and "unix" for peers without an address. Raises ValueError for anything else."""
        listed = list(networks)
        self._unix = UNIX_PEER in listed
        self._networks = [ipaddress.ip_network(network, strict=False) for network in listed if network != UNIX_PEER]

    def trusts(self, peer: str | None) -> bool:
        """Return whether the peer is a trusted proxy. None and "" are whoever uses a unix socket."""
        if not peer:
            return self._unix
        address = _address(peer.partition("%")[0])
        return address is not None and any(address in network for network in self._networks)


def external_base(
    headers: Mapping[str, str], peer: str | None, scheme: str, host: str, trusted: TrustedProxies
) -> ExternalBase | None:
    """Return how the client reached us, None if nobody trustworthy says so.

    `scheme` and `host` are what this server saw, for what the headers leave out. Of a list the first
    value counts: it is the proxy nearest to the client.
    """
    if not trusted.trusts(peer):
        return None
    said = _forwarding_headers(headers)
    try:
        elements = _forwarded(said)
        first = elements[0] if elements else {}
        scheme = _agreed(_first(said, "x-forwarded-proto"), first.get("proto"), scheme).lower()
        host = _agreed(_first(said, "x-forwarded-host"), first.get("host"), host).lower()
    except ValueError:
        return None
    prefix = _first(said, "x-forwarded-prefix") or ""
    if scheme not in _DEFAULT_PORTS or not _is_prefix(prefix) or not (authority := normal_authority(host, scheme)):
        return None
    return ExternalBase(scheme, authority, prefix.rstrip("/"))


def client_address(headers: Mapping[str, str], peer: str | None, trusted: TrustedProxies) -> str | None:
    """Return the address of the client, None for one on a unix socket.

    It is the right-most address that is not a trusted proxy: everything to its left was written by
    somebody we do not trust. Where the list cannot be read, the last address that could be stands.
    """
    address = peer_address(peer)
    if not trusted.trusts(peer):
        return address
    for node in reversed(_nodes(_forwarding_headers(headers))):
        if (found := _node_address(node)) is None:
            return address
        address = str(found)
        if not trusted.trusts(address):
            return address
    return address


@lru_cache(1024)
def peer_address(peer: str | None) -> str | None:
    """Return the address at the other end of the connection, None for a unix socket."""
    return str(_address(peer.partition("%")[0]) or peer) if peer else None


def _forwarding_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return `Forwarded` and `X-Forwarded-*` by their names in lower case."""
    found: dict[str, str] = {}
    for key, value in headers.items():
        name = key.lower()
        if name.startswith(("x-forwarded-", "forwarded")):
            # Some proxies append a line of their own instead of a value: the first alone would be the client's.
            found[name] = f"{found[name]},{value}" if name in found else value
    return found


def _nodes(said: Mapping[str, str]) -> list[str]:
    # nginx and others pass on a Forwarded that a client invented, while they do write X-Forwarded-For.
    if value := said.get("x-forwarded-for"):
        return [node.strip(" \t") for node in value[-MAX_HEADER_LENGTH:].split(",")]
    try:
        return [element.get("for", "") for element in _forwarded(said)]
    except ValueError:
        return []


def _agreed(of_x: str | None, of_forwarded: str | None, fallback: str) -> str:
    """Return the one value that was said. Raises ValueError if two disagree.

    A proxy writes one family of headers and passes on the other; on a difference nobody can tell
    which of them the client made up.
    """
    if of_x is not None and of_forwarded is not None and of_x.lower() != of_forwarded.lower():
        raise ValueError("X-Forwarded-* and Forwarded disagree")
    return of_x or of_forwarded or fallback


def normal_authority(host: str, scheme: str) -> str | None:
    """Return the host with its port unless that is the scheme's own, None if it is no host."""
    if not (match := HOST.fullmatch(host)):
        return None
    name, port = match["name"], match["port"]
    if name.startswith("[") and _address(name[1:-1]) is None:
        return None
    if port is None or int(port) == _DEFAULT_PORTS.get(scheme):
        return name
    return f"{name}:{int(port)}" if 0 < int(port) < 2**16 else None


def _is_prefix(prefix: str) -> bool:
    """Return whether this may stand before a path: no other host, no query, no way up."""
    return bool(_PREFIX.fullmatch(prefix)) and not {".", ".."} & set(prefix.split("/"))


def _node_address(node: str) -> _Address | None:
    """Return the address in `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:80`."""
    match = _NODE.fullmatch(node)
    return _address(match["v6"] or match["v4"] or match["bare"]) if match else None


@lru_cache(4096)
def _address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # A dual-stack socket shows an IPv4 peer as ::ffff:192.0.2.1.
    return (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped) or address


def _first(said: Mapping[str, str], name: str) -> str | None:
    return said.get(name, "").partition(",")[0].strip(" \t") or None


def _forwarded(said: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the elements of `Forwarded` (RFC 7239 §4). Raises ValueError if it is malformed."""
    value = said.get("forwarded", "")
    if len(value) > MAX_HEADER_LENGTH:
        raise ValueError("Forwarded is too long")
    elements: list[dict[str, str]] = [{}]
    for name, text, ends_element in _pairs(value):
        if name in elements[-1]:
            raise ValueError("Forwarded says something twice")
        elements[-1][name] = text
        if ends_element:
            elements.append({})
    return [element for element in elements if element]


def _pairs(value: str) -> Iterator[tuple[str, str, bool]]:
    position = 0
    while position < len(value):
        if not (match := _PAIR.match(value, position)):
            raise ValueError("Forwarded is malformed")
        quoted = match["quoted"]
        text = match["token"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        yield match["name"].lower(), text, match["end"] == ","
        position = match.end()


class HostPolicy:
    """The host names that are answered to."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Take names besides those of loopback."""
        self._names = frozenset({LOOPBACK_NAME, *(name.lower().rstrip(".") for name in names)})
        # Few hosts are ever asked for, each many times.
        self.refuses = lru_cache(KEPT_DECISIONS)(self._refuses)

    def _refuses(self, host: str) -> bool:
        """Return whether a request for `host`, with or without a port, must be answered with 421.

        None is named by clients of HTTP/1.0, which browsers are not.
        """
        if not host:
            return False
        match = HOST.fullmatch(host)
        name = match["name"].lower().rstrip(".") if match else ""
        return not (name in self._names or name.endswith(f".{LOOPBACK_NAME}") or _is_host_address(name))


def public_names(server: ServerConfig) -> list[str]:
    """Return the names by which the configuration says that clients reach the server."""
    public = urlsplit(server.public_url or "").hostname
    return [server.host, *([public] if public else []), *server.allowed_hosts]


def _is_host_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
