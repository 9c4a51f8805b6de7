"""The clients that the configuration makes: who is addressed, and how links are signed."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tusd_py.config.sections import S3StoreConfig
from tusd_py.errors import PermanentStoreError
from tusd_py.stores.s3.client import Bucket

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("models_are_read_once")]

KEYS: dict[str, Any] = {"access_key": "AKID", "secret_key": "secret"}


async def link(**settings: Any) -> tuple[str, str, dict[str, list[str]]]:
    """Host, path and parameters of a link to the key `a b/ü`."""
    bucket = Bucket(S3StoreConfig(bucket="bucket", **(KEYS | settings)))
    await bucket.open()
    try:
        url = urlsplit(await bucket.presign("GET", "a b/ü", {}, 300))
    finally:
        await bucket.close()
    return url.netloc, url.path, parse_qs(url.query)


@pytest.mark.parametrize(
    ("settings", "host", "path"),
    [
        ({"region": "eu-west-1"}, "bucket.s3.eu-west-1.amazonaws.com", ""),
        ({"region": "eu-west-1", "addressing_style": "path"}, "s3.eu-west-1.amazonaws.com", "/bucket"),
        ({"endpoint_url": "http://minio:9000"}, "minio:9000", "/bucket"),
        ({"endpoint_url": "http://minio:9000", "addressing_style": "virtual"}, "bucket.minio:9000", ""),
        (
            {"endpoint_url": "http://minio:9000", "public_endpoint_url": "https://files.example.com"},
            "files.example.com",
            "/bucket",
        ),
    ],
)
async def test_a_link_names_the_host_that_was_configured(settings: dict[str, Any], host: str, path: str) -> None:
    assert (await link(**settings))[:2] == (host, f"{path}/a%20b/%C3%BC")


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1", "eu-central-1"])
async def test_every_link_is_signed_with_version_4(region: str) -> None:
    for endpoint in (None, "http://minio:9000"):
        _, _, query = await link(region=region, endpoint_url=endpoint)

        assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
        assert query["X-Amz-Expires"] == ["300"]
        assert f"/{region}/s3/" in query["X-Amz-Credential"][0]


async def test_a_temporary_key_brings_its_token() -> None:
    _, _, query = await link(session_token="token")

    assert query["X-Amz-Security-Token"] == ["token"]


async def test_without_keys_those_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FROM-ENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    _, _, own = await link()
    _, _, query = await link(access_key=None, secret_key=None)

    assert own["X-Amz-Credential"][0].startswith("AKID/")
    assert query["X-Amz-Credential"][0].startswith("FROM-ENVIRONMENT/")


async def test_a_profile_is_taken_from_the_configuration_of_aws(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "credentials").write_text("[mine]\naws_access_key_id = OF-PROFILE\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)

    _, _, query = await link(access_key=None, secret_key=None, profile="mine")

    assert query["X-Amz-Credential"][0].startswith("OF-PROFILE/")


@pytest.mark.parametrize("expires_seconds", [1, 7 * 86400])
async def test_a_link_lives_as_long_as_it_is_told(expires_seconds: int) -> None:
    bucket = Bucket(S3StoreConfig(bucket="bucket", **KEYS))
    await bucket.open()
    url = await bucket.presign("GET", "key", {}, expires_seconds)
    await bucket.close()

    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == [str(expires_seconds)]


async def test_a_link_without_a_signature_names_the_public_endpoint_and_nothing_else() -> None:
    for settings, expected in (
        ({"region": "eu-west-1"}, ("bucket.s3.eu-west-1.amazonaws.com", "/a%20b/%C3%BC")),
        (
            {"endpoint_url": "http://minio:9000", "public_endpoint_url": "https://files.example.com"},
            ("files.example.com", "/bucket/a%20b/%C3%BC"),
        ),
    ):
        assert await link(querystring_auth=False, **settings) == (*expected, {})


async def test_an_unknown_profile_is_refused_at_the_start() -> None:
    bucket = Bucket(S3StoreConfig(bucket="bucket", profile="no-such-profile"))

    with pytest.raises(PermanentStoreError):
        await bucket.open()
    await bucket.close()
