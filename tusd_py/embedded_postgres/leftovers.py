"""End what a dead owner left running.

A server gets SIGQUIT when its owner dies, and ends by itself. It does not if it was stopped, if it waits
for a child that ignores its signals, or if it was killed itself and a child of it goes on computing.
PostgreSQL's children call setsid(2), so no group kill reaches them; they are known by the directory
they work in.
"""

from __future__ import annotations

import signal
from pathlib import Path

import structlog

from tusd_py.embedded_postgres import postmaster
from tusd_py.process_identity import ProcessIdentity, all_processes, end

log = structlog.get_logger(__name__)


def end_server(server: ProcessIdentity | None, data_dir: Path, patience_seconds: float) -> None:
    """End the server that the last owner recorded, if it is still alive, with all of its children.

    After `patience_seconds` they are killed.

    Raises:
        TimeoutError, PermissionError: it cannot be ended.
    """
    if server is None or not server.alive or not postmaster.is_postmaster(server.pid, data_dir):
        return
    log.warning("embedded_postgres_left_over", pid=server.pid, reason="its owner was killed; waiting for its end")
    # Looked for first: once their parent is dead, only root may be able to tell whose they were.
    children = postmaster.children_of(server.pid)
    end([server], signal.SIGQUIT, patience_seconds)
    end(children, signal.SIGQUIT, patience_seconds)


def end_orphans(data_dir: Path, initdb_prefix: str, patience_seconds: float) -> None:
    """End the processes of a dead server, and those of an initdb that was killed.

    To be called when no server of this directory is alive, ours or foreign.

    Raises:
        TimeoutError, PermissionError: one cannot be ended.
    """
    orphans = [
        ProcessIdentity(pid, stat.start_ticks)
        for pid, stat in all_processes()
        # An operator's shell may stand in this directory, too.
        if stat.name == postmaster.PROGRAM and _works_there(pid, data_dir, initdb_prefix)
    ]
    if orphans:
        pids = [orphan.pid for orphan in orphans]
        log.warning("embedded_postgres_orphans", pids=pids, reason="their server was killed; waiting for their end")
        end(orphans, signal.SIGQUIT, patience_seconds)


def _works_there(pid: int, data_dir: Path, initdb_prefix: str) -> bool:
    try:
        directory = Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        # Root in a container may not look at other users' processes. Should it be one of ours,
        # PostgreSQL finds out by the shared memory, and the start is tried again until it has ended.
        return False
    return directory == data_dir or (directory.parent == data_dir.parent and directory.name.startswith(initdb_prefix))
