"""Starting, watching and stopping the embedded PostgreSQL.

One process owns the server: it holds a `flock` beside the data for as long as it lives, and the
server is its child and dies with it. Whoever comes second attaches to the running server.

    postgres/       the data, made in a temporary sibling and renamed when it is complete
    postgres.lock   held by the owner; says what its successor needs to know (owner_lock.py)
    postgres.log    what the server writes

A start, in this order, each step safe to repeat after a kill:

1. Take the lock. Whoever does not get it waits until the owner's server accepts connections, and attaches.
2. End what a dead owner left running: its server by pid and start time, as recorded under the lock, then the
   server's children, known by their working directory (leftovers.py). A server that nobody recorded was
   started by hand: it gets five seconds to end, and is never ended from here.
3. Choose binaries of the version that made the data (binaries.py), and a user who can run them (identity.py);
   run initdb if there is no data (initdb.py); write who may log in (access.py).
4. Spawn the server with SIGQUIT as the signal of its parent's death, record it under the lock, and wait
   until `postmaster.pid` says that this very process is ready (postmaster.py). PostgreSQL refuses to start
   while processes of a killed predecessor still hold its shared memory: then the spawn is repeated.

The owner's death is noticed by the kernel alone (PR_SET_PDEATHSIG, and the lock that goes with the process),
so that no way to kill it leaves a server behind that the next start does not end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tusd_py.embedded_postgres import directories, leftovers, postmaster
from tusd_py.embedded_postgres.access import write_access
from tusd_py.embedded_postgres.binaries import Binaries, SearchPath, choose_binaries
from tusd_py.embedded_postgres.failures import EmbeddedPostgresError, data_problem, log_failure, user_name
from tusd_py.embedded_postgres.initdb import existing_major, make_data_directory
from tusd_py.embedded_postgres.owner_lock import OwnerLock, OwnerRecord
from tusd_py.embedded_postgres.waiting import Timeouts, Wait
from tusd_py.process_identity import ProcessIdentity

RETRY_SECONDS: Final = 0.1

SETTINGS: Final = (
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
    "autovacuum=on",
    "shared_buffers=64MB",
    "min_wal_size=32MB",
    "max_wal_size=512MB",
    "timezone=UTC",
    "log_timezone=UTC",
    "log_destination=stderr",
    "logging_collector=off",
    "log_min_messages=warning",
    "log_checkpoints=off",
    "log_line_prefix=%m [%p] ",
    "cluster_name=tusd",
)

PASSING_FAILURES: Final = ("pre-existing shared memory block", '"postmaster.pid" already exists')
"""The last processes of a killed server still run, and /proc does not show them to this process."""


class EmbeddedPostgres:
    """A PostgreSQL server on a directory: this process's own, or shared with the one that owns it."""

    dsn: str
    """For asyncpg, over a unix socket. Empty until started; the same after every restart."""
    owned: bool
    """True if this process started the server, False if it uses another process's."""
    pid: int | None

    def __init__(
        self,
        data_dir: Path,
        *,
        max_connections: int = 100,
        user: str = "",
        search: SearchPath | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        """Prepare a server on `data_dir`, run as `user` if root starts it. Nothing is touched before `start`."""
        self.dsn = ""
        self.owned = False
        self.pid = None
        self._data_dir = data_dir.resolve()
        self._lock = OwnerLock(self._data_dir.with_name(f"{self._data_dir.name}.lock"))
        self._log_path = self._data_dir.with_name(f"{self._data_dir.name}.log")
        self._initdb_prefix = f".{self._data_dir.name}.initdb-"
        self._max_connections = max_connections
        self._user = user
        self._search = search or SearchPath()
        self._timeouts = timeouts or Timeouts()
        self._child: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Return when a server accepts connections: ours, or the one that already runs.

        Blocks: some 30 ms, a second on first use. May be called again once `running` is False.
        The server ends with the thread that called, hence only the main thread may.

        Raises:
            ConfigError: no binaries, wrong version, another user's data: the data was not changed.
            EmbeddedPostgresError: the server did not start; carries the end of its log.
            RuntimeError: not called from the main thread.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the embedded PostgreSQL ends with its thread: start it from the main one")
        if self.running():
            return
        try:
            self._own_or_attach(time.monotonic() + self._timeouts.start_seconds)
        except OSError as error:
            self.stop(self._timeouts.quit_seconds)
            raise data_problem(self._data_dir, f"cannot be used ({error})") from error
        except BaseException:
            self.stop(self._timeouts.quit_seconds)
            raise

    def stop(self, timeout_seconds: float = 30) -> None:
        """End the server if it is ours, as fast as it can end cleanly, and free the lock.

        Sessions are cut. After the timeout the server is ended without a checkpoint, and recovers on
        its next start. Does nothing to another process's server. May be called twice.
        """
        child, self._child = self._child, None
        if child is not None:
            directories.end_process(child, timeout_seconds, self._timeouts.quit_seconds)
        if self._lock.held and self._socket_dir not in (None, self._data_dir):
            directories.remove_socket_dir(self._socket_dir)
        self.pid = None
        self.owned = False
        self._lock.close()

    def running(self) -> bool:
        """Return whether the server lives: by its process if it is ours, by its socket if not."""
        if self._child is not None:
            return self._child.poll() is None
        return self.pid is not None and self._socket_dir is not None and postmaster.accepts(self._socket_dir)

    def close_in_child(self) -> None:
        """Forget the ownership, in a forked child that goes on without exec.

        The lock belongs to the open file, which parent and child share: a child that kept it open
        would keep the data locked after its owner's death. Nothing is unlocked for the owner.
        """
        if self._child is not None:
            # Not this process's child: `Popen` must neither wait for it nor warn when it is dropped.
            self._child.returncode = 0
            self._child = None
        self.owned = False
        self._lock.close()

    # --- owning and attaching ---------------------------------------------------------------------

    def _own_or_attach(self, deadline: float) -> None:
        """Become the owner if nobody is, else wait for the owner's server."""
        self._refuse_foreign_data()
        self._data_dir.parent.mkdir(parents=True, exist_ok=True)
        wait = self._wait(f"for another process's server of {self._data_dir} to be ready")
        while not self._lock.take():
            if self._attach():
                return
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"another process's server of {self._data_dir} is not ready")
            wait.pause()
        patience = self._timeouts.left_over_seconds
        leftovers.end_server(self._lock.read().server, self._data_dir, patience)
        self._wait_for_foreign_server(deadline)
        leftovers.end_orphans(self._data_dir, self._initdb_prefix, patience)
        binaries = self._prepare_data(deadline)
        self._launch(binaries, deadline)

    def _refuse_foreign_data(self) -> None:
        """Raise ConfigError if the data is another user's: PostgreSQL says so less clearly."""
        if os.geteuid() == 0:
            return
        for path in (self._data_dir, self._lock.path):
            if path.exists() and (owner := path.stat().st_uid) != os.geteuid():
                users = f"user {user_name(owner)}, and this process runs as {user_name(os.geteuid())}"
                raise data_problem(self._data_dir, f"belongs to {users}: run it as the former")

    def _attach(self) -> bool:
        """Use the owner's server if it is ready."""
        status = postmaster.read_status(self._data_dir)
        # The socket is asked, not the process: it answers across users and containers, too.
        if status is None or not status.ready or not postmaster.accepts(Path(status.socket_dir)):
            return False
        self._use(Path(status.socket_dir), status.pid, owned=False)
        return True

    def _use(self, socket_dir: Path, pid: int, *, owned: bool) -> None:
        self.dsn = f"postgresql://tusd@/postgres?host={quote(str(socket_dir))}&port={postmaster.PORT}"
        self.owned = owned
        self.pid = pid
        self._socket_dir = socket_dir

    def _wait_for_foreign_server(self, deadline: float) -> None:
        """Wait while a server that no owner has recorded shuts down.

        One that does not was started by hand, perhaps to repair something: it is left alone.
        """
        patience = time.monotonic() + self._timeouts.foreign_server_seconds
        wait = self._wait(f"for a server of {self._data_dir} to end that was not started here")
        while (status := postmaster.read_status(self._data_dir)) is not None:
            if not postmaster.is_postmaster(status.pid, self._data_dir):
                return
            if time.monotonic() > (patience if status.ready else deadline):
                raise data_problem(self._data_dir, f"is in use by a foreign server, process {status.pid}: stop it")
            wait.pause()

    def _wait(self, what: str) -> Wait:
        return Wait(what, self._timeouts.log_after_seconds)

    # --- starting ---------------------------------------------------------------------------------

    def _prepare_data(self, deadline: float) -> Binaries:
        """Make the data if there is none, and see that the chosen user can serve it."""
        existing = existing_major(self._data_dir)
        binaries = choose_binaries(self._data_dir, existing, self._search, self._user)
        owner = binaries.identity.owner
        directories.rotate(self._log_path)
        directories.remove_leftovers(self._data_dir.parent, self._initdb_prefix)
        if existing is None:
            make_data_directory(self._data_dir, binaries, self._log_path, self._initdb_prefix, deadline)
        else:
            postmaster.disown_reused_pid(self._data_dir)
            postmaster.remove_sockets(self._data_dir)
            directories.give(self._data_dir, owner)
        write_access(self._data_dir, binaries.identity.clients, owner)
        return binaries

    def _launch(self, binaries: Binaries, deadline: float) -> None:
        """Start the server as our child and wait until it is ready."""
        recorded = self._lock.read().socket_dir
        self._socket_dir = directories.claim_socket_dir(recorded, self._data_dir, binaries.identity.owner)
        wait = self._wait(f"for the last processes of a server of {self._data_dir} that was killed")
        while not self._try_launch(binaries, self._socket_dir, deadline):
            wait.pause(RETRY_SECONDS)

    def _try_launch(self, binaries: Binaries, socket_dir: Path, deadline: float) -> bool:
        """Start the server and return True when it is ready, False if another try may help."""
        settings = (*SETTINGS, f"max_connections={self._max_connections}")
        place = ("-D", str(self._data_dir), "-k", str(socket_dir), "-h", "", "-p", str(postmaster.PORT))
        command = [binaries.program("postgres"), *place, *(f"--{setting}" for setting in settings)]
        with directories.open_log(self._log_path) as log:
            begin = log.tell()
            # SIGQUIT costs the next start a replay. SIGINT would be the clean way, but a server that
            # recovers from the death of a child then waits forever.
            child = binaries.identity.spawn(command, output=log.fileno(), death_signal=signal.SIGQUIT)
        self._child = child
        self._record_server(socket_dir, child.pid)
        wait = self._wait(f"for PostgreSQL to be ready: after a crash it replays its log, see {self._log_path}")
        while (status := child.poll()) is None:
            file = postmaster.read_status(self._data_dir)
            # In another server's file, even "ready" says nothing about ours.
            if file is not None and file.pid == child.pid and file.ready:
                self._use(socket_dir, child.pid, owned=True)
                return True
            if time.monotonic() > deadline:
                seconds = self._timeouts.start_seconds
                raise log_failure(self._log_path, f"PostgreSQL is not ready after {seconds:g} s", begin)
            wait.pause()
        self._child = None
        logged = directories.log_since(self._log_path, begin)
        if time.monotonic() < deadline and any(text in logged for text in PASSING_FAILURES):
            return False
        raise log_failure(self._log_path, f"PostgreSQL ended with status {status}", begin)

    def _record_server(self, socket_dir: Path, pid: int) -> None:
        private = socket_dir if socket_dir != self._data_dir else None
        self._lock.write(OwnerRecord(private, ProcessIdentity.of(pid)))
