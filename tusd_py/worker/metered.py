"""A transfer state that counts the bytes on their way, so that a rate can be read while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tusd_py.ports import PartRecord, TransferState


class MeteredTransferState(TransferState):
    """Passes everything on, and tells `count` of bytes that the store has and had not before."""

    def __init__(self, inner: TransferState, count: Callable[[int], None]) -> None:
        self._inner = inner
        self._count = count
        self._told = 0

    def reached(self, bytes_done: int) -> None:
        """Count what lies between the last figure and this one."""
        if bytes_done > self._told:
            self._count(bytes_done - self._told)
            self._told = bytes_done

    async def multipart_id(self) -> str | None:
        return await self._inner.multipart_id()

    async def record_multipart(self, multipart_id: str | None) -> None:
        await self._inner.record_multipart(multipart_id)

    async def parts(self) -> Sequence[PartRecord]:
        parts = await self._inner.parts()
        # Those of an earlier try were counted by whoever sent them.
        self._told = max(self._told, sum(part.length for part in parts))
        return parts

    async def record_part(self, part: PartRecord) -> None:
        await self._inner.record_part(part)

    async def progress(self, bytes_done: int) -> None:
        self.reached(bytes_done)
        await self._inner.progress(bytes_done)
