"""Who is alive: real processes, at the moments at which the kernel's answer is ambiguous."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.support.process import wait_until
from tusd_py.process_identity import ProcessIdentity, end

DEADLINE_SECONDS: Final = 30

# The first thread ends and leaves a zombie, as long as the second one sleeps.
ZOMBIE_LEADER: Final = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print(flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_process_whose_first_thread_has_ended_is_alive_until_the_last_one_has() -> None:
    with subprocess.Popen([sys.executable, "-c", ZOMBIE_LEADER], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        wait_until(lambda: state_of(process.pid) == "Z", deadline=DEADLINE_SECONDS, what="the first thread has ended")
        identity = ProcessIdentity.of(process.pid)

        assert identity is not None
        end([identity], signal.SIGKILL, 10)
        assert not identity.alive


def test_a_zombie_that_nobody_has_reaped_is_dead() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    wait_until(lambda: state_of(pid) == "Z", deadline=DEADLINE_SECONDS, what="it has ended")

    assert ProcessIdentity.of(pid) is None
    os.waitpid(pid, 0)


def test_what_does_not_listen_is_killed() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        identity = ProcessIdentity.of(process.pid)
        assert identity is not None

        end([identity], signal.SIGTERM, 0.2)

        assert process.wait(DEADLINE_SECONDS) == -signal.SIGKILL


def test_another_process_with_the_same_pid_is_not_touched() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        identity = ProcessIdentity.of(process.pid)
        assert identity is not None
        earlier = ProcessIdentity(process.pid, identity.start_ticks - 1)

        earlier.send(signal.SIGKILL)

        assert not earlier.alive
        assert identity.alive
        process.kill()


def test_what_was_written_is_read_back() -> None:
    identity = ProcessIdentity.of(os.getpid())

    assert identity is not None
    assert ProcessIdentity.parse(str(identity)) == identity
    assert [ProcessIdentity.parse(text) for text in ("", "1", "1 2 3", "a b", "-1 2", "1 ²")] == [None] * 6
