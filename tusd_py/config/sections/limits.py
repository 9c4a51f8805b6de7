"""`[limits]`: what one client may ask for."""

from __future__ import annotations

from pydantic import Field

from tusd_py.config.sections.base import MAX_LENGTH, PositiveBytes, PositiveSeconds, Section
from tusd_py.config.units import Bytes


class LimitsConfig(Section):
    """What one client may ask for."""

    max_size: Bytes = Field(default=0, ge=0, le=MAX_LENGTH, description="largest upload; 0: no limit")
    max_metadata: PositiveBytes = Field(default=16384, le=65536, description="largest Upload-Metadata header")
    max_parts: int = Field(default=1000, ge=1, description="most partial uploads of one concatenation")
    allow_repeated_partials: bool = Field(
        default=False, description="let a concatenation name a partial upload more than once"
    )
    idle_timeout: PositiveSeconds = Field(
        default=60,
        description="longest wait for the next byte of a body; the whole request is not limited",
    )
    min_rate: Bytes = Field(default=0, ge=0, description="least bytes per second of a body, over 30s; 0: no limit")
    max_connections: int = Field(
        default=10_000, ge=1, description="most open connections of one HTTP process; more have to wait"
    )
    max_connections_per_client: int = Field(
        default=0, ge=0, description="most upload bodies at once per client address; 0: no limit"
    )
    max_empty_patches: int = Field(
        default=100, ge=1, description="most empty PATCH requests in a row on one upload; then 403"
    )
