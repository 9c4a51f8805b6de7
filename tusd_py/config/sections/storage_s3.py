"""`[storage.s3]`, its `client` and `proxies`: the store in S3, or in something that speaks its protocol."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from tusd_py.config.sections.base import (
    GIB,
    MIB,
    OptionalHttpUrl,
    OptionalPath,
    OptionalSecret,
    OptionalText,
    PositiveSeconds,
    Section,
)
from tusd_py.config.sections.object_parameters import ObjectParameters, storage_parameters
from tusd_py.config.units import Bytes

_DOMAIN: Final = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*(?::[0-9]{1,5})?")


def _domain(value: str) -> str:
    if value and not _DOMAIN.fullmatch(value):
        raise ValueError('a host like "cdn.example.com" is expected; url_protocol says how to reach it')
    return value


def _verify_tls(value: object) -> object:
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if not isinstance(value, (bool, str, Path)) or value == "":
        raise ValueError("true, false or the path of a file with CA certificates is expected")
    return value if isinstance(value, bool) else Path(value)


def _proxy_url(value: SecretStr | None) -> SecretStr | None:
    if value:
        parts = urlsplit(value.get_secret_value())
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError('a URL like "http://user:password@proxy.example.com:3128" is expected')
    return value


ProxyUrl = Annotated[OptionalSecret, AfterValidator(_proxy_url)]


class S3ClientConfig(Section):
    """Timeouts and pools of the S3 client."""

    connect_timeout: PositiveSeconds = Field(default=10, description="longest wait for a connection")
    read_timeout: PositiveSeconds = Field(
        default=60,
        description="longest wait for the next byte of a response, or for the server to accept more of a body",
    )
    max_pool_connections: int = Field(default=32, ge=1, description="most connections per process")
    max_attempts: int = Field(default=3, ge=1, le=10, description="most tries of a call per attempt of a transfer")


class S3ProxiesConfig(Section):
    """Proxies on the way to S3; empty: what HTTP_PROXY, HTTPS_PROXY and NO_PROXY say."""

    http: ProxyUrl = Field(default=None, description="URL of the proxy for http endpoints; may hold a password")
    https: ProxyUrl = Field(default=None, description="URL of the proxy for https endpoints")


class S3StoreConfig(Section):
    """The store of finished uploads in S3 or a service with its API."""

    bucket: str = Field(default="", description="required with backend = s3")
    endpoint_url: OptionalHttpUrl = Field(default=None, description="for S3-compatible services; empty: AWS")
    public_endpoint_url: OptionalHttpUrl = Field(
        default=None, description="the endpoint as browsers reach it; presigned URLs use it"
    )
    region: str = Field(default="us-east-1", min_length=1, description="region of the bucket")
    access_key: OptionalSecret = Field(
        default=None, description="both keys or none; none: the usual AWS credential chain"
    )
    secret_key: OptionalSecret = Field(default=None, description="both keys or none")
    session_token: OptionalSecret = Field(default=None, description="for temporary keys")
    profile: OptionalText = Field(default=None, description="profile of the AWS configuration files; excludes keys")
    addressing_style: Literal["", "virtual", "path", "auto"] = Field(
        default="", description="empty: path with endpoint_url, else virtual"
    )
    location: str = Field(default="", description="prefix of every key, without a leading slash")
    checksum: Literal["auto", "crc64nvme", "sha256", "md5", "none"] = Field(
        default="auto", description="what the store verifies; auto: crc64nvme where the store supports it, else md5"
    )
    multipart_threshold: Annotated[Bytes, Field(ge=5 * MIB, le=5 * GIB)] = Field(
        default=16 * MIB, description="larger uploads are sent in parts"
    )
    part_size: Annotated[Bytes, Field(ge=5 * MIB, le=5 * GIB)] = Field(
        default=16 * MIB, description="raised automatically where an upload would need more than max_parts"
    )
    max_parts: int = Field(default=10_000, ge=1, le=10_000, description="most parts of one object (Scaleway: 1000)")
    part_concurrency: int = Field(default=4, ge=1, le=64, description="parts of one upload that are sent at once")
    file_overwrite: bool = Field(default=False, description="off: If-None-Match protects foreign objects")
    acl: str = Field(default="", description="canned ACL; empty: none is sent, as buckets without ACLs demand")
    storage_class: str = Field(default="", description="empty: the bucket's default")
    sse: Literal["", "AES256", "aws:kms"] = Field(default="", description="server-side encryption")
    sse_kms_key_id: str = Field(default="", description="key for aws:kms; empty: the account's default")
    querystring_auth: bool = Field(
        default=True, description="off: links are not signed; only where everybody may download everything"
    )
    custom_domain: Annotated[str, AfterValidator(_domain)] = Field(
        default="", description="host (and port) of a CDN in front of the bucket, for links"
    )
    url_protocol: Literal["https", "http"] = Field(default="https", description="protocol of links to custom_domain")
    cloudfront_key_file: OptionalPath = Field(
        default=None, description="RSA key (PEM) that signs links to custom_domain; with cloudfront_key_id"
    )
    cloudfront_key_id: str = Field(default="", description="id of the public key at CloudFront")
    verify_tls: Annotated[bool | Path, BeforeValidator(_verify_tls)] = Field(
        default=True, description="false, or a file with the CA certificates to trust"
    )
    object_parameters: ObjectParameters = Field(default_factory=ObjectParameters)
    proxies: S3ProxiesConfig = Field(default_factory=S3ProxiesConfig)
    client: S3ClientConfig = Field(default_factory=S3ClientConfig, description="timeouts and pools")

    def s3_parameters(self) -> dict[str, Any]:
        """Return what is sent with every object, by the names of S3."""
        return self.object_parameters.s3_parameters() | storage_parameters(self)
