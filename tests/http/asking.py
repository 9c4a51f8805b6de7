"""Servers that ask an application before an upload is complete, and that application."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.http.served import Serve, Served
from tests.support.process import eventually
from tusd_py.hooks import HookEvent
from tusd_py.protocol.upload import Upload, UploadId
from tusd_py.uploads.service import Timing


@dataclass(slots=True)
class Application:
    """Answers as a test wants, and remembers what it was asked."""

    answer: Callable[[HookEvent], Awaitable[Any]] | None = None
    asked: list[HookEvent] = field(default_factory=list)

    async def __call__(self, event: HookEvent) -> Any:
        self.asked.append(event)
        return None if self.answer is None else await self.answer(event)

    def fails(self, times: int | None = None) -> None:
        """Fail so often, or always."""
        first = len(self.asked)

        async def fail(_: HookEvent) -> None:
            if times is None or len(self.asked) - first <= times:
                raise RuntimeError("no database")

        self.answer = fail

    def replies(self, reply: object) -> None:
        async def answer(_: HookEvent) -> object:
            return reply

        self.answer = answer


application = Application()


async def start_asking(serve: Serve, *, timing: Timing | None = None, hooks: Any = None, **sections: Any) -> Served:
    """Start a server that asks before an upload is complete, and whose worker is quick."""
    asks = {"python": f"{__name__}:application", "events": ["pre-finish"]} | (hooks or {})
    quick = {"poll_interval": 0.05, "retry_delay": 0.05, "retry_max_delay": 0.05}
    return await serve(timing=timing, **{"hooks": asks, "transfer": quick} | sections)


@contextlib.contextmanager
def fresh_application() -> Iterator[Application]:
    """Lend the application, which has been asked nothing and agrees to all."""
    application.__init__()  # type: ignore[misc]
    yield application
    application.__init__()  # type: ignore[misc]


async def events_of(served: Served, upload: Upload) -> list[str]:
    rows = await served.core.database.fetch("SELECT kind FROM events WHERE upload_id = $1 ORDER BY sequence", upload.id)
    return [row["kind"] for row in rows]


def completions(served: Served) -> float | None:
    """Return how many uploads were completed, as `/metrics` says."""
    return served.core.metrics.registry.get_sample_value("tusd_py_uploads_completed_total")


async def only_upload(served: Served) -> Upload:
    (row,) = await served.core.database.fetch("SELECT id FROM uploads")
    found = await served.core.uploads.find(UploadId(row["id"]))
    assert found is not None
    return found


async def until_asked(app: Application, times: int = 1) -> None:
    async def asked() -> bool:
        return len(app.asked) >= times

    await eventually(asked, deadline=20, what=f"asked {times} times")


async def until_stored(served: Served, upload: Upload) -> None:
    async def stored() -> bool:
        found = await served.core.uploads.find(upload.id)
        return found is not None and found.state == "stored"

    async with served.working():
        await eventually(stored, deadline=30, what="the upload is stored")
    assert (await events_of(served, upload)).count("upload.completed") == 1
