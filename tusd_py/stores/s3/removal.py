"""Remove an upload's object from a bucket, in each of its versions, and nothing that is not the upload's.

A key is the upload's own, but a bucket may be shared. So everything is read by HEAD before it goes: it is
ours if it carries our id, or no id at all and the upload's bytes, as rclone shows our objects once it
was restarted. Between HEAD and DELETE it may be replaced. Where there are versions, the very one that HEAD
returned is removed; elsewhere `If-Match` has the store compare. A store that does not know that refuses or
ignores it, and then HEAD is all there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tusd_py.errors import ObjectLocked, PermanentStoreError, TransientStoreError
from tusd_py.ports import ObjectIdentity
from tusd_py.stores.s3.client import Bucket
from tusd_py.stores.s3.errors import DENIED, PRECONDITION_FAILED, UNSUPPORTED, code_of, says_locked
from tusd_py.stores.s3.listing import multiparts_of, versions_of
from tusd_py.stores.s3.responses import Head

_TRIES: Final = 5
"""Of removing what is replaced at the same moment."""


async def remove_object(bucket: Bucket, key: str, identity: ObjectIdentity) -> bool:
    """Remove the object; return False if something that is not the upload's was left under the key.

    Raises:
        ObjectLocked: the store keeps it, or a version of it.
        StorageError: it refused for another reason, or is down.
    """
    head, version_id = await bucket.head(key), identity.version_id
    for _ in range(_TRIES):
        if head is None or not head.belongs_to(identity):
            break
        version_id = head.version_id or version_id
        await _delete(bucket, key, head)
        head = await bucket.head(key)
    else:
        raise TransientStoreError("The object does not stay removed.", key=key)
    if version_id is not None or (head is not None and head.version_id is not None):
        await _remove_versions(bucket, key, identity)
    return head is None


async def abort_strays(bucket: Bucket, key: str) -> None:
    """Abort the multipart uploads that a worker began under this key and could not record before it was killed.

    A key is one upload's own, so whatever is unfinished under it is ours.
    """
    try:
        async for multipart_id in multiparts_of(bucket, key):
            await bucket.abort_multipart(key, multipart_id)
    except PermanentStoreError:
        return  # not allowed, or not known to this store: no reason to fail the transfer or removal


async def _remove_versions(bucket: Bucket, key: str, identity: ObjectIdentity) -> None:
    """Remove the upload's bytes from under whatever lies above them: a delete marker, or a foreign object."""
    try:
        found = [version_id async for version_id in versions_of(bucket, key)]
    except PermanentStoreError as error:
        if code_of(error) not in DENIED | UNSUPPORTED:
            raise
        # Without the right to list them there is only the one that we know of.
        found = [identity.version_id] if identity.version_id is not None else []
    for version_id in found:
        head = await bucket.head(key, version_id)
        if head is not None and head.belongs_to(identity):
            await delete_exactly(bucket, key, head, {"VersionId": version_id})


async def _delete(bucket: Bucket, key: str, head: Head) -> None:
    if head.version_id is not None:
        await delete_exactly(bucket, key, head, {"VersionId": head.version_id})
        return
    try:
        await delete_exactly(bucket, key, head, {"IfMatch": head.etag} if head.etag else {})
    except PermanentStoreError as error:
        if code_of(error) in UNSUPPORTED and head.etag:
            await delete_exactly(bucket, key, head, {})
        elif code_of(error) != PRECONDITION_FAILED:  # it was just replaced: the caller reads it again
            raise


async def delete_exactly(bucket: Bucket, key: str, head: Head, parameters: Mapping[str, str]) -> None:
    """Remove what HEAD returned.

    Raises:
        ObjectLocked: the store keeps it under a lock.
    """
    try:
        await bucket.delete(key, parameters)
    except PermanentStoreError as error:
        if head.locked is None and not says_locked(error):
            raise
        raise ObjectLocked(key=key, until=head.locked, code="object_locked") from error
