"""Kill a server again and again, and start it again at once: every start must be ready in time.

Each round starts `tusd-py serve`, waits 0.2 to 1.5 s, and kills with SIGKILL the supervisor and, with
probability one half each, every process below it, its PostgreSQL's included, in random order. What
is left must neither hold up the next start nor outlive it. Usage:

    .venv/bin/python scripts/restart_rounds.py --rounds 100

Exit status: 0 if every round was ready in time and nothing was left over, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import psutil

PROGRAM = Path(sys.executable).with_name("tusd-py")
EARLIEST_KILL_SECONDS, LATEST_KILL_SECONDS = 0.2, 1.5
GIVE_UP_SECONDS = 120
GONE_SECONDS = 15
POLL_SECONDS = 0.005
CONTENT = b"kept over every kill"


class Server:
    """One data directory, and the server that runs on it just now."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ready_file = directory / "ready.json"
        port, operations_port = free_ports(2)
        (directory / "config.toml").write_text(f"[operations]\nport = {operations_port}\n")
        self._command = [
            *(str(PROGRAM), "serve", "--config", str(directory / "config.toml")),
            *("--data-dir", str(directory / "data"), "--port", str(port)),
        ]
        self.url = f"http://127.0.0.1:{port}/files/"
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._seen: set[psutil.Process] = set()

    def start(self) -> None:
        """Start the server and return at once."""
        self._ready_file.unlink(missing_ok=True)
        self._started_at = time.monotonic()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TUSD_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env={**environment, "TUSD_READY_FILE": str(self._ready_file)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self) -> float:
        """Return the seconds since the start once it is ready. Raises RuntimeError if it never is."""
        assert self._process is not None
        while not self._is_ready():
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with status {self._process.returncode}")
            if time.monotonic() - self._started_at > GIVE_UP_SECONDS:
                raise RuntimeError(f"the server is not ready after {GIVE_UP_SECONDS} s")
            time.sleep(POLL_SECONDS)
        self._descendants()
        return time.monotonic() - self._started_at

    def kill(self, chance: random.Random) -> str:
        """Kill the supervisor and about half of what is below it; return what was killed."""
        assert self._process is not None
        below = [process for process in self._descendants() if chance.random() < 0.5]
        victims = [*self._supervisor(), *below]
        chance.shuffle(victims)
        names = []
        for victim in victims:
            try:
                names.append(short_name(victim))
                victim.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait()
        return ", ".join(names)

    def stop(self) -> None:
        """End the server in good order, or by force."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def left_over(self, *, besides: bool) -> list[str]:
        """Return what is left of servers that were killed; with `besides` one still runs."""
        deadline = time.monotonic() + GONE_SECONDS
        while True:
            current = {process.pid for process in [*self._descendants(), *self._supervisor()]} if besides else set()
            known = self._seen | self._at_work()
            left = [process for process in known if process.pid not in current and alive(process)]
            if not left or time.monotonic() > deadline:
                return [describe(process) for process in left]
            time.sleep(POLL_SECONDS)

    def end_left_over(self) -> None:
        """Kill whatever is left, so that a failed run leaves nothing behind."""
        for process in self._seen | self._at_work():
            if alive(process):
                process.kill()

    @property
    def log(self) -> Path:
        """The file that every start writes to."""
        return self._directory / "server.log"

    def _is_ready(self) -> bool:
        assert self._process is not None
        try:
            return bool(json.loads(self._ready_file.read_text())["supervisor_pid"] == self._process.pid)
        except FileNotFoundError:
            return False

    def _descendants(self) -> list[psutil.Process]:
        assert self._process is not None
        try:
            found: list[psutil.Process] = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._seen.update(found)
        return found

    def _supervisor(self) -> list[psutil.Process]:
        assert self._process is not None
        return [psutil.Process(self._process.pid)] if self._process.poll() is None else []

    def _at_work(self) -> set[psutil.Process]:
        """Return the processes that work in the data directory, whoever their parent is by now."""
        found = set()
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(self._directory):
                    found.add(process)
            except (psutil.Error, OSError):
                continue
        return found


def alive(process: psutil.Process) -> bool:
    """Return whether it runs; one that only waits to be reaped does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def short_name(process: psutil.Process) -> str:
    """Return what a process calls itself, without our arguments."""
    words = " ".join(process.cmdline())
    return words.strip()[:50] if words.startswith("postgres:") else process.name()


def describe(process: psutil.Process) -> str:
    """Return its pid and command line."""
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:60]}"
    except psutil.Error:
        return str(process.pid)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def upload(url: str) -> str:
    """Upload a few bytes and return the URL that serves them."""
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Length": str(len(CONTENT)),
        "Content-Type": "application/offset+octet-stream",
    }
    request = urllib.request.Request(url, data=CONTENT, headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=30) as response:
        location: str = response.headers["Location"]
    return urllib.parse.urljoin(url, location)


def run_rounds(server: Server, rounds: int, chance: random.Random) -> list[float]:
    """Return how long each start took. Raises RuntimeError at the first that fails."""
    server.start()
    server.wait_ready()
    kept = upload(server.url)
    server.stop()
    taken = []
    server.start()
    for number in range(1, rounds + 1):
        time.sleep(chance.uniform(EARLIEST_KILL_SECONDS, LATEST_KILL_SECONDS))
        killed = server.kill(chance)
        server.start()
        taken.append(server.wait_ready())
        print(f"{number:4}  ready after {taken[-1]:6.2f} s  killed: {killed}", flush=True)
        if left := server.left_over(besides=True):
            raise RuntimeError(f"left over: {'; '.join(left)}")
    with urllib.request.urlopen(kept, timeout=30) as response:
        if response.read() != CONTENT:
            raise RuntimeError("an acknowledged upload is lost")
    server.stop()
    if left := server.left_over(besides=False):
        raise RuntimeError(f"left over: {'; '.join(left)}")
    return taken


def main() -> int:
    """Run the rounds and say how they went."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--ready-within", type=float, default=10, metavar="SECONDS", help="the bar for each start")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="restart-rounds-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        server = Server(Path(directory))
        try:
            taken = run_rounds(server, options.rounds, random.Random(options.seed))
        except RuntimeError as error:
            print(f"FAILED: {error}", *server.log.read_text().splitlines()[-40:], sep="\n")
            return 1
        finally:
            server.stop()
            server.end_left_over()
    late = [seconds for seconds in taken if seconds > options.ready_within]
    print(f"{len(taken)} rounds, slowest {max(taken):.2f} s, {len(late)} later than {options.ready_within:g} s")
    return 1 if late else 0


if __name__ == "__main__":
    raise SystemExit(main())
