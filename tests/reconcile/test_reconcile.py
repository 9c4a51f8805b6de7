"""Every kind of finding, made for real on a real database and a real disk: reported, repaired, and gone."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from tests.support.reconciling import Run, age_rows, make_old, reconcile, reconciler, reports, snapshot, stage
from tests.support.workers import Gated, InParts, is_true, reaches, working
from tests.support.world import HERE, THERE, World
from tests.worker.killed_worker import POINTS
from tests.worker.test_killed_worker import run_until_killed
from tusd_py.protocol.upload import State, Upload, UploadId
from tusd_py.reconcile.findings import Kind, Repair, Result

CONTENT = b"0123456789"


async def put_in_store(world: World, *uploads: Upload) -> None:
    """Let a worker store uploads, and leave the staged copies where they are."""
    async with working(world, purge=False):
        for upload in uploads:
            await reaches(world, upload, State.STORED)


async def assert_no_findings(world: World, **changes: Any) -> None:
    run = await reconcile(world, **changes)
    assert [kind for kind in run.kinds if kind is not Kind.UNCLAIMED_FILE] == []
    assert run.report.left == 0


async def purge(world: World, upload: Upload) -> None:
    """Let go of a staged copy, as the cleanup does."""
    await world.staging.remove([upload.id])
    await world.cleanup.purged([upload.id])


async def removed(world: World) -> Upload:
    """An upload that was stored and then removed."""
    upload = await world.received(CONTENT)
    await put_in_store(world, upload)
    await world.uploads.remove(upload.id)
    async with working(world):
        await reaches(world, upload, State.REMOVED)
    return upload


# --- nothing to find -------------------------------------------------------------------------------


async def test_uploads_in_good_order_are_no_findings(world: World) -> None:
    stored, kept, gone = await world.received(CONTENT), await world.received(CONTENT), await removed(world)
    await put_in_store(world, stored, kept)
    await purge(world, stored)
    fresh, torn = await world.create(), await world.create(offset=4)
    stage(world, torn, CONTENT[:7])
    part = await world.part(CONTENT)
    waiting, failed = await world.received(CONTENT), await world.received(CONTENT)
    await world.sql("DELETE FROM jobs WHERE upload_id = $1", failed.id)
    await world.force_state(failed, State.TRANSFER_FAILED)
    (world.root / "staging" / "lost+found").mkdir()

    run = await reports(world, delete_local=False)

    assert run.kinds == []
    assert (run.report.uploads, run.report.files, run.report.objects, run.report.left) == (8, 5, 2, 0)
    for upload in (fresh, gone, part, waiting):
        assert await world.find(upload)


async def test_an_empty_upload_needs_no_file(world: World) -> None:
    upload = await world.received(b"")
    await put_in_store(world, upload)
    world.staging.path(upload.id).unlink()

    await assert_no_findings(world)


# --- staging ---------------------------------------------------------------------------------------


async def test_a_staged_file_of_no_upload_is_set_aside(world: World) -> None:
    await world.create()
    orphan = world.staging.path(UploadId(uuid.uuid4()))
    orphan.write_bytes(CONTENT)

    reported = await reports(world)
    repaired = await reconcile(world, repair=True)

    assert reported.kinds == repaired.kinds == [Kind.ORPHAN_FILE]
    assert (reported.outcomes[0].finding.subject, reported.outcomes[0].finding.size) == (orphan.name, 10)
    assert repaired.results == [Result.REPAIRED]
    assert not orphan.exists()
    assert unclaimed(world, orphan).read_bytes() == CONTENT
    later = await reports_kept(world)
    assert (later.kinds, later.results) == ([Kind.UNCLAIMED_FILE], [Result.KEPT])
    assert "no upload has it" in later.outcomes[0].finding.detail
    await assert_no_findings(world)


def unclaimed(world: World, path: Path) -> Path:
    return world.root / "staging" / "unclaimed" / path.name


async def reports_kept(world: World) -> Run:
    before = await snapshot(world)
    run = await reconcile(world, repair=True)
    assert await snapshot(world) == before
    return run


async def delete_rows(world: World, *uploads: Upload) -> list[dict[str, Any]]:
    """Let the database be an older one: it does not know these uploads; return their rows."""
    rows = [dict(row) for row in await world.sql("SELECT * FROM uploads")]
    await world.sql("DELETE FROM uploads WHERE id = ANY ($1::uuid[])", [upload.id for upload in uploads])
    return rows


async def restore_rows(world: World, rows: list[dict[str, Any]]) -> None:
    """Let the rows be there again."""
    for row in rows:
        columns = ", ".join(row)
        values = ", ".join(f"${number}" for number in range(1, len(row) + 1))
        await world.sql(f"INSERT INTO uploads ({columns}) VALUES ({values}) ON CONFLICT DO NOTHING", *row.values())


async def test_what_an_older_database_did_not_know_comes_back_with_its_row(world: World) -> None:
    """Restored from a backup, cleaned up, and then the newer database is found after all."""
    await world.create()
    whole, begun = await world.received(CONTENT), await world.create(length=20, offset=10)
    stage(world, begun, CONTENT)
    rows = await delete_rows(world, whole, begun)
    assert (await reconcile(world, repair=True)).results == [Result.REPAIRED] * 2
    assert not world.staged(whole)
    assert not world.staged(begun)
    await restore_rows(world, rows)

    reported = await reports(world)
    repaired = await reconcile(world, repair=True)

    assert [kind for kind in reported.kinds if kind is Kind.UNCLAIMED_FILE] == [Kind.UNCLAIMED_FILE] * 2
    assert set(repaired.results) == {Result.REPAIRED}
    assert world.staging.path(whole.id).read_bytes() == world.staging.path(begun.id).read_bytes() == CONTENT
    await assert_no_findings(world)
    assert not list((world.root / "staging" / "unclaimed").iterdir())
    async with working(world):
        await reaches(world, whole, State.STORED)
    assert world.object(whole) == CONTENT


async def test_what_is_marked_as_missing_is_found_again_among_the_unclaimed(world: World) -> None:
    upload = await world.create(length=20, offset=10)
    path = stage(world, upload, CONTENT)
    aside = unclaimed(world, path)
    aside.parent.mkdir()
    path.rename(aside)
    await world.sql("UPDATE uploads SET missing_at = now() WHERE id = $1", upload.id)

    repaired = await reconcile(world, repair=True)

    assert repaired.kinds == [Kind.FOUND_AGAIN, Kind.UNCLAIMED_FILE]
    assert repaired.results == [Result.REPAIRED] * 2
    assert path.read_bytes() == CONTENT
    await assert_no_findings(world)


@pytest.mark.parametrize("why", ["gone", "elsewhere", "short", "taken", "foreign"])
async def test_an_unclaimed_file_that_does_not_fit_stays_where_it_is(world: World, why: str) -> None:
    upload = await world.create(length=20, offset=10, staging_id=THERE if why == "elsewhere" else HERE)
    if why == "gone":
        await world.force_state(upload, State.EXPIRED)
        await world.sql("UPDATE uploads SET local_present = false")
    if why == "taken":
        stage(world, upload, CONTENT)
    aside = unclaimed(world, world.staging.path(upload.id))
    if why == "foreign":
        aside = aside.with_name("notes.txt")
        stage(world, upload, CONTENT)
    aside.parent.mkdir()
    aside.write_bytes(CONTENT[:5] if why == "short" else CONTENT)

    run = await reconcile(world, repair=True)

    (outcome,) = [one for one in run.outcomes if one.finding.kind is Kind.UNCLAIMED_FILE]
    assert outcome.result is Result.KEPT
    assert aside.exists()


async def test_an_orphan_that_somebody_holds_or_that_gets_its_row_meanwhile_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, late = UploadId(uuid.uuid4()), UploadId(uuid.uuid4())
    await world.create()
    file = await world.staging.open(held, create=True)
    assert file is not None
    world.staging.path(late).write_bytes(CONTENT)
    one = reconciler(world)
    by_id = one._records.by_id
    asked = 0

    async def row_comes_second(ids: Any) -> Any:
        nonlocal asked
        found = await by_id(ids)
        if late in ids and (asked := asked + 1) == 1:
            await world.create(id=late, offset=4)
        return found

    monkeypatch.setattr(one._records, "by_id", row_comes_second)
    outcomes = [outcome async for outcome in one.run(repair=True)]
    await file.close()

    assert [outcome.result for outcome in outcomes] == [Result.CHANGED] * 2
    assert world.staging.path(held).exists()
    assert world.staging.path(late).read_bytes() == CONTENT


async def test_links_and_foreign_files_in_staging_are_told_and_never_followed(world: World, tmp_path: Path) -> None:
    await world.create()
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    shard = world.root / "staging" / "0a"
    link = shard / f"{str(uuid.uuid4())[:-2]}0a"
    link.symlink_to(precious)
    directory_link = world.root / "staging" / "zz"
    directory_link.symlink_to(tmp_path)
    misplaced = shard / f"{str(uuid.uuid4())[:-2]}0b"
    strange = shard / "bad\nname"
    for path in (misplaced, strange):
        path.write_bytes(CONTENT)

    reported = await reports(world)
    run = await reconcile(world, repair=True)

    assert reported.kinds == run.kinds == [Kind.FOREIGN_FILE] * 4
    assert set(run.results) == {Result.LEFT}
    assert precious.read_bytes() == b"precious"
    assert all(os.path.lexists(path) for path in (link, directory_link, misplaced, strange))
    lines = [outcome.as_text(repair=False) for outcome in reported.outcomes]
    assert not any("\n" in line for line in lines)
    assert any("0a/bad\\nname" in line for line in lines)


@pytest.mark.parametrize("recorded", [True, False])
async def test_a_staged_copy_that_should_be_gone_goes(world: World, recorded: bool) -> None:
    upload = await world.received(CONTENT)
    await put_in_store(world, upload)
    if not recorded:
        await world.cleanup.purged([upload.id])

    reported = await reports(world)
    repaired = await reconcile(world, repair=True)

    assert reported.kinds == repaired.kinds == [Kind.LEFTOVER_COPY]
    assert repaired.results == [Result.REPAIRED]
    assert not world.staged(upload)
    assert not (await world.find(upload)).local_present
    assert world.object(upload) == CONTENT
    await assert_no_findings(world)


async def test_a_staged_copy_that_is_kept_on_purpose_stays(world: World) -> None:
    upload = await world.received(CONTENT)
    await put_in_store(world, upload)

    assert (await reconcile(world, repair=True, delete_local=False)).kinds == []
    assert (await reconcile(world, repair=True, delete_local_after_seconds=7200.0)).kinds == []
    assert world.staged(upload)


async def test_a_staged_file_of_a_removed_upload_goes(world: World) -> None:
    upload = await removed(world)
    stage(world, upload, CONTENT)

    reported, repaired = await reports(world), await reconcile(world, repair=True)

    assert reported.kinds == repaired.kinds == [Kind.LEFTOVER_COPY]
    assert not world.staged(upload)
    await assert_no_findings(world)


async def test_a_copy_that_is_not_there_is_no_longer_claimed(world: World) -> None:
    upload = await world.received(CONTENT)
    await put_in_store(world, upload)
    world.staging.path(upload.id).unlink()

    reported, repaired = await reports(world), await reconcile(world, repair=True)

    assert reported.kinds == repaired.kinds == [Kind.COPY_NOT_THERE]
    assert not (await world.find(upload)).local_present
    await assert_no_findings(world)


@pytest.mark.parametrize("state", [State.UPLOADING, State.COMPLETED, State.TRANSFER_FAILED])
@pytest.mark.parametrize("left", [None, CONTENT[:3]])
async def test_lost_staged_bytes_are_marked_and_nothing_is_removed(
    world: World, state: State, left: bytes | None
) -> None:
    upload = await world.create(offset=6)
    await world.force_state(upload, state)
    if state is State.COMPLETED:  # of which parts are never transferred by themselves
        await world.sql("UPDATE uploads SET concat = 'partial' WHERE id = $1", upload.id)
    if left is not None:
        stage(world, upload, left)
    kind = Kind.STAGED_MISSING if left is None else Kind.STAGED_SHORT

    reported, marked = await reports(world), await reconcile(world, repair=True)
    again = await reconcile(world, repair=True)

    assert reported.kinds == marked.kinds == again.kinds == [kind]
    assert (marked.results, again.results) == ([Result.MARKED], [Result.LEFT])
    assert marked.report.left == again.report.left == 1
    assert again.outcomes[0].finding.repair is Repair.NONE
    assert await world.value("SELECT missing_at IS NOT NULL FROM uploads") is True
    assert "staged bytes" in str((await world.find(upload)).error)
    assert await world.events_of(upload) == ["upload.created", "upload.bytes_missing"]
    assert world.staged(upload) == (left is not None)

    stage(world, upload, CONTENT)
    reported, cleared = await reports(world), await reconcile(world, repair=True)
    assert reported.kinds == cleared.kinds == [Kind.FOUND_AGAIN]
    assert await world.value("SELECT missing_at FROM uploads") is None
    await assert_no_findings(world)


# --- the store -------------------------------------------------------------------------------------


@pytest.mark.parametrize("recorded", [True, False])
async def test_a_lost_object_is_made_anew_of_the_staged_copy(world: World, recorded: bool) -> None:
    upload = await world.received(CONTENT)
    await put_in_store(world, upload)
    if not recorded:  # the copy that nobody remembers is the last one
        await world.cleanup.purged([upload.id])
    world.store.local_path(upload.object_key).unlink()

    reported = await reports(world)
    repaired = await reconcile(world, repair=True)

    assert reported.kinds == repaired.kinds == [Kind.OBJECT_MISSING]
    assert repaired.results == [Result.REPAIRED]
    assert world.staged(upload)
    found = await world.find(upload)
    assert (found.state, found.local_present, found.remote_present) == (State.TRANSFER_FAILED, True, False)
    async with working(world):
        await reaches(world, upload, State.STORED)
    assert world.object(upload) == CONTENT
    assert "upload.object_missing" in await world.events_of(upload)
    await assert_no_findings(world)


async def test_the_reason_of_a_failed_transfer_outlives_mark_and_its_end(world: World) -> None:
    upload = await world.create(offset=6)
    await world.force_state(upload, State.TRANSFER_FAILED)
    await world.sql("UPDATE uploads SET error = 'why it failed'")

    assert (await reconcile(world, repair=True)).results == [Result.MARKED]
    stage(world, upload, CONTENT)
    assert (await reconcile(world, repair=True)).kinds == [Kind.FOUND_AGAIN]

    assert (await world.find(upload)).error == "why it failed"


async def test_a_lost_object_of_a_concatenation_is_made_anew_of_its_parts(world: World) -> None:
    parts = [await world.part(b"abc"), await world.part(b"defg")]
    final = await world.final(parts)
    await put_in_store(world, final)
    world.store.local_path(final.object_key).unlink()

    assert (await reconcile(world, repair=True)).results == [Result.REPAIRED]

    async with working(world, purge=False):
        await reaches(world, final, State.STORED)
    assert world.object(final) == b"abcdefg"
    await assert_no_findings(world)


@pytest.mark.parametrize("harm", ["gone", "short"])
async def test_a_lost_object_of_a_concatenation_without_all_its_parts_is_marked(world: World, harm: str) -> None:
    parts = [await world.part(b"abc"), await world.part(b"defg")]
    final = await world.final(parts)
    await put_in_store(world, final)
    world.store.local_path(final.object_key).unlink()
    path = world.staging.path(parts[1].id)
    path.write_bytes(b"d") if harm == "short" else path.unlink()

    run = await reconcile(world, repair=True)

    by_id = {outcome.finding.subject: outcome for outcome in run.outcomes}
    assert by_id[str(final.id)].result is Result.MARKED
    assert by_id[str(parts[1].id)].result is Result.MARKED
    assert await world.state(final) is State.STORED


async def test_a_lost_object_without_a_copy_is_marked_until_it_is_back(world: World) -> None:
    upload = await world.received(CONTENT)
    await put_in_store(world, upload)
    await purge(world, upload)
    path = world.store.local_path(upload.object_key)
    path.unlink()

    reported, marked, again = (
        await reports(world),
        await reconcile(world, repair=True),
        await reconcile(world, repair=True),
    )

    assert reported.kinds == marked.kinds == again.kinds == [Kind.OBJECT_MISSING]
    assert (marked.results, again.results) == ([Result.MARKED], [Result.LEFT])
    found = await world.find(upload)
    assert (found.state, found.error) == (State.STORED, "The stored file is missing.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONTENT)
    assert (await reconcile(world, repair=True)).kinds == [Kind.FOUND_AGAIN]
    assert (await world.find(upload)).error is None
    await assert_no_findings(world)


async def test_an_object_of_another_length_is_marked_and_never_replaced(world: World) -> None:
    upload = await world.received(CONTENT)
    await put_in_store(world, upload)
    path = world.store.local_path(upload.object_key)
    path.unlink()
    path.write_bytes(b"theirs")

    reported, marked = await reports(world, delete_local=False), await reconcile(world, repair=True, delete_local=False)

    assert reported.kinds == marked.kinds == [Kind.OBJECT_DIFFERS]
    assert reported.outcomes[0].finding.detail == "6 bytes instead of 10"
    assert path.read_bytes() == b"theirs"
    assert world.staged(upload)
    # Nor does the staged copy go, which is the last one now.
    assert (await reconcile(world, repair=True)).kinds == [Kind.OBJECT_DIFFERS]
    assert world.staged(upload)


async def test_an_object_of_an_upload_that_is_gone_goes(world: World) -> None:
    upload = await removed(world)
    path = world.store.local_path(upload.object_key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONTENT)

    reported, repaired = await reports(world), await reconcile(world, repair=True)

    assert reported.kinds == repaired.kinds == [Kind.OBJECT_OF_GONE_UPLOAD]
    assert repaired.results == [Result.REPAIRED]
    assert world.object(upload) is None
    await assert_no_findings(world)


async def test_objects_of_no_upload_are_told_and_foreign_ones_counted(world: World) -> None:
    await world.create()
    orphan, foreign = world.store.local_path(f"uploads/{uuid.uuid4()}"), world.store.local_path("reports/2026.pdf")
    for path in (orphan, foreign):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
    (foreign.parent / "link").symlink_to(orphan)

    reported, run = await reports(world), await reconcile(world, repair=True)

    assert reported.kinds == run.kinds == [Kind.ORPHAN_OBJECT]
    assert (run.results, run.report.foreign_objects) == ([Result.LEFT], 1)
    assert orphan.exists()
    assert foreign.exists()


async def test_incomplete_files_of_a_killed_copy_go_if_they_are_provably_ours(world: World) -> None:
    upload, busy = await world.received(CONTENT), await world.received(CONTENT)
    await world.sql("UPDATE jobs SET state = 'succeeded' WHERE upload_id = $1", upload.id)
    await world.force_state(upload, State.TRANSFER_FAILED)
    keys = [upload.object_key, busy.object_key, f"uploads/{uuid.uuid4()}", "somebody/else"]
    incomplete = [world.store.local_path(key).with_name(f"{Path(key).name}.tmp") / "0123456789abcdef" for key in keys]
    for path in incomplete:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")

    reported, repaired = await reports(world), await reconcile(world, repair=True)

    assert reported.kinds == repaired.kinds == [Kind.STRAY_MULTIPART, Kind.UNPROVEN_MULTIPART]
    assert sorted(repaired.results) == [Result.LEFT, Result.REPAIRED]
    assert [path.exists() for path in incomplete] == [False, True, True, True]
    assert repaired.report.foreign_unfinished == 1
    incomplete[2].unlink()
    await assert_no_findings(world)


# --- jobs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "job", "end"),
    [
        (State.COMPLETED, "transfer", State.STORED),
        (State.TRANSFERRING, "transfer", State.STORED),
        (State.REMOVING, "remove", State.REMOVED),
        (State.EXPIRED, "remove", State.EXPIRED),
    ],
)
async def test_an_upload_without_the_job_it_waits_for_gets_one(
    world: World, state: State, job: str, end: State
) -> None:
    upload = await world.received(CONTENT)
    await world.force_state(upload, state)
    await world.sql("DELETE FROM jobs")

    reported, repaired = await reports(world), await reconcile(world, repair=True)

    assert reported.kinds == repaired.kinds == [Kind.JOB_MISSING]
    assert await world.jobs_of(upload) == [(job, "queued")]
    async with working(world):
        await reaches(world, upload, end)
        await is_true(lambda: not world.staged(upload), "its staged bytes are gone")
        await is_true(lambda: _over(world, upload), "its job is over")
    await assert_no_findings(world)


@pytest.mark.parametrize(
    ("trigger", "committed", "waits"),
    [("complete", False, True), ("commit", False, False), ("commit", True, True), ("manual", True, False)],
)
async def test_an_upload_whose_transfer_nobody_asked_for_waits_for_no_job(
    world: World, trigger: str, committed: bool, waits: bool
) -> None:
    upload = await world.received(CONTENT)
    await world.sql("DELETE FROM jobs")
    when = "now()" if committed else "NULL"
    await world.sql(f"UPDATE uploads SET trigger = $1, committed_at = {when}", trigger)

    run = await reconcile(world, repair=True)

    assert run.kinds == ([Kind.JOB_MISSING] if waits else [])
    assert await world.jobs_of(upload) == ([("transfer", "queued")] if waits else [])


async def _over(world: World, upload: Upload) -> bool:
    return [state for _, state in await world.jobs_of(upload)] == ["succeeded"]


# --- what is not touched ---------------------------------------------------------------------------


async def test_nothing_that_is_younger_than_the_margin_is_looked_at(world: World) -> None:
    """By the true clock, each of them once young and once old."""
    lost, jobless, gone = await world.received(CONTENT), await world.received(CONTENT), await removed(world)
    await put_in_store(world, lost)
    await purge(world, lost)
    orphan = world.staging.path(UploadId(uuid.uuid4()))
    object_of_gone, orphan_object = (
        world.store.local_path(key) for key in (gone.object_key, f"uploads/{uuid.uuid4()}")
    )
    incomplete = world.store.local_path(f"{lost.object_key}.x").with_name(f"{lost.id}.tmp") / "0123456789abcdef"
    world.store.local_path(lost.object_key).unlink()
    await world.sql("DELETE FROM jobs")
    await world.force_state(jobless, State.COMPLETED)
    stage(world, jobless, CONTENT)
    for path in (orphan, object_of_gone, orphan_object, incomplete):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
    before = await snapshot(world)

    young = await reconcile(world, repair=True, clock=time.time)

    assert young.kinds == []
    assert await snapshot(world) == before
    for path in (orphan, object_of_gone, orphan_object, incomplete):
        make_old(path)
    await age_rows(world)
    old = await reconcile(world, clock=time.time)
    assert set(old.kinds) == {
        Kind.OBJECT_MISSING, Kind.JOB_MISSING, Kind.OBJECT_OF_GONE_UPLOAD, Kind.ORPHAN_OBJECT, Kind.ORPHAN_FILE,
        Kind.STRAY_MULTIPART,
    }  # fmt: skip


async def test_what_another_node_keeps_is_left_to_it(world: World) -> None:
    theirs = await world.create(staging_id=THERE, offset=4)
    completed = await world.completed(staging_id=THERE)
    await world.sql("DELETE FROM jobs")
    lost = await world.force_state(await world.create(staging_id=THERE), State.STORED)
    await world.create()

    reported = await reports(world)

    assert reported.kinds == []
    stage(world, theirs, CONTENT)
    run = await reconcile(world, repair=True)
    assert run.kinds == [Kind.FOREIGN_FILE]
    assert world.staged(theirs)
    assert await world.jobs_of(completed) == await world.jobs_of(lost) == []


async def test_a_running_upload_and_a_running_transfer_are_not_touched(world: World) -> None:
    receiving = await world.create(offset=4, length=100)
    file = await world.staging.open(receiving.id, create=True)
    assert file is not None
    await file.write([CONTENT], 0, 0)
    sent = await world.received(CONTENT)
    store = Gated(world.store, made=True)
    async with working(world, store):
        await store.reached.wait()  # the object is there, and its record is not
        run = await reconcile(world, repair=True)
        assert run.kinds == []
        assert await world.state(sent) is State.TRANSFERRING
        await file.write([CONTENT], 10, 0)
        store.gate.set()
        await reaches(world, sent, State.STORED)
    await file.close()

    assert world.staging.path(receiving.id).stat().st_size == 20
    assert (await world.advance(receiving, 20)).offset == 20
    assert world.object(sent) == CONTENT
    await assert_no_findings(world)


async def test_an_upload_that_moves_under_the_eyes_of_a_run_is_no_finding(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker stores it and removes the staged copy between the look at the row and that at the disk."""
    upload = await world.received(CONTENT)
    await world.sql("DELETE FROM jobs")
    await world.force_state(upload, State.TRANSFER_FAILED)
    world.staging.path(upload.id).rename(world.root / "aside")
    one = reconciler(world)
    sizes, looks = one._staging.sizes, 0

    def moves_meanwhile(ids: Any) -> Any:
        nonlocal looks
        looks += 1
        return sizes(ids)

    async def stored(*arguments: Any) -> Any:
        found = await stat(*arguments)
        await world.force_state(upload, State.STORED)
        return found

    stat = world.store.stat
    monkeypatch.setattr(one._staging, "sizes", moves_meanwhile)
    monkeypatch.setattr(one._store, "stat", stored)
    await age_rows(world)

    assert [outcome async for outcome in one.run(repair=True) if outcome.finding.row] == []
    assert looks == 2


async def test_a_database_that_knows_nothing_of_this_node_is_not_believed(world: World) -> None:
    await world.create(staging_id=THERE)
    path = world.staging.path(UploadId(uuid.uuid4()))
    path.write_bytes(CONTENT)

    run = await reconcile(world, repair=True)

    assert (run.kinds, run.results) == ([Kind.ORPHAN_FILE], [Result.LEFT])
    assert "is it the right one" in run.outcomes[0].finding.detail
    assert path.exists()


async def test_a_store_that_holds_none_of_the_newest_uploads_is_not_believed(world: World) -> None:
    uploads = [await world.received(CONTENT) for _ in range(6)]
    await put_in_store(world, *uploads)
    (world.root / "store" / "uploads").rename(world.root / "unmounted")
    await age_rows(world)
    before = await snapshot(world)

    run = await reconcile(world, repair=True, delete_local=False)

    assert run.kinds == []
    assert list(run.report.failed_checks) == ["uploads and objects"]
    assert "right one" in run.report.failed_checks["uploads and objects"]
    after = await snapshot(world)
    assert {table: after[table] for table in ("uploads", "jobs")} == {t: before[t] for t in ("uploads", "jobs")}


# --- again, at once, and in the middle -------------------------------------------------------------


async def damage_several(world: World) -> list[Upload]:
    """Damage one of everything that can be repaired."""
    lost, leftover, gone = await world.received(CONTENT), await world.received(CONTENT), await removed(world)
    await put_in_store(world, lost, leftover)
    world.store.local_path(lost.object_key).unlink()
    for path in (world.store.local_path(gone.object_key), world.staging.path(UploadId(uuid.uuid4()))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
    jobless = await world.received(CONTENT)
    await world.sql("DELETE FROM jobs WHERE upload_id = $1", jobless.id)
    return [lost, leftover, jobless]


async def assert_repaired(world: World, uploads: list[Upload]) -> None:
    async with working(world):
        for upload in uploads:
            await reaches(world, upload, State.STORED)
    assert [world.object(upload) for upload in uploads] == [CONTENT] * len(uploads)
    assert len(list((world.root / "store").rglob("*-*"))) == len(uploads)
    await assert_no_findings(world)


async def test_a_run_that_is_ended_anywhere_is_simply_repeated(world: World) -> None:
    uploads = await damage_several(world)
    for ended_after in (1, 2, 3):
        await age_rows(world)
        run = reconciler(world).run(repair=True)
        for _ in range(ended_after):
            await anext(run, None)
        assert isinstance(run, AsyncGenerator)
        await run.aclose()

    await reconcile(world, repair=True)

    await assert_repaired(world, uploads)


async def test_two_at_once_do_what_one_would(world: World) -> None:
    uploads = await damage_several(world)
    await age_rows(world)

    both = await asyncio.gather(*(reconcile(world, repair=True) for _ in range(2)))

    repairs = sum(run.results.count(Result.REPAIRED) for run in both)
    assert repairs in {5, 6}  # removing an object is no less right the second time
    assert all(set(run.results) <= {Result.REPAIRED, Result.CHANGED} for run in both)
    assert await world.value("SELECT count(*) FROM jobs WHERE state = 'queued'") == 2
    await assert_repaired(world, uploads)


@pytest.mark.parametrize("point", POINTS)
async def test_what_a_killed_worker_left_is_its_successors_or_is_repaired(world: World, point: str) -> None:
    upload = await world.received(CONTENT)
    run_until_killed(world, point)

    run = await reconcile(world, repair=True)

    recorded = {POINTS[4]: [Kind.LEFTOVER_COPY], POINTS[5]: [Kind.COPY_NOT_THERE]}
    assert run.kinds == recorded.get(point, [])
    assert run.report.left == 0
    await world.end_leases()
    async with working(world, InParts(world.store), name="worker-2"):
        await reaches(world, upload, State.STORED)
        await is_true(lambda: not world.staged(upload), "the staged copy is gone")
    assert world.object(upload) == CONTENT
    await assert_no_findings(world)


async def test_an_upload_is_not_moved_by_what_was_true_before(world: World) -> None:
    """The statements themselves ask again for what the finding relied on."""
    upload = await world.received(CONTENT)
    await put_in_store(world, upload)
    one = reconciler(world)
    (row,) = await one._records.by_id([upload.id])
    await world.uploads.remove(upload.id)

    assert not await one._records.requeue_lost(row, "why")
    assert not await one._records.mark_missing(row, "why")
    assert not await one._records.clear_missing(row)
    assert not await one._records.forget_copy(row)
    assert not await one._records.queue_job(row)
    assert await world.state(upload) is State.REMOVING
    assert row.staging_id == HERE


GIVE_A_JOB = "INSERT INTO jobs (upload_id, kind, staging_id) SELECT id, 'transfer', staging_id FROM uploads"
TRUE_BEFORE = [
    (Kind.OBJECT_OF_GONE_UPLOAD, GIVE_A_JOB),
    (Kind.OBJECT_OF_GONE_UPLOAD, "UPDATE uploads SET state = 'stored', gone_at = NULL"),
    (Kind.OBJECT_OF_GONE_UPLOAD, "DELETE FROM uploads"),
    (Kind.STRAY_MULTIPART, GIVE_A_JOB),
    (Kind.STRAY_MULTIPART, "UPDATE uploads SET multipart_id = '0123456789abcdef'"),
    (Kind.STRAY_MULTIPART, "DELETE FROM uploads"),
    (Kind.OBJECT_MISSING, GIVE_A_JOB),
    (Kind.OBJECT_MISSING, "UPDATE uploads SET state = 'removing', gone_at = now()"),
    (Kind.LEFTOVER_COPY, GIVE_A_JOB),
    (Kind.LEFTOVER_COPY, "UPDATE uploads SET state = 'transfer_failed'"),
    (Kind.ORPHAN_FILE, "UPDATE uploads SET id = $1"),
    (Kind.JOB_MISSING, "UPDATE uploads SET state = 'transfer_failed'"),
]


@pytest.mark.parametrize(("kind", "change"), TRUE_BEFORE)
async def test_a_repair_asks_again_right_before_it_acts(world: World, kind: Kind, change: str) -> None:
    """The finding was true; then something happens; then the repair comes."""
    await damage(world, kind)
    await age_rows(world)
    one = reconciler(world)
    (finding,) = [outcome.finding async for outcome in one.run(repair=False)]
    assert finding.kind is kind
    await world.sql(change, *([finding.file_id] if "$1" in change else []))
    before = await snapshot(world)

    result = await one._repairs.apply(finding, now=time.time() + 7200)

    assert result is Result.CHANGED
    assert await snapshot(world) == before


async def test_what_cleanup_has_removed_meanwhile_is_not_queued_again(world: World) -> None:
    """A single one, whose file is gone, and a final one, whose part has expired."""
    single = await world.received(CONTENT)
    part = await world.part(CONTENT)
    final = await world.final([part])
    await put_in_store(world, single, final)
    for upload in (single, final):
        world.store.local_path(upload.object_key).unlink()
    await age_rows(world)
    one = reconciler(world)
    findings = [outcome.finding async for outcome in one.run(repair=False)]
    assert [finding.repair for finding in findings] == [Repair.REQUEUE, Repair.REQUEUE]
    await purge(world, single)
    await world.uploads.remove(part.id)

    results = [await one._repairs.apply(finding, now=time.time() + 7200) for finding in findings]

    assert results == [Result.CHANGED, Result.CHANGED]
    assert [await world.state(upload) for upload in (single, final)] == [State.STORED, State.STORED]


async def damage(world: World, kind: Kind) -> None:
    """One upload, and this the matter with it."""
    upload = await removed(world) if kind is Kind.OBJECT_OF_GONE_UPLOAD else await world.received(CONTENT)
    path = world.store.local_path(upload.object_key)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind in {Kind.OBJECT_MISSING, Kind.LEFTOVER_COPY}:
        await put_in_store(world, upload)
    await world.sql("DELETE FROM jobs")
    if kind in {Kind.STRAY_MULTIPART, Kind.ORPHAN_FILE}:
        await world.force_state(upload, State.TRANSFER_FAILED)
    if kind is Kind.OBJECT_MISSING:
        path.unlink()
    elif kind is Kind.OBJECT_OF_GONE_UPLOAD:
        path.write_bytes(CONTENT)
    elif kind is Kind.STRAY_MULTIPART:
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.mkdir()
        (temporary / "0123456789abcdef").write_bytes(b"half")
    elif kind is Kind.ORPHAN_FILE:
        world.staging.path(UploadId(uuid.uuid4())).write_bytes(CONTENT)
