"""`tusd-py events` beside a running server with its embedded database, and a receiver that can be reached or not."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.process.test_reconcile_command import sql
from tests.support.blocking_client import upload_whole
from tests.support.process import wait_until
from tests.support.server import Server, StartServer, tusd_py
from tests.support.webhook_receiver import WebhookReceiver

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.timeout(180)]

ALL = ["created", "completed", "transferring", "stored"]


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as running:
        yield running


def config(receiver: WebhookReceiver, **webhook: Any) -> dict[str, Any]:
    return {"webhooks": [{**receiver.config, **webhook}]}


def events(server: Server, action: str, *options: str) -> subprocess.CompletedProcess[str]:
    where = ("--config", str(server.data_dir.parent / "config.toml"), "--data-dir", str(server.data_dir))
    return tusd_py("events", action, *where, *options)


def printed(server: Server, action: str, *options: str) -> list[str]:
    done = events(server, action, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def as_json(server: Server, action: str, *options: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed(server, action, "--json", *options)]


def stored(server: Server) -> str:
    _, upload_id = upload_whole(server.url, b"hello")
    server.wait_for_state(upload_id, "stored")
    return upload_id


def refusal(server: Server, action: str, *options: str) -> str:
    """Return the one line of a command that failed."""
    done = events(server, action, *options)
    assert (done.returncode, done.stdout) == (1, ""), done
    (line,) = done.stderr.splitlines()
    return line


# --- dead letters ----------------------------------------------------------------------------------


def test_dead_letters_are_listed_and_replayed_in_order(start_server: StartServer, receiver: WebhookReceiver) -> None:
    receiver.status = 503
    server = start_server(config(receiver))
    upload_id = stored(server)
    assert printed(server, "dead") == ["there are no dead letters"]

    sql(server, "UPDATE events SET created_at = now() - interval '4 days'")
    sql(server, "UPDATE jobs SET due_at = now() WHERE kind = 'deliver'")
    gauge = 'tusd_py_dead_letters{endpoint="app"}'
    wait_until(lambda: server.metrics()[gauge] == len(ALL), deadline=40, what="every event is a dead letter")
    letters = as_json(server, "dead", "--endpoint", "app")
    assert {each["upload_id"] for each in letters} == {upload_id}
    assert sorted(each["sequence"] for each in letters) == [1, 2, 3, 4]
    assert {each["error"] for each in letters} == {"the endpoint replied 503"}
    header, *lines, what_to_do = printed(server, "dead")
    assert header.split() == ["GIVEN", "UP", "ENDPOINT", "UPLOAD", "KIND", "EVENT", "ERROR"]
    assert {line[header.index("ERROR") :] for line in lines} == {"the endpoint replied 503"}
    assert "events replay --endpoint NAME --dead" in what_to_do
    limited = printed(server, "dead", "--limit", "1")
    assert len(limited) == 4
    assert "--limit" in limited[2]
    (endpoint,) = as_json(server, "endpoints")
    assert (endpoint["name"], endpoint["waiting"], endpoint["dead_letters"]) == ("app", 0, 4)

    receiver.status = 204
    assert printed(server, "replay", "--endpoint", "app", "--dead") == ["events of 1 upload are sent to app again"]
    receiver.wait_for(upload_id, ALL)
    assert [event.id for event in receiver.events] == [
        each["event_id"] for each in sorted(letters, key=lambda each: int(each["sequence"]))
    ]
    assert printed(server, "dead") == ["there are no dead letters"]
    assert printed(server, "replay", "--endpoint", "app", "--dead") == ["there is nothing to send again"]


# --- replay ----------------------------------------------------------------------------------------


def test_events_are_sent_again_by_id_and_since_a_time(start_server: StartServer, receiver: WebhookReceiver) -> None:
    server = start_server(config(receiver))
    upload_id = stored(server)
    receiver.wait_for(upload_id, ALL)
    ids = [event.id for event in receiver.events]

    printed(server, "replay", "--endpoint", "app", ids[2], ids[1])
    receiver.wait_for(upload_id, [*ALL, "completed", "transferring"])
    assert [event.id for event in receiver.events[4:]] == ids[1:3]

    sql(server, "UPDATE events SET created_at = '2026-03-01T12:00:00Z' WHERE sequence < 4")
    sql(server, "UPDATE events SET created_at = '2026-03-01T12:00:01Z' WHERE sequence = 4")
    receiver.events.clear()
    # Without a zone it is UTC, and 13:00:01+01:00 is the same moment.
    for since in ("2026-03-01T12:00:01", "2026-03-01 13:00:01+01:00"):
        printed(server, "replay", "--endpoint", "app", "--since", since)
        receiver.wait_for(upload_id, ["stored"])
        receiver.events.clear()
    nothing = printed(server, "replay", "--endpoint", "app", "--since", "2026-03-01T12:00:02Z")
    assert nothing == ["there is nothing to send again"]


def test_what_is_unknown_is_refused_and_changes_nothing(start_server: StartServer, receiver: WebhookReceiver) -> None:
    server = start_server(config(receiver, events=["upload.completed", "upload.stored"]))
    upload_id = stored(server)
    receiver.wait_for(upload_id, ["completed", "stored"])
    created, completed, *_ = as_json(server, "list", "--upload", upload_id)
    unknown = str(uuid.uuid4())

    for action, *rest in (("replay", "--dead", "--endpoint"), ("resume",), ("dead", "--endpoint")):
        assert "There is no endpoint 'nobody'. Known: app." in refusal(server, action, *rest, "nobody")
    assert "There is no webhook 'nobody' in the configuration" in refusal(server, "test", "nobody")
    assert f"There is no event {unknown}" in refusal(server, "replay", "--endpoint", "app", completed["id"], unknown)
    assert f"app is not told of {created['id']} (upload.created)" in refusal(
        server, "replay", "--endpoint", "app", completed["id"], created["id"]
    )
    assert f"There is no upload {unknown}" in refusal(server, "list", "--upload", unknown)
    # Had one of them been queued, it would have come before what is sent now.
    printed(server, "replay", "--endpoint", "app", completed["id"])
    receiver.wait_for(upload_id, ["completed", "stored", "completed"])
    (endpoint,) = as_json(server, "endpoints")
    assert (endpoint["waiting"], endpoint["kinds"]) == (0, ["upload.completed", "upload.stored"])


# --- a paused endpoint -----------------------------------------------------------------------------


def test_an_endpoint_that_is_gone_is_paused_and_resumed(start_server: StartServer, receiver: WebhookReceiver) -> None:
    receiver.status = 410
    server = start_server(config(receiver))
    first = stored(server)
    gauge = 'tusd_py_endpoint_paused{endpoint="app"}'
    wait_until(lambda: server.metrics()[gauge] == 1, deadline=30, what="the endpoint is paused")
    second = stored(server)
    assert receiver.refused == 1
    (endpoint,) = as_json(server, "endpoints")
    assert (endpoint["waiting"], endpoint["error"]) == (2, "the endpoint replied 410")
    header, line, what_to_do = printed(server, "endpoints")
    assert header.split() == ["NAME", "STATE", "WAITING", "OLDEST", "DEAD", "PROFILES", "EVENTS"]
    assert line.startswith("app   paused 20")
    assert what_to_do == "app: the endpoint replied 410; once that is mended: tusd-py events resume app"

    receiver.status = 204
    waits = printed(server, "replay", "--endpoint", "app", "--since", "2026-01-01")
    assert waits[-1].startswith("they wait, since app is paused (the endpoint replied 410)")
    assert printed(server, "resume", "app") == ["app is resumed", "what waits for it is sent within a minute"]
    receiver.wait_for(first, ALL)
    receiver.wait_for(second, ALL)
    assert printed(server, "resume", "app") == ["app was not paused"]
    assert printed(server, "endpoints")[1].startswith("app   active  0        -       0")


def test_resume_hurries_what_waits_for_its_next_try(start_server: StartServer, receiver: WebhookReceiver) -> None:
    receiver.status = 500
    server = start_server(config(receiver))
    upload_id = stored(server)
    wait_until(lambda: receiver.refused > 0, deadline=30, what="it was tried")
    # As if it had failed for long.
    sql(server, "UPDATE jobs SET due_at = now() + interval '1 hour' WHERE kind = 'deliver' AND state = 'retry_wait'")
    receiver.status = 204

    assert printed(server, "resume", "app") == ["app was not paused", "what waits for it is sent within a minute"]
    receiver.wait_for(upload_id, ALL)


# --- test ------------------------------------------------------------------------------------------


def test_an_endpoint_is_tried_and_nothing_is_recorded(start_server: StartServer, receiver: WebhookReceiver) -> None:
    server = start_server(config(receiver))
    before = printed(server, "list")

    (line,) = printed(server, "test", "app")
    assert line.startswith("app: 204 in ")
    assert line.endswith(" ms, accepted")
    assert [event.type for event in receiver.events] == ["tusd_py.webhook.test"]

    receiver.status = 302
    refused = events(server, "test", "app")
    assert (refused.returncode, refused.stderr) == (1, "")
    assert refused.stdout.startswith("app: 302 in ")
    assert "not accepted: only a 2xx status takes an event" in refused.stdout
    assert printed(server, "list") == before == ["there are no such events"]
    assert as_json(server, "endpoints")[0]["waiting"] == 0


def test_an_endpoint_that_is_away_is_told_without_a_database(start_server: StartServer) -> None:
    with WebhookReceiver() as receiver:
        server = start_server(config(receiver))
    server.terminate()

    done = events(server, "test", "app")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("app: the endpoint cannot be reached: ")
    # The other commands start the embedded database while they run.
    assert printed(server, "list") == ["there are no such events"]
    assert not server.postmasters()


# --- list ------------------------------------------------------------------------------------------


def test_events_are_listed_as_webhooks_get_them(start_server: StartServer, receiver: WebhookReceiver) -> None:
    server = start_server(config(receiver))
    first = stored(server)
    second = stored(server)
    for upload_id in (first, second):
        receiver.wait_for(upload_id, ALL)

    listed = as_json(server, "list", "--upload", second)
    assert listed == [json.loads(body) for body in receiver.bodies if json.loads(body)["subject"] == second]
    by_kind = as_json(server, "list", "--kind", "upload.stored")
    assert [(each["type"], each["subject"]) for each in by_kind] == [
        ("tusd_py.upload.stored", first),
        ("tusd_py.upload.stored", second),
    ]
    header, *lines = printed(server, "list", "--limit", "2")
    assert header.split() == ["TIME", "UPLOAD", "NO.", "KIND", "EVENT"]
    assert [line.split()[2:5] for line in lines] == [
        [second, "3", "upload.transferring"],
        [second, "4", "upload.stored"],
    ]
    assert {line[header.index("EVENT") :] for line in lines} == {each["id"] for each in listed[2:]}
    assert printed(server, "list", "--upload", second, "--kind", "upload.removed") == ["there are no such events"]


def test_a_new_data_directory_gets_no_database(tmp_path: Any) -> None:
    done = tusd_py("events", "list", "--data-dir", str(tmp_path / "new"))
    assert done.returncode == 2
    assert "there is no database" in done.stderr
    assert not (tmp_path / "new").exists()
