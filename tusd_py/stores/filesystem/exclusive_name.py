"""Give a finished file its name without replacing what has that name already.

`rename` replaces. `link` does not, and every file system that people keep servers on has it; the few
without (FAT, some network and FUSE mounts) mostly know `RENAME_NOREPLACE`. On one that knows neither,
a check right before the rename is the best there is.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})
_NO_SUCH_FLAG: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


def give_name(source: Path, target: Path) -> None:
    """Name the file `target`. It may keep its old name as well, which the caller removes.

    Raises:
        FileExistsError: there is something of that name, and it was left alone.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename(source, target)


def _rename(source: Path, target: Path) -> None:
    try:
        _rename_noreplace(source, target)
    except OSError as error:
        if error.errno not in _NO_SUCH_FLAG:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        source.rename(target)


def _rename_noreplace(source: Path, target: Path) -> None:
    arguments = (_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
    renameat2 = _renameat2()
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(target))
    if renameat2(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    """Return the C library's function, None where it has none: macOS, or an old musl."""
    try:
        function: Callable[..., int] = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return None
    return function
