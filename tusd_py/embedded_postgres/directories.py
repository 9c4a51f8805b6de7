"""The files and directories around the server: whose they are, and what a crash left of them."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from tusd_py.embedded_postgres.postmaster import fits_socket, is_recovering, remove_sockets

SOCKET_DIR_PREFIX: Final = "tusd-pg-"
SYSTEM_TEMPORARY_DIR: Final = "/tmp"  # noqa: S108 - only a private directory is made in it
MAX_LOG_BYTES: Final = 10 * 1024 * 1024
LOG_TAIL_BYTES: Final = 4096


def give(directory: Path, owner: tuple[int, int]) -> None:
    """Make the tree belong to `owner` (uid, gid), if its top does not already."""
    if directory.stat().st_uid == owner[0]:
        return
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            os.chown(Path(parent, name), *owner, follow_symlinks=False)
    # The top comes last, so that the next start does it again if this one is cut short.
    os.chown(directory, *owner)


def remove_leftovers(parent: Path, prefix: str) -> None:
    """Remove what earlier starts that were killed have left; what cannot be removed waits for the next start."""
    for leftover in parent.iterdir():
        if leftover.name.startswith(prefix):
            shutil.rmtree(leftover, ignore_errors=True)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def claim_socket_dir(recorded: Path | None, data_dir: Path, owner: tuple[int, int]) -> Path:
    """Return the directory for the socket: the data's, or a short private one if its path is too long.

    A start after a crash uses the private one again that its predecessor `recorded`, so that the DSN
    stays the same, or removes it if it needs none.
    """
    in_data = fits_socket(data_dir)
    if recorded is not None and not in_data and is_private_dir(recorded, owner[0]):
        remove_sockets(recorded)
        return recorded
    if recorded is not None:
        remove_socket_dir(recorded)
    if in_data:
        return data_dir
    made = Path(tempfile.mkdtemp(prefix=SOCKET_DIR_PREFIX, dir=short_temporary_dir()))
    os.chown(made, *owner)
    return made


def short_temporary_dir() -> str:
    """Return a directory in which a private socket directory has a path that is short enough."""
    chosen = tempfile.gettempdir()
    # Root's own TMPDIR may be closed to the user that the server runs as.
    usable = os.geteuid() != 0 and fits_socket(Path(chosen, f"{SOCKET_DIR_PREFIX}12345678"))
    return chosen if usable else SYSTEM_TEMPORARY_DIR


def is_private_dir(directory: Path, uid: int) -> bool:
    """Return whether this is a socket directory of ours that nobody else can have put there."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    ours = directory.name.startswith(SOCKET_DIR_PREFIX) and stat.S_ISDIR(found.st_mode)
    return ours and found.st_uid == uid and not found.st_mode & 0o077


def remove_socket_dir(directory: Path) -> None:
    """Remove a private socket directory; any other, and any file not ours, stays."""
    if directory.name.startswith(SOCKET_DIR_PREFIX) and not directory.is_symlink():
        with suppress(OSError):
            remove_sockets(directory)
            directory.rmdir()


def open_log(path: Path) -> IO[bytes]:
    """Open the server's log to append to it; nobody else may read it."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o600)

    return open(path, "ab", opener=opener)


def rotate(path: Path) -> None:
    """Rename a log that has grown large; one old one is kept."""
    with suppress(FileNotFoundError):
        if path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))


def log_since(path: Path, begin: int) -> str:
    """Return the end of what was logged since the position `begin`, in bytes."""
    with suppress(FileNotFoundError), path.open("rb") as log:
        log.seek(max(begin, path.stat().st_size - LOG_TAIL_BYTES))
        return log.read().decode(errors="replace").strip()
    return ""


def end_process(child: subprocess.Popen[bytes], timeout_seconds: float, quit_timeout_seconds: float) -> None:
    """End a postmaster: cleanly, or after the timeout at once, or in the end by force."""
    signals = [(signal.SIGINT, timeout_seconds), (signal.SIGQUIT, quit_timeout_seconds)]
    if is_recovering(child.pid):
        # While it recovers from the death of a child, a fast shutdown waits forever for a checkpointer.
        # There is nothing to end cleanly: the next start replays the same log.
        del signals[0]
    for request, seconds in signals:
        child.send_signal(request)
        with suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
            return
    child.kill()
    child.wait()
