"""How an object is cut into parts. Pure: lengths in, lengths out.

Every part but the last has the same length, which Cloudflare R2 demands and everybody else accepts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tusd_py.errors import PermanentStoreError

MIB: Final = 2**20
MIN_PART_BYTES: Final = 5 * MIB
MAX_PART_BYTES: Final = 5 * 2**30
"""Also the largest object that one PUT may carry."""
MAX_OBJECT_BYTES: Final = 5 * 2**40
MAX_PARTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Part:
    """The bytes [start, start + length) of an object, sent as part `number` (from 1)."""

    number: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class PartPlan:
    """The parts of an object of `length` bytes; `part_size` is None for a single PUT."""

    length: int
    part_size: int | None

    @property
    def single(self) -> bool:
        """True if the object goes in one PUT, without a multipart upload."""
        return self.part_size is None

    @property
    def count(self) -> int:
        """How many parts there are; 1 for a single PUT."""
        return 1 if self.part_size is None else -(-self.length // self.part_size)

    def part(self, number: int) -> Part:
        """Return the part with this number, from 1 to `count`."""
        size = self.length if self.part_size is None else self.part_size
        start = (number - 1) * size
        return Part(number, start, min(size, self.length - start))

    def whole_bytes(self, available: int) -> int:
        """Return how many bytes are in parts that end within the first `available`; 0 for a single PUT."""
        return 0 if self.part_size is None else min(available, self.length) // self.part_size * self.part_size

    def next_whole(self, available: int) -> int:
        """Return how many bytes make another part whole; the length, where only the last one is left."""
        return self.length if self.part_size is None else min(self.length, self.whole_bytes(available) + self.part_size)

    def parts(self) -> Iterator[Part]:
        """Return all parts in order."""
        return (self.part(number) for number in range(1, self.count + 1))


def plan_parts(length: int, *, threshold: int, part_size: int, max_parts: int = MAX_PARTS) -> PartPlan:
    """Decide how an object of `length` bytes is sent.

    Up to `threshold` bytes go in one PUT, and so does an empty object, since a multipart upload
    needs a part. `part_size` is raised where the object would need more than `max_parts`, in whole
    MiB so that the parts of neighbouring lengths stay comparable.

    Raises:
        PermanentStoreError: no plan within S3's limits holds so many bytes.
    """
    if length <= min(threshold, MAX_PART_BYTES):
        return PartPlan(length, None)
    max_parts = min(max_parts, MAX_PARTS)
    if length > min(MAX_OBJECT_BYTES, max_parts * MAX_PART_BYTES):
        raise PermanentStoreError("The upload is larger than the store accepts.", length=length)
    needed = -(-length // max_parts)
    size = max(part_size, MIN_PART_BYTES)
    if needed > size:
        size = -(-needed // MIB) * MIB
    return PartPlan(length, min(size, MAX_PART_BYTES))
