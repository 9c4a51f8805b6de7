"""Refuse addresses that are not of the public internet, for endpoints that may not be inside.

The check is made on the addresses that are connected to, and not on a look-up before: a name may be resolved
to another address the next time.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from tusd_py.ports.events import DeliveryFailed


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses only."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host. Raises OSError if one of them is private, or there is none."""
        found = await self._resolver.resolve(host, port, family)
        for address in found:
            if not is_public(address["host"]):
                raise OSError(None, f"{host} has the private address {address['host']}; see allow_private")
        return found

    async def close(self) -> None:
        await self._resolver.close()


def refuse_private_literal(url: str) -> None:
    """Raise `DeliveryFailed` if a URL has a private address in the place of a name: it is never resolved."""
    host = urlsplit(url).hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return
    if not is_public(host):
        raise DeliveryFailed(f"{host} is a private address; see allow_private")


def is_public(address: str) -> bool:
    """Return whether an address is of the public internet (IANA special-purpose registries)."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return parsed.is_global and not parsed.is_multicast
