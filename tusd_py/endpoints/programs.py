"""Programs in the directory of hooks that are run when something has happened: post-create and so on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson

from tusd_py.errors import HookFailed, HookInvalid
from tusd_py.hooks.programs import run_program
from tusd_py.ports.events import DeliveryFailed, Endpoint, Message


class ProgramEndpoint(Endpoint):
    """Runs the program that is named like the hook, where there is one."""

    def __init__(self, directory: Path, *, timeout_seconds: float) -> None:
        self._directory = directory
        self._timeout_seconds = timeout_seconds

    async def send(self, message: Message) -> None:
        program = self._directory / message.name
        if not program.exists():
            return
        upload = orjson.loads(message.body)["Event"]["Upload"]
        environment = {"TUS_ID": upload["ID"], "TUS_SIZE": str(upload["Size"]), "TUS_OFFSET": str(upload["Offset"])}
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await run_program(program, message.body, environment)
        except TimeoutError as error:
            raise DeliveryFailed(f"{message.name} did not end in time") from error
        except (HookFailed, HookInvalid) as error:
            raise DeliveryFailed(str(error)) from error

    async def close(self) -> None:
        pass
