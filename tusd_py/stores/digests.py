"""SHA-256 and MD5 of a whole object, in the reads that happen anyway.

Parts are read several at a time, but a hash needs its bytes in order. So the read of the next range also
updates the hash, one range after the other; what an earlier worker has sent, and nothing else reads, is
read for the hash alone. The CRC of all that was hashed shows in the end whether these were the client's
bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from typing import Protocol

from tusd_py import crc64
from tusd_py.errors import StagingDamaged
from tusd_py.ports import NO_DIGESTS, Digests, Segment
from tusd_py.stores.ranges import HashProgress, RangeChecksums, checksum_range


class Hash(HashProgress, Protocol):
    """What hashlib makes."""

    def digest(self) -> bytes:
        """Return the hash of the bytes so far."""


def new_hashes(names: Collection[str]) -> dict[str, Hash]:
    """Return an empty hash for each name: `sha256`, `md5`."""
    return {name: hashlib.new(name, usedforsecurity=False) for name in sorted(names)}


def digests_of(hashes: Mapping[str, Hash]) -> Digests:
    """Return what the hashes have come to."""
    return Digests(**{name: running.digest() for name, running in hashes.items()})


class ObjectDigest:
    """The hashes of one object while it is sent. For one event loop."""

    def __init__(self, segments: Sequence[Segment], executor: Executor, names: Collection[str]) -> None:
        self._segments = segments
        self._executor = executor
        self._hashes = new_hashes(names)
        self._turn = asyncio.Lock()  # first come, first served: parts come in order
        self._hashed_bytes = 0
        self._crc = crc64.EMPTY

    async def checksums(self, start: int, length: int, *, md5: bool, sha256: bool) -> RangeChecksums:
        """Read a range, return its checksums, and update the hashes if they have not had it yet.

        Raises:
            StagingDamaged: as `checksum_range` does.
        """
        if self._hashes:
            async with self._turn:
                if start >= self._hashed_bytes:
                    await self._catch_up(start)
                    return await self._read_and_hash(start, length, md5=md5, sha256=sha256)
        return await self._read(start, length, (), md5=md5, sha256=sha256)

    async def finish(self, length: int, crc64nvme: int | None) -> Digests:
        """Return the digests of all `length` bytes; none if these are not those of the client.

        That can only be where an earlier worker has stored the object: its staged copy may be gone.
        """
        if not self._hashes:
            return NO_DIGESTS
        async with self._turn:
            try:
                await self._catch_up(length)
            except StagingDamaged:
                return NO_DIGESTS
        return digests_of(self._hashes) if crc64nvme in {None, self._crc} else NO_DIGESTS

    async def _catch_up(self, start: int) -> None:
        if start > self._hashed_bytes:
            await self._read_and_hash(self._hashed_bytes, start - self._hashed_bytes, md5=False, sha256=False)

    async def _read_and_hash(self, start: int, length: int, *, md5: bool, sha256: bool) -> RangeChecksums:
        checksums = await self._read(start, length, tuple(self._hashes.values()), md5=md5, sha256=sha256)
        self._crc = crc64.combine(self._crc, checksums.crc64nvme, length)
        self._hashed_bytes = start + length
        return checksums

    async def _read(
        self, start: int, length: int, hashes: Sequence[Hash], *, md5: bool, sha256: bool
    ) -> RangeChecksums:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._executor,
            lambda: checksum_range(self._segments, start, length, md5=md5, sha256=sha256, hashes=hashes),
        )
