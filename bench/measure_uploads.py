"""One measurement: the load generator in its process, the server's CPU time and memory beside it.

The disk's own figures, with which the server's are compared, are measured here as well.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import floors
import processes
from load import SMALL_BYTES
from results import DD, STREAMS, SYNCED_FILES, Measurement
from servers import Target
from units import GIB, MIB

CONNECTIONS: Final = 32
DISK_SECONDS: Final = 2.0
CASE_SECONDS: Final = 60.0
"""How long one measurement may take before it is given up as stuck."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    seconds: float
    """How long a request rate is measured."""
    settle_seconds: float
    """How long the server may take afterwards until it is idle."""


class LoadGenerator:
    """The load generator, in its process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._input: IO[str] = process.stdin
        self._output: IO[str] = process.stdout

    def wait_for(self, word: str) -> None:
        line = self._output.readline().strip()
        if line != word:
            raise RuntimeError(f"the load generator failed before {word!r}; its message is above")

    def tell(self, word: str) -> None:
        self._input.write(word + "\n")
        self._input.flush()

    def result(self) -> dict[str, Any]:
        """Read what it measured."""
        result: dict[str, Any] = json.loads(self._output.readline())
        return result


@contextmanager
def load_generator(case: str, url: str, sizes: Sizes) -> Iterator[LoadGenerator]:
    """Run the load generator until it has cleaned up; a stuck one is killed."""
    arguments = {
        "stream": ["send", url, "--connections", "1", "--size", str(GIB)],
        "parallel": ["send", url, "--connections", str(CONNECTIONS), "--size", str(GIB // CONNECTIONS)],
        "small": ["small", url, "--connections", str(CONNECTIONS), "--seconds", str(sizes.seconds)],
        "head": ["head", url, "--connections", str(CONNECTIONS), "--seconds", str(sizes.seconds)],
    }[case]
    command = [sys.executable, str(Path(__file__).with_name("load.py")), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        signal.alarm(int(CASE_SECONDS))
        try:
            yield LoadGenerator(process)
            process.communicate()
        finally:
            signal.alarm(0)
            process.kill()


def fail_when_stuck() -> None:
    """Turn the alarm of a stuck measurement into an exception."""

    def stuck(_number: int, _frame: object) -> None:
        raise TimeoutError(f"gave up after {CASE_SECONDS:.0f} s")

    signal.signal(signal.SIGALRM, stuck)


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time used up to a moment, by whom."""

    server: dict[str, float]
    own: float
    machine: float

    @classmethod
    def of(cls, tree: processes.Tree) -> Usage:
        """Read the clocks."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(tree.cpu_seconds(), usage.ru_utime + usage.ru_stime, processes.machine_busy_seconds())

    def others(self, before: Usage, client: float) -> float:
        """Return what the machine did since then for nobody of ours."""
        ours = sum(self.server.values()) - sum(before.server.values()) + self.own - before.own + client
        return max(0.0, self.machine - before.machine - ours)


def measure(case: str, target: Target, sizes: Sizes) -> Measurement:
    """Run one case against one target."""
    tree = target.tree
    http = tree.of_kind("http")
    with load_generator(case, target.url, sizes) as client:
        client.wait_for("ready")
        tree.wait_until_idle(2.0)
        processes.reset_peaks(http)
        with processes.sampled_memory(tree) as memory:
            before = Usage.of(tree)
            client.tell("go")
            client.wait_for("done")
            after = Usage.of(tree)
        result = client.result()
        peak_mib = max(processes.peak_kib(pid) for pid in http) / 1024
        settled = target.is_floor or tree.wait_until_idle(sizes.settle_seconds)
        cpu_after = sum(tree.cpu_seconds().values()) - sum(after.server.values())
        client.tell("clean")
    if not all(Path(f"/proc/{pid}").exists() for pid in http):
        result["failures"]["an HTTP process died"] = 1
    return Measurement(
        case=case,
        target=target.name,
        wall_seconds=result["wall_seconds"],
        body_bytes=result["body_bytes"],
        requests=result["requests"],
        p50_ms=result["p50_ms"],
        p99_ms=result["p99_ms"],
        cpu=processes.difference(after.server, before.server),
        cpu_after=cpu_after,
        settled=settled,
        client_cpu=result["cpu_seconds"],
        others_cpu=after.others(before, result["cpu_seconds"]),
        http_peak_mib=peak_mib,
        all_peak_mib=memory.kib / 1024,
        failures=result["failures"],
    )


def measure_disk(case: str, folder: Path, sizes: Sizes) -> Measurement:
    """Measure what the disk alone does: one big file, or many small ones."""
    if case in STREAMS:
        written = floors.write_with_dd(folder, GIB // MIB)
        name, requests, size = DD, 1, GIB
    else:
        requests, written = floors.write_small_files(folder, min(sizes.seconds, DISK_SECONDS), CONNECTIONS)
        name, size = SYNCED_FILES, requests * SMALL_BYTES
    return Measurement(case, name, written.wall_seconds, size, requests, cpu={"own": written.cpu_seconds})
