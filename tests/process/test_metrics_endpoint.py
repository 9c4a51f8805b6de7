"""/metrics of the real server: one sum over all its processes, and what each of them uses."""

from __future__ import annotations

import os
import re
import signal

import pytest

from tests.support.blocking_client import upload_whole
from tests.support.process import wait_until
from tests.support.server import Server, StartServer
from tusd_py import __version__

pytestmark = pytest.mark.acceptance

SOON = 60
POST_201 = 'tusd_py_requests_total{method="POST",status="201"}'


def processes(server: Server) -> dict[str, float]:
    """Start of each process by its role."""
    found = {
        re.fullmatch(r'process_start_time_seconds\{process="(.*)"\}', name): value
        for name, value in server.metrics().items()
    }
    return {match[1]: value for match, value in found.items() if match}


def test_what_all_processes_counted_adds_up_and_outlives_them(start_server: StartServer) -> None:
    server = start_server({"server": {"processes": 2}, "transfer": {"workers": 2}})
    roles = {"supervisor", "http-1", "http-2", "worker-1", "worker-2", "operations"}
    before = processes(server)
    assert before.keys() == roles
    for _ in range(20):
        upload_whole(server.url, b"0123456789")
    wait_until(
        lambda: server.metrics()['tusd_py_transfers_total{outcome="succeeded"}'] == 20, deadline=SOON, what="all stored"
    )

    victims = (*server.ready.http_pids, *server.ready.worker_pids)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    server.wait_replaced(*victims, deadline=SOON)
    after = processes(server)
    for _ in range(5):
        upload_whole(server.url, b"0123456789")

    wait_until(lambda: server.metrics()[POST_201] == 25, deadline=SOON, what="25 creations are counted")
    figures = server.metrics()
    assert figures["tusd_py_received_bytes_total"] == 250
    assert figures["tusd_py_uploads_created_total"] == figures["tusd_py_uploads_completed_total"] == 25
    assert figures['tusd_py_request_seconds_count{kind="create",method="POST"}'] == 25
    assert figures["tusd_py_bodies_open"] == 0
    assert after.keys() == roles
    assert {role for role in roles if after[role] == before[role]} == {"supervisor", "operations"}


def test_every_process_shows_what_it_uses_and_the_build_is_named(start_server: StartServer) -> None:
    server = start_server()
    figures = server.metrics()

    for name in (
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
    ):
        values = [value for sample, value in figures.items() if sample.startswith(f"{name}{{")]
        assert len(values) == 4
        assert all(value >= 0 for value in values)
    version = [sample for sample, value in figures.items() if sample.startswith("tusd_py_build_info{") and value == 1]
    assert len(version) == 1
    assert f'version="{__version__}"' in version[0]


def test_the_pools_of_all_processes_are_shown(start_server: StartServer) -> None:
    server = start_server({"server": {"processes": 2}, "database": {"pool_size": 5}})
    upload_whole(server.url, b"x")

    wait_until(
        lambda: server.metrics()['tusd_py_database_connections{state="idle"}'] >= 1, deadline=SOON, what="one is idle"
    )
    assert server.metrics()['tusd_py_database_connections{state="busy"}'] >= 0
    assert 10 < server.metrics()["tusd_py_database_connections_limit"] <= 15  # of two HTTP processes and a worker
