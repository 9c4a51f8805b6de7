"""Concatenation as rows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.uploads import HERE, NOW, upload
from tusd_py.crc64 import combine, update
from tusd_py.errors import InvalidConcat, PartialNotFinished, StoreFull, UploadTooLarge, WrongNode
from tusd_py.protocol.concat import Room, join_partials, resolve_partials
from tusd_py.protocol.upload import Concat, StagingId, State, Upload

pytestmark = pytest.mark.unit


def part(data: bytes = b"", **changes: Any) -> Upload:
    facts = {
        "concat": Concat.PARTIAL, "state": State.COMPLETED, "length": len(data), "offset": len(data),
        "crc64nvme": update(data),
    }  # fmt: skip
    return upload(**facts | changes)


def resolve(*parts: Upload | None, **changes: Any) -> list[Upload]:
    facts = {
        "owner": None, "staging_id": HERE, "allow_unfinished": True, "allow_repeated": False, "max_size": None,
        "now": NOW,
    }  # fmt: skip
    return resolve_partials(parts, **facts | changes)


@given(st.lists(st.binary(), max_size=6))
def test_parts_add_up(pieces: list[bytes]) -> None:
    """CAT-03"""
    joined = join_partials([part(piece) for piece in pieces], combine)

    assert (joined.complete, joined.length) == (True, sum(map(len, pieces)))
    assert joined.crc64nvme == update(b"".join(pieces))


def test_an_unfinished_part_leaves_everything_open_but_the_length() -> None:
    """CATU-02"""
    joined = join_partials([part(b"a"), part(b"b", state=State.UPLOADING, length=5)], combine)

    assert (joined.complete, joined.length, joined.crc64nvme) == (False, 6, None)
    assert join_partials([part(length=None)], combine).length is None


def test_an_unknown_checksum_makes_the_whole_unknown() -> None:
    joined = join_partials([part(b"a"), part(b"b", crc64nvme=None), part(b"c")], combine)

    assert (joined.complete, joined.length, joined.crc64nvme) == (True, 3, None)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        part(owner="bob"),
        part(concat=None),
        part(concat=Concat.FINAL),
        part(state=State.REMOVED),
        part(expires_at=NOW - timedelta(seconds=1)),
    ],
)
def test_what_is_no_part_of_ones_own_is_refused_by_its_place(bad: Upload | None) -> None:
    """CAT-06"""
    with pytest.raises(InvalidConcat, match="Upload 2 "):
        resolve(part(), bad, part())


@pytest.mark.parametrize("parts", [[], [part()]])
def test_parts_in_another_staging_directory_are_for_another_node(parts: list[Upload]) -> None:
    with pytest.raises(WrongNode):
        resolve(*parts, part(staging_id=StagingId(uuid4())))


def test_a_part_is_named_once_unless_more_is_allowed() -> None:
    """CAT-07"""
    one, other = part(b"a"), part(b"b")

    with pytest.raises(InvalidConcat, match=r"Upload 3 .* upload 1 again"):
        resolve(one, other, one)
    assert resolve(one, other, one, allow_repeated=True) == [one, other, one]


def test_what_waits_for_the_store_counts_before_what_is_asked_for() -> None:
    """CAT-09"""
    room = Room(free=100, size=1000).less(10)

    room.check(90, promised=0)
    room.check(60, promised=30)
    refused = [(91, 0, StoreFull), (61, 30, StoreFull), (990, 0, StoreFull), (991, 0, UploadTooLarge)]
    for length, promised, error in refused:
        with pytest.raises(error):
            room.check(length, promised=promised)


def test_rules_about_the_whole() -> None:
    """CAT-08 CAT-09"""
    with pytest.raises(PartialNotFinished):
        resolve(part(state=State.UPLOADING), allow_unfinished=False)
    with pytest.raises(UploadTooLarge):
        resolve(part(b"abc"), part(b"abc"), max_size=5)
    assert len(resolve(part(b"abc"), max_size=3)) == 1
