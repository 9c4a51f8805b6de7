"""The sockets that the processes listen on: bound once, by the supervisor."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import structlog

from tusd_py.errors import ConfigError

if TYPE_CHECKING:
    from tusd_py.config import Config

log = structlog.get_logger(__name__)

MAX_PORT: Final = 65535
OPERATIONS_PORTS: Final = 100
"""How many ports are tried for the operations listener if none is configured."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """The sockets of a server."""

    public: tuple[socket.socket, ...] = ()
    """One for each HTTP process, all on the same port."""
    operations: socket.socket | None = None

    @classmethod
    def bind(cls, config: Config) -> Self:
        """Bind every socket that the configuration asks for.

        Raises:
            ConfigError: an address is in use, is not ours or needs more rights.
        """
        server = config.server
        first = bind(server.host, server.port, "server")
        port = first.getsockname()[1]
        more = [bind(server.host, port, "server", alone=False) for _ in range(server.processes - 1)]
        return cls((first, *more), _bind_operations(config) if config.operations.enabled else None)

    @property
    def all(self) -> tuple[socket.socket, ...]:
        """Return the public ones, then that of the operations process."""
        return self.public if self.operations is None else (*self.public, self.operations)

    def refuse_if_used(self) -> None:
        """Raise ConfigError if another server, started with this one, came to listen on the same ports."""
        refuse_if_used(self.public[0], "server")
        if self.operations is not None:
            refuse_if_used(self.operations, "operations")


def _bind_operations(config: Config) -> socket.socket:
    operations, wanted = config.operations, config.operations_port
    # Without a configured port any will do: two servers side by side are no mistake.
    tries = 1 if operations.port is not None else OPERATIONS_PORTS
    bound = bind_next_free(operations.host, wanted, "operations", tries=tries)
    used = bound.getsockname()[1]
    if wanted not in {0, used}:
        reason = "the next port is used; set operations.port to choose one"
        log.warning("operations_port_in_use", port=wanted, used=used, reason=reason)
    return bound


def bind(host: str, port: int, section: str, *, alone: bool = True, shared: bool = True) -> socket.socket:
    """Bind a listening socket; a `shared` one lets others of ours bind the same port.

    With `alone` nobody may listen there yet.

    Raises:
        ConfigError: the address is in use, is not ours or needs more rights.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        if alone and port:
            _probe(family, address)
        return _bound(family, address, shared=shared)
    except OSError as error:
        raise _problem(section, host, port, error) from error


def bind_next_free(host: str, port: int, section: str, *, tries: int) -> socket.socket:
    """Bind a socket of its own to the first of `tries` ports, from `port` on, that nobody uses.

    Raises:
        ConfigError: as `bind`; all of them are in use.
    """
    last = min(port + tries - 1, MAX_PORT)
    for number in range(port, last):
        try:
            return bind(host, number, section, shared=False)
        except ConfigError as error:
            if not (isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE):
                raise
    return bind(host, last, section, shared=False)


def refuse_if_used(listening: socket.socket, section: str) -> None:
    """Raise ConfigError if somebody else has come to listen where this one, which does not yet, is bound."""
    host, port = listening.getsockname()[:2]
    try:
        _probe(listening.family, listening.getsockname())
    except OSError as error:
        raise _problem(section, host, port, error) from error


def _bound(family: int, address: tuple[Any, ...], *, shared: bool) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def _probe(family: int, address: tuple[Any, ...]) -> None:
    """Raise OSError if somebody listens there: SO_REUSEPORT would share the port with them."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _problem(section: str, host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError([f"{section}.port: cannot listen on {host}:{port}: {error.strerror or error}"])


def origin_of(listening: socket.socket) -> str:
    """Return the URL of whatever is served on a socket, without a path."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
