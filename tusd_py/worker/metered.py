"""A transfer state that counts the bytes sent, so that the rate of a running transfer can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tusd_py.ports import PartRecord, TransferState


class MeteredTransferState(TransferState):
    """Passes everything on, and calls `count` with the number of bytes that are new in the store."""

    def __init__(self, inner: TransferState, count: Callable[[int], None]) -> None:
        self._inner = inner
        self._count = count
        self._counted = 0

    def reached(self, bytes_done: int) -> None:
        """Count the bytes since the last call."""
        if bytes_done > self._counted:
            self._count(bytes_done - self._counted)
            self._counted = bytes_done

    async def multipart_id(self) -> str | None:
        return await self._inner.multipart_id()

    async def record_multipart(self, multipart_id: str | None) -> None:
        await self._inner.record_multipart(multipart_id)

    async def parts(self) -> Sequence[PartRecord]:
        parts = await self._inner.parts()
        # The parts of an earlier attempt were counted when they were sent.
        self._counted = max(self._counted, sum(part.length for part in parts))
        return parts

    async def record_part(self, part: PartRecord) -> None:
        await self._inner.record_part(part)

    async def progress(self, bytes_done: int) -> None:
        self.reached(bytes_done)
        await self._inner.progress(bytes_done)
