"""The configured stores by place: the current one, and former ones that still hold uploads.

New uploads go to the current store. An upload's row names the place in which it was stored, and it is read and
removed there, also after the configuration has changed. Several places can have the same store: those whose
objects were moved to the current one (`moved`).

A former store that cannot be opened stops nothing: it is tried again at its next use. Places get their ids from
the database, at the start or, if that is down, at the first use.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog

from tusd_py.config.place import Place
from tusd_py.errors import DatabaseUnavailable, StorageError, StoreNotConfigured
from tusd_py.ports import BatchStore, MeasuredStore, PartStore

if TYPE_CHECKING:
    from tusd_py.database.places import PlaceRecords
    from tusd_py.ports import ObjectStore

log = structlog.get_logger(__name__)


class Stores:
    """The stores of one process."""

    def __init__(
        self,
        record: PlaceRecords,
        place: Place,
        current: ObjectStore,
        former: Mapping[Place, ObjectStore] | None = None,
    ) -> None:
        """`former` says which store holds now what was stored in another place: `current` itself, if it was moved."""
        self.current = current
        # What the current store can do beyond the port is asked here, once. None: it cannot.
        self.measured = current if isinstance(current, MeasuredStore) else None
        self.batches = current if isinstance(current, BatchStore) else None
        self.parts = current if isinstance(current, PartStore) else None
        self._record = record
        self._place = place
        self._former = former or {}
        self._unopened: set[ObjectStore] = set()
        self._registering = asyncio.Lock()
        self._current_id: int | None = None
        self._by_id: dict[int, ObjectStore] = {}
        self._part_stores = [each for each in (current, *self._former.values()) if isinstance(each, PartStore)]
        self._places: dict[int, Place] = {}

    async def open(self) -> None:
        """Open the stores, and register their places if the database can be reached: if not, at the first use."""
        await self.current.open()
        for place, store in self._former.items():
            if store is not self.current:
                try:
                    await store.open()
                except StorageError as error:
                    # Only its own uploads cannot be read; it is tried again when one is needed.
                    self._unopened.add(store)
                    log.warning("former_store_not_usable", place=str(place), reason=str(error))
        with contextlib.suppress(DatabaseUnavailable):
            await self.current_id()

    async def close(self) -> None:
        """Close the stores."""
        for store in {id(each): each for each in (self.current, *self._former.values())}.values():
            await store.close()

    @property
    def registered_id(self) -> int | None:
        """The id of the current place, None before it was registered."""
        return self._current_id

    async def current_id(self) -> int:
        """Return the id of the current place.

        Raises:
            DatabaseUnavailable: it is not known yet.
        """
        if self._current_id is None:
            await self._register()
        assert self._current_id is not None  # _register has set it, or raised
        return self._current_id

    async def configured(self) -> dict[ObjectStore, list[int]]:
        """Return each store with the ids of the places that it holds, the current one first."""
        await self.current_id()
        found: dict[ObjectStore, list[int]] = {self.current: []}
        for place_id, store in self._by_id.items():
            found.setdefault(store, []).append(place_id)
        return found

    async def unconfigured(self) -> list[int]:
        """Return the ids of the places on record that no store is configured for."""
        await self.current_id()
        return [place_id for place_id in await self._record.places() if place_id not in self._by_id]

    async def at(self, place_id: int) -> ObjectStore:
        """Return the store that holds what was stored in a place.

        Raises:
            StoreNotConfigured: no store is configured for it.
            StorageError: it could not be opened so far, nor now.
            DatabaseUnavailable: the places are not known yet.
        """
        await self.current_id()
        store = self._by_id.get(place_id)
        if store is None:
            raise StoreNotConfigured(place=str(await self.place(place_id)))
        if store in self._unopened:
            await store.open()
            self._unopened.discard(store)
        return store

    def takes_parts(self, store: ObjectStore) -> bool:
        """Return whether a store may hold parts of an upload that never completed."""
        return store in self._part_stores

    async def place(self, place_id: int) -> Place | None:
        """Return the place of an id, also where no store is configured for it. None: there is none."""
        if place_id not in self._places:
            self._places = await self._record.places()
        return self._places.get(place_id)

    async def _register(self) -> None:
        async with self._registering:
            if self._current_id is not None:
                return
            ids = await self._record.register(self._place, list(self._former))
            self._by_id = {ids[self._place]: self.current}
            for place, store in self._former.items():
                self._by_id.setdefault(ids[place], store)
            self._current_id = ids[self._place]
