"""The state of a server, by `postmaster.pid` and its socket.

The file outlives a server that was killed, and its process id may belong to another process by then:
nothing in it counts until the process, or the socket, has confirmed it.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tusd_py.process_identity import ProcessIdentity, all_processes

PROGRAM: Final = "postgres"
PORT: Final = 5432
"""Only names the socket, no port is listened on. Given everywhere, for PGPORT would change it."""
SOCKET_NAME: Final = f".s.PGSQL.{PORT}"
LONGEST_SOCKET_PATH_BYTES: Final = 107
CONNECT_TIMEOUT_SECONDS: Final = 1

SOCKET_DIR_LINE, STATE_LINE = 4, 7


@dataclass(frozen=True, slots=True)
class Status:
    """The lines of `postmaster.pid` that matter here; the last two are empty while it starts."""

    pid: int
    socket_dir: str
    state: str

    @property
    def ready(self) -> bool:
        """Return whether the server accepts connections, or did so when it was killed."""
        return self.state == "ready"


def read_status(data_dir: Path) -> Status | None:
    """Return what the file says, or None if it is missing or not (yet) whole.

    Raises:
        PermissionError: the data is another user's.
    """
    try:
        lines = os.fsdecode((data_dir / "postmaster.pid").read_bytes()).splitlines()
        # A single-user server writes its pid with a minus.
        pid = abs(int(lines[0]))
    except (FileNotFoundError, NotADirectoryError, IndexError, ValueError):
        return None
    lines += [""] * (STATE_LINE + 1 - len(lines))
    return Status(pid, lines[SOCKET_DIR_LINE], lines[STATE_LINE].strip()) if pid > 0 else None


def is_postmaster(pid: int, data_dir: Path) -> bool:
    """Return whether the process works in this data directory, as only a live server of it does."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == data_dir
    except PermissionError:
        # Root in a container may not look at other users' processes. Rather wait for a foreign
        # server than take a live one for dead; one that is dead but not reaped has state Z.
        return bool(re.match(rb"\d+ \(postgres\) [^ZX]", read_or_nothing(Path(f"/proc/{pid}/stat"))))
    except OSError:
        return False


def children_of(pid: int) -> list[ProcessIdentity]:
    """Return the live children of a postmaster."""
    return [ProcessIdentity(child, stat.start_ticks) for child, stat in all_processes() if stat.parent == pid]


def is_recovering(pid: int) -> bool:
    """Return whether a postmaster replays its log: at its start, or since one of its children was killed."""
    titles = (read_or_nothing(Path(f"/proc/{child.pid}/cmdline")) for child in children_of(pid))
    return any(re.match(rb"postgres: .*\bstartup\b", title) for title in titles)


def read_or_nothing(path: Path) -> bytes:
    """Return the content, or nothing if the file has gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def accepts(socket_dir: Path) -> bool:
    """Return whether a server listens on the socket there. Blocks for a second at most."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_TIMEOUT_SECONDS)
        try:
            probe.connect(str(socket_dir / SOCKET_NAME))
        except BlockingIOError:
            # The queue of connections is full, so a server owns it.
            return True
        except OSError:
            return False
        return True


def fits_socket(directory: Path) -> bool:
    """Return whether a socket there has a path short and plain enough for server and DSN.

    Both read a comma as the end of a name, and the server's list has quoting rules of its own.
    """
    path = str(directory / SOCKET_NAME)
    return bool(re.fullmatch(r"[A-Za-z0-9/._+-]+", path)) and len(path) <= LONGEST_SOCKET_PATH_BYTES


def remove_sockets(directory: Path) -> None:
    """Remove what a dead server left of its socket: its lock file names a process id, too."""
    for name in (SOCKET_NAME, f"{SOCKET_NAME}.lock"):
        (directory / name).unlink(missing_ok=True)


def disown_reused_pid(data_dir: Path) -> None:
    """Make a dead server's `postmaster.pid` acceptable if another process has its pid by now.

    PostgreSQL refuses to start while that pid is alive under the same user, in a container for ever.
    The file is not removed: it also names the shared memory by which PostgreSQL finds out that
    children of the dead server are still writing. It takes its parent's pid as nobody's.
    Call only when the lock is held and no server runs.
    """
    path = data_dir / "postmaster.pid"
    with suppress(FileNotFoundError):
        content = path.read_bytes()
        status = read_status(data_dir)
        if not content:
            # A power cut between its creation and its first write; PostgreSQL would refuse it.
            path.unlink()
        elif status is not None and Path(f"/proc/{status.pid}").exists():
            rest = content.partition(b"\n")[2]
            replacement = b"%d\n%s" % (os.getpid(), rest)
            # In place and in one call: the file keeps its owner, and is never seen half written.
            with path.open("r+b", buffering=0) as file:
                file.write(replacement)
                file.truncate()
