"""Facts in, findings out. Pure: nothing here reads, writes or knows the time.

The same functions check what a listing shows, which may be old by the time it is read, and what was read
again a moment ago. Only the second becomes a finding: see `run.py`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tusd_py.ports import ListedObject, StagedFile, StoredObject, UnfinishedObject, UploadRecord
from tusd_py.protocol.upload import FIRST_PLACE, GONE, Concat, StagingId, State
from tusd_py.reconcile.findings import Finding, Kind, Repair

_FIELDS: Final = {
    "id": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "yyyy": "[0-9]{4}",
    "mm": "[0-9]{2}",
    "dd": "[0-9]{2}",
    "owner_hash": "[0-9a-f]{16}",
}


def key_pattern(template: str) -> re.Pattern[str]:
    """Return what keys of this template look like, with the upload's id as the group `id`."""
    pattern, seen = "", set()
    for literal, name, _, _ in string.Formatter().parse(template):
        pattern += re.escape(literal)
        if name in seen:
            pattern += f"(?P={name})"
        elif name:
            seen.add(name)
            pattern += f"(?P<{name}>{_FIELDS[name]})"
    return re.compile(pattern)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What belongs to this server, and how old it has to be to count. Times in seconds."""

    staging_id: StagingId
    margin_seconds: float
    key_pattern: re.Pattern[str]
    places: tuple[int, ...] = (FIRST_PLACE,)
    """The ids of the places that the compared store holds."""
    unknown_places: tuple[int, ...] = ()
    """Those of places that no store is configured for: what waits in staging is compared, what is stored is not."""
    former: bool = False
    """The store takes nothing new: what belongs to no upload is compared beside the current one."""
    keeps_ids: bool
    """The store's objects carry the ids of their uploads."""
    delete_local: bool
    delete_local_after_seconds: float

    def covers(self, row: UploadRecord | None) -> bool:
        """Return whether a staged file with this row, or none, is compared beside this store."""
        return (not self.former) if row is None else row.place_id in self.places + self.unknown_places

    def concerns(self, row: UploadRecord) -> bool:
        """Return whether a row is this staging directory's, and old enough."""
        return row.staging_id == self.staging_id and row.age_seconds >= self.margin_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectFacts:
    """What is known of an object. `upload_id` and `crc64nvme` only from the object itself."""

    length: int
    age_seconds: float
    etag: str | None = None
    upload_id: str | None = None
    crc64nvme: int | None = None

    @classmethod
    def from_listing(cls, entry: ListedObject, now: float) -> ObjectFacts:
        """Build them from an entry of a listing."""
        return cls(length=entry.length, age_seconds=now - entry.modified_at, etag=entry.etag)

    @classmethod
    def from_stat(cls, found: StoredObject, age_seconds: float) -> ObjectFacts:
        """Build them from the object itself."""
        return cls(
            length=found.length,
            age_seconds=age_seconds,
            etag=found.etag,
            upload_id=found.upload_id,
            crc64nvme=found.crc64nvme,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadFacts:
    """Everything about one upload."""

    row: UploadRecord
    staged: int | None
    """Bytes of its staged file, None if there is none."""
    object: ObjectFacts | None
    confirmed: bool = False
    """Its object itself was read (HEAD), not only an entry of a listing."""
    whole: bool = False
    """Every byte of it is in staging. Known only if `confirmed`."""


# --- uploads ---------------------------------------------------------------------------------------


def check_upload(facts: UploadFacts, scope: Scope) -> Iterator[Finding]:
    """Compare an upload with its staged bytes, its object and its jobs."""
    row = facts.row
    if not scope.concerns(row) or (_is_stored(row) and row.place_id in scope.unknown_places):
        return
    if row.jobless is not None:
        yield _of(row, Kind.JOB_MISSING, Repair.QUEUE_JOB, f"{row.state} without a job to {row.jobless} it")
    if row.busy or row.state is State.REMOVING:
        return  # a worker is about to process it, and records failures itself
    if row.state in GONE:
        yield from _check_gone(facts, scope)
        return
    damage = _object_damage(facts) if _is_stored(row) else _staged_damage(facts)
    if damage is not None:
        yield damage
    elif row.missing:
        yield _of(row, Kind.FOUND_AGAIN, Repair.CLEAR_MARK)
    if damage is None and _is_stored(row) and row.local_present and facts.staged is None and _has_own_file(row):
        yield _of(row, Kind.COPY_NOT_THERE, Repair.FORGET_COPY)


def needs_staged_size(row: UploadRecord, scope: Scope) -> bool:
    """Return whether the comparison needs the size of an upload's staged file."""
    return row.staging_id == scope.staging_id and _has_own_file(row) and row.state not in GONE


def _is_stored(row: UploadRecord) -> bool:
    return row.state is State.STORED or row.remote_present


def _has_own_file(row: UploadRecord) -> bool:
    # A final upload's bytes are its parts'; of an empty one there need not be a file.
    return row.concat is not Concat.FINAL and row.offset > 0


def _check_gone(facts: UploadFacts, scope: Scope) -> Iterator[Finding]:
    row, found = facts.row, facts.object
    if found is None or row.jobless is not None or found.age_seconds < scope.margin_seconds:
        return
    if facts.confirmed and scope.keeps_ids and found.upload_id != str(row.id):
        return  # under our key, but nothing proves that it is ours
    yield _of(row, Kind.OBJECT_OF_GONE_UPLOAD, Repair.REMOVE_OBJECT, f"the upload is {row.state}", size=found.length)


def _object_damage(facts: UploadFacts) -> Finding | None:
    row, found = facts.row, facts.object
    if found is None:
        repair = Repair.REQUEUE if facts.whole else _mark(row)
        return _of(row, Kind.OBJECT_MISSING, repair, f"key {row.object_key}")
    if (difference := _difference(facts, found)) is None:
        return None
    # Only what carries our own id may be sent again over it.
    ours = facts.whole and found.upload_id == str(row.id)
    return _of(row, Kind.OBJECT_DIFFERS, Repair.REQUEUE if ours else _mark(row), difference, size=found.length)


def _difference(facts: UploadFacts, found: ObjectFacts) -> str | None:
    row = facts.row
    if found.length != row.length:
        return f"{found.length} bytes instead of {row.length}"
    if not facts.confirmed:
        return "another ETag" if None not in {found.etag, row.etag} and _bare(found.etag) != _bare(row.etag) else None
    if found.upload_id not in {None, str(row.id)}:
        return "it carries another upload's id"
    if None not in {found.crc64nvme, row.crc64nvme} and found.crc64nvme != row.crc64nvme:
        return "another checksum"
    return None


def _bare(etag: str | None) -> str:
    return (etag or "").strip('"')


def _staged_damage(facts: UploadFacts) -> Finding | None:
    row = facts.row
    if not _has_own_file(row):
        return None
    if facts.staged is None:
        return _of(row, Kind.STAGED_MISSING, _mark(row), f"{row.state}, {row.offset} bytes acknowledged")
    if facts.staged < row.offset:
        detail = f"{row.state}, {facts.staged} of {row.offset} acknowledged bytes"
        return _of(row, Kind.STAGED_SHORT, _mark(row), detail)
    return None  # longer is a torn tail, which the next open cuts


def _mark(row: UploadRecord) -> Repair:
    return Repair.NONE if row.missing else Repair.MARK


def _of(row: UploadRecord, kind: Kind, repair: Repair, detail: str = "", *, size: int | None = None) -> Finding:
    return Finding(
        kind=kind,
        subject=str(row.id),
        size=row.offset if size is None else size,
        age_seconds=row.age_seconds,
        repair=repair,
        detail=detail,
        row=row,
    )


# --- what belongs to no upload, or should not be there ---------------------------------------------


def check_file(file: StagedFile, row: UploadRecord | None, scope: Scope, *, now: float) -> Finding | None:
    """Compare a staged file with the upload that it is named after."""
    age = now - file.modified_at
    if age < scope.margin_seconds:
        return None

    def found(kind: Kind, repair: Repair, detail: str = "") -> Finding:
        return Finding(
            kind=kind,
            subject=file.name if file.upload_id is None else str(file.upload_id),
            size=file.size,
            age_seconds=age,
            repair=repair,
            detail=detail,
            row=row,
            file_id=file.upload_id,
        )

    if file.upload_id is None:
        return found(Kind.FOREIGN_FILE, Repair.NONE, "not a file of this server; not followed, not opened")
    if row is None:
        return found(Kind.ORPHAN_FILE, Repair.SET_ASIDE)
    if row.staging_id != scope.staging_id:
        return found(Kind.FOREIGN_FILE, Repair.NONE, f"of an upload of staging directory {row.staging_id}")
    if row.age_seconds >= scope.margin_seconds and not row.busy and _has_no_use(row, scope):
        return found(Kind.LEFTOVER_COPY, Repair.REMOVE_FILE, f"the upload is {row.state}")
    return None


def check_unclaimed(file: StagedFile, row: UploadRecord | None, scope: Scope, *, taken: bool, now: float) -> Finding:
    """Compare a file that was set aside: it goes back if its upload exists again and needs it.

    `taken`: the upload has a staged file in its place.
    """
    detail, repair = "no upload has it", Repair.NONE
    if row is not None and not wants_back(row, scope):
        detail = f"the upload is {row.state}, and does not need it"
    elif row is not None and file.size < row.offset:
        detail = f"{file.size} of {row.offset} acknowledged bytes"
    elif taken:
        detail = "its upload has another staged file"
    elif row is not None:
        detail, repair = f"the upload is {row.state}", Repair.TAKE_BACK
    return Finding(
        kind=Kind.UNCLAIMED_FILE,
        subject=file.name if file.upload_id is None else str(file.upload_id),
        size=file.size,
        age_seconds=now - file.modified_at,
        repair=repair,
        detail=detail,
        row=row,
        file_id=file.upload_id,
    )


def wants_back(row: UploadRecord, scope: Scope) -> bool:
    """Return whether an upload should have a staged file here, or misses bytes that such a file may have."""
    return row.staging_id == scope.staging_id and row.state not in GONE and (row.local_present or row.missing)


def _has_no_use(row: UploadRecord, scope: Scope) -> bool:
    if row.state in GONE:
        return not row.local_present  # its removal has been recorded
    if row.state is not State.STORED or not row.remote_present:
        return False
    # The cleanup has been due for a margin's time.
    overdue = row.stored_seconds >= scope.delete_local_after_seconds + scope.margin_seconds
    return not row.local_present or (scope.delete_local and overdue)


def check_unfinished(entry: UnfinishedObject, row: UploadRecord | None, scope: Scope, *, now: float) -> Finding | None:
    """Compare something unfinished with the upload that has its key."""
    age = now - entry.begun_at
    if age < scope.margin_seconds:
        return None
    if row is not None and (row.busy or row.multipart_id == entry.id):
        return None  # a job continues it
    return Finding(
        kind=Kind.UNPROVEN_MULTIPART if row is None else Kind.STRAY_MULTIPART,
        subject=entry.key,
        size=None,
        age_seconds=age,
        repair=Repair.NONE if row is None else Repair.ABORT,
        detail=entry.id,
        row=row,
        unfinished_id=entry.id,
    )


def check_lone_object(entry: ListedObject, found: StoredObject, scope: Scope, *, now: float) -> Finding | None:
    """Return the finding for an object that belongs to no upload; None if nothing proves that it is ours."""
    match = scope.key_pattern.fullmatch(entry.key)
    if match is None or (scope.keeps_ids and found.upload_id != match["id"]):
        return None
    return Finding(
        kind=Kind.ORPHAN_OBJECT,
        subject=entry.key,
        size=found.length,
        age_seconds=now - entry.modified_at,
        # A database that was restored from a backup does not know later uploads.
        repair=Repair.NONE,
        detail="no upload has this key",
    )
