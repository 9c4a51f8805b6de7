"""An upload service on a real database and a real disk, on a clock of the test's own; no HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from tests.support.scripted_body import FakeClock, ScriptedBody, Step
from tests.support.unreliable import UnreliableDisk, UnreliableUploads
from tests.support.world import World
from tusd_py.protocol.checksum import Checksum, DigestSet, new_hasher
from tusd_py.protocol.upload import Append, Upload
from tusd_py.uploads.append import AppendFailed, receive_body
from tusd_py.uploads.service import UploadService

MIB = 2**20
BLOCK = 64 * 1024
RETRIES = 3
"""How often a record is tried again while the database is away."""


def checksum_of(content: bytes, algorithm: str = "sha256") -> Checksum:
    hasher = new_hasher(algorithm)
    hasher.update(content)
    return Checksum(algorithm, hasher.digest())


def digest_of(content: bytes) -> DigestSet:
    return DigestSet((checksum_of(content),))


@dataclass
class Node:
    """An upload service, and what it works with."""

    world: World
    service: UploadService
    uploads: UnreliableUploads
    disk: UnreliableDisk
    clock: FakeClock

    def body(self, *steps: Step, **facts: Any) -> ScriptedBody:
        return ScriptedBody(list(steps), self.clock, **facts)

    async def append(self, upload: Upload, *steps: Step, body: ScriptedBody | None = None, **facts: Any) -> Upload:
        """Append a body: of these steps, or the one that is given.

        It is chunked, and appended at the offset of `upload`, unless the facts of the `Append` say otherwise.
        """
        body = body or self.body(*steps)
        command = Append(**{"offset": upload.offset, "content_length": None, "protocol": upload.protocol} | facts)
        body.length = command.content_length
        return await receive_body(self.service, upload, command, body)

    async def failing(
        self, upload: Upload, *steps: Step, body: ScriptedBody | None = None, **facts: Any
    ) -> AppendFailed:
        """Append a body that cannot be received whole; return how it failed."""
        with pytest.raises(AppendFailed) as failed:
            await self.append(upload, *steps, body=body, **facts)
        return failed.value

    async def offset(self, upload: Upload) -> int:
        """Return the offset as recorded now."""
        return (await self.world.find(upload)).offset

    def staged(self, upload: Upload) -> bytes:
        return self.disk.path(upload.id).read_bytes()


class MakeNode(Protocol):
    """Builds a service; sections of the configuration as in `load_config`."""

    def __call__(self, *, look_seconds: float = 3600, **sections: Any) -> Node: ...
