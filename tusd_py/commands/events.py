"""`tusd-py events`: what has happened, who has not been told of it, and what to do about that."""

from __future__ import annotations

import contextlib
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

import orjson

from tusd_py.app import make_records, make_webhook
from tusd_py.commands.tables import table
from tusd_py.database.deliveries import DeliveryQueue
from tusd_py.database.endpoints import EndpointStatus, read_endpoints
from tusd_py.database.events import EventRecords
from tusd_py.database.places import PlaceRecords
from tusd_py.database.replay import Replays
from tusd_py.endpoints.webhook import SUCCESS
from tusd_py.errors import TusdError, UploadNotFound
from tusd_py.hooks.messages import hook_document
from tusd_py.ports.events import DeliveryFailed, Message
from tusd_py.ports.hooks import HookUpload
from tusd_py.protocol.upload import UploadId
from tusd_py.uploads.cloud_events import CONTENT_TYPE, cloud_event, event_source, make_test_event
from tusd_py.uploads.tusd_events import NO_REQUEST

if TYPE_CHECKING:
    from tusd_py.app import Records
    from tusd_py.config import Config
    from tusd_py.config.sections import WebhookConfig
    from tusd_py.ports.events import RecordedEvent

Say = Callable[[str], None]

TEST_HOOK: Final = "test"
"""How an endpoint in tusd's format is asked whether it is there: a hook that tusd does not have."""


async def list_events(config: Config, options: Namespace, say: Say) -> None:
    """Print the latest events, oldest first.

    Raises:
        UploadNotFound: there is no such upload, and no event of it.
    """
    async with _records(config) as records:
        events = EventRecords(records.database)
        upload_id = None if options.upload is None else UploadId(options.upload)
        found = await events.latest(upload_id=upload_id, kind=options.kind, limit=options.limit)
        if not found and upload_id is not None:
            await _require_upload(records, events, upload_id)
        if options.json:
            for line in await _cloud_events(records, events, found):
                say(line)
            return
    if not found:
        say("there are no such events")
        return
    rows = [
        (_moment(each.created_at), str(each.upload_id), str(each.sequence), each.kind.value, str(each.id))
        for each in found
    ]
    for line in table(("TIME", "UPLOAD", "NO.", "KIND", "EVENT"), rows):
        say(line)


async def _require_upload(records: Records, events: EventRecords, upload_id: UploadId) -> None:
    if await events.of_upload(upload_id, limit=1):
        return
    if await records.uploads.find(upload_id) is None:
        raise UploadNotFound(f"There is no upload {upload_id}, and no event of one is kept.")


async def _cloud_events(records: Records, events: EventRecords, found: Sequence[RecordedEvent]) -> list[str]:
    """Return events as lines of JSON: the CloudEvents that webhooks get."""
    places = await PlaceRecords(records.database).places()
    source = event_source(records.config, await events.database_id())
    return [
        _json(cloud_event(each, records.config, place=places.get(each.snapshot.get("place_id", 0)), source=source))
        for each in found
    ]


async def list_dead_letters(config: Config, options: Namespace, say: Say) -> None:
    """Print the events that endpoints did not take in time, newest first."""
    async with _records(config) as records:
        if options.endpoint is not None:
            await _endpoint(records, options.endpoint)
        letters = await Replays(records.database).dead(options.endpoint, limit=options.limit + 1)
    shown = letters[: options.limit]
    if options.json:
        for letter in shown:
            say(_json(letter))
        return
    rows = [
        (_moment(each.died_at), each.endpoint, str(each.upload_id), each.kind.value, str(each.event_id), each.error)
        for each in shown
    ]
    for line in table(("GIVEN UP", "ENDPOINT", "UPLOAD", "KIND", "EVENT", "ERROR"), rows) if rows else ():
        say(line)
    if len(letters) > options.limit:
        say("there are more of them; see --limit")
    say("send them again: tusd-py events replay --endpoint NAME --dead" if rows else "there are no dead letters")


async def list_endpoints(config: Config, options: Namespace, say: Say) -> None:
    """Print the endpoints that the database knows, and what they have not taken yet."""
    async with _records(config) as records:
        endpoints = await read_endpoints(records.database)
    if options.json:
        for each in endpoints:
            say(_json(each))
        return
    if not endpoints:
        say("no worker has been started with an endpoint yet; see [[webhooks]] in the configuration")
        return
    rows = [
        (
            each.name,
            _state(each),
            str(each.waiting),
            _age(each.oldest_seconds) if each.waiting else "-",
            str(each.dead_letters),
            ",".join(each.profiles) or "all",
            ",".join(kind.removeprefix("upload.") for kind in each.kinds),
        )
        for each in endpoints
    ]
    for line in table(("NAME", "STATE", "WAITING", "OLDEST", "DEAD", "PROFILES", "EVENTS"), rows):
        say(line)
    for each in endpoints:
        if each.paused_at is not None:
            say(f"{each.name}: {each.error}; once that is mended: tusd-py events resume {each.name}")


def _state(endpoint: EndpointStatus) -> str:
    if endpoint.removed_at is not None:
        return "removed"
    return "active" if endpoint.paused_at is None else f"paused {_moment(endpoint.paused_at)}"


async def replay_events(config: Config, options: Namespace, say: Say) -> None:
    """Have events delivered again; a worker does it.

    Raises:
        TusdError: the endpoint or an event is unknown, or the endpoint is not told of such events.
    """
    async with _records(config) as records:
        endpoint = await _endpoint(records, options.endpoint)
        if endpoint.removed_at is not None:
            raise TusdError(f"{endpoint.name} is in no configuration any more; nothing can be sent to it.")
        replays = Replays(records.database)
        await _require_wanted(records, replays, endpoint, options.events)
        uploads = await replays.replay(endpoint.name, events=options.events, since=options.since, dead=options.dead)
        records.notifier.notify_changed(*uploads)
    if not uploads:
        say("there is nothing to send again")
        return
    say(f"events of {len(uploads)} {'upload' if len(uploads) == 1 else 'uploads'} are sent to {endpoint.name} again")
    if endpoint.paused_at is not None:
        say(f"they wait, since {endpoint.name} is paused ({endpoint.error}): tusd-py events resume {endpoint.name}")


async def _require_wanted(records: Records, replays: Replays, endpoint: EndpointStatus, wanted: Sequence[UUID]) -> None:
    kept = {each.id: each.kind for each in await EventRecords(records.database).by_ids(wanted)}
    if missing := [str(each) for each in wanted if each not in kept]:
        raise TusdError(f"There is no event {', '.join(missing)}; nothing is sent.")
    fitting = await replays.wanted(endpoint.name, wanted)
    if others := [f"{each} ({kept[each].value})" for each in wanted if each not in fitting]:
        raise TusdError(f"{endpoint.name} is not told of {', '.join(others)}, as its events and profiles say.")


async def resume_endpoint(config: Config, options: Namespace, say: Say) -> None:
    """Deliver to a paused endpoint again, and try soon what waits for its next try.

    Raises:
        TusdError: there is no such endpoint.
    """
    async with _records(config) as records:
        endpoint = await _endpoint(records, options.name)
        resumed = await DeliveryQueue(records.database, worker="").resume(endpoint.name)
        waiting = await Replays(records.database).hurry(endpoint.name)
        if waiting is not None:
            # Any change wakes the deliveries of every worker.
            records.notifier.notify_changed(waiting)
    say(f"{endpoint.name} is resumed" if resumed else f"{endpoint.name} was not paused")
    if waiting is not None:
        say("what waits for it is sent within a minute")


async def send_test(config: Config, options: Namespace, say: Say) -> bool:
    """Send a test event to an endpoint as it is configured here, now; return whether it was accepted.

    No database is needed, and nothing is recorded.

    Raises:
        TusdError: no webhook is configured under this name.
    """
    webhook = next((each for each in config.webhooks if each.endpoint == options.name), None)
    if webhook is None:
        known = ", ".join(each.endpoint for each in config.webhooks) or "none"
        raise TusdError(f"There is no webhook {options.name!r} in the configuration. Configured: {known}.")
    endpoint = make_webhook(webhook)
    started = time.monotonic()
    try:
        reply = await endpoint.post(_test_message(config, webhook))
    except DeliveryFailed as error:
        say(f"{webhook.endpoint}: {error}, after {_milliseconds(started)}")
        return False
    finally:
        await endpoint.close()
    accepted = reply.status in SUCCESS
    what = "accepted" if accepted else "not accepted: only a 2xx status takes an event"
    say(f"{webhook.endpoint}: {reply.status} in {_milliseconds(started)}, {what}")
    return accepted


def _test_message(config: Config, webhook: WebhookConfig) -> Message:
    event_id = uuid4()
    if webhook.format == "tusd":
        upload = HookUpload(id="", size=0, offset=0, metadata={}, is_partial=False, is_final=False)
        body = hook_document(TEST_HOOK, upload, NO_REQUEST)
        return Message(id=str(event_id), name=TEST_HOOK, body=orjson.dumps(body), content_type="application/json")
    document = make_test_event(event_id, datetime.now(UTC), source=config.server.public_url or "urn:tusd_py:test")
    return Message(id=str(event_id), name=document["type"], body=orjson.dumps(document), content_type=CONTENT_TYPE)


ACTIONS: Final = {
    "list": list_events,
    "dead": list_dead_letters,
    "endpoints": list_endpoints,
    "replay": replay_events,
    "resume": resume_endpoint,
}
"""What needs the database, by the name of the action."""


# --- what they share ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _records(config: Config) -> AsyncIterator[Records]:
    """Open the record, and send the notifications at the end."""
    records = make_records(config)
    await records.database.open()
    try:
        yield records
    finally:
        await records.notifier.close()
        await records.database.close()


async def _endpoint(records: Records, name: str) -> EndpointStatus:
    endpoints = {each.name: each for each in await read_endpoints(records.database)}
    if name not in endpoints:
        known = ", ".join(endpoints) or "none"
        raise TusdError(f"There is no endpoint {name!r}. Known: {known}. A new one is known once a worker has started.")
    return endpoints[name]


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _milliseconds(started: float) -> str:
    return f"{(time.monotonic() - started) * 1000:.0f} ms"


def _json(value: object) -> str:
    # asyncpg has a class of its own for UUIDs.
    return orjson.dumps(value, default=str).decode()
