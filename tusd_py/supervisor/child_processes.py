"""The supervisor's children: forked, heard through a pipe, and started again with growing pauses.

The forking process must have no threads and no event loop. It keeps the read end of a pipe for each
child, which writes one byte when it is set up, and learns of its end by `waitpid`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import structlog

from tusd_py.errors import TusdError
from tusd_py.process_identity import NAME_PREFIX, unique_name

if TYPE_CHECKING:
    from tusd_py.config import Config

log = structlog.get_logger(__name__)

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15
SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP})
"""Blocked in the supervisor, which waits for them; unblocked again in every child."""
BACKOFF_SECONDS: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
STABLE_SECONDS: Final = 30.0
"""A child that has run for so long is started again with the shortest pause."""
EARLY_DEATHS: Final = 5
"""How often a child may be killed, or miss its database, before the server is ready; then the start has failed."""
KEPT_NAMES: Final = 100
"""Of dead children: a successor may die before it has released their jobs."""


class ChildMain(Protocol):
    """The main function of a child process."""

    def __call__(self, config: Config, *, ready: Callable[[], None]) -> None:
        """Run until SIGTERM; call `ready` once set up."""


@dataclass(slots=True)
class Child:
    """One child process, and those before it that did the same."""

    name: str
    main: ChildMain
    sockets: Collection[socket.socket] = ()
    """The listening sockets that it keeps."""
    unique_name: str = ""
    """Of the process; its successor gets another."""
    dead: list[str] = field(default_factory=list)
    """The unique names of its predecessors."""
    pid: int = 0
    """0: not running."""
    ready: bool = False
    failures: int = 0
    hopeless: bool = False
    """It ended for a reason that another start would not remove, or too often."""
    restart_at: float | None = None
    _started_at: float = 0.0
    _ready_fd: int = -1

    def start(self, config: Config, *, close_inherited: Callable[[], None]) -> None:
        """Fork. In the child, `close_inherited` closes what is only the supervisor's."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.unique_name = unique_name()
        pid = os.fork()
        if pid == 0:
            self._run(config, parent, write_fd, close_inherited)
        os.close(write_fd)
        self.pid, self._ready_fd, self.ready = pid, read_fd, False
        self._started_at, self.restart_at = time.monotonic(), None

    def _run(self, config: Config, parent: int, write_fd: int, close_inherited: Callable[[], None]) -> NoReturn:
        """Turn this forked process into the child. Never return."""
        status = 1
        try:
            libc = ctypes.CDLL(None)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            # `top` shows it, and /metrics tells the processes apart by it.
            libc.prctl(PR_SET_NAME, f"{NAME_PREFIX}{self.name}".encode())
            if os.getppid() != parent:
                os._exit(0)
            close_inherited()
            # Ctrl-C reaches the whole group; the supervisor alone decides what it means.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            self.main(config, ready=lambda: _write_ready(write_fd))
            status = 0
        except TusdError as error:
            status = os.EX_TEMPFAIL if error.retryable else status
            log.error("child_failed", child=self.name, code=error.code, reason=str(error))  # noqa: TRY400
        except BaseException:  # the last stop of a process: whatever it is, the log has it
            log.exception("child_crashed", child=self.name)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def has_become_ready(self) -> bool:
        """Return True once: when the child has reported that it is ready."""
        if not self.pid or self.ready:
            return False
        self.ready = _is_ready(self._ready_fd)
        return self.ready

    def reap(self) -> int | None:
        """Return the pid of the process if it has ended, and set when it is started again."""
        if not self.pid:
            return None
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        self._on_exit(os.waitstatus_to_exitcode(status))
        return pid

    def _on_exit(self, exit_code: int) -> None:
        lived = time.monotonic() - self._started_at
        self.failures = 1 if lived > STABLE_SECONDS else self.failures + 1
        # A child that was killed, or found the database away, may do better next time. One that ended
        # for another reason has logged it, and would end so again.
        passing = exit_code < 0 or exit_code == os.EX_TEMPFAIL
        self.hopeless = not passing or self.failures > EARLY_DEATHS
        pause = BACKOFF_SECONDS[min(self.failures, len(BACKOFF_SECONDS)) - 1]
        log.error("child_died", child=self.name, pid=self.pid, status=exit_code, restart_in_seconds=pause)
        os.close(self._ready_fd)
        self.pid, self._ready_fd, self.ready = 0, -1, False
        self.dead = [*self.dead, self.unique_name][-KEPT_NAMES:]
        self.restart_at = time.monotonic() + pause


def stop_children(children: Collection[Child], grace_seconds: float) -> None:
    """Send SIGTERM to all, wait for them, and kill those that outlast `grace_seconds`."""
    for child in children:
        if child.pid:
            os.kill(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while any(child.pid for child in children):
        for child in children:
            if child.pid and os.waitpid(child.pid, os.WNOHANG)[0]:
                child.pid = 0
        if time.monotonic() > deadline:
            for child in children:
                if child.pid:
                    log.error("child_killed", child=child.name, pid=child.pid)
                    os.kill(child.pid, signal.SIGKILL)
            deadline = time.monotonic() + grace_seconds
        signal.sigtimedwait({signal.SIGCHLD}, 0.05)


def _write_ready(fd: int) -> None:
    os.write(fd, b"1")


def _is_ready(fd: int) -> bool:
    try:
        return os.read(fd, 1) == b"1"
    except BlockingIOError:
        return False
