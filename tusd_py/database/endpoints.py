"""The endpoints that are known, and how their deliveries fare: for operators."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from tusd_py.database.stats import ENDPOINT_FIGURES

if TYPE_CHECKING:
    from tusd_py.database.pool import Database

ALL: Final = f"""
SELECT endpoint.name, endpoint.kinds, endpoint.profiles, endpoint.removed_at, endpoint.paused_at, endpoint.error,
       figures.waiting, figures.oldest_seconds, figures.dead_letters
  FROM webhook_endpoints endpoint JOIN ({ENDPOINT_FIGURES}) figures USING (name)
 ORDER BY endpoint.name
"""  # noqa: S608 -- only a constant is inserted


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStatus:
    """An endpoint, and what it has not taken yet."""

    name: str
    kinds: list[str]
    profiles: list[str]
    """Empty: all."""
    removed_at: datetime | None
    """Since when it is in no configuration."""
    paused_at: datetime | None
    error: str | None
    """Why it is paused."""
    waiting: int
    """Uploads with events for it."""
    oldest_seconds: float
    """Age of the oldest of these events."""
    dead_letters: int


async def read_endpoints(database: Database) -> list[EndpointStatus]:
    """Return the endpoints by name, and those that were removed less than a day ago."""
    return [EndpointStatus(**row) for row in await database.fetch(ALL)]
