"""Comparing without a disk, a database or a store: what is ours, what is judged, what is printed."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tusd_py.ports import ListedObject, StagedFile, StoredObject, UnfinishedObject, UploadRecord
from tusd_py.protocol.upload import GONE, Concat, StagingId, State, UploadId
from tusd_py.reconcile.compare import (
    ObjectFacts,
    Scope,
    UploadFacts,
    check_file,
    check_lone_object,
    check_unfinished,
    check_upload,
    key_pattern,
)
from tusd_py.reconcile.findings import Finding, FindingOutcome, Kind, Repair, Report, Result, printable
from tusd_py.reconcile.merge import merge_join
from tusd_py.uploads.creation import render_key

pytestmark = pytest.mark.unit

HOUR = 3600.0
NOW = 1_800_000_000.0
ID = UploadId(uuid.UUID("0b5a3b0e-5f0e-4d6b-9d5f-0d6c7f6f7a10"))
KEY = f"2026/11/20/{ID}"
HERE = StagingId(uuid.uuid4())
SCOPE = Scope(
    staging_id=HERE,
    margin_seconds=HOUR,
    key_pattern=key_pattern("{yyyy}/{mm}/{dd}/{id}"),
    keeps_ids=True,
    delete_local=True,
    delete_local_after_seconds=HOUR,
)


def row(**changes: Any) -> UploadRecord:
    values: dict[str, Any] = {
        "id": ID, "staging_id": HERE, "state": State.STORED, "concat": None, "length": 10, "offset": 10,
        "crc64nvme": 7, "object_key": KEY, "multipart_id": None, "etag": '"e"', "version_id": None, "place_id": 1,
        "local_present": False, "remote_present": True, "missing": False, "busy": False, "jobless": None,
        "age_seconds": 2 * HOUR, "stored_seconds": 2 * HOUR,
    }  # fmt: skip
    return UploadRecord(**(values | changes))


def found(**changes: Any) -> ObjectFacts:
    values: dict[str, Any] = {"length": 10, "age_seconds": 2 * HOUR, "etag": "e"}
    return ObjectFacts(**(values | changes))


Judged = list[tuple[Kind, Repair]]


def judged(upload: UploadRecord, staged: int | None, entry: ObjectFacts | None, **changes: Any) -> Judged:
    facts = UploadFacts(row=upload, staged=staged, object=entry, **changes)
    return [(finding.kind, finding.repair) for finding in check_upload(facts, SCOPE)]


# --- keys ------------------------------------------------------------------------------------------

TEMPLATES = ["{id}", "{yyyy}/{mm}/{dd}/{id}", "a.b+c/{owner_hash}/{id}", "{id}/{id}", "{{x}}/{id}.bin"]


@pytest.mark.parametrize("template", TEMPLATES)
@given(
    owner=st.text(max_size=5),
    upload_id=st.uuids(version=4),
    now=st.datetimes(datetime(1000, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 -- it wants a naive one
)
def test_every_key_of_a_template_is_recognised(template: str, owner: str, upload_id: uuid.UUID, now: datetime) -> None:
    match = key_pattern(template).fullmatch(render_key(template, UploadId(upload_id), owner, now))

    assert match is not None
    assert match["id"] == str(upload_id)


@pytest.mark.parametrize(
    "key",
    ["", str(ID), f"2026/11/20/{ID}x", f"x2026/11/20/{ID}", f"2026/11/20/{str(ID).upper()}", f"2026-11-20/{ID}",
     f"2026/11/20/{ID}\n", f"٢٠٢٦/11/20/{ID}", "2026/11/20/report.pdf"],
)  # fmt: skip
def test_no_other_key_is_taken_for_ours(key: str) -> None:
    assert SCOPE.key_pattern.fullmatch(key) is None


def test_a_template_is_no_regular_expression() -> None:
    assert key_pattern("a.c/{id}").fullmatch(f"abc/{ID}") is None
    assert key_pattern("{id}/{id}").fullmatch(f"{ID}/{uuid.uuid4()}") is None


# --- uploads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "confirmed", "whole", "expected"),
    [
        (found(), False, False, []),
        (found(etag=None), False, False, []),
        (found(etag='"other"'), False, False, [(Kind.OBJECT_DIFFERS, Repair.MARK)]),
        # A suspicion only: what was copied in place has another ETag, and our id and checksum.
        (found(etag='"other"', upload_id=str(ID), crc64nvme=7), True, False, []),
        (found(etag='"other"', upload_id=None), True, False, []),
        (found(upload_id=str(uuid.uuid4())), True, True, [(Kind.OBJECT_DIFFERS, Repair.MARK)]),
        (found(upload_id=str(ID), crc64nvme=8), True, False, [(Kind.OBJECT_DIFFERS, Repair.MARK)]),
        (found(upload_id=str(ID), crc64nvme=8), True, True, [(Kind.OBJECT_DIFFERS, Repair.REQUEUE)]),
        (found(length=9), True, True, [(Kind.OBJECT_DIFFERS, Repair.MARK)]),
        (None, True, False, [(Kind.OBJECT_MISSING, Repair.MARK)]),
        (None, True, True, [(Kind.OBJECT_MISSING, Repair.REQUEUE)]),
    ],
)
def test_a_stored_upload_and_its_object(
    entry: ObjectFacts | None, confirmed: bool, whole: bool, expected: Judged
) -> None:
    assert judged(row(), None, entry, confirmed=confirmed, whole=whole) == expected


@pytest.mark.parametrize("state", [State.CREATED, State.UPLOADING, State.TRANSFER_FAILED, State.COMPLETED])
@pytest.mark.parametrize(
    ("staged", "expected"),
    [
        (None, [(Kind.STAGED_MISSING, Repair.MARK)]),
        (9, [(Kind.STAGED_SHORT, Repair.MARK)]),
        (10, []),
        (11, []),  # a torn tail
    ],
)
def test_staged_bytes_of_an_upload_that_is_not_stored(state: State, staged: int | None, expected: list[Any]) -> None:
    assert judged(row(state=state, remote_present=False, local_present=True), staged, None) == expected


def test_an_upload_without_bytes_of_its_own_needs_no_file() -> None:
    for changes in ({"offset": 0}, {"concat": Concat.FINAL}):
        assert judged(row(state=State.UPLOADING, remote_present=False, **changes), None, None) == []


@pytest.mark.parametrize("changes", [{"age_seconds": HOUR - 1}, {"staging_id": StagingId(uuid.uuid4())}])
def test_the_young_and_those_of_other_nodes_are_not_judged(changes: dict[str, Any]) -> None:
    assert judged(row(**changes), None, None) == []
    assert judged(row(jobless="transfer", **changes), None, None) == []


@pytest.mark.parametrize("state", [*State])
def test_what_a_worker_deals_with_is_left_to_it(state: State) -> None:
    assert judged(row(state=state, busy=True), None, found(length=1)) == []


def test_what_is_marked_is_told_and_not_marked_again() -> None:
    assert judged(row(missing=True), None, None) == [(Kind.OBJECT_MISSING, Repair.NONE)]
    assert judged(row(missing=True), None, found()) == [(Kind.FOUND_AGAIN, Repair.CLEAR_MARK)]


@pytest.mark.parametrize("state", sorted(GONE - {State.REMOVING}))
@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (None, []),
        (found(age_seconds=HOUR - 1, upload_id=str(ID)), []),
        (found(upload_id=None), []),
        (found(upload_id=str(uuid.uuid4())), []),
        (found(upload_id=str(ID)), [(Kind.OBJECT_OF_GONE_UPLOAD, Repair.REMOVE_OBJECT)]),
    ],
)
def test_an_object_of_an_upload_that_is_gone(state: State, entry: ObjectFacts | None, expected: list[Any]) -> None:
    assert judged(row(state=state, remote_present=False), None, entry, confirmed=True) == expected


def test_a_removal_that_is_to_come_removes_the_object_itself() -> None:
    gone = row(state=State.EXPIRED, remote_present=False, local_present=True, jobless="remove")

    assert judged(gone, 10, found(upload_id=str(ID)), confirmed=True) == [(Kind.JOB_MISSING, Repair.QUEUE_JOB)]


# --- files, objects, multiparts --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("upload", "expected"),
    [
        (None, Kind.ORPHAN_FILE),
        (row(staging_id=StagingId(uuid.uuid4())), Kind.FOREIGN_FILE),
        (row(), Kind.LEFTOVER_COPY),
        (row(busy=True), None),
        (row(age_seconds=HOUR - 1), None),
        (row(remote_present=False), None),
        (row(local_present=True, stored_seconds=2 * HOUR), Kind.LEFTOVER_COPY),
        (row(local_present=True, stored_seconds=2 * HOUR - 1), None),
        (row(state=State.REMOVED), Kind.LEFTOVER_COPY),
        (row(state=State.REMOVING, local_present=True), None),
        (row(state=State.UPLOADING, local_present=True, remote_present=False), None),
    ],
)
def test_a_staged_file_and_its_upload(upload: UploadRecord | None, expected: Kind | None) -> None:
    judgement = check_file(StagedFile("10/x", ID, 10, NOW - HOUR), upload, SCOPE, now=NOW)

    assert (judgement and judgement.kind) == expected
    assert check_file(StagedFile("10/x", ID, 10, NOW - HOUR + 1), upload, SCOPE, now=NOW) is None


def test_what_is_not_ours_in_staging_is_never_removed() -> None:
    for upload in (None, row()):
        judgement = check_file(StagedFile("10/x", None, 10, 0.0), upload, SCOPE, now=NOW)
        assert judgement is not None
        assert judgement.repair is Repair.NONE


@pytest.mark.parametrize(
    ("upload", "begun", "expected"),
    [
        (row(), NOW - HOUR, Repair.ABORT),
        (row(), NOW - HOUR + 1, None),
        (row(busy=True), 0.0, None),
        (row(multipart_id="m"), 0.0, None),
        (row(multipart_id="other"), 0.0, Repair.ABORT),
        (None, 0.0, Repair.NONE),
    ],
)
def test_something_unfinished_and_its_upload(
    upload: UploadRecord | None, begun: float, expected: Repair | None
) -> None:
    judgement = check_unfinished(UnfinishedObject(KEY, "m", begun), upload, SCOPE, now=NOW)

    assert (judgement and judgement.repair) == expected


@pytest.mark.parametrize(
    ("key", "upload_id", "ours"),
    [(KEY, str(ID), True), (KEY, None, False), (KEY, str(uuid.uuid4()), False), ("report.pdf", str(ID), False)],
)
def test_an_object_of_no_upload_is_ours_by_its_key_and_its_id(key: str, upload_id: str | None, ours: bool) -> None:
    stored = StoredObject(key, 10, upload_id=upload_id)

    judgement = check_lone_object(ListedObject(key, 10, 0.0), stored, SCOPE, now=NOW)

    assert (judgement is not None) is ours
    assert judgement is None or judgement.repair is Repair.NONE


# --- side by side ----------------------------------------------------------------------------------


async def stream(items: Iterable[str]) -> AsyncIterator[str]:
    for item in items:
        yield item


def merged(left: list[str], right: list[str]) -> list[tuple[str | None, str | None]]:
    async def run() -> list[tuple[str | None, str | None]]:
        pairs = merge_join(stream(left), stream(right), left_key=str, right_key=str)
        return [pair async for pair in pairs]

    return asyncio.run(run())


@given(st.sets(st.text(max_size=3)), st.sets(st.text(max_size=3)))
def test_sorted_streams_meet_at_every_common_key(left: set[str], right: set[str]) -> None:
    pairs = merged(sorted(left), sorted(right))

    assert {a for a, b in pairs if a is not None and b is not None} == left & right
    assert [a if a is not None else b for a, b in pairs] == sorted(left | right)


@given(st.lists(st.text(max_size=2), unique=True), st.lists(st.text(max_size=2), unique=True))
def test_streams_without_order_lose_nothing_and_pair_nothing_wrong(left: list[str], right: list[str]) -> None:
    pairs = merged(left, right)

    assert [a for a, _ in pairs if a is not None] == left
    assert [b for _, b in pairs if b is not None] == right
    assert all(a == b for a, b in pairs if a is not None and b is not None)


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=4)))
def test_the_order_of_strings_is_that_of_their_bytes(keys: list[str]) -> None:
    """As S3 lists and as PostgreSQL sorts in the collation "C"."""
    assert sorted(keys) == sorted(keys, key=str.encode)


# --- words -----------------------------------------------------------------------------------------


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_a_line_stays_a_line_whatever_a_file_is_called(name: str) -> None:
    line = printable(name)

    assert line.encode().decode() == line
    assert line.isprintable()


@pytest.mark.parametrize(
    ("size", "age", "expected"),
    [
        (0, 0.4, "0 B 0s"),
        (1023, 119, "1023 B 119s"),
        (1024, 120, "1.0 KiB 2m"),
        (5 * 2**20, 7200, "5.0 MiB 2h"),
        (3 * 2**40, 10 * 86400, "3.0 TiB 10d"),
        (None, -3, "- 0s"),
    ],
)
def test_sizes_and_ages_are_written_for_people(size: int | None, age: float, expected: str) -> None:
    finding = Finding(kind=Kind.ORPHAN_FILE, subject="x", size=size, age_seconds=age, repair=Repair.REMOVE_FILE)

    text = FindingOutcome(finding, Result.LEFT).as_text(repair=False)

    assert re.sub(" +", " ", text) == f"orphan_file x {expected} would remove the file"


def test_only_what_is_repaired_or_kept_is_not_left() -> None:
    report = Report()
    finding = Finding(kind=Kind.ORPHAN_FILE, subject="x", size=1, age_seconds=1.0, repair=Repair.REMOVE_FILE)
    for result in Result:
        report.count(FindingOutcome(finding, result))

    assert report.left == len(Result) - 2
    assert report.as_json()["found"] == {"orphan_file": len(Result)}
