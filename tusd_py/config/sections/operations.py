"""`[operations]`: health, readiness and metrics."""

from __future__ import annotations

from pydantic import Field

from tusd_py.config.sections.base import OptionalPort, Section


class OperationsConfig(Section):
    """Health, readiness and metrics, on a port of their own."""

    enabled: bool = Field(default=True, description="off: no listener")
    host: str = Field(default="127.0.0.1", description="address to listen on; keep it off the public network")
    port: OptionalPort = Field(
        default=None,
        description="port to listen on; empty: the one after the server's, or the next free one; 0 takes a free one",
    )
