"""The store on a disk, beyond the common contract: links, copies, syncs, and keys that mean harm."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tusd_py import crc64
from tusd_py.errors import (
    PermanentStoreError,
    StagingDamaged,
    StagingMissing,
    StorageError,
    TransferCancelled,
    TransientStoreError,
)
from tusd_py.ports import BatchStore, ObjectIdentity, ObjectSpec, PartRecord, Segment, StoredObject, TransferState
from tusd_py.stores.filesystem import FilesystemStore, exclusive_name
from tusd_py.stores.filesystem.copy import FileCopy
from tusd_py.stores.filesystem.tree import FileTree
from tusd_py.stores.ranges import RangeReader

pytestmark = pytest.mark.unit

KEY = "2026/11/20/id-1"


class QuietTransferState(TransferState):
    """A transfer state that remembers nothing but how far a copy has come."""

    def __init__(self, cancel_at: int | None = None) -> None:
        self.reported: list[int] = []
        self._cancel_at = cancel_at

    async def multipart_id(self) -> str | None:
        return None

    async def record_multipart(self, multipart_id: str | None) -> None:
        raise AssertionError(f"files have no multipart uploads, least of all {multipart_id}")

    async def parts(self) -> list[PartRecord]:
        return []

    async def record_part(self, part: PartRecord) -> None:
        raise AssertionError(f"files have no parts, least of all {part}")

    async def progress(self, bytes_done: int) -> None:
        if bytes_done == self._cancel_at:
            raise TransferCancelled
        self.reported.append(bytes_done)


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return sorted(path.name for path in directory.iterdir())


def identity_of(content: bytes, key: str = KEY, **changes: Any) -> ObjectIdentity:
    settings: dict[str, Any] = {"upload_id": key.rsplit("/", 1)[-1], "crc64nvme": crc64.update(content)}
    return ObjectIdentity(key=key, length=len(content), **(settings | changes))


def spec_of(content: bytes, key: str = KEY) -> ObjectSpec:
    return ObjectSpec(key.rsplit("/", 1)[-1], key, len(content), crc64.update(content), "text/plain")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def store(root: Path) -> AsyncIterator[FilesystemStore]:
    store = FilesystemStore(root)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def small_steps(root: Path) -> AsyncIterator[FilesystemStore]:
    """The same store, recording the progress of a copy after every four bytes."""
    store = FilesystemStore(root, copy_step=4)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def stage(tmp_path: Path) -> StageOne:
    def write(content: bytes) -> Segment:
        path = tmp_path / f"staged-{uuid.uuid4().hex}"
        path.write_bytes(content)
        return Segment(path, len(content))

    return write


StageOne = Callable[[bytes], Segment]


@pytest.fixture
def other_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make linking fail as it does across file systems."""
    fail(monkeypatch, Path, "hardlink_to", errno.EXDEV)


def fail(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(owner, name, failing)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were synced, in order."""
    paths: list[str] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        paths.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    return paths


# --- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "", "/", ".", "..", "../x", "a/../../x", "a/..", "./a", "a/./b", "/etc/passwd", "a//b", "a/", "//a",
        "a\0b", "a" * 252, "a.tmp", "a.tmp/b", ".tmp", "\ud800",
    ],
)  # fmt: skip
async def test_a_key_that_could_mean_harm_is_refused(
    store: FilesystemStore, stage: StageOne, root: Path, key: str
) -> None:
    for attempt in (
        store.put(spec_of(b"x", key), [stage(b"x")], QuietTransferState()),
        store.stat(key),
        store.remove(identity_of(b"x", key)),
    ):
        with pytest.raises(PermanentStoreError):
            await attempt
    with pytest.raises(PermanentStoreError):
        store.local_path(key)
    assert names(root) == []


@given(st.text(alphabet=st.sampled_from("a./\\\0é~ \n"), max_size=12) | st.text(max_size=12))
def test_no_key_leads_out_of_the_root(key: str) -> None:
    root = Path("/not_found/store")
    try:
        path = FileTree(root).path(key)
    except PermanentStoreError:
        return

    assert os.path.normpath(path) == str(path) == f"{root}/{key}"


def test_a_relative_root_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = FilesystemStore(Path("store"))
    monkeypatch.chdir("/")

    assert store.local_path("a") == tmp_path / "store" / "a"


# --- linking ---------------------------------------------------------------------------------------


async def test_a_file_on_the_same_disk_is_linked_unread(
    store: FilesystemStore, stage: StageOne, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, RangeReader, "read_into", errno.EIO)
    segment = stage(b"content")
    spec = spec_of(b"content")

    for _ in range(2):
        await store.put(spec, [segment], QuietTransferState())

    assert (root / KEY).samefile(segment.path)
    assert segment.path.stat().st_nlink == 2


async def test_a_link_is_stored_once_its_directories_are_synced(
    store: FilesystemStore, stage: StageOne, root: Path, synced: list[str]
) -> None:
    await store.put(spec_of(b"a"), [stage(b"a")], QuietTransferState())
    first, synced[:] = list(synced), []
    await store.put(spec_of(b"b", KEY + "2"), [stage(b"b")], QuietTransferState())

    directories = [root, root / "2026", root / "2026/11", root / "2026/11/20"]
    assert first == [str(directory) for directory in directories]
    assert synced == [str(directories[-1])]


async def test_a_linked_file_is_synced_if_staging_does_not(root: Path, stage: StageOne, synced: list[str]) -> None:
    store = FilesystemStore(root, sync_linked=True)
    await store.open()

    await store.put(spec_of(b"a", "a"), [stage(b"a")], QuietTransferState())

    assert synced[-2:] == [str(root / "a"), str(root)]
    await store.close()


async def test_a_short_file_is_not_linked(store: FilesystemStore, stage: StageOne, root: Path) -> None:
    segment = stage(b"shor")

    with pytest.raises(StagingDamaged):
        await store.put(spec_of(b"short"), [Segment(segment.path, 5)], QuietTransferState())

    assert not (root / KEY).exists()


async def test_a_directory_pruned_by_another_process_is_made_anew(
    store: FilesystemStore, stage: StageOne, root: Path
) -> None:
    await store.put(spec_of(b"a"), [stage(b"a")], QuietTransferState())
    (root / KEY).unlink()
    (root / KEY).parent.rmdir()

    await store.put(spec_of(b"a"), [stage(b"a")], QuietTransferState())

    assert (root / KEY).read_bytes() == b"a"


# --- copying ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("other_disk")
async def test_a_copy_is_synced_before_it_gets_its_name(
    store: FilesystemStore, stage: StageOne, root: Path, synced: list[str]
) -> None:
    segment = stage(b"content")

    await store.put(spec_of(b"content", "a"), [segment], QuietTransferState())

    assert (root / "a").read_bytes() == b"content"
    assert not (root / "a").samefile(segment.path)
    assert [Path(path).parent.name for path in synced[-2:]] == ["a.tmp", root.parent.name]
    assert synced[-1] == str(root)
    assert names(root) == ["a"]


@pytest.mark.usefixtures("other_disk")
async def test_progress_is_told_between_steps(small_steps: FilesystemStore, stage: StageOne) -> None:
    transfer_state = QuietTransferState()

    await small_steps.put(spec_of(b"0123456789"), [stage(b"0123456789")], transfer_state)

    assert transfer_state.reported == [4, 8, 10]


@pytest.mark.usefixtures("other_disk")
@pytest.mark.parametrize("cancel_at", [4, 10])
async def test_a_cancelled_copy_leaves_nothing(
    small_steps: FilesystemStore, stage: StageOne, root: Path, cancel_at: int
) -> None:
    with pytest.raises(TransferCancelled):
        await small_steps.put(spec_of(b"0123456789", "a"), [stage(b"0123456789")], QuietTransferState(cancel_at))

    assert names(root) == []


@pytest.mark.usefixtures("other_disk")
@pytest.mark.parametrize(
    ("owner", "name", "number", "kind"),
    [
        (os, "pwrite", errno.ENOSPC, TransientStoreError),
        (os, "pwrite", errno.EDQUOT, TransientStoreError),
        (os, "fsync", errno.EIO, TransientStoreError),
        (os, "link", errno.EROFS, PermanentStoreError),
        (Path, "mkdir", errno.EACCES, PermanentStoreError),
    ],
)
async def test_what_the_disk_refuses_is_sorted_and_leaves_nothing(
    store: FilesystemStore,
    stage: StageOne,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    number: int,
    kind: type[StorageError],
) -> None:
    segment = stage(b"content")
    fail(monkeypatch, owner, name, number)

    with pytest.raises(kind) as refusal:
        await store.put(spec_of(b"content", "a"), [segment], QuietTransferState())

    assert refusal.value.context["errno"] == errno.errorcode[number]
    assert names(root) == []


@pytest.mark.usefixtures("other_disk")
async def test_short_writes_are_continued(
    store: FilesystemStore, stage: StageOne, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: pwrite(descriptor, data[:3], at))

    await store.put(spec_of(b"0123456789"), [stage(b"0123456789")], QuietTransferState())

    assert (root / KEY).read_bytes() == b"0123456789"


@pytest.mark.usefixtures("other_disk")
async def test_leftovers_of_a_killed_copy_go_with_the_next_put(
    store: FilesystemStore, stage: StageOne, root: Path
) -> None:
    leave_incomplete_copy(root)

    await store.put(spec_of(b"content"), [stage(b"content")], QuietTransferState())

    assert names((root / KEY).parent) == ["id-1"]


async def test_leftovers_of_a_killed_copy_go_with_the_object(store: FilesystemStore, root: Path) -> None:
    leave_incomplete_copy(root)

    await store.remove(identity_of(b"content"))

    assert names(root) == []


def leave_incomplete_copy(root: Path) -> None:
    """What a worker leaves that is killed in the middle of a copy."""
    incomplete = root / f"{KEY}.tmp" / "0123456789abcdef"
    incomplete.parent.mkdir(parents=True)
    incomplete.write_bytes(b"half")


# --- what is in the way ----------------------------------------------------------------------------


async def test_a_directory_in_the_way_is_left_alone(store: FilesystemStore, stage: StageOne, root: Path) -> None:
    (root / KEY).mkdir(parents=True)

    with pytest.raises(PermanentStoreError):
        await store.put(spec_of(b"a"), [stage(b"a")], QuietTransferState())

    assert (root / KEY).is_dir()
    assert await store.stat(KEY) is None


async def test_a_file_where_a_directory_should_be_is_left_alone(
    store: FilesystemStore, stage: StageOne, root: Path
) -> None:
    (root / "2026").write_bytes(b"theirs")

    with pytest.raises(PermanentStoreError):
        await store.put(spec_of(b"a"), [stage(b"a")], QuietTransferState())
    await store.remove(identity_of(b"content"))

    assert (root / "2026").read_bytes() == b"theirs"
    assert await store.stat(KEY) is None


async def test_a_copy_of_an_earlier_try_is_recognised_by_its_bytes(
    store: FilesystemStore, stage: StageOne, root: Path
) -> None:
    (root / KEY).parent.mkdir(parents=True)
    (root / KEY).write_bytes(b"content")
    before = (root / KEY).stat().st_ino

    await store.put(spec_of(b"content"), [stage(b"content")], QuietTransferState())

    assert (root / KEY).stat().st_ino == before


async def test_a_worker_that_links_at_the_same_moment_is_no_conflict(
    store: FilesystemStore, stage: StageOne, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = stage(b"content")
    hardlink_to = Path.hardlink_to

    def link_twice(path: Path, target: Path) -> None:
        hardlink_to(path, target)
        hardlink_to(path, target)

    monkeypatch.setattr(Path, "hardlink_to", link_twice)

    await store.put(spec_of(b"content"), [segment], QuietTransferState())

    assert (root / KEY).samefile(segment.path)


@pytest.fixture(params=["link", "renameat2", "neither"])
def limited_file_system(request: pytest.FixtureRequest, other_disk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems that can do less and less; each of them copies what is staged."""
    if request.param != "link":
        fail(monkeypatch, os, "link", errno.EPERM)
    if request.param == "neither":
        monkeypatch.setattr(exclusive_name, "_renameat2", lambda: None)


@pytest.mark.usefixtures("limited_file_system")
@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
async def test_a_foreign_file_that_appears_meanwhile_is_not_replaced(
    store: FilesystemStore, stage: StageOne, root: Path, monkeypatch: pytest.MonkeyPatch, batch: bool
) -> None:
    appears_before_publishing(monkeypatch, root, b"theirs!")

    result = await put_or_error(store, spec_of(b"content"), stage(b"content"), batch=batch)

    assert isinstance(result, PermanentStoreError)
    assert (root / KEY).read_bytes() == b"theirs!"
    assert names((root / KEY).parent) == ["id-1"]


@pytest.mark.usefixtures("limited_file_system")
@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
async def test_a_worker_that_copies_at_the_same_moment_is_no_conflict(
    store: FilesystemStore, stage: StageOne, root: Path, monkeypatch: pytest.MonkeyPatch, batch: bool
) -> None:
    appears_before_publishing(monkeypatch, root, b"content")

    result = await put_or_error(store, spec_of(b"content"), stage(b"content"), batch=batch)

    assert isinstance(result, StoredObject)
    assert (root / KEY).read_bytes() == b"content"
    assert names((root / KEY).parent) == ["id-1"]


@pytest.mark.usefixtures("limited_file_system")
async def test_a_copy_gets_its_name_on_every_file_system(store: FilesystemStore, stage: StageOne, root: Path) -> None:
    await store.put(spec_of(b"content"), [stage(b"content")], QuietTransferState())

    assert (root / KEY).read_bytes() == b"content"
    assert (root / KEY).stat().st_nlink == 1
    assert names((root / KEY).parent) == ["id-1"]


async def test_a_worker_killed_right_after_publishing_leaves_nothing(
    store: FilesystemStore, stage: StageOne, root: Path
) -> None:
    leave_incomplete_copy(root)
    (root / KEY).hardlink_to(root / f"{KEY}.tmp" / "0123456789abcdef")

    await store.put(spec_of(b"half"), [stage(b"half")], QuietTransferState())

    assert names((root / KEY).parent) == ["id-1"]


def appears_before_publishing(monkeypatch: pytest.MonkeyPatch, root: Path, content: bytes) -> None:
    """Put a file there between the look and the copy's own name."""
    publish = FileCopy.publish

    def late(copy: FileCopy) -> None:
        (root / KEY).write_bytes(content)
        publish(copy)

    monkeypatch.setattr(FileCopy, "publish", late)


async def put_or_error(
    store: FilesystemStore, spec: ObjectSpec, segment: Segment, *, batch: bool
) -> StoredObject | StorageError:
    """Put one by one or in a batch of one."""
    if batch:
        (result,) = await store.put_batch([(spec, [segment])])
        return result
    try:
        return await store.put(spec, [segment], QuietTransferState())
    except StorageError as error:
        return error


# --- many at once ----------------------------------------------------------------------------------


async def test_a_batch_syncs_each_directory_once(
    store: FilesystemStore, stage: StageOne, root: Path, synced: list[str]
) -> None:
    keys = [f"{day}/{number}" for day in ("mon", "tue") for number in range(10)]
    await store.put_batch([(spec_of(b"", f"{day}/0"), []) for day in ("mon", "tue")])
    synced.clear()
    items = [(spec_of(key.encode(), key), [stage(key.encode())]) for key in keys if not key.endswith("/0")]

    results = await store.put_batch(items)

    assert results == [await store.stat(spec.key) for spec, _ in items]
    assert all((root / spec.key).read_bytes() == spec.key.encode() for spec, _ in items)
    assert synced == [str(root / "mon"), str(root / "tue")]


async def test_a_failure_in_a_batch_is_that_item_alone(
    store: FilesystemStore, stage: StageOne, root: Path, tmp_path: Path
) -> None:
    (root / "taken").write_bytes(b"theirs")
    results = await store.put_batch(
        [
            (spec_of(b"one", "one"), [stage(b"one")]),
            (spec_of(b"gone", "gone"), [Segment(tmp_path / "gone", 4)]),
            (spec_of(b"x", "../x"), [stage(b"x")]),
            (spec_of(b"y", "taken"), [stage(b"y")]),
            (spec_of(b"joined", "joined"), [stage(b"joi"), stage(b"ned")]),
            (spec_of(b"joined", "damaged"), [stage(b"joi"), stage(b"nad")]),
        ]
    )

    assert [type(result) for result in results] == [
        StoredObject,
        StagingMissing,
        PermanentStoreError,
        PermanentStoreError,
        StoredObject,
        StagingDamaged,
    ]
    assert names(root) == ["joined", "one", "taken"]


async def test_a_directory_that_cannot_be_synced_stores_none_of_its_objects(
    store: FilesystemStore, stage: StageOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [(spec_of(b"a", "a"), [stage(b"a")]), (spec_of(b"b", "b"), [stage(b"b")])]
    fail(monkeypatch, os, "fsync", errno.EIO)

    results = await store.put_batch(items)

    assert [type(result) for result in results] == [TransientStoreError] * 2


async def test_an_empty_batch_is_nothing(store: FilesystemStore) -> None:
    assert isinstance(store, BatchStore)
    assert await store.put_batch([]) == []


# --- the root --------------------------------------------------------------------------------------


async def test_what_is_made_is_for_its_owner_only(store: FilesystemStore, stage: StageOne, root: Path) -> None:
    await store.put(spec_of(b"joined"), [stage(b"joi"), stage(b"ned")], QuietTransferState())

    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "2026").stat().st_mode) == 0o700
    assert stat.S_IMODE((root / KEY).stat().st_mode) == 0o600


async def test_removing_prunes_up_to_the_root_and_keeps_it(store: FilesystemStore, stage: StageOne, root: Path) -> None:
    await store.put(spec_of(b"a"), [stage(b"a")], QuietTransferState())
    await store.put(spec_of(b"b", "2026/12/b"), [stage(b"b")], QuietTransferState())

    await store.remove(identity_of(b"a"))
    assert names(root / "2026") == ["12"]
    await store.remove(identity_of(b"b", "2026/12/b"))
    assert names(root) == []

    await store.put(spec_of(b"a"), [stage(b"a")], QuietTransferState())
    assert (root / KEY).read_bytes() == b"a"


async def test_a_root_that_cannot_be_written_is_found_at_the_start(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    store = FilesystemStore(root)

    with pytest.raises(PermanentStoreError):
        await store.open()
    await store.close()
