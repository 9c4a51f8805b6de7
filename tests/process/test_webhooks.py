"""Webhooks of the real server, to receivers that verify; and what they get when its processes are killed."""

from __future__ import annotations

import itertools
import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from tests.support.blocking_client import request
from tests.support.process import wait_until
from tests.support.server import Server, StartServer
from tests.support.webhook_receiver import SECRET, WebhookReceiver
from tusd_py.webhooks import WebhookEvent

pytestmark = pytest.mark.acceptance

SOON = 40
OCTETS = {"Content-Type": "application/offset+octet-stream"}
LIFE = ["created", "completed", "transferring", "stored", "terminated", "removed"]
CONTENT = b"0123456789"
# A successor takes over from a killed worker in seconds instead of minutes.
IMPATIENT = {"lease": "2s", "poll_interval": "1s", "retry_delay": "1s"}


class StrictReceiver(WebhookReceiver):
    """Verifies with another implementation of Standard Webhooks as well."""

    def _receive(self, body: bytes, headers: dict[str, str]) -> int:
        Webhook(SECRET).verify(body, headers)
        return super()._receive(body, headers)

    def events_of(self, upload_id: str) -> list[WebhookEvent]:
        return [event for event in [*self.events] if event.subject == upload_id]


@pytest.fixture
def receiver() -> Iterator[StrictReceiver]:
    with StrictReceiver() as running:
        yield running


def create(server: Server) -> tuple[str, str]:
    """Return the path of the tus URL and the public id."""
    created = request(server.port, "POST", "/files/", {"Upload-Length": str(len(CONTENT))})
    assert created.status == 201, created
    return created.headers["location"], created.headers["upload-id"]


def append(server: Server, path: str, offset: int, body: bytes) -> None:
    reply = request(server.port, "PATCH", path, {**OCTETS, "Upload-Offset": str(offset)}, body)
    assert reply.status == 204, reply


def terminate(server: Server, path: str) -> None:
    assert request(server.port, "DELETE", path).status == 204


def test_whole_life_of_an_upload_arrives_in_order_and_verified(
    start_server: StartServer, receiver: StrictReceiver
) -> None:
    server = start_server({"webhooks": [receiver.config]})
    path, upload_id = create(server)
    append(server, path, 0, CONTENT)
    server.wait_for_state(upload_id, "stored")
    terminate(server, path)

    receiver.wait_for(upload_id, LIFE, deadline=SOON)
    events = receiver.events_of(upload_id)
    assert [event.sequence for event in events] == [f"{number:020}" for number in range(1, 7)]
    assert len({event.id for event in events}) == 6
    assert {event.source for event in events} == {events[0].source}
    assert events[0].source.startswith("urn:tusd_py:")
    assert [event.data.offset for event in events] == [0, *[len(CONTENT)] * 5]
    assert [event.data.state for event in events] == [
        "created", "completed", "transferring", "stored", "removing", "removed",
    ]  # fmt: skip
    location = events[3].data.location
    assert location == {
        "backend": "filesystem",
        "directory": str(server.store),
        "key": json.loads(receiver.bodies[3])["data"]["object_key"],
    }
    assert sorted(event.time for event in events) == [event.time for event in events]
    token = path.rpartition("/")[2]
    assert not any(token.encode() in body for body in receiver.bodies)
    metrics = server.metrics()
    assert metrics['tusd_py_deliveries_total{endpoint="app",outcome="delivered"}'] == 6
    assert metrics['tusd_py_deliveries_waiting{endpoint="app"}'] == 0


@pytest.mark.parametrize("form", ["cloudevents", "tusd"])
def test_progress_reaches_who_names_it_and_nothing_of_it_is_recorded(start_server: StartServer, form: str) -> None:
    bodies: list[dict[str, Any]] = []

    class Collector(WebhookReceiver):
        def _receive(self, body: bytes, headers: dict[str, str]) -> int:
            Webhook(SECRET).verify(body, headers)
            bodies.append(json.loads(body))
            return 204

    with Collector() as receiver:
        webhook = {**receiver.config, "events": ["upload.progress", "upload.terminated"], "format": form}
        server = start_server({"webhooks": [webhook], "events": {"progress_interval": "100ms"}})
        path, upload_id = create(server)
        append(server, path, 0, CONTENT[:4])
        wait_until(lambda: bodies, deadline=SOON, what="progress is told of")
        terminate(server, path)
        wait_until(lambda: len(bodies) == 2, deadline=SOON, what="the end is told of")

    if form == "tusd":
        assert [body["Type"] for body in bodies] == ["post-receive", "post-terminate"]
        upload = bodies[0]["Event"]["Upload"]
        assert (upload["ID"], upload["Offset"], upload["Size"]) == (upload_id, 4, len(CONTENT))
    else:
        assert [body["type"] for body in bodies] == ["tusd_py.upload.progress", "tusd_py.upload.terminated"]
        assert (bodies[0]["subject"], bodies[0]["data"]["offset"]) == (upload_id, 4)
        assert "sequence" not in bodies[0]
        # The second one: created came before, and progress does not count.
        assert int(bodies[1]["sequence"]) == 2


def test_programs_and_receivers_of_tusd_are_told_in_its_format(start_server: StartServer, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("post-create", "post-finish", "post-terminate"):
        program = hooks / name
        program.write_text(
            f'#!/bin/sh\ncat > "{tmp_path}/$TUS_ID.part" && mv "{tmp_path}/$TUS_ID.part" "{tmp_path}/$TUS_ID.{name}"\n'
        )
        program.chmod(stat.S_IRWXU)
    server = start_server({"hooks": {"file": str(hooks)}})
    path, upload_id = create(server)
    append(server, path, 0, CONTENT)
    server.wait_for_state(upload_id, "stored")
    terminate(server, path)

    def document(name: str) -> dict[str, Any]:
        file = tmp_path / f"{upload_id}.{name}"
        wait_until(file.exists, deadline=SOON, what=f"{name} has been run")
        found: dict[str, Any] = json.loads(file.read_text())
        assert path.rpartition("/")[2] not in file.read_text()
        return found

    finish = document("post-finish")
    assert finish["Type"] == "post-finish"
    assert finish["Event"]["Upload"]["ID"] == upload_id
    assert Path(finish["Event"]["Upload"]["Storage"]["Path"]).is_relative_to(server.store)
    assert document("post-create")["Event"]["Upload"]["Size"] == len(CONTENT)
    assert document("post-terminate")["Type"] == "post-terminate"


def test_receivers_of_tusd_are_told_of_the_request_and_of_no_credential(start_server: StartServer) -> None:
    bodies: dict[str, list[bytes]] = {"tusd": [], "cloudevents": []}

    class Collector(WebhookReceiver):
        def _receive(self, body: bytes, headers: dict[str, str]) -> int:
            Webhook(SECRET).verify(body, headers)
            bodies["tusd" if b'"HTTPRequest"' in body else "cloudevents"].append(body)
            return 204

    with Collector() as receiver:
        webhooks = [
            {**receiver.config, "name": form, "format": form, "events": ["upload.created", "upload.terminated"]}
            for form in bodies
        ]
        server = start_server(
            {"webhooks": webhooks, "hooks": {"forward_headers": ["X-Project", "Authorization", "Cookie"]}}
        )
        sent = {"x-PROJECT": "seven", "X-Other": "secret", "Authorization": "Bearer secret", "Cookie": "a=secret"}
        path = request(server.port, "POST", "/files/?a=b", {"Upload-Length": "5", **sent}).headers["location"]
        deleted = request(server.port, "DELETE", path, sent)
        assert deleted.status == 204
        wait_until(lambda: [*map(len, bodies.values())] == [2, 2], deadline=SOON, what="both were told twice")

    created, terminated = [json.loads(body)["Event"]["HTTPRequest"] for body in bodies["tusd"]]
    assert created | {"RemoteAddr": ""} == {
        "Method": "POST", "URI": "/files/?a=b", "RemoteAddr": "", "Header": {"X-Project": ["seven"]},
    }  # fmt: skip
    assert created["RemoteAddr"].startswith("127.0.0.1:")
    token = path.rpartition("/")[2]
    assert (terminated["Method"], terminated["Header"]) == ("DELETE", {"X-Project": ["seven"]})
    assert terminated["URI"].startswith("/files/")
    everything = b"".join(itertools.chain(*bodies.values()))
    assert token.encode() not in everything
    assert b"secret" not in everything
    assert b"seven" not in b"".join(bodies["cloudevents"])


def test_endpoint_that_is_configured_no_more_gets_nothing(start_server: StartServer, receiver: StrictReceiver) -> None:
    server = start_server({"webhooks": [receiver.config]})
    _, upload_id = create(server)
    receiver.wait_for(upload_id, ["created"], deadline=SOON)
    server.terminate()
    file = server.data_dir.parent / "config.toml"
    file.write_text(file.read_text().partition("[[webhooks]]")[0])
    server.restart()

    path, later = create(server)
    append(server, path, 0, CONTENT)
    server.wait_for_state(later, "stored")

    assert receiver.kinds_of(later) == []
    assert "tusd_py_deliveries_waiting" not in "".join(name for name, value in server.metrics().items() if value)


# --- kill -9 ---------------------------------------------------------------------------------------


def kill(server: Server, victim: str) -> None:
    """Kill one process, and wait until the server is whole again."""
    ready = server.ready
    if victim == "supervisor":
        server.kill_supervisor()
        server.wait_gone()
        server.restart()
        return
    pids = ready.http_pids if victim == "http" else ready.worker_pids
    os.kill(pids[0], signal.SIGKILL)
    server.wait_replaced(pids[0])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", ["supervisor", "http", "worker"])
def test_each_event_arrives_in_order_whoever_is_killed_between_two_steps(
    start_server: StartServer, receiver: StrictReceiver, victim: str
) -> None:
    server = start_server({"webhooks": [receiver.config], "transfer": IMPATIENT})
    uploads = [create(server) for _ in range(4)]
    steps: list[Callable[[str, str], object]] = [
        lambda path, _: append(server, path, 0, CONTENT[:4]),
        lambda path, _: append(server, path, 4, CONTENT[4:]),
        lambda _, upload_id: server.wait_for_state(upload_id, "stored", deadline=SOON),
        lambda path, _: terminate(server, path),
    ]

    kill(server, victim)
    for step in steps:
        for path, upload_id in uploads:
            step(path, upload_id)
        kill(server, victim)

    def arrived() -> bool:
        return all({*receiver.kinds_of(upload_id)} == {*LIFE} for _, upload_id in uploads)

    wait_until(arrived, deadline=SOON, what="every event has arrived")
    for _, upload_id in uploads:
        events = receiver.events_of(upload_id)
        sequences = [int(event.sequence or 0) for event in events]
        # At least once, in order: never one before the one that precedes it.
        assert sorted(set(sequences)) == [1, 2, 3, 4, 5, 6]
        assert all(later <= earlier + 1 for earlier, later in itertools.pairwise([0, *sequences]))
        assert len({(event.id, event.sequence) for event in events}) == 6
        assert len({event.id for event in events}) == 6
        assert list(dict.fromkeys(receiver.kinds_of(upload_id))) == LIFE


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_worker_that_is_killed_while_an_event_is_on_its_way_is_followed_by_another(
    start_server: StartServer, receiver: StrictReceiver
) -> None:
    server = start_server({"webhooks": [receiver.config], "transfer": IMPATIENT})
    uploads = []
    for _ in range(6):
        # No pause: what the worker is doing when it dies differs each time.
        uploads += [create(server) for _ in range(5)]
        for path, _ in uploads[-5:]:
            append(server, path, 0, CONTENT)
        (pid,) = server.ready.worker_pids
        os.kill(pid, signal.SIGKILL)
        server.wait_replaced(pid)

    stored = LIFE[:4]
    wait_until(
        lambda: all({*receiver.kinds_of(upload_id)} == {*stored} for _, upload_id in uploads),
        deadline=SOON,
        what="every event has arrived",
    )
    for _, upload_id in uploads:
        events = receiver.events_of(upload_id)
        assert list(dict.fromkeys(receiver.kinds_of(upload_id))) == stored
        assert len({event.id for event in events}) == 4
        sequences = [int(event.sequence or 0) for event in events]
        assert all(later <= earlier + 1 for earlier, later in itertools.pairwise([0, *sequences]))
