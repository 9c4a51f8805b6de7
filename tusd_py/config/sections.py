"""The sections of the configuration: every key, its type, its default and one line of why.

`config.example.toml` and the reference in the documentation are generated from these classes, so a
key's description is written here and nowhere else.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationInfo,
    field_validator,
)

from tusd_py.config.units import Bytes, Seconds, Secret

MIB = 2**20
GIB = 2**30
MAX_LENGTH: Final = 2**63 - 1
"""The largest length that the protocol's headers and a `bigint` can hold, in bytes."""

UNIX_PEER: Final = "unix"
"""Stands among networks for whoever connects through a unix socket."""

_URL: Final = re.compile(r"[Hh][Tt][Tt][Pp][Ss]?://(?:(?![?#])[!-~])+")
_BASE_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)+/?")
_MEDIA_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*")


def _network(value: str) -> str:
    if value != UNIX_PEER:
        ipaddress.ip_network(value, strict=False)
    return value


def _http_url(value: str) -> str:
    # urlsplit drops line breaks in silence and looks at the port only when asked for it.
    try:
        parts = urlsplit(value)
        usable = bool(
            _URL.fullmatch(value) and parts.hostname and parts.port != 0 and "@" not in parts.netloc
        )
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("an absolute http:// or https:// URL without user and query is expected")
    return value.rstrip("/")


def _base_path(value: str) -> str:
    stripped = value.rstrip("/")
    if stripped in {"", "/api"} or f"{stripped}/".startswith(("/api/v1/", "/download/", "/assets/")):
        raise ValueError(f"{value!r} is used by the server itself; choose another path")
    if not _BASE_PATH.fullmatch(value) or {".", ".."} & set(value.split("/")):
        raise ValueError('a path like "/files" is expected')
    return stripped


def _media_type(value: str) -> str:
    if not _MEDIA_TYPE.fullmatch(lowered := value.lower()):
        raise ValueError(f'{value!r} is not a media type like "image/png"')
    return lowered


def _verify_tls(value: object) -> object:
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if not isinstance(value, (bool, str, Path)) or value == "":
        raise ValueError("true, false or the path of a file with CA certificates is expected")
    return value if isinstance(value, bool) else Path(value)


def _number_in_text(value: object) -> object:
    # The environment knows only text, and a Literal of numbers is not converted.
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value) else value


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


Network = Annotated[str, AfterValidator(_network)]
MediaType = Annotated[str, AfterValidator(_media_type)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
OptionalHttpUrl = Annotated[HttpUrl | None, BeforeValidator(_empty_is_none)]
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_none)]
OptionalSecret = Annotated[Secret | None, BeforeValidator(_empty_is_none)]
OptionalText = Annotated[str | None, BeforeValidator(_empty_is_none)]
Port = Annotated[int, Field(ge=0, le=65535)]
OptionalPort = Annotated[Port | None, BeforeValidator(_empty_is_none)]
PositiveBytes = Annotated[Bytes, Field(gt=0)]
PositiveSeconds = Annotated[Seconds, Field(gt=0)]


class Section(BaseModel):
    """A table of the configuration file. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans_as_numbers(cls, value: object, info: ValidationInfo) -> object:
        # pydantic reads true as 1: port = true would listen on port 1.
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation in {int, float}:
            raise ValueError("a number is expected, not true or false")
        return value


class ServerConfig(Section):
    """The public listener."""

    host: str = Field(
        default="127.0.0.1", description="address to listen on; other than loopback needs [auth]"
    )
    port: Port = Field(default=1080, description="port to listen on; 0 takes a free one")
    base_path: Annotated[str, AfterValidator(_base_path)] = Field(
        default="/files", description="where uploads are created; works with and without a trailing slash"
    )
    page: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="upload page at /; auto: with auth.mode = none on loopback; it knows of no tokens",
    )
    public_url: OptionalHttpUrl = Field(
        default=None,
        description="external origin (and prefix) for an absolute Location; empty: a path, fit for any proxy",
    )
    trusted_proxies: list[Network] = Field(
        default=[],
        description='networks whose Forwarded and X-Forwarded-* headers are believed ("unix": a socket)',
    )
    processes: int = Field(default=1, ge=1, le=64, description="HTTP processes sharing the port")
    event_loop: Literal["auto", "uvloop", "asyncio"] = Field(
        default="auto", description="auto: uvloop where it is installed"
    )
    node: str = Field(
        default="", description="name of the node whose disk holds the staging files; empty: the host name"
    )
    keepalive_timeout: PositiveSeconds = Field(
        default=75,
        description="idle time before a kept-alive connection closes; must exceed the proxy's (nginx: 60s)",
    )
    shutdown_timeout: PositiveSeconds = Field(
        default=15, description="how long SIGTERM waits for requests to store what they have and answer"
    )


class CorsConfig(Section):
    """Cross-origin access by browsers."""

    enabled: bool = Field(default=True, description="off when the proxy in front adds the headers itself")
    allow_origins: list[str] = Field(
        default=["*"], description='exact origins, with * as a wildcard inside one: "https://*.example.com"'
    )
    allow_credentials: bool = Field(default=False, description="allow cookies; needs explicit origins")
    allow_headers: list[str] = Field(
        default=[], description="request headers to allow besides the protocol's own"
    )
    expose_headers: list[str] = Field(
        default=[], description="response headers to expose besides the protocol's own"
    )
    max_age: Seconds = Field(default=86400, ge=0, description="how long a browser may cache a preflight")


class LimitsConfig(Section):
    """What one client may ask for."""

    max_size: Bytes = Field(default=0, ge=0, le=MAX_LENGTH, description="largest upload; 0: no limit")
    max_metadata: PositiveBytes = Field(default=16384, le=65536, description="largest Upload-Metadata header")
    max_parts: int = Field(default=1000, ge=1, description="most parts of one concatenation")
    idle_timeout: PositiveSeconds = Field(
        default=60,
        description="longest wait for the next byte of a body; there is no limit on a whole request",
    )
    min_rate: Bytes = Field(
        default=0, ge=0, description="bytes per second a body must keep up over 30s; 0: off"
    )
    max_connections_per_client: int = Field(
        default=0, ge=0, description="open upload bodies per client address; 0: no limit"
    )
    max_empty_patches: int = Field(
        default=100, ge=1, description="empty PATCH requests in a row on one upload before 429"
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
    gone_status: Annotated[Literal[404, 410], BeforeValidator(_number_in_text)] = Field(
        default=404, description="answer for an upload that is gone; some clients give up on 410"
    )


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


class DatabaseConfig(Section):
    """PostgreSQL, 15 or newer."""

    dsn: OptionalSecret = Field(
        default=None,
        description="postgresql://user:password@host/database; empty: a private server under data_dir",
    )
    listen_dsn: OptionalSecret = Field(
        default=None, description="direct connection for LISTEN when dsn goes through a transaction pooler"
    )
    pool_size: int = Field(
        default=32, ge=1, le=200, description="most connections of an HTTP process; others take up to 12"
    )
    connect_timeout: PositiveSeconds = Field(default=5, description="longest wait for a new connection")
    command_timeout: PositiveSeconds = Field(default=10, description="longest run of one statement")
    statement_cache_size: int = Field(
        default=1024, ge=0, description="0 behind a transaction pooler older than pgbouncer 1.21"
    )
    migrate_at_start: bool = Field(
        default=True, description='off: run "tusd-py migrate" yourself before an upgrade'
    )


class FilesystemStoreConfig(Section):
    """The store of finished uploads on a disk."""

    directory: OptionalPath = Field(default=None, description="empty: <data_dir>/store")


class S3ClientConfig(Section):
    """Timeouts and pools of the S3 client."""

    connect_timeout: PositiveSeconds = Field(default=10, description="longest wait for a connection")
    read_timeout: PositiveSeconds = Field(
        default=60, description="longest wait for the next byte of an answer"
    )
    max_pool_connections: int = Field(default=32, ge=1, description="most connections per process")
    max_attempts: int = Field(
        default=3, ge=1, le=10, description="tries of one call inside one transfer attempt"
    )


class S3StoreConfig(Section):
    """The store of finished uploads in S3 or something that speaks its protocol."""

    bucket: str = Field(default="", description="required with backend = s3")
    endpoint_url: OptionalHttpUrl = Field(default=None, description="for S3-compatible services; empty: AWS")
    public_endpoint_url: OptionalHttpUrl = Field(
        default=None, description="the endpoint as browsers reach it; presigned URLs use it"
    )
    region: str = Field(default="us-east-1", description="region of the bucket")
    access_key: OptionalSecret = Field(
        default=None, description="both keys or none; none: the usual AWS credential chain"
    )
    secret_key: OptionalSecret = Field(default=None, description="both keys or none")
    session_token: OptionalSecret = Field(default=None, description="for temporary keys")
    profile: OptionalText = Field(
        default=None, description="profile of the AWS configuration files; excludes keys"
    )
    addressing_style: Literal["", "virtual", "path", "auto"] = Field(
        default="", description="empty: path with endpoint_url, else virtual"
    )
    location: str = Field(default="", description="prefix of every key, without a leading slash")
    checksum: Literal["auto", "crc64nvme", "sha256", "md5", "none"] = Field(
        default="auto", description="what the store verifies; auto: crc64nvme where it is known, else md5"
    )
    multipart_threshold: Annotated[Bytes, Field(ge=5 * MIB, le=5 * GIB)] = Field(
        default=16 * MIB, description="larger uploads are sent in parts"
    )
    part_size: Annotated[Bytes, Field(ge=5 * MIB, le=5 * GIB)] = Field(
        default=16 * MIB, description="raised by itself where an upload would need more than max_parts"
    )
    max_parts: int = Field(
        default=10_000, ge=1, le=10_000, description="most parts of one object (Scaleway: 1000)"
    )
    part_concurrency: int = Field(default=4, ge=1, le=64, description="parts of one upload under way at once")
    file_overwrite: bool = Field(
        default=False, description="off: If-None-Match refuses to replace a foreign object"
    )
    acl: str = Field(
        default="", description="canned ACL; empty: none is sent, as buckets without ACLs demand"
    )
    storage_class: str = Field(default="", description="empty: the bucket's default")
    sse: Literal["", "AES256", "aws:kms"] = Field(default="", description="server-side encryption")
    sse_kms_key_id: str = Field(default="", description="key for aws:kms; empty: the account's default")
    cache_control: str = Field(default="private, max-age=86400", description="stored with every object")
    verify_tls: Annotated[bool | Path, BeforeValidator(_verify_tls)] = Field(
        default=True, description="false, or a file with the CA certificates to trust"
    )
    client: S3ClientConfig = Field(default_factory=S3ClientConfig, description="timeouts and pools")


class StorageConfig(Section):
    """Where finished uploads go."""

    backend: Literal["filesystem", "s3"] = Field(
        default="filesystem", description="one switch; everything else stays the same"
    )
    key_template: str = Field(
        default="{yyyy}/{mm}/{dd}/{id}",
        description="key of a finished upload from {id} {yyyy} {mm} {dd} {owner_hash}; must contain {id}",
    )
    filesystem: FilesystemStoreConfig = Field(default_factory=FilesystemStoreConfig)
    s3: S3StoreConfig = Field(default_factory=S3StoreConfig)


class TransferConfig(Section):
    """The worker that moves finished uploads to the store."""

    workers: int = Field(
        default=1, ge=0, le=16, description='worker processes of "serve"; 0: run "tusd-py worker" elsewhere'
    )
    concurrency: int = Field(default=4, ge=1, le=256, description="uploads one worker moves at once")
    max_retries: int = Field(default=5, ge=0, description="tries after the first before transfer_failed")
    retry_delay: PositiveSeconds = Field(default=60, description="wait before the first retry")
    retry_backoff: FiniteFloat = Field(default=2.0, ge=1, description="factor by which the wait grows")
    retry_max_delay: PositiveSeconds = Field(default=3600, description="longest wait between tries")
    lease: Annotated[Seconds, Field(ge=1)] = Field(
        default=60, description="a job of a worker that is silent for so long goes to another"
    )
    poll_interval: PositiveSeconds = Field(default=5, description="safety net beside NOTIFY")
    delete_local: bool = Field(default=True, description="remove the staged copy once the upload is stored")
    delete_local_after: Seconds = Field(default=0, ge=0, description="and keep it for so long first")
    requeue_failed_after: Seconds = Field(
        default=0, ge=0, description="try failed transfers again after so long; 0: by hand"
    )


class JwtConfig(Section):
    """Bearer tokens (RFC 7519) in `Authorization`."""

    secret: OptionalSecret = Field(
        default=None, description="HS256 key of at least 32 bytes (HS384: 48, HS512: 64); excludes jwks_file"
    )
    jwks_file: OptionalPath = Field(default=None, description="public keys as a JWK set (RFC 7517)")
    algorithms: list[Literal["HS256", "HS384", "HS512", "RS256", "ES256", "EdDSA"]] = Field(
        default=["HS256"], description="accepted signatures; with jwks_file name its algorithms here"
    )
    issuer: OptionalText = Field(default=None, description="required iss; empty: any")
    audience: OptionalText = Field(default=None, description="required aud; empty: any")
    create_scope: str = Field(default="", description="scope a token needs to create uploads; empty: none")
    read_any_scope: str = Field(
        default="files:read:any", description="scope that may see and download everybody's uploads"
    )
    leeway: Seconds = Field(default=30, ge=0, description="tolerated difference between clocks")
    resume_grace: Seconds = Field(
        default=86400,
        ge=0,
        description="an expired token of the owner may still resume its upload for so long",
    )


class AuthConfig(Section):
    """Who may upload and download."""

    mode: Literal["none", "jwt"] = Field(default="none", description="none: everybody; only on loopback")
    allow_anonymous: bool = Field(
        default=False, description="say true to run mode = none on an address that others can reach"
    )
    jwt: JwtConfig = Field(default_factory=JwtConfig)


class DownloadsConfig(Section):
    """Links to finished uploads."""

    enabled: bool = Field(default=True, description="off: GET answers 405")
    url_expiry: Annotated[Seconds, Field(ge=1, le=604800)] = Field(
        default=300, description="life of a presigned URL; it is made anew for every click"
    )
    inline_types: list[MediaType] = Field(
        default=[
            "image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp",
            "video/mp4", "video/webm", "audio/mpeg", "audio/mp4", "audio/ogg", "audio/wav", "audio/webm",
            "application/pdf", "text/plain",
        ],
        description="types a browser may show; everything else is saved as a file",
    )  # fmt: skip


class CleanupConfig(Section):
    """Removal of what nobody needs any more."""

    interval: PositiveSeconds = Field(default=60, description="time between two passes")
    tombstones_after: Seconds = Field(
        default=7 * 86400, ge=0, description="rows of removed uploads are kept for so long"
    )
    orphans_after: Annotated[Seconds, Field(ge=60)] = Field(
        default=86400, description="staging files without a row are removed after so long"
    )
    events_after: Seconds = Field(default=7 * 86400, ge=0, description="recorded events are kept for so long")


class OperationsConfig(Section):
    """Health, readiness and metrics, on a port of their own."""

    enabled: bool = Field(default=True, description="off: no listener")
    host: str = Field(default="127.0.0.1", description="address to listen on; keep it off the public network")
    port: OptionalPort = Field(
        default=None, description="port to listen on; empty: the one after the server's; 0 takes a free one"
    )


class LoggingConfig(Section):
    """What is logged, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level")
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, else json"
    )
    requests: bool = Field(default=True, description="one line per request")
