"""Many connections driven by one thread and one epoll: each sends its next request once its last is answered."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from client import Answer, Connection, Request, ServerClosedError

STALLED_SECONDS: Final = 60

NextRequest = Callable[[int], Request | None]
"""Returns the next request of the connection of that index; None when it has no more."""

OnAnswer = Callable[[Answer], None]


@dataclass(slots=True)
class Tally:
    """What one run of the loop saw."""

    latencies: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    reconnects: int = 0

    def fail(self, what: str) -> None:
        """Count an answer that was not the expected one."""
        self.failures[what] = self.failures.get(what, 0) + 1


class Loop:
    """Drives several connections until none has a next request."""

    def __init__(self, address: tuple[str, int], connections: int) -> None:
        self.connections = [Connection(address) for _ in range(connections)]
        self._epoll = select.epoll()
        self._index_of: dict[int, int] = {}
        self._tally = Tally()
        for index in range(connections):
            self._register(index)

    def run(self, next_request: NextRequest, on_answer: OnAnswer = lambda _: None) -> Tally:
        """Send each connection's next request as soon as its last is answered; return what was seen."""
        self._tally = Tally()
        busy = sum(self._start(index, next_request) for index in range(len(self.connections)))
        while busy:
            ready = self._epoll.poll(STALLED_SECONDS)
            if not ready:
                raise TimeoutError(f"the server has neither read nor answered for {STALLED_SECONDS} s")
            for descriptor, events in ready:
                index = self._index_of[descriptor]
                if events & ~select.EPOLLOUT:
                    busy -= self._receive(index, on_answer) and not self._start(index, next_request)
                elif self.connections[index].send():
                    self._epoll.modify(descriptor, select.EPOLLIN)
        return self._tally

    def _start(self, index: int, next_request: NextRequest) -> bool:
        """Begin the connection's next request; return False when there is none."""
        request = next_request(index)
        if request is None:
            return False
        connection = self.connections[index]
        connection.begin(request)
        if not connection.send():
            self._epoll.modify(connection.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)
        return True

    def _receive(self, index: int, on_answer: OnAnswer) -> bool:
        """Take in what has arrived; return whether the request under way is over, well or badly."""
        connection = self.connections[index]
        if connection.request is None:
            self._replace(index)  # An idle connection says nothing before it is closed.
            return False
        try:
            answer = connection.receive()
        except ServerClosedError:
            self._tally.fail("closed without an answer")
            connection.request = None
            self._replace(index)
            return True
        if answer is None:
            return False
        self._count(connection, connection.request, answer)
        on_answer(answer)
        if connection.is_sending or b"\r\nconnection: close\r" in answer.lowered:
            self._replace(index)
        connection.request = None
        return True

    def _count(self, connection: Connection, request: Request, answer: Answer) -> None:
        """Record the latency of a good answer, or what a bad one was."""
        if request.is_answered_by(answer):
            self._tally.latencies.append(time.perf_counter() - connection.started)
        else:
            self._tally.fail(answer.status_line)

    def _register(self, index: int) -> None:
        descriptor = self.connections[index].socket.fileno()
        self._index_of[descriptor] = index
        self._epoll.register(descriptor, select.EPOLLIN)

    def _replace(self, index: int) -> None:
        """Give a connection a fresh socket."""
        old = self.connections[index].socket.fileno()
        self._epoll.unregister(old)
        del self._index_of[old]
        self.connections[index].reconnect()
        self._register(index)
        self._tally.reconnects += 1
