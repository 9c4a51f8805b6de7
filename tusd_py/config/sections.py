"""The sections of the configuration: every key, its type, its default and one line of why.

`config.example.toml` and the reference in the documentation are generated from these classes, so a
key's description is written here and nowhere else.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from tusd_py.config.units import Bytes, Secret, Seconds

MIB = 2**20
GIB = 2**30


def _network(value: str) -> str:
    ipaddress.ip_network(value, strict=False)
    return value


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.query or parts.fragment:
        raise ValueError("an absolute http:// or https:// URL without query is expected")
    return value.rstrip("/")


def _base_path(value: str) -> str:
    if not value.startswith("/") or "//" in value or any(c in value for c in " ?#{}%"):
        raise ValueError('a path like "/files" is expected')
    if (stripped := value.rstrip("/")) in {"", "/api", "/download"}:
        raise ValueError(f"{value!r} is used by the server itself; choose another path")
    return stripped


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


Network = Annotated[str, AfterValidator(_network)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
OptionalHttpUrl = Annotated[HttpUrl | None, BeforeValidator(_empty_is_none)]
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_none)]
OptionalSecret = Annotated[Secret | None, BeforeValidator(_empty_is_none)]
OptionalText = Annotated[str | None, BeforeValidator(_empty_is_none)]
Port = Annotated[int, Field(ge=0, le=65535)]
PositiveBytes = Annotated[Bytes, Field(gt=0)]
PositiveSeconds = Annotated[Seconds, Field(gt=0)]


class Section(BaseModel):
    """A table of the configuration file. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ServerConfig(Section):
    """The public listener."""

    host: str = Field("127.0.0.1", description="address to listen on; other than loopback needs [auth]")
    port: Port = Field(1080, description="port to listen on; 0 takes a free one")
    base_path: Annotated[str, AfterValidator(_base_path)] = Field(
        "/files", description="where uploads are created; works with and without a trailing slash"
    )
    public_url: OptionalHttpUrl = Field(
        None, description="external origin (and prefix) that makes Location absolute; empty: a path, right behind any proxy"
    )
    trusted_proxies: list[Network] = Field(
        [], description="networks whose Forwarded and X-Forwarded-* headers are believed"
    )
    processes: int = Field(1, ge=1, le=64, description="HTTP processes sharing the port")
    event_loop: Literal["auto", "uvloop", "asyncio"] = Field("auto", description="auto: uvloop where it is installed")
    node: str = Field("", description="name of the node whose disk holds the staging files; empty: the host name")
    keepalive_timeout: PositiveSeconds = Field(
        75, description="idle time before a kept-alive connection closes; must exceed the proxy's (nginx: 60s)"
    )
    shutdown_timeout: PositiveSeconds = Field(
        15, description="how long SIGTERM waits for requests to store what they have and answer"
    )


class CorsConfig(Section):
    """Cross-origin access by browsers."""

    enabled: bool = Field(True, description="off when the proxy in front adds the headers itself")
    allow_origins: list[str] = Field(
        ["*"], description='exact origins, with * as a wildcard inside one: "https://*.example.com"'
    )
    allow_credentials: bool = Field(False, description="allow cookies; needs explicit origins")
    allow_headers: list[str] = Field([], description="request headers to allow besides the protocol's own")
    expose_headers: list[str] = Field([], description="response headers to expose besides the protocol's own")
    max_age: Seconds = Field(86400, ge=0, description="how long a browser may cache a preflight")


class LimitsConfig(Section):
    """What one client may ask for."""

    max_size: Bytes = Field(0, ge=0, description="largest upload; 0: no limit")
    max_metadata: PositiveBytes = Field(16384, le=65536, description="largest Upload-Metadata header")
    max_parts: int = Field(1000, ge=1, description="most parts of one concatenation")
    idle_timeout: PositiveSeconds = Field(
        60, description="longest wait for the next byte of a body; there is no limit on a whole request"
    )
    min_rate: Bytes = Field(0, ge=0, description="bytes per second a body must keep up over 30s; 0: off")
    max_connections_per_client: int = Field(0, ge=0, description="open uploads bodies per client address; 0: no limit")
    max_empty_patches: int = Field(100, ge=1, description="empty PATCH requests in a row on one upload before 429")


class TusConfig(Section):
    """The tus 1.0.0 extensions."""

    disable: list[
        Literal[
            "creation-with-upload", "creation-defer-length", "expiration", "checksum",
            "termination", "concatenation", "concatenation-unfinished",
        ]
    ] = Field([], description="extensions to switch off and not to announce")  # fmt: skip
    checksum_trailer: bool = Field(
        False, description="accept Upload-Checksum as a trailer; only over connections no proxy rewrites"
    )
    expire_after: Seconds = Field(
        7 * 86400, ge=0, description="an unfinished upload is removed this long after its last byte; 0: never"
    )
    gone_status: Literal[404, 410] = Field(
        404, description="answer for an upload that is gone; some clients give up on 410"
    )


class StagingConfig(Section):
    """The disk that receives the bytes."""

    directory: OptionalPath = Field(None, description="empty: <data_dir>/staging")
    durability: Literal["fsync", "page-cache"] = Field(
        "fsync", description="page-cache acknowledges before the disk has the bytes: a power cut may lose them"
    )
    write_path: Literal["auto", "page-cache", "direct", "dontcache"] = Field(
        "auto", description="how blocks reach the disk; auto takes the cheapest one the file system knows"
    )
    block_size: Annotated[Bytes, Field(ge=65536, le=16 * MIB)] = Field(
        MIB, description="bytes gathered from the socket before they are written"
    )
    buffer_budget: Annotated[Bytes, Field(ge=MIB)] = Field(
        16 * MIB, description="bytes that all bodies of a process may hold before blocks become smaller"
    )
    write_threads: int = Field(4, ge=1, le=64, description="threads of a process that write and sync")
    checkpoint_bytes: Annotated[Bytes, Field(ge=MIB)] = Field(
        64 * MIB, description="during a long PATCH the offset is made durable after so many bytes"
    )
    checkpoint_seconds: PositiveSeconds = Field(5, description="and after so much time")
    lock_timeout: PositiveSeconds = Field(
        10, description="how long a request waits for an earlier one on the same upload before 423"
    )
    reserve: Bytes = Field(
        256 * MIB, ge=0, description="free space that uploads may not use; below it creation answers 507"
    )


class DatabaseConfig(Section):
    """PostgreSQL, 15 or newer."""

    dsn: OptionalSecret = Field(
        None, description="postgresql://user:password@host/database; empty: a private server under data_dir"
    )
    listen_dsn: OptionalSecret = Field(
        None, description="direct connection for LISTEN when dsn goes through a transaction pooler"
    )
    pool_size: int = Field(10, ge=1, le=200, description="most connections per process")
    connect_timeout: PositiveSeconds = Field(5, description="longest wait for a new connection")
    command_timeout: PositiveSeconds = Field(10, description="longest run of one statement")
    statement_cache_size: int = Field(1024, ge=0, description="0 behind a transaction pooler older than pgbouncer 1.21")
    migrate_at_start: bool = Field(True, description='off: run "tusd-py migrate" yourself before an upgrade')


class FilesystemStoreConfig(Section):
    """The store of finished uploads on a disk."""

    directory: OptionalPath = Field(None, description="empty: <data_dir>/store")


class S3ClientConfig(Section):
    """Timeouts and pools of the S3 client."""

    connect_timeout: PositiveSeconds = Field(10, description="longest wait for a connection")
    read_timeout: PositiveSeconds = Field(60, description="longest wait for the next byte of an answer")
    max_pool_connections: int = Field(32, ge=1, description="most connections per process")
    max_attempts: int = Field(3, ge=1, le=10, description="tries of one call inside one transfer attempt")


class S3StoreConfig(Section):
    """The store of finished uploads in S3 or something that speaks its protocol."""

    bucket: str = Field("", description="required with backend = s3")
    endpoint_url: OptionalHttpUrl = Field(None, description="for S3-compatible services; empty: AWS")
    public_endpoint_url: OptionalHttpUrl = Field(
        None, description="the endpoint as browsers reach it; presigned URLs use it"
    )
    region: str = Field("us-east-1", description="region of the bucket")
    access_key: OptionalSecret = Field(None, description="both keys or none; none: the usual AWS credential chain")
    secret_key: OptionalSecret = Field(None, description="both keys or none")
    session_token: OptionalSecret = Field(None, description="for temporary keys")
    profile: OptionalText = Field(None, description="profile of the AWS configuration files; excludes keys")
    addressing_style: Literal["", "virtual", "path", "auto"] = Field(
        "", description="empty: path with endpoint_url, else virtual"
    )
    location: str = Field("", description="prefix of every key, without a leading slash")
    checksum: Literal["auto", "crc64nvme", "sha256", "md5", "none"] = Field(
        "auto", description="what the store verifies; auto: crc64nvme where it is known, else md5"
    )
    multipart_threshold: Annotated[Bytes, Field(ge=5 * MIB, le=5 * GIB)] = Field(
        16 * MIB, description="larger uploads are sent in parts"
    )
    part_size: Annotated[Bytes, Field(ge=5 * MIB, le=5 * GIB)] = Field(
        16 * MIB, description="raised by itself where an upload would need more than max_parts"
    )
    max_parts: int = Field(10_000, ge=1, le=10_000, description="most parts of one object (Scaleway: 1000)")
    part_concurrency: int = Field(4, ge=1, le=64, description="parts of one upload under way at once")
    file_overwrite: bool = Field(False, description="off: If-None-Match refuses to replace a foreign object")
    acl: str = Field("", description="canned ACL; empty: none is sent, as buckets without ACLs demand")
    storage_class: str = Field("", description="empty: the bucket's default")
    sse: Literal["", "AES256", "aws:kms"] = Field("", description="server-side encryption")
    sse_kms_key_id: str = Field("", description="key for aws:kms; empty: the account's default")
    cache_control: str = Field("private, max-age=86400", description="stored with every object")
    verify_tls: bool | Path = Field(True, description="false, or a file with the CA certificates to trust")
    client: S3ClientConfig = Field(default_factory=S3ClientConfig, description="timeouts and pools")


class StorageConfig(Section):
    """Where finished uploads go."""

    backend: Literal["filesystem", "s3"] = Field("filesystem", description="one switch; everything else stays the same")
    key_template: str = Field(
        "{yyyy}/{mm}/{dd}/{id}",
        description="key of a finished upload from {id} {yyyy} {mm} {dd} {owner_hash}; must contain {id}",
    )
    filesystem: FilesystemStoreConfig = Field(default_factory=FilesystemStoreConfig)
    s3: S3StoreConfig = Field(default_factory=S3StoreConfig)


class TransferConfig(Section):
    """The worker that moves finished uploads to the store."""

    workers: int = Field(1, ge=0, le=16, description='worker processes of "serve"; 0: run "tusd-py worker" elsewhere')
    concurrency: int = Field(4, ge=1, le=256, description="uploads one worker moves at once")
    max_retries: int = Field(5, ge=0, description="tries after the first before transfer_failed")
    retry_delay: PositiveSeconds = Field(60, description="wait before the first retry")
    retry_backoff: float = Field(2.0, ge=1, description="factor by which the wait grows")
    retry_max_delay: PositiveSeconds = Field(3600, description="longest wait between tries")
    lease: Annotated[Seconds, Field(ge=1)] = Field(
        60, description="a job of a worker that is silent for so long goes to another"
    )
    poll_interval: PositiveSeconds = Field(5, description="safety net beside NOTIFY")
    delete_local: bool = Field(True, description="remove the staged copy once the upload is stored")
    delete_local_after: Seconds = Field(0, ge=0, description="and keep it for so long first")
    requeue_failed_after: Seconds = Field(0, ge=0, description="try failed transfers again after so long; 0: by hand")


class JwtConfig(Section):
    """Bearer tokens (RFC 7519) in `Authorization`."""

    secret: OptionalSecret = Field(None, description="HS256 key of at least 32 bytes; excludes jwks_file")
    jwks_file: OptionalPath = Field(None, description="public keys as a JWK set (RFC 7517)")
    algorithms: list[Literal["HS256", "HS384", "HS512", "RS256", "ES256", "EdDSA"]] = Field(
        ["HS256"], description="accepted signatures; with jwks_file name its algorithms here"
    )
    issuer: OptionalText = Field(None, description="required iss; empty: any")
    audience: OptionalText = Field(None, description="required aud; empty: any")
    create_scope: str = Field("", description="scope a token needs to create uploads; empty: none")
    read_any_scope: str = Field("files:read:any", description="scope that may see and download everybody's uploads")
    leeway: Seconds = Field(30, ge=0, description="tolerated difference between clocks")
    resume_grace: Seconds = Field(
        86400, ge=0, description="an expired token of the owner may still resume its upload for so long"
    )


class AuthConfig(Section):
    """Who may upload and download."""

    mode: Literal["none", "jwt"] = Field("none", description="none: everybody; only on loopback")
    allow_anonymous: bool = Field(
        False, description="say true to run mode = none on an address that others can reach"
    )
    jwt: JwtConfig = Field(default_factory=JwtConfig)


class DownloadsConfig(Section):
    """Links to finished uploads."""

    enabled: bool = Field(True, description="off: GET answers 405")
    url_expiry: Annotated[Seconds, Field(ge=1, le=604800)] = Field(
        300, description="life of a presigned URL; it is made anew for every click"
    )
    inline_types: list[str] = Field(
        [
            "image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp",
            "video/mp4", "video/webm", "audio/mpeg", "audio/mp4", "audio/ogg", "audio/wav", "audio/webm",
            "application/pdf", "text/plain",
        ],
        description="types a browser may show; everything else is saved as a file",
    )  # fmt: skip


class CleanupConfig(Section):
    """Removal of what nobody needs any more."""

    interval: PositiveSeconds = Field(60, description="time between two passes")
    tombstones_after: Seconds = Field(7 * 86400, ge=0, description="rows of removed uploads are kept for so long")
    orphans_after: Annotated[Seconds, Field(ge=60)] = Field(
        86400, description="staging files without a row are removed after so long"
    )
    events_after: Seconds = Field(7 * 86400, ge=0, description="recorded events are kept for so long")


class OperationsConfig(Section):
    """Health, readiness and metrics, on a port of their own."""

    enabled: bool = Field(True, description="off: no listener")
    host: str = Field("127.0.0.1", description="address to listen on; keep it off the public network")
    port: Port = Field(1081, description="port to listen on; 0 takes a free one")


class LoggingConfig(Section):
    """What is logged, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level")
    format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal, else json")
    requests: bool = Field(True, description="one line per request")
