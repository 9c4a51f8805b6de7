"""Removing an upload's object: every version of it, nothing that is not the upload's, and no lie about a lock."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.stores.test_checks import failed, run_checks
from tests.stores.test_object_store import (
    KEY,
    TWO_PARTS,
    after_first_head,
    assert_nothing,
    assert_only,
    spec_of,
)
from tests.support.destinations import (
    Destination,
    FilesystemDestination,
    MemoryTransferState,
    S3Account,
    S3Destination,
    identity_of,
)
from tests.support.fixtures import Content, OpenStore, Stage
from tests.support.s3_proxy import OF_VERSIONS, S3Proxy, s3_proxy
from tusd_py import crc64
from tusd_py.errors import ObjectLocked, PermanentStoreError
from tusd_py.ports import Outcome
from tusd_py.stores.s3.client import Bucket


@pytest.mark.parametrize("theirs", [b"theirs", b"xyz"], ids=["other length", "same length"])
@pytest.mark.parametrize("stored_first", [True, False])
async def test_a_foreign_object_under_the_key_is_left_alone(
    destination: Destination, open_store: OpenStore, stage: Stage, theirs: bytes, stored_first: bool
) -> None:
    store = await open_store(destination)
    known: dict[str, Any] = {}
    if stored_first:
        stored = await store.put(spec_of(b"abc"), stage(b"abc"), MemoryTransferState())
        known = {"etag": stored.etag, "version_id": stored.version_id}
        if isinstance(destination, FilesystemDestination):
            (destination.root / KEY).unlink()  # a link: writing would change the staged file
    destination.write(KEY, theirs)

    assert not await store.remove(identity_of(b"abc", KEY, **known))

    assert_only(destination, KEY, theirs)


async def test_another_uploads_object_is_left_alone(s3: S3Destination, open_store: OpenStore, stage: Stage) -> None:
    """Even with equal bytes: what carries an id is of the upload of that id."""
    store = await open_store(s3)
    await store.put(replace(spec_of(b"abc"), upload_id="another"), stage(b"abc"), MemoryTransferState())

    assert not await store.remove(identity_of(b"abc", KEY))

    assert_only(s3, KEY, b"abc")


@pytest.mark.parametrize("proof", ["etag", "crc64nvme"])
async def test_an_object_without_an_id_is_ours_if_its_bytes_are(
    destination: Destination, open_store: OpenStore, proof: str
) -> None:
    store = await open_store(destination)
    destination.write(KEY, b"abc")
    found = await store.stat(KEY)
    assert found is not None
    known = {"etag": found.etag, "crc64nvme": None} if proof == "etag" else {"crc64nvme": crc64.update(b"abc")}
    told = proof == "etag" or isinstance(destination, FilesystemDestination) or found.crc64nvme is not None

    assert await store.remove(identity_of(b"abc", KEY, **known)) is told

    assert destination.keys() == ([] if told else [KEY])


@pytest.mark.parametrize("length", [1000, TWO_PARTS])
async def test_an_object_that_is_replaced_between_look_and_removal(
    s3: S3Destination,
    open_store: OpenStore,
    stage: Stage,
    content: Content,
    monkeypatch: pytest.MonkeyPatch,
    length: int,
) -> None:
    store = await open_store(s3)
    data = content(length)
    await store.put(spec_of(data), stage(data), MemoryTransferState())
    after_first_head(monkeypatch, lambda: s3.write(KEY, b"theirs"))

    kept = not await store.remove(identity_of(data, KEY))

    # A store that ignores If-Match has only the look before.
    assert kept is s3.abilities.honours_if_match
    assert s3.keys() == ([KEY] if kept else [])


async def test_a_store_that_refuses_if_match_is_asked_without(
    s3: S3Destination, open_store: OpenStore, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(s3)
    await store.put(spec_of(b"abc"), stage(b"abc"), MemoryTransferState())
    original = Bucket.delete

    async def unknown_header(bucket: Bucket, key: str, parameters: Any = None) -> None:
        if parameters and "IfMatch" in parameters:
            raise PermanentStoreError(code="NotImplemented")
        await original(bucket, key, parameters)

    monkeypatch.setattr(Bucket, "delete", unknown_header)

    assert await store.remove(identity_of(b"abc", KEY))

    assert_nothing(s3)


# --- versions --------------------------------------------------------------------------------------


@pytest.fixture(params=["moto", "ministack"])
def versioned(request: pytest.FixtureRequest) -> S3Destination:
    """A bucket that keeps versions; rclone has none."""
    return _bucket(request, lock=False)


@pytest.fixture(params=["moto", "ministack"])
def locking(request: pytest.FixtureRequest) -> S3Destination:
    """A bucket with object lock."""
    return _bucket(request, lock=True)


def _bucket(request: pytest.FixtureRequest, *, lock: bool) -> S3Destination:
    account: S3Account = request.getfixturevalue(f"{request.param}_server")
    name = f"versions-{uuid.uuid4().hex[:12]}"
    client = account.shared_client
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=lock)
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    changed = S3Account(
        account.name, account.endpoint_url, name, account.access_key, account.secret_key, account.abilities
    )
    return S3Destination(changed, client, "below")


def versions(destination: S3Destination) -> list[str]:
    """Return the ids of all versions that hold bytes, newest first."""
    answer = destination.client.list_object_versions(Bucket=destination.account.bucket)
    return [entry["VersionId"] for entry in answer.get("Versions", ())]


async def test_every_version_of_ours_goes_and_no_marker_stays(
    versioned: S3Destination, open_store: OpenStore, stage: Stage
) -> None:
    store = await open_store(versioned)
    await store.put(spec_of(b"damaged"), stage(b"damaged"), MemoryTransferState())
    stored = await store.put(spec_of(b"abc"), stage(b"abc"), MemoryTransferState())
    assert len(versions(versioned)) == 2

    assert await store.remove(identity_of(b"abc", KEY, version_id=stored.version_id))

    answer = versioned.client.list_object_versions(Bucket=versioned.account.bucket)
    assert (answer.get("Versions", []), answer.get("DeleteMarkers", [])) == ([], [])


@pytest.mark.parametrize("above", ["foreign object", "delete marker"])
async def test_our_version_goes_from_under_what_lies_above_it(
    versioned: S3Destination, open_store: OpenStore, stage: Stage, above: str
) -> None:
    store = await open_store(versioned)
    stored = await store.put(spec_of(b"abc"), stage(b"abc"), MemoryTransferState())
    if above == "foreign object":
        versioned.write(KEY, b"theirs")
    else:
        versioned.client.delete_object(Bucket=versioned.account.bucket, Key=f"below/{KEY}")

    gone = await store.remove(identity_of(b"abc", KEY, version_id=stored.version_id))

    assert gone is (above == "delete marker")
    assert stored.version_id not in versions(versioned)
    assert versioned.read(KEY) == (b"theirs" if above == "foreign object" else None)


async def test_foreign_versions_below_ours_stay(versioned: S3Destination, open_store: OpenStore, stage: Stage) -> None:
    store = await open_store(versioned, file_overwrite=True)
    versioned.write(KEY, b"theirs")
    (theirs,) = versions(versioned)
    stored = await store.put(spec_of(b"abc"), stage(b"abc"), MemoryTransferState())

    await store.remove(identity_of(b"abc", KEY, version_id=stored.version_id))

    assert versions(versioned) == [theirs]


@pytest.fixture
async def proxied(versioned: S3Destination) -> AsyncIterator[S3Proxy]:
    async with s3_proxy(versioned.account.endpoint_url) as proxy:
        yield proxy


async def test_without_the_right_to_list_versions_the_recorded_one_goes(
    versioned: S3Destination, proxied: S3Proxy, open_store: OpenStore, stage: Stage
) -> None:
    store = await open_store(versioned, endpoint_url=proxied.url)
    stored = await store.put(spec_of(b"abc"), stage(b"abc"), MemoryTransferState())
    versioned.write(KEY, b"theirs")
    proxied.denied = {"s3:ListBucketVersions"}

    await store.remove(identity_of(b"abc", KEY, version_id=stored.version_id))

    assert stored.version_id not in versions(versioned)
    assert versioned.read(KEY) == b"theirs"


async def test_without_the_right_to_delete_versions_nothing_counts_as_removed(
    versioned: S3Destination, proxied: S3Proxy, open_store: OpenStore, stage: Stage
) -> None:
    store = await open_store(versioned, endpoint_url=proxied.url)
    stored = await store.put(spec_of(b"abc"), stage(b"abc"), MemoryTransferState())
    proxied.denied = {"s3:DeleteObjectVersion"}

    with pytest.raises(PermanentStoreError):
        await store.remove(identity_of(b"abc", KEY, version_id=stored.version_id))

    assert versions(versioned) == [stored.version_id]


async def test_the_check_leaves_no_version_behind(versioned: S3Destination, open_store: OpenStore) -> None:
    proofs = await run_checks(await open_store(versioned))

    assert [proof.outcome for proof in proofs] == [Outcome.OK] * len(proofs), proofs
    assert versions(versioned) == []
    assert set(OF_VERSIONS.values()) <= {proof.subject.partition(" ")[0] for proof in proofs}


@pytest.mark.parametrize("action", sorted(OF_VERSIONS.values()))
async def test_the_check_names_each_right_to_versions_that_is_missing(
    versioned: S3Destination, proxied: S3Proxy, open_store: OpenStore, action: str
) -> None:
    proxied.denied = {action}

    found = failed(await run_checks(await open_store(versioned, endpoint_url=proxied.url)))

    resource = versioned.account.bucket + ("" if action == "s3:ListBucketVersions" else "/below/*")
    (named,) = [detail for subject, detail in found.items() if subject.startswith(f"{action} ")]
    assert named == f"denied: allow {action} on arn:aws:s3:::{resource}"


# --- object lock -----------------------------------------------------------------------------------


def lock(destination: S3Destination, version_id: str | None, kind: str) -> Callable[[], None]:
    """Lock a version, and return what unlocks it."""
    where = {"Bucket": destination.account.bucket, "Key": f"below/{KEY}", "VersionId": version_id}
    client = destination.client
    if kind == "legal hold":
        client.put_object_legal_hold(**where, LegalHold={"Status": "ON"})
        return lambda: client.put_object_legal_hold(**where, LegalHold={"Status": "OFF"})
    until = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    client.put_object_retention(**where, Retention={"Mode": "GOVERNANCE", "RetainUntilDate": until})
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    return lambda: client.put_object_retention(
        **where, Retention={"Mode": "GOVERNANCE", "RetainUntilDate": past}, BypassGovernanceRetention=True
    )


@pytest.mark.parametrize("kind", ["legal hold", "retention"])
async def test_a_locked_object_is_not_said_to_be_removed(
    locking: S3Destination, open_store: OpenStore, stage: Stage, kind: str
) -> None:
    store = await open_store(locking)
    stored = await store.put(spec_of(b"abc"), stage(b"abc"), MemoryTransferState())
    unlock = lock(locking, stored.version_id, kind)
    identity = identity_of(b"abc", KEY, version_id=stored.version_id)

    with pytest.raises(ObjectLocked) as refusal:
        await store.remove(identity)

    assert refusal.value.context["code"] == "object_locked"
    assert locking.read(KEY) == b"abc"
    unlock()
    assert await store.remove(identity)
    assert versions(locking) == []


async def test_a_refusal_of_another_reason_is_no_lock(
    locking: S3Destination, open_store: OpenStore, stage: Stage
) -> None:
    async with s3_proxy(locking.account.endpoint_url) as proxy:
        store = await open_store(locking, endpoint_url=proxy.url)
        await store.put(spec_of(b"abc"), stage(b"abc"), MemoryTransferState())
        proxy.denied = {"s3:DeleteObjectVersion"}

        with pytest.raises(PermanentStoreError):
            await store.remove(identity_of(b"abc", KEY))


async def test_the_check_says_that_a_lock_keeps_its_sample(locking: S3Destination, open_store: OpenStore) -> None:
    locking.client.put_object_lock_configuration(
        Bucket=locking.account.bucket,
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}},
        },
    )

    proofs = await run_checks(await open_store(locking))

    assert failed(proofs) == {}
    (proof,) = [proof for proof in proofs if proof.subject.startswith("s3:DeleteObjectVersion")]
    assert "object lock keeps the sample" in proof.detail
