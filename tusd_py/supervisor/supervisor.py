"""The supervisor: it owns the database, the sockets and the children, and does nothing else.

It runs no event loop and no threads, so that it can fork at any time: children start in milliseconds
and share its memory. Listening sockets stay open in the supervisor, so a child that dies loses no
connection that is waiting to be accepted.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py import __version__
from tusd_py.config.sections import FEW_CONNECTIONS
from tusd_py.database.migrate import migrate
from tusd_py.database.rights import check_rights
from tusd_py.errors import ConfigError
from tusd_py.supervisor.banner import render_banner
from tusd_py.supervisor.child_processes import SIGNALS, Child, ChildMain, stop_children
from tusd_py.supervisor.data_dir_lock import DataDirLock
from tusd_py.supervisor.metrics_dir import MetricsDir
from tusd_py.supervisor.sockets import Listeners, origin_of
from tusd_py.supervisor.systemd import notify_service_manager
from tusd_py.supervisor.watched_postgres import WatchedPostgres

if TYPE_CHECKING:
    from tusd_py.config import Config

log = structlog.get_logger(__name__)

WATCH_SECONDS: Final = 0.5
START_WATCH_SECONDS: Final = 0.01
"""While a child is being started."""
GRACE_SECONDS: Final = 5.0
"""After its own time-out a child gets this much before it is killed."""


class Supervisor:
    """Runs `tusd-py serve`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = DataDirLock(config.data_dir)
        self._postgres: WatchedPostgres | None = None
        self._children: list[Child] = []
        self._listeners = Listeners()
        self._metrics_dir = MetricsDir(config.data_dir)
        self._announced = False

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; return the exit status."""
        self._make_data_dir()
        self._take_data_dir()
        # Before the database: a start that cannot succeed should not run a recovery first.
        self._listeners = Listeners.bind(self._config)
        try:
            self._postgres = self._embedded_postgres()
            self._with_database(migrate_database)
            self._listeners.refuse_if_used()
            self._metrics_dir.make()
            # Only now: this imports what the children use, which must find that directory.
            self._children = self._plan_children()
            # Here as well, so that a refusal is one sentence and no child is started.
            self._with_database(identify_staging_directory)
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            for child in self._children:
                self._spawn(child)
            status = self._watch()
            self._stop_children()
            return status
        finally:
            self._metrics_dir.remove()
            if self._postgres is not None:
                self._postgres.stop()
            self._lock.close()

    # --- set up ------------------------------------------------------------------------------------

    def _make_data_dir(self) -> None:
        try:
            self._config.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError([f"data_dir: {self._config.data_dir}: {error.strerror}"]) from error

    def _take_data_dir(self) -> None:
        if not self._lock.take():
            reason = "another server runs on this directory; give each a data_dir of its own"
            log.warning("data_dir_in_use", data_dir=str(self._config.data_dir), reason=reason)

    def _embedded_postgres(self) -> WatchedPostgres | None:
        if self._config.database.dsn is not None:
            return None
        return WatchedPostgres(
            self._config.data_dir / "postgres",
            max_connections=self._connections(),
            user=self._config.database.embedded_user,
        )

    def _with_database(self, step: Callable[[Config], None]) -> None:
        if self._postgres is None:
            step(self._config)
        else:
            self._config = self._postgres.run(self._config, step)

    def _connections(self) -> int:
        # One process more than planned: while a child is replaced, its predecessor's may still be open.
        http = (self._config.server.processes + 1) * (self._config.database.pool_size + 1)
        others = (self._config.transfer.workers + 2) * (FEW_CONNECTIONS + 1)
        return max(60, http + others)

    def _plan_children(self) -> list[Child]:
        from tusd_py.supervisor import processes

        children: list[Child] = []
        main: ChildMain
        for number, listening in enumerate(self._listeners.public, 1):
            main = partial(processes.run_http, sockets=[listening])
            children.append(Child(f"http-{number}", main, sockets=[listening]))
        workers = [_worker(number) for number in range(1, self._config.transfer.workers + 1)]
        for worker in workers[:1]:
            worker.dead = [*self._lock.dead_names]
        children += workers
        if (operations := self._listeners.operations) is not None:
            main = partial(processes.run_operations, listening=operations)
            children.append(Child("operations", main, sockets=[operations]))
        return children

    # --- children ----------------------------------------------------------------------------------

    def _spawn(self, child: Child) -> None:
        child.start(self._config, close_inherited=partial(self._close_inherited, child))
        self._lock.record((child.pid, child.unique_name) for child in self._children if child.pid)

    def _close_inherited(self, child: Child) -> None:
        """Close in a forked child what is the supervisor's, or another child's."""
        self._lock.close()
        if self._postgres is not None:
            self._postgres.close_in_child()
        for listening in self._listeners.all:
            if listening not in child.sockets:
                listening.close()

    def _watch(self) -> int:
        """Look after the children until told to stop; return the exit status."""
        while True:
            received = signal.sigtimedwait(SIGNALS, self._seconds_to_wait())
            if received is not None and received.si_signo in {signal.SIGTERM, signal.SIGINT}:
                log.info("stopping", signal=signal.Signals(received.si_signo).name)
                return 0
            self._reap()
            if not self._announced and (failed := [child.name for child in self._children if child.hopeless]):
                log.error("start_failed", children=failed)
                return 1
            self._announce_when_ready()
            self._restart_due()
            if self._postgres is not None:
                self._postgres.restart_if_dead()

    def _seconds_to_wait(self) -> float:
        if not self._announced:
            return START_WATCH_SECONDS
        due = [child.restart_at - time.monotonic() for child in self._children if child.restart_at is not None]
        waiting = [START_WATCH_SECONDS] if any(child.pid and not child.ready for child in self._children) else []
        return max(0.0, min([WATCH_SECONDS, *due, *waiting]))

    def _reap(self) -> None:
        for child in self._children:
            if (pid := child.reap()) is not None:
                self._metrics_dir.forget(pid)

    def _announce_when_ready(self) -> None:
        became_ready = [child for child in self._children if child.has_become_ready()]
        if became_ready and all(child.ready for child in self._children):
            self._announce()

    def _restart_due(self) -> None:
        for child in self._children:
            if child.restart_at is not None and time.monotonic() >= child.restart_at:
                self._spawn(child)

    def _stop_children(self) -> None:
        notify_service_manager("STOPPING=1")
        for listening in self._listeners.public:
            # First here: a connection that nobody will accept must be refused, not left waiting.
            listening.close()
        grace = self._config.server.shutdown_timeout + GRACE_SECONDS
        # Workers after the HTTP processes: what completes during the drain may still be moved.
        stop_children([child for child in self._children if child.name.startswith("http")], grace)
        stop_children([child for child in self._children if not child.name.startswith("http")], grace)

    # --- announce --------------------------------------------------------------------------------------

    def _announce(self) -> None:
        """Announce that the server is ready: in the ready file each time, since pids change; elsewhere once."""
        operations = self._listeners.operations
        url = f"{origin_of(self._listeners.public[0])}{self._config.server.base_path}/"
        operations_url = None if operations is None else origin_of(operations)
        if path := os.environ.get("TUSD_READY_FILE"):
            self._write_ready_file(Path(path), url, operations_url)
        if self._announced:
            return
        self._announced = True
        notify_service_manager("READY=1")
        log.info("ready", url=url, version=__version__)
        from tusd_py.http import upload_page

        banner = render_banner(url, operations_url, version=__version__, page=upload_page.wanted(self._config))
        print(banner, flush=True)  # noqa: T201 -- for the person at the terminal

    def _write_ready_file(self, path: Path, url: str, operations_url: str | None) -> None:
        content = {
            "url": url,
            "operations_url": operations_url,
            "supervisor_pid": os.getpid(),
            "http_pids": [child.pid for child in self._children if child.name.startswith("http")],
            "worker_pids": [child.pid for child in self._children if child.name.startswith("worker")],
            "postgres_pid": self._postgres.pid if self._postgres is not None else None,
        }
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(path)


def _worker(number: int) -> Child:
    from tusd_py.supervisor import processes

    def main(config: Config, *, ready: Callable[[], None]) -> None:
        # Its jobs carry its name. Those of its predecessors, which are dead, it releases at once.
        processes.run_worker(config, ready=ready, worker=child.unique_name, dead_workers=child.dead)

    child = Child(f"worker-{number}", main)
    return child


def migrate_database(config: Config) -> None:
    """Bring the schema up to date, unless the operator does, and check what the database's user may do."""
    assert config.database.dsn is not None  # configured, or the embedded database's
    dsn = config.database.dsn.get_secret_value()
    if config.database.migrate_at_start:
        asyncio.run(migrate(dsn))
    asyncio.run(check_rights(dsn))


def identify_staging_directory(config: Config) -> None:
    """Check that the staging directory and the database belong together."""
    from tusd_py.app import identify_staging

    asyncio.run(identify_staging(config))
