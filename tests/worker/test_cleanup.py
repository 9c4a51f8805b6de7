"""Cleanup on a real database and a real disk: what goes, when, and above all what stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.reconciling import make_old, reconcile
from tests.support.workers import Failing, OneByOne, is_true, make_cleanup, reaches, working
from tests.support.world import DAY, THERE, World, stored
from tusd_py.database.cleanup import CleanupRecords
from tusd_py.database.deliveries import DeliveryQueue
from tusd_py.errors import InvalidConcat, PermanentStoreError, StorageError
from tusd_py.metrics import Metrics
from tusd_py.ports.events import EndpointRecord
from tusd_py.protocol.events import RECORDED
from tusd_py.protocol.upload import Concat, State, Trigger, Upload, UploadId
from tusd_py.staging.identity import ID_FILE, write_id
from tusd_py.worker.cleanup import Cleanup

OLD = 7200.0


def impatient(world: World) -> CleanupRecords:
    """Cleanup that waits an hour for a commit."""
    directory = world.staging.identity
    return CleanupRecords(world.database, world.notifier, directory=directory, uncommitted_after_seconds=3600)


def counted(world: World, **changes: Any) -> tuple[Cleanup, Metrics]:
    """Cleanup, and what it counts."""
    metrics = Metrics()
    return make_cleanup(world, metrics=metrics, **changes), metrics


def failures(metrics: Metrics, kind: str) -> float | None:
    return metrics.registry.get_sample_value("tusd_py_cleanup_failures_total", {"kind": kind})


async def age(world: World, upload: Upload, *columns: str) -> None:
    for column in columns:
        await world.sql(f"UPDATE uploads SET {column} = now() - interval '2 hours' WHERE id = $1", upload.id)


async def put_in_store(world: World, upload: Upload) -> Upload:
    (job,) = await world.jobs().claim(1)
    assert job.upload.id == upload.id
    await world.jobs().finish_transfers([(job, stored(upload))])
    return await world.find(upload)


# --- expiring --------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 4])
async def test_an_upload_whose_time_is_up_expires_and_its_bytes_go(world: World, offset: int) -> None:
    upload = await world.create(offset=offset)
    file = await world.staging.open(upload.id, create=True)
    assert file is not None
    await file.close()
    in_time = await world.create(expires_after_seconds=DAY)
    await world.run_out_of_time(upload)

    done = await make_cleanup(world).once()
    async with working(world):
        await reaches(world, upload, State.EXPIRED)
        await is_true(lambda: not world.staged(upload), "its bytes are gone")

    assert done["expired"] == 1
    assert await world.jobs_of(upload) == [("remove", "succeeded")]
    assert await world.state(in_time) is State.CREATED


@pytest.mark.parametrize("offset", [0, 4])
async def test_an_upload_that_receives_bytes_at_this_moment_may_finish(world: World, offset: int) -> None:
    """Also before its first checkpoint, when the row still says 0."""
    busy, idle = await world.create(offset=offset), await world.create()
    await world.run_out_of_time(busy, idle)
    file = await world.staging.open(busy.id, create=True)
    assert file is not None

    first = await make_cleanup(world).once()
    await file.close()
    second = await make_cleanup(world).once()

    assert (first["expired"], second["expired"]) == (1, 1)
    assert await world.state(busy) is State.EXPIRED


async def test_uploads_that_are_busy_do_not_keep_others_from_expiring(world: World) -> None:
    uploads = [await world.create() for _ in range(5)]
    await world.run_out_of_time(*uploads)
    files = [await world.staging.open(upload.id, create=True) for upload in uploads[:3]]

    done = await make_cleanup(world, batch=2).once()

    assert done["expired"] == 2
    assert [await world.state(upload) for upload in uploads[3:]] == [State.EXPIRED] * 2
    for file in files:
        assert file is not None
        await file.close()


async def test_what_is_on_hold_has_failed_or_is_complete_does_not_expire(world: World) -> None:
    uploads = [await world.create(), await world.completed(), await world.completed(), await world.completed()]
    await world.sql("UPDATE uploads SET hold = true WHERE id = $1", uploads[0].id)
    await world.force_state(uploads[2], State.TRANSFER_FAILED)
    await world.force_state(uploads[3], State.STORED)
    await world.run_out_of_time(*uploads)

    done = await make_cleanup(world).once()

    assert done["expired"] == 0


async def test_what_nobody_committed_expires_after_its_time(world: World) -> None:
    """U11: uploads that waited for a commit, are not on hold, and that nobody wants transferred either."""
    forgotten = await world.received(trigger=Trigger.COMMIT)
    final = await world.final([await world.part(b"abc")], trigger=Trigger.COMMIT)
    kept = [await world.received(trigger=Trigger.COMMIT) for _ in range(4)]
    young, held, committed, wanted = kept
    others = [await world.received(trigger=trigger) for trigger in (Trigger.COMPLETE, Trigger.MANUAL)]
    await world.sql("UPDATE uploads SET hold = true WHERE id = $1", held.id)
    await world.transfers.commit(committed.id)
    await world.transfers.request(wanted.id)
    for upload in (forgotten, final, held, committed, wanted, *others):
        await age(world, upload, "completed_at")
    records = impatient(world)

    assert (await make_cleanup(world).once())["expired"] == 0
    done = await make_cleanup(world, records=records).once()

    assert done["expired"] == 2
    for upload in (young, held, committed, wanted, *others):
        assert await world.state(upload) is State.COMPLETED
    for upload in (forgotten, final):
        assert await world.state(upload) is State.EXPIRED
        assert await world.jobs_of(upload) == [("remove", "queued")]
    await world.sql("DELETE FROM jobs WHERE kind = 'transfer'")
    async with working(world):
        await is_true(lambda: not world.staged(forgotten), "its bytes are gone")
    assert world.staged(young)


async def test_what_was_committed_in_the_last_moment_stays(world: World) -> None:
    upload = await world.received(trigger=Trigger.COMMIT)
    await age(world, upload, "completed_at")
    records = impatient(world)
    assert [overdue.id for overdue in await records.overdue(10)] == [upload.id]

    await world.transfers.commit(upload.id)

    assert not await records.expire(upload.id)
    assert await world.jobs_of(upload) == [("transfer", "queued")]


async def test_another_nodes_uploads_are_its_own_affair(world: World) -> None:
    upload = await world.create(staging_id=THERE)
    await world.run_out_of_time(upload)

    assert (await make_cleanup(world).once())["expired"] == 0


async def test_an_upload_that_got_more_time_meanwhile_stays(world: World) -> None:
    upload = await world.create()
    await world.run_out_of_time(upload)
    (seen,) = await world.cleanup.overdue(10)
    await world.uploads.advance(seen, 4, 0, expires_after_seconds=DAY)

    assert not await world.cleanup.expire(seen.id)
    assert await world.state(upload) is State.UPLOADING


# --- parts and finals ------------------------------------------------------------------------------


async def test_parts_stay_while_a_final_needs_them_however_overdue(world: World) -> None:
    parts = [await world.part(b"ab", expires_after_seconds=DAY) for _ in range(2)]
    final = await world.final(parts)
    await world.run_out_of_time(*parts)

    async with working(world, Failing(world.store, PermanentStoreError())):
        for _ in ("completed", "transfer_failed"):
            assert (await make_cleanup(world).once())["expired"] == 0
            await reaches(world, final, State.TRANSFER_FAILED)
        await world.transfers.request(final.id)
        await reaches(world, final, State.STORED)
        assert world.object(final) == b"abab"

        done = await make_cleanup(world).once()
        assert (done["expired"], done["parts_released"]) == (2, 2)
        for part in parts:
            await reaches(world, part, State.EXPIRED)
        await is_true(lambda: not any(world.staged(part) for part in parts), "the parts' bytes are gone")

    assert world.object(final) == b"abab"


async def test_parts_of_a_final_that_waits_stay(world: World) -> None:
    done, open_part = await world.part(b"ab"), await world.part(length=4)
    final = await world.final([done, open_part], expires_after_seconds=DAY)
    await world.run_out_of_time(done, open_part)

    assert (await make_cleanup(world).once())["expired"] == 0

    await world.run_out_of_time(final)
    assert (await make_cleanup(world).once())["expired"] >= 1
    async with working(world):
        await reaches(world, final, State.EXPIRED)
        await make_cleanup(world).once()
        await reaches(world, done, State.EXPIRED)
        await reaches(world, open_part, State.EXPIRED)


async def test_a_part_that_nobody_made_a_final_of_expires(world: World) -> None:
    part = await world.part(b"ab", expires_after_seconds=DAY)
    await world.run_out_of_time(part)

    assert (await make_cleanup(world).once())["expired"] == 1


async def test_parts_outlive_their_final_until_their_own_time_is_up(world: World) -> None:
    part = await world.part(b"ab", expires_after_seconds=DAY)
    final = await world.final([part])

    async with working(world):
        await reaches(world, final, State.STORED)
        await world.uploads.remove(final.id)
        await reaches(world, final, State.REMOVED)
        done = await make_cleanup(world).once()
        assert (done["expired"], done["parts_released"]) == (0, 1)
        assert world.staged(part)
        assert (await world.final([part])).state is State.COMPLETED  # it may be used again

        await world.sql(
            "UPDATE uploads SET state = 'stored', local_present = false WHERE concat = 'final' AND gone_at IS NULL"
        )
        await world.run_out_of_time(part)
        assert (await make_cleanup(world).once())["expired"] == 1


@pytest.mark.parametrize("end", ["stored", "removed"])
async def test_a_part_that_never_expires_gets_a_time_once_its_final_needs_it_no_more(world: World, end: str) -> None:
    part = await world.part(b"ab", expires_after_seconds=0)
    final = await world.final([part])
    assert (await make_cleanup(world).once())["parts_released"] == 0

    async with working(world):
        await reaches(world, final, State.STORED)
        if end == "removed":
            await world.uploads.remove(final.id)
            await reaches(world, final, State.REMOVED)
    await make_cleanup(world).once()

    expires_at = (await world.find(part)).expires_at
    assert expires_at is not None
    seconds = await world.value("SELECT extract(epoch FROM $1::timestamptz - now())::float8", expires_at)
    assert DAY - 60 < seconds <= DAY


async def test_a_final_says_that_it_is_in_staging_only_while_each_part_is(world: World) -> None:
    parts = [await world.part(b"ab", expires_after_seconds=DAY), await world.part(b"cd", expires_after_seconds=DAY)]
    final = await world.final(parts)
    async with working(world, purge=False):
        await reaches(world, final, State.STORED)
        keep = make_cleanup(world, delete_local=False)
        await keep.once()
        assert (await world.find(final)).local_present

        await world.run_out_of_time(parts[0])
        await keep.once()

    assert not (await world.find(final)).local_present
    assert await world.state(parts[1]) is State.COMPLETED


@pytest.mark.parametrize("round_number", range(4))
async def test_a_part_does_not_expire_under_the_hands_of_a_final(world: World, round_number: int) -> None:
    """The cleanup and the POST of a final at the same moment, with a part whose time is just up."""
    part = await world.part(b"ab", expires_after_seconds=0.02)

    async def expire() -> bool:
        for _ in range(20):
            if await world.cleanup.expire(part.id):
                return True
        return False

    outcome, expired = await asyncio.gather(world.final([part]), expire(), return_exceptions=True)

    if isinstance(outcome, Upload):
        assert expired is False
        assert await world.state(part) is State.COMPLETED
    else:
        assert isinstance(outcome, InvalidConcat)


async def test_a_final_that_is_being_made_is_seen_by_the_sweep(world: World) -> None:
    part = await world.part(b"ab", expires_after_seconds=DAY)
    final = await world.create(concat=Concat.FINAL, length=None)
    await world.run_out_of_time(part)

    async with world.database.transaction() as connection:
        await connection.execute("SELECT 1 FROM uploads WHERE id = $1 FOR NO KEY UPDATE", part.id)
        expiring = asyncio.create_task(world.cleanup.expire(part.id))
        async with asyncio.timeout(30):
            while not await world.value("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
        await connection.execute("INSERT INTO upload_parts VALUES ($1, 0, $2)", final.id, part.id)

    assert not await expiring
    assert await world.state(part) is State.COMPLETED


# --- letting go of staged copies -------------------------------------------------------------------


async def test_staged_copies_of_stored_uploads_go_after_their_time(world: World) -> None:
    uploads = [await put_in_store(world, await world.received()) for _ in range(5)]

    early = await make_cleanup(world, batch=2, delete_local_after=3600).once()
    kept = await make_cleanup(world, batch=2, delete_local=False).once()
    done = await make_cleanup(world, batch=2).once()

    assert (early["local_purged"], kept["local_purged"], done["local_purged"]) == (0, 0, 5)
    for upload in uploads:
        assert not world.staged(upload)
        found = await world.find(upload)
        assert (found.state, found.local_present, found.remote_present) == (State.STORED, False, True)


class RequeuedMeanwhile(CleanupRecords):
    """Right after cleanup has chosen what to remove, an operator repairs what has lost its object."""

    world: World

    async def purgeable(
        self, older_than_seconds: float, limit: int, *, skip: Sequence[UploadId] = ()
    ) -> list[UploadId]:
        found = await super().purgeable(older_than_seconds, limit, skip=skip)
        await reconcile(self.world, repair=True)
        return found

    async def with_files(self, upload_ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        found = await super().with_files(upload_ids)
        await reconcile(self.world, repair=True)
        return found


@pytest.mark.parametrize("recorded", [True, False], ids=["copy on record", "leftover"])
async def test_a_copy_that_reconcile_has_queued_again_meanwhile_stays(world: World, recorded: bool) -> None:
    lost, whole = await world.received(), await world.received()
    for upload in (lost, whole):
        await put_in_store(world, upload)
        make_old(world.staging.path(upload.id))
    path = world.store.local_path(whole.object_key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"0123456789")
    if not recorded:
        await world.cleanup.purged([lost.id, whole.id])
    records = RequeuedMeanwhile(world.database, world.notifier, directory=world.staging.identity)
    records.world = world

    await make_cleanup(world, records=records).once()

    assert (await world.find(lost)).state is State.TRANSFER_FAILED
    assert world.staged(lost)
    assert not world.staged(whole)
    async with working(world):
        await reaches(world, lost, State.STORED)
    assert world.object(lost) == b"0123456789"


async def test_a_copy_that_reconcile_has_queued_again_stays_after_a_transfer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await world.received()
    locked = world.staging.locked
    store = OneByOne(world.store)

    def requeued_first(upload_ids: Sequence[UploadId], *_: Any) -> Any:
        @contextlib.asynccontextmanager
        async def locking() -> AsyncIterator[list[UploadId]]:
            store.inner.local_path(upload.object_key).unlink(missing_ok=True)
            monkeypatch.undo()
            await reconcile(world, repair=True)
            async with locked(upload_ids) as unused:
                yield unused

        return locking()

    monkeypatch.setattr(world.staging, "locked", requeued_first)
    async with working(world, store):
        await is_true(lambda: store.puts.count(str(upload.id)) == 2, "it was transferred once more")
        await reaches(world, upload, State.STORED)

    assert world.object(upload) == b"0123456789"


async def test_a_file_that_is_locked_is_left_to_its_user(world: World) -> None:
    upload = await put_in_store(world, await world.received())
    file = await world.staging.open(upload.id, create=False)
    assert file is not None

    assert (await make_cleanup(world).once())["local_purged"] == 0

    assert world.staged(upload)
    await file.close()
    assert (await make_cleanup(world).once())["local_purged"] == 1


async def test_a_copy_that_cannot_be_removed_is_still_on_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = await put_in_store(world, await world.received())

    async def refuse(upload_ids: Sequence[UploadId]) -> dict[UploadId, StorageError]:
        return dict.fromkeys(upload_ids, StorageError("The disk is read-only."))

    monkeypatch.setattr(world.staging, "try_remove", refuse)
    done = await make_cleanup(world).once()
    monkeypatch.undo()

    assert done["local_purged"] == 0
    assert (await world.find(upload)).local_present
    assert (await make_cleanup(world).once())["local_purged"] == 1


async def test_a_step_that_fails_does_not_keep_the_others_from_running(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> list[Upload]:
        raise StorageError

    monkeypatch.setattr(world.cleanup, "overdue", refuse)

    done = await make_cleanup(world).once()

    assert set(done) == {
        "local_purged", "gone_copies_removed", "requeued", "jobs_requeued", "parts_released", "rows_purged",
        "endpoints_forgotten", "dead_letters_purged", "events_purged", "files_set_aside", "unclaimed_removed",
    }  # fmt: skip


# --- jobs ------------------------------------------------------------------------------------------


async def test_failed_transfers_are_tried_again_after_their_time(world: World) -> None:
    upload = await world.received()
    async with working(world, Failing(world.store, PermanentStoreError())):
        await reaches(world, upload, State.TRANSFER_FAILED)
        assert (await make_cleanup(world).once())["requeued"] == 0
        assert (await make_cleanup(world, requeue_failed_after=3600).once())["requeued"] == 0
        await age(world, upload, "updated_at")

        assert (await make_cleanup(world, requeue_failed_after=3600).once())["requeued"] == 1
        await reaches(world, upload, State.STORED)


async def test_what_is_queued_already_is_not_queued_again(world: World) -> None:
    upload = await world.completed()
    (job,) = await world.jobs().claim(1)
    await world.jobs().fail(job, PermanentStoreError(), code="ERR")
    await age(world, upload, "updated_at")

    again = [await make_cleanup(world, requeue_failed_after=3600).once() for _ in range(2)]

    assert [done["requeued"] for done in again] == [1, 0]


async def test_old_jobs_of_an_upload_that_fails_for_ever_are_forgotten(world: World) -> None:
    upload = await world.completed()
    for _ in range(14):
        (job,) = await world.jobs().claim(1)
        await world.jobs().fail(job, PermanentStoreError(), code="ERR")
        await age(world, upload, "updated_at")
        assert (await make_cleanup(world, requeue_failed_after=3600).once())["requeued"] == 1

    assert len(await world.jobs_of(upload)) == 11


@pytest.mark.parametrize(
    ("state", "concat", "kind"),
    [
        (State.COMPLETED, None, "transfer"),
        (State.TRANSFERRING, Concat.FINAL, "transfer"),
        (State.REMOVING, None, "remove"),
        (State.REMOVING, Concat.PARTIAL, "remove"),
    ],
)
async def test_what_lost_its_job_gets_one(world: World, state: State, concat: Concat | None, kind: str) -> None:
    upload = await world.force_state(await world.completed(concat=concat), state)
    await world.sql("DELETE FROM jobs")
    assert (await make_cleanup(world).once())["jobs_requeued"] == 0
    await age(world, upload, "updated_at")

    assert [(await make_cleanup(world).once())["jobs_requeued"] for _ in range(2)] == [1, 0]
    assert await world.jobs_of(upload) == [(kind, "queued")]


@pytest.mark.parametrize("state", [State.COMPLETED, State.STORED, State.TRANSFER_FAILED, State.REMOVED, State.CREATED])
async def test_what_needs_no_job_gets_none(world: World, state: State) -> None:
    upload = await world.force_state(await world.part(b"ab"), state)
    await age(world, upload, "updated_at")

    assert (await make_cleanup(world, deleted_retention=DAY).once())["jobs_requeued"] == 0


async def test_what_waits_for_its_trigger_gets_no_job_before(world: World) -> None:
    committed, waiting = [await world.completed(trigger=Trigger.COMMIT) for _ in range(2)]
    manual = await world.completed(trigger=Trigger.MANUAL)
    await world.transfers.commit(committed.id)
    await world.transfers.commit(manual.id)
    await world.sql("DELETE FROM jobs")
    for upload in (committed, waiting, manual):
        await age(world, upload, "updated_at")

    assert (await make_cleanup(world).once())["jobs_requeued"] == 1
    found = [await world.jobs_of(upload) for upload in (committed, waiting, manual)]
    assert found == [[("transfer", "queued")], [], []]


# --- rows and events -------------------------------------------------------------------------------


async def removed(world: World, upload: Upload) -> Upload:
    await world.uploads.remove(upload.id)
    (job,) = await world.jobs().claim(1)
    await world.jobs().finish_removals([job])
    return upload


async def test_a_tombstone_stays_for_its_time_and_goes_with_all_that_hangs_on_it(world: World) -> None:
    upload = await removed(world, await world.received())
    kept = await world.received()
    assert (await make_cleanup(world).once())["rows_purged"] == 0
    await age(world, upload, "gone_at")

    assert (await make_cleanup(world).once())["rows_purged"] == 1

    assert await world.uploads.find(upload.id) is None
    assert await world.uploads.find(kept.id) is not None
    assert await world.value("SELECT count(*) FROM jobs") == 1
    assert await world.value("SELECT count(*) FROM job_attempts") == 0


async def test_a_row_stays_while_its_bytes_are_not_gone(world: World) -> None:
    expiring, removing = await world.create(), await world.received()
    await world.run_out_of_time(expiring)
    await world.cleanup.expire(expiring.id)
    await world.uploads.remove(removing.id)
    for upload in (expiring, removing):
        await age(world, upload, "gone_at")

    assert (await make_cleanup(world).once())["rows_purged"] == 0


async def test_the_row_of_a_part_stays_while_a_final_names_it_and_then_goes(world: World) -> None:
    part = await world.part(b"ab")
    final = await world.final([part])
    await removed(world, final)
    await removed(world, part)
    for upload in (part, final):
        await age(world, upload, "gone_at")

    done = await make_cleanup(world).once()

    assert (done["parts_released"], done["rows_purged"]) == (1, 2)


async def test_many_rows_go_in_one_pass(world: World) -> None:
    for _ in range(5):
        upload = await removed(world, await world.completed())
        await age(world, upload, "gone_at")
    await world.sql("UPDATE events SET created_at = now() - interval '2 hours'")

    done = await make_cleanup(world, batch=2).once()

    assert done["rows_purged"] == 5
    assert done["events_purged"] == 20


async def test_events_stay_for_their_time(world: World) -> None:
    await world.completed()
    assert (await make_cleanup(world).once())["events_purged"] == 0
    await world.sql("UPDATE events SET created_at = now() - interval '2 hours'")

    assert (await make_cleanup(world).once())["events_purged"] == 2


async def test_two_sweeps_at_once_do_everything_once(world: World) -> None:
    uploads = [await world.create() for _ in range(20)]
    await world.run_out_of_time(*uploads)
    old = [await removed(world, await world.completed()) for _ in range(20)]
    for upload in old:
        await age(world, upload, "gone_at")
    await world.sql("UPDATE events SET created_at = now() - interval '2 hours'")

    both = await asyncio.gather(make_cleanup(world).once(), make_cleanup(world).once())

    for step, count in {"expired": 20, "rows_purged": 20, "events_purged": 100}.items():
        assert sum(done[step] for done in both) == count


# --- files without a row ---------------------------------------------------------------------------


def put_file(world: World, name: str, *, old: bool = True) -> Path:
    path = world.root / "staging" / name[-2:] / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"orphan")
    if old:
        os.utime(path, (time.time() - OLD, time.time() - OLD))
    return path


def unclaimed(world: World, path: Path) -> Path:
    return world.root / "staging" / "unclaimed" / path.name


async def test_old_files_that_no_upload_claims_are_set_aside(world: World) -> None:
    orphans = [put_file(world, str(uuid.uuid4())) for _ in range(5)]
    young = put_file(world, str(uuid.uuid4()), old=False)

    done = await make_cleanup(world, batch=2).once()

    assert done["files_set_aside"] == 5
    assert not any(path.exists() for path in orphans)
    assert all(unclaimed(world, path).read_bytes() == b"orphan" for path in orphans)
    assert young.exists()
    assert (await make_cleanup(world, batch=2).once())["unclaimed_removed"] == 0


async def test_what_was_set_aside_long_ago_is_removed_unless_its_upload_is_back(world: World) -> None:
    orphans = [unclaimed(world, put_file(world, str(uuid.uuid4()))) for _ in range(5)]
    back = await world.received()
    os.utime(world.staging.path(back.id), (0, 0))
    await world.sql("UPDATE uploads SET local_present = false")
    assert (await make_cleanup(world, batch=2).once())["files_set_aside"] == 6
    await world.sql("UPDATE uploads SET local_present = true")
    young, *old = orphans
    for path in (*old, unclaimed(world, world.staging.path(back.id))):
        os.utime(path, (time.time() - 31 * DAY, time.time() - 31 * DAY))

    done = await make_cleanup(world, batch=2).once()

    assert done["unclaimed_removed"] == 4
    assert not any(path.exists() for path in old)
    assert young.exists()
    assert unclaimed(world, world.staging.path(back.id)).exists()


@pytest.mark.parametrize("wrong", ["directory", "unmounted", "database"])
async def test_nothing_is_removed_where_directory_and_database_do_not_belong_together(world: World, wrong: str) -> None:
    """As when a disk is unmounted, or the database restored, while the server runs."""
    orphan, upload = put_file(world, str(uuid.uuid4())), await world.create()
    await world.run_out_of_time(upload)
    old = unclaimed(world, orphan).with_name(str(uuid.uuid4()))
    old.parent.mkdir()
    old.touch()
    os.utime(old, (0, 0))
    if wrong == "directory":
        write_id(world.root / "staging", THERE, replace=True)
    elif wrong == "unmounted":
        (world.root / "staging" / ID_FILE).unlink()
    else:
        await world.sql("DELETE FROM staging_directories")

    assert await make_cleanup(world).once() == {}

    assert orphan.exists()
    assert old.exists()
    assert await world.state(upload) is State.CREATED


# --- files that cannot be dealt with ---------------------------------------------------------------


def make_unremovable(world: World, upload: Upload) -> Path:
    """Put something in an upload's place that can be neither opened nor removed, whoever tries."""
    path = world.staging.path(upload.id)
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "in the way").touch()
    return path


async def test_one_file_that_cannot_be_opened_does_not_keep_others_from_expiring(world: World) -> None:
    uploads = [await world.create(offset=4) for _ in range(3)]
    await world.run_out_of_time(*uploads)
    make_unremovable(world, uploads[0])
    cleanup, metrics = counted(world, batch=1)

    first, second = await cleanup.once(), await cleanup.once()

    assert (first["expired"], second["expired"]) == (2, 0)
    assert [await world.state(upload) for upload in uploads] == [State.UPLOADING, State.EXPIRED, State.EXPIRED]
    assert failures(metrics, "expired") == 1  # and not tried again at once


async def test_one_copy_that_cannot_be_removed_does_not_keep_others_from_being_purged(world: World) -> None:
    uploads = [await put_in_store(world, await world.received()) for _ in range(3)]
    spoiled = make_unremovable(world, uploads[0])
    cleanup, metrics = counted(world, batch=1)

    first, second = await cleanup.once(), await cleanup.once()

    assert (first["local_purged"], second["local_purged"]) == (2, 0)
    assert [(await world.find(upload)).local_present for upload in uploads] == [True, False, False]
    assert spoiled.exists()
    assert failures(metrics, "local_purged") == 1


async def test_what_could_not_be_dealt_with_is_tried_again_later(world: World) -> None:
    upload = await put_in_store(world, await world.received())
    spoiled = make_unremovable(world, upload)
    cleanup, metrics = counted(world)
    await cleanup.once()
    shutil.rmtree(spoiled)
    assert (await cleanup.once())["local_purged"] == 0

    cleanup, _ = counted(world, postpone_seconds=0.0)

    assert (await cleanup.once())["local_purged"] == 1
    assert failures(metrics, "local_purged") == 1


async def test_one_file_that_cannot_be_set_aside_or_removed_keeps_nobody_from_the_others(world: World) -> None:
    orphans = [put_file(world, str(uuid.uuid4())) for _ in range(3)]
    unclaimed(world, orphans[0]).mkdir(parents=True)  # its place is taken
    (unclaimed(world, orphans[0]) / "in the way").touch()
    cleanup, metrics = counted(world)

    first, second = await cleanup.once(), await cleanup.once()

    assert (first["files_set_aside"], second["files_set_aside"]) == (2, 0)
    assert orphans[0].read_bytes() == b"orphan"
    assert failures(metrics, "files_set_aside") == 1


async def test_a_part_of_the_directory_that_cannot_be_read_keeps_nobody_from_the_rest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreadable, orphan = put_file(world, f"{uuid.uuid4()}"[:-2] + "0a"), put_file(world, f"{uuid.uuid4()}"[:-2] + "0b")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path) == str(unreadable.parent):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("tusd_py.staging.area.os.scandir", refuse)

    assert (await make_cleanup(world).once())["files_set_aside"] == 1
    assert unclaimed(world, orphan).exists()
    assert unreadable.exists()


async def test_files_of_uploads_stay_however_old(world: World) -> None:
    uploads = [await world.received(), await world.part(b"ab"), await world.received(staging_id=THERE)]
    for upload in uploads:
        os.utime(world.staging.path(upload.id), (0, 0))

    assert (await make_cleanup(world).once())["files_set_aside"] == 0
    assert all(world.staged(upload) for upload in uploads)


async def test_a_copy_that_a_stored_or_removed_upload_left_behind_is_set_aside(world: World) -> None:
    upload = await put_in_store(world, await world.received())
    await world.cleanup.purged([upload.id])
    gone = await removed(world, await world.received())
    for left in (upload, gone):
        os.utime(world.staging.path(left.id), (0, 0))

    assert (await make_cleanup(world).once())["files_set_aside"] == 2


@pytest.mark.parametrize(
    "name",
    [
        "lost+found",
        "notes.txt",
        "0f8fad5bd9cb469fa16570867728950e",
        "{0f8fad5b-d9cb-469f-a165-70867728950e}",
        "0F8FAD5B-D9CB-469F-A165-70867728950E",
        "0f8fad5b-d9cb-469f-a165-70867728950e.tmp",
    ],
)
async def test_names_that_are_not_ours_are_left_alone(world: World, name: str) -> None:
    path = put_file(world, name)

    assert (await make_cleanup(world).once())["files_set_aside"] == 0
    assert path.exists()


async def test_the_sweep_goes_on_for_ever(world: World) -> None:
    upload = await world.create()
    running = asyncio.create_task(make_cleanup(world, interval=0.01).run())
    await world.run_out_of_time(upload)

    await reaches(world, upload, State.EXPIRED)

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# --- jobs sent early ---------------------------------------------------------------------------------


async def failed_beside_a_waiting_eager_job(world: World) -> Upload:
    """A failed transfer whose job `eager` waits for a try that is hours away."""
    upload = await world.completed()
    (job,) = await world.jobs().claim(1)
    await world.jobs().fail(job, PermanentStoreError(), code="ERR")
    await world.sql(
        "INSERT INTO jobs (upload_id, kind, staging_id, state, due_at)"
        " VALUES ($1, 'eager', $2, 'retry_wait', now() + interval '5 hours')",
        upload.id, upload.staging_id,
    )  # fmt: skip
    await age(world, upload, "updated_at")
    return upload


async def test_a_failed_transfer_is_tried_again_though_an_eager_job_waits(world: World) -> None:
    upload = await failed_beside_a_waiting_eager_job(world)

    assert (await make_cleanup(world, requeue_failed_after=3600).once())["requeued"] == 1
    assert await world.cleanup.count_requeued() == 1
    assert [job.upload.id for job in await world.jobs().claim(10)] == [upload.id]


async def test_what_nobody_queued_is_requeued_though_an_eager_job_waits(world: World) -> None:
    upload = await failed_beside_a_waiting_eager_job(world)
    await world.force_state(upload, State.TRANSFERRING)
    await age(world, upload, "updated_at")

    assert (await make_cleanup(world).once())["jobs_requeued"] == 1


async def test_what_endpoints_were_not_told_of_is_kept_for_its_time(world: World) -> None:
    queue = DeliveryQueue(world.database, worker="w")
    await queue.synchronise([EndpointRecord(name=name, kinds=RECORDED, profiles=frozenset()) for name in ("a", "b")])
    upload, dead = await world.create(), await world.create()
    await world.sql("UPDATE events SET created_at = now() - interval '2 hours'")
    for name in ("a", "b"):
        for delivery in await queue.claim(name, 10, lease_seconds=30):
            if delivery.upload_id == dead.id and name == "a":
                (event,) = await queue.events(delivery, RECORDED, start=1, until=1, limit=1)
                await queue.bury(delivery, event, 2, "no", lease_seconds=30)
                await queue.finish(delivery, 2)

    done = await make_cleanup(world).once()
    assert (done["endpoints_forgotten"], done["dead_letters_purged"], done["events_purged"]) == (0, 0, 0)

    await queue.synchronise([])
    await world.sql("UPDATE webhook_endpoints SET removed_at = now() - interval '25 hours'")
    await world.sql("UPDATE dead_letters SET died_at = now() - interval '31 days'")
    done = await make_cleanup(world).once()
    assert (done["endpoints_forgotten"], done["dead_letters_purged"], done["events_purged"]) == (3, 1, 2)
    assert await world.state(upload) is State.CREATED
