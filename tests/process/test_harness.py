"""The instruments themselves: the proxy cuts at the byte it was told, and counts right."""

from __future__ import annotations

import random
import signal
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.blocking_client import BlockingConnection
from tests.support.cutting_proxy import Cut, CuttingProxy, DropReply, Fault, How, Stall
from tests.support.ports import LOOPBACK
from tests.support.process import Child, is_alive, wait_until
from tests.support.server import to_toml
from tests.support.tools import require_tool

pytestmark = pytest.mark.acceptance

ANSWER = b"HTTP/1.1 204 No Content\r\nUpload-Offset: 7\r\n\r\n"


class Sink(socketserver.ThreadingTCPServer):
    """Notes what each connection sent, and answers every request whose end it sees."""

    daemon_threads = True

    def __init__(self) -> None:
        self.received: list[bytearray] = []
        super().__init__((LOOPBACK, 0), SinkConnection)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])


class SinkConnection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Sink)
        received = bytearray()
        self.server.received.append(received)
        try:
            while data := self.request.recv(65536):
                received += data
                if received.endswith(b"END"):
                    self.request.sendall(ANSWER)
        except ConnectionError:
            return


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def _send(connection: BlockingConnection, body: bytes, *, chunk: int | None = None) -> None:
    framing = {"Transfer-Encoding": "chunked"} if chunk else {"Content-Length": str(len(body))}
    connection.send_head("PATCH", "/files/x", framing)
    if chunk:
        pieces = (body[start : start + chunk] for start in range(0, len(body), chunk))
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    connection.send(body)


@pytest.mark.parametrize("chunk", [None, 1, 777, 100_000])
@pytest.mark.parametrize("how", ["rst", "fin"])
def test_cut_strikes_at_the_byte(chunk: int | None, how: How, sink: Sink) -> None:
    body = random.Random(1).randbytes(5_000)
    with CuttingProxy(sink.port, Cut(1_234, how)) as proxy, BlockingConnection(proxy.port) as client:
        with pytest.raises((ConnectionError, BrokenPipeError)):
            _send(client, body, chunk=chunk)
            client.read_response()
        assert [request.body_bytes for request in proxy.requests] == [1_234]
        wait_until(lambda: _body(sink, chunk) == body[:1_234], deadline=30, what="the sink has what passed")


def test_everything_passes_once_the_faults_have_struck(sink: Sink) -> None:
    faults: list[Fault] = [Cut(100), Cut(50)]
    with CuttingProxy(sink.port, *faults) as proxy:
        for _ in faults:
            with BlockingConnection(proxy.port) as client, pytest.raises(ConnectionError):
                client.request("PATCH", "/files/x", body=bytes(1_000))
        with BlockingConnection(proxy.port) as client:
            answer = client.request("PATCH", "/files/x", {"Upload-Offset": "3"}, bytes(1_000) + b"END")

        assert (answer.status, answer.offset) == (204, 7)
        assert [request.body_bytes for request in proxy.requests] == [100, 50, 1_003]
        assert [request.status for request in proxy.requests] == [None, None, 204]
        assert proxy.requests[-1].offset == 3
        assert proxy.body_bytes == 1_153


def test_drop_reply_delivers_the_request_and_loses_the_answer(sink: Sink) -> None:
    with CuttingProxy(sink.port, DropReply("PATCH")) as proxy:
        with BlockingConnection(proxy.port) as client, pytest.raises(ConnectionError):
            client.request("PATCH", "/files/x", body=b"bytes END")
        assert bytes(sink.received[0]).endswith(b"bytes END")
        assert proxy.requests[0].status is None


def test_stall_holds_the_connection_until_it_is_released(sink: Sink) -> None:
    with CuttingProxy(sink.port, Stall(10)) as proxy, BlockingConnection(proxy.port) as client:
        client.send_head("PATCH", "/files/x", {"Content-Length": "100"})
        client.send(bytes(100))
        proxy.wait_struck()
        wait_until(lambda: _body(sink, None) == bytes(10), deadline=30, what="10 bytes have arrived")
        assert proxy.body_bytes == 10
        with pytest.raises(TimeoutError):
            client.read_to_end(0.05)
        proxy.release()
        assert client.read_to_end(5) == []


def test_a_child_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from tests.support.process import Child\n"
        "child = Child([sys.executable, '-c', 'import time; time.sleep(600)'], log=pathlib.Path(sys.argv[1]))\n"
        "child.start(); print(child.pid, flush=True); sys.stdin.read()"
    )
    with Child([sys.executable, "-c", program, tmp_path / "log"], log=tmp_path / "output") as parent:
        grandchild = int(parent.wait_ready(parent.log_text, deadline=30, what="it has started its child"))
        assert is_alive(grandchild)
        parent.signal(signal.SIGKILL)
        wait_until(lambda: not is_alive(grandchild), deadline=30, what="the grandchild has ended")


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_tool_fails_in_ci_and_skips_elsewhere(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="make it"):
        require_tool("no-such-program", install="make it")


def test_configuration_is_written_as_toml() -> None:
    text = to_toml({"server": {"port": 1, "trusted_proxies": ["a", "b"]}, "storage": {"s3": {"bucket": 'b"'}}})
    assert text.split() == [
        "[server]", "port", "=", "1", "trusted_proxies", "=", '["a",', '"b"]',
        "[storage]", "[storage.s3]", "bucket", "=", '"b\\""',
    ]  # fmt: skip


def _body(sink: Sink, chunk: int | None) -> bytes:
    _head, _end, body = bytes(b"".join(sink.received)).partition(b"\r\n\r\n")
    if chunk is None:
        return body
    joined = b""
    while body:
        size, _end, body = body.partition(b"\r\n")
        joined += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return joined
