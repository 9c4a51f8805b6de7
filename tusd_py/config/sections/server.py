"""`[server]`: the public listener."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from tusd_py.config.sections.base import OptionalHttpUrl, Port, PositiveSeconds, Section

UNIX_PEER: Final = "unix"
"""Among networks: whoever connects through a Unix socket."""

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})")
_BASE_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)+/?")


def _network(value: str) -> str:
    if value != UNIX_PEER:
        ipaddress.ip_network(value, strict=False)
    return value


def _base_path(value: str) -> str:
    stripped = value.rstrip("/")
    if stripped in {"", "/api"} or f"{stripped}/".startswith(("/api/v1/", "/download/", "/assets/")):
        raise ValueError(f"{value!r} is used by the server itself; choose another path")
    if not _BASE_PATH.fullmatch(value) or {".", ".."} & set(value.split("/")):
        raise ValueError('a path like "/files" is expected')
    return stripped


def _host_name(value: str) -> str:
    if not _HOST_NAME.fullmatch(value):
        raise ValueError(f'{value!r} is not a host name like "uploads.example.com"; leave out scheme and port')
    return value.lower()


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


Network = Annotated[str, AfterValidator(_network)]
HostName = Annotated[str, AfterValidator(_host_name)]


class ServerConfig(Section):
    """The public listener."""

    host: str = Field(default="127.0.0.1", description="address to listen on; other than loopback needs [auth]")
    port: Port = Field(default=1080, description="port to listen on; 0 takes a free one")
    base_path: Annotated[str, AfterValidator(_base_path)] = Field(
        default="/files", description="where uploads are created; works with and without a trailing slash"
    )
    page: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="upload page at /, with a field for tokens under auth.mode = jwt; auto: with none on loopback",
    )
    public_url: OptionalHttpUrl = Field(
        default=None,
        description="external origin (and prefix) for an absolute Location; empty: a path, which suits any proxy",
    )
    trusted_proxies: list[Network] = Field(
        default=[],
        description='networks whose Forwarded and X-Forwarded-* headers are trusted ("unix": a Unix socket)',
    )
    allowed_hosts: list[HostName] = Field(
        default=[],
        description="with auth.mode = none: names in Host, besides loopback's and public_url's; others get 421",
    )
    processes: int = Field(default=1, ge=1, le=64, description="HTTP processes sharing the port")
    event_loop: Literal["auto", "uvloop", "asyncio"] = Field(
        default="auto", description="auto: uvloop where it is installed"
    )
    node: str = Field(default="", description="name of this node in logs and reports; empty: the host name")
    header_timeout: PositiveSeconds = Field(
        default=15, description="longest time for a request's headers to arrive; then 408, and the connection is closed"
    )
    keepalive_timeout: PositiveSeconds = Field(
        default=75,
        description="idle time before a kept-alive connection closes; must exceed the proxy's (nginx: 60s)",
    )
    shutdown_timeout: PositiveSeconds = Field(
        default=15, description="how long SIGTERM waits for requests to store what has arrived and to respond"
    )
