"""Count how many files of the package one request executes: what a newcomer has to open to follow it.

    python scripts/files_per_request.py            # the counts
    python scripts/files_per_request.py --list     # and the files

Runs the real HTTP process with the default configuration, on a private database and a temporary folder,
and profiles it while it serves. A background task may run in the same moment, so each request is sent a few
times and the smallest set counts.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tusd_py.config import Config, load_config
from tusd_py.supervisor.processes import run_http
from tusd_py.supervisor.sockets import bind
from tusd_py.supervisor.supervisor import migrate_database
from tusd_py.supervisor.watched_postgres import WatchedPostgres

PACKAGE: Final = f"{Path(__file__).resolve().parents[1] / 'tusd_py'}{os.sep}"
REPEATS: Final = 5
WAIT_SECONDS: Final = 30.0
TUS: Final = {"Tus-Resumable": "1.0.0"}
APPEND: Final = TUS | {"Content-Type": "application/offset+octet-stream"}


class Recorder:
    """Collects the files whose functions are called, between two signals."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self._files: set[str] = set()
        self._recording = False

    def install(self) -> None:
        """Record in this thread and in all that it will start: SIGUSR1 begins, SIGUSR2 writes the report."""
        signal.signal(signal.SIGUSR1, self._begin)
        signal.signal(signal.SIGUSR2, self._end)
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def _profile(self, frame: FrameType, event: str, _argument: Any) -> None:
        if self._recording and event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            self._files.add(frame.f_code.co_filename.removeprefix(PACKAGE))

    def _begin(self, _number: int, _frame: FrameType | None) -> None:
        self._files = set()
        self._recording = True
        self._report.with_suffix(".begun").touch()

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._recording = False
        temporary = self._report.with_suffix(".tmp")
        temporary.write_text(json.dumps(sorted(self._files)), encoding="utf-8")
        temporary.rename(self._report)


def serve(config: Config, listening: socket.socket, report: Path) -> None:
    """Run the HTTP process under the recorder."""
    Recorder(report).install()
    run_http(config, sockets=[listening], ready=report.with_suffix(".ready").touch)


class Client:
    """Sends requests to the process and asks it what it executed meanwhile."""

    def __init__(self, address: tuple[str, int], pid: int, report: Path) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=WAIT_SECONDS)
        self._pid = pid
        self._report = report

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> http.client.HTTPResponse:
        """Send a request that succeeds. Raises RuntimeError if it does not."""
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        text = response.read()
        if response.status >= http.client.BAD_REQUEST:
            raise RuntimeError(f"{method} {path}: {response.status} {text!r}")
        return response

    def recorded(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> set[str]:
        """Send a request and return the files that it executed."""
        self._ask(signal.SIGUSR1, self._report.with_suffix(".begun"))
        self.send(method, path, headers, body)
        self._ask(signal.SIGUSR2, self._report)
        files = set(json.loads(self._report.read_text(encoding="utf-8")))
        self._report.unlink()
        return files

    def _ask(self, number: signal.Signals, until: Path) -> None:
        os.kill(self._pid, number)
        wait_for(until)
        if until != self._report:
            until.unlink()


def wait_for(path: Path) -> None:
    """Return when the file is there. Raises TimeoutError."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path.name)
        time.sleep(0.005)


def smallest(sets: list[set[str]]) -> set[str]:
    """Return the smallest of the recorded sets."""
    return min(sets, key=len)


def measure(client: Client) -> dict[str, set[str]]:
    """Return the files of each kind of request."""
    found: dict[str, list[set[str]]] = {"POST": [], "PATCH": [], "HEAD": []}
    for _ in range(REPEATS):
        create = TUS | {"Upload-Length": "20"}
        path = client.send("POST", "/files/", create).headers["Location"]
        found["POST"].append(client.recorded("POST", "/files/", create))
        found["PATCH"].append(client.recorded("PATCH", path, APPEND | {"Upload-Offset": "0"}, b"0123456789"))
        found["HEAD"].append(client.recorded("HEAD", path, TUS))
    return {method: smallest(sets) for method, sets in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--list", action="store_true", help="print the files as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        config = load_config(None, {"data_dir": f"{directory}/data"})
        config.data_dir.mkdir()
        postgres = WatchedPostgres(config.data_dir / "postgres", max_connections=60)
        try:
            usable = postgres.run(config, migrate_database)
            report = Path(directory) / "report.json"
            listening = bind("127.0.0.1", 0, "server")
            process = multiprocessing.get_context("fork").Process(target=serve, args=(usable, listening, report))
            process.start()
            try:
                wait_for(report.with_suffix(".ready"))
                results = measure(Client(listening.getsockname(), process.pid or 0, report))
            finally:
                process.terminate()
                process.join()
        finally:
            postgres.stop()
    for method, files in results.items():
        print(f"{method:6}{len(files)}")
        if options.list:
            print("".join(f"      {name}\n" for name in sorted(files)), end="")


if __name__ == "__main__":
    main()
