"""Child processes that cannot outlive the tests, and waiting on conditions with a deadline."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import psutil

from tests.support.tools import require_tool

T = TypeVar("T")
POLL_SECONDS = 0.02


class DeadlineExceeded(AssertionError):
    """A condition did not come true in time."""


def wait_until(condition: Callable[[], T | None], *, deadline: float, what: str) -> T:
    """Return the condition's first true value.

    Raises:
        DeadlineExceeded: it was not true within `deadline` seconds.
    """
    end = time.monotonic() + deadline
    while not (value := condition()):
        if time.monotonic() > end:
            raise DeadlineExceeded(f"after {deadline:g} s still not: {what}")
        time.sleep(POLL_SECONDS)
    return value


async def eventually(condition: Callable[[], Awaitable[T | None]], *, deadline: float, what: str) -> T:
    """Return the coroutine function's first true value, as `wait_until` does."""
    end = time.monotonic() + deadline
    while not (value := await condition()):
        if time.monotonic() > end:
            raise DeadlineExceeded(f"after {deadline:g} s still not: {what}")
        await asyncio.sleep(POLL_SECONDS)
    return value


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie that only waits to be reaped does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Child:
    """A program that we started: its output goes to a file, and it dies when the tests die.

    The kernel delivers the parent-death signal when the *thread* that forked ends, so children are
    started from the main thread only. `setpriv` sets it (rather than a `preexec_fn`, which must not
    run in a process that has threads).
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.argv = [os.fspath(word) for word in argv]
        self.log = log
        self.env = dict(os.environ) if env is None else dict(env)
        """Of the next start."""
        self._cwd = cwd
        self._stdin = stdin
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program; its output is appended to the log file."""
        assert threading.current_thread() is threading.main_thread(), "children start from the main thread"
        assert self._process is None or self._process.poll() is not None, f"{self.name} is still running"
        setpriv = require_tool("setpriv", install="apt-get install util-linux")
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [setpriv, "--pdeathsig", "KILL", *self.argv],
                stdin=self._stdin, stdout=output, stderr=subprocess.STDOUT,
                env=self.env, cwd=self._cwd, start_new_session=True,
            )  # fmt: skip

    @property
    def name(self) -> str:
        """The program's name, for messages."""
        return Path(self.argv[0]).name

    @property
    def pid(self) -> int:
        """The process id; `setpriv` becomes the program, so it is the program's own."""
        return self._started().pid

    @property
    def running(self) -> bool:
        """True if it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._started().poll()

    def log_text(self) -> str:
        """Return all output so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def write_stdin(self, data: bytes) -> None:
        """Send data to the program's standard input and close it."""
        stdin = self._started().stdin
        assert stdin is not None
        with stdin:
            stdin.write(data)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._started().send_signal(number)

    def wait(self, deadline: float) -> int:
        """Wait for the end and return the exit code."""
        wait_until(
            lambda: not self.running,
            deadline=deadline,
            what=f"{self.name} has ended\n{self.log_text()[-4000:]}",
        )
        return self._started().returncode

    def wait_ready(self, ready: Callable[[], T | None], *, deadline: float, what: str) -> T:
        """Return the condition's first true value; a program that ends meanwhile fails at once."""

        def ready_or_dead() -> T | None:
            value = ready()
            if not value and not self.running:
                raise AssertionError(f"{self.name} ended with {self.exit_code} before {what}:\n{self.log_text()}")
            return value or None

        try:
            return wait_until(ready_or_dead, deadline=deadline, what=what)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(f"{error}; output of {self.name}:\n{self.log_text()}") from None

    def stop(self, deadline: float = 10) -> int:
        """End it politely, or by force after the deadline."""
        process = self._started()
        if self.running:
            process.terminate()
        try:
            return process.wait(deadline)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """Send SIGKILL and reap."""
        process = self._started()
        process.kill()
        return process.wait(10)

    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.name} was not started"
        return self._process

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.running:
            self.stop()
