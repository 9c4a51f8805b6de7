"""A store that goes away or refuses: no upload pays for it, and everything moves once it is back."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import pytest
from structlog.testing import capture_logs

from tests.support.workers import Failing, OneByOne, is_true, make_cleanup, reaches, working
from tests.support.world import HERE, THERE, World, open_world
from tests.worker.test_eager_jobs import CONTENT, PART, EagerStore, receive
from tusd_py.database.stats import read_stats
from tusd_py.errors import PermanentStoreError, StorageError, StoreBlocked, TransientStoreError
from tusd_py.ports import Job, ObjectSpec, Outage, TransferState
from tusd_py.protocol.upload import State, Upload
from tusd_py.stores.filesystem import FilesystemStore
from tusd_py.worker.outages import OutageDetector

AWAY = Outage(blocked=False, code="ERR_STORE_UNAVAILABLE", sentence="The store is not reachable.")
BLOCKED = Outage(blocked=True, code="ERR_STORE_BLOCKED", sentence="The store refuses this server (NoSuchBucket).")
NO_RETRY: dict[str, Any] = {"max_retries": 0, "retry_delay": 3600.0, "retry_max_delay": 3600.0}
DEADLINE = 30.0


@pytest.fixture
async def eager_world(shared_dsn: str, tmp_path: Path) -> AsyncIterator[World]:
    """A node that sends everything ahead that is longer than a part."""
    async with open_world(shared_dsn, tmp_path, eager_above=PART) as opened:
        yield opened


class Unmounted:
    """The store's directory, taken away and put back as an unmounted disk would be."""

    def __init__(self, world: World) -> None:
        self._root = world.root / "store"
        self._elsewhere = world.root / "elsewhere"

    def take(self) -> None:
        self._root.rename(self._elsewhere)

    def mount_again(self) -> None:
        self._elsewhere.rename(self._root)


class SmallDisk:
    """A disk of its own for the store, which can be full or read-only. Needs the right to mount."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._filler = directory / "filler"

    def __enter__(self) -> Self:
        self.directory.mkdir()
        mounted = self._run("mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(self.directory))
        if mounted.returncode:
            pytest.skip(f"cannot mount a disk: {mounted.stderr}")
        return self

    def __exit__(self, *_: object) -> None:
        self._run("umount", str(self.directory))

    def make_unusable(self, how: str) -> None:
        if how == "full":
            with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        else:
            self._run("mount", "-o", "remount,ro", str(self.directory)).check_returncode()

    def repair(self, how: str) -> None:
        if how == "full":
            self._filler.unlink()
        else:
            self._run("mount", "-o", "remount,rw", str(self.directory)).check_returncode()

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True)


class Refusing(OneByOne):
    """A store that refuses everything, its probe included, until it is told not to."""

    def __init__(self, inner: FilesystemStore, error: StorageError) -> None:
        super().__init__(inner)
        self.error: StorageError | None = error
        self.probes = 0

    async def before(self, spec: ObjectSpec, transfer_state: TransferState) -> None:
        if self.error is not None:
            raise self.error

    async def probe(self, *, writing: bool = False) -> None:
        self.probes += 1
        if self.error is not None:
            raise self.error


async def outage_lasts(world: World) -> bool:
    return bool(await world.value("SELECT count(*) FROM store_outages WHERE ended_at IS NULL"))


async def probes_made(world: World) -> int:
    return int(await world.value("SELECT coalesce(max(probes), 0) FROM store_outages"))


async def claimed(world: World) -> Job:
    await world.completed()
    (job,) = await world.jobs().claim(1)
    return job


# --- the whole walk --------------------------------------------------------------------------------


async def test_a_store_that_is_away_uses_up_no_retry_however_often_it_is_asked(world: World) -> None:
    disk = Unmounted(world)
    disk.take()
    uploads = [await world.received(b"%d" % number) for number in range(8)]

    async with working(world, **NO_RETRY):
        await is_true(lambda: outage_lasts(world), "the outage is noticed")
        uploads += [await world.received(b"later")]
        await is_true(lambda: probes_made(world), "the store was probed")
        # As after days: nothing that was counted meanwhile may matter.
        await world.sql("UPDATE store_outages SET since = now() - interval '3 days', probes = 50000")
        assert {await world.state(upload) for upload in uploads} <= {State.COMPLETED, State.TRANSFERRING}
        disk.mount_again()
        for upload in uploads:
            await reaches(world, upload, State.STORED, deadline=DEADLINE)

    attempts = [await world.attempts_of(upload) for upload in uploads]
    assert all([outcome for _, _, outcome in past] in (["succeeded"], ["postponed", "succeeded"]) for past in attempts)
    assert await world.value("SELECT max(failures) FROM jobs") == 0


async def test_during_an_outage_one_probe_runs_instead_of_every_job(world: World) -> None:
    store = Refusing(world.store, TransientStoreError(reason="refused"))
    uploads = [await world.received(b"%d" % number) for number in range(20)]

    async with working(world, store, concurrency=1):
        await is_true(lambda: outage_lasts(world), "the outage is noticed")
        running = "SELECT count(*) FROM jobs WHERE state = 'running'"
        await is_true(lambda: _is_zero(world, running), "what was claimed is put back")
        tried = len(store.puts)
        late = await world.received(b"late")
        probes = store.probes
        await is_true(lambda: store.probes >= probes + 2, "the store is probed again and again")
        assert len(store.puts) == tried
        store.error = None
        for upload in [*uploads, late]:
            await reaches(world, upload, State.STORED, deadline=DEADLINE)

    assert await world.value("SELECT max(attempt) FROM jobs") <= 2


async def _is_zero(world: World, statement: str) -> bool:
    return bool(await world.value(statement) == 0)


async def test_a_store_that_refuses_blocks_is_logged_once_and_resumes_by_itself(world: World) -> None:
    store = Refusing(world.store, StoreBlocked(code="InvalidAccessKeyId"))
    upload = await world.received()

    with capture_logs() as logs:
        async with working(world, store, **NO_RETRY):
            await is_true(lambda: outage_lasts(world), "the outage is noticed")
            await is_true(lambda: store.probes >= 3, "the store is probed again")
            view = await world.transfers.latest(upload.id)
            figures = await read_stats(world.database, HERE)
            store.error = None
            await reaches(world, upload, State.STORED, deadline=DEADLINE)

    assert view is not None
    assert (view.state, view.failures, view.next_attempt_at, view.error_code) == ("blocked", 0, None, BLOCKED.code)
    assert "InvalidAccessKeyId" in (view.last_error or "")
    assert dict(figures.jobs) == {"blocked": 1}
    assert figures.store_blocked_seconds > 0
    assert figures.store_away_seconds == 0
    assert [log["event"] for log in logs if log["log_level"] == "error"] == ["store_blocked"]
    assert [log["event"] for log in logs].count("store_back") == 1


@pytest.mark.parametrize(("how", "state"), [("full", "retry_wait"), ("read-only", "blocked")])
async def test_a_store_on_a_disk_that_takes_nothing(world: World, tmp_path: Path, how: str, state: str) -> None:
    with SmallDisk(tmp_path / "disk") as disk:
        store = FilesystemStore(disk.directory)
        await store.open()
        disk.make_unusable(how)
        upload = await world.received(bytes(10_000))
        async with working(world, store, **NO_RETRY):
            await is_true(lambda: outage_lasts(world), "the outage is noticed")
            await is_true(lambda: _waits(world, upload), "the job is put back")
            view = await world.transfers.latest(upload.id)
            disk.repair(how)
            await reaches(world, upload, State.STORED, deadline=DEADLINE)
        await store.close()

    assert view is not None
    assert (view.state, view.failures) == (state, 0)


async def _waits(world: World, upload: Upload) -> bool:
    return bool((await world.jobs_of(upload, "state"))[0][0] == "retry_wait")


async def test_what_is_denied_for_one_key_fails_that_upload_alone(world: World) -> None:
    denied, other = await world.received(b"denied"), await world.received(b"other")

    class Denying(OneByOne):
        async def before(self, spec: ObjectSpec, transfer_state: TransferState) -> None:
            if spec.upload_id == str(denied.id):
                raise PermanentStoreError(code="AccessDenied")

    async with working(world, Denying(world.store)):
        await reaches(world, denied, State.TRANSFER_FAILED)
        await reaches(world, other, State.STORED)

    assert not await outage_lasts(world)


async def test_a_wrong_key_that_is_right_by_the_time_of_the_probe_is_tried_again(world: World) -> None:
    upload = await world.received()

    async with working(world, Failing(world.store, StoreBlocked(code="InvalidAccessKeyId"))):
        await reaches(world, upload, State.STORED)

    assert [outcome for _, _, outcome in await world.attempts_of(upload)] == ["retry", "succeeded"]


async def test_a_probe_without_an_answer_is_an_outage(world: World) -> None:
    upload = await world.received()

    class Silent(Failing):
        silent = True

        async def probe(self, *, writing: bool = False) -> None:
            if self.silent:
                await asyncio.Event().wait()

    store = Silent(world.store, TransientStoreError())
    async with working(world, store, probe_seconds=0.05, **NO_RETRY):
        await is_true(lambda: outage_lasts(world), "the outage is noticed")
        store.silent = False
        await reaches(world, upload, State.STORED, deadline=DEADLINE)


async def test_a_probe_that_dies_of_a_bug_does_not_end_the_worker(world: World) -> None:
    upload = await world.received()

    class Broken(Failing):
        broken = True

        async def probe(self, *, writing: bool = False) -> None:
            if self.broken:
                raise RuntimeError("a bug in the driver")

    store = Broken(world.store, TransientStoreError())
    async with working(world, store, **NO_RETRY):
        await is_true(lambda: outage_lasts(world), "the outage is noticed")
        store.broken = False
        await reaches(world, upload, State.STORED, deadline=DEADLINE)


async def test_a_worker_that_is_restarted_in_an_outage_goes_on_waiting_for_its_end(world: World) -> None:
    disk = Unmounted(world)
    disk.take()
    upload = await world.received()
    async with working(world, **NO_RETRY):
        await is_true(lambda: outage_lasts(world), "the outage is noticed")
    # The next probe is not due for a long time: a start is the moment to look whether it was cured.
    await world.sql("UPDATE store_outages SET probe_at = now() + interval '1 day'")

    disk.mount_again()
    async with working(world, name="successor", **NO_RETRY):
        await reaches(world, upload, State.STORED, deadline=DEADLINE)

    assert [outcome for _, _, outcome in await world.attempts_of(upload)][-1] == "succeeded"


async def test_a_removal_waits_for_the_store_as_well(world: World) -> None:
    upload = await world.received()
    async with working(world):
        await reaches(world, upload, State.STORED)
    disk = Unmounted(world)
    disk.take()
    await world.uploads.remove(upload.id)

    async with working(world, **NO_RETRY):
        await is_true(lambda: outage_lasts(world), "the outage is noticed")
        disk.mount_again()
        await reaches(world, upload, State.REMOVED, deadline=DEADLINE)

    assert world.object(upload) is None
    assert ("remove", 1, "postponed") in await world.attempts_of(upload)


async def test_what_is_sent_eager_waits_for_the_store_as_well(eager_world: World) -> None:
    world = eager_world

    class AwayAhead(EagerStore):
        async def probe(self, *, writing: bool = False) -> None:
            if self.error is not None:
                raise self.error

    store = AwayAhead(world.store, error=TransientStoreError(reason="refused"))
    async with working(world, store, **NO_RETRY):
        upload = await receive(world, await world.create(length=len(CONTENT)), 2 * PART)
        await is_true(lambda: outage_lasts(world), "the outage is noticed")
        store.error = None
        await is_true(lambda: store.sent_of(upload), "parts are sent early")
        upload = await receive(world, upload, len(CONTENT))
        await reaches(world, upload, State.STORED, deadline=DEADLINE)

    assert ("eager", 1, "postponed") in await world.attempts_of(upload)
    assert await world.value("SELECT max(failures) FROM jobs") == 0


async def test_staged_copies_of_what_is_gone_do_not_wait_for_the_store(world: World) -> None:
    gone, kept = await world.received(), await world.received()
    await world.outages().declare(AWAY, probe_in_seconds=3600)
    await world.uploads.remove(gone.id)
    cleanup = make_cleanup(world)

    first, again = await cleanup.once(), await cleanup.once()

    assert (first["gone_copies_removed"], again["gone_copies_removed"]) == (1, 0)
    assert (world.staged(gone), world.staged(kept)) == (False, True)
    assert await world.state(gone) is State.REMOVING
    async with working(world):
        await reaches(world, gone, State.REMOVED, deadline=DEADLINE)
        await reaches(world, kept, State.STORED, deadline=DEADLINE)


async def test_while_the_store_is_there_removals_are_left_to_their_jobs(world: World) -> None:
    upload = await world.received()
    await world.uploads.remove(upload.id)

    assert await world.cleanup.gone_copies(10) == []
    assert world.staged(upload)


# --- the record ------------------------------------------------------------------------------------


async def test_nothing_is_claimed_on_a_node_whose_store_is_away(world: World) -> None:
    await world.completed()
    there = await world.completed(staging_id=THERE)
    await world.outages().declare(AWAY, probe_in_seconds=1)

    assert await world.jobs().claim(10) == []
    assert await world.jobs().next_due_seconds() is None
    assert [job.upload.id for job in await world.jobs("w", staging_id=THERE).claim(10)] == [there.id]

    await world.outages().end()
    assert len(await world.jobs().claim(10)) == 1


async def test_the_end_of_an_outage_makes_due_what_waits_for_a_retry(world: World) -> None:
    job = await claimed(world)
    await world.jobs().retry(job, TransientStoreError(), code="ERR", delay_seconds=3600)
    await world.outages().declare(AWAY, probe_in_seconds=1)

    seconds = await world.outages().end()

    assert seconds is not None
    assert [again.id for again in await world.jobs().claim(10)] == [job.id]
    assert await world.outages().end() is None


async def test_news_is_told_once_and_a_change_of_cause_is_news(world: World) -> None:
    record = world.outages()
    other_cause = Outage(blocked=True, code=BLOCKED.code, sentence="The store refuses this server (AccessDenied).")

    declared = [
        await record.declare(outage, probe_in_seconds=1) for outage in (AWAY, AWAY, BLOCKED, BLOCKED, other_cause)
    ]
    await record.end()

    assert declared == [True, False, True, False, True]
    assert await record.declare(other_cause, probe_in_seconds=1)


async def test_of_many_workers_one_has_the_probe(world: World) -> None:
    records = [world.outages() for _ in range(5)]
    await records[0].declare(AWAY, probe_in_seconds=0)

    probes = [await record.take_probe(for_seconds=30) for record in records]

    assert [probe.taken for probe in probes if probe is not None] == [True, False, False, False, False]
    assert await world.outages(staging_id=THERE).take_probe(for_seconds=30) is None


async def test_the_probes_of_a_worker_that_died_are_taken_over(world: World) -> None:
    await world.outages().declare(AWAY, probe_in_seconds=0)
    await world.outages().take_probe(for_seconds=0)

    successor = await world.outages().take_probe(for_seconds=30)

    assert successor is not None
    assert (successor.taken, successor.number) == (True, 2)


async def test_an_error_that_surfaces_after_the_return_is_still_the_outages(world: World) -> None:
    job = await claimed(world)
    await world.outages().declare(AWAY, probe_in_seconds=1)
    await world.outages().end()
    detector = OutageDetector(world.outages(), world.store, poll_seconds=60)

    during = await detector.explains(job, failed_at=asyncio.get_running_loop().time())
    await world.sql("UPDATE store_outages SET ended_at = ended_at - interval '1 day'")
    afterwards = await detector.explains(job, failed_at=asyncio.get_running_loop().time())

    assert during
    assert not afterwards


async def test_jobs_that_fail_together_share_a_probe(world: World) -> None:
    store = Refusing(world.store, TransientStoreError())
    store.error = None
    detector = OutageDetector(world.outages(), store, poll_seconds=60)
    jobs = [await claimed(world) for _ in range(5)]

    failed_at = asyncio.get_running_loop().time()
    blamed = await asyncio.gather(*(detector.explains(job, failed_at=failed_at) for job in jobs))

    assert blamed == [False] * 5
    assert store.probes == 1
