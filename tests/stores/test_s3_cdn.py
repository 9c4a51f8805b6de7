"""Links by a domain of one's own, and whether CloudFront would let them pass."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from tusd_py.config.sections import S3StoreConfig
from tusd_py.errors import ConfigError
from tusd_py.ports import DownloadHeaders
from tusd_py.stores.s3 import S3Store

pytestmark = pytest.mark.unit

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ANSWER = DownloadHeaders("text/plain", "attachment; filename*=UTF-8''%C3%BC.txt", "gzip", "de")


def pem(key: Any, encryption: Any = None) -> bytes:
    private: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    return private


def store(**changes: Any) -> S3Store:
    settings = {"bucket": "b", "custom_domain": "cdn.example.com", "location": "up"}
    return S3Store(S3StoreConfig(**(settings | changes)))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "cloudfront.pem"
    path.write_bytes(pem(KEY))
    return path


def verify(url: str, *, key: rsa.RSAPublicKey) -> int:
    """Do what CloudFront does with a link and return when it expires. Raises InvalidSignature."""
    resource, _, rest = url.rpartition("&Expires=")
    expires, _, rest = rest.partition("&Signature=")
    signature, _, key_id = rest.partition("&Key-Pair-Id=")
    assert key_id == "K1"
    policy = {"Statement": [{"Resource": resource, "Condition": {"DateLessThan": {"AWS:EpochTime": int(expires)}}}]}
    raw = base64.b64decode(signature.translate(str.maketrans("-_~", "+=/")))
    # What CloudFront documents: SHA-1, and not one space in the policy.
    key.verify(raw, json.dumps(policy, separators=(",", ":")).encode(), padding.PKCS1v15(), hashes.SHA1())
    return int(expires)


async def test_a_link_passes_cloudfront_until_it_expires(key_file: Path) -> None:
    signed = store(cloudfront_key_file=key_file, cloudfront_key_id="K1")
    before = time.time()

    url = (await signed.locate("2026/a b/ü", ANSWER, expires_seconds=300)).url

    assert before + 299 <= verify(url, key=KEY.public_key()) <= time.time() + 301
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.path) == ("https", "cdn.example.com", "/up/2026/a%20b/%C3%BC")
    query = parse_qs(parts.query)
    assert query["response-content-type"] == [ANSWER.content_type]
    assert query["response-content-disposition"] == [ANSWER.content_disposition]
    assert (query["response-content-encoding"], query["response-content-language"]) == (["gzip"], ["de"])


@pytest.mark.parametrize(("old", "new"), [("a%20b", "a%20c"), ("Expires=", "Expires=9"), ("text", "html")])
async def test_a_link_that_was_changed_does_not_pass(key_file: Path, old: str, new: str) -> None:
    signed = store(cloudfront_key_file=key_file, cloudfront_key_id="K1")
    url = (await signed.locate("a b", ANSWER, expires_seconds=1)).url

    with pytest.raises(InvalidSignature):
        verify(url.replace(old, new, 1), key=KEY.public_key())


@pytest.mark.parametrize("protocol", ["http", "https"])
async def test_a_link_of_a_public_store_is_the_bare_address(protocol: str) -> None:
    bare = store(querystring_auth=False, url_protocol=protocol)

    assert (await bare.locate("a b", ANSWER, expires_seconds=1)).url == f"{protocol}://cdn.example.com/up/a%20b"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no key", "not a private key"),
        (pem(KEY, BestAvailableEncryption(b"password")), "without a password"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "an RSA key is needed"),
        (None, "No such file"),
    ],
)
def test_a_key_that_cannot_sign_is_refused_at_the_start(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigError, match=reason) as refusal:
        store(cloudfront_key_file=path, cloudfront_key_id="K1")

    assert "storage.s3.cloudfront_key_file" in str(refusal.value)
