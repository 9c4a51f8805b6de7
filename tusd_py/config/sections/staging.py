"""`[staging]`: the disk that receives the bytes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tusd_py.config.sections.base import MIB, OptionalPath, PositiveSeconds, Section
from tusd_py.config.units import Bytes


class StagingConfig(Section):
    """The disk that receives the bytes."""

    directory: OptionalPath = Field(default=None, description="empty: <data_dir>/staging")
    durability: Literal["fsync", "page-cache"] = Field(
        default="fsync",
        description="page-cache: bytes are acknowledged before they are on the disk, and a power cut may lose them",
    )
    write_path: Literal["auto", "page-cache", "direct", "dontcache"] = Field(
        default="auto",
        description="how blocks are written; auto: the cheapest way that the file system supports",
    )
    block_size: Annotated[Bytes, Field(ge=65536, le=16 * MIB)] = Field(
        default=3 * MIB // 2, description="bytes gathered from the socket before each write"
    )
    buffer_budget: Annotated[Bytes, Field(ge=MIB)] = Field(
        default=8 * MIB,
        description="memory for the bodies of a process; beyond it, blocks become smaller",
    )
    write_threads: int = Field(default=16, ge=1, le=64, description="threads of a process for writes and syncs")
    checkpoint_bytes: Annotated[Bytes, Field(ge=MIB)] = Field(
        default=64 * MIB, description="during a long PATCH, sync and record the offset after this many bytes"
    )
    checkpoint_seconds: PositiveSeconds = Field(default=5, description="and after this time")
    lock_timeout: PositiveSeconds = Field(
        default=10, description="how long a request waits for an earlier one on the same upload; then 423"
    )
    reserve: Bytes = Field(
        default=256 * MIB,
        ge=0,
        description="free space that uploads may not use; below it, creation is refused with 507",
    )
