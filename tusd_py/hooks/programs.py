"""Hooks by programs: a directory with an executable for each hook, named like it.

The question is on standard input, and in `TUS_ID`, `TUS_SIZE` and `TUS_OFFSET`; the reply is on standard output.
A status other than 0 is a failure. A hook that has no file is not asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Final

import structlog

from tusd_py.errors import HookFailed, HookInvalid
from tusd_py.hooks.messages import MAX_REPLY_BYTES, decode_reply, encode_event
from tusd_py.ports.hooks import HookEvent, HookReply, Hooks

log = structlog.get_logger(__name__)

CLOSE_SECONDS: Final = 1.0


class ProgramHooks(Hooks):
    """Runs the programs of a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def ask(self, event: HookEvent) -> HookReply:
        program = self._directory / event.kind.value
        if not program.exists():
            return HookReply()
        output = await run_program(program, encode_event(event), environment_of(event))
        return decode_reply(output) if output.strip() else HookReply()

    async def close(self) -> None:
        pass


def environment_of(event: HookEvent) -> dict[str, str]:
    """Return what a program finds in its environment beside our own."""
    upload = event.upload
    return {"TUS_ID": upload.id, "TUS_SIZE": str(upload.size or 0), "TUS_OFFSET": str(upload.offset)}


async def run_program(program: Path, question: bytes, environment: dict[str, str]) -> bytes:
    """Run a program with `question` on its standard input; return its standard output.

    It and its children are killed if the caller is cancelled. What it writes to standard error is logged.

    Raises:
        HookFailed: it cannot be run, ends with another status than 0, or writes too much.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=program.parent,
            env=os.environ | environment,
            start_new_session=True,
        )
    except OSError as error:
        raise HookFailed(hook=program.name, cause=str(error)) from error
    try:
        output, errors = await process.communicate(question)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                # To its end, so that the pipes are closed; a child that has left the group may keep them open.
                await process.communicate()
        raise
    if errors:
        log.info("hook_wrote", hook=program.name, text=errors[-2000:])
    if process.returncode:
        raise HookFailed(hook=program.name, exit_status=process.returncode)
    if len(output) > MAX_REPLY_BYTES:
        raise HookInvalid(f"The reply is larger than {MAX_REPLY_BYTES} bytes.", hook=program.name)
    return output
