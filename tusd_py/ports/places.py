"""The record of places where uploads lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tusd_py.config.places import Place


class PlaceRecord(Protocol):
    """Every place that was ever configured. Every method raises `DatabaseUnavailable`."""

    async def register(self, current: Place, former: Sequence[Place]) -> dict[Place, int]:
        """Return the ids of places, making those that are new.

        Uploads from before places were recorded lie in the first of `former`, else in `current`, of
        whoever registers first.
        """

    async def places(self) -> dict[int, Place]:
        """Return all places by their ids."""
