"""`[events]`: what is told of uploads while they are received."""

from __future__ import annotations

from pydantic import Field

from tusd_py.config.sections.base import PositiveSeconds, Section


class EventsConfig(Section):
    """Events of uploads, for webhooks and for those who listen to `/api/v1/events`."""

    progress_interval: PositiveSeconds = Field(
        default=1, description="at most one upload.progress, and one post-receive hook, per upload in this time"
    )
