"""How botocore's client is set up, and why."""

from __future__ import annotations

from aiobotocore.config import AioConfig
from botocore import UNSIGNED

from tusd_py.config.sections import S3ProxiesConfig, S3StoreConfig


def client_config(config: S3StoreConfig, endpoint: str | None, *, signed: bool) -> AioConfig:
    """Return botocore's own settings; without `signed` it signs neither requests nor URLs."""
    style = config.addressing_style or ("path" if endpoint else "virtual")
    return AioConfig(
        # Left to itself, botocore still signs URLs for some endpoints with version 2.
        signature_version="s3v4" if signed else UNSIGNED,
        # Bodies are not signed, which would hash them on the event loop: they are covered by
        # checksums whose headers are signed.
        s3={"addressing_style": style, "payload_signing_enabled": False},
        # For the same reason botocore is not to add checksums of its own; and servers other than
        # AWS do not all know the trailers in which it would send them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies=_proxies(config.proxies),
        connect_timeout=config.client.connect_timeout,
        read_timeout=config.client.read_timeout,
        max_pool_connections=config.client.max_pool_connections,
        retries={"mode": "standard", "total_max_attempts": config.client.max_attempts},
    )


def _proxies(config: S3ProxiesConfig) -> dict[str, str] | None:
    chosen = {"http": config.http, "https": config.https}
    # None: whatever the environment says.
    return {scheme: url.get_secret_value() for scheme, url in chosen.items() if url} or None
