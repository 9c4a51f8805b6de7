"""One run of reconcile: database, staging and store as streams, compared while the server goes on.

How a disagreement becomes a finding:

1. Two streams are read side by side in pages: rows and the store's listing, both by object key; staged files
   and the rows they are named after; unfinished uploads and the rows of their keys.
2. Where they disagree, that is a suspicion: either page may be old by now, and an upload may have moved on.
   So everything about this one upload is read again, its row before and after the rest. If the row has
   changed in between, there is no finding; the next run sees the upload anew.
3. What still disagrees is a finding. `compare.py` decides that in both cases, by the same pure functions.
4. With `repair`, `repairs.py` acts on it at once, and checks once more, under a lock or by the conditions of
   its statement, what the repair relies on.

Nothing is kept between runs, and of a run only its figures and a page of each stream. A run may be killed
anywhere and repeated; two at the same time only find less to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.errors import PermanentStoreError, StorageError
from tusd_py.ports import ListedObject, ObjectStore, UnfinishedObject
from tusd_py.protocol.upload import Concat
from tusd_py.reconcile.compare import (
    ObjectFacts,
    UploadFacts,
    check_file,
    check_lone_object,
    check_unclaimed,
    check_unfinished,
    check_upload,
    needs_staged_size,
)
from tusd_py.reconcile.findings import Finding, FindingOutcome, Kind, Repair, Report, Result
from tusd_py.reconcile.merge import merge_join
from tusd_py.reconcile.repairs import Repairs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tusd_py.database.reconcile import ReconcileRecords
    from tusd_py.ports import StagedFile, UploadRecord
    from tusd_py.reconcile.compare import Scope
    from tusd_py.staging import DirectoryScan

log = structlog.get_logger(__name__)

BATCH: Final = 500
SAMPLE: Final = 20
FEWEST_SAMPLED: Final = 5
"""Of fewer stored uploads, all may really have lost their objects."""


class Reconciler:
    """One run on one node; use it once."""

    def __init__(  # noqa: PLR0913 -- its collaborators
        self,
        records: ReconcileRecords,
        staging: DirectoryScan,
        store: ObjectStore,
        scope: Scope,
        *,
        batch: int = BATCH,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._staging = staging
        self._store = store
        self._scope = scope
        self._batch = batch
        self._clock = clock
        self._repairs = Repairs(records, staging, store, scope)
        self.report = Report()

    async def run(self, *, repair: bool) -> AsyncIterator[FindingOutcome]:
        """Yield what is found, as it is found and, with `repair`, repaired.

        A check that fails because of the disk or the store is noted in the report; the others go on.

        Raises:
            DatabaseUnavailable: nothing can be compared without it.
        """
        # Files that are moved back first are in their place for the other checks.
        checks = {
            "unclaimed files": self._unclaimed,
            "uploads and objects": self._uploads,
            "staged files": self._files,
            "unfinished": self._unfinished,
        }
        for name, check in checks.items():
            try:
                async with contextlib.aclosing(check()) as findings:
                    async for finding in findings:
                        outcome = await self._repair(finding, repair=repair)
                        self.report.count(outcome)
                        yield outcome
            except StorageError as error:
                self.report.failed_checks[name] = str(error)
        write_log = log.warning if self.report.left or self.report.failed_checks else log.info
        write_log("reconciled", repair=repair, **self.report.as_json())

    async def _repair(self, finding: Finding, *, repair: bool) -> FindingOutcome:
        if finding.kind is Kind.UNCLAIMED_FILE and finding.repair is Repair.NONE:
            return FindingOutcome(finding, Result.KEPT)
        if not repair or finding.repair is Repair.NONE:
            return FindingOutcome(finding, Result.LEFT)
        try:
            result = await self._repairs.apply(finding, now=self._clock())
        except StorageError as error:
            return FindingOutcome(finding, Result.FAILED, str(error))
        log.info("reconcile_repaired", kind=finding.kind, subject=finding.subject, result=result)
        return FindingOutcome(finding, result)

    # --- uploads beside objects --------------------------------------------------------------------

    async def _uploads(self) -> AsyncGenerator[Finding, None]:
        await self._refuse_wrong_store()
        rows, objects = self._rows(), self._store.list_objects()
        pairs = merge_join(rows, objects, left_key=lambda row: row[0].object_key, right_key=lambda entry: entry.key)
        async for upload, entry in pairs:
            if entry is not None:
                self.report.objects += 1
            if upload is not None:
                row, staged = upload
                found = None if entry is None else ObjectFacts.from_listing(entry, self._clock())
                if any(check_upload(UploadFacts(row=row, staged=staged, object=found), self._scope)):
                    for finding in await self._recheck(row, found):
                        yield finding
            elif entry is not None:
                for finding in await self._check_lone(entry):
                    yield finding

    async def _refuse_wrong_store(self) -> None:
        keys = await self._records.newest_stored(self._scope.places, SAMPLE)
        if len(keys) < FEWEST_SAMPLED:
            return
        for key in keys:
            if await self._store.stat(key) is not None:
                return
        raise PermanentStoreError("Not one of the newest stored uploads is in the store. Is it the right one?")

    async def _rows(self) -> AsyncIterator[tuple[UploadRecord, int | None]]:
        after = ""
        places = self._scope.places + self._scope.unknown_places
        while page := await self._records.page(places, after, self._batch):
            wanted = [row.id for row in page if needs_staged_size(row, self._scope)]
            sizes = await asyncio.to_thread(self._staging.sizes, wanted)
            for row in page:
                self.report.uploads += 1
                yield row, sizes.get(row.id)
            after = page[-1].object_key

    async def _recheck(self, suspect: UploadRecord, listed: ObjectFacts | None) -> list[Finding]:
        """Read everything about an upload again, and check that.

        The row is read before and after: had it changed in between, disk and store would be those of
        another moment.
        """
        before = await self._row(suspect)
        if before is None:
            return []
        staged = (await asyncio.to_thread(self._staging.sizes, [before.id])).get(before.id)
        stored = await self._store.stat(before.object_key)
        # Its age is the listing's: `stat` does not return one.
        found = None if stored is None else ObjectFacts.from_stat(stored, listed.age_seconds if listed else 0.0)
        whole = await self._is_whole(before, staged)
        after = await self._row(suspect)
        if after is None or (after.state, after.offset, after.busy) != (before.state, before.offset, before.busy):
            return []
        facts = UploadFacts(row=after, staged=staged, object=found, confirmed=True, whole=whole)
        return list(check_upload(facts, self._scope))

    async def _row(self, row: UploadRecord) -> UploadRecord | None:
        return next(iter(await self._records.by_id([row.id])), None)

    async def _is_whole(self, row: UploadRecord, staged: int | None) -> bool:
        if row.concat is not Concat.FINAL:
            return row.length == row.offset and (row.length == 0 or (staged is not None and staged >= row.offset))
        parts = await self._records.segments(row.id)
        sizes = await asyncio.to_thread(self._staging.sizes, [part.upload_id for part in parts])
        there = all(part.length == 0 or sizes.get(part.upload_id, -1) >= part.length for part in parts)
        return there and sum(part.length for part in parts) == row.length

    async def _check_lone(self, entry: ListedObject) -> list[Finding]:
        # Only a key of our form is worth a query: the rest of a shared bucket may be large.
        if self._scope.key_pattern.fullmatch(entry.key) is None:
            self.report.foreign_objects += 1
            return []
        rows = await self._records.by_key(self._scope.places, [entry.key])
        if rows:  # its row is newer than our page, or the listing is not in order
            return await self._recheck(rows[0], ObjectFacts.from_listing(entry, self._clock()))
        now = self._clock()
        if now - entry.modified_at < self._scope.margin_seconds:
            return []
        found = await self._store.stat(entry.key)
        if found is None:
            return []
        finding = check_lone_object(entry, found, self._scope, now=now)
        if finding is None:
            self.report.foreign_objects += 1
            return []
        return [finding]

    # --- staged files ------------------------------------------------------------------------------

    async def _files(self) -> AsyncGenerator[Finding, None]:
        right_database = await self._records.knows_directory()
        pages = self._staging.pages(self._batch)
        while page := await asyncio.to_thread(_next_page, pages):
            ids = [file.upload_id for file in page if file.upload_id is not None]
            rows = {row.id: row for row in await self._records.by_id(ids)} if ids else {}
            for file in page:
                row = rows.get(file.upload_id) if file.upload_id is not None else None
                if not self._scope.covers(row):
                    continue
                self.report.files += 1
                finding = check_file(file, row, self._scope, now=self._clock())
                if finding is None or (row is not None and await self._is_last_copy(finding, row)):
                    continue
                yield finding if right_database or finding.kind is not Kind.ORPHAN_FILE else _without_repair(finding)

    async def _unclaimed(self) -> AsyncGenerator[Finding, None]:
        pages = self._staging.unclaimed(self._batch)
        while page := await asyncio.to_thread(_next_page, pages):
            ids = [file.upload_id for file in page if file.upload_id is not None]
            rows = {row.id: row for row in await self._records.by_id(ids)} if ids else {}
            sizes = await asyncio.to_thread(self._staging.sizes, list(rows))
            for file in page:
                row = rows.get(file.upload_id) if file.upload_id is not None else None
                if self._scope.covers(row):
                    yield check_unclaimed(file, row, self._scope, taken=file.upload_id in sizes, now=self._clock())

    async def _is_last_copy(self, finding: Finding, row: UploadRecord) -> bool:
        return finding.kind is Kind.LEFTOVER_COPY and not await self._repairs.has_no_use(row)

    # --- unfinished --------------------------------------------------------------------------------

    async def _unfinished(self) -> AsyncGenerator[Finding, None]:
        async for page in _in_pages(self._store.list_unfinished(), self._batch):
            self.report.unfinished += len(page)
            keys = [entry.key for entry in page if _can_be_a_key(entry.key)]
            rows = {row.object_key: row for row in await self._records.by_key(self._scope.places, keys)}
            for entry in page:
                row = rows.get(entry.key)
                if row is None and self._scope.key_pattern.fullmatch(entry.key) is None:
                    self.report.foreign_unfinished += 1
                elif (finding := check_unfinished(entry, row, self._scope, now=self._clock())) is not None:
                    yield finding


def _without_repair(finding: Finding) -> Finding:
    # With the wrong database, every file would look like this.
    return Finding(
        kind=finding.kind,
        subject=finding.subject,
        size=finding.size,
        age_seconds=finding.age_seconds,
        repair=Repair.NONE,
        detail="the database knows no upload of this staging directory; is it the right one?",
    )


def _next_page(pages: Iterator[list[StagedFile]]) -> Sequence[StagedFile]:
    return next(pages, [])


async def _in_pages(entries: AsyncIterator[UnfinishedObject], size: int) -> AsyncIterator[list[UnfinishedObject]]:
    page = []
    async for entry in entries:
        page.append(entry)
        if len(page) == size:
            yield page
            page = []
    if page:
        yield page


def _can_be_a_key(key: str) -> bool:
    """Return whether PostgreSQL can be asked for it: foreign keys hold anything."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in key
