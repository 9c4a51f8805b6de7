"""Hooks in Python: a function or another callable of the application, in this process."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from typing import cast

from tusd_py.errors import HookFailed, HookInvalid
from tusd_py.ports.hooks import HookEvent, HookReply, Hooks, PythonHook


class FunctionHooks(Hooks):
    """Calls a Python object. See `PythonHook`."""

    def __init__(self, hook: PythonHook) -> None:
        self._hook = hook
        call = hook if inspect.isroutine(hook) else getattr(hook, "__call__", hook)  # noqa: B004
        self._asynchronous = inspect.iscoroutinefunction(call)

    async def ask(self, event: HookEvent) -> HookReply:
        try:
            reply = self._hook(event) if self._asynchronous else await asyncio.to_thread(self._hook, event)
            if inspect.isawaitable(reply):
                reply = await reply
        except Exception as error:
            raise HookFailed(hook=event.kind, cause=repr(error)) from error
        if reply is None:
            return HookReply()
        if not isinstance(reply, HookReply):
            raise HookInvalid(f"The hook returned {type(reply).__name__} and no HookReply.", hook=event.kind)
        return reply

    async def close(self) -> None:
        pass


def load_hook(reference: str) -> PythonHook:
    """Return the object that `package.module:object` names.

    Raises:
        ValueError: there is none, or it cannot be called.
    """
    module_name, _, path = reference.partition(":")
    if not (module_name and path):
        raise ValueError(f"{reference!r} does not have the form package.module:object")
    try:
        found: object = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{reference!r} cannot be loaded: {error}") from error
    if not callable(found):
        raise ValueError(f"{reference!r} cannot be called")  # noqa: TRY004 -- as every problem of a setting
    return cast("PythonHook", found)
