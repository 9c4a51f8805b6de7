"""Report the state of the service to systemd (sd_notify(3)). Does nothing where systemd does not run it."""

from __future__ import annotations

import contextlib
import os
import socket


def notify_service_manager(state: str) -> None:
    """Send a state such as `READY=1` to the socket in `NOTIFY_SOCKET`, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(address)
        channel.sendall(state.encode())
