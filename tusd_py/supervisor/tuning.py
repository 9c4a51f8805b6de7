"""Settings of a child process that the interpreter, the kernel and glibc leave to the program."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
MALLOC_MMAP_BYTES: Final = 64 * 2**20
MALLOC_TRIM_BYTES: Final = 32 * 2**20
COLLECTOR_THRESHOLDS: Final = (5_000, 50, 100)


def freeze_gc() -> None:
    """Exclude what exists now from garbage collection, and collect less often.

    Modules, classes and routes live as long as the process: walking them again and again frees nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def raise_file_limit() -> None:
    """Raise the limit of open files to the hard limit: connections and staged files take one each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tune_malloc() -> None:
    """Keep malloc from returning every read buffer to the kernel and requesting it again.

    Buffers of 256 KiB are otherwise mapped, faulted in and unmapped once per read of a socket, which
    costs about as much as receiving them. glibc only; elsewhere this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6", use_errno=True)
        libc.mallopt(M_MMAP_THRESHOLD, MALLOC_MMAP_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, MALLOC_TRIM_BYTES)
