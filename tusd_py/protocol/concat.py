"""Concatenation as rows: which partial uploads a final one may have, and what they add up to. Pure."""

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
    """Partial uploads taken together. `length` is None until the length of each is known."""

    complete: bool
    length: int | None
    crc64nvme: int | None


@dataclass(frozen=True, slots=True)
class Room:
    """The room in a store: `free` bytes now, `size` bytes if nothing else were in it."""

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


def join_partials(partials: Sequence[Upload], combine: CombineCrc) -> Joined:
    """Add up lengths and checksums in the order of the list."""
    lengths = [partial.length for partial in partials]
    known = [length for length in lengths if length is not None]
    length = sum(known) if len(known) == len(lengths) else None
    complete = all(partial.state is State.COMPLETED for partial in partials)
    crc: int | None = 0
    for partial in partials if complete else ():
        crc = None if crc is None or partial.crc64nvme is None else combine(crc, partial.crc64nvme, partial.offset)
    return Joined(complete, length, crc if complete else None)


def resolve_partials(  # noqa: PLR0913 -- the rules need that many facts, and all are keywords
    partials: Sequence[Upload | None],
    *,
    owner: str | None,
    staging_id: StagingId,
    allow_unfinished: bool,
    allow_repeated: bool,
    max_size: int | None,
    now: datetime,
) -> list[Upload]:
    """Return the partial uploads if a final one may be made of them (tus 1.0.0 §concatenation).

    Raises:
        InvalidConcat: one is unknown, gone, somebody else's, not partial, or named twice.
        WrongNode: one lies in another staging directory.
        PartialNotFinished: one is incomplete and the server does not wait for it.
        UploadTooLarge: together they are larger than `max_size`.
    """
    usable = [_usable(position, partial, owner, now) for position, partial in enumerate(partials, 1)]
    if not allow_repeated:
        _demand_each_once(usable)
    if any(partial.staging_id != staging_id for partial in usable):
        raise WrongNode
    if not allow_unfinished and any(partial.state is not State.COMPLETED for partial in usable):
        raise PartialNotFinished
    if max_size is not None and known_length(usable) > max_size:
        raise UploadTooLarge
    return usable


def known_length(partials: Sequence[Upload]) -> int:
    """Return how many bytes the partial uploads will have together at least."""
    return sum(partial.length if partial.length is not None else partial.offset for partial in partials)


def _demand_each_once(partials: Sequence[Upload]) -> None:
    # A few kilobytes of request would otherwise make an object of any size.
    first: dict[UploadId, int] = {}
    for position, partial in enumerate(partials, 1):
        if (before := first.setdefault(partial.id, position)) != position:
            raise InvalidConcat(f"Upload {position} of Upload-Concat is upload {before} again; each may be named once.")


def _usable(position: int, partial: Upload | None, owner: str | None, now: datetime) -> Upload:
    # Unknown, gone and foreign uploads look the same from outside.
    if partial is None or partial.gone(now) or partial.owner != owner:
        raise InvalidConcat(f"Upload {position} of Upload-Concat does not exist.")
    if partial.concat is not Concat.PARTIAL:
        raise InvalidConcat(f"Upload {position} of Upload-Concat is not a partial upload.")
    return partial
