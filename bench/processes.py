"""What processes cost, read from /proc: CPU time by kind of process, and peak memory.

A *tree* is the supervisor and everything below it: HTTP processes, workers and PostgreSQL. CPU time counts
children that have ended as well (their parent inherits it), so nothing escapes by being short-lived. What the
kernel does in threads of its own, such as writing back the page cache, belongs to no process and is not
counted; it shows as "others" in the report.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS: Final = 0.05
RESET_PEAK: Final = "5"
"""What, written to clear_refs, sets the peak resident size (VmHWM) back to the present one: proc(5)."""

IDLE_WINDOW_SECONDS: Final = 0.4
IDLE_TICKS: Final = 1


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of /proc/<pid>/stat that matter here."""

    parent: int
    command: str
    ticks: int


def read_stat(pid: int) -> Stat | None:
    """Read a process's figures; None when it is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    command, _, rest = text[text.index("(") + 1 :].rpartition(")")
    fields = rest.split()  # From the third of proc(5) on: fields[1] is the parent, [11..14] the four times.
    return Stat(int(fields[1]), command, sum(int(value) for value in fields[11:15]))


def children_of(pid: int) -> list[int]:
    """Return a process's children, whichever of its threads started them."""
    children: list[int] = []
    try:
        for task in (PROC / str(pid) / "task").iterdir():
            children.extend(int(child) for child in (task / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return children


@dataclass(frozen=True, slots=True)
class Tree:
    """A server's processes: where the tree starts, and which kinds are known by their pid."""

    roots: tuple[int, ...]
    kinds: Mapping[int, str]

    def walk(self) -> dict[int, str]:
        """Return every process alive in the tree with its kind; a child is of its parent's unless known."""
        found: dict[int, str] = {}
        waiting = [(root, "supervisor") for root in self.roots]
        while waiting:
            pid, inherited = waiting.pop()
            stat = read_stat(pid)
            if stat is None or pid in found:
                continue
            kind = self.kinds.get(pid) or ("postgres" if stat.command.startswith("postgres") else inherited)
            found[pid] = kind
            waiting.extend((child, kind) for child in children_of(pid))
        return found

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time used so far, by kind of process."""
        totals: dict[str, float] = {}
        for pid, kind in self.walk().items():
            stat = read_stat(pid)
            if stat is not None:
                totals[kind] = totals.get(kind, 0.0) + stat.ticks / TICKS_PER_SECOND
        return totals

    def of_kind(self, kind: str) -> list[int]:
        """Return the pids named as being of a kind."""
        return [pid for pid, its_kind in self.kinds.items() if its_kind == kind]

    def wait_until_idle(self, limit_seconds: float) -> bool:
        """Wait until the tree uses no CPU worth mentioning; false when it still did at the limit."""
        ends_at = time.monotonic() + limit_seconds
        while time.monotonic() < ends_at:
            before = sum(self.cpu_seconds().values())
            time.sleep(IDLE_WINDOW_SECONDS)
            if sum(self.cpu_seconds().values()) - before <= IDLE_TICKS / TICKS_PER_SECOND:
                return True
        return False


def difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """Subtract, kind by kind."""
    return {kind: value - before.get(kind, 0.0) for kind, value in after.items()}


def machine_busy_seconds() -> float:
    """Return the CPU time that the whole machine has spent at work since it started."""
    user, nice, system, _idle, _iowait, irq, softirq = PROC.joinpath("stat").read_text().split(None, 8)[1:8]
    return sum(int(ticks) for ticks in (user, nice, system, irq, softirq)) / TICKS_PER_SECOND


def field_kib(path: Path, name: str) -> int:
    """Return a field given in kB of a file of /proc; 0 when the process is gone."""
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name + ":")), 0)


def reset_peaks(pids: Iterable[int]) -> None:
    """Start counting the peak resident size anew."""
    for pid in pids:
        (PROC / str(pid) / "clear_refs").write_text(RESET_PEAK)


def peak_kib(pid: int) -> int:
    """Return the peak resident size (VmHWM) since the last reset."""
    return field_kib(PROC / str(pid) / "status", "VmHWM")


@dataclass(slots=True)
class MemoryPeak:
    """The largest sum of the processes' proportional set sizes (PSS) seen in any one sample."""

    kib: int = 0
    samples: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)

    def sample(self, processes: Mapping[int, str]) -> None:
        """Take one sample."""
        now: dict[str, int] = {}
        for pid, kind in processes.items():
            now[kind] = now.get(kind, 0) + field_kib(PROC / str(pid) / "smaps_rollup", "Pss")
        self.samples += 1
        if sum(now.values()) > self.kib:
            self.kib, self.by_kind = sum(now.values()), now


@contextmanager
def sampled_memory(tree: Tree) -> Iterator[MemoryPeak]:
    """Sample the tree's memory, in a thread, until the block ends."""
    peak, stop = MemoryPeak(), threading.Event()

    def run() -> None:
        processes = tree.walk()
        while not stop.wait(SAMPLE_SECONDS):
            if peak.samples % 10 == 0:
                processes = tree.walk()
            peak.sample(processes)

    thread = threading.Thread(target=run, name="memory-sampler", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
