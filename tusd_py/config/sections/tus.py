"""`[tus]`: tus 1.0.0 and its extensions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tusd_py.config.sections.base import Section, number_in_text
from tusd_py.config.units import Seconds


class TusConfig(Section):
    """The tus 1.0.0 extensions."""

    disable: list[
        Literal[
            "creation-with-upload", "creation-defer-length", "expiration", "checksum",
            "termination", "concatenation", "concatenation-unfinished",
        ]
    ] = Field(default=[], description="extensions to switch off")  # fmt: skip
    checksum_trailer: bool = Field(
        default=False,
        description="accept Upload-Checksum as a trailer; only where no proxy rewrites requests",
    )
    expire_after: Seconds = Field(
        default=7 * 86400,
        ge=0,
        description="an unfinished upload is removed this long after its last byte; 0: never",
    )
    gone_status: Annotated[Literal[404, 410], BeforeValidator(number_in_text)] = Field(
        default=404, description="status for an upload that is gone; some clients give up on 410"
    )
