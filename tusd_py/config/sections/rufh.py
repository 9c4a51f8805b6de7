"""`[rufh]`: Resumable Uploads for HTTP."""

from __future__ import annotations

from pydantic import Field

from tusd_py.config.sections.base import MAX_LENGTH, Section
from tusd_py.config.units import Bytes


class RufhConfig(Section):
    """Resumable Uploads for HTTP of the IETF, beside tus at the same URLs."""

    enabled: bool = Field(default=True, description="off: its requests are refused like tus without a version")
    interim_104: bool = Field(
        default=False,
        description="send clients their URL in a 104 while they upload; breaks behind nginx, works with HAProxy, Caddy",
    )
    max_append_size: Bytes = Field(
        default=0, ge=0, le=MAX_LENGTH, description="largest body of one request, if a proxy has a limit; 0: no limit"
    )
