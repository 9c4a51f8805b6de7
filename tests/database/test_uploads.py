"""Uploads in the database: what is created, advanced, joined and removed, and by whom."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.support.world import DAY, HERE, World, new_upload, open_world, stored
from tusd_py import crc64
from tusd_py.database.lists import UploadLists
from tusd_py.errors import (
    HookInvalid,
    InvalidConcat,
    LengthConflict,
    OffsetConflict,
    PartialInUse,
    PartialNotFinished,
    PermanentStoreError,
    StoreFull,
    TransferInProgress,
    UploadHeld,
    UploadNotFound,
    UploadTooLarge,
)
from tusd_py.ports import Job, ListPosition
from tusd_py.protocol.checksum import Checksum, DigestSet
from tusd_py.protocol.concat import Room
from tusd_py.protocol.upload import Concat, State, TokenHash, Upload, UploadId, UploadProtocol


async def fail_transfer(world: World, upload: Upload) -> None:
    queue = world.jobs()
    (job,) = await queue.claim(1)
    assert job.upload.id == upload.id
    assert await queue.fail(job, PermanentStoreError(code="AccessDenied"), code="ERR_STORE_REFUSED")


# --- create ----------------------------------------------------------------------------------------


async def test_an_upload_without_bytes_is_created(world: World) -> None:
    upload = await world.create(length=10, metadata="filename YQ==", expires_after_seconds=DAY)

    assert upload.state is State.CREATED
    assert (upload.length, upload.offset, upload.crc64nvme) == (10, 0, 0)
    assert upload.metadata == "filename YQ=="
    assert upload.local_present
    assert not upload.remote_present
    assert upload.expires_at is not None
    assert (upload.expires_at - upload.created_at).total_seconds() == DAY
    assert await world.jobs_of(upload) == []
    assert await world.events_of(upload) == ["upload.created"]


async def test_an_upload_with_some_bytes_is_uploading(world: World) -> None:
    upload = await world.create(length=10, offset=4)

    assert upload.state is State.UPLOADING
    assert await world.jobs_of(upload) == []


async def test_a_whole_upload_comes_with_its_job_and_its_event(world: World) -> None:
    upload = await world.completed(length=10, expires_after_seconds=DAY)

    assert upload.state is State.COMPLETED
    assert upload.complete
    assert upload.completed_at is not None
    assert upload.expires_at is None
    jobs = await world.jobs_of(upload, "kind, state, staging_id, length, attempt")
    assert jobs == [("transfer", "queued", HERE, 10, 0)]
    assert await world.events_of(upload) == ["upload.created", "upload.completed"]


async def test_an_empty_upload_is_whole_at_once(world: World) -> None:
    upload = await world.create(length=0)

    assert upload.state is State.COMPLETED
    assert await world.jobs_of(upload) == [("transfer", "queued")]


async def test_a_whole_part_waits_for_a_final_and_expires_without_one(world: World) -> None:
    upload = await world.completed(concat=Concat.PARTIAL, expires_after_seconds=DAY)

    assert upload.state is State.COMPLETED
    assert upload.expires_at is not None
    assert await world.jobs_of(upload) == []
    assert await world.events_of(upload) == ["upload.created", "upload.part_completed"]


async def test_an_upload_that_cannot_be_inserted_leaves_no_job(world: World) -> None:
    first = await world.completed()
    with pytest.raises(HookInvalid, match="is taken"):  # nobody but a hook chooses keys
        await world.completed(object_key=first.object_key)

    assert await world.value("SELECT count(*) FROM jobs") == 1
    assert await world.value("SELECT count(*) FROM events") == 2


async def test_a_checksum_of_64_bits_survives(world: World) -> None:
    upload = await world.create(crc64nvme=2**64 - 2)
    advanced = await world.uploads.advance(upload, 5, 2**63, expires_after_seconds=0)

    assert upload.crc64nvme == 2**64 - 2
    assert (await world.find(advanced)).crc64nvme == 2**63


# --- find and list ---------------------------------------------------------------------------------


async def test_an_upload_is_found_by_its_token_and_by_its_id(world: World) -> None:
    upload = await world.create()

    assert await world.uploads.find_by_token(world.tokens[upload.id]) == upload
    assert await world.uploads.find(upload.id) == upload
    assert await world.uploads.find_by_token(TokenHash(b"x" * 32)) is None
    assert await world.uploads.find(UploadId(uuid.uuid4())) is None


async def test_a_list_shows_the_newest_of_one_owner(world: World) -> None:
    mine = [await world.create(owner="alice") for _ in range(3)]
    theirs = await world.create(owner="bob")
    await world.create(owner="alice", concat=Concat.PARTIAL)
    hidden = await world.create(owner="alice")
    await world.uploads.remove(hidden.id)

    async def ids(owner: str | None, **changes: object) -> list[UploadId]:
        arguments: dict[str, Any] = {"after": None, "limit": 10, "hide": [State.REMOVING]} | changes
        return [upload.id for upload in await UploadLists(world.database).newest(owner, **arguments)]

    newest_first = [upload.id for upload in reversed(mine)]
    assert await ids("alice") == newest_first
    assert await ids("alice", limit=2) == newest_first[:2]
    assert await ids("alice", after=ListPosition(mine[2].created_at, mine[2].id)) == newest_first[1:]
    assert await ids("alice", hide=[]) == [hidden.id, *newest_first]
    assert await ids(None) == [theirs.id, *newest_first]
    assert await ids("nobody") == []


async def test_pages_skip_none_of_the_uploads_of_one_moment(world: World) -> None:
    uploads = [await world.create() for _ in range(7)]
    await world.sql("UPDATE uploads SET created_at = '2026-01-01T00:00:00.123456Z'")
    found: list[UploadId] = []
    after = None

    while page := await UploadLists(world.database).newest("alice", after=after, limit=3, hide=[]):
        found += [upload.id for upload in page]
        after = ListPosition(page[-1].created_at, page[-1].id)

    assert len(found) == 7
    assert set(found) == {upload.id for upload in uploads}


# --- advance ---------------------------------------------------------------------------------------


async def test_an_offset_moves_with_its_checksum(world: World) -> None:
    upload = await world.create(length=10, expires_after_seconds=DAY)

    advanced = await world.uploads.advance(upload, 4, 99, expires_after_seconds=2 * DAY)

    assert (advanced.state, advanced.offset, advanced.crc64nvme) == (State.UPLOADING, 4, 99)
    assert advanced.expires_at is not None
    assert upload.expires_at is not None
    assert advanced.expires_at > upload.expires_at
    assert await world.jobs_of(upload) == []


async def test_the_last_byte_completes_with_job_and_event(world: World) -> None:
    upload = await world.create(length=10, expires_after_seconds=DAY)

    done = await world.advance(upload, 10)

    assert done.state is State.COMPLETED
    assert done.completed_at is not None
    assert done.expires_at is None
    assert await world.jobs_of(upload, "kind, state, length") == [("transfer", "queued", 10)]
    assert await world.events_of(upload) == ["upload.created", "upload.completed"]


async def test_of_twenty_writers_at_once_one_wins_and_one_job_is_queued(world: World) -> None:
    upload = await world.create(length=10)

    results = await asyncio.gather(*(world.advance(upload, 10) for _ in range(20)), return_exceptions=True)

    assert sum(isinstance(result, Upload) for result in results) == 1
    assert sum(isinstance(result, OffsetConflict) for result in results) == 19
    assert await world.jobs_of(upload) == [("transfer", "queued")]
    assert await world.events_of(upload) == ["upload.created", "upload.completed"]


async def test_a_writer_that_lost_its_place_changes_nothing(world: World) -> None:
    upload = await world.create(length=10)
    ahead = await world.advance(upload, 6)

    with pytest.raises(OffsetConflict):
        await world.advance(upload, 8)

    assert await world.find(upload) == ahead


@pytest.mark.parametrize("concat", [None, Concat.PARTIAL])
async def test_whoever_becomes_the_writer_fences_out_all_before(world: World, concat: Concat | None) -> None:
    before = await world.create(length=10, concat=concat)
    moved = await world.advance(before, 4)

    now = await world.uploads.become_writer(before.id)

    assert now is not None
    assert (now.offset, now.writer) == (4, moved.writer + 1)
    with pytest.raises(OffsetConflict):
        await world.advance(moved, 10)
    assert await world.find(before) == now
    assert (await world.advance(now, 10)).state is State.COMPLETED


async def test_a_length_is_declared_by_the_writer_of_today(world: World) -> None:
    before = await world.advance(await world.create(length=None), 4)
    now = await world.uploads.become_writer(before.id)
    assert now is not None

    with pytest.raises(LengthConflict):
        await world.uploads.declare_length(before, 10)
    assert (await world.find(before)).length is None

    assert (await world.uploads.declare_length(now, 10)).length == 10


async def test_nobody_becomes_the_writer_of_what_receives_no_bytes(world: World) -> None:
    complete, removed = await world.completed(), await world.create(length=10)
    await world.uploads.remove(removed.id)

    for upload in (complete, removed):
        assert await world.uploads.become_writer(upload.id) is None
        assert (await world.find(upload)).writer == 0


async def test_an_offset_never_goes_back(world: World) -> None:
    upload = await world.advance(await world.create(length=10), 6)

    with pytest.raises(OffsetConflict):
        await world.advance(upload, 5)

    assert (await world.find(upload)).offset == 6


async def test_a_removed_upload_does_not_advance(world: World) -> None:
    upload = await world.create(length=10)
    await world.uploads.remove(upload.id)

    with pytest.raises(OffsetConflict):
        await world.advance(upload, 10)

    assert await world.jobs_of(upload) == [("remove", "queued")]


async def test_a_time_to_expire_is_not_brought_forward(world: World) -> None:
    upload = await world.create(length=10, expires_after_seconds=DAY)

    advanced = await world.uploads.advance(upload, 4, 0, expires_after_seconds=60)

    assert advanced.expires_at == upload.expires_at


# --- a length that is told later -------------------------------------------------------------------


async def test_a_length_is_declared_once(world: World) -> None:
    upload = await world.advance(await world.create(length=None), 4)

    declared = await world.uploads.declare_length(upload, 10)

    assert (declared.length, declared.state) == (10, State.UPLOADING)
    assert (await world.uploads.declare_length(upload, 10)).length == 10
    with pytest.raises(LengthConflict):
        await world.uploads.declare_length(upload, 11)
    assert (await world.find(upload)).length == 10


async def test_a_length_below_what_arrived_is_refused(world: World) -> None:
    upload = await world.advance(await world.create(length=None), 4)

    with pytest.raises(LengthConflict):
        await world.uploads.declare_length(upload, 3)


async def test_a_length_that_comes_with_the_last_byte_completes(world: World) -> None:
    upload = await world.advance(await world.create(length=None), 4)
    assert upload.state is State.UPLOADING

    done = await world.advance(upload, 10, length=10)

    assert (done.state, done.length) == (State.COMPLETED, 10)
    assert await world.jobs_of(upload, "kind, length") == [("transfer", 10)]


async def test_a_length_that_is_reached_already_completes_without_a_byte(world: World) -> None:
    upload = await world.advance(await world.create(length=None), 4)

    done = await world.advance(upload, 4, length=4)

    assert done.state is State.COMPLETED


async def test_a_length_that_is_reached_completes_nothing_where_more_may_come(world: World) -> None:
    upload = await world.create(length=4, protocol=UploadProtocol.RUFH)

    reached = await world.advance(upload, 4, completes=False, expires_after_seconds=DAY)

    assert (reached.state, reached.completed_at, reached.protocol) == (State.UPLOADING, None, UploadProtocol.RUFH)
    assert reached.expires_at is not None
    assert await world.jobs_of(upload) == []
    assert (await world.advance(reached, 4)).state is State.COMPLETED
    assert await world.jobs_of(upload) == [("transfer", "queued")]


async def test_a_promised_digest_is_kept(world: World) -> None:
    promised = DigestSet((Checksum("sha256", bytes(32)), Checksum("sha512", bytes(range(64)))))

    upload = await world.create(length=4, repr_digest=promised)

    assert (await world.find(upload)).repr_digest == upload.repr_digest == promised


async def test_an_upload_may_begin_with_all_its_bytes_and_not_be_complete(world: World) -> None:
    upload = await world.create(length=4, offset=4, completes=False)

    assert upload.state is State.UPLOADING
    assert await world.jobs_of(upload) == []


async def test_a_length_that_is_known_is_not_replaced(world: World) -> None:
    upload = await world.create(length=10)

    advanced = await world.advance(upload, 4, length=99)

    assert advanced.length == 10


async def test_damage_is_noted_on_unfinished_uploads_only(world: World) -> None:
    unfinished, whole = await world.create(), await world.completed()

    await world.uploads.record_damage(unfinished.id, "torn")
    await world.uploads.record_damage(whole.id, "torn")

    assert (await world.find(unfinished)).error == "torn"
    assert (await world.find(whole)).error is None


# --- finals ----------------------------------------------------------------------------------------


async def test_a_final_over_whole_parts_is_whole(world: World) -> None:
    parts = [await world.part(content) for content in (b"hello ", b"", b"world")]

    final = await world.final(parts)

    assert (final.state, final.length, final.offset) == (State.COMPLETED, 11, 11)
    assert final.crc64nvme == crc64.update(b"hello world")
    assert await world.jobs_of(final, "kind, length") == [("transfer", 11)]
    assert await world.events_of(final) == ["upload.created", "upload.completed"]
    assert await world.uploads.partials(final.id) == parts


async def test_a_part_may_be_named_twice_where_that_is_allowed(world: World) -> None:
    one, two = await world.part(b"ab"), await world.part(b"c")
    with pytest.raises(InvalidConcat):
        await world.final([one, two, one])

    final = await world.final([one, two, one], allow_repeated=True)

    assert final.length == 5
    assert final.crc64nvme == crc64.update(b"abcab")
    assert [part.id for part in await world.uploads.partials(final.id)] == [one.id, two.id, one.id]


async def test_a_final_waits_for_its_parts_and_is_completed_by_the_last(world: World) -> None:
    done, open_part = await world.part(b"abc"), await world.part(length=4)

    final = await world.final([done, open_part], expires_after_seconds=DAY)
    assert (final.state, final.length, final.offset) == (State.CREATED, 7, 0)
    assert final.pending_final
    await world.uploads.advance(open_part, 4, crc64.update(b"defg"), expires_after_seconds=0)

    final = await world.find(final)
    assert (final.state, final.offset, final.expires_at) == (State.COMPLETED, 7, None)
    assert final.crc64nvme == crc64.update(b"abcdefg")
    assert await world.jobs_of(final) == [("transfer", "queued")]
    assert await world.events_of(final) == ["upload.created", "upload.completed"]


async def test_the_length_of_a_final_is_unknown_while_a_parts_is(world: World) -> None:
    part = await world.part(length=None)

    final = await world.final([part])
    assert final.length is None
    await world.advance(part, 4, length=4)

    assert (await world.find(final)).length == 4


@pytest.mark.parametrize("round_number", range(3))
async def test_parts_that_finish_at_once_complete_each_final_once(world: World, round_number: int) -> None:
    parts = [await world.part(length=4) for _ in range(4)]
    finals = [await world.final(parts), await world.final(list(reversed(parts))), await world.final(parts[:2])]

    await asyncio.gather(*(world.advance(part, 4) for part in parts))

    for final in finals:
        assert await world.state(final) is State.COMPLETED
        assert await world.jobs_of(final) == [("transfer", "queued")]
        assert await world.events_of(final) == ["upload.created", "upload.completed"]


@pytest.mark.parametrize("round_number", range(3))
async def test_a_final_made_while_its_part_finishes_is_completed_once(world: World, round_number: int) -> None:
    part = await world.part(length=4)

    final, _ = await asyncio.gather(world.final([part]), world.advance(part, 4))

    assert await world.state(final) is State.COMPLETED
    assert await world.jobs_of(final) == [("transfer", "queued")]


async def test_two_finals_of_the_same_parts_do_not_wait_for_each_other(world: World) -> None:
    parts = [await world.part(length=4, expires_after_seconds=60) for _ in range(3)]

    finals = await asyncio.gather(
        *(world.final(parts if even else parts[::-1], expires_after_seconds=DAY) for even in (0, 1) * 5)
    )

    assert {final.state for final in finals} == {State.CREATED}


async def test_parts_last_as_long_as_the_final_that_waits_for_them(world: World) -> None:
    part = await world.part(length=4, expires_after_seconds=60)

    final = await world.final([part], expires_after_seconds=DAY)

    assert (await world.find(part)).expires_at == final.expires_at


async def test_a_final_lasts_as_long_as_its_parts_receive_bytes(world: World) -> None:
    part = await world.part(length=4, expires_after_seconds=60)
    final = await world.final([part, await world.part(length=1)], expires_after_seconds=60)

    part = await world.uploads.advance(part, 2, 0, expires_after_seconds=DAY)

    assert (await world.find(final)).expires_at == part.expires_at


async def test_a_final_that_grows_too_large_expires(shared_dsn: str, tmp_path: Path) -> None:
    async with open_world(shared_dsn, tmp_path) as world:
        world.uploads._max_size = 6
        parts = [await world.part(length=None), await world.part(length=None)]
        final = await world.final(parts)
        for part in parts:
            await world.advance(part, 4, length=4)

        final = await world.find(final)
        assert final.state is State.EXPIRED
        assert final.error is not None
        assert await world.jobs_of(final) == [("remove", "queued")]


async def test_parts_that_cannot_be_used_are_refused_and_nothing_is_created(world: World) -> None:
    part, foreign = await world.part(b"ab"), await world.part(b"cd", owner="bob")
    whole = await world.received()
    gone, overdue = await world.part(b"gh"), await world.part(b"ij")
    await world.uploads.remove(gone.id)
    await world.run_out_of_time(overdue)
    unknown = TokenHash(b"?" * 32)

    for other in (foreign, whole, gone, overdue):
        with pytest.raises(InvalidConcat):
            await world.final([part, other])
    with pytest.raises(InvalidConcat):
        await world.uploads.create_final(new_upload(concat=Concat.FINAL), [unknown], allow_unfinished=True)
    with pytest.raises(InvalidConcat):
        await world.final([part, part])
    world.uploads._max_size = 3
    with pytest.raises(UploadTooLarge):
        await world.final([part, await world.part(b"cd")])

    assert await world.value("SELECT count(*) FROM uploads WHERE concat = 'final'") == 0
    assert await world.value("SELECT count(*) FROM upload_parts") == 0


async def test_finals_that_are_not_stored_yet_take_the_room_of_others(world: World) -> None:
    part, unfinished = await world.part(b"ab"), await world.part(length=3)
    room = Room(free=12, size=12)
    waiting = await world.final([part, unfinished], room=room)  # 5 bytes, though 3 of them are not here

    with pytest.raises(UploadTooLarge):
        await world.final([part], room=Room(free=1, size=1))
    results = await asyncio.gather(*(world.final([part], room=room) for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(result, StoreFull) for result in results) == 3

    await world.uploads.remove(waiting.id)
    assert await world.final([part, unfinished], room=room)
    # Whatever is stored, or is to lie elsewhere, takes nothing.
    await world.sql("UPDATE uploads SET place_id = 2 WHERE concat = 'final'")
    assert await world.final([part, unfinished], room=Room(free=5, size=12))


async def test_unfinished_parts_are_refused_unless_allowed(world: World) -> None:
    part = await world.part(length=4)
    new = new_upload(length=None, concat=Concat.FINAL)

    with pytest.raises(PartialNotFinished):
        await world.uploads.create_final(new, [world.tokens[part.id]], allow_unfinished=False)


async def test_a_final_never_advances(world: World) -> None:
    final = await world.final([await world.part(length=4)])

    with pytest.raises(OffsetConflict):
        await world.advance(final, 4)


# --- remove ----------------------------------------------------------------------------------------


AT_REST = [State.CREATED, State.UPLOADING, State.COMPLETED, State.TRANSFER_FAILED, State.STORED]


@pytest.mark.parametrize("state", AT_REST)
async def test_an_upload_at_rest_is_removed_with_its_jobs(world: World, state: State) -> None:
    upload = await world.force_state(await world.completed(), state)

    before = await world.uploads.remove(upload.id)

    assert before.state is state
    assert await world.state(upload) is State.REMOVING
    assert await world.jobs_of(upload) == [("transfer", "cancelled"), ("remove", "queued")]


@pytest.mark.parametrize("state", [State.EXPIRED, State.REMOVING, State.REMOVED])
async def test_what_is_gone_is_not_found(world: World, state: State) -> None:
    upload = await world.force_state(await world.create(), state)

    with pytest.raises(UploadNotFound):
        await world.uploads.remove(upload.id)
    with pytest.raises(UploadNotFound):
        await world.uploads.remove(UploadId(uuid.uuid4()))

    assert await world.jobs_of(upload) == []


async def test_of_many_removals_at_once_one_removes(world: World) -> None:
    upload = await world.completed()

    results = await asyncio.gather(*(world.uploads.remove(upload.id) for _ in range(10)), return_exceptions=True)

    assert sum(isinstance(result, Upload) for result in results) == 1
    assert sum(isinstance(result, UploadNotFound) for result in results) == 9
    assert await world.jobs_of(upload) == [("transfer", "cancelled"), ("remove", "queued")]


@pytest.mark.parametrize("force", [False, True])
async def test_an_upload_on_hold_stays(world: World, force: bool) -> None:
    upload = await world.completed()
    await world.sql("UPDATE uploads SET hold = true WHERE id = $1", upload.id)

    with pytest.raises(UploadHeld):
        await world.uploads.remove(upload.id, force=force)

    assert await world.jobs_of(upload) == [("transfer", "queued")]


@pytest.mark.parametrize("final_state", [State.CREATED, State.COMPLETED, State.TRANSFERRING, State.TRANSFER_FAILED])
async def test_a_part_that_a_final_needs_stays(world: World, final_state: State) -> None:
    part = await world.part(b"abc")
    final = await world.final([part])
    await world.force_state(final, final_state)

    with pytest.raises(PartialInUse):
        await world.uploads.remove(part.id)

    assert await world.state(part) is State.COMPLETED


@pytest.mark.parametrize("final_state", [State.STORED, State.REMOVING, State.REMOVED, State.EXPIRED])
async def test_a_part_that_no_final_needs_may_go(world: World, final_state: State) -> None:
    part = await world.part(b"abc")
    final = await world.force_state(await world.final([part]), final_state)
    assert final.local_present

    await world.uploads.remove(part.id)

    assert await world.state(part) is State.REMOVING
    assert (await world.find(final)).local_present is (final_state is not State.STORED)


async def test_an_upload_whose_transfer_runs_stays(world: World) -> None:
    upload = await world.completed()
    await world.jobs().claim(1)

    with pytest.raises(TransferInProgress):
        await world.uploads.remove(upload.id)

    assert await world.state(upload) is State.TRANSFERRING
    assert await world.jobs_of(upload) == [("transfer", "running")]


async def test_an_upload_between_two_tries_may_go(world: World) -> None:
    upload = await world.completed()
    (job,) = await world.jobs().claim(1)
    await world.jobs().retry(job, PermanentStoreError(), code="ERR", delay_seconds=60)

    await world.uploads.remove(upload.id)

    assert await world.jobs_of(upload) == [("transfer", "cancelled"), ("remove", "queued")]
    assert [removal.runnable for removal in await world.jobs().claim(9)] == [True]


async def test_an_upload_whose_worker_is_dead_may_go(world: World) -> None:
    upload = await world.completed()
    await world.jobs().claim(1)
    await world.end_leases()

    await world.uploads.remove(upload.id)

    assert await world.jobs_of(upload) == [("transfer", "cancelled"), ("remove", "queued")]
    assert await world.attempts_of(upload) == [("transfer", 1, "lost")]


@pytest.mark.parametrize("round_number", range(4))
async def test_a_removal_and_a_claim_at_once_agree(world: World, round_number: int) -> None:
    uploads = [await world.completed() for _ in range(10)]

    outcomes, claimed = await asyncio.gather(
        asyncio.gather(*(world.uploads.remove(upload.id) for upload in uploads), return_exceptions=True),
        world.jobs().claim(10),
    )

    runnable = {job.upload.id for job in claimed if job.kind == "transfer" and job.runnable}
    for upload, outcome in zip(uploads, outcomes, strict=True):
        assert isinstance(outcome, Upload | TransferInProgress), outcome
        assert (upload.id in runnable) is isinstance(outcome, TransferInProgress)
        assert await world.state(upload) is (State.TRANSFERRING if upload.id in runnable else State.REMOVING)


@pytest.mark.parametrize("round_number", range(3))
async def test_a_removal_and_the_last_byte_at_once_agree(world: World, round_number: int) -> None:
    upload = await world.create(length=10)

    removal, _ = await asyncio.gather(
        world.uploads.remove(upload.id), world.advance(upload, 10), return_exceptions=True
    )

    assert isinstance(removal, Upload)
    assert await world.state(upload) is State.REMOVING
    assert ("remove", "queued") in await world.jobs_of(upload)
    assert ("transfer", "queued") not in await world.jobs_of(upload)


# --- remove by force -------------------------------------------------------------------------------


async def forced(world: World) -> tuple[Upload, Job]:
    upload = await world.completed()
    (job,) = await world.jobs().claim(1)
    await world.uploads.remove(upload.id, force=True)
    return upload, job


async def test_by_force_the_upload_is_gone_at_once_and_its_bytes_when_the_worker_has_stopped(world: World) -> None:
    upload, job = await forced(world)

    assert await world.state(upload) is State.REMOVING
    assert await world.jobs("worker-2").claim(9) == []
    await world.jobs().discard(job)

    (removal,) = await world.jobs("worker-2").claim(9)
    assert (removal.kind, removal.runnable) == ("remove", True)
    assert await world.jobs_of(upload) == [("transfer", "cancelled"), ("remove", "running")]
    assert await world.attempts_of(upload) == [("transfer", 1, "cancelled")]


async def test_by_force_the_removal_waits_for_the_end_of_a_silent_workers_lease(world: World) -> None:
    upload, _ = await forced(world)

    due = await world.jobs_of(upload, "kind, due_at")
    assert due[0][1] == due[1][1]
    await world.end_leases()

    claimed = {job.kind: job.runnable for job in await world.jobs("worker-2").claim(9)}
    assert claimed == {"transfer": False, "remove": True}


async def test_by_force_the_worker_can_neither_renew_nor_record(world: World) -> None:
    upload, job = await forced(world)
    queue = world.jobs()

    assert await queue.renew([job]) == set()
    assert await queue.finish_transfers([(job, stored(upload))]) == set()
    assert not await queue.retry(job, PermanentStoreError(), code="ERR", delay_seconds=0)
    assert not await queue.fail(job, PermanentStoreError(), code="ERR")

    assert await world.state(upload) is State.REMOVING
    assert await world.jobs_of(upload) == [("transfer", "running"), ("remove", "queued")]


async def test_by_force_where_nothing_runs_is_as_without(world: World) -> None:
    upload = await world.completed()

    await world.uploads.remove(upload.id, force=True)

    assert await world.jobs_of(upload) == [("transfer", "cancelled"), ("remove", "queued")]
    assert [job.runnable for job in await world.jobs().claim(9)] == [True]


@pytest.mark.parametrize("round_number", range(3))
async def test_by_force_and_a_record_at_once_agree(world: World, round_number: int) -> None:
    uploads = [await world.completed() for _ in range(8)]
    queue = world.jobs()
    jobs = await queue.claim(8)

    recorded, *outcomes = await asyncio.gather(
        queue.finish_transfers([(job, stored(job.upload)) for job in jobs]),
        *(world.uploads.remove(upload.id, force=True) for upload in uploads),
        queue.renew(jobs),
        return_exceptions=True,
    )

    assert isinstance(recorded, set), recorded
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    for upload in uploads:
        assert await world.state(upload) is State.REMOVING
    assert {job.id for job in jobs if (await world.find(job.upload)).remote_present} == recorded
