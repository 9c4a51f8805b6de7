"""`[cors]`: cross-origin access by browsers."""

from __future__ import annotations

from pydantic import Field

from tusd_py.config.sections.base import Section
from tusd_py.config.units import Seconds


class CorsConfig(Section):
    """Cross-origin access by browsers."""

    enabled: bool = Field(default=True, description="off: for a proxy that adds the headers itself")
    allow_origins: list[str] = Field(
        default=[],
        description='other origins whose pages may use the server: "https://app.example.com", "https://*.example.com"',
    )
    allow_credentials: bool = Field(default=False, description="allow cookies; needs explicit origins")
    allow_headers: list[str] = Field(default=[], description="request headers to allow besides the protocol's own")
    expose_headers: list[str] = Field(default=[], description="response headers to expose besides the protocol's own")
    max_age: Seconds = Field(default=86400, ge=0, description="how long a browser may cache a preflight")
