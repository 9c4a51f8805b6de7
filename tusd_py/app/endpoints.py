"""The endpoints of events, wired: where each is told, of what, and in which format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from tusd_py.config.sections.webhooks import HOOKS_ENDPOINT
from tusd_py.database.events import EventRecords
from tusd_py.endpoints.programs import ProgramEndpoint
from tusd_py.endpoints.webhook import WebhookEndpoint
from tusd_py.ports.events import Message
from tusd_py.protocol.events import RECORDED, TYPE_PREFIX, EventKind, kinds_matching
from tusd_py.protocol.upload import Concat
from tusd_py.uploads.cloud_events import CONTENT_TYPE, cloud_event, event_source, progress_event
from tusd_py.uploads.tusd_events import HOOK_NAMES, tusd_event, tusd_progress
from tusd_py.worker.deliveries import Subscription
from tusd_py.worker.progress import ProgressTarget

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from tusd_py.app.core import Core
    from tusd_py.config.place import Place
    from tusd_py.config.sections import WebhookConfig
    from tusd_py.ports.events import RecordedEvent
    from tusd_py.protocol.upload import Upload

JSON: Final = "application/json"
PROGRAMS_AT_ONCE: Final = 4


class EventFormats:
    """Events as messages, with what is to be looked up for that."""

    def __init__(self, core: Core) -> None:
        self._config = core.config
        self._stores = core.stores
        self._uploads = core.uploads
        self._records = EventRecords(core.database)
        self._database_id: UUID | None = None

    async def cloud(self, event: RecordedEvent) -> Message:
        """Return a CloudEvent. Raises `DatabaseUnavailable`."""
        document = cloud_event(event, self._config, place=await self._place(event), source=await self._source())
        return Message(
            id=str(event.id),
            name=f"{TYPE_PREFIX}{event.kind.value}",
            body=orjson.dumps(document),
            content_type=CONTENT_TYPE,
        )

    async def tusd(self, event: RecordedEvent) -> Message:
        """Return what tusd's hooks have. Raises `DatabaseUnavailable`."""
        partials = None
        if event.snapshot.get("concat") == Concat.FINAL:
            partials = [str(partial.id) for partial in await self._uploads.partials(event.upload_id)]
        document = tusd_event(event, self._config, place=await self._place(event), partial_uploads=partials)
        return Message(id=str(event.id), name=HOOK_NAMES[event.kind], body=orjson.dumps(document), content_type=JSON)

    async def cloud_progress(self, upload: Upload) -> Message:
        """Return a CloudEvent that says how far an upload is. Raises `DatabaseUnavailable`."""
        document = progress_event(upload, self._config, source=await self._source())
        return Message(id=document["id"], name=document["type"], body=orjson.dumps(document), content_type=CONTENT_TYPE)

    async def tusd_progress(self, upload: Upload) -> Message:
        """Return the post-receive of tusd."""
        document = tusd_progress(upload, self._config)
        name = HOOK_NAMES[EventKind.PROGRESS]
        return Message(id=f"{upload.id}:{upload.offset}", name=name, body=orjson.dumps(document), content_type=JSON)

    async def _source(self) -> str:
        if self._database_id is None:
            self._database_id = await self._records.database_id()
        return event_source(self._config, self._database_id)

    async def _place(self, event: RecordedEvent) -> Place | None:
        place_id = event.snapshot.get("place_id")
        return None if place_id is None else await self._stores.place(place_id)


def make_subscriptions(core: Core) -> list[Subscription]:
    """Wire the endpoints that are configured."""
    formats = EventFormats(core)
    webhooks = [_webhook(webhook, formats) for webhook in core.config.webhooks]
    hooks = core.config.hooks
    return webhooks if hooks.file is None else [*webhooks, _programs(hooks.file, hooks.timeout, formats)]


def make_progress_targets(core: Core) -> list[ProgressTarget]:
    """Wire the endpoints that name `upload.progress`. Each has its connections for that, beside those for events."""
    formats = EventFormats(core)
    return [
        ProgressTarget(
            name=webhook.endpoint,
            profiles=frozenset(webhook.profiles),
            endpoint=make_webhook(webhook),
            render=formats.tusd_progress if webhook.format == "tusd" else formats.cloud_progress,
        )
        for webhook in core.config.webhooks
        if EventKind.PROGRESS in kinds_matching(webhook.events)
    ]


def _programs(directory: Path, timeout_seconds: float, formats: EventFormats) -> Subscription:
    """Wire the programs that tusd calls when something has happened. Those that exist when it happens are run."""
    return Subscription(
        name=HOOKS_ENDPOINT,
        kinds=RECORDED & HOOK_NAMES.keys(),
        profiles=frozenset(),
        endpoint=ProgramEndpoint(directory.absolute(), timeout_seconds=timeout_seconds),
        render=formats.tusd,
        concurrency=PROGRAMS_AT_ONCE,
        timeout_seconds=timeout_seconds,
    )


def _webhook(webhook: WebhookConfig, formats: EventFormats) -> Subscription:
    as_tusd = webhook.format == "tusd"
    known = HOOK_NAMES.keys() if as_tusd else RECORDED
    return Subscription(
        name=webhook.endpoint,
        kinds=frozenset(kinds_matching(webhook.events)) & RECORDED & known,
        profiles=frozenset(webhook.profiles),
        endpoint=make_webhook(webhook),
        render=formats.tusd if as_tusd else formats.cloud,
        concurrency=webhook.concurrency,
        timeout_seconds=webhook.timeout,
    )


def make_webhook(webhook: WebhookConfig) -> WebhookEndpoint:
    """Build an endpoint as it is configured. Opens nothing."""
    return WebhookEndpoint(
        webhook.url,
        secrets=webhook.signing_secrets,
        timeout_seconds=webhook.timeout,
        concurrency=webhook.concurrency,
        allow_private=webhook.allow_private,
        hook_name=webhook.format == "tusd",
    )
