"""The newest request wins: what an interrupted one has sent is kept, whatever interrupted it."""

from __future__ import annotations

import contextlib
import hashlib
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.support.blocking_client import OCTETS, BlockingConnection, create, request
from tests.support.files import download, seeded
from tests.support.process import is_alive, wait_until
from tests.support.server import Server, StartServer

pytestmark = pytest.mark.acceptance

KIB, MIB = 2**10, 2**20
LENGTH = 2 * MIB
SENT = 300_001
WAITS_AT_START = ("children_left_over", "embedded_postgres_left_over", "embedded_postgres_orphans")
"""What the log says of a start that must first end, or wait for, something of an earlier server."""
TAKE_OVER_SECONDS = 30.0
"""Half of `limits.idle_timeout`, after which a body on which nothing comes would end by itself."""
STOP_SECONDS = 30.0
PATIENT = {"server": {"shutdown_timeout": 2 * STOP_SECONDS}}
"""Whoever waited for its clients would take twice as long to stop as the tests wait."""
LOSER_STATUSES = {409, 423, 503}  # anything else would be fatal to a client that is alive


def test_head_takes_over_from_a_stalled_patch(start_server: StartServer) -> None:
    server = start_server()
    content = seeded("take-over").randbytes(LENGTH)
    created = create(server.port, LENGTH)
    target = created.headers["location"]

    with BlockingConnection(server.port) as holder, BlockingConnection(server.port) as newcomer:
        holder.begin_patch(target, offset=0, length=LENGTH)
        holder.send(content[:SENT])
        _assert_takes_over(newcomer, holder, target, SENT)

    _finish(server, target, created.headers["upload-id"], SENT, content)


def test_head_takes_over_from_another_process(start_server: StartServer) -> None:
    server = start_server({"server": {"processes": 2}})
    assert len(server.ready.http_pids) == 2
    content = seeded("take-over").randbytes(LENGTH)
    created = create(server.port, LENGTH)
    target = created.headers["location"]

    with BlockingConnection(server.port) as holder:
        holder.begin_patch(target, offset=0, length=LENGTH)
        holder.send(content[:SENT])
        with _connection_to_another(server, holder) as newcomer:
            _assert_takes_over(newcomer, holder, target, SENT)

    _finish(server, target, created.headers["upload-id"], SENT, content)


@pytest.mark.timeout(150)
def test_heads_amid_appends_of_another_process_never_fail(start_server: StartServer) -> None:
    """A 500 would make a client begin again at byte 0. Each side's connections end up in both processes."""
    server = start_server({"server": {"processes": 2}, "transfer": {"trigger": "manual"}})
    content = seeded("heads").randbytes(LENGTH)
    target = create(server.port, LENGTH).headers["location"]
    heads: Counter[int] = Counter()
    acknowledged = 0
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            least = acknowledged
            with contextlib.suppress(ConnectionError):
                head = request(server.port, "HEAD", target)
                heads[head.status] += 1
                assert head.status == 423 or head.offset >= least

    with ThreadPoolExecutor(2) as threads:
        asking = [threads.submit(ask) for _ in range(2)]
        try:
            end = time.monotonic() + 40
            while acknowledged < LENGTH and heads.total() < 400 and time.monotonic() < end:
                piece, here = content[acknowledged : acknowledged + 4 * KIB], {"Upload-Offset": str(acknowledged)}
                with contextlib.suppress(ConnectionError):
                    answer = request(server.port, "PATCH", target, {**OCTETS, **here}, piece)
                    assert answer.status in {204, *LOSER_STATUSES}
                    if answer.status == 204:
                        acknowledged = answer.offset
                        continue
                head = request(server.port, "HEAD", target)
                heads[head.status] += 1
                if head.status == 200:
                    acknowledged = head.offset
        finally:
            over.set()
        for each in asking:
            each.result()

    print(heads)
    assert heads[200] > 20
    assert set(heads) <= {200, 423}
    staged = next(path for path in server.staging.rglob("*-*-*") if path.is_file())
    assert staged.read_bytes()[:acknowledged] == content[:acknowledged]


def test_patch_takes_over_from_a_stalled_patch(start_server: StartServer) -> None:
    """As when a browser repeats a request on a new connection: its bytes are stored, or it gets 409."""
    server = start_server()
    content = seeded("take-over").randbytes(LENGTH)
    created = create(server.port, LENGTH)
    target = created.headers["location"]

    with BlockingConnection(server.port) as holder:
        holder.begin_patch(target, offset=0, length=LENGTH)
        holder.send(content[:SENT])
        began = time.monotonic()
        refused = request(server.port, "PATCH", target, {**OCTETS, "Upload-Offset": "0"}, content[: 64 * KIB])

        assert (refused.status, refused.offset) == (409, SENT)
        assert time.monotonic() - began < TAKE_OVER_SECONDS
        assert all(last.status in LOSER_STATUSES for last in holder.read_to_end(TAKE_OVER_SECONDS))

    _finish(server, target, created.headers["upload-id"], SENT, content)


def test_delete_takes_over_from_a_stalled_patch(start_server: StartServer) -> None:
    server = start_server()
    target = create(server.port, LENGTH).headers["location"]

    with BlockingConnection(server.port) as holder:
        holder.begin_patch(target, offset=0, length=LENGTH)
        holder.send(bytes(SENT))
        began = time.monotonic()

        assert request(server.port, "DELETE", target).status == 204
        assert time.monotonic() - began < TAKE_OVER_SECONDS
        holder.read_to_end(TAKE_OVER_SECONDS)

    assert request(server.port, "HEAD", target).status == 404


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_during_a_patch_keeps_its_bytes(processes: int, start_server: StartServer) -> None:
    server = start_server({"server": {"processes": processes, **PATIENT["server"]}})
    content = seeded("sigterm").randbytes(8 * MIB)
    created = create(server.port, len(content))
    target = created.headers["location"]
    sent = 5 * MIB + 321

    with BlockingConnection(server.port) as holder:
        holder.begin_patch(target, offset=0, length=len(content))
        holder.send(content[:sent])
        server.child.signal(signal.SIGTERM)
        answers = holder.read_to_end(STOP_SECONDS)
        assert server.child.wait(STOP_SECONDS) == 0

    assert [answer.status for answer in answers] in ([], [503])
    assert all(answer.offset == sent for answer in answers)
    server.restart()
    assert request(server.port, "HEAD", target).offset == sent
    _finish(server, target, created.headers["upload-id"], sent, content)


def test_sigterm_lets_a_flowing_patch_end_or_keeps_what_it_sent(start_server: StartServer) -> None:
    """The bytes are on the wire while the signal arrives; none that was taken may be lost."""
    server = start_server(PATIENT)
    content = seeded("sigterm").randbytes(8 * MIB)
    created = create(server.port, len(content))
    target = created.headers["location"]

    with BlockingConnection(server.port) as holder:
        holder.begin_patch(target, offset=0, length=len(content))
        holder.send(content[: 2 * MIB])
        server.child.signal(signal.SIGTERM)
        _send_what_is_taken(holder, content[2 * MIB :])
        answers = holder.read_to_end(STOP_SECONDS)
        assert server.child.wait(STOP_SECONDS) == 0

    server.restart()
    offset = request(server.port, "HEAD", target).offset
    assert offset >= 2 * MIB
    assert all(answer.offset == offset for answer in answers)
    _finish(server, target, created.headers["upload-id"], offset, content)


def test_kill_of_the_supervisor_leaves_nothing_behind(start_server: StartServer) -> None:
    server = start_server({"server": {"processes": 4}, "transfer": {"workers": 4}})
    created = create(server.port, LENGTH)
    target = created.headers["location"]
    content = random.Random(1).randbytes(LENGTH)
    assert request(server.port, "PATCH", target, {**OCTETS, "Upload-Offset": "0"}, content[:SENT]).offset == SENT
    family = {child.pid for child in psutil.Process(server.child.pid).children(recursive=True)}
    postmasters = server.postmaster_pids()
    assert postmasters
    assert family >= {*server.ready.http_pids, *server.ready.worker_pids}

    server.kill_supervisor()

    left = family | set(postmasters)
    wait_until(lambda: not any(map(is_alive, left)), deadline=30, what=f"all of {left} have ended")
    server.wait_gone(30)
    before = len(server.log_text())
    server.restart()
    log = server.log_text()[before:]
    assert '"event":"ready"' in log
    assert not [event for event in WAITS_AT_START if event in log], log
    assert request(server.port, "HEAD", target).offset == SENT
    _finish(server, target, created.headers["upload-id"], SENT, content)
    assert server.terminate() == 0
    assert not server.postmaster_pids()


def _assert_takes_over(newcomer: BlockingConnection, holder: BlockingConnection, target: str, sent: int) -> None:
    began = time.monotonic()
    head = newcomer.request("HEAD", target)
    assert time.monotonic() - began < TAKE_OVER_SECONDS
    assert (head.status, head.offset) == (200, sent)
    assert all(last.status in LOSER_STATUSES for last in holder.read_to_end(TAKE_OVER_SECONDS))


def _connection_to_another(server: Server, holder: BlockingConnection) -> BlockingConnection:
    """A connection to the process that does not hold; the kernel deals them out at random."""
    pids = server.ready.http_pids
    holding = holder.owner(pids)
    for _ in range(100):
        newcomer = BlockingConnection(server.port)
        if newcomer.owner(pids) != holding:
            return newcomer
        newcomer.close()
    raise AssertionError(f"100 connections all went to process {holding}")


def _send_what_is_taken(connection: BlockingConnection, data: bytes) -> None:
    try:
        connection.send(data)
    except (OSError, AssertionError):
        return  # the server takes no more: the rest is sent after its restart


def _finish(server: Server, target: str, upload_id: str, offset: int, content: bytes) -> None:
    """The offset that HEAD named is good for the next PATCH, and the file is whole."""
    if offset < len(content):
        appended = request(server.port, "PATCH", target, {**OCTETS, "Upload-Offset": str(offset)}, content[offset:])
        assert (appended.status, appended.offset) == (204, len(content))
    server.wait_for_state(upload_id, "stored")
    got = download(f"{server.origin}/download/{upload_id}")
    assert got.length == len(content)
    assert got.sha256 == hashlib.sha256(content).hexdigest()
