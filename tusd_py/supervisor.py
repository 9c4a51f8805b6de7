"""One supervisor: it owns the database, the sockets and the children, and does nothing else.

It runs no event loop and no threads, so that it can fork at any time: children start in milliseconds
and share its memory. Listening sockets stay open in the supervisor, so a child that dies loses no
connection that still waits to be accepted.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import structlog
from pydantic import SecretStr

from tusd_py import __version__
from tusd_py.banner import render_banner
from tusd_py.config.sections import FEW_CONNECTIONS
from tusd_py.data_dir_lock import DataDirLock
from tusd_py.errors import ConfigError, TusdError
from tusd_py.process_identity import NAME_PREFIX, unique_name
from tusd_py.sockets import bind, bind_next_free, origin_of, refuse_if_used
from tusd_py.systemd import notify_service_manager

if TYPE_CHECKING:
    from tusd_py.config import Config
    from tusd_py.embedded_postgres import EmbeddedPostgres

log = structlog.get_logger(__name__)

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15
SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP})
WATCH_SECONDS: Final = 0.5
BACKOFF_SECONDS: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
POSTGRES_PAUSE_SECONDS: Final = 1.0
STABLE_SECONDS: Final = 30.0
EARLY_DEATHS: Final = 5
"""So often a child may be killed, or miss its database, before the server is ready; then the start has failed."""
OPERATIONS_PORTS: Final = 100
KEPT_NAMES: Final = 100
"""Of dead children: a successor may die before it has released their jobs."""
GRACE_SECONDS: Final = 5.0
"""After its own time-out a child gets this much before it is killed."""


class Body(Protocol):
    """The whole life of a child process."""

    def __call__(self, config: Config, *, ready: Callable[[], None]) -> None:
        """Run until SIGTERM; call `ready` once set up."""


@dataclass(slots=True)
class Child:
    """One child process: what it does and how it fares."""

    name: str
    body: Body
    unique_name: str = ""
    """Of the process; its successor gets another."""
    dead: list[str] = field(default_factory=list)
    """The unique names of its predecessors."""
    pid: int = 0
    ready: bool = False
    started_at: float = 0.0
    failures: int = 0
    hopeless: bool = False
    """It ended in such a way that a start does not wait for another try."""
    restart_at: float | None = None
    ready_fd: int = -1
    sockets: list[socket.socket] = field(default_factory=list)


class Supervisor:
    """Runs `tusd-py serve`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = DataDirLock(config.data_dir)
        self._postgres: EmbeddedPostgres | None = None
        self._children: list[Child] = []
        self._sockets: list[socket.socket] = []
        self._public: list[socket.socket] = []
        self._operations: socket.socket | None = None
        self._announced = False
        self._metrics_dir = ""
        self._postgres_restart_at = 0.0

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; return the exit status."""
        self._prepare_directories()
        self._take_data_dir()
        # Before the database: a start that cannot succeed should not run a recovery first.
        self._bind()
        try:
            self._with_database(self._migrate)
            self._refuse_taken_ports()
            self._metrics_dir = fresh_metrics_dir(self._config.data_dir)
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = self._metrics_dir
            # Only now: the children take what these import, and the variable must be set before.
            self._children = self._plan()
            self._with_database(self._identify_staging)
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            for child in self._children:
                self._spawn(child)
            status = self._watch()
            self._stop_children()
            return status
        finally:
            if self._metrics_dir:
                shutil.rmtree(self._metrics_dir, ignore_errors=True)
            if self._postgres is not None:
                self._postgres.stop()
            self._lock.close()

    # --- set up ------------------------------------------------------------------------------------

    def _prepare_directories(self) -> None:
        try:
            self._config.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError([f"data_dir: {self._config.data_dir}: {error.strerror}"]) from error

    def _take_data_dir(self) -> None:
        if not self._lock.take():
            reason = "another server runs on this directory; give each a data_dir of its own"
            log.warning("data_dir_in_use", data_dir=str(self._config.data_dir), reason=reason)

    def _with_database(self, step: Callable[[], None]) -> None:
        """Do a step of the start; once more if the embedded server was killed meanwhile."""
        for left in reversed(range(EARLY_DEATHS + 1)):
            self._start_database()
            try:
                step()
            except TusdError as error:
                if self._postgres is None or isinstance(error, ConfigError) or not left:
                    raise
                # One that was killed has closed its connections, and still looks alive for a moment.
                time.sleep(POSTGRES_PAUSE_SECONDS)
                if self._postgres.running() and not error.retryable:
                    raise
                log.error("embedded_postgres_died", reason=str(error))  # noqa: TRY400
            else:
                return

    def _start_database(self) -> None:
        if self._postgres is None:
            if self._config.database.dsn is not None:
                return
            from tusd_py.embedded_postgres import EmbeddedPostgres

            self._postgres = EmbeddedPostgres(
                self._config.data_dir / "postgres",
                max_connections=self._connections(),
                user=self._config.database.embedded_user,
            )
        if self._postgres.running():
            return
        self._postgres.start()
        self._config = with_dsn(self._config, self._postgres.dsn)
        log.info("embedded_postgres_started", owned=self._postgres.owned)

    def _connections(self) -> int:
        # One process more than planned: while a child is replaced, its predecessor's may still be open.
        http = (self._config.server.processes + 1) * (self._config.database.pool_size + 1)
        others = (self._config.transfer.workers + 2) * (FEW_CONNECTIONS + 1)
        return max(60, http + others)

    def _migrate(self) -> None:
        from tusd_py.database.migrate import migrate
        from tusd_py.database.rights import check_rights

        if self._config.database.dsn is None:
            return
        dsn = self._config.database.dsn.get_secret_value()
        if self._config.database.migrate_at_start:
            asyncio.run(migrate(dsn))
        asyncio.run(check_rights(dsn))

    def _bind(self) -> None:
        server, operations = self._config.server, self._config.operations
        first = bind(server.host, server.port, "server")
        port = first.getsockname()[1]
        more = [bind(server.host, port, "server", alone=False) for _ in range(server.processes - 1)]
        self._public = [first, *more]
        if operations.enabled:
            wanted = self._config.operations_port
            # Without a configured one any port will do: two servers side by side are no mistake.
            tries = 1 if operations.port is not None else OPERATIONS_PORTS
            self._operations = bind_next_free(operations.host, wanted, "operations", tries=tries)
            taken = self._operations.getsockname()[1]
            if wanted not in {0, taken}:
                reason = "the next port is used; set operations.port to choose one"
                log.warning("operations_port_in_use", port=wanted, used=taken, reason=reason)
        self._sockets = [*self._public, *([self._operations] if self._operations else [])]

    def _refuse_taken_ports(self) -> None:
        # Another server that started with us may have bound the same port before either of us listened.
        refuse_if_used(self._public[0], "server")
        if self._operations is not None:
            refuse_if_used(self._operations, "operations")

    def _plan(self) -> list[Child]:
        from tusd_py import processes

        children: list[Child] = []
        body: Body
        for number, listening in enumerate(self._public, 1):
            body = partial(processes.run_http, sockets=[listening])
            children += [Child(f"http-{number}", body, sockets=[listening])]
        workers = [self._worker(number) for number in range(1, self._config.transfer.workers + 1)]
        for worker in workers[:1]:
            worker.dead = [*self._lock.dead_names]
        children += workers
        if self._operations is not None:
            body = partial(processes.run_operations, listening=self._operations)
            children.append(Child("operations", body, sockets=[self._operations]))
        return children

    def _worker(self, number: int) -> Child:
        from tusd_py import processes

        def body(config: Config, *, ready: Callable[[], None]) -> None:
            # Its jobs carry its name. Those of its predecessors, which are dead, it releases at once.
            processes.run_worker(config, ready=ready, worker=child.unique_name, dead_workers=child.dead)

        child = Child(f"worker-{number}", body)
        return child

    def _identify_staging(self) -> None:
        # Here as well, so that a refusal is one sentence and no child is started.
        from tusd_py.commands import identify_staging

        asyncio.run(identify_staging(self._config))

    # --- children ----------------------------------------------------------------------------------

    def _spawn(self, child: Child) -> None:
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        child.unique_name = unique_name()
        pid = os.fork()
        if pid == 0:
            self._run_child(child, parent, write_fd)
        os.close(write_fd)
        child.pid, child.ready_fd, child.ready = pid, read_fd, False
        child.started_at, child.restart_at = time.monotonic(), None
        self._lock.record((child.pid, child.unique_name) for child in self._children if child.pid)

    def _run_child(self, child: Child, parent: int, write_fd: int) -> NoReturn:
        """Turn this forked process into the child. Never returns."""
        status = 1
        try:
            libc = ctypes.CDLL(None)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            # `top` shows it, and /metrics tells the processes apart by it.
            libc.prctl(PR_SET_NAME, f"{NAME_PREFIX}{child.name}".encode())
            if os.getppid() != parent:
                os._exit(0)
            self._lock.close()
            if self._postgres is not None:
                self._postgres.close_in_child()
            for listening in self._sockets:
                if listening not in child.sockets:
                    listening.close()
            # Ctrl-C reaches the whole group; the supervisor alone decides what it means.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            child.body(self._config, ready=lambda: _say_ready(write_fd))
            status = 0
        except TusdError as error:
            status = os.EX_TEMPFAIL if error.retryable else status
            log.error("child_failed", child=child.name, code=error.code, reason=str(error))  # noqa: TRY400
        except BaseException:  # the last stop of a process: whatever it is, the log has it
            log.exception("child_crashed", child=child.name)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _watch(self) -> int:
        """Look after the children until told to stop; return the exit status."""
        while True:
            received = signal.sigtimedwait(SIGNALS, 0.01 if not self._announced else self._next_look())
            if received is not None and received.si_signo in {signal.SIGTERM, signal.SIGINT}:
                log.info("stopping", signal=signal.Signals(received.si_signo).name)
                return 0
            self._reap()
            if not self._announced and (failed := [child.name for child in self._children if child.hopeless]):
                log.error("start_failed", children=failed)
                return 1
            self._look_at_ready()
            self._restart_due()
            self._look_at_database()

    def _next_look(self) -> float:
        due = [child.restart_at - time.monotonic() for child in self._children if child.restart_at is not None]
        waiting = [0.01] if any(child.pid and not child.ready for child in self._children) else []
        return max(0.0, min([WATCH_SECONDS, *due, *waiting]))

    def _reap(self) -> None:
        for child in self._children:
            if not child.pid:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                self._on_child_exit(child, status)

    def _on_child_exit(self, child: Child, status: int) -> None:
        lived = time.monotonic() - child.started_at
        child.failures = 1 if lived > STABLE_SECONDS else child.failures + 1
        # Who was killed, or found the database away, may fare better next time; who ended for another
        # reason has said which, and would do it again.
        passing = os.waitstatus_to_exitcode(status) < 0 or os.waitstatus_to_exitcode(status) == os.EX_TEMPFAIL
        child.hopeless = not passing or child.failures > EARLY_DEATHS
        delay = BACKOFF_SECONDS[min(child.failures, len(BACKOFF_SECONDS)) - 1]
        log.error(
            "child_died",
            child=child.name,
            pid=child.pid,
            status=os.waitstatus_to_exitcode(status),
            restart_in_seconds=delay,
        )
        self._forget_metrics(child.pid)
        os.close(child.ready_fd)
        child.pid, child.ready_fd, child.ready = 0, -1, False
        child.dead = [*child.dead, child.unique_name][-KEPT_NAMES:]
        child.restart_at = time.monotonic() + delay

    def _forget_metrics(self, pid: int) -> None:
        # Gauges of a dead process must not be summed; counters are kept.
        for path in Path(self._metrics_dir).glob(f"gauge_live*_{pid}.db"):
            path.unlink(missing_ok=True)

    def _look_at_ready(self) -> None:
        changed = False
        for child in self._children:
            if child.pid and not child.ready and _is_ready(child.ready_fd):
                child.ready = changed = True
        if changed and all(child.ready for child in self._children):
            self._announce()

    def _restart_due(self) -> None:
        for child in self._children:
            if child.restart_at is not None and time.monotonic() >= child.restart_at:
                self._spawn(child)

    def _look_at_database(self) -> None:
        if self._postgres is None or self._postgres.running() or time.monotonic() < self._postgres_restart_at:
            return
        log.error("embedded_postgres_died")
        try:
            # The same address after the restart: the children's pools reconnect by themselves.
            self._postgres.start()
        except TusdError as error:
            self._postgres_restart_at = time.monotonic() + POSTGRES_PAUSE_SECONDS
            log.error("embedded_postgres_not_started", reason=str(error), pause_seconds=POSTGRES_PAUSE_SECONDS)  # noqa: TRY400

    def _stop_children(self) -> None:
        notify_service_manager("STOPPING=1")
        for listening in self._public:
            # First here: a connection that nobody will accept must be refused, not left waiting.
            listening.close()
        grace = self._config.server.shutdown_timeout + GRACE_SECONDS
        # Workers after the HTTP processes: what completes during the drain may still be moved.
        self._end([child for child in self._children if child.name.startswith("http")], grace)
        self._end([child for child in self._children if not child.name.startswith("http")], grace)

    def _end(self, children: list[Child], grace: float) -> None:
        for child in children:
            if child.pid:
                os.kill(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while any(child.pid for child in children):
            for child in children:
                if child.pid and os.waitpid(child.pid, os.WNOHANG)[0]:
                    child.pid = 0
            if time.monotonic() > deadline:
                for child in children:
                    if child.pid:
                        log.error("child_killed", child=child.name, pid=child.pid)
                        os.kill(child.pid, signal.SIGKILL)
                deadline = time.monotonic() + grace
            signal.sigtimedwait({signal.SIGCHLD}, 0.05)

    # --- tell --------------------------------------------------------------------------------------

    def _announce(self) -> None:
        url = self.url
        if ready_file := os.environ.get("TUSD_READY_FILE"):
            self._write_ready_file(Path(ready_file), url)
        if self._announced:
            return
        self._announced = True
        notify_service_manager("READY=1")
        log.info("ready", url=url, version=__version__)
        from tusd_py.http import upload_page

        banner = render_banner(url, self._operations_url, version=__version__, page=upload_page.wanted(self._config))
        print(banner, flush=True)  # noqa: T201 -- for the person at the terminal

    @property
    def url(self) -> str:
        """Where uploads are created."""
        return f"{origin_of(self._public[0])}{self._config.server.base_path}/"

    @property
    def _operations_url(self) -> str | None:
        return origin_of(self._operations) if self._operations is not None else None

    def _write_ready_file(self, path: Path, url: str) -> None:
        content = {
            "url": url,
            "operations_url": self._operations_url,
            "supervisor_pid": os.getpid(),
            "http_pids": [child.pid for child in self._children if child.name.startswith("http")],
            "worker_pids": [child.pid for child in self._children if child.name.startswith("worker")],
            "postgres_pid": self._postgres.pid if self._postgres is not None else None,
        }
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(path)


def fresh_metrics_dir(data_dir: Path) -> str:
    """Return an empty directory for the figures that the processes share.

    Those that a killed supervisor left behind are removed: their counters would be added to ours.
    """
    run = data_dir / "run"
    for left in run.glob("metrics-*"):
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    mine = run / f"metrics-{os.getpid()}"
    shutil.rmtree(mine, ignore_errors=True)
    mine.mkdir(parents=True)
    return str(mine.absolute())


def with_dsn(config: Config, dsn: str) -> Config:
    """Return the configuration with another database."""
    return config.model_copy(update={"database": config.database.model_copy(update={"dsn": SecretStr(dsn)})})


def _say_ready(fd: int) -> None:
    os.write(fd, b"1")


def _is_ready(fd: int) -> bool:
    try:
        return os.read(fd, 1) == b"1"
    except BlockingIOError:
        return False
