"""Hooks in Python: a function or another callable of the application, in this process."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import inspect
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, cast

from tusd_py.errors import HookFailed, HookInvalid
from tusd_py.hooks.replies import check_types
from tusd_py.ports.hooks import HookEvent, HookReply, Hooks, PythonHook

MAX_THREADS: Final = 32


class FunctionHooks(Hooks):
    """Calls a Python object. See `PythonHook`."""

    def __init__(self, hook: PythonHook) -> None:
        self._hook = hook
        call = hook if inspect.isroutine(hook) else getattr(hook, "__call__", hook)  # noqa: B004
        self._asynchronous = inspect.iscoroutinefunction(call)
        # Threads of its own: hooks that hang must not keep those from which files are written and synced.
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="hook")

    async def ask(self, event: HookEvent) -> HookReply:
        try:
            reply = self._hook(event) if self._asynchronous else await self._in_thread(event)
            if inspect.isawaitable(reply):
                reply = await reply
        except Exception as error:
            raise HookFailed(hook=event.kind, cause=repr(error)) from error
        if reply is None:
            return HookReply()
        if not isinstance(reply, HookReply):
            raise HookInvalid(f"The hook returned {type(reply).__name__} and no HookReply.", hook=event.kind)
        check_types(reply)
        return reply

    async def _in_thread(self, event: HookEvent) -> object:
        call = partial(contextvars.copy_context().run, self._hook, event)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


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
    except Exception as error:
        # Whatever the application's module does when it is imported.
        raise ValueError(f"{reference!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ValueError(f"{reference!r} cannot be called")  # noqa: TRY004 -- as every problem of a setting
    return cast("PythonHook", found)
