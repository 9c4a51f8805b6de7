"""What lies below our prefix of a bucket, or under one key, page by page.

What is not listed counts as missing, so an incomplete listing must not look complete: one that cannot be
continued is an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from tusd_py.errors import TransientStoreError
from tusd_py.ports import ListedObject, UnfinishedObject
from tusd_py.stores.s3.client import Bucket

PAGE_SIZE: Final = 1000
"""S3 returns no more in one page."""


async def objects(bucket: Bucket, prefix: str, page_size: int) -> AsyncIterator[ListedObject]:
    """Yield all objects below the prefix, with keys without it."""
    position: dict[str, Any] = {}
    while True:
        page = await bucket.objects_page(prefix, {"MaxKeys": page_size, **position})
        for entry in page.get("Contents", ()):
            if entry["Key"].startswith(prefix):
                yield ListedObject(
                    entry["Key"].removeprefix(prefix),
                    entry["Size"],
                    entry["LastModified"].timestamp(),
                    entry.get("ETag"),
                )
        if not page.get("IsTruncated"):
            return
        position = _moved(position, {"ContinuationToken": page.get("NextContinuationToken")})


async def multiparts(bucket: Bucket, prefix: str, page_size: int) -> AsyncIterator[UnfinishedObject]:
    """Yield all unfinished multipart uploads below the prefix, with keys without it."""
    position: dict[str, Any] = {}
    while True:
        page = await bucket.multiparts_page(prefix, {"MaxUploads": page_size, **position})
        for entry in page.get("Uploads", ()):
            if entry["Key"].startswith(prefix):  # not every server heeds it
                yield UnfinishedObject(
                    entry["Key"].removeprefix(prefix), entry["UploadId"], entry["Initiated"].timestamp()
                )
        if not page.get("IsTruncated"):
            return
        markers = {"KeyMarker": page.get("NextKeyMarker"), "UploadIdMarker": page.get("NextUploadIdMarker")}
        position = _moved(position, markers)


async def multiparts_of(bucket: Bucket, key: str) -> AsyncIterator[str]:
    """Yield the ids of the unfinished multipart uploads of exactly this key."""
    markers: dict[str, str] = {}
    while True:
        page = await bucket.multiparts_page(key, markers)
        for upload in page.get("Uploads", ()):
            if upload["Key"] == key:
                yield upload["UploadId"]
        if not _may_have_more(page, key):
            return
        markers = {"KeyMarker": key, "UploadIdMarker": page["NextUploadIdMarker"]}


async def versions_of(bucket: Bucket, key: str) -> AsyncIterator[str]:
    """Yield the ids of all versions of exactly this key that hold bytes."""
    markers: dict[str, str] = {}
    while True:
        page = await bucket.versions_page(key, markers)
        for version in page.get("Versions", ()):
            if version["Key"] == key:
                yield version["VersionId"]
        if not _may_have_more(page, key):
            return
        markers = {"KeyMarker": key, "VersionIdMarker": page["NextVersionIdMarker"]}


def _may_have_more(page: Mapping[str, Any], key: str) -> bool:
    # The key sorts before all longer ones with this prefix: nothing of it follows those.
    return bool(page.get("IsTruncated")) and page.get("NextKeyMarker", "") == key


def _moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    position = {name: value for name, value in after.items() if value}
    if not position or position == before:
        raise TransientStoreError("The store's listing does not go on.", position=str(before))
    return position
