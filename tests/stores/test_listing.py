"""The contract of listings, on every destination: everything below the prefix, once, in pages."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.stores.test_object_store import KEY, TWO_PARTS, spec_of
from tests.support.destinations import Crash, Destination, FilesystemDestination, MemoryTransferState, S3Destination
from tests.support.fixtures import Content, OpenStore, Stage
from tusd_py.errors import PermanentStoreError, TransientStoreError
from tusd_py.stores.s3.client import Bucket

AGE_SECONDS = 60
"""More than a test takes, and than clocks of one machine differ."""

KEYS = ["2026/11/a", "2026/11/a.b", "2026/11/a/c", "2026/11/ä", "2026/12/1", "other"]
"""In the order of their code points; a dot sorts before a slash."""
ON_DISKS = [key for key in KEYS if key != "2026/11/a"]
"""A directory cannot have the name of a file, neither here nor where rclone keeps its objects."""


def keys_for(destination: Destination) -> list[str]:
    return ON_DISKS if destination.name in {"filesystem", "rclone"} else KEYS


@pytest.fixture(params=[1, 2, 1000])
def page_size(request: pytest.FixtureRequest) -> int:
    """Let pages be that small."""
    size: int = request.param
    return size


async def test_every_object_is_listed_once_and_in_order(
    destination: Destination, open_store: OpenStore, stage: Stage, page_size: int
) -> None:
    store = await open_store(destination, page_size=page_size)
    keys = keys_for(destination)
    for number, key in enumerate(reversed(keys)):
        data = b"x" * number
        await store.put(replace(spec_of(data, key), upload_id=f"id-{number}"), stage(data), MemoryTransferState())
    if isinstance(destination, S3Destination):  # beside our prefix, in the same bucket
        destination.client.put_object(Bucket=destination.account.bucket, Key=f"{destination.prefix}-other/x", Body=b"")

    listed = [entry async for entry in store.list_objects()]

    assert [entry.key for entry in listed] == keys
    assert [entry.length for entry in listed] == list(reversed(range(len(keys))))
    assert all(abs(time.time() - entry.modified_at) < AGE_SECONDS for entry in listed)
    for number, entry in enumerate(reversed(listed)):
        found = await store.stat(entry.key)
        assert found is not None
        # What the record keeps of an object is compared with what a listing shows, where it shows one.
        assert entry.etag is None or entry.etag.strip('"') == (found.etag or "").strip('"')
        assert found.upload_id == (f"id-{number}" if store.keeps_ids else None)


async def test_nothing_is_listed_of_an_empty_store(destination: Destination, open_store: OpenStore) -> None:
    store = await open_store(destination)

    assert [entry async for entry in store.list_objects()] == []
    assert [entry async for entry in store.list_unfinished()] == []


async def test_unfinished_uploads_are_listed_and_aborted_one_by_one(
    s3: S3Destination, open_store: OpenStore, page_size: int
) -> None:
    store = await open_store(s3, page_size=page_size)
    client, bucket = s3.client, s3.account.bucket
    keys = ["a", "b", "b", "b/c", "d"]
    ids = [client.create_multipart_upload(Bucket=bucket, Key=f"{s3.prefix}/{key}")["UploadId"] for key in keys]
    beside = client.create_multipart_upload(Bucket=bucket, Key=f"{s3.prefix}-other/x")["UploadId"]

    found = [entry async for entry in store.list_unfinished()]

    assert sorted((entry.key, entry.id) for entry in found) == sorted(zip(keys, ids, strict=True))
    ages = {abs(time.time() - entry.begun_at) < AGE_SECONDS for entry in found}
    assert ages == {s3.abilities.tells_begin}
    await store.abort("b", ids[1])
    await store.abort("b", ids[1])
    assert sorted(s3.unfinished()) == sorted({*ids} - {ids[1]})
    client.abort_multipart_upload(Bucket=bucket, Key=f"{s3.prefix}-other/x", UploadId=beside)


async def test_a_begun_transfer_is_listed_under_its_recorded_id(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    store = await open_store(s3)
    transfer_state = MemoryTransferState(stop_at=5)
    with pytest.raises(Crash):
        await store.put(spec_of(content(TWO_PARTS)), stage(content(TWO_PARTS)), transfer_state)

    (entry,) = [entry async for entry in store.list_unfinished()]

    assert (entry.key, entry.id) == (KEY, transfer_state.recorded_id)
    assert [listed async for listed in store.list_objects()] == []


@pytest.mark.parametrize("method", ["objects_page", "multiparts_page"])
async def test_a_listing_that_does_not_go_on_is_an_error_and_no_end(
    s3: S3Destination, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    store = await open_store(s3)

    async def stuck(*_: Any) -> dict[str, Any]:
        return {"IsTruncated": True, "NextContinuationToken": "same", "NextKeyMarker": "same"}

    monkeypatch.setattr(Bucket, method, stuck)
    listing = store.list_objects() if method == "objects_page" else store.list_unfinished()

    with pytest.raises(TransientStoreError):
        _ = [entry async for entry in listing]


async def test_a_bucket_that_is_not_there_is_no_empty_one(s3: S3Destination, open_store: OpenStore) -> None:
    store = await open_store(s3, bucket="no-such-bucket")

    with pytest.raises(PermanentStoreError):
        _ = [entry async for entry in store.list_objects()]


# --- files -----------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> FilesystemDestination:
    return FilesystemDestination(tmp_path / "store")


async def test_half_made_files_are_listed_and_removed_one_by_one(
    directory: FilesystemDestination, open_store: OpenStore
) -> None:
    store = await open_store(directory)
    workshop = directory.root / "2026" / "x.tmp"
    workshop.mkdir(parents=True)
    names = ["0123456789abcdef", "fedcba9876543210"]
    for name in (*names, "not ours"):
        (workshop / name).write_bytes(b"half")

    found = [(entry.key, entry.id) async for entry in store.list_unfinished()]

    assert found == [("2026/x", name) for name in sorted([*names, "not ours"])]
    assert [entry async for entry in store.list_objects()] == []
    for name in (names[0], names[0], "not ours", "../x"):
        await store.abort("2026/x", name)
    assert sorted(path.name for path in workshop.iterdir()) == [names[1], "not ours"]
    (workshop / "not ours").unlink()
    await store.abort("2026/x", names[1])
    assert list(directory.root.iterdir()) == []


async def test_links_and_what_is_no_file_are_not_listed(
    directory: FilesystemDestination, open_store: OpenStore, tmp_path: Path
) -> None:
    store = await open_store(directory)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (directory.root / "link").symlink_to(outside)
    (directory.root / "file").symlink_to(outside / "secret")
    os.mkfifo(directory.root / "pipe")
    (directory.root / "real").write_bytes(b"abc")

    assert [entry.key async for entry in store.list_objects()] == ["real"]


async def test_a_directory_that_is_gone_is_no_empty_one(
    directory: FilesystemDestination, open_store: OpenStore
) -> None:
    store = await open_store(directory)
    directory.root.rmdir()

    for listing in (store.list_objects(), store.list_unfinished()):
        with pytest.raises(TransientStoreError):
            _ = [entry async for entry in listing]
