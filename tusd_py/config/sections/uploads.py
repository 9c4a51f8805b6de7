"""What clients may ask for, and how the protocol answers."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from tusd_py.config.sections.base import PositiveBytes, PositiveSeconds, Section, number_in_text
from tusd_py.config.units import Bytes, Seconds

MAX_LENGTH: Final = 2**63 - 1
"""The largest length that the protocol's headers and a `bigint` can hold, in bytes."""


class LimitsConfig(Section):
    """What one client may ask for."""

    max_size: Bytes = Field(default=0, ge=0, le=MAX_LENGTH, description="largest upload; 0: no limit")
    max_metadata: PositiveBytes = Field(default=16384, le=65536, description="largest Upload-Metadata header")
    max_parts: int = Field(default=1000, ge=1, description="most parts of one concatenation")
    allow_repeated_partials: bool = Field(
        default=False, description="let a concatenation name a partial upload more than once"
    )
    idle_timeout: PositiveSeconds = Field(
        default=60,
        description="longest wait for the next byte of a body; there is no limit on a whole request",
    )
    min_rate: Bytes = Field(default=0, ge=0, description="bytes per second a body must keep up over 30s; 0: off")
    max_connections: int = Field(
        default=10_000, ge=1, description="open connections of one HTTP process; whoever comes then waits"
    )
    max_connections_per_client: int = Field(
        default=0, ge=0, description="open upload bodies per client address; 0: no limit"
    )
    max_empty_patches: int = Field(
        default=100, ge=1, description="empty PATCH requests in a row on one upload before 403"
    )


class TusConfig(Section):
    """The tus 1.0.0 extensions."""

    disable: list[
        Literal[
            "creation-with-upload", "creation-defer-length", "expiration", "checksum",
            "termination", "concatenation", "concatenation-unfinished",
        ]
    ] = Field(default=[], description="extensions to switch off and not to announce")  # fmt: skip
    checksum_trailer: bool = Field(
        default=False,
        description="accept Upload-Checksum as a trailer; only over connections no proxy rewrites",
    )
    expire_after: Seconds = Field(
        default=7 * 86400,
        ge=0,
        description="an unfinished upload is removed this long after its last byte; 0: never",
    )
    gone_status: Annotated[Literal[404, 410], BeforeValidator(number_in_text)] = Field(
        default=404, description="answer for an upload that is gone; some clients give up on 410"
    )


class RufhConfig(Section):
    """Resumable Uploads for HTTP of the IETF, beside tus at the same URLs."""

    enabled: bool = Field(default=True, description="off: its requests are refused as tus without a version")
    interim_104: bool = Field(
        default=False,
        description="tell clients their URL by 104 while they send; breaks behind nginx, fine with HAProxy, Caddy",
    )
    max_append_size: Bytes = Field(
        default=0, ge=0, le=MAX_LENGTH, description="largest body of one request, for a proxy's limit; 0: none"
    )
