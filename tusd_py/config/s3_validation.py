"""The same for the keys of `[storage.s3]`. Pure, but for looking whether a file exists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tusd_py.config.model import Config
from tusd_py.config.sections import S3StoreConfig

_PUBLIC_ONLY: Final = "only where everybody may download everything; here auth.mode asks for credentials"


def s3_problems(config: Config, s3: S3StoreConfig, *, path: str = "storage.s3") -> Iterator[str]:
    """Yield every problem of a store in S3 as `key.path: message`."""
    for problem in (*_credentials(s3), *_objects(s3), *_links(s3, public=everything_is_public(config))):
        yield f"{path}{problem}"


def s3_pool_problems(config: Config) -> Iterator[str]:
    """Yield a problem unless there is a connection for each part that is sent at once.

    A part that waits for a connection would look like one that the server does not accept.
    """
    s3, needed = config.storage.s3, config.transfer.concurrency * config.storage.s3.part_concurrency
    if config.storage.backend == "s3" and s3.client.max_pool_connections < needed:
        yield (
            f"storage.s3.client.max_pool_connections: must be at least {needed}, which is transfer.concurrency times "
            "storage.s3.part_concurrency"
        )


def s3_warnings(config: Config) -> Iterator[str]:
    """Yield what is allowed in S3 but risky."""
    s3 = config.storage.s3
    if s3.verify_tls is False:
        yield "storage.s3.verify_tls: false: whoever is on the way to the store can read and change everything"
    if s3.custom_domain and s3.url_protocol == "http":
        yield "storage.s3.url_protocol: http: whoever is on the way to a client can read the links and the files"


def everything_is_public(config: Config) -> bool:
    """Return whether links that are valid for ever and for everybody disclose nothing."""
    return config.auth.mode == "none" or all(profile.perm_download == "public" for profile in config.profiles.values())


def _credentials(s3: S3StoreConfig) -> Iterator[str]:
    if not s3.bucket:
        yield ".bucket: is required with backend = s3"
    if bool(s3.access_key) != bool(s3.secret_key):
        yield ": access_key and secret_key go together"
    if s3.session_token and not s3.access_key:
        yield ".session_token: needs access_key and secret_key"
    if s3.profile and s3.access_key:
        yield ".profile: excludes access_key and secret_key"
    if isinstance(s3.verify_tls, Path) and not s3.verify_tls.is_file():
        yield f".verify_tls: {s3.verify_tls} is not a file"


def _objects(s3: S3StoreConfig) -> Iterator[str]:
    steps = s3.location.removesuffix("/").split("/")
    if s3.location and {"", ".", ".."} & set(steps):
        yield ".location: must not start with a slash nor contain //, . or .."
    if not s3.location.isprintable() or "\\" in s3.location:
        yield ".location: must not contain control characters or backslashes"
    if s3.sse_kms_key_id and s3.sse != "aws:kms":
        yield '.sse_kms_key_id: needs sse = "aws:kms"'
    if s3.object_parameters.bucket_key_enabled and s3.sse != "aws:kms":
        yield '.object_parameters.bucket_key_enabled: needs sse = "aws:kms"'


def _links(s3: S3StoreConfig, *, public: bool) -> Iterator[str]:
    signed_by_cloudfront = bool(s3.cloudfront_key_file and s3.cloudfront_key_id)
    if bool(s3.cloudfront_key_file) != bool(s3.cloudfront_key_id):
        yield ": cloudfront_key_file and cloudfront_key_id go together"
    elif signed_by_cloudfront and not s3.custom_domain:
        yield ".cloudfront_key_file: needs custom_domain"
    elif signed_by_cloudfront and not s3.querystring_auth:
        yield ".querystring_auth: false contradicts cloudfront_key_file"
    elif s3.custom_domain and s3.querystring_auth and not signed_by_cloudfront:
        yield ".custom_domain: needs cloudfront_key_file and cloudfront_key_id, or querystring_auth = false"
    if s3.cloudfront_key_file and not s3.cloudfront_key_file.is_file():
        yield f".cloudfront_key_file: {s3.cloudfront_key_file} is not a file"
    if s3.custom_domain and s3.public_endpoint_url:
        yield ".public_endpoint_url: has no effect with custom_domain"
    if not s3.querystring_auth and not public:
        yield f".querystring_auth: false goes {_PUBLIC_ONLY}"
