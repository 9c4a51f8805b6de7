"""Fixtures of the acceptance tests: the real process, ended after each test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.server import Config, Server, StartServer

LOG_TAIL_LINES = 200


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Start servers that end with the test; the log of each is shown if the test fails."""
    servers: list[Server] = []

    def start(config: Config | None = None, *, env: Mapping[str, str] | None = None) -> Server:
        server = Server(tmp_path / f"server-{len(servers)}", config, env=env)
        servers.append(server)
        server.start()
        return server

    yield start

    for server in servers:
        # The polling of wait_for_state would bury everything else.
        lines = [line for line in server.log_text().splitlines() if '"path":"/api/v1/uploads/' not in line]
        print(f"--- {server.child.log} ---", *lines[-LOG_TAIL_LINES:], sep="\n")
    with contextlib.ExitStack() as ending:
        for server in servers:
            ending.callback(server.close)
