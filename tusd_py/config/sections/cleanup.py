"""`[cleanup]`: removal of what nobody needs any more."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tusd_py.config.sections.base import PositiveSeconds, Section
from tusd_py.config.units import Seconds


class CleanupConfig(Section):
    """Removal of what nobody needs any more."""

    interval: PositiveSeconds = Field(default=60, description="time between two passes")
    deleted_retention: Seconds = Field(
        default=7 * 86400, ge=0, description="rows of removed uploads are kept for so long"
    )
    uncommitted_after: Seconds = Field(
        default=48 * 3600,
        ge=0,
        description="an upload with trigger = commit that nobody committed is removed after so long; 0: never",
    )
    orphans_after: Annotated[Seconds, Field(ge=60)] = Field(
        default=86400, description="staging files that no upload knows are moved to <staging>/unclaimed after so long"
    )
    unclaimed_after: Annotated[Seconds, Field(ge=3600)] = Field(
        default=30 * 86400, description="and removed there after so much more time"
    )
    events_after: Seconds = Field(default=7 * 86400, ge=0, description="recorded events are kept for so long")
    reconcile_margin: Annotated[Seconds, Field(ge=60)] = Field(
        default=3600, description='"tusd-py reconcile" looks at nothing that is younger'
    )
