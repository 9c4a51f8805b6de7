"""Reading ranges across staged files, and what is said of files that are gone or too short."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tusd_py import crc64
from tusd_py.errors import StagingDamaged, StagingMissing
from tusd_py.ports import ObjectSpec, Segment
from tusd_py.stores.ranges import checksum_range, nonempty, require_length
from tusd_py.stores.s3.source import RangeBody

pytestmark = pytest.mark.unit

LENGTHS = [3, 0, 700_000, 1, 1_200_000, 5]
WHOLE = hashlib.shake_128(b"staged").digest(sum(LENGTHS))


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> list[Segment]:
    directory = tmp_path_factory.mktemp("staged")
    answer, start = [], 0
    for number, length in enumerate(LENGTHS):
        path = directory / str(number)
        # A torn tail lies behind the recorded length and must never be read.
        path.write_bytes(WHOLE[start : start + length] + b"torn tail")
        answer.append(Segment(path, length))
        start += length
    return answer


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


async def sent(body: RangeBody) -> bytes:
    """What aiohttp would send of a body."""
    return b"".join([bytes(block) async for block in body])


@given(data=st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range_is_read_across_segment_borders(data: st.DataObject, segments: list[Segment]) -> None:
    start = data.draw(st.integers(0, len(WHOLE)))
    length = data.draw(st.integers(0, len(WHOLE) - start))

    sums = checksum_range(segments, start, length, md5=True, sha256=True)

    wanted = WHOLE[start : start + length]
    assert sums.length == length
    assert sums.crc64nvme == crc64.update(wanted)
    assert sums.md5 == hashlib.md5(wanted, usedforsecurity=False).digest()
    assert sums.sha256 == hashlib.sha256(wanted).digest()


def test_only_the_checksums_asked_for_are_computed(segments: list[Segment]) -> None:
    sums = checksum_range(segments, 0, len(WHOLE))

    assert (sums.md5, sums.sha256) == (None, None)


async def test_a_body_is_sent_whole(segments: list[Segment], executor: ThreadPoolExecutor) -> None:
    body = RangeBody(segments, 1, len(WHOLE) - 2, executor)

    assert len(body) == len(WHOLE) - 2
    assert await sent(body) == WHOLE[1:-1]
    body.close()


async def test_a_retried_body_starts_again_while_the_first_try_still_reads(
    segments: list[Segment], executor: ThreadPoolExecutor
) -> None:
    body = RangeBody(segments, 0, len(WHOLE), executor)
    abandoned = aiter(body)
    await anext(abandoned)

    body.seek(0)
    again = aiter(body)
    first = bytes(await anext(again))
    await anext(abandoned)
    rest = b"".join([bytes(block) async for block in again])

    assert first + rest == WHOLE
    body.close()


async def test_a_cold_file_is_read_in_a_thread(
    segments: list[Segment], executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def no_cache(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(11, "would wait for the disk")
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", no_cache)
    body = RangeBody(segments, 0, len(WHOLE), executor)

    assert await sent(body) == WHOLE
    body.close()


def test_a_body_reads_and_seeks_like_a_file(segments: list[Segment], executor: ThreadPoolExecutor) -> None:
    body = RangeBody(segments, 2, 10, executor)

    assert body.seek(0, os.SEEK_END) == 10
    assert body.read() == b""
    assert body.seek(-4, os.SEEK_CUR) == 6
    assert body.read(3) == WHOLE[8:11]
    assert body.tell() == 9
    assert body.seek(0) == 0
    assert body.read(None) == WHOLE[2:12]
    body.close()


def open_files() -> int:
    """Count the files that this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_body_holds_one_file_and_gives_it_back(segments: list[Segment], executor: ThreadPoolExecutor) -> None:
    before = open_files()
    body = RangeBody(segments, 0, len(WHOLE), executor)

    await sent(body)
    during = open_files()
    body.close()

    assert during == before + 1
    assert open_files() == before
    with pytest.raises(ValueError, match="closed"):
        body.seek(0)
        body.read(1)


async def test_a_body_that_cannot_be_read_keeps_the_reason(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    body = RangeBody([Segment(tmp_path / "gone", 5)], 0, 5, executor)

    with pytest.raises(StagingMissing):
        await sent(body)

    assert isinstance(body.failure, StagingMissing)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StagingMissing) as refusal:
        checksum_range([Segment(tmp_path / "gone", 5)], 0, 5)

    assert refusal.value.context == {"path": str(tmp_path / "gone")}


def test_a_short_file_is_damage_and_never_filled_up(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"abc")

    with pytest.raises(StagingDamaged) as refusal:
        checksum_range([Segment(path, 5)], 0, 5)

    assert refusal.value.context == {"path": str(path), "ends_at": 3}


def test_a_range_beyond_the_segments_is_damage(segments: list[Segment]) -> None:
    with pytest.raises(StagingDamaged):
        checksum_range(segments, len(WHOLE) - 1, 2)


def test_segments_must_be_as_long_as_the_object(segments: list[Segment]) -> None:
    spec = ObjectSpec("id", "key", len(WHOLE), None, "text/plain")

    require_length(spec, segments)
    with pytest.raises(StagingDamaged):
        require_length(spec, segments[:-1])


def test_empty_segments_need_no_file(segments: list[Segment]) -> None:
    assert [segment.length for segment in nonempty(segments)] == [3, 700_000, 1, 1_200_000, 5]
