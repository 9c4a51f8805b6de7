"""Ask the application now and then, while a body arrives, whether it is to go on: `post-receive`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tusd_py.errors import HookFailed, HookInvalid, UploadStopped
from tusd_py.protocol.events import HookKind
from tusd_py.uploads.hooks import hook_upload

if TYPE_CHECKING:
    from tusd_py.ports import Body
    from tusd_py.ports.hooks import HookRequest
    from tusd_py.uploads.body_writer import BodyWriter
    from tusd_py.uploads.service import UploadService


async def ask_while_receiving(service: UploadService, writer: BodyWriter, body: Body, request: HookRequest) -> None:
    """Ask until the caller cancels this, or the hook stops the upload: then the body ends with `UploadStopped`.

    One question at a time, and none while nothing arrives. The body does not wait for the answers, and goes on if
    there is none, whatever `hooks.on_error` says: a hook that is away must not end what it did not refuse.
    """
    hooks, arrived = service.hooks, 0
    assert hooks is not None  # whoever calls this has looked
    while True:
        await asyncio.sleep(service.config.events.progress_interval)
        before, (upload, arrived) = arrived, writer.progress
        if arrived == before:
            continue
        storage = {"Type": "filestore", "Path": str(service.staging.path(upload.id))}
        try:
            reply = await hooks.ask(HookKind.POST_RECEIVE, hook_upload(upload, storage=storage), request)
        except (HookFailed, HookInvalid):
            continue  # `ask` has logged it
        if reply.stop_upload:
            body.interrupt(UploadStopped(reply.response))
            return
