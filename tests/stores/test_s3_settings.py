"""Every setting of `[storage.s3]`, seen on the wire or in the store."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.stores.test_object_store import KEY, TWO_PARTS, spec_of
from tests.support.blocking_client import fetch
from tests.support.destinations import PART, MemoryTransferState, S3Account, S3Destination
from tests.support.fixtures import Content, OpenStore, Stage
from tests.support.ports import LOOPBACK, free_port
from tests.support.s3_proxy import S3Proxy, s3_proxy
from tusd_py.errors import TransientStoreError
from tusd_py.ports import DownloadHeaders, ObjectStore, PresignedUrl

SIZES = pytest.mark.parametrize("length", [1000, TWO_PARTS], ids=["at once", "in parts"])
EXPIRES = "Thu, 31 Dec 2099 23:59:59 GMT"
SOON = 10


@pytest.fixture
def moto(moto_server: S3Account) -> S3Destination:
    """The one that keeps everything it is told of an object."""
    return S3Destination(moto_server, moto_server.shared_client, f"settings-{time.monotonic_ns()}")


@pytest.fixture
async def wire(moto_server: S3Account) -> AsyncIterator[S3Proxy]:
    """What passes on the way to moto."""
    async with s3_proxy(moto_server.endpoint_url) as proxy:
        yield proxy


async def put(store: ObjectStore, stage: Stage, data: bytes, **spec: Any) -> None:
    await store.put(spec_of(data, **spec), stage(data), MemoryTransferState())


# --- what is sent along with an object -------------------------------------------------------------


@SIZES
async def test_parameters_reach_the_object(
    moto: S3Destination, open_store: OpenStore, stage: Stage, content: Content, wire: S3Proxy, length: int
) -> None:
    store = await open_store(
        moto,
        endpoint_url=wire.url,
        storage_class="STANDARD_IA",
        sse="aws:kms",
        sse_kms_key_id="key-1",
        acl="public-read",
        object_parameters={
            "cache_control": "no-store",
            "content_disposition": "inline",
            "content_language": "de",
            "expires": EXPIRES,
            "tagging": {"team": "a=b c", "kind": "x"},
            "metadata": {"origin": "käse"},
            "bucket_key_enabled": True,
        },
    )

    await put(store, stage, content(length), filename="a.png")

    head = moto.head(KEY)
    where = {"Bucket": moto.account.bucket, "Key": f"{moto.prefix}/{KEY}"}
    assert head["CacheControl"] == "no-store"
    assert head["ContentDisposition"] == "inline"
    assert head["ContentLanguage"] == "de"
    assert head["Expires"] == datetime(2099, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert head["StorageClass"] == "STANDARD_IA"
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "key-1")
    # moto forgets it of what was sent in parts.
    (seen,) = wire.requests("PutObject") + wire.requests("CreateMultipartUpload")
    assert seen.headers["x-amz-server-side-encryption-bucket-key-enabled"] == "true"
    assert head["ContentType"] == "image/png"
    assert head["Metadata"] == {"tusd-upload-id": KEY[11:], "tusd-filename": "a.png", "origin": "k%C3%A4se"}
    tags = moto.client.get_object_tagging(**where)["TagSet"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == {"team": "a=b c", "kind": "x"}
    grants = moto.client.get_object_acl(**where)["Grants"]
    assert any(grant["Grantee"].get("URI", "").endswith("AllUsers") for grant in grants)


@SIZES
async def test_without_settings_nothing_is_said_but_the_type_and_how_long_to_keep_it(
    moto: S3Destination, open_store: OpenStore, stage: Stage, content: Content, wire: S3Proxy, length: int
) -> None:
    await put(await open_store(moto, endpoint_url=wire.url), stage, content(length))

    (seen,) = wire.requests("PutObject") + wire.requests("CreateMultipartUpload")
    amazon = {name.lower() for name in seen.headers if name.lower().startswith("x-amz-")}
    checksums = {name for name in amazon if "checksum" in name}
    assert amazon - checksums == {"x-amz-content-sha256", "x-amz-date", "x-amz-meta-tusd-upload-id"}
    assert seen.headers["Cache-Control"] == "private, max-age=86400"
    assert "Content-Disposition" not in seen.headers


@SIZES
async def test_a_spec_says_otherwise_for_its_object_alone(
    moto: S3Destination, open_store: OpenStore, stage: Stage, content: Content, length: int
) -> None:
    parameters = {"tagging": {"team": "all", "kind": "x"}, "metadata": {"origin": "all", "kept": "yes"}}
    store = await open_store(moto, sse="AES256", object_parameters=parameters)
    data = content(length)
    special = {
        "CacheControl": "no-cache",
        "StorageClass": "STANDARD_IA",
        "Tagging": {"team": "mine"},
        "Metadata": {"origin": "mine"},
    }

    await put(store, stage, data, key="special", parameters=special)
    await put(store, stage, data, key="usual", content_type="text/plain")

    head, usual = moto.head("special"), moto.head("usual")
    assert (head["CacheControl"], head["StorageClass"]) == ("no-cache", "STANDARD_IA")
    assert head["ServerSideEncryption"] == "AES256"
    assert {name: head["Metadata"][name] for name in ("origin", "kept")} == {"origin": "mine", "kept": "yes"}
    tags = moto.client.get_object_tagging(Bucket=moto.account.bucket, Key=f"{moto.prefix}/special")["TagSet"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == {"team": "mine", "kind": "x"}
    # Nothing of one object sticks to the next: not its type either.
    assert usual["CacheControl"] == "private, max-age=86400"
    assert (head["ContentType"], usual["ContentType"]) == ("image/png", "text/plain")
    assert usual["Metadata"]["origin"] == "all"
    assert usual.get("StorageClass") != "STANDARD_IA"


@SIZES
@pytest.mark.parametrize("overwrite", [False, True])
async def test_the_precondition_is_sent_unless_objects_may_be_replaced(
    moto: S3Destination,
    open_store: OpenStore,
    stage: Stage,
    content: Content,
    wire: S3Proxy,
    length: int,
    *,
    overwrite: bool,
) -> None:
    await put(await open_store(moto, endpoint_url=wire.url, file_overwrite=overwrite), stage, content(length))

    (seen,) = wire.requests("PutObject") + wire.requests("CompleteMultipartUpload")
    assert seen.headers.get("If-None-Match") == (None if overwrite else "*")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("auto", {"x-amz-checksum-crc64nvme", "content-md5"}),
        ("crc64nvme", {"x-amz-checksum-crc64nvme"}),
        ("sha256", {"x-amz-checksum-sha256"}),
        ("md5", {"content-md5"}),
        ("none", set()),
    ],
)
async def test_only_the_chosen_checksum_is_sent_and_never_as_a_trailer(
    moto: S3Destination, open_store: OpenStore, stage: Stage, wire: S3Proxy, setting: str, expected: set[str]
) -> None:
    await put(await open_store(moto, endpoint_url=wire.url, checksum=setting), stage, b"abc")

    (seen,) = wire.requests("PutObject")
    sums = {name.lower() for name in seen.headers if "checksum" in name.lower() or name.lower() == "content-md5"}
    assert sums - {"x-amz-sdk-checksum-algorithm"} == expected
    assert "x-amz-trailer" not in {name.lower() for name in seen.headers}
    assert seen.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"


async def test_no_object_has_more_parts_than_the_service_takes(
    moto: S3Destination, open_store: OpenStore, stage: Stage, content: Content, wire: S3Proxy
) -> None:
    # Two parts at most: the part size grows, and stays the same for all parts but the last.
    data = content(2 * PART + 1)

    await put(await open_store(moto, endpoint_url=wire.url, max_parts=2), stage, data)

    lengths = {seen.query["partNumber"]: int(seen.headers["Content-Length"]) for seen in wire.requests("UploadPart")}
    assert lengths == {"1": 6 * 2**20, "2": len(data) - 6 * 2**20}


async def test_every_key_lies_below_the_location(
    moto: S3Destination, open_store: OpenStore, stage: Stage, wire: S3Proxy
) -> None:
    store = await open_store(moto, endpoint_url=wire.url, location="a/b/")

    await put(store, stage, b"abc")

    assert {seen.path for seen in wire.seen} == {f"/{moto.account.bucket}/a/b/{KEY}"}
    stored = await store.stat(KEY)
    assert stored is not None
    assert stored.length == 3


# --- who is asking ---------------------------------------------------------------------------------


async def test_every_call_is_signed_with_version_4_and_brings_the_token(
    moto: S3Destination, open_store: OpenStore, stage: Stage, content: Content, wire: S3Proxy
) -> None:
    await put(
        await open_store(moto, endpoint_url=wire.url, session_token="token-1", region="eu-west-1"),
        stage,
        content(TWO_PARTS),
    )

    assert {seen.operation for seen in wire.seen} >= {"HeadObject", "CreateMultipartUpload", "UploadPart"}
    for seen in wire.seen:
        assert seen.headers["Authorization"].startswith("AWS4-HMAC-SHA256 ")
        assert "/eu-west-1/s3/aws4_request" in seen.headers["Authorization"]
        assert seen.headers["X-Amz-Security-Token"] == "token-1"


# --- the way there ---------------------------------------------------------------------------------


async def test_calls_go_through_the_proxy(
    moto: S3Destination, open_store: OpenStore, stage: Stage, moto_server: S3Account
) -> None:
    # Nothing listens at the endpoint. moto takes the absolute form of a URL, so bytes are all that is forwarded.
    passed = 0

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal passed
        passed += 1
        port = int(moto_server.endpoint_url.rpartition(":")[2])
        upstream, downstream = await asyncio.open_connection(LOOPBACK, port)
        await asyncio.gather(pump(reader, downstream), pump(upstream, writer), return_exceptions=True)

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while block := await source.read(65536):
            target.write(block)
            await target.drain()
        target.close()

    server = await asyncio.start_server(forward, LOOPBACK, 0)
    proxy = f"http://{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    store = await open_store(moto, endpoint_url=f"http://{LOOPBACK}:{free_port()}", proxies={"http": proxy})

    async with asyncio.timeout(SOON):
        await put(store, stage, b"abc")

    assert passed > 0
    assert moto.read(KEY) == b"abc"
    server.close()


def self_signed(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """A certificate of our own for 127.0.0.1, and the file that makes others trust it."""
    import ipaddress

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "s3")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    trusted, private = directory / "ca.pem", directory / "key.pem"
    trusted.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trusted, private)
    return context, trusted


async def test_certificates_are_verified_as_configured(
    moto: S3Destination, open_store: OpenStore, moto_server: S3Account, tmp_path: Path
) -> None:
    context, trusted = self_signed(tmp_path)
    async with s3_proxy(moto_server.endpoint_url, tls=context) as proxy:
        with pytest.raises(TransientStoreError, match="SSL"):
            await (await open_store(moto, endpoint_url=proxy.url)).stat(KEY)
        assert proxy.seen == []
        for verify in (False, trusted):
            assert await (await open_store(moto, endpoint_url=proxy.url, verify_tls=verify)).stat(KEY) is None


@pytest.mark.parametrize("attempts", [1, 3])
async def test_a_call_is_tried_as_often_as_configured(
    moto: S3Destination, open_store: OpenStore, wire: S3Proxy, attempts: int
) -> None:
    wire.failing = 503

    with pytest.raises(TransientStoreError):
        await (await open_store(moto, endpoint_url=wire.url, client={"max_attempts": attempts})).stat(KEY)

    assert len(wire.seen) == attempts


class Silent:
    """A server that accepts connections, counts them and says nothing."""

    def __init__(self) -> None:
        self.most = self.now = 0
        self.let_go = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await self.let_go.wait()
        writer.close()
        self.now -= 1


async def test_silence_and_connections_are_limited(moto: S3Destination, open_store: OpenStore) -> None:
    silent = Silent()
    server = await asyncio.start_server(silent.serve, LOOPBACK, 0)
    url = f"http://{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    client = {"max_attempts": 1, "read_timeout": 0.3, "max_pool_connections": 2, "connect_timeout": 5}
    store = await open_store(moto, endpoint_url=url, client=client)
    started = time.monotonic()

    results = await asyncio.gather(*(store.stat(KEY) for _ in range(4)), return_exceptions=True)

    assert all(isinstance(result, TransientStoreError) for result in results)
    assert 0.3 <= time.monotonic() - started < SOON
    assert silent.most >= 2
    silent.let_go.set()
    server.close()


async def test_no_more_connections_are_open_than_configured(moto: S3Destination, open_store: OpenStore) -> None:
    silent = Silent()
    server = await asyncio.start_server(silent.serve, LOOPBACK, 0)
    url = f"http://{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    client = {"max_attempts": 1, "read_timeout": 30, "max_pool_connections": 2, "connect_timeout": 1}
    store = await open_store(moto, endpoint_url=url, client=client)
    asking = [asyncio.create_task(store.stat(KEY)) for _ in range(5)]

    await asyncio.wait(asking, timeout=1.5)

    assert silent.most == 2
    silent.let_go.set()
    await asyncio.gather(*asking, return_exceptions=True)
    server.close()


async def test_a_connection_that_does_not_come_about_is_given_up(moto: S3Destination, open_store: OpenStore) -> None:
    # A full backlog: the kernel answers no more than a host that is switched off.
    with socket.create_server((LOOPBACK, 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex((LOOPBACK, port))
        client = {"max_attempts": 1, "connect_timeout": 0.3, "read_timeout": 60}
        store = await open_store(moto, endpoint_url=f"http://{LOOPBACK}:{port}", client=client)

        async with asyncio.timeout(SOON):
            with pytest.raises(TransientStoreError):
                await store.stat(KEY)

        for one in waiting:
            one.close()


# --- links -----------------------------------------------------------------------------------------


async def test_a_link_without_a_signature_opens_a_public_object_and_protects_the_browser(
    moto: S3Destination, open_store: OpenStore, stage: Stage
) -> None:
    store = await open_store(moto, querystring_auth=False, acl="public-read")
    await put(store, stage, b"<script>", content_type="text/html", filename="ä.html")

    located = await store.locate(KEY, DownloadHeaders("text/html", "inline"), expires_seconds=60)
    assert isinstance(located, PresignedUrl)
    answer = fetch(located.url)

    assert "?" not in located.url
    assert (answer.status, answer.body) == (200, b"<script>")
    # The link cannot say it, so the object does.
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''%C3%A4.html"
