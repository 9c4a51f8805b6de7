"""`[logging]`: what is logged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tusd_py.config.sections.base import Section


class LoggingConfig(Section):
    """What is logged to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="lowest level to log")
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, else json"
    )
    requests: bool = Field(default=True, description="log a line per request")
