"""Making the data directory: in a temporary sibling, which gets its name when it is complete."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from tusd_py.embedded_postgres import directories
from tusd_py.embedded_postgres.binaries import Binaries
from tusd_py.embedded_postgres.failures import data_problem, log_failure

INITDB_OPTIONS: Final = (
    *("-U", "tusd", "-A", "peer", "-E", "UTF8", "--locale=C"),
    # Finds damaged pages; the default only from version 18 on.
    "--data-checksums",
    # A quarter of the default: less to write on the first start, less space for a small database.
    "--wal-segsize=4",
    "--no-instructions",
)


def existing_major(data_dir: Path) -> int | None:
    """Return the version that made the data, or None if there is no data yet.

    Raises:
        ConfigError: the directory holds something else.
    """
    try:
        return int((data_dir / "PG_VERSION").read_bytes())
    except ValueError:
        raise data_problem(data_dir, "has an unreadable PG_VERSION") from None
    except FileNotFoundError:
        if data_dir.exists() and any(data_dir.iterdir()):
            raise data_problem(data_dir, "holds something else than PostgreSQL's data") from None
        return None


def make_data_directory(data_dir: Path, binaries: Binaries, log_path: Path, prefix: str, deadline: float) -> None:
    """Make the data directory, whole or not at all; its sibling's name begins with `prefix`.

    Raises:
        EmbeddedPostgresError: initdb failed, or took too long.
    """
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=data_dir.parent))
    try:
        os.chown(temporary, *binaries.identity.owner)
        _run_initdb(binaries, temporary, log_path, deadline)
        temporary.rename(data_dir)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    directories.sync_directory(data_dir.parent)


def _run_initdb(binaries: Binaries, directory: Path, log_path: Path, deadline: float) -> None:
    command = [binaries.program("initdb"), "-D", str(directory), *INITDB_OPTIONS]
    with directories.open_log(log_path) as log:
        begin = log.tell()
        # What it has made is thrown away in any case: there is nothing it could end cleanly.
        child = binaries.identity.spawn(command, output=log.fileno(), death_signal=signal.SIGKILL)
    try:
        status = child.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        raise log_failure(log_path, "initdb takes too long", begin) from None
    finally:
        if child.poll() is None:
            # With its own children, which nobody else knows.
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if status != 0:
        raise log_failure(log_path, f"initdb ended with status {status}", begin)
