"""The contract of `Staging`: where the bytes are, who may write them, and when they survive a power cut."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import eventually
from tusd_py import crc64
from tusd_py.config.sections import StagingConfig
from tusd_py.errors import StagingDamaged, StagingFull, StagingMissing, StorageError, UploadTooLarge
from tusd_py.metrics import Metrics
from tusd_py.ports import StagingFile
from tusd_py.protocol.upload import UploadId
from tusd_py.staging import StagingArea, writers
from tusd_py.staging.health import StagingHealth
from tusd_py.staging.small import SmallFile, store_files
from tusd_py.staging.syncs import Syncs

KIB, MIB = 2**10, 2**20
WRITE_PATHS = ["auto", "page-cache", "direct", "dontcache"]
Make = Callable[..., StagingArea]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for all tests: making it is 256 directories and a sync."""
    directory = tmp_path_factory.mktemp("staging") / "staging"
    StagingArea(directory, StagingConfig(), Metrics()).prepare()
    return directory


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def make(prepared: Path, metrics: Metrics) -> AsyncIterator[Make]:
    """Staging areas on the same directory, as different processes have them."""
    areas: list[StagingArea] = []

    def make_one(directory: Path = prepared, **settings: Any) -> StagingArea:
        area = StagingArea(directory, StagingConfig(**({"reserve": 0} | settings)), metrics)
        if directory != prepared:
            area.prepare()
        areas.append(area)
        return area

    yield make_one

    for area in areas:
        await area.close()


@pytest.fixture
def area(make: Make) -> StagingArea:
    return make()


@pytest.fixture
def upload_id() -> UploadId:
    return UploadId(uuid.uuid4())


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every sync of a file or a directory, in order."""
    calls: list[str] = []

    def counted(name: str, call: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            calls.append(name)
            call(fd)

        return sync

    monkeypatch.setattr(os, "fdatasync", counted("file", os.fdatasync))
    monkeypatch.setattr(os, "fsync", counted("directory", os.fsync))
    return calls


async def open_new(area: StagingArea, upload_id: UploadId) -> StagingFile:
    file = await area.open(upload_id, create=True)
    assert file is not None
    return file


def put(area: StagingArea, upload_id: UploadId, content: bytes) -> Path:
    path = area.path(upload_id)
    path.write_bytes(content)
    return path


# --- where files are -------------------------------------------------------------------------------


def test_a_file_has_the_name_of_its_upload_and_nothing_a_client_sent(area: StagingArea, upload_id: UploadId) -> None:
    path = area.path(upload_id)

    assert path.name == str(upload_id)
    assert path.parent.name == str(upload_id)[-2:]
    assert path.parent.is_dir()


async def test_only_the_owner_and_its_group_may_look(area: StagingArea, upload_id: UploadId) -> None:
    await area.store_small(upload_id, [b"x"])
    other = UploadId(uuid.uuid4())
    await (await open_new(area, other)).close()

    for path in (area.path(upload_id), area.path(other), area.path(other).parent):
        assert path.stat().st_mode & 0o007 == 0


async def test_preparing_again_keeps_everything(make: Make, tmp_path: Path, upload_id: UploadId) -> None:
    await make(tmp_path).store_small(upload_id, [b"kept"])

    assert make(tmp_path).path(upload_id).read_bytes() == b"kept"


async def test_every_file_is_listed_with_its_age(make: Make, tmp_path: Path) -> None:
    area = make(tmp_path)
    uploads = [UploadId(uuid.uuid4()) for _ in range(3)]
    for number, upload_id in enumerate(uploads):
        os.utime(put(area, upload_id, b"x"), (number, number))

    assert sorted(area.files(), key=lambda found: found[1]) == [(str(u), float(n)) for n, u in enumerate(uploads)]


# --- writing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("write_path", WRITE_PATHS)
async def test_blocks_of_any_size_at_any_offset_arrive_as_they_were(
    make: Make, upload_id: UploadId, write_path: str
) -> None:
    rng = random.Random(write_path)
    area = make(write_path=write_path)
    file = await open_new(area, upload_id)
    expected, crc = b"", 0

    for size in (1, 4095, 4096, 4097, 3 * MIB + 17, 65536, 2 * MIB, 5):
        chunks: list[bytes | memoryview] = [rng.randbytes(size // 3), memoryview(rng.randbytes(size - size // 3))]
        crc = await file.write(chunks, len(expected), crc, sync=size % 2 == 0)
        expected += b"".join(chunks)
    await file.close()

    assert area.path(upload_id).read_bytes() == expected
    assert crc == crc64.update(expected)


@pytest.mark.parametrize("write_path", WRITE_PATHS)
async def test_thousands_of_small_chunks_are_one_block(make: Make, upload_id: UploadId, write_path: str) -> None:
    """More than one system call takes."""
    area = make(write_path=write_path)
    file = await open_new(area, upload_id)
    chunks = [bytes([number % 251]) * 7 for number in range(5000)]

    crc = await file.write(chunks, 0, 0, sync=True)
    await file.close()

    assert area.path(upload_id).read_bytes() == b"".join(chunks)
    assert crc == crc64.update(b"".join(chunks))


@pytest.mark.parametrize(
    ("write_path", "refused"),
    [("auto", {"dontcache"}), ("auto", {"dontcache", "direct"}), ("direct", {"direct"}), ("dontcache", {"dontcache"})],
)
async def test_what_the_file_system_refuses_is_written_in_another_way(
    make: Make, upload_id: UploadId, monkeypatch: pytest.MonkeyPatch, write_path: str, refused: set[str]
) -> None:
    real_write, real_open = os.pwritev, os.open
    tried = []

    def pwritev(fd: int, chunks: Any, offset: int, flags: int = 0) -> int:
        if flags & writers.RWF_DONTCACHE and "dontcache" in refused:
            tried.append("dontcache")
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real_write(fd, chunks, offset, 0)

    def open_file(path: str, flags: int, *arguments: int) -> int:
        if flags & os.O_DIRECT and "direct" in refused:
            tried.append("direct")
            raise OSError(errno.EINVAL, "invalid")
        return real_open(path, flags, *arguments)

    monkeypatch.setattr(os, "pwritev", pwritev)
    monkeypatch.setattr(os, "open", open_file)
    area = make(write_path=write_path)
    file = await open_new(area, upload_id)
    blocks = [os.urandom(64 * KIB) for _ in range(3)]

    for number, block in enumerate(blocks):
        await file.write([block], number * 64 * KIB, 0, sync=True)
    await file.close()

    assert area.path(upload_id).read_bytes() == b"".join(blocks)
    assert sorted(tried) == sorted(refused), "each is tried once and not again"


async def test_a_hasher_sees_the_bytes_and_can_be_fed_with_those_before(area: StagingArea, upload_id: UploadId) -> None:
    file = await open_new(area, upload_id)
    await file.write([b"hello "], 0, 0)
    hasher = hashlib.sha256()

    await file.update_hasher(hasher, 0, 6)
    await file.write([b"wor", memoryview(b"ld")], 6, 0, hasher=hasher)

    assert hasher.digest() == hashlib.sha256(b"hello world").digest()
    with pytest.raises(StagingDamaged):
        await file.update_hasher(hashlib.sha256(), 0, 12)
    await file.close()


async def test_many_uploads_are_written_at_once(area: StagingArea) -> None:
    async def write(upload_id: UploadId, content: bytes) -> None:
        file = await open_new(area, upload_id)
        for start in range(0, len(content), 10_000):
            await file.write([content[start : start + 10_000]], start, 0, sync=start % 30_000 == 0)
        await file.close()

    contents = {UploadId(uuid.uuid4()): os.urandom(100_000) for _ in range(20)}

    await asyncio.gather(*(write(upload_id, content) for upload_id, content in contents.items()))

    assert {upload_id: area.path(upload_id).read_bytes() for upload_id in contents} == contents


# --- durable ---------------------------------------------------------------------------------------


async def test_bytes_are_synced_when_that_is_asked_for(
    area: StagingArea, upload_id: UploadId, syncs: list[str]
) -> None:
    file = await open_new(area, upload_id)
    assert syncs == ["directory"], "the name of a new file must survive as well"
    syncs.clear()

    await file.write([b"a"], 0, 0)
    assert syncs == []
    await file.write([b"b"], 1, 0, sync=True)
    assert syncs == ["file"]
    await file.write([], 2, 0, sync=True)
    assert syncs == ["file", "file"]
    await file.close()


async def test_an_open_file_that_exists_costs_no_sync(area: StagingArea, upload_id: UploadId, syncs: list[str]) -> None:
    put(area, upload_id, b"x")

    await (await open_new(area, upload_id)).close()

    assert syncs == []


async def test_a_small_upload_is_durable_with_its_name(
    area: StagingArea, upload_id: UploadId, syncs: list[str]
) -> None:
    crc = await area.store_small(upload_id, [b"hel", b"lo"])

    assert syncs == ["file", "directory"]
    assert crc == crc64.update(b"hello")
    assert area.path(upload_id).read_bytes() == b"hello"


async def test_the_page_cache_is_trusted_where_it_is_to_be_trusted(
    make: Make, upload_id: UploadId, syncs: list[str]
) -> None:
    area = make(durability="page-cache")

    await area.store_small(upload_id, [b"x"])
    file = await open_new(area, UploadId(uuid.uuid4()))
    await file.write([b"x"], 0, 0, sync=True)
    await file.close()

    assert syncs == []


async def test_an_empty_upload_has_an_empty_file(area: StagingArea, upload_id: UploadId) -> None:
    assert await area.store_small(upload_id, []) == 0
    assert area.path(upload_id).read_bytes() == b""


async def test_a_small_upload_never_overwrites_another(area: StagingArea, upload_id: UploadId) -> None:
    await area.store_small(upload_id, [b"first"])

    with pytest.raises(StorageError):
        await area.store_small(upload_id, [b"second"])

    assert area.path(upload_id).read_bytes() == b"first"


@pytest.mark.parametrize("failing", ["pwritev", "fdatasync", "fsync"])
async def test_a_small_upload_that_fails_leaves_no_file(
    area: StagingArea, upload_id: UploadId, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(StorageError):
        await area.store_small(upload_id, [b"x"])

    assert not area.path(upload_id).exists()


# --- a sync that fails -----------------------------------------------------------------------------


class Failing:
    """Lets the next calls of a sync fail, as a device does that loses what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.left = 0
        self.calls = 0
        self._real = getattr(os, name)
        monkeypatch.setattr(os, name, self)

    def __call__(self, fd: int) -> None:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise OSError(errno.EIO, "input/output error")
        self._real(fd)


@pytest.fixture
def file_syncs(monkeypatch: pytest.MonkeyPatch) -> Failing:
    return Failing(monkeypatch, "fdatasync")


@pytest.fixture
def directory_syncs(monkeypatch: pytest.MonkeyPatch) -> Failing:
    return Failing(monkeypatch, "fsync")


async def test_a_file_whose_sync_failed_is_never_synced_again(
    area: StagingArea, upload_id: UploadId, file_syncs: Failing
) -> None:
    """The kernel tells of lost pages once: a second call would succeed and prove nothing."""
    file = await open_new(area, upload_id)
    await file.write([b"kept"], 0, 0, sync=True)
    file_syncs.left = 1
    with pytest.raises(StorageError):
        await file.write([b"lost"], 4, 0, sync=True)

    for chunks in ([], [b"more"]):
        with pytest.raises(StorageError):
            await file.write(chunks, 8, 0, sync=True)

    assert file_syncs.calls == 2
    await file.close()
    again = await open_new(area, upload_id)
    await again.truncate(4)
    await again.write([b"good"], 4, 0, sync=True)
    await again.close()
    assert file_syncs.calls == 3
    assert area.path(upload_id).read_bytes() == b"keptgood"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
async def test_a_failed_sync_is_counted_and_is_an_error_of_the_device_even_where_that_was_full(
    area: StagingArea, upload_id: UploadId, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    file = await open_new(area, upload_id)
    before = metrics.registry.get_sample_value("tusd_py_sync_failures_total")
    monkeypatch.setattr(os, "fdatasync", fail)

    with pytest.raises(StorageError) as failure:
        await file.write([b"x"], 0, 0, sync=True)
    await file.close()

    assert type(failure.value) is StorageError
    assert before is not None
    assert metrics.registry.get_sample_value("tusd_py_sync_failures_total") == before + 1


async def test_a_name_whose_sync_failed_is_taken_back_and_made_anew(
    area: StagingArea, upload_id: UploadId, directory_syncs: Failing
) -> None:
    """Written again, it is in what the next sync covers; a name that merely stayed would not be."""
    directory_syncs.left = 1
    with pytest.raises(StorageError):
        await area.open(upload_id, create=True)
    assert not area.path(upload_id).exists()

    await (await open_new(area, upload_id)).close()

    assert area.path(upload_id).exists()
    assert directory_syncs.calls == 2


async def test_an_empty_file_that_somebody_left_behind_is_made_anew(
    area: StagingArea, upload_id: UploadId, directory_syncs: Failing
) -> None:
    """Nobody knows whether its name is durable: its maker may have died before it was."""
    with put(area, upload_id, b"").open("rb") as left_behind:
        file = await open_new(area, upload_id)

        assert directory_syncs.calls == 1
        assert not os.path.samestat(os.fstat(left_behind.fileno()), area.path(upload_id).stat())
    await file.close()


async def test_two_that_open_an_upload_at_once_never_both_get_it(make: Make, upload_id: UploadId) -> None:
    areas = [make() for _ in range(4)]

    for _ in range(50):
        opened = await asyncio.gather(*(area.open(upload_id, create=True) for area in areas))
        files = [file for file in opened if file is not None]
        assert len(files) <= 1
        for file in files:
            await file.write([b"x"], 0, 0)
            await file.close()
            assert areas[0].path(upload_id).read_bytes() == b"x"
        await areas[0].remove([upload_id])


async def test_a_failed_sync_of_a_directory_fails_everybody_who_made_a_name_before_it(
    tmp_path: Path, directory_syncs: Failing
) -> None:
    """They share a descriptor, and the kernel tells one of them only."""
    syncs = Syncs(Metrics())
    first, second = syncs.new_names(str(tmp_path)), syncs.new_names(str(tmp_path))
    directory_syncs.left = 1
    with pytest.raises(OSError, match="the sync failed"):
        second.sync()

    with pytest.raises(OSError, match="has just failed"):
        first.sync()
    syncs.new_names(str(tmp_path)).sync()

    assert directory_syncs.calls == 2
    syncs.close()


async def test_small_uploads_of_one_batch_fail_with_their_directory(tmp_path: Path, directory_syncs: Failing) -> None:
    files = [SmallFile(f"{tmp_path}/{directory}/{name}", [b"x"]) for directory in "ab" for name in "12"]
    for directory in "ab":
        (tmp_path / directory).mkdir()
    syncs = Syncs(Metrics())
    directory_syncs.left = 1

    store_files(files, syncs=syncs)

    assert [file.error is None for file in files] == [False, False, True, True]
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["1", "2"]
    syncs.close()


async def test_directories_whose_sync_failed_are_made_anew(
    make: Make, tmp_path: Path, directory_syncs: Failing
) -> None:
    directory_syncs.left = 1
    with pytest.raises(StorageError):
        make(tmp_path / "staging")
    assert list((tmp_path / "staging").iterdir()) == []

    make(tmp_path / "staging")

    assert len(list((tmp_path / "staging").iterdir())) == 256


def test_after_a_failed_sync_the_disk_is_trusted_once_a_new_file_can_be_synced(
    tmp_path: Path, directory_syncs: Failing
) -> None:
    health = StagingHealth(tmp_path, reserve=0)
    health.check(0)
    assert directory_syncs.calls == 1, "a server that has just started does not know the disk"
    health.check(0)
    assert directory_syncs.calls == 1, "nothing is tried without a reason"

    directory_syncs.left = 2
    for _ in range(2):
        with pytest.raises(StorageError, match="does not keep a new file"):
            health.check(3)
    health.check(3)
    health.check(3)

    assert directory_syncs.calls == 4
    assert list(tmp_path.iterdir()) == []


def test_a_staging_disk_that_is_away_or_full_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        StagingHealth(tmp_path / "away", reserve=0).check(0)
    with pytest.raises(StagingFull):
        StagingHealth(tmp_path, reserve=2**60).check(0)


# --- opening ---------------------------------------------------------------------------------------


async def test_a_file_that_ought_to_be_there_is_not_made(area: StagingArea, upload_id: UploadId) -> None:
    with pytest.raises(StagingMissing):
        await area.open(upload_id, create=False)

    assert not area.path(upload_id).exists()


async def test_a_torn_tail_is_cut_off(area: StagingArea, upload_id: UploadId) -> None:
    put(area, upload_id, b"0123456789")
    file = await open_new(area, upload_id)
    assert file.size == 10

    await file.truncate(4)
    await file.write([b"XY"], 4, 0)
    await file.close()

    assert area.path(upload_id).read_bytes() == b"0123XY"


async def test_a_file_of_the_right_length_is_left_alone(area: StagingArea, upload_id: UploadId) -> None:
    path = put(area, upload_id, b"0123")
    os.utime(path, (7, 7))
    file = await open_new(area, upload_id)

    await file.truncate(4)
    await file.close()

    assert path.stat().st_mtime == 7


async def test_a_short_file_is_damage_and_is_never_filled_up(area: StagingArea, upload_id: UploadId) -> None:
    path = put(area, upload_id, b"0123")
    file = await open_new(area, upload_id)

    with pytest.raises(StagingDamaged):
        await file.truncate(5)
    await file.close()

    assert path.read_bytes() == b"0123"


async def test_a_file_removed_while_it_is_opened_is_made_anew(
    area: StagingArea, upload_id: UploadId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between open and lock: what is locked then is nobody's file any more."""
    path = put(area, upload_id, b"old")
    real_flock = fcntl.flock

    def remove_first(fd: int, operation: int) -> None:
        path.unlink(missing_ok=True)
        monkeypatch.setattr(fcntl, "flock", real_flock)
        real_flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    file = await open_new(area, upload_id)
    await file.write([b"new"], 0, 0)
    await file.close()

    assert path.read_bytes() == b"new"


async def test_closing_twice_closes_once(area: StagingArea, upload_id: UploadId) -> None:
    file = await open_new(area, upload_id)
    await file.close()
    other = await open_new(area, UploadId(uuid.uuid4()))  # gets the number that has become free

    await file.close()

    await other.write([b"x"], 0, 0)
    await other.close()


async def test_a_caller_that_gives_up_frees_the_file(area: StagingArea, upload_id: UploadId) -> None:
    opening = asyncio.create_task(area.open(upload_id, create=True))
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)

    async def free() -> StagingFile | None:
        return await area.open(upload_id, create=True)

    await (await eventually(free, deadline=30, what="the file is free")).close()


# --- one writer ------------------------------------------------------------------------------------

HOLDER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold_elsewhere() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Hold a file's lock in another process."""
    started: list[subprocess.Popen[str]] = []

    def hold(path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield hold

    for process in started:
        process.kill()
        process.communicate()


async def test_a_file_has_one_writer(make: Make, upload_id: UploadId) -> None:
    first, second = make(), make()
    file = await open_new(first, upload_id)

    assert await second.open(upload_id, create=True) is None
    assert second.probe(upload_id) is None
    await file.close()

    assert second.probe(upload_id) == 0
    await (await open_new(second, upload_id)).close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_another_processs_file_is_free_once_that_process_is_dead(
    area: StagingArea, upload_id: UploadId, hold_elsewhere: Callable[[Path], subprocess.Popen[str]], end: signal.Signals
) -> None:
    holder = hold_elsewhere(put(area, upload_id, b"0123"))

    assert await area.open(upload_id, create=False) is None
    assert area.probe(upload_id) is None
    holder.send_signal(end)
    holder.wait(10)

    assert area.probe(upload_id) == 4
    await (await open_new(area, upload_id)).close()


async def test_another_process_sees_our_lock(area: StagingArea, upload_id: UploadId) -> None:
    file = await open_new(area, upload_id)
    attempt = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", attempt, str(area.path(upload_id))]

    while_held = subprocess.run(command, capture_output=True, text=True)
    await file.close()
    afterwards = subprocess.run(command, capture_output=True, text=True)

    assert "BlockingIOError" in while_held.stderr
    assert afterwards.returncode == 0


async def test_a_look_at_the_size_takes_nothing_and_makes_nothing(area: StagingArea, upload_id: UploadId) -> None:
    assert area.probe(upload_id) == 0
    assert not area.path(upload_id).exists()
    put(area, upload_id, b"0123")

    assert area.probe(upload_id) == 4
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        area.probe(upload_id)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    await (await open_new(area, upload_id)).close()


# --- removing --------------------------------------------------------------------------------------


async def test_files_are_removed_and_missing_ones_are_fine(area: StagingArea) -> None:
    before = set(area.files())
    uploads = [UploadId(uuid.uuid4()) for _ in range(3)]
    for upload_id in uploads[:2]:
        put(area, upload_id, b"x")

    await area.remove(uploads)
    await area.remove(uploads)

    assert set(area.files()) == before


async def test_a_file_may_be_removed_while_somebody_reads_it(area: StagingArea, upload_id: UploadId) -> None:
    with put(area, upload_id, b"0123").open("rb") as reader:
        await area.remove([upload_id])
        assert reader.read() == b"0123"


# --- a full disk -----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=2000", "tmpfs", str(directory)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


async def test_a_full_disk_says_so_and_keeps_what_was_written(
    make: Make, small_disk: Path, upload_id: UploadId
) -> None:
    area = make(small_disk / "staging")
    file = await open_new(area, upload_id)
    await file.write([b"a" * 500_000], 0, 0, sync=True)

    with pytest.raises(StagingFull):
        await file.write([b"b" * 700_000], 500_000, 0, sync=True)
    await file.close()
    file = await open_new(area, upload_id)
    await file.truncate(500_000)
    await file.close()
    with pytest.raises(StagingFull):
        await area.store_small(UploadId(uuid.uuid4()), [b"c" * 700_000])

    assert area.path(upload_id).read_bytes() == b"a" * 500_000
    assert [name for name, _ in area.files()] == [str(upload_id)]


async def test_a_quota_is_a_full_disk(area: StagingArea, upload_id: UploadId) -> None:
    """A limit on the size of files stands for it: the kernel refuses in the middle of a block."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = await open_new(area, upload_id)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StagingFull):
            await file.write([b"a" * 150_000], 0, 0, sync=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    await file.close()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, StagingFull),
        (errno.EDQUOT, StagingFull),
        (errno.EFBIG, StagingFull),
        (errno.EIO, StorageError),
        (errno.EROFS, StorageError),
    ],
)
async def test_what_the_kernel_says_becomes_an_error_of_ours(
    area: StagingArea, upload_id: UploadId, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[StorageError]
) -> None:
    file = await open_new(area, upload_id)

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(expected) as failure:
        await file.write([b"x"], 0, 0)
    await file.close()

    assert type(failure.value) is expected


def test_a_reserve_is_left_free(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    class Facts:
        f_bavail = 100
        f_blocks = 200
        f_frsize = 1024

    monkeypatch.setattr(os, "statvfs", lambda _: Facts)
    area = make(reserve=40 * KIB)

    area.check_space(60 * KIB)
    for wanted in (60 * KIB + 1, 160 * KIB):
        with pytest.raises(StagingFull):
            area.check_space(wanted)
    with pytest.raises(UploadTooLarge):
        area.check_space(160 * KIB + 1)


def test_a_reserve_larger_than_the_disk_leaves_no_room_and_says_so(make: Make, tmp_path: Path) -> None:
    facts = os.statvfs(tmp_path)
    area = make(reserve=facts.f_blocks * facts.f_frsize + 1)

    with pytest.raises(StagingFull):
        area.check_space(0)
    with pytest.raises(UploadTooLarge):
        area.check_space(1)
