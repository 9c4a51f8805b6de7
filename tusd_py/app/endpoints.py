"""The endpoints of events, wired: where each is told, of what, and in which format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from tusd_py.config.sections.webhooks import HOOKS_ENDPOINT
from tusd_py.database.events import EventRecords
from tusd_py.endpoints.programs import ProgramEndpoint
from tusd_py.endpoints.webhook import WebhookEndpoint
from tusd_py.ports.events import Message
from tusd_py.protocol.events import RECORDED, TYPE_PREFIX, kinds_matching
from tusd_py.uploads.cloud_events import CONTENT_TYPE, cloud_event, event_source
from tusd_py.uploads.tusd_events import HOOK_NAMES, tusd_event
from tusd_py.worker.deliveries import Subscription

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from tusd_py.app.core import Core
    from tusd_py.config.place import Place
    from tusd_py.config.sections import WebhookConfig
    from tusd_py.ports.events import RecordedEvent

JSON: Final = "application/json"
PROGRAMS_AT_ONCE: Final = 4


class EventFormats:
    """Events as messages, with what is to be looked up for that."""

    def __init__(self, core: Core) -> None:
        self._config = core.config
        self._stores = core.stores
        self._records = EventRecords(core.database)
        self._database_id: UUID | None = None

    async def cloud(self, event: RecordedEvent) -> Message:
        """Return a CloudEvent. Raises `DatabaseUnavailable`."""
        if self._database_id is None:
            self._database_id = await self._records.database_id()
        source = event_source(self._config, self._database_id)
        document = cloud_event(event, self._config, place=await self._place(event), source=source)
        return Message(
            id=str(event.id),
            name=f"{TYPE_PREFIX}{event.kind.value}",
            body=orjson.dumps(document),
            content_type=CONTENT_TYPE,
        )

    async def tusd(self, event: RecordedEvent) -> Message:
        """Return what tusd's hooks have. Raises `DatabaseUnavailable`."""
        document = tusd_event(event, self._config, place=await self._place(event))
        return Message(id=str(event.id), name=HOOK_NAMES[event.kind], body=orjson.dumps(document), content_type=JSON)

    async def _place(self, event: RecordedEvent) -> Place | None:
        place_id = event.snapshot.get("place_id")
        return None if place_id is None else await self._stores.place(place_id)


def make_subscriptions(core: Core) -> list[Subscription]:
    """Wire the endpoints that are configured."""
    formats = EventFormats(core)
    webhooks = [_webhook(webhook, formats) for webhook in core.config.webhooks]
    hooks = core.config.hooks
    return webhooks if hooks.file is None else [*webhooks, _programs(hooks.file, hooks.timeout, formats)]


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
