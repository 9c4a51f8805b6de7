"""Events for those who listen: one reader per process, whoever listens to whatever.

Notifications from all processes say which uploads have changed. One task reads the new events of those that
somebody listens to, in one statement, and of all uploads in another one, and hands each event to every
listener. A listener that begins behind the reader first reads on its own until it has reached it.

Nothing is lost: a notification only makes the reader look sooner, and it goes on from where it was after the
database was away. Nobody waits for a slow listener: one that has too much before it is ended, and comes back
with the id of the last event that it has seen. Progress is not recorded, and is dropped where it is late.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import structlog

from tusd_py.errors import DatabaseUnavailable, ServerDraining, TooManyListeners
from tusd_py.protocol.upload import RECEIVING, State, Upload, UploadId
from tusd_py.uploads.listeners import EventListener, LiveEvent, LiveMessage, LiveProgress

if TYPE_CHECKING:
    from tusd_py.database.events import EventPosition, EventRecords
    from tusd_py.database.notifier import Notifier
    from tusd_py.database.uploads import PostgresUploads
    from tusd_py.ports.events import RecordedEvent

log = structlog.get_logger(__name__)

PAGE: Final = 100
KNOWN_UPLOADS: Final = 1000
LOOKED_UP: Final = 50
"""Uploads that one round looks up to tell of their progress; what others have to tell comes with their next."""


@dataclass(frozen=True, slots=True)
class ListenerLimits:
    """Limits and times of one process that nobody has to configure."""

    max_listeners: int = 1000
    backlog: int = 500
    """Events that one listener may have before it."""
    look_seconds: float = 5.0
    """Between two looks, should a notification get lost."""
    late_seconds: float = 0.2
    """Until another look at events that a running transaction holds back."""
    retry_seconds: float = 1.0
    """Between two tries while the database is away."""
    announce_seconds: float = 10.0
    """Between two announcements of who listens here."""


@dataclass(slots=True)
class _Feed:
    """The events of one upload, or of all, as far as they have been read."""

    position: Any
    listeners: set[EventListener] = field(default_factory=set)

    def tell(self, told: LiveMessage, position: Any = None) -> None:
        if position is not None:
            self.position = position
        for listener in list(self.listeners):
            listener.offer(told, position)


class LiveEvents:
    """Those who listen within one process."""

    def __init__(
        self,
        records: EventRecords,
        uploads: PostgresUploads,
        notifier: Notifier,
        limits: ListenerLimits | None = None,
    ) -> None:
        self._records = records
        self._uploads = uploads
        self._notifier = notifier
        self._limits = limits or ListenerLimits()
        self._listeners: set[EventListener] = set()
        self._feeds: dict[UploadId | None, _Feed] = {}
        self._changed: set[UploadId | None] = set()
        """The feeds to look at; None: the one of all uploads."""
        self._progress: dict[UploadId, tuple[int, int | None]] = {}
        self._known: dict[UploadId, Upload] = {}
        """Uploads whose progress was told of, as they stood after their latest event."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._database_id: UUID | None = None

    @property
    def count(self) -> int:
        """How many listen."""
        return len(self._listeners)

    # --- who listens -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def listening(
        self, upload_id: UploadId | None, *, owner: str | None = None, on_overrun: Callable[[], None]
    ) -> Iterator[EventListener]:
        """Return a listener to one upload, or to those of `owner`; both None: to all.

        Raises:
            TooManyListeners, ServerDraining.
        """
        if self._closed:
            raise ServerDraining("The server is shutting down; try again.")
        if len(self._listeners) >= self._limits.max_listeners:
            raise TooManyListeners
        listener = EventListener(upload_id, owner, on_overrun, self._limits.backlog)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._leave(listener)

    async def start(self, listener: EventListener, last_event_id: UUID | None) -> None:
        """Choose where a listener begins.

        After the event that it has seen last. Without one, or if that one is not kept any more: with the first
        event of an upload, and with what happens from now on where it listens to all. Raises DatabaseUnavailable.
        """
        seen: Any = None
        if listener.upload_id is None:
            seen = await self._records.position(last_event_id) if last_event_id else None
            listener.position = seen or await self._newest()
        else:
            seen = await self._records.sequence(listener.upload_id, last_event_id) if last_event_id else None
            listener.position = seen or 0
        listener.reset = last_event_id is not None and seen is None

    async def _newest(self) -> EventPosition:
        feed = self._feeds.get(None)
        return await self._records.newest() if feed is None else feed.position

    async def database_id(self) -> UUID:
        """Return what the events are named after where the server has no public URL."""
        if self._database_id is None:
            self._database_id = await self._records.database_id()
        return self._database_id

    async def is_over(self, listener: EventListener) -> bool:
        """Return whether a listener has been told everything of an upload that was removed."""
        upload_id = listener.upload_id
        return upload_id is not None and not await self._records.of_uploads({upload_id: listener.position}, limit=1)

    async def next(self, listener: EventListener, seconds: float) -> list[LiveMessage]:
        """Return what a listener is to be told next, and nothing if there is nothing within the time."""
        try:
            while not (listener.joined or listener.ended):
                if told := await self._read_behind(listener):
                    return told
        except DatabaseUnavailable:
            await listener.wait(min(seconds, self._limits.retry_seconds))
            return []
        await listener.wait(seconds)
        return listener.take()

    async def _read_behind(self, listener: EventListener) -> list[LiveMessage]:
        """Return the next events of one that is behind the reader; let it join the others where there are none."""
        feed = self._feeds.get(listener.upload_id)
        reached = feed.position if feed is not None else listener.position
        page: list[tuple[Any, RecordedEvent]]
        if listener.upload_id is None:
            page = list(await self._records.after(listener.position, owner=listener.owner, limit=PAGE))
        else:
            events = await self._records.of_uploads({listener.upload_id: listener.position}, limit=PAGE)
            page = [(event.sequence, event) for event in events]
        if page:
            listener.position = page[-1][0]
            return [LiveEvent(event) for _, event in page]
        # What the reader had seen before, this one would have seen as well.
        listener.position = max(listener.position, reached)
        self._join(listener)
        return []

    def _join(self, listener: EventListener) -> None:
        if listener not in self._listeners:
            return
        feed = self._feeds.get(listener.upload_id)
        if feed is None:
            feed = self._feeds[listener.upload_id] = _Feed(listener.position)
            # What has happened since its last look was told to nobody here.
            self._look_at((listener.upload_id,))
            self._notifier.notify_listening((listener.upload_id,))
        elif feed.position > listener.position:
            return
        feed.listeners.add(listener)
        listener.joined = True
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="live-events")

    def _leave(self, listener: EventListener) -> None:
        listener.ended = True
        self._listeners.discard(listener)
        feed = self._feeds.get(listener.upload_id)
        if feed is not None:
            feed.listeners.discard(listener)
            if not feed.listeners:
                del self._feeds[listener.upload_id]
        if not self._feeds:
            # Nobody hears any more what becomes of them.
            self._known.clear()

    def close(self) -> None:
        """End all, now and later."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for listener in list(self._listeners):
            listener.end()

    # --- what is heard from other processes --------------------------------------------------------

    def changed(self, payload: str) -> None:
        """Look at these uploads, their ids separated by commas; at all if there is none."""
        if self._feeds:
            self._look_at(map(_upload_id, payload.split(",")) if payload else list(self._feeds))

    def progressed(self, payload: str) -> None:
        """Hear how far uploads are: the id, the offset and the length of each."""
        if not self._feeds:
            return
        for each in filter(None, payload.split(",")):
            upload_id, offset, length = each.split(":")
            if None in self._feeds or _upload_id(upload_id) in self._feeds:
                self._progress[_upload_id(upload_id)] = int(offset), int(length) if length else None
                self._wake.set()

    def _look_at(self, upload_ids: Iterable[UploadId | None]) -> None:
        for upload_id in upload_ids:
            if upload_id is not None:
                self._known.pop(upload_id, None)
            self._changed |= {upload_id, None} & self._feeds.keys()
        if self._changed:
            self._wake.set()

    # --- the reader --------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop, limits = asyncio.get_running_loop(), self._limits
        announce_at = loop.time() + limits.announce_seconds
        late = False
        while True:
            woken = await self._woken(limits.late_seconds if late else limits.look_seconds)
            if not (woken or late):
                self._look_at(list(self._feeds))
            if loop.time() >= announce_at:
                announce_at = loop.time() + limits.announce_seconds
                self._notifier.notify_listening(self._feeds)
            # Taken before they are read: what changes meanwhile is looked at again.
            changed, self._changed = self._changed, set()
            try:
                await self._read_uploads(changed - {None})
                if late or None in changed:
                    late = await self._read_all()
                await self._tell_progress()
            except Exception as error:
                if isinstance(error, DatabaseUnavailable):
                    log.warning("live_events_wait_for_the_database", error=str(error))
                else:
                    # Whatever it is: those who listen wait for nobody else.
                    log.exception("live_events_failed")
                self._changed |= changed
                await asyncio.sleep(limits.retry_seconds)
                self._wake.set()

    async def _woken(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        woken = self._wake.is_set()
        self._wake.clear()
        return woken

    async def _read_uploads(self, changed: set[UploadId | None]) -> None:
        feeds = {each: feed for each in changed if each is not None and (feed := self._feeds.get(each)) is not None}
        while feeds:
            events = await self._records.of_uploads({each: feed.position for each, feed in feeds.items()}, limit=PAGE)
            for event in events:
                feeds[event.upload_id].tell(LiveEvent(event), event.sequence)
            counts = Counter(event.upload_id for event in events)
            feeds = {each: feed for each, feed in feeds.items() if counts[each] == PAGE}

    async def _read_all(self) -> bool:
        """Read the events of all uploads; return whether a running transaction holds some back."""
        while (feed := self._feeds.get(None)) is not None:
            page = await self._records.after(feed.position, limit=PAGE)
            for position, event in page:
                feed.tell(LiveEvent(event), position)
            if len(page) < PAGE:
                return await self._records.late(feed.position)
        return False

    async def _tell_progress(self) -> None:
        progress, self._progress = self._progress, {}
        lookups = LOOKED_UP
        for upload_id, (offset, length) in progress.items():
            upload = self._known.get(upload_id)
            if upload is None and lookups:
                lookups -= 1
                upload = await self._look_up(upload_id)
            if upload is None or upload.state not in RECEIVING:
                continue
            moved = replace(upload, state=State.UPLOADING, offset=offset, length=length, updated_at=datetime.now(UTC))
            for feed in (self._feeds.get(upload_id), self._feeds.get(None)):
                if feed is not None:
                    feed.tell(LiveProgress(moved))

    async def _look_up(self, upload_id: UploadId) -> Upload | None:
        upload = await self._uploads.find(upload_id)
        if upload is not None:
            self._known[upload_id] = upload
            if len(self._known) > KNOWN_UPLOADS:
                del self._known[next(iter(self._known))]
        return upload


def _upload_id(text: str) -> UploadId:
    return UploadId(UUID(text))
