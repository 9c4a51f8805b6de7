"""`[cleanup]`: removal of what nobody needs any more."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tusd_py.config.sections.base import PositiveSeconds, Section
from tusd_py.config.units import Seconds


class CleanupConfig(Section):
    """Removal of what nobody needs any more."""

    interval: PositiveSeconds = Field(default=60, description="time between passes")
    deleted_retention: Seconds = Field(
        default=7 * 86400, ge=0, description="how long the rows of removed uploads are kept"
    )
    uncommitted_after: Seconds = Field(
        default=48 * 3600,
        ge=0,
        description="with trigger = commit, an upload that is not committed is removed after this time; 0: never",
    )
    orphans_after: Annotated[Seconds, Field(ge=60)] = Field(
        default=86400, description="staging files that no upload knows are moved to <staging>/unclaimed after this time"
    )
    unclaimed_after: Annotated[Seconds, Field(ge=3600)] = Field(
        default=30 * 86400, description="and removed from there after this further time"
    )
    events_after: Seconds = Field(default=7 * 86400, ge=0, description="how long recorded events are kept")
    dead_letters_after: Seconds = Field(
        default=30 * 86400, ge=0, description="how long events are kept that an endpoint did not take"
    )
    reconcile_margin: Annotated[Seconds, Field(ge=60)] = Field(
        default=3600, description='"tusd-py reconcile" ignores what is younger'
    )
