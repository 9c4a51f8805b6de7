"""The real `tusd-py serve`, as its users start it, in a data directory of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urljoin

import psutil

from tests.support.blocking_client import fetch
from tests.support.ports import LOOPBACK, free_port
from tests.support.process import Child, is_alive, wait_until
from tests.support.tools import require_tool

PROGRAM = Path(sys.executable).with_name("tusd-py")
START_SECONDS = 20  # initdb on a busy machine; a second start takes well under one
STOP_SECONDS = 20
GONE_SECONDS = 10

Config = Mapping[str, Any]


class StartServer(Protocol):
    """Starts a server with a configuration and waits until it serves; a fixture of `tests/process`."""

    def __call__(self, config: Config | None = None, *, env: Mapping[str, str] | None = None) -> Server: ...


@dataclass(frozen=True, slots=True)
class Ready:
    """What the server writes to its ready file."""

    url: str
    operations_url: str
    supervisor_pid: int
    http_pids: tuple[int, ...]
    worker_pids: tuple[int, ...]

    @property
    def pids(self) -> tuple[int, ...]:
        """Every process of the server, the supervisor first."""
        return (self.supervisor_pid, *self.http_pids, *self.worker_pids)


class Server:
    """A running server; a context manager that ends it, and whatever it left behind."""

    def __init__(
        self,
        directory: Path,
        config: Config | None = None,
        *,
        env: Mapping[str, str] | None = None,
        data_dir: Path | None = None,
        program: Path | None = None,
    ) -> None:
        """Prepare a server under `directory`; its ports stay the same over restarts.

        `program` is the installed command, unless it is this environment's.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.data_dir = data_dir or directory / "data"
        self.port = free_port()
        self.operations_port = free_port()
        self._ready_file = directory / "ready.json"
        self._seen: set[psutil.Process] = set()
        config_file = directory / "config.toml"
        config_file.write_text(to_toml(merged({"operations": {"port": self.operations_port}}, config or {})))
        program = program or require_tool("tusd-py", at=PROGRAM, install="pip install -e .")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TUSD_")}
        self.child = Child(
            [
                program,
                "serve",
                "--config",
                config_file,
                "--data-dir",
                self.data_dir,
                "--host",
                LOOPBACK,
                "--port",
                str(self.port),
            ],
            log=directory / "server.log",
            env={**inherited, **(env or {}), "TUSD_READY_FILE": str(self._ready_file)},
        )

    # --- life ---

    def start(self, deadline: float = START_SECONDS) -> Ready:
        """Start it and wait until it serves."""
        self.spawn()
        return self.wait_ready(deadline)

    def spawn(self) -> None:
        """Start the process and return at once; from the main thread only."""
        self._ready_file.unlink(missing_ok=True)
        self.child.start()

    def wait_ready(self, deadline: float = START_SECONDS) -> Ready:
        """Wait until a spawned server serves; any thread may wait."""
        return self.child.wait_ready(self._read_ready, deadline=deadline, what="the server is ready")

    def terminate(self, deadline: float = STOP_SECONDS) -> int:
        """Send SIGTERM, wait for the drain and return the exit code."""
        self.child.signal(signal.SIGTERM)
        return self.child.wait(deadline)

    def kill_supervisor(self) -> None:
        """Send SIGKILL to the process that was started, and to nothing else."""
        self.child.kill()

    def close(self) -> None:
        """End it, and look that nothing is left of it.

        Raises:
            AssertionError: a process of the server has outlived it; it is killed.
        """
        if self.child.running:
            self.child.stop(STOP_SECONDS)
        try:
            self.wait_gone()
        finally:
            for process in self._alive():
                process.kill()

    def wait_gone(self, deadline: float = GONE_SECONDS) -> None:
        """Wait until no process is left of supervisors that have ended."""
        current = set(self.ready.pids) if self.child.running else set()

        def gone() -> bool:
            return not [process for process in self._alive() if process.pid not in current]

        try:
            wait_until(gone, deadline=deadline, what="every process of the server has ended")
        except AssertionError as error:
            raise AssertionError(f"{error}; left are {self._alive()}") from None

    def _alive(self) -> list[psutil.Process]:
        # Compares the time of creation too: the number may belong to another process by now.
        return [process for process in self._seen if process.is_running() and is_alive(process.pid)]

    def restart(self, deadline: float = START_SECONDS) -> Ready:
        """Start it again, on the same port and data, after it ended in whatever way."""
        assert not self.child.running, "the server is still running"
        return self.start(deadline)

    def wait_replaced(self, *killed: int, deadline: float = START_SECONDS) -> Ready:
        """Wait until the supervisor has replaced the killed children."""

        def replaced() -> Ready | None:
            ready = self._read_ready()
            return ready if ready and not set(killed) & set(ready.pids) and all(map(is_alive, ready.pids)) else None

        return self.child.wait_ready(replaced, deadline=deadline, what=f"{killed} are replaced")

    # --- facts ---

    @property
    def ready(self) -> Ready:
        """The ready file as it is now; it is rewritten whenever a child was replaced."""
        ready = self._read_ready()
        assert ready is not None, f"the server is not ready:\n{self.log_text()}"
        return ready

    @property
    def url(self) -> str:
        """Where uploads are created."""
        return f"{self.origin}/files/"

    @property
    def origin(self) -> str:
        """The public listener's origin."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def staging(self) -> Path:
        """The directory that receives the bytes."""
        return self.data_dir / "staging"

    @property
    def store(self) -> Path:
        """The tree of the filesystem store."""
        return self.data_dir / "store"

    def log_text(self) -> str:
        """Everything the server has written."""
        return self.child.log_text()

    def postmasters(self) -> dict[int, str]:
        """Return what the embedded PostgreSQL has noted in the data directory: its process id and status."""
        notes = [path.read_text().splitlines() for path in self.data_dir.rglob("postmaster.pid")]
        # The file grows line by line; the eighth is the status, "starting" or "ready" and such.
        return {int(lines[0]): lines[7].strip() if len(lines) > 7 else "" for lines in notes if lines}

    def postmaster_pids(self) -> list[int]:
        """Return the process ids that the embedded PostgreSQL has noted in the data directory."""
        return [*self.postmasters()]

    def upload_json(self, upload_id: str, *, origin: str | None = None) -> dict[str, Any]:
        """Return what the JSON API says of an upload."""
        url = f"{origin or self.origin}/api/v1/uploads/{upload_id}"
        response = fetch(url)
        assert response.status == 200, response
        body: dict[str, Any] = response.json()
        return body

    def metrics(self) -> dict[str, float]:
        """Return every sample of /metrics by its name and labels."""
        response = fetch(f"{self.ready.operations_url}/metrics")
        assert response.status == 200, response
        lines = response.body.decode().splitlines()
        samples = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        return {name: float(value) for name, _, value in samples}

    def wait_for_state(self, upload_id: str, state: str, *, deadline: float = 20) -> dict[str, Any]:
        """Wait until the upload is in the state; return its JSON."""
        last: dict[str, Any] = {}

        def reached() -> bool:
            nonlocal last
            try:
                last = self.upload_json(upload_id)
            except OSError:  # the server is being restarted
                return False
            return bool(last["state"] == state)

        try:
            wait_until(reached, deadline=deadline, what=f"{upload_id} is {state}")
        except AssertionError as error:
            raise AssertionError(f"{error}; the API says {last}") from None
        return last

    def absolute(self, location: str) -> str:
        """Resolve a Location against the creation URL, as clients do."""
        return urljoin(self.url, location)

    def _read_ready(self) -> Ready | None:
        try:
            content = json.loads(self._ready_file.read_text())
        except FileNotFoundError:
            return None
        ready = Ready(
            url=content["url"],
            operations_url=content["operations_url"],
            supervisor_pid=content["supervisor_pid"],
            http_pids=tuple(content["http_pids"]),
            worker_pids=tuple(content["worker_pids"]),
        )
        if ready.supervisor_pid != self.child.pid:
            return None
        for pid in ready.pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._seen.add(psutil.Process(pid))
        return ready

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def merged(base: Config, over: Config) -> dict[str, Any]:
    """Return `base` with `over` laid upon it, table by table."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return result


def to_toml(table: Config, prefix: str = "") -> str:
    """Write nested mappings of strings, numbers, booleans, lists of these, and lists of mappings as TOML."""
    below = [key for key, value in table.items() if isinstance(value, Mapping) or _is_array_of_tables(value)]
    lines = [f"{key} = {_toml_value(value)}" for key, value in table.items() if key not in below]
    for key in below:
        value = table[key]
        if isinstance(value, Mapping):
            lines += ["", f"[{prefix}{key}]", to_toml(value, f"{prefix}{key}.").rstrip()]
        else:
            for each in value:
                lines += ["", f"[[{prefix}{key}]]", to_toml(each, f"{prefix}{key}.").rstrip()]
    return "\n".join(lines) + "\n"


def _is_array_of_tables(value: object) -> bool:
    return isinstance(value, list) and value != [] and all(isinstance(each, Mapping) for each in value)


def _toml_value(value: object) -> str:
    # JSON's strings, numbers, booleans and arrays are TOML's.
    return json.dumps(value)


def tusd_py(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, without any TUSD_ variable but those of `env`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TUSD_")}
    return subprocess.run(
        [PROGRAM, *arguments], capture_output=True, text=True, timeout=60, env={**clean, **(env or {})}
    )
