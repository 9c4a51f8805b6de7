"""Starts what is measured, the real server and the bare handlers, and sees that none of it stays behind."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from processes import Tree

HERE: Final = Path(__file__).resolve().parent
SERVER_COMMAND: Final = HERE.parent / ".venv" / "bin" / "tusd-py"
READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
PR_SET_PDEATHSIG: Final = 1
LIBC: Final = ctypes.CDLL(None, use_errno=True)

ALLOCATOR: Final = {"MALLOC_MMAP_THRESHOLD_": "67108864", "MALLOC_TRIM_THRESHOLD_": "268435456"}
"""glibc settings for the bare handlers: without them half of their time is page faults on read buffers."""


class StartError(Exception):
    """A server did not become ready."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that the load generator can be pointed at."""

    name: str
    url: str
    tree: Tree
    is_floor: bool = False


@contextmanager
def tusd_server(
    name: str, folder: Path, settings: Mapping[str, str], command: Path = SERVER_COMMAND
) -> Iterator[Target]:
    """Run the real server, with a data folder of its own, until the block ends."""
    data, config = folder / "data", folder / "tusd.toml"
    config.write_text(render_toml(settings))
    arguments = ["serve", "--config", str(config), "--port", "0", "--data-dir", str(data)]
    with running([str(command), *arguments], folder, {}) as facts:
        yield Target(name, facts["url"], tree_of(facts, data))


@contextmanager
def bare_handler(handler: str, folder: Path, event_loop: str) -> Iterator[Target]:
    """Run one of the bare handlers until the block ends."""
    command = [sys.executable, str(HERE / "floors.py"), handler, "--event-loop", event_loop]
    with running(command, folder, ALLOCATOR) as facts:
        yield Target(f"bare handler, {handler}s", facts["url"], tree_of(facts, folder), is_floor=True)


def render_toml(settings: Mapping[str, str]) -> str:
    """Render `section.key` = TOML value as a file."""
    sections: dict[str, list[str]] = {}
    for path, value in settings.items():
        section, _, key = path.rpartition(".")
        sections.setdefault(section, []).append(f"{key} = {value}")
    return "".join(f"[{section}]\n" + "\n".join(lines) + "\n\n" for section, lines in sections.items())


def tree_of(facts: Mapping[str, Any], data: Path) -> Tree:
    """Build the process tree from the ready file; PostgreSQL is added in case it left its parent."""
    kinds = {facts["supervisor_pid"]: "supervisor"}
    kinds |= dict.fromkeys(facts["worker_pids"], "worker") | dict.fromkeys(facts["http_pids"], "http")
    postmasters = [int(path.read_text().split()[0]) for path in data.rglob("postmaster.pid")]
    return Tree((facts["supervisor_pid"], *postmasters), kinds)


@contextmanager
def running(command: list[str], folder: Path, extra: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Run a command, wait for its ready file, hand out what it says, and end all its processes."""
    ready, log = folder / "ready.json", folder / "log"
    environment = {**os.environ, **extra, "TUSD_READY_FILE": str(ready)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - servers start before any thread does
        )
    try:
        yield wait_until_ready(process, ready, log)
    finally:
        stop(process)


def end_with_parent() -> None:
    """Ask the kernel for a SIGTERM should the benchmark die without cleaning up."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def wait_until_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> dict[str, Any]:
    """Wait for the ready file.

    Raises:
        StartError: the process ended, or took too long; the message ends with its output.
    """
    ends_at = time.monotonic() + READY_SECONDS
    while time.monotonic() < ends_at and process.poll() is None:
        with suppress(FileNotFoundError, json.JSONDecodeError):
            facts: dict[str, Any] = json.loads(ready.read_text())
            return facts
        time.sleep(0.02)
    tail = log.read_text(errors="replace")[-3000:]
    raise StartError(f"{process.args!r} (status {process.poll()}) did not become ready:\n{tail}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything below it: politely, then not."""
    below = Tree((process.pid,), {}).walk()
    started = {pid: start_time(pid) for pid in below}
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    ends_at = time.monotonic() + 5
    while any(is_same(pid, at) for pid, at in started.items()) and time.monotonic() < ends_at:
        time.sleep(0.05)
    for pid, at in started.items():
        if is_same(pid, at):
            sys.stderr.write(f"bench: process {pid} of {process.args!r} had to be killed\n")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def start_time(pid: int) -> str:
    """Return when a process started, which with its pid names it for good; empty when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]


def is_same(pid: int, started: str) -> bool:
    """Return whether that very process is still there."""
    return start_time(pid) == started != ""
