"""`[database]`: PostgreSQL, the embedded one or another."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, Field

from tusd_py.config.sections.base import OptionalSecret, PositiveSeconds, Section

FEW_CONNECTIONS: Final = 12
"""Most connections of a process other than an HTTP process."""


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
        description="user of the private server if root starts it; empty: the owner of its data, or postgres",
    )
    pool_size: int = Field(
        default=32,
        ge=1,
        le=200,
        description=f"most connections of an HTTP process; others take up to {FEW_CONNECTIONS}",
    )
    connect_timeout: PositiveSeconds = Field(default=5, description="longest wait for a new connection")
    command_timeout: PositiveSeconds = Field(default=10, description="longest time of one statement")
    statement_cache_size: int = Field(
        default=1024, ge=0, description="0 behind a transaction pooler older than pgbouncer 1.21"
    )
    migrate_at_start: bool = Field(default=True, description='off: run "tusd-py migrate" before an upgrade')
