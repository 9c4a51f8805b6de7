"""Reconciling against every destination: what is lost, what is stray, and what is somebody else's.

Beside the findings of `tests/reconcile/test_reconcile.py`, which need no S3. What was begun, stored
or removed here was so by the real worker.
"""

from __future__ import annotations

import uuid
from typing import Any

from tests.support.destinations import PART, Destination, MemoryTransferState, S3Destination, identity_of
from tests.support.fixtures import OpenStore
from tests.support.reconciling import Run, reconcile, reports
from tests.support.workers import reaches, working
from tests.support.world import World
from tusd_py.ports import ObjectSpec, Segment
from tusd_py.protocol.upload import State, Upload
from tusd_py.reconcile.findings import Kind, Result

CONTENT = b"0123456789"


async def put_in_store(world: World, store: Any, *uploads: Upload, purge: bool = False) -> None:
    async with working(world, store, purge=purge):
        for upload in uploads:
            await reaches(world, upload, State.STORED)


async def report_only(world: World, destination: Destination, store: Any) -> Run:
    """A run without repair, which changes nothing in the store either."""
    before = contents(destination)
    run = await reports(world, store)
    assert contents(destination) == before
    return run


def contents(destination: Destination) -> tuple[Any, ...]:
    keys = destination.keys()
    return [(key, destination.read(key)) for key in keys], destination.unfinished()


async def assert_no_findings(world: World, store: Any) -> None:
    assert (await reconcile(world, store, repair=True)).kinds == []


async def test_what_the_worker_stored_is_in_order(
    world: World, destination: Destination, open_store: OpenStore
) -> None:
    """Small and in parts: the ETag that the record keeps is the one that a listing shows."""
    store = await open_store(destination)
    small, large = await world.received(CONTENT), await world.received(CONTENT * (PART // 10 + 1))
    await put_in_store(world, store, small, large, purge=True)

    run = await report_only(world, destination, store)

    assert (run.kinds, run.report.objects, run.report.foreign_objects) == ([], 2, 0)


async def test_a_lost_object_is_sent_again_from_staging(
    world: World, destination: Destination, open_store: OpenStore
) -> None:
    store = await open_store(destination)
    upload, gone = await world.received(CONTENT), await world.received(CONTENT)
    await put_in_store(world, store, upload, gone)
    await world.staging.remove([gone.id])
    await world.cleanup.purged([gone.id])
    await store.remove(identity_of(CONTENT, upload.object_key))
    await store.remove(identity_of(CONTENT, gone.object_key))

    found = await report_only(world, destination, store)
    repaired = await reconcile(world, store, repair=True)

    assert found.kinds == repaired.kinds == [Kind.OBJECT_MISSING] * 2
    assert sorted(repaired.results) == [Result.MARKED, Result.REPAIRED]
    await put_in_store(world, store, upload, purge=True)
    assert destination.read(upload.object_key) == CONTENT
    assert (await reconcile(world, store, repair=True)).kinds == [Kind.OBJECT_MISSING]
    destination.write(gone.object_key, CONTENT)  # restored from a backup, without our metadata
    assert (await reconcile(world, store, repair=True)).kinds == [Kind.FOUND_AGAIN]
    await assert_no_findings(world, store)


async def test_somebody_elses_object_under_an_uploads_key_is_marked_and_not_touched(
    world: World, destination: Destination, open_store: OpenStore
) -> None:
    store = await open_store(destination)
    upload = await world.received(CONTENT)
    await put_in_store(world, store, upload)
    await store.remove(identity_of(CONTENT, upload.object_key))
    destination.write(upload.object_key, b"theirs")

    found = await report_only(world, destination, store)
    marked = await reconcile(world, store, repair=True)

    assert found.kinds == marked.kinds == [Kind.OBJECT_DIFFERS]
    assert marked.results == [Result.MARKED]
    # The staged copy's time is up, and it is the only one left.
    assert destination.read(upload.object_key) == b"theirs"
    assert world.staged(upload)


async def test_an_object_of_an_upload_that_is_gone_goes_if_it_is_provably_ours(
    world: World, destination: Destination, open_store: OpenStore
) -> None:
    store = await open_store(destination)
    ours, theirs = await world.received(CONTENT), await world.received(CONTENT)
    await put_in_store(world, store, ours, theirs)
    for upload in (ours, theirs):
        await world.uploads.remove(upload.id)
    async with working(world, store):
        for upload in (ours, theirs):
            await reaches(world, upload, State.REMOVED)
    await restore(world, store, ours)
    if store.keeps_ids:
        destination.write(theirs.object_key, CONTENT)  # no metadata: nothing says that it is ours

    found = await report_only(world, destination, store)
    repaired = await reconcile(world, store, repair=True)

    assert found.kinds == repaired.kinds == [Kind.OBJECT_OF_GONE_UPLOAD]
    assert repaired.results == [Result.REPAIRED]
    assert destination.read(ours.object_key) is None
    assert destination.keys() == ([theirs.object_key] if store.keeps_ids else [])
    await assert_no_findings(world, store)


async def restore(world: World, store: Any, upload: Upload) -> None:
    """Make the object anew, as a late worker or a restored bucket would: with our metadata."""
    path = world.root / "again"
    path.write_bytes(CONTENT)
    spec = ObjectSpec(str(upload.id), upload.object_key, len(CONTENT), upload.crc64nvme, "image/png")
    await store.put(spec, [Segment(path, len(CONTENT))], MemoryTransferState())
    path.unlink()


async def test_objects_of_no_upload_are_told_if_ours_counted_if_not_and_never_removed(
    world: World, s3: S3Destination, open_store: OpenStore
) -> None:
    store = await open_store(s3)
    forgotten = await world.received(CONTENT)
    await put_in_store(world, store, forgotten, purge=True)
    await world.sql("DELETE FROM uploads")
    await world.create()
    s3.write(f"uploads/{uuid.uuid4()}", b"another system's, which names things as we do")
    s3.write("reports/2026.pdf", b"another system's")
    s3.client.put_object(
        Bucket=s3.account.bucket,
        Key=f"{s3.prefix}/uploads/{uuid.uuid4()}",
        Body=b"x",
        Metadata={"tusd-upload-id": str(uuid.uuid4())},
    )  # fmt: skip -- a copy of an object of ours under another key
    keys = s3.keys()

    found = await report_only(world, s3, store)
    run = await reconcile(world, store, repair=True)

    assert found.kinds == run.kinds == [Kind.ORPHAN_OBJECT]
    assert run.outcomes[0].finding.subject == forgotten.object_key
    assert (run.results, run.report.foreign_objects) == ([Result.LEFT], 3)
    assert s3.keys() == keys


async def test_only_multiparts_that_are_provably_ours_are_aborted(
    world: World, s3: S3Destination, open_store: OpenStore
) -> None:
    store = await open_store(s3)
    failed, sending = await world.received(CONTENT), await world.received(CONTENT)
    await world.sql("DELETE FROM jobs WHERE upload_id = $1", failed.id)
    await world.force_state(failed, State.TRANSFER_FAILED)

    def begin(key: str) -> str:
        answer = s3.client.create_multipart_upload(Bucket=s3.account.bucket, Key=f"{s3.prefix}/{key}")
        multipart_id: str = answer["UploadId"]
        return multipart_id

    recorded, stray = begin(failed.object_key), begin(failed.object_key)
    await world.sql("UPDATE uploads SET multipart_id = $2 WHERE id = $1", failed.id, recorded)
    of_running, foreign, like_ours = begin(sending.object_key), begin("reports/x"), begin(f"uploads/{uuid.uuid4()}")

    found = await report_only(world, s3, store)
    repaired = await reconcile(world, store, repair=True)

    assert found.kinds == repaired.kinds == [Kind.STRAY_MULTIPART, Kind.UNPROVEN_MULTIPART]
    assert {outcome.finding.detail: outcome.result for outcome in repaired.outcomes} == {
        stray: Result.REPAIRED, like_ours: Result.LEFT,
    }  # fmt: skip
    assert sorted(s3.unfinished()) == sorted([recorded, of_running, foreign, like_ours])
    assert repaired.report.foreign_unfinished == 1
    again = await reconcile(world, store, repair=True)
    assert again.kinds == [Kind.UNPROVEN_MULTIPART]


async def test_a_young_multipart_is_left_alone(world: World, s3: S3Destination, open_store: OpenStore) -> None:
    store = await open_store(s3)
    upload = await world.received(CONTENT)
    await world.sql("DELETE FROM jobs")
    await world.force_state(upload, State.TRANSFER_FAILED)
    s3.client.create_multipart_upload(Bucket=s3.account.bucket, Key=f"{s3.prefix}/{upload.object_key}")

    run = await reconcile(world, store, repair=True, margin_seconds=3 * 3600.0)

    # moto says of every one that it was begun in 2010: there no margin protects it.
    assert run.kinds == ([] if s3.abilities.tells_begin else [Kind.STRAY_MULTIPART])
    assert len(s3.unfinished()) == (1 if s3.abilities.tells_begin else 0)


async def test_parts_that_are_sent_eager_of_their_upload_are_no_strays(
    world: World, s3: S3Destination, open_store: OpenStore
) -> None:
    store = await open_store(s3)
    upload = await world.create(length=10 * PART, offset=PART)
    await world.force_state(upload, State.UPLOADING)
    world.staging.path(upload.id).write_bytes(b"x" * PART)
    begun = s3.client.create_multipart_upload(Bucket=s3.account.bucket, Key=f"{s3.prefix}/{upload.object_key}")
    await world.sql("UPDATE uploads SET multipart_id = $1", begun["UploadId"])
    await world.sql("INSERT INTO jobs (upload_id, kind, staging_id) SELECT id, 'eager', staging_id FROM uploads")

    await assert_no_findings(world, store)

    assert s3.unfinished() == [begun["UploadId"]]
    # The resting job is no work under way: what it hides must still be seen.
    world.staging.path(upload.id).write_bytes(b"x")
    assert (await reconcile(world, store)).kinds == [Kind.STAGED_SHORT]


async def test_a_store_that_is_away_fails_its_checks_and_no_others(
    world: World, s3: S3Destination, open_store: OpenStore
) -> None:
    store = await open_store(s3, bucket="no-such-bucket")
    await world.create()
    orphan = world.root / "staging" / "0a" / f"{str(uuid.uuid4())[:-2]}0a"
    orphan.write_bytes(b"orphan")

    run = await reconcile(world, store, repair=True)

    assert run.kinds == [Kind.ORPHAN_FILE]
    assert "uploads and objects" in run.report.failed_checks
    assert not orphan.exists()
