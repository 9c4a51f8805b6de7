"""Free TCP ports on the loopback address."""

from __future__ import annotations

import random
import socket

LOOPBACK = "127.0.0.1"
# Below the kernel's ephemeral range (32768 and up), so that no outgoing connection takes the port
# between our look and the bind of the program it is meant for.
_LOWEST, _HIGHEST = 15_000, 32_000
_random = random.SystemRandom()


def free_port() -> int:
    """Return a port nobody listens on; it stays free for a restart of the same server."""
    for _ in range(200):
        port = _random.randint(_LOWEST, _HIGHEST)
        if _can_bind(port):
            return port
    raise AssertionError(f"no free port between {_LOWEST} and {_HIGHEST}")


def is_listening(port: int, host: str = LOOPBACK) -> bool:
    """Return whether something accepts connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port whose old connections linger in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
