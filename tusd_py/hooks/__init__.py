"""Blocking hooks: ask the application before something happens to an upload, in the format of tusd.

`make_hooks` builds what a configuration names: an HTTP endpoint, a directory of programs or a Python object,
which finds the types that it needs here.
"""

from tusd_py.hooks.factory import make_hooks
from tusd_py.ports.hooks import (
    FileInfoChanges,
    HookEvent,
    HookReply,
    HookRequest,
    HookResponse,
    HookUpload,
    PythonHook,
)
from tusd_py.protocol.events import HookKind

__all__ = [
    "FileInfoChanges",
    "HookEvent",
    "HookKind",
    "HookReply",
    "HookRequest",
    "HookResponse",
    "HookUpload",
    "PythonHook",
    "make_hooks",
]
