"""The lock of a data directory: one server each, and a dead one's processes are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.process import is_alive, wait_until
from tusd_py.errors import ConfigError
from tusd_py.process_identity import ProcessIdentity
from tusd_py.supervisor.data_dir_lock import DataDirLock

DEADLINE_SECONDS: Final = 30

# A supervisor that owns the directory, with one child that does not listen to SIGTERM.
OWNER_PROGRAM: Final = """
import os, signal, sys, time
from pathlib import Path
from tusd_py.supervisor.data_dir_lock import DataDirLock
lock = DataDirLock(Path(sys.argv[1]))
assert lock.take()
child = os.fork()
if child == 0:
    lock.close()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
    os._exit(0)
lock.record([(child, "host:worker")])
print(child, flush=True)
time.sleep(60)
"""


def owner(data_dir: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Return a process that holds the lock, and the pid of its child."""
    process = subprocess.Popen([sys.executable, "-c", OWNER_PROGRAM, data_dir], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as output:
        return process, int(output.readline())


def test_the_child_of_a_killed_owner_is_ended(tmp_path: Path) -> None:
    process, child = owner(tmp_path)
    process.kill()
    process.wait(DEADLINE_SECONDS)
    lock = DataDirLock(tmp_path, left_over_seconds=0.3)

    taken = lock.take()

    assert taken
    assert lock.dead_names == ("host:worker",)
    wait_until(lambda: not is_alive(child), deadline=DEADLINE_SECONDS, what="the child is dead")
    lock.close()


def test_the_lock_of_a_live_owner_is_not_taken(tmp_path: Path) -> None:
    process, child = owner(tmp_path)

    taken = DataDirLock(tmp_path).take()

    assert not taken
    assert is_alive(child)
    for pid in (process.pid, child):
        os.kill(pid, signal.SIGKILL)
    process.wait(DEADLINE_SECONDS)


def test_a_process_that_only_has_the_recorded_pid_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        identity = ProcessIdentity.of(stranger.pid)
        assert identity is not None
        (tmp_path / "serve.lock").write_text(f"{stranger.pid} {identity.start_ticks - 1}\nrubbish\n\n")
        lock = DataDirLock(tmp_path)

        taken = lock.take()

        assert taken
        assert stranger.poll() is None
        stranger.kill()
        lock.close()


def test_without_the_lock_nothing_is_recorded(tmp_path: Path) -> None:
    first, second = DataDirLock(tmp_path), DataDirLock(tmp_path)
    assert first.take()
    first.record([])
    assert not second.take()

    second.record([(1, "init")])

    assert (tmp_path / "serve.lock").read_text() == f"{ProcessIdentity.of(os.getpid())} \n"
    first.close()


def test_a_planted_link_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "serve.lock").symlink_to(tmp_path / "target")

    with pytest.raises(ConfigError, match=r"data_dir: .*serve\.lock"):
        DataDirLock(tmp_path).take()

    assert (tmp_path / "target").read_text() == "precious"
