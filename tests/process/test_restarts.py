"""A server that is killed and started again at once: the next start waits for nothing and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.support.process import is_alive
from tests.support.server import Server, StartServer
from tests.support.tools import ROOT

pytestmark = pytest.mark.acceptance

ROUNDS = 8
READY_SECONDS = 60
"""On a busy machine. Before leftovers were ended, a start gave up after two minutes."""


@pytest.mark.timeout(600)
def test_killed_servers_do_not_hold_up_the_next_start() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "restart_rounds.py"), "--rounds", str(ROUNDS)]

    result = subprocess.run(
        [*command, "--ready-within", str(READY_SECONDS)], capture_output=True, text=True, timeout=580
    )

    assert result.returncode == 0, result.stdout + result.stderr


def test_a_child_that_outlives_its_supervisor_is_ended_by_the_next_start(start_server: StartServer) -> None:
    server = start_server()
    # Stopped, they cannot act on the signal of their supervisor's death, and keep the ports.
    children = [*server.ready.http_pids, *server.ready.worker_pids]
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    server.kill_supervisor()

    server.restart(READY_SECONDS)

    assert not any(map(is_alive, children))
    assert "children_left_over" in server.log_text()


def test_a_second_server_on_one_data_directory_is_warned(start_server: StartServer) -> None:
    first = start_server()

    with Server(first.data_dir.parent / "second", data_dir=first.data_dir) as second:
        assert "data_dir_in_use" in second.log_text()
    assert "data_dir_in_use" not in first.log_text()
