"""What this node keeps: the staging disk and the database."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from tusd_py.config.sections.base import MIB, OptionalPath, OptionalSecret, PositiveSeconds, Section
from tusd_py.config.units import Bytes


class StagingConfig(Section):
    """The disk that receives the bytes."""

    directory: OptionalPath = Field(default=None, description="empty: <data_dir>/staging")
    durability: Literal["fsync", "page-cache"] = Field(
        default="fsync",
        description="page-cache acknowledges before the disk has the bytes: a power cut may lose them",
    )
    write_path: Literal["auto", "page-cache", "direct", "dontcache"] = Field(
        default="auto",
        description="how blocks reach the disk; auto takes the cheapest one the file system knows",
    )
    block_size: Annotated[Bytes, Field(ge=65536, le=16 * MIB)] = Field(
        default=3 * MIB // 2, description="bytes gathered from the socket before they are written"
    )
    buffer_budget: Annotated[Bytes, Field(ge=MIB)] = Field(
        default=8 * MIB,
        description="bytes that all bodies of a process may hold before blocks become smaller",
    )
    write_threads: int = Field(default=16, ge=1, le=64, description="threads of a process that write and sync")
    checkpoint_bytes: Annotated[Bytes, Field(ge=MIB)] = Field(
        default=64 * MIB, description="during a long PATCH the offset is made durable after so many bytes"
    )
    checkpoint_seconds: PositiveSeconds = Field(default=5, description="and after so much time")
    lock_timeout: PositiveSeconds = Field(
        default=10, description="how long a request waits for an earlier one on the same upload before 423"
    )
    reserve: Bytes = Field(
        default=256 * MIB,
        ge=0,
        description="free space that uploads may not use; below it creation answers 507",
    )


FEW_CONNECTIONS: Final = 12
"""Most connections of a process that is no HTTP process."""


def _account(value: str) -> str:
    if value in {"root", "nobody"}:
        raise ValueError(f"PostgreSQL must not run as {value}; name a user of its own")
    return value


class DatabaseConfig(Section):
    """PostgreSQL, 15 or newer."""

    dsn: OptionalSecret = Field(
        default=None,
        description="postgresql://user:password@host/database; empty: a private server under data_dir",
    )
    listen_dsn: OptionalSecret = Field(
        default=None, description="direct connection for LISTEN when dsn goes through a transaction pooler"
    )
    embedded_user: Annotated[str, AfterValidator(_account)] = Field(
        default="",
        description="whom the private server runs as when root starts it; empty: the data's owner, or postgres",
    )
    pool_size: int = Field(
        default=32,
        ge=1,
        le=200,
        description=f"most connections of an HTTP process; others take up to {FEW_CONNECTIONS}",
    )
    connect_timeout: PositiveSeconds = Field(default=5, description="longest wait for a new connection")
    command_timeout: PositiveSeconds = Field(default=10, description="longest run of one statement")
    statement_cache_size: int = Field(
        default=1024, ge=0, description="0 behind a transaction pooler older than pgbouncer 1.21"
    )
    migrate_at_start: bool = Field(default=True, description='off: run "tusd-py migrate" yourself before an upgrade')
