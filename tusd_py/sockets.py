"""The sockets that the processes listen on: bound once, by the supervisor."""

from __future__ import annotations

import socket
from typing import Any

from tusd_py.errors import ConfigError


def bind(host: str, port: int, section: str, *, alone: bool = True, shared: bool = True) -> socket.socket:
    """Bind a listening socket; a `shared` one lets others of ours bind the same port.

    With `alone` nobody may listen there yet.

    Raises:
        ConfigError: the address is in use, is not ours or needs more rights.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if alone:
            _refuse_if_used(family, address)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
        listening.setblocking(False)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError([f"{section}.port: cannot listen on {host}:{port}: {reason}"]) from error
    return listening


def _refuse_if_used(family: int, address: tuple[Any, ...]) -> None:
    """Raise OSError if somebody else listens there: SO_REUSEPORT would share the port with them."""
    if address[1]:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)


def origin_of(listening: socket.socket) -> str:
    """Answer the URL of whatever is served on a socket, without a path."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
