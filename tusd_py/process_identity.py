"""Processes by more than their pid, which may belong to another one by the time it is used.

A pid and the moment its process started name one process of this boot, for processes that outlive
the one that knew them as its children. Linux only, as the rest of the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

POLL_SECONDS: Final = 0.003
KILL_SECONDS: Final = 10.0
"""How long the kernel may take to end a process that was killed."""
NAME_PREFIX: Final = "tusd-"
"""The beginning of the kernel's names of the supervisor's children, which `top` and /metrics show. With the
longest role these are exactly the 15 bytes that the kernel keeps."""
PARENT_FIELD, THREADS_FIELD, START_FIELD = 1, 17, 19
"""Positions in /proc/PID/stat (proc(5)), counted from the state, which follows the name."""


class Stat(NamedTuple):
    """The facts of /proc/PID/stat that matter here. Every user may read them."""

    name: str
    parent: int
    start_ticks: int


def read_stat(pid: int) -> Stat | None:
    """Return what the kernel says of a process, or None if it has ended, reaped or not."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name may contain anything, a parenthesis too.
    head, _, tail = content.rpartition(")")
    fields = tail.split()
    # A zombie with threads is still ending: it keeps its files, and with them its ports, until the last has gone.
    if fields[0] in {"Z", "X"} and int(fields[THREADS_FIELD]) <= 1:
        return None
    return Stat(head.partition("(")[2], int(fields[PARENT_FIELD]), int(fields[START_FIELD]))


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, alive or dead."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the identity of a process that is alive, else None."""
        stat = read_stat(pid)
        return None if stat is None else cls(pid, stat.start_ticks)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return what `str` of an identity wrote, or None for any other text."""
        words = text.split()
        if len(words) != len(cls.__slots__) or not all(word.isascii() and word.isdigit() for word in words):
            return None
        return cls(*map(int, words))

    def __str__(self) -> str:
        return f"{self.pid} {self.start_ticks}"

    @property
    def alive(self) -> bool:
        """Return whether this very process still runs."""
        return ProcessIdentity.of(self.pid) == self

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def unique_name() -> str:
    """Return a name that no other process has, nor ever had. A pid comes back, in a container soon."""
    return f"{socket.gethostname()}:{secrets.token_hex(8)}"


def all_processes() -> Iterator[tuple[int, Stat]]:
    """Yield every process that is alive with what the kernel says of it."""
    for entry in Path("/proc").glob("[0-9]*"):
        stat = read_stat(int(entry.name))
        if stat is not None:
            yield int(entry.name), stat


def wait_ended(processes: Collection[ProcessIdentity], seconds: float) -> list[ProcessIdentity]:
    """Wait until all have ended, at most so long, and return those that have not."""
    deadline = time.monotonic() + seconds
    while (left := [process for process in processes if process.alive]) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return left


def end(processes: Collection[ProcessIdentity], number: signal.Signals, patience_seconds: float) -> None:
    """Send a signal to all of them, and kill those that it has not ended in time.

    Raises:
        TimeoutError: one outlived its kill; the kernel holds it, most likely for a disk that hangs.
        PermissionError: one belongs to another user.
    """
    for process in processes:
        process.send(number)
    left = wait_ended(processes, patience_seconds)
    for process in left:
        process.send(signal.SIGKILL)
    if stuck := wait_ended(left, KILL_SECONDS):
        raise TimeoutError(f"process {stuck[0].pid} does not end, though it was killed")
