"""Concatenation as rows: which parts a final upload may have, and what they add up to. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from tusd_py.errors import InvalidConcat, PartialNotFinished, StoreFull, UploadTooLarge, WrongNode
from tusd_py.protocol.upload import Concat, StagingId, State, Upload, UploadId

CombineCrc = Callable[[int, int, int], int]
"""(crc of the first, crc of the second, length of the second) -> crc of both in a row."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Parts taken together. `length` is None until every part's length is known."""

    complete: bool
    length: int | None
    crc64nvme: int | None


@dataclass(frozen=True, slots=True)
class Room:
    """What a store can take: `free` bytes now, `size` bytes if nothing else were in it."""

    free: int
    size: int

    def less(self, reserve: int) -> Room:
        """Return the same without a reserve that is to stay free."""
        return Room(self.free - reserve, self.size - reserve)

    def check(self, length: int, *, promised: int) -> None:
        """Raise unless so many bytes fit beside those that are promised to others.

        Raises:
            UploadTooLarge: they never could.
            StoreFull: they do not now.
        """
        if length > self.size:
            raise UploadTooLarge
        if length > self.free - promised:
            raise StoreFull(wanted=length, free_bytes=self.free, promised=promised)


def join_parts(parts: Sequence[Upload], combine: CombineCrc) -> Joined:
    """Add up lengths and checksums in the order of the list."""
    lengths = [part.length for part in parts]
    known = [length for length in lengths if length is not None]
    length = sum(known) if len(known) == len(lengths) else None
    complete = all(part.state is State.COMPLETED for part in parts)
    crc: int | None = 0
    for part in parts if complete else ():
        crc = None if crc is None or part.crc64nvme is None else combine(crc, part.crc64nvme, part.offset)
    return Joined(complete, length, crc if complete else None)


def resolve_parts(  # noqa: PLR0913 -- the rules need that many facts, and all are keywords
    parts: Sequence[Upload | None],
    *,
    owner: str | None,
    staging_id: StagingId,
    allow_unfinished: bool,
    allow_repeated: bool,
    max_size: int | None,
    now: datetime,
) -> list[Upload]:
    """Return the parts if a final upload may be made of them (tus 1.0.0 §concatenation).

    Raises:
        InvalidConcat: a part is unknown, gone, somebody else's, no partial upload, or named twice.
        WrongNode: a part lies in another staging directory.
        PartialNotFinished: a part is incomplete and the server does not wait for parts.
        UploadTooLarge: together they are larger than `max_size`.
    """
    usable = [_usable(position, part, owner, now) for position, part in enumerate(parts, 1)]
    if not allow_repeated:
        _demand_each_once(usable)
    if any(part.staging_id != staging_id for part in usable):
        raise WrongNode
    if not allow_unfinished and any(part.state is not State.COMPLETED for part in usable):
        raise PartialNotFinished
    if max_size is not None and known_length(usable) > max_size:
        raise UploadTooLarge
    return usable


def known_length(parts: Sequence[Upload]) -> int:
    """Return how many bytes the parts will have together at least."""
    return sum(part.length if part.length is not None else part.offset for part in parts)


def _demand_each_once(parts: Sequence[Upload]) -> None:
    # A few kilobytes of request would otherwise make an object of any size.
    first: dict[UploadId, int] = {}
    for position, part in enumerate(parts, 1):
        if (before := first.setdefault(part.id, position)) != position:
            raise InvalidConcat(f"Part {position} of Upload-Concat is part {before} again; each may be named once.")


def _usable(position: int, part: Upload | None, owner: str | None, now: datetime) -> Upload:
    # Unknown, gone and foreign parts look the same from outside.
    if part is None or part.gone(now) or part.owner != owner:
        raise InvalidConcat(f"Part {position} of Upload-Concat does not exist.")
    if part.concat is not Concat.PARTIAL:
        raise InvalidConcat(f"Part {position} of Upload-Concat is not a partial upload.")
    return part
